"""Sliding-window inference: tiles, mirroring and averaged logits, a few planes at a time.

Legend: B samples of one forward pass, C channels, H heads, S spatial axes of the image, P of the patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import combinations, islice
from math import ceil, prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segwright.core.boxes import Box, box_slices, pad_to
from segwright.core.device import CPU, autocast, copy_to
from segwright.core.errors import ImageError, ModelError
from segwright.core.process_tuning import release_freed_memory
from segwright.inference.precision import used_precision, uses_fp16_kernels
from segwright.inference.window.stitching import PORTION_BYTES, Planes, stitch
from segwright.inference.window.tiling import DEFAULT_STEP, Start, gaussian_map, tiles, to_front
from segwright.networks.build import input_format
from segwright.networks.cpu.dispatch import CpuKernelMode
from segwright.preprocessing.normalization import NormalizedView

Image: TypeAlias = "npt.NDArray[np.float32] | NormalizedView | Tensor"
ConvexFunction: TypeAlias = Callable[[Tensor], Tensor]
"""A convex function of logits (B, H, *P), such as `uncertainty.log_partition`: (B, 1, *P) float32."""

_BATCH_VOXELS_CPU = 2**20
_BATCH_VOXELS_ACCELERATOR = 2 * 128**3
"""Voxels in one forward pass up to which small patches are batched; larger batches only cost memory (measured)."""
_LARGE_PATCH = 2**17
"""On the CPU, patches of at least this many voxels use half the batch, at least 2: 1/7 less peak memory for 2 % more
time; a batch of 1 takes 25 % longer."""
_LARGE_BYTES = 128 * 2**20
"""Logits of a tile up to this size may be remembered, and their freed memory kept; larger ones would
raise the peak memory."""
_BATCH_HEADS = 16
"""With more heads than this, smaller batches: their logits would be the largest thing in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Settings of the sliding window.

    Attributes:
        patch_size: of the network.
        device: where networks run and tiles are summed.
        mirror_axes: spatial axes that are mirrored.
        lateral_axes: spatial axes from left to right.
        mirrored_heads: in an image flipped along a lateral axis, head h shows what `mirrored_heads[h]` shows in the
            image itself; empty if all heads stay.
        step: distance of tiles as a fraction of the patch size.
        precision: of the networks, see `precision.used_precision`.
        batch: patches in one forward pass, mirrored ones included; None to choose it.
        sum_dtype: dtype in which tiles are summed.
        quantum: weighted logits are rounded to multiples of it; 0: not rounded.
        reuse: compute the logits of tiles of one value, such as air, once for all tiles of that value.
        cpu_kernels: compute the networks' layers on the CPU.
    """

    patch_size: tuple[int, ...]
    device: torch.device
    mirror_axes: tuple[int, ...] = ()
    lateral_axes: tuple[int, ...] = ()
    mirrored_heads: tuple[int, ...] = ()
    step: float = DEFAULT_STEP
    precision: str = "auto"
    batch: int | None = None
    sum_dtype: torch.dtype = torch.float32
    quantum: float = 0.0
    reuse: bool = True
    cpu_kernels: CpuKernelMode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if any(not 0 <= axis < len(self.patch_size) for axis in self.mirror_axes):
            raise ModelError(
                f"mirror axes {self.mirror_axes} do not fit a patch with {len(self.patch_size)} axes; "
                "they are spatial axes counted from 0"
            )
        object.__setattr__(self, "cpu_kernels", CpuKernelMode(fp16=uses_fp16_kernels(self.device, self.precision)))

    def heads_of(self, flip: Sequence[int]) -> Sequence[int] | None:
        """Return the flipped image's head for each head of the image itself; None if all are the same."""
        return self.mirrored_heads if self.mirrored_heads and len(set(flip) & set(self.lateral_axes)) % 2 else None

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

    @property
    def flips(self) -> list[tuple[int, ...]]:
        """All combinations of mirror axes, as spatial axes; the empty one first."""
        axes = self.mirror_axes
        return [flip for size in range(len(axes) + 1) for flip in combinations(axes, size)]

    def forward_batch(self, num_heads: int) -> int:
        """Return the number of patches per forward pass."""
        if self.batch is not None:
            return max(1, self.batch)
        on_cpu, patch = self.device.type == CPU, prod(self.patch_size)
        voxels = _BATCH_VOXELS_CPU if on_cpu else _BATCH_VOXELS_ACCELERATOR
        max_batch = max(1, voxels // (patch * ceil(num_heads / _BATCH_HEADS)))
        return max(max_batch // 2, min(max_batch, 2)) if on_cpu and patch >= _LARGE_PATCH else max_batch


@dataclass(slots=True)
class TileCount:
    """Number of tiles of a case, and how many of them needed no forward pass of their own.

    Attributes:
        tiles: predicted so far.
        reused: needed no forward pass; known at the end.
        total: tiles of all networks begun so far.
        on_tiles: is called after each forward pass, in the thread that predicts; what it raises ends the prediction.
    """

    tiles: int = 0
    reused: int = 0
    total: int = 0
    on_tiles: Callable[[TileCount], None] | None = None


def window_planes(
    networks: Sequence[nn.Module],
    image: Image,
    num_heads: int,
    *,
    window: Window,
    axis: int = 0,
    count: TileCount | None = None,
    convex_fn: ConvexFunction | None = None,
) -> Iterator[Planes]:
    """Yield the logits of `image` (C, *S) a few planes at a time, on the CPU, padding removed.

    Only the sums of one patch depth along `axis` are in memory. For `axis` > 0 that axis comes first:
    (H, planes, *other axes). For a 2D patch in a 3D image `axis` must be 0. `count` is updated in place. With
    `convex_fn` an extra head holds the disagreement (Jensen gap) of single networks, flips and tiles: the mean of
    `convex_fn` over their logits minus `convex_fn` of the mean logits, at least 0.

    Raises:
        ImageError: the image holds NaN or infinite values.
        ModelError: a network's output has the wrong shape or is not finite.
    """
    source: npt.NDArray[np.float32] | NormalizedView
    if isinstance(image, NormalizedView):
        source = image
    else:
        source = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    assert axis == 0 or len(window.patch_size) == source.ndim - 1, "slices are visited along axis 0"
    require_finite(source, "the preprocessed image")
    shape = _padded_shape(source.shape[1:], window.patch_size)
    content: Box = tuple((0, size) for size in shape)
    if shape != source.shape[1:]:
        source, content = pad_to(np.asarray(source), shape)
    counted = count or TileCount()
    for planes in _padded_planes(networks, source, num_heads, window, axis, counted, convex_fn):
        yield from _unpad(planes, to_front(content, axis))


def require_finite(array: npt.NDArray[Any] | NormalizedView, name: str) -> None:
    """Raise an ImageError for NaN or infinite values; plane by plane, without a mask as large as the image (C, *S)."""
    if not all(np.isfinite(array[:, index]).all() for index in range(array.shape[1])):
        raise ImageError(f"{name} holds NaN or infinite values; check the intensities of the input")


def _padded_shape(shape: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the shape to pad to: at least the patch along the axes that the patch has."""
    untiled = len(shape) - len(patch_size)
    tiled = (max(size, patch) for size, patch in zip(shape[untiled:], patch_size, strict=True))
    return (*shape[:untiled], *tiled)


def _unpad(planes: Planes, content: Box) -> Iterator[Planes]:
    """Cut the padding off finished planes."""
    (first, last), *others = content
    start, stop = max(planes.start, first), min(planes.stop, last)
    if start < stop:
        inside = ((start - planes.start, stop - planes.start), *others)
        yield Planes(start=start - first, stop=stop - first, logits=planes.logits[box_slices(inside)])


def _padded_planes(
    networks: Sequence[nn.Module],
    image: npt.NDArray[np.float32] | NormalizedView,
    num_heads: int,
    window: Window,
    axis: int,
    count: TileCount,
    convex_fn: ConvexFunction | None,
) -> Iterator[Planes]:
    patch = window.patch_size
    depth = () if len(patch) == image.ndim - 1 else (1,)
    weights = torch.from_numpy(gaussian_map(patch).copy()).reshape(*depth, *patch).movedim(axis, 0).contiguous()
    order = to_front(range(image.ndim - 1), axis)
    shape = to_front(image.shape[1:], axis)

    def forward(tile_images: Sequence[Tensor]) -> Sequence[Tensor]:
        batch = copy_to(torch.stack([*tile_images]), window.device)
        logits = _mean_logits(networks, batch, num_heads, window, convex_fn)
        return list((logits.unsqueeze(2) if depth else logits).movedim(axis + 2, 2))

    def predicted() -> Iterator[tuple[Start, Tensor]]:
        tile_bytes = 4 * num_heads * prod(patch)
        is_large = tile_bytes > _LARGE_BYTES
        cache = _TileCache(window.reuse and not is_large)
        all_starts = tiles(shape, patch if depth else to_front(patch, axis), window.step)
        count.total += len(all_starts)
        starts = iter(all_starts)
        while group := list(islice(starts, max(1, window.forward_batch(num_heads) // len(window.flips)))):
            tile_images = [_tile_image(image, tuple(start[at] for at in places), patch) for start in group]
            logits = cache.logits(tile_images, forward)
            count.tiles += len(group)
            if count.on_tiles is not None:
                count.on_tiles(count)
            for start in group:
                yield start, logits.pop(0)  # or its memory would be held during the next pass
            if is_large:  # or a small allocation fragments the freed block, and the next logits do not fit
                release_freed_memory(tile_bytes)
        count.reused += cache.reused

    places = [order.index(at) for at in range(image.ndim - 1)]
    weights = weights.to(window.device, window.sum_dtype)
    for planes in stitch(predicted(), shape=shape, weights=weights, quantum=window.quantum):
        if not bool(torch.isfinite(planes.logits).all()):
            raise ModelError(
                f"the network gives NaN or infinite logits in {window.precision} precision; "
                "its weights are damaged, or try precision fp32"
            )
        logits = planes.logits.cpu()
        if convex_fn is not None:
            logits[num_heads:].sub_(convex_fn(logits[None, :num_heads])[0]).clamp_(min=0)
        yield Planes(start=planes.start, stop=planes.stop, logits=logits)


class _TileCache:
    """Caches the logits of the last tile that had one value in each channel; memory for one tile."""

    def __init__(self, is_used: bool) -> None:
        self.is_used = is_used
        self.reused = 0
        self._value: tuple[float, ...] | None = None
        self._logits: Tensor | None = None

    def logits(
        self, tile_images: Sequence[Tensor], forward: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Return the logits of tiles (C, *P); `forward` computes those that are not cached."""
        values = [_only_value(tile_image) if self.is_used else None for tile_image in tile_images]
        wanted: list[int] = []
        for index, value in enumerate(values):
            is_first = value is not None and value != self._value and value not in (values[at] for at in wanted)
            if value is None or is_first:
                wanted.append(index)
        made = dict(zip(wanted, forward([tile_images[index] for index in wanted]) if wanted else (), strict=True))
        result: list[Tensor] = []
        for index, value in enumerate(values):
            if index in made:
                result.append(made[index])
            else:
                self.reused += 1
                same = next((at for at in wanted if values[at] == value), None)
                known = self._logits if same is None else made[same]
                assert known is not None, "a value that is not wanted is known"
                result.append(known)
        for index in wanted:
            if values[index] is not None:
                self._value, self._logits = values[index], made[index].clone()
        return result


def _only_value(tile_image: Tensor) -> tuple[float, ...] | None:
    """Return the value of each channel of a constant tile (C, *P); None for any other tile."""
    flat = tile_image.flatten(1)
    first = flat[:, :1]
    corner = flat[:, -1:]  # enough for most tiles
    if bool((first != corner).any()) or bool((flat != first).any()):
        return None
    return tuple(first[:, 0].tolist())


def _tile_image(image: npt.NDArray[np.float32] | NormalizedView, start: Start, patch: Sequence[int]) -> Tensor:
    """Return the tile (C, *P) at `start`; a start along an axis that the patch lacks picks one slice."""
    untiled = len(start) - len(patch)
    inside = (slice(low, low + size) for low, size in zip(start[untiled:], patch, strict=True))
    where: tuple[Any, ...] = (slice(None), *start[:untiled], *inside)
    return torch.from_numpy(image[where])


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
