"""Read, check and write plans: everything decided before training, in nnU-Net's `plans.json` schema."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from segwright.core.errors import PlanError, SegwrightError, did_you_mean
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_documents import describe_validation, read_json, write_json
from segwright.core.files.names import FileName, require_name

NETWORK_PATH = "dynamic_network_architectures.architectures.unet."
"""Import path of the U-Nets in nnU-Net's plans; used here too, so that either system reads the other's plans."""

KW_REQUIRES_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Architecture arguments that hold the import path of a class."""

MAX_STAGES = 64
"""Of a U-Net; halved as often, any patch is a single voxel."""

MAX_PATCH_VOXELS = 2**28
"""Of one patch; nnU-Net's planners give 256^3 on the largest GPUs."""

MAX_BATCH_VOXELS = 2**31
"""Of all patches of a batch: 8 GiB per channel."""

MIN_SPACING, MAX_SPACING = 1e-7, 1e7
"""In mm: 0.1 nm and 10 km."""
_MAX_MEDIAN = 1e12
"""Of informational spacings and shapes."""

_OLD_ARCHITECTURE_KEYS = (
    "UNet_class_name",
    "UNet_base_num_features",
    "unet_max_num_features",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "pool_op_kernel_sizes",
    "conv_kernel_sizes",
    "num_pool_per_axis",
)
_ENCODER_ARGUMENT = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
_INFORMATIONAL_KEYS = {"median_image_size_in_voxels", "time_budget_s"}
"""Keys of a configuration that change neither preprocessing nor network."""
_SCHEMES_WITHOUT_STATISTICS = {
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
}
"""Normalisation schemes that need no intensity statistics of the dataset."""
_REORIENTING_SUFFIX = "WithReorient"
"""Of the names of readers that re-orient images."""
_INDENT = 4

M = TypeVar("M", bound=BaseModel)
logger = getLogger(__name__)


