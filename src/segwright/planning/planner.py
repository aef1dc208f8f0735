"""Plan a dataset: every value that preprocessing, training and inference need, from its fingerprint.

nnU-Net behaviour 5.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from logging import getLogger
from typing import Any

from segwright.core.errors import PlanError
from segwright.core.files.hashing import content_hash
from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.data.laterality import LEFT_RIGHT_KEY
from segwright.data.plan import Plan, inverse_permutation
from segwright.planning.configurations import Draft, configuration_block, explain_draft
from segwright.planning.label_pairs import Lateral, choose_mirroring
from segwright.planning.lowres import LowresDecision, find_lowres
from segwright.planning.normalization import choose_normalization
from segwright.planning.presets import PRESETS, Preset, resampling_functions
from segwright.planning.rationale import EVERYWHERE, RATIONALE, Decision
from segwright.planning.sizing import Budget, size_configuration
from segwright.planning.spacing import median_shape_at, original_medians, target_spacing, transposition

SCHEMA_VERSION = 1
"""Version of the entries under the plan's key `segwright`."""

FLAT, LOWRES, FULLRES, CASCADE = "2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"
_SHARED_DATA = (FLAT, FULLRES)
"""Configurations whose preprocessed data several presets share (nnU-Net behaviour 5.2)."""

logger = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MedianImage:
    """Median image of the dataset at the target spacing, in the plan's axis order.

    Attributes:
        order: Axis order, `transpose_forward`.
        spacing: Target spacing.
        median_shape: Median image at that spacing, voxels; may hold halves.
        decisions: Entries of the rationale.
    """

    order: tuple[int, ...]
    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """Names of the plans and of the preprocessed data.

    Attributes:
        plans: of these plans.
        shared: of the plans whose preprocessed data is used as well, if any.
    """

    plans: str
    shared: str | None

    def data_identifier(self, configuration: str) -> str:
        owner = self.shared if self.shared and configuration in _SHARED_DATA else self.plans
        return f"{owner}_{configuration}"


def plan(
    fingerprint: Fingerprint,
    description: DatasetDescription,
    *,
    dataset_name: str,
    reader: str,
    preset: Preset,
    gpu_memory_gb: float | None = None,
    spacing: tuple[float, ...] | None = None,
    plans_name: str | None = None,
    suppress_transpose: bool = False,
    existing: Plan | None = None,
    lateral: Collection[Lateral | None] = (),
) -> Plan:
    """Plan a dataset with the values of nnU-Net 2.8.1, and record the reason of every decision.

    Args:
        fingerprint: Spacings, cropped shapes and intensities of the training cases.
        description: The dataset's `dataset.json`.
        dataset_name: Folder name of the dataset.
        reader: Name of the image reader (`data.images.image_io.choose_reader`).
        preset: Planner family (`presets.preset`).
        gpu_memory_gb: GPU memory target, GB; the preset's by default.
        spacing: Target spacing instead of the automatic one, in the reader's axis order.
        plans_name: Name instead of the preset's.
        suppress_transpose: Keep the reader's axis order.
        existing: Earlier plan; configurations of it that the new plan lacks, such as hand-made ones, are kept.
        lateral: Distinct left-right axes of the images, for pairs of left and right labels.

    Raises:
        PlanError: the fingerprint or an option is invalid.
    """
    _require_valid(fingerprint, gpu_memory_gb)
    budget = _budget(description, preset, gpu_memory_gb)
    names = _names(preset, plans_name, usual_data=spacing is None and not suppress_transpose)
    image = _median_image(fingerprint, spacing, suppress_transpose=suppress_transpose)
    normalization = choose_normalization(description, fingerprint)
    drafts, lowres_decision = _draft(image, names, budget)
    configurations = {draft.name: configuration_block(draft, preset, normalization) for draft in drafts}
    if lowres_decision.lowres:
        configurations[CASCADE] = {"inherits_from": FULLRES, "previous_stage": LOWRES}
    kept = _kept(existing, configurations)
    sides, side_decisions = choose_mirroring(description, image.order, lateral, fingerprint.mirror_pairs)
    if fingerprint.mirror_pairs is not None:
        for decision in side_decisions:
            logger.info("%s: %s", decision.decision, decision.reason)
    common = (
        *image.decisions,
        *normalization.decisions,
        *_common_decisions(preset),
        _cascade_decision(lowres_decision),
        *side_decisions,
    )
    own = [entry for draft in drafts for entry in explain_draft(draft, budget)]
    median_spacing, median_shape = original_medians(fingerprint)
    return Plan(
        dataset_name=dataset_name,
        plans_name=names.plans,
        original_median_spacing_after_transp=_ordered(median_spacing, image.order),
        original_median_shape_after_transp=_ordered(median_shape, image.order),
        image_reader_writer=reader,
        transpose_forward=image.order,
        transpose_backward=inverse_permutation(image.order),
        configurations={**configurations, **kept},
        experiment_planner_used=preset.planner,
        label_manager="LabelManager",
        foreground_intensity_properties_per_channel=intensities(fingerprint),
        segwright=_additions(fingerprint, budget, [*common, *own, *map(_kept_decision, kept)])
        | ({} if sides is None else {LEFT_RIGHT_KEY: sides.to_json()}),
    )


