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
from segwright.core.files.atomic_io import content_hash
from segwright.data.dataset import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.data.laterality import KEY as SIDES
from segwright.data.plan import Plan, inverse_permutation
from segwright.planning.channels import choose_normalization
from segwright.planning.configurations import Draft, configuration_block, explain_draft
from segwright.planning.label_pairs import Lateral, choose_mirroring
from segwright.planning.lowres import Search, find_lowres
from segwright.planning.presets import PRESETS, Preset, resampling_functions
from segwright.planning.rationale import EVERYWHERE, Decision
from segwright.planning.sizing import Budget, size_configuration
from segwright.planning.spacing import median_shape_at, original_medians, target_spacing, transposition

SCHEMA_VERSION = 1
"""Version of the entries under the plan's key `segwright`."""

FLAT, LOWRES, FULLRES, CASCADE = "2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"
_SHARED_DATA = (FLAT, FULLRES)

logger = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Images:
    """Median image of the dataset at the target spacing, in transposed axis order.

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
class _Naming:
    """Names of the plans and of the preprocessed data."""

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
        reader: Name of the image reader (`data.images.choose_reader`).
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
    _check(fingerprint, gpu_memory_gb)
    budget = _budget(description, preset, gpu_memory_gb)
    naming = _name(preset, plans_name, usual_data=spacing is None and not suppress_transpose)
    images = _arrange(fingerprint, spacing, suppress_transpose=suppress_transpose)
    normalization = choose_normalization(description, fingerprint)
    drafts, search = _draft(images, naming, budget)
    configurations = {draft.name: configuration_block(draft, preset, normalization) for draft in drafts}
    configurations |= {CASCADE: {"inherits_from": FULLRES, "previous_stage": LOWRES}} if search.lowres else {}
    kept = _kept(existing, configurations)
    sides, side_decisions = choose_mirroring(description, images.order, lateral)
    common = (
        *images.decisions,
        *normalization.decisions,
        *_common_decisions(preset),
        _cascade_decision(search),
        *side_decisions,
    )
    own = [entry for draft in drafts for entry in explain_draft(draft, budget)]
    median_spacing, median_shape = original_medians(fingerprint)
    return Plan(
        dataset_name=dataset_name,
        plans_name=naming.plans,
        original_median_spacing_after_transp=_ordered(median_spacing, images.order),
        original_median_shape_after_transp=_ordered(median_shape, images.order),
        image_reader_writer=reader,
        transpose_forward=images.order,
        transpose_backward=inverse_permutation(images.order),
        configurations={**configurations, **kept},
        experiment_planner_used=preset.planner,
        label_manager="LabelManager",
        foreground_intensity_properties_per_channel=intensities(fingerprint),
        segwright=_additions(fingerprint, budget, [*common, *own, *map(_kept_decision, kept)])
        | ({} if sides is None else {SIDES: sides.to_json()}),
    )


def _budget(description: DatasetDescription, preset: Preset, gpu_memory_gb: float | None) -> Budget:
    return Budget(
        preset=preset,
        gpu_memory_gb=preset.gpu_memory_gb if gpu_memory_gb is None else gpu_memory_gb,
        num_classes=len(description.labels),
        num_training=description.num_training,
    )


def _name(preset: Preset, plans_name: str | None, *, usual_data: bool) -> _Naming:
    # Presets share preprocessed data only where it is the same data (nnU-Net behaviour 5.2).
    shared = PRESETS["default"].plans_name if preset.shares_data and usual_data else None
    return _Naming(plans=plans_name or preset.plans_name, shared=shared)


def _additions(fingerprint: Fingerprint, budget: Budget, rationale: list[Decision]) -> dict[str, Any]:
    """Return the entries under the plan's key `segwright`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "version": version("segwright"),
        "preset": budget.preset.name,
        "resampling": budget.preset.resampling,
        "gpu_memory_gb": budget.gpu_memory_gb,
        "fingerprint_hash": content_hash(fingerprint.model_dump(mode="json", exclude={"segwright"})),
        "rationale": [entry.to_json() for entry in rationale],
    }


def _check(fingerprint: Fingerprint, gpu_memory_gb: float | None) -> None:
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


def _arrange(fingerprint: Fingerprint, override: tuple[float, ...] | None, *, suppress_transpose: bool) -> _Images:
    target = target_spacing(fingerprint, override)
    order = transposition(target.value, suppress=suppress_transpose)
    spacing = _ordered(target.value, order)
    if suppress_transpose:
        why = "axes kept as read, as requested"
    elif order == tuple(range(len(order))):
        why = "the first axis already has the largest spacing"
    else:
        why = f"axis {order[0]} as read has the largest spacing and comes first, so that 2D slices are finest in plane"
    return _Images(
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


def _draft(images: _Images, naming: _Naming, budget: Budget) -> tuple[list[Draft], Search]:
    """Return the configurations in file order, cascade apart, and the result of the low-resolution search."""
    dataset_voxels = math.prod(images.median_shape) * budget.num_training
    drafts = [
        Draft(
            name=FLAT,
            data_identifier=naming.data_identifier(FLAT),
            spacing=images.spacing[1:],
            median_shape=images.median_shape[1:],
            sizing=size_configuration(
                images.spacing[1:], images.median_shape[1:], dataset_voxels=dataset_voxels, budget=budget
            ),
            batch_dice=True,
            batch_dice_reason="a single slice often lacks classes, so Dice is computed over the batch",
        )
    ]
    if images.median_shape[0] == 1:
        return drafts, Search(lowres=None, reason="the images are 2D: no 3D configuration is planned")
    full = size_configuration(images.spacing, images.median_shape, dataset_voxels=dataset_voxels, budget=budget)
    search = find_lowres(images.spacing, images.median_shape, full, budget)
    if search.lowres:
        drafts.append(
            Draft(
                name=LOWRES,
                data_identifier=naming.data_identifier(LOWRES),
                spacing=search.lowres.spacing,
                median_shape=search.lowres.median_shape,
                sizing=search.lowres.sizing,
                batch_dice=False,
                batch_dice_reason="a patch covers a large part of the image, so Dice per sample is stable",
                next_stage=CASCADE,
            )
        )
    drafts.append(
        Draft(
            name=FULLRES,
            data_identifier=naming.data_identifier(FULLRES),
            spacing=images.spacing,
            median_shape=images.median_shape,
            sizing=full,
            batch_dice=search.lowres is not None,
            batch_dice_reason="a patch is a small part of the image, so Dice is computed over the batch"
            if search.lowres
            else "a patch covers enough of the image, so Dice per sample is stable",
        )
    )
    return drafts, search


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


def _cascade_decision(search: Search) -> Decision:
    return Decision(
        configuration=EVERYWHERE,
        decision="low resolution and cascade",
        value=bool(search.lowres),
        reason=search.reason,
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


def intensities(fingerprint: Fingerprint) -> dict[str, dict[str, float]]:
    """Return the statistics of each channel in the format of a plan."""
    channels = fingerprint.foreground_intensity_properties_per_channel
    return {name: dict(sorted(statistics.model_dump().items())) for name, statistics in channels.items()}


def _ordered(values: tuple[Any, ...], order: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(values[axis] for axis in order)