class Architecture(BaseModel):
    """The network and its arguments: the `architecture` block of a configuration (nnU-Net behaviour 5.7)."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    network_class_name: str = Field(min_length=1)
    arch_kwargs: dict[str, Any]
    kw_requires_import: tuple[str, ...] = Field(default=(), alias="_kw_requires_import")


class Configuration(BaseModel):
    """One configuration of a plan with its inheritance resolved (nnU-Net behaviour 5.13).

    Sizes are in voxels, spacing is in the images' unit (mm as a rule), both in transposed axis order.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    data_identifier: FileName
    preprocessor_name: str
    batch_size: int = Field(ge=1, le=MAX_BATCH_VOXELS)
    patch_size: tuple[int, ...]
    median_image_size_in_voxels: tuple[FiniteFloat, ...] = ()
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...] = Field(min_length=1)
    use_mask_for_norm: tuple[bool, ...]
    resampling_fn_data: str
    resampling_fn_seg: str
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_seg_kwargs: dict[str, Any]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any]
    architecture: Architecture
    batch_dice: bool
    next_stage: str | tuple[str, ...] | None = None
    previous_stage: FileName | None = None
    inherits_from: str | None = None
    time_budget_s: float | None = None
    """Training time that the configuration was chosen for, in seconds; None: as nnU-Net plans."""

    @property
    def dims(self) -> int:
        """Number of spatial axes of a patch: 2 or 3."""
        return len(self.patch_size)

    def num_input_channels(self, num_image_channels: int, num_foreground_labels: int) -> int:
        """Return the network's input channels; the second stage of a cascade has one more for each foreground label."""
        return num_image_channels + (0 if self.previous_stage is None else num_foreground_labels)

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Downsampling factor per stage and axis; empty if the architecture has no `strides` argument."""
        strides = self.architecture.arch_kwargs.get("strides")
        return tuple(_per_axis(each, self.dims) for each in strides) if isinstance(strides, list | tuple) else ()

    @field_validator("spacing")
    @classmethod
    def _spacing_is_positive(cls, spacing: tuple[float, ...]) -> tuple[float, ...]:
        if not all(MIN_SPACING <= value <= MAX_SPACING for value in spacing):
            raise ValueError(
                f"is {list(spacing)}; every entry must be a positive number of mm, from {MIN_SPACING:g} to "
                f"{MAX_SPACING:g}"
            )
        return spacing

    @field_validator("next_stage")
    @classmethod
    def _next_stages_are_names(cls, stages: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for stage in (stages,) if isinstance(stages, str) else stages or ():
            require_name(stage, "next stage")
        return stages

    @field_validator("patch_size")
    @classmethod
    def _patch_is_a_size(cls, patch_size: tuple[int, ...]) -> tuple[int, ...]:
        if len(patch_size) not in (2, 3) or min(patch_size) < 1:
            raise ValueError(f"is {list(patch_size)[:4]}; give 2 or 3 positive numbers of voxels")
        if math.prod(patch_size) > MAX_PATCH_VOXELS:
            raise ValueError(
                f"is {list(patch_size)}, {math.prod(patch_size)} voxels; at most {MAX_PATCH_VOXELS} are computed"
            )
        return patch_size

    @model_validator(mode="after")
    def _lengths_agree(self) -> Configuration:
        for key, values in (
            ("spacing", self.spacing),
            ("median_image_size_in_voxels", self.median_image_size_in_voxels),
        ):
            if len(values) != self.dims and (values or key == "spacing"):
                raise ValueError(f"{key} has {len(values)} entries, patch_size has {self.dims}; make them equal")
        if self.batch_size * math.prod(self.patch_size) > MAX_BATCH_VOXELS:
            raise ValueError(
                f"batch_size is {self.batch_size}; {MAX_BATCH_VOXELS // math.prod(self.patch_size)} patches of size "
                f"{list(self.patch_size)} are the most"
            )
        if len(self.use_mask_for_norm) != len(self.normalization_schemes):
            raise ValueError(
                f"use_mask_for_norm has {len(self.use_mask_for_norm)} entries, normalization_schemes has"
                f" {len(self.normalization_schemes)}; give one per channel in both"
            )
        _check_architecture(self.architecture.arch_kwargs, self.patch_size)
        return self

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str = "configuration") -> Configuration:
        """Validate one resolved configuration; plans from before the `architecture` block are upgraded.

        Raises:
            PlanError: a value is missing or does not fit; `where` and the key are named.
        """
        return _validate(cls, upgrade_configuration(document, where=where), where)


class Plan(BaseModel):
    """A `plans.json`: facts about the dataset, and its configurations as in the file.

    `configuration` returns one of them resolved and checked.

    Attributes:
        dataset_name: name of the planned dataset.
        plans_name: name of the plans, and of their file without its ending.
        original_median_spacing_after_transp: median spacing of the cases in mm, in the transposed axis order.
        original_median_shape_after_transp: median shape of the cases after cropping, in the same order.
        image_reader_writer: nnU-Net's name of the reader and writer of images.
        transpose_forward: axis order of the network: axis `i` of its input is axis `transpose_forward[i]` of the image.
        transpose_backward: the inverse permutation.
        configurations: by name, as in the file; one may inherit values from another.
        experiment_planner_used: class or program that made the plan.
        label_manager: nnU-Net's name of what interprets labels.
        foreground_intensity_properties_per_channel: intensity statistics by channel number.
        segwright: our additions: the reason of every decision, and what the plan was made from.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    dataset_name: FileName
    plans_name: FileName
    original_median_spacing_after_transp: tuple[float, ...] = ()
    original_median_shape_after_transp: tuple[int, ...] = ()
    image_reader_writer: str
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    configurations: dict[FileName, dict[str, Any]]
    experiment_planner_used: str = ""
    label_manager: str = "LabelManager"
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]
    segwright: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _accept_legacy_names(cls, document: Any) -> Any:
        old, new = "foreground_intensity_properties_by_modality", "foreground_intensity_properties_per_channel"
        if isinstance(document, Mapping) and old in document and new not in document:
            return {(new if key == old else key): value for key, value in document.items()}
        return document

    @field_validator("original_median_spacing_after_transp", "original_median_shape_after_transp")
    @classmethod
    def _medians_are_positive(cls, medians: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < value <= _MAX_MEDIAN for value in medians):  # nor NaN
            raise ValueError(f"is {list(medians[:4])}; every entry must be a positive number up to {_MAX_MEDIAN:g}")
        return medians

    @model_validator(mode="after")
    def _transposition_is_reversible(self) -> Plan:
        forward, backward = self.transpose_forward, self.transpose_backward
        if len(forward) > 3 or sorted(forward) != list(range(len(forward))):
            raise ValueError(f"transpose_forward is {list(forward[:4])}; it must list every axis once")
        if backward != inverse_permutation(forward):
            raise ValueError(
                f"transpose_backward is {list(backward)}; the inverse of transpose_forward is"
                f" {list(inverse_permutation(forward))}"
            )
        return self

    @property
    def configuration_names(self) -> tuple[str, ...]:
        """Names of all configurations, in file order."""
        return tuple(self.configurations)

    @property
    def default_configuration(self) -> str:
        """3d_fullres, or the first configuration if there is none of that name."""
        return next(name for name in ("3d_fullres", *self.configurations) if name in self.configurations)

    def configuration(self, name: str) -> Configuration:
        """Return a configuration with `inherits_from` resolved (nnU-Net behaviour 5.14), upgraded if old, and checked.

        Raises:
            PlanError: there is no such configuration, `inherits_from` is invalid or a value does not fit.
        """
        where = f"plans '{self.plans_name}', configuration '{name}'"
        try:
            return Configuration.from_json(self._resolve(name, ()), where=where)
        except SegwrightError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise PlanError(f"{where}: a value has the wrong type ({error}); the plan is damaged") from error

    def setup(self, name: str) -> dict[str, Any]:
        """Return as JSON everything in this plan that affects training and prediction of a configuration.

        Raises:
            PlanError: as `configuration`.
        """
        configuration = self.configuration(name)
        reads_statistics = not set(configuration.normalization_schemes) <= _SCHEMES_WITHOUT_STATISTICS
        return {
            "configuration": configuration.model_dump(mode="json", by_alias=True, exclude=_INFORMATIONAL_KEYS),
            "transpose": list(self.transpose_forward),
            "reoriented": self.image_reader_writer.endswith(_REORIENTING_SUFFIX),
            "intensities": self.foreground_intensity_properties_per_channel if reads_statistics else None,
        }

    def setup_hash(self, name: str) -> str:
        """Return the hash of `setup`, to compare plans."""
        return content_hash(self.setup(name))

    def to_json(self) -> dict[str, Any]:
        """Return the document as nnU-Net writes it, in its key order, followed by unknown keys and `segwright`."""
        return {key: _with_lists(value) for key, value in self._entries()}

    def save(self, path: Path) -> None:
        """Write the plan, atomically, with nnU-Net's indentation."""
        write_json(path, self.to_json(), indent=_INDENT)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str = "plans") -> Plan:
        """Validate a plans document.

        Raises:
            PlanError: a value is missing or does not fit; `where` and the key are named.
        """
        return _validate(cls, document, where)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plans file, ours or nnU-Net's.

        Raises:
            PlanError: the file is missing, not JSON or not a plan.
        """
        try:
            document = read_json(path)
        except SegwrightError as error:
            raise PlanError(str(error)) from error
        return cls.from_json(document, where=str(path))

    def _entries(self) -> Iterator[tuple[str, Any]]:
        # Only keys that were given: informational keys that a file lacks are not added when it is written again.
        for key in type(self).model_fields:
            if key != "segwright" and key in self.model_fields_set:
                yield key, getattr(self, key)
        yield from (self.model_extra or {}).items()
        if self.segwright:
            yield "segwright", self.segwright

    def _resolve(self, name: str, descendants: tuple[str, ...]) -> dict[str, Any]:
        if name not in self.configurations:
            use = f", which '{descendants[-1]}' inherits from" if descendants else ""
            raise PlanError(
                f"plans '{self.plans_name}' have no configuration '{name}'{use}"
                f"{did_you_mean(name, self.configurations)}"
            )
        if name in descendants:
            raise PlanError(
                f"plans '{self.plans_name}': configurations inherit from each other in a circle"
                f" ({' -> '.join((*descendants, name))}); remove one inherits_from"
            )
        own = copy.deepcopy(self.configurations[name])
        parent = own.get("inherits_from")
        return own if parent is None else {**self._resolve(parent, (*descendants, name)), **own}


def inverse_permutation(order: tuple[int, ...]) -> tuple[int, ...]:
    """Return the permutation that undoes `order`.

    >>> inverse_permutation((1, 2, 0))
    (2, 0, 1)
    """
    return tuple(order.index(axis) for axis in range(len(order)))


def architecture_block(
    network: str,
    *,
    dims: int,
    features: tuple[int, ...],
    kernel_sizes: tuple[tuple[int, ...], ...],
    strides: tuple[tuple[int, ...], ...],
    encoder_blocks: tuple[int, ...],
    decoder_convs: tuple[int, ...],
) -> dict[str, Any]:
    """Return a U-Net's `architecture` block, keys in nnU-Net's order (nnU-Net behaviour 5.7).

    Args:
        network: `PlainConvUNet` or `ResidualEncoderUNet`.
        dims: 2 or 3 spatial axes.
        features: Output channels per stage.
        kernel_sizes: Kernel per stage and axis.
        strides: Downsampling per stage and axis.
        encoder_blocks: Convolutions (plain) or residual blocks (residual) per stage.
        decoder_convs: Convolutions per decoder stage, lowest resolution first.
    """
    return {
        "network_class_name": NETWORK_PATH + network,
        "arch_kwargs": {
            "n_stages": len(strides),
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [list(kernel) for kernel in kernel_sizes],
            "strides": [list(stride) for stride in strides],
            _ENCODER_ARGUMENT[network]: list(encoder_blocks),
            "n_conv_per_stage_decoder": list(decoder_convs),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": list(KW_REQUIRES_IMPORT),
    }


def upgrade_configuration(document: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return `document` with the keys of early nnU-Net v2 plans turned into an `architecture` block.

    A document that has the block, or nothing to make it from, is returned unchanged. For residual plans nnU-Net's own
    upgrade names a class that does not exist; this one names the right class (nnU-Net behaviour 5.15).

    Raises:
        PlanError: the old network is unknown, or an old key is missing.
    """
    if "architecture" in document or "UNet_class_name" not in document:
        return dict(document)
    network = document["UNet_class_name"]
    if not isinstance(network, str) or network not in _ENCODER_ARGUMENT:
        raise PlanError(
            f"{where}: UNet_class_name '{network}' is unknown{did_you_mean(str(network), _ENCODER_ARGUMENT)}"
        )
    missing = [key for key in _OLD_ARCHITECTURE_KEYS if key not in document and key != "num_pool_per_axis"]
    if missing:
        raise PlanError(f"{where}: old plans without {', '.join(missing)}; make the plan again")
    logger.warning("%s: old plans without an architecture block, upgraded in memory", where)
    strides: Any = document["pool_op_kernel_sizes"]
    base, most = document["UNet_base_num_features"], document["unet_max_num_features"]
    lists = (strides, document.get("patch_size"))
    if not all(type(number) is int for number in (base, most)) or not all(_is_short(each) for each in lists):
        raise PlanError(
            f"{where}: UNet_base_num_features and unet_max_num_features must be whole numbers, patch_size and "
            f"pool_op_kernel_sizes lists of at most {MAX_STAGES}; the plan is damaged"
        )
    block = architecture_block(
        network,
        dims=len(document["patch_size"]),
        features=tuple(min(base * 2**stage, most) for stage in range(len(strides))),
        kernel_sizes=document["conv_kernel_sizes"],
        strides=strides,
        encoder_blocks=document["n_conv_per_stage_encoder"],
        decoder_convs=document["n_conv_per_stage_decoder"],
    )
    return {
        **{key: value for key, value in document.items() if key not in _OLD_ARCHITECTURE_KEYS},
        "architecture": block,
    }


