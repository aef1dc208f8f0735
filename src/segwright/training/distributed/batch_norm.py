"""Batch norm over the samples of all ranks, so that a training equals that of one process with the same global batch.

torch's `SyncBatchNorm` does the same on GPUs alone, and replaces the layers; here they stay those of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final, final

import torch
from torch import Tensor, nn

GatherRows = Callable[[Tensor], Tensor]
"""Stacks a tensor (K,) of each rank to (ranks, K), differentiably."""

_LAYERS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether `share_statistics` has an effect."""
    return any(type(layer) in _LAYERS for layer in network.modules())


def share_statistics(network: nn.Module, gather_rows: GatherRows) -> None:
    """Let the batch norm layers of a network normalise over the samples of all ranks where they are trained.

    A subclass of torch's layers keeps the statistics of its own rank, since its forward pass is unknown.
    """
    for layer in network.modules():
        if type(layer) in _LAYERS:
            layer.forward = _SharedForward(layer, gather_rows)


@final
class _SharedForward:
    """The forward pass of one layer, in place of its own.

    A pass without gradients stays local: one rank alone may make it.
    """

    def __init__(self, layer: nn.Module, gather_rows: GatherRows) -> None:
        self._layer: Any = layer
        self._gather_rows = gather_rows

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedForward:
        return _SharedForward(deepcopy(self._layer, memo), self._gather_rows)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised x (B, C, *S)."""
        layer = self._layer
        if not layer.training or not torch.is_grad_enabled():
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, var, count = _moments(values, self._gather_rows)
        _update_running(layer, mean.detach(), var.detach(), count)
        scale = torch.rsqrt(var + layer.eps)
        scale = scale if layer.weight is None else scale * layer.weight
        shift = -mean * scale if layer.bias is None else layer.bias - mean * scale
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return (values * scale.view(shape) + shift.view(shape)).to(x.dtype)


def _moments(x: Tensor, gather_rows: GatherRows) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance (C,) of x (B, C, *S) over all ranks, and the number of values of a channel."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    num_channels = x.shape[1]
    var, mean = torch.var_mean(x, axes, correction=0)
    rows = gather_rows(torch.cat([mean, var, mean.new_tensor([x.numel() // num_channels])]))
    means, variances, counts = torch.split(rows, [num_channels, num_channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    # Not the mean square minus the squared mean, which cancel where the mean is large.
    return mean, (counts * (variances + (means - mean).square())).sum(0) / count, count


@torch.no_grad()
def _update_running(layer: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update the running statistics as torch does: the variance unbiased; without momentum, a mean over steps."""
    if layer.running_mean is None:
        return
    layer.num_batches_tracked.add_(1)
    weight = layer.momentum if layer.momentum is not None else 1 / layer.num_batches_tracked.to(layer.running_mean)
    layer.running_mean.lerp_(mean.to(layer.running_mean), weight)
    layer.running_var.lerp_((var * count / (count - 1)).to(layer.running_var), weight)