def intensities(fingerprint: Fingerprint) -> dict[str, dict[str, float]]:
    """Return the statistics of each channel in the format of a plan."""
    channels = fingerprint.foreground_intensity_properties_per_channel
    return {name: dict(sorted(statistics.model_dump().items())) for name, statistics in channels.items()}


def _budget(description: DatasetDescription, preset: Preset, gpu_memory_gb: float | None) -> Budget:
    return Budget(
        preset=preset,
        gpu_memory_gb=preset.gpu_memory_gb if gpu_memory_gb is None else gpu_memory_gb,
        num_classes=len(description.labels),
        num_training=description.num_training,
    )


def _names(preset: Preset, plans_name: str | None, *, usual_data: bool) -> _Names:
    # Presets share preprocessed data only where it is the same data (nnU-Net behaviour 5.2).
    shared = PRESETS["default"].plans_name if preset.shares_data and usual_data else None
    return _Names(plans=plans_name or preset.plans_name, shared=shared)


def _additions(fingerprint: Fingerprint, budget: Budget, rationale: list[Decision]) -> dict[str, Any]:
    """Return the entries under the plan's key `segwright`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "version": version("segwright"),
        "preset": budget.preset.name,
        "resampling": budget.preset.resampling,
        "gpu_memory_gb": budget.gpu_memory_gb,
        "fingerprint_hash": content_hash(fingerprint.model_dump(mode="json", exclude={"segwright"})),
        RATIONALE: [entry.to_json() for entry in rationale],
    }


def _require_valid(fingerprint: Fingerprint, gpu_memory_gb: float | None) -> None:
    if not fingerprint.spacings or len(fingerprint.spacings) != len(fingerprint.shapes_after_crop):
        raise PlanError(
            f"fingerprint: {len(fingerprint.spacings)} spacings and {len(fingerprint.shapes_after_crop)} shapes; there"
            " must be one of each per case, and at least one case; extract it again"
        )
    for index, (spacing, shape) in enumerate(zip(fingerprint.spacings, fingerprint.shapes_after_crop, strict=True)):
        if len(spacing) != 3 or len(shape) != 3 or not min(*spacing, *shape) > 0:
            raise PlanError(
                f"fingerprint: case {index} has spacing {list(spacing)} and shape {list(shape)}; both must be three"
                " positive numbers; correct the image's header and extract the fingerprint again"
            )
    if gpu_memory_gb is not None and not (math.isfinite(gpu_memory_gb) and gpu_memory_gb > 0):
        raise PlanError(f"GPU memory target {gpu_memory_gb} GB is not a positive number; correct --gpu-memory")


def _median_image(
    fingerprint: Fingerprint, override: tuple[float, ...] | None, *, suppress_transpose: bool
) -> _MedianImage:
    target = target_spacing(fingerprint, override)
    order = transposition(target.value, suppress=suppress_transpose)
    spacing = _ordered(target.value, order)
    if suppress_transpose:
        why = "axes kept as read, as requested"
    elif order == tuple(range(len(order))):
        why = "the first axis already has the largest spacing"
    else:
        why = f"axis {order[0]} as read has the largest spacing and comes first, so that 2D slices are finest in plane"
    return _MedianImage(
        order=order,
        spacing=spacing,
        median_shape=_ordered(median_shape_at(fingerprint, target.value), order),
        decisions=(
            Decision(
                configuration=EVERYWHERE, decision="target spacing", value=list(target.value), reason=target.reason
            ),
            Decision(configuration=EVERYWHERE, decision="axis order", value=list(order), reason=why),
        ),
    )


def _draft(image: _MedianImage, names: _Names, budget: Budget) -> tuple[list[Draft], LowresDecision]:
    """Return the configurations in file order, cascade apart, and whether low resolution is needed."""
    dataset_voxels = math.prod(image.median_shape) * budget.num_training
    drafts = [
        Draft(
            name=FLAT,
            data_identifier=names.data_identifier(FLAT),
            spacing=image.spacing[1:],
            median_shape=image.median_shape[1:],
            sizing=size_configuration(
                image.spacing[1:], image.median_shape[1:], dataset_voxels=dataset_voxels, budget=budget
            ),
            batch_dice=True,
            batch_dice_reason="a single slice often lacks classes, so Dice is computed over the batch",
        )
    ]
    if image.median_shape[0] == 1:
        return drafts, LowresDecision(lowres=None, reason="the images are 2D: no 3D configuration is planned")
    full = size_configuration(image.spacing, image.median_shape, dataset_voxels=dataset_voxels, budget=budget)
    lowres_decision = find_lowres(image.spacing, image.median_shape, full, budget)
    if lowres_decision.lowres:
        drafts.append(
            Draft(
                name=LOWRES,
                data_identifier=names.data_identifier(LOWRES),
                spacing=lowres_decision.lowres.spacing,
                median_shape=lowres_decision.lowres.median_shape,
                sizing=lowres_decision.lowres.sizing,
                batch_dice=False,
                batch_dice_reason="a patch covers a large part of the image, so Dice per sample is stable",
                next_stage=CASCADE,
            )
        )
    drafts.append(
        Draft(
            name=FULLRES,
            data_identifier=names.data_identifier(FULLRES),
            spacing=image.spacing,
            median_shape=image.median_shape,
            sizing=full,
            batch_dice=lowres_decision.lowres is not None,
            batch_dice_reason="a patch is a small part of the image, so Dice is computed over the batch"
            if lowres_decision.lowres
            else "a patch covers enough of the image, so Dice per sample is stable",
        )
    )
    return drafts, lowres_decision


def _common_decisions(preset: Preset) -> Iterator[Decision]:
    functions = resampling_functions(preset.resampling)
    reasons = {
        "default": "cubic for images, linear for labels and probabilities; nearest neighbour along a much coarser axis",
        "torch": "linear, as requested",
        "torch-sepz": "linear, a much coarser axis separately, as requested",
        "none": "none, as requested; sizes are planned as if images were resampled",
    }
    yield Decision(
        configuration=EVERYWHERE,
        decision="resampling",
        value=functions["resampling_fn_data"],
        reason=reasons[preset.resampling],
    )
    yield Decision(
        configuration=EVERYWHERE, decision="network", value=preset.network.value, reason=f"preset '{preset.name}'"
    )


def _cascade_decision(lowres_decision: LowresDecision) -> Decision:
    return Decision(
        configuration=EVERYWHERE,
        decision="low resolution and cascade",
        value=bool(lowres_decision.lowres),
        reason=lowres_decision.reason,
    )


def _kept(existing: Plan | None, configurations: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if existing is None:
        return {}
    kept = {name: block for name, block in existing.configurations.items() if name not in configurations}
    if kept:
        logger.info("kept configurations of the earlier plan '%s': %s", existing.plans_name, ", ".join(kept))
    return kept


def _kept_decision(name: str) -> Decision:
    return Decision(
        configuration=name,
        decision="kept",
        value=True,
        reason="copied from the earlier plan of this name; delete that file before planning to drop it",
    )


def _ordered(values: tuple[Any, ...], order: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(values[axis] for axis in order)