def _check_architecture(arch_kwargs: Mapping[str, Any], patch_size: tuple[int, ...]) -> None:
    """Raise a `ValueError` if the per-stage lists of a U-Net and the patch do not fit together."""
    strides = arch_kwargs.get("strides")
    if not isinstance(strides, list | tuple):
        return
    if len(strides) > MAX_STAGES:
        raise ValueError(f"there are {len(strides)} strides; at most {MAX_STAGES} stages are built")
    for key, expected in (
        ("kernel_sizes", len(strides)),
        ("features_per_stage", len(strides)),
        ("n_conv_per_stage", len(strides)),
        ("n_blocks_per_stage", len(strides)),
        ("n_conv_per_stage_decoder", len(strides) - 1),
    ):
        values = arch_kwargs.get(key)
        if isinstance(values, list | tuple) and len(values) != expected:
            raise ValueError(f"{key} has {len(values)} entries; {len(strides)} strides need {expected}")
    stages = arch_kwargs.get("n_stages", len(strides))
    if stages != len(strides):
        raise ValueError(f"n_stages is {stages}, but there are {len(strides)} strides; make them equal")
    dims = len(patch_size)
    conv_op = arch_kwargs.get("conv_op")
    if isinstance(conv_op, str) and conv_op.endswith("d") and not conv_op.endswith(f"Conv{dims}d"):
        raise ValueError(f"conv_op is {conv_op}, but patch_size has {dims} entries")
    for key in ("strides", "kernel_sizes"):
        for entry in arch_kwargs.get(key) or ():
            if isinstance(entry, list | tuple) and len(entry) != dims:
                raise ValueError(f"{key} has the entry {list(entry)}, but patch_size has {dims} entries")
    for axis, size in enumerate(patch_size):
        divisor = math.prod(_per_axis(stride, dims)[axis] for stride in strides)
        if divisor < 1 or size % divisor:
            fits = math.ceil(size / max(divisor, 1)) * max(divisor, 1)
            raise ValueError(
                f"patch_size {list(patch_size)}: {size} in axis {axis} is not divisible by {divisor}, the product of"
                f" the strides there; take {fits}, or pool less"
            )


def _is_short(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) <= MAX_STAGES


def _per_axis(value: int | list[int] | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _validate(model: type[M], document: Any, where: str) -> M:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise PlanError(f"{where}: {describe_validation(error)}") from error
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PlanError(f"{where}: a value has the wrong type ({error}); the plan is damaged") from error


def _with_lists(value: Any) -> Any:
    """Return a copy of `value` with tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _with_lists(entry) for key, entry in value.items()}
    return [_with_lists(entry) for entry in value] if isinstance(value, list | tuple) else value
