"""Parse and validate a plan's architecture block: nnU-Net's class paths and keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from operator import index
from typing import Any, Final

import torch
from torch import nn

from segwright.core.errors import ConfigError, SegwrightError, did_you_mean
from segwright.data.plan import MAX_STAGES
from segwright.networks.blocks import DIMS, LayerOptions, Size
from segwright.networks.norm import InstanceNorm2d, InstanceNorm3d
from segwright.networks.unet import Topology

PLAIN: Final = "PlainConvUNet"
RESIDUAL_ENCODER: Final = "ResidualEncoderUNet"
RESIDUAL: Final = "ResidualUNet"
NETWORK_CLASSES: Final = (PLAIN, RESIDUAL_ENCODER, RESIDUAL)
PACKAGE: Final = "dynamic_network_architectures."
CLASS_PREFIX: Final = f"{PACKAGE}architectures.unet."

# Residual blocks per encoder stage; nnU-Net's ResEnc planners, nnU-Net behaviour 5.1, 7.7.
RESIDUAL_BLOCKS: Final = (1, 3, 4, 6)
PLAIN_CONVS: Final = 2  # nnU-Net's default planner, nnU-Net behaviour 5.1
BASE_FEATURES: Final = 32
MAX_FEATURES: Final[dict[int, int]] = {2: 512, 3: 320}
MAX_BLOCKS: Final = 1000  # in all stages together; building them takes a second, and nnU-Net's largest preset has 31
MIN_EDGE: Final = 4  # smallest feature-map extent at the bottleneck, nnU-Net behaviour 5.6

_NUMBERS_OF_LAYERS: Final = {
    "norm_op_kwargs": ("eps", "momentum", "affine", "track_running_stats"),
    "dropout_op_kwargs": ("p", "inplace"),
    "nonlin_kwargs": (
        *("inplace", "negative_slope", "alpha", "approximate", "num_parameters", "init", "lower", "upper", "beta"),
        "threshold",
    ),
}
_CONVS: Final[dict[str, type[nn.Module]]] = {"Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d}
_NORMS: Final[dict[str, type[nn.Module]]] = {
    "InstanceNorm2d": InstanceNorm2d,
    "InstanceNorm3d": InstanceNorm3d,
    "BatchNorm2d": nn.BatchNorm2d,
    "BatchNorm3d": nn.BatchNorm3d,
}
_DROPOUTS: Final[dict[str, type[nn.Module]]] = {
    cls.__name__: cls for cls in (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
}
_NONLINS: Final[dict[str, type[nn.Module]]] = {
    cls.__name__: cls
    for cls in (
        nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Identity, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6,
        nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh,
    )
}  # fmt: skip
_OPS: Final = {"conv_op": _CONVS, "norm_op": _NORMS, "dropout_op": _DROPOUTS, "nonlin": _NONLINS}

_COMMON_KEYS: Final = (
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage_decoder", "conv_bias",
    "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin", "nonlin_kwargs",
)  # fmt: skip
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    PLAIN: (*_COMMON_KEYS, "n_conv_per_stage", "nonlin_first"),
    RESIDUAL_ENCODER: (*_COMMON_KEYS, "n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"),
    RESIDUAL: (*_COMMON_KEYS, "n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"),
}
UNET_ARGUMENTS: Final = frozenset(key for keys in _KEYS.values() for key in keys)
"""Arguments of all U-Nets."""

_REQUIRED: Final = (
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage_decoder",
)  # fmt: skip
_REFUSED: Final = (
    "stochastic_depth_p", "squeeze_excitation", "squeeze_excitation_reduction_ratio", "squeeze_excitation_rd_divisor",
)  # fmt: skip

# What the short name "ResEncL" stands for, nnU-Net behaviour 7.7.
RESENC_L_KWARGS: Final[dict[str, Any]] = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *([[2, 2, 2]] * 5)],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def is_known_network(path: str) -> bool:
    """Return whether a class path means one of `NETWORK_CLASSES`, in any module of nnU-Net's network package.

    nnU-Net itself falls back to the last component of the path if it does not exist (nnU-Net behaviour 7.1).
    """
    package, _, name = path.rpartition(".")
    return name in NETWORK_CLASSES and (not package or path.startswith(PACKAGE))


def network_class(path: str) -> str:
    """Return which of `NETWORK_CLASSES` a class path means.

    Raises:
        ConfigError: there is no such network.
    """
    name = path.rpartition(".")[2]
    if is_known_network(path):
        return name
    raise ConfigError(
        f"network_class_name '{path}' is not built in{did_you_mean(name, NETWORK_CLASSES)}; give your own network "
        "as 'package.module:function'"
    )


def parse_architecture(path: str, kwargs: Mapping[str, Any]) -> tuple[Topology, LayerOptions]:
    """Validate the keyword arguments of a plan's architecture block.

    Args:
        path: the network's class path, e.g. "dynamic_network_architectures.architectures.unet.PlainConvUNet".
        kwargs: its `arch_kwargs`; ops as dotted strings or as classes, per-stage entries as lists or scalars.

    Raises:
        ConfigError: an unknown, missing, unsupported or badly sized argument.
    """
    name = network_class(path)
    try:
        return _parse(name, kwargs)
    except SegwrightError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"{name}: arch_kwargs contains a value of the wrong type ({error}); the plan is damaged"
        ) from error


def _parse(name: str, kwargs: Mapping[str, Any]) -> tuple[Topology, LayerOptions]:
    _check_keys(name, kwargs)
    options = _layer_options(name, kwargs)
    dims, num_stages = options.dims, number_of_stages(kwargs)
    residual = name != PLAIN
    blocks_key = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    features = per_stage(name, kwargs, "features_per_stage", num_stages)
    inner = _bottleneck_channels(name, kwargs, num_stages)
    stem = kwargs.get("stem_channels")
    topology = Topology(
        features=features,
        kernels=sizes_per_stage(name, kwargs, "kernel_sizes", num_stages, dims),
        strides=sizes_per_stage(name, kwargs, "strides", num_stages, dims),
        encoder_blocks=per_stage(name, kwargs, blocks_key, num_stages),
        decoder_blocks=per_stage(name, kwargs, "n_conv_per_stage_decoder", num_stages - 1),
        residual_encoder=residual,
        residual_decoder=name == RESIDUAL,
        stem_channels=features[0] if stem is None else whole_number("stem_channels", stem),
        bottleneck_channels=inner,
    )
    if (blocks := sum((*topology.encoder_blocks, *topology.decoder_blocks))) > MAX_BLOCKS:
        raise ConfigError(
            f"{name}: {blocks} blocks in all, by {blocks_key} and n_conv_per_stage_decoder; at most {MAX_BLOCKS} are "
            "allowed"
        )
    return topology, options


def plain_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a plain U-Net with the topology of `kwargs`, which may be a residual network's."""
    num_stages = number_of_stages(kwargs)
    plain = {key: value for key, value in kwargs.items() if key in _KEYS[PLAIN]}
    if "n_conv_per_stage" not in plain:
        plain["n_conv_per_stage"] = [PLAIN_CONVS] * num_stages
        plain["n_conv_per_stage_decoder"] = [PLAIN_CONVS] * (num_stages - 1)
    return plain


