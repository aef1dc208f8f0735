"""Validate the arguments of MedNeXt: those of its own plan, or the topology of a U-Net's plan with a size by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from segwright.core.errors import ConfigError, SegwrightError, did_you_mean
from segwright.networks.architecture import (
    MAX_BLOCKS,
    UNET_ARGUMENTS,
    kwargs_for_patch,
    number_of_stages,
    per_stage,
    sizes_per_stage,
    whole_number,
)
from segwright.networks.mednext.network import Shape
from segwright.networks.mednext.sizes import KERNEL_SIZES, MAX_STAGES, NAME, SIZES, planned_arguments

_PLANNED: Final = (
    *("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides"),
    *("blocks_per_stage", "expansion_per_stage", "decoder_blocks_per_stage", "decoder_expansion_per_stage"),
)
_CHOSEN: Final = ("size", "kernel_size")
_WHERE: Final = f"network '{NAME}'"


def resolve_arguments(kwargs: Mapping[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
    """Return all arguments of a plan for MedNeXt.

    Args:
        kwargs: a MedNeXt plan's; or `size` (S, B, M or L; S by default) and `kernel_size` (3 by default), with the
            topology of a U-Net's plan if it is given, of which at most five resolutions are used.
        patch_size: voxels; without a topology, each axis is halved while it is large enough.

    Raises:
        ConfigError: an unknown argument, size or kernel.
    """
    for key in kwargs:
        if key not in _PLANNED and key not in _CHOSEN and key not in UNET_ARGUMENTS:
            raise ConfigError(f"{_WHERE}: unknown argument '{key}'{did_you_mean(key, (*_CHOSEN, *_PLANNED))}")
    chosen = [key for key in _CHOSEN if key in kwargs]
    if "blocks_per_stage" in kwargs:
        if chosen:
            raise ConfigError(
                f"{_WHERE}: {' and '.join(chosen)} cannot be changed, the plan is for one size and kernel; plan again "
                f"with another preset, such as --preset {NAME}-m-k5"
            )
        return {key: kwargs[key] for key in _PLANNED if key in kwargs}
    size = kwargs.get("size", "S")
    if size not in SIZES:
        raise ConfigError(f"{_WHERE}: unknown size '{size}'; choose from {', '.join(SIZES)}")
    edge = whole_number(f"{_WHERE}: kernel_size", kwargs.get("kernel_size", KERNEL_SIZES[0]))
    source = kwargs if "strides" in kwargs else kwargs_for_patch(patch_size)
    dims, num_stages = len(patch_size), number_of_stages(source)
    kernels = sizes_per_stage(NAME, source, "kernel_sizes", num_stages, dims)[:MAX_STAGES]
    strides = sizes_per_stage(NAME, source, "strides", num_stages, dims)[:MAX_STAGES]
    return planned_arguments(
        SIZES[size].at(len(strides)),
        dims=dims,
        kernel_sizes=[tuple(edge if entry > 1 else 1 for entry in kernel) for kernel in kernels],
        strides=strides,
    )


def parse_arguments(kwargs: Mapping[str, Any], dims: int) -> Shape:
    """Validate the arguments of a plan for MedNeXt.

    Args:
        kwargs: as `resolve_arguments` returns them.
        dims: spatial axes of a patch.

    Raises:
        ConfigError: an argument is missing, badly sized or of the wrong type.
    """
    missing = [key for key in _PLANNED if kwargs.get(key) is None]
    if missing:
        raise ConfigError(f"{_WHERE}: the plan's arch_kwargs lack {', '.join(missing)}; plan the dataset again")
    try:
        return _parse(kwargs, dims)
    except SegwrightError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"{_WHERE}: arch_kwargs contains a value of the wrong type ({error}); the plan is damaged"
        ) from error


def _parse(kwargs: Mapping[str, Any], dims: int) -> Shape:
    if not str(kwargs["conv_op"]).endswith(f"Conv{dims}d"):
        raise ConfigError(f"{_WHERE}: conv_op is {kwargs['conv_op']}, but the patch has {dims} axes")
    num_stages = number_of_stages(kwargs)
    shape = Shape(
        dims=dims,
        features=per_stage(NAME, kwargs, "features_per_stage", num_stages),
        kernels=sizes_per_stage(NAME, kwargs, "kernel_sizes", num_stages, dims),
        strides=sizes_per_stage(NAME, kwargs, "strides", num_stages, dims),
        blocks=per_stage(NAME, kwargs, "blocks_per_stage", num_stages),
        expansions=per_stage(NAME, kwargs, "expansion_per_stage", num_stages),
        decoder_blocks=per_stage(NAME, kwargs, "decoder_blocks_per_stage", num_stages - 1),
        decoder_expansions=per_stage(NAME, kwargs, "decoder_expansion_per_stage", num_stages - 1),
    )
    even = [list(kernel) for kernel in shape.kernels if any(size % 2 == 0 for size in kernel)]
    if even:
        raise ConfigError(f"{_WHERE}: kernel_sizes has the entry {even[0]}; every size must be odd, such as 3 or 5")
    if max(shape.strides[0]) > 1:
        raise ConfigError(f"{_WHERE}: the first stride is {list(shape.strides[0])}; expected 1 along every axis")
    if (blocks := sum((*shape.blocks, *shape.decoder_blocks))) > MAX_BLOCKS:
        raise ConfigError(f"{_WHERE}: {blocks} blocks in all stages; at most {MAX_BLOCKS} are allowed")
    return shape
