"""Look-up helpers of dynamic_network_architectures: which layer belongs to which number of axes."""

from __future__ import annotations

from typing import Any

from torch import nn

from segwright.core.errors import ConfigError

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_DROPOUTS = {1: nn.Dropout, 2: nn.Dropout2d, 3: nn.Dropout3d}
_POOLS = {
    ("avg", False): {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d},
    ("avg", True): {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d},
    ("max", False): {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d},
    ("max", True): {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d},
}


def convert_conv_op_to_dim(conv_op: type[nn.Module]) -> int:
    """Return the number of spatial axes of a convolution."""
    for dims, known in _CONVOLUTIONS.items():
        if conv_op is known:
            return dims
    raise ConfigError(f"conv_op {getattr(conv_op, '__name__', conv_op)}: expected torch.nn.Conv1d, Conv2d or Conv3d")


def convert_dim_to_conv_op(dimension: int) -> type[nn.Module]:
    """Return the convolution of a number of spatial axes."""
    return _layer(_CONVOLUTIONS, None, dimension)


def get_matching_convtransp(conv_op: type[nn.Module] | None = None, dimension: int | None = None) -> type[nn.Module]:
    """Return the transposed convolution."""
    return _layer(_TRANSPOSED, conv_op, dimension)


def get_matching_instancenorm(conv_op: type[nn.Module] | None = None, dimension: int | None = None) -> type[nn.Module]:
    """Return the instance norm."""
    return _layer(_INSTANCE_NORMS, conv_op, dimension)


def get_matching_batchnorm(conv_op: type[nn.Module] | None = None, dimension: int | None = None) -> type[nn.Module]:
    """Return the batch norm."""
    return _layer(_BATCH_NORMS, conv_op, dimension)


def get_matching_dropout(conv_op: type[nn.Module] | None = None, dimension: int | None = None) -> type[nn.Module]:
    """Return the dropout of whole channels."""
    return _layer(_DROPOUTS, conv_op, dimension)


def get_matching_pool_op(
    conv_op: type[nn.Module] | None = None,
    dimension: int | None = None,
    adaptive: bool = False,
    pool_type: str = "avg",
) -> type[nn.Module]:
    """Return the pooling, `avg` or `max`."""
    return _layer(_POOLS[pool_type, adaptive], conv_op, dimension)


def maybe_convert_scalar_to_list(conv_op: type[nn.Module], scalar: Any) -> Any:
    """Return a number as a list with one entry for each axis; anything else as it is."""
    return [scalar] * convert_conv_op_to_dim(conv_op) if isinstance(scalar, int | float) else scalar


def _layer(table: Any, conv_op: type[nn.Module] | None, dimension: int | None) -> type[nn.Module]:
    if (conv_op is None) == (dimension is None):
        raise ConfigError("give either conv_op or dimension")
    dims = dimension if conv_op is None else convert_conv_op_to_dim(conv_op)
    found: type[nn.Module] = table[dims]
    return found