def residual_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a residual encoder U-Net with the topology of `kwargs`, which may be a plain one's."""
    num_stages = number_of_stages(kwargs)
    residual = {key: value for key, value in kwargs.items() if key in _KEYS[RESIDUAL_ENCODER]}
    if "n_blocks_per_stage" not in residual:
        deep = [RESIDUAL_BLOCKS[-1]] * max(0, num_stages - len(RESIDUAL_BLOCKS))
        residual["n_blocks_per_stage"] = [*RESIDUAL_BLOCKS, *deep][:num_stages]
        residual["n_conv_per_stage_decoder"] = [1] * (num_stages - 1)
    return residual


def kwargs_for_patch(patch_size: Sequence[int]) -> dict[str, Any]:
    """Return plain U-Net arguments for a patch without a plan: halve each axis while it is large enough.

    Args:
        patch_size: extents in voxels, 2 or 3 of them.
    """
    dims = len(patch_size)
    if dims not in MAX_FEATURES:
        raise ConfigError(f"patch_size {list(patch_size)}: networks have 2 or 3 spatial axes, not {dims}")
    edges, strides = list(patch_size), [[1] * dims]
    while any(edge >= 2 * MIN_EDGE for edge in edges):
        stride = [2 if edge >= 2 * MIN_EDGE else 1 for edge in edges]
        edges = [edge // step for edge, step in zip(edges, stride, strict=True)]
        strides.append(stride)
    if len(strides) == 1:
        strides.append([1] * dims)
    num_stages = len(strides)
    return {
        **RESENC_L_KWARGS,
        "n_stages": num_stages,
        "features_per_stage": [min(MAX_FEATURES[dims], BASE_FEATURES * 2**stage) for stage in range(num_stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "kernel_sizes": [[3] * dims] * num_stages,
        "strides": strides,
        "n_conv_per_stage": [PLAIN_CONVS] * num_stages,
        "n_conv_per_stage_decoder": [PLAIN_CONVS] * (num_stages - 1),
    }


def norm_kwargs(norm: str, dims: int) -> dict[str, Any]:
    """Return the arguments that give a built-in network `instance` or `batch` norm (nnU-Net behaviour 8.10).

    Args:
        norm: which of the two.
        dims: spatial axes, 2 or 3.
    """
    path = {"instance": "torch.nn.modules.instancenorm.InstanceNorm", "batch": "torch.nn.modules.batchnorm.BatchNorm"}
    return {"norm_op": f"{path[norm]}{dims}d", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}


def resolve_op(key: str, value: object) -> type[nn.Module] | None:
    """Return the layer class named in a plan under `key`: torch's, or `networks.norm` for instance norm.

    Only classes on a fixed list are accepted, so that a plan cannot import code.

    Raises:
        ConfigError: the class is not on the list, or is not torch's.
    """
    if value is None:
        return None
    known = _OPS[key]
    path = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else str(value)
    name = path.rpartition(".")[2]
    ours = isinstance(value, type) and value in known.values()
    if name in known and (ours or path in _paths_of(name)):
        return known[name]
    raise ConfigError(f"{key} '{path}' is not supported{did_you_mean(name, known)}; write it as torch.nn.NAME")


def _paths_of(name: str) -> tuple[str, ...]:
    """Return the paths by which a torch layer can be written."""
    return f"torch.nn.{name}", f"torch.nn.modules.{name}", f"{getattr(nn, name).__module__}.{name}"


def _check_keys(name: str, kwargs: Mapping[str, Any]) -> None:
    known = _KEYS[name]
    for key, value in kwargs.items():
        if key in _REFUSED:
            if value:
                raise ConfigError(f"{name}: {key} is not supported; remove it from arch_kwargs")
        elif key not in known and not (key == "nonlin_first" and not value):
            raise ConfigError(f"{name}: unknown argument '{key}' in arch_kwargs{did_you_mean(key, known)}")
    required = (*_REQUIRED, "n_conv_per_stage" if name == PLAIN else "n_blocks_per_stage")
    missing = [key for key in required if kwargs.get(key) is None]
    if missing:
        raise ConfigError(f"{name}: arch_kwargs lacks {', '.join(missing)}")


def number_of_stages(kwargs: Mapping[str, Any]) -> int:
    """Return `n_stages`.

    Raises:
        ConfigError: it is not a number of stages that a U-Net can have.
    """
    num_stages = whole_number("n_stages", kwargs["n_stages"])
    if not 2 <= num_stages <= MAX_STAGES:
        raise ConfigError(f"n_stages is {num_stages}; a U-Net needs at least 2 and at most {MAX_STAGES}")
    return num_stages


def whole_number(key: str, value: Any) -> int:
    """Return a whole number; a float without fraction is converted.

    Raises:
        ConfigError: it is none; `key` says where.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return index(value)
    except TypeError as error:
        raise ConfigError(f"{key} has {str(value)[:40]!r}; expected a whole number") from error


def _layer_options(name: str, kwargs: Mapping[str, Any]) -> LayerOptions:
    conv_op = resolve_op("conv_op", kwargs["conv_op"])
    assert conv_op is not None
    norm_op = resolve_op("norm_op", kwargs.get("norm_op"))
    dims = DIMS[conv_op]
    if norm_op is not None and not norm_op.__name__.endswith(f"{dims}d"):
        raise ConfigError(f"{name}: norm_op {norm_op.__name__} does not fit conv_op {conv_op.__name__}")
    options = LayerOptions(
        conv_op=conv_op,
        conv_bias=bool(kwargs.get("conv_bias", False)),
        norm_op=norm_op,
        norm_op_kwargs=_layer_kwargs(name, kwargs, "norm_op_kwargs"),
        dropout_op=resolve_op("dropout_op", kwargs.get("dropout_op")),
        dropout_op_kwargs=_layer_kwargs(name, kwargs, "dropout_op_kwargs"),
        nonlin=resolve_op("nonlin", kwargs.get("nonlin")),
        nonlin_kwargs=_layer_kwargs(name, kwargs, "nonlin_kwargs"),
        nonlin_first=bool(kwargs.get("nonlin_first", False)),
    )
    _try_layers(name, options)
    return options


def _layer_kwargs(name: str, kwargs: Mapping[str, Any], key: str) -> dict[str, Any]:
    given, known = dict(kwargs.get(key) or {}), _NUMBERS_OF_LAYERS[key]
    for argument, value in given.items():
        if argument not in known:
            raise ConfigError(f"{name}: unknown argument '{argument}' in {key}{did_you_mean(str(argument), known)}")
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"{name}: {key} has {argument} = {value}; expected a finite number")
    return given


def _try_layers(name: str, options: LayerOptions) -> None:
    """Apply norm, dropout and non-linearity once, since torch checks some of their arguments only then."""
    image = torch.zeros((1, 2, *([2] * options.dims)))
    try:
        layers = (
            None if options.norm_op is None else options.norm_op(2, **options.norm_op_kwargs),
            None if options.dropout_op is None else options.dropout_op(**options.dropout_op_kwargs),
            options.make_nonlin(),
        )
        with torch.no_grad():
            for layer in layers:
                if layer is not None:
                    layer.eval()(image)
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{name}: norm, dropout or nonlin have arguments that torch rejects: {reason}") from error


def _bottleneck_channels(name: str, kwargs: Mapping[str, Any], num_stages: int) -> tuple[int, ...] | None:
    block = kwargs.get("block")
    block_name = block.__name__ if isinstance(block, type) else str(block or "BasicBlockD").rpartition(".")[2]
    if block_name not in {"BasicBlockD", "BottleneckD"}:
        raise ConfigError(
            f"{name}: unknown block '{block_name}'{did_you_mean(block_name, ['BasicBlockD', 'BottleneckD'])}"
        )
    if block_name == "BasicBlockD":
        return None
    if kwargs.get("bottleneck_channels") is None:
        raise ConfigError(f"{name}: block BottleneckD needs bottleneck_channels, one number per stage")
    return per_stage(name, kwargs, "bottleneck_channels", num_stages)


def per_stage(name: str, kwargs: Mapping[str, Any], key: str, count: int) -> tuple[int, ...]:
    """Return `count` whole numbers from 1, one per stage; a scalar stands for all.

    Raises:
        ConfigError: a number is missing or invalid; `name` is that of the network.
    """
    value = kwargs[key]
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * count
    _check_count(name, key, numbers, count)
    whole = tuple(whole_number(f"{name}: {key}", number) for number in numbers)
    if min(whole, default=1) < 1:
        raise ConfigError(f"{name}: {key} is {value}; every entry must be at least 1")
    return whole


def sizes_per_stage(name: str, kwargs: Mapping[str, Any], key: str, count: int, dims: int) -> tuple[Size, ...]:
    """Return `count` sizes, one per stage and axis; a scalar stands for all stages, a scalar entry for all axes.

    Raises:
        ConfigError: a size is missing or invalid; `name` is that of the network.
    """
    value = kwargs[key]
    entries = tuple(value) if isinstance(value, list | tuple) else (value,) * count
    _check_count(name, key, entries, count)
    sizes = []
    for entry in entries:
        parts = entry if isinstance(entry, list | tuple) else (entry,) * dims
        if len(parts) != dims:
            raise ConfigError(f"{name}: {key} has the entry {list(parts)[:4]}; expected {dims} axes, as in conv_op")
        size = tuple(whole_number(f"{name}: {key}", part) for part in parts)
        if min(size) < 1:
            raise ConfigError(f"{name}: {key} has the entry {list(size)}; every part must be at least 1")
        sizes.append(size)
    return tuple(sizes)


def _check_count(name: str, key: str, entries: Sequence[object], count: int) -> None:
    if len(entries) != count:
        raise ConfigError(f"{name}: {key} has {len(entries)} entries; n_stages requires {count}")
