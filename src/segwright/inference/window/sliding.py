"""Sliding-window inference with networks of torch: batches of tiles, mirroring, devices.

Legend: B samples of one forward pass, C channels, H heads, S spatial axes of the image, P of the patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import ceil, prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segwright.core.device import CPU, autocast, copy_to
from segwright.core.errors import ModelError
from segwright.inference.precision import used_precision, uses_fp16_kernels
from segwright.inference.window.stitching import PORTION_BYTES, Planes
from segwright.inference.window.tile_planes import TileCount, TileSettings, tile_planes
from segwright.networks.build import input_format
from segwright.networks.cpu.dispatch import CpuKernelMode
from segwright.preprocessing.pipeline import NetworkImage

ConvexFunction: TypeAlias = Callable[[Tensor], Tensor]
"""A convex function of logits (B, H, *P), such as `log_partition`: (B, 1, *P) float32."""

_BATCH_VOXELS_CPU = 2**20
_BATCH_VOXELS_ACCELERATOR = 2 * 128**3
"""Voxels in one forward pass up to which small patches are batched; larger batches only cost memory (measured)."""
_LARGE_PATCH = 2**17
"""On the CPU, patches of at least this many voxels use half the batch, at least 2: 1/7 less peak memory for 2 % more
time; a batch of 1 takes 25 % longer."""
_BATCH_HEADS = 16
"""With more heads than this, smaller batches: their logits would be the largest thing in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(TileSettings):
    """Settings of the sliding window.

    Attributes:
        device: where networks run and tiles are summed.
        precision: of the networks, see `precision.used_precision`.
        batch: patches in one forward pass, mirrored ones included; None to choose it.
        sum_dtype: dtype in which tiles are summed.
        cpu_kernels: compute the networks' layers on the CPU.
    """

    device: torch.device
    precision: str = "auto"
    batch: int | None = None
    sum_dtype: torch.dtype = torch.float32
    cpu_kernels: CpuKernelMode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        TileSettings.__post_init__(self)
        object.__setattr__(self, "cpu_kernels", CpuKernelMode(fp16=uses_fp16_kernels(self.device, self.precision)))

    @property
    def used_precision(self) -> str:
        """What `precision` means on the device, see `precision.used_precision`."""
        return used_precision(self.device, self.precision)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Context in which networks run; only the CPU layers compute in float16 there, without autocast."""
        precision = "fp32" if self.cpu_kernels.fp16 else self.used_precision
        kernels = self.cpu_kernels if self.device.type == CPU else nullcontext()
        with torch.inference_mode(), autocast(self.device, precision), kernels:
            yield

    def forward_batch(self, num_heads: int) -> int:
        """Return the number of patches per forward pass."""
        if self.batch is not None:
            return max(1, self.batch)
        on_cpu, patch = self.device.type == CPU, prod(self.patch_size)
        voxels = _BATCH_VOXELS_CPU if on_cpu else _BATCH_VOXELS_ACCELERATOR
        max_batch = max(1, voxels // (patch * ceil(num_heads / _BATCH_HEADS)))
        return max(max_batch // 2, min(max_batch, 2)) if on_cpu and patch >= _LARGE_PATCH else max_batch


def window_planes(
    networks: Sequence[nn.Module],
    image: NetworkImage,
    num_heads: int,
    *,
    window: Window,
    axis: int = 0,
    count: TileCount | None = None,
    convex_fn: ConvexFunction | None = None,
) -> Iterator[Planes]:
    """Yield the logits of `image` (C, *S) on the CPU, a few planes at a time; arguments as of `tile_planes`.

    With `convex_fn` an extra head holds the disagreement (Jensen gap) of single networks, flips and tiles: the mean of
    `convex_fn` over their logits minus `convex_fn` of the mean logits, at least 0.

    Raises:
        ImageError: the image holds NaN or infinite values.
        ModelError: a network's output has the wrong shape or is not finite.
    """
    source = np.asarray(image.detach().cpu()) if isinstance(image, Tensor) else image
    network = _TorchTiles(networks, num_heads, window, convex_fn)
    return tile_planes(network, source, num_heads, settings=window, axis=axis, count=count)


class _TorchTiles:
    """Computes the logits of tiles with networks of torch; see `TileNetwork`."""

    def __init__(
        self, networks: Sequence[nn.Module], num_heads: int, window: Window, convex_fn: ConvexFunction | None
    ) -> None:
        self._networks = networks
        self._num_heads = num_heads
        self._window = window
        self._convex_fn = convex_fn
        self.tiles_at_once = max(1, window.forward_batch(num_heads) // len(window.flips))

    def logits(self, tile_images: Sequence[npt.NDArray[np.float32]]) -> Sequence[Tensor]:
        """Return the mean logits of each tile, on the device."""
        batch = copy_to(torch.stack([torch.from_numpy(tile) for tile in tile_images]), self._window.device)
        return list(_mean_logits(self._networks, batch, self._num_heads, self._window, self._convex_fn))

    def weights(self, weights: npt.NDArray[np.float32]) -> Tensor:
        """Return the weights on the device."""
        return torch.from_numpy(weights).to(self._window.device, self._window.sum_dtype)

    def finish(self, logits: Tensor) -> Tensor:
        """Check averaged logits, copy them to the CPU and turn the mean of `convex_fn` into the disagreement."""
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                f"the network gives NaN or infinite logits in {self._window.precision} precision; "
                "its weights are damaged, or try precision fp32"
            )
        logits = logits.cpu()
        if self._convex_fn is not None:
            heads = self._num_heads
            logits[heads:].sub_(self._convex_fn(logits[None, :heads])[0]).clamp_(min=0)
        return logits


def _mean_logits(
    networks: Sequence[nn.Module], batch: Tensor, num_heads: int, window: Window, convex_fn: ConvexFunction | None
) -> Tensor:
    """Return the mean logits (B, H, *P) over networks and flips of `batch` (B, C, *P); `convex_fn` adds a head."""
    flips = window.flips
    per_pass = max(1, window.forward_batch(num_heads) // len(batch))
    shape = (num_heads, *window.patch_size)
    total: Tensor | None = None
    layout = input_format(networks[0], window.device, len(window.patch_size))
    with window.computing(), _evaluating(networks):
        for first in range(0, len(flips), per_pass):
            group = flips[first : first + per_pass]
            mirrored = torch.cat([_flip(batch, flip) for flip in group]).contiguous(memory_format=layout)
            for network in networks:
                parts = _checked(network(mirrored), (len(mirrored), *shape)).chunk(len(group))
                if len(flips) * len(networks) == 1 and convex_fn is None:
                    return parts[0]  # without a second array of logits; in the network's precision
                if total is None:
                    heads = num_heads + (convex_fn is not None)
                    total = torch.zeros((len(batch), heads, *window.patch_size), device=window.device)
                for flip, part in zip(group, parts, strict=True):
                    _add_flipped_inplace(total[:, :num_heads], part, flip, window.heads_of(flip))
                    if convex_fn is not None:
                        _add_flipped_inplace(total[:, num_heads:], convex_fn(part), flip)
        assert total is not None, "there is at least one network"
        return total.div_(len(flips) * len(networks))


def _add_flipped_inplace(total: Tensor, part: Tensor, flip: Sequence[int], heads: Sequence[int] | None = None) -> None:
    """Add `part` (B, H, *P), flipped, with its `heads` in that order, to `total`; a few at a time, since flips copy."""
    step = max(1, PORTION_BYTES // (4 * total[:, :1].numel()))
    for first in range(0, total.shape[1], step):
        chosen = slice(first, first + step)
        total[:, chosen] += _flip(part[:, chosen] if heads is None else part[:, heads[chosen]], flip)


def _flip(tensor: Tensor, flip: Sequence[int]) -> Tensor:
    return tensor.flip([axis + 2 for axis in flip]) if flip else tensor


def _checked(output: object, expected: tuple[int, ...]) -> Tensor:
    logits = output[0] if isinstance(output, list | tuple) else output
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        actual = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the network gave {actual}, expected logits of shape {expected} (batch, heads, patch)")
    return logits


@contextmanager
def _evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Put networks into evaluation mode for the block, and those in training mode back after it."""
    training = [network for network in networks if network.training]
    for network in training:
        network.eval()
    try:
        yield
    finally:
        for network in training:
            network.train()
