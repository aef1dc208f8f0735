"""Predict an image tile by tile, a few planes of averaged logits at a time, whatever computes the logits of a tile.

Legend: C channels, H heads, S spatial axes of the image, P of the patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import Box, box_slices, pad_to
from segwright.core.errors import ImageError, ModelError
from segwright.core.process_tuning import release_freed_memory
from segwright.inference.window.stitching import Planes, stitch
from segwright.inference.window.tiling import DEFAULT_STEP, Start, gaussian_map, tiles, to_front
from segwright.preprocessing.normalization import NormalizedView

Floats = npt.NDArray[np.float32]

_LARGE_BYTES = 128 * 2**20
"""Logits of a tile up to this size may be remembered, and their freed memory kept; larger ones would
raise the peak memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSettings:
    """Settings of the sliding window that are independent of what computes the logits.

    Attributes:
        patch_size: of the network.
        mirror_axes: spatial axes that are mirrored.
        lateral_axes: spatial axes from left to right.
        mirrored_heads: in an image flipped along a lateral axis, head h shows what `mirrored_heads[h]` shows in the
            image itself; empty if all heads stay.
        step: distance of tiles as a fraction of the patch size.
        quantum: weighted logits are rounded to multiples of it; 0: not rounded.
        reuse: compute the logits of tiles of one value, such as air, once for all tiles of that value.
    """

    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...] = ()
    lateral_axes: tuple[int, ...] = ()
    mirrored_heads: tuple[int, ...] = ()
    step: float = DEFAULT_STEP
    quantum: float = 0.0
    reuse: bool = True

    def __post_init__(self) -> None:
        if any(not 0 <= axis < len(self.patch_size) for axis in self.mirror_axes):
            raise ModelError(
                f"mirror axes {self.mirror_axes} do not fit a patch with {len(self.patch_size)} axes; "
                "they are spatial axes counted from 0"
            )

    def heads_of(self, flip: Sequence[int]) -> Sequence[int] | None:
        """Return the flipped image's head for each head of the image itself; None if all are the same."""
        return self.mirrored_heads if self.mirrored_heads and len(set(flip) & set(self.lateral_axes)) % 2 else None

    @property
    def flips(self) -> list[tuple[int, ...]]:
        """All combinations of mirror axes, as spatial axes; the empty one first."""
        axes = self.mirror_axes
        return [flip for size in range(len(axes) + 1) for flip in combinations(axes, size)]


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


class TileNetwork(Protocol):
    """Computes the logits of tiles, as tensors or as arrays of numpy."""

    @property
    def tiles_at_once(self) -> int:
        """Largest number of tiles in a call of `logits`."""
        ...

    def logits(self, tile_images: Sequence[Floats]) -> Sequence[Any]:
        """Return the mean logits (H, *P), over networks and mirrored views, of each tile (C, *P)."""
        ...

    def weights(self, weights: Floats) -> Any:
        """Return the weights of a tile's voxels in the type and on the device in which tiles are summed."""
        ...

    def finish(self, logits: Any) -> Any:
        """Return averaged logits (H, planes, *rest) as they are handed on, in the memory of the CPU."""
        ...


def tile_planes(
    network: TileNetwork,
    image: Floats | NormalizedView,
    num_heads: int,
    *,
    settings: TileSettings,
    axis: int = 0,
    count: TileCount | None = None,
) -> Iterator[Planes]:
    """Yield the logits of `image` (C, *S) a few planes at a time, padding removed.

    Only the sums of one patch depth along `axis` are in memory. For `axis` > 0 that axis comes first:
    (H, planes, *other axes). For a 2D patch in a 3D image `axis` must be 0. `count` is updated in place.

    Raises:
        ImageError: the image holds NaN or infinite values.
        ModelError: a network's output has the wrong shape or is not finite.
    """
    assert axis == 0 or len(settings.patch_size) == image.ndim - 1, "slices are visited along axis 0"
    require_finite(image, "the preprocessed image")
    shape = _padded_shape(image.shape[1:], settings.patch_size)
    content: Box = tuple((0, size) for size in shape)
    if shape != image.shape[1:]:
        image, content = pad_to(np.asarray(image), shape)
    for planes in _padded_planes(network, image, num_heads, settings, axis, count or TileCount()):
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
    network: TileNetwork,
    image: Floats | NormalizedView,
    num_heads: int,
    settings: TileSettings,
    axis: int,
    count: TileCount,
) -> Iterator[Planes]:
    patch = settings.patch_size
    is_flat = len(patch) < image.ndim - 1  # each slice is a tile
    weights = gaussian_map(patch)[None] if is_flat else gaussian_map(patch)
    weights = np.moveaxis(weights, axis, 0).copy()  # which may be written, unlike the map
    order = to_front(range(image.ndim - 1), axis)
    shape = to_front(image.shape[1:], axis)

    def forward(tile_images: Sequence[Floats]) -> list[Any]:
        found = network.logits(tile_images)
        return [logits[:, None] if is_flat else _axis_first(logits, axis) for logits in found]

    def predicted() -> Iterator[tuple[Start, Any]]:
        tile_bytes = 4 * num_heads * prod(patch)
        is_large = tile_bytes > _LARGE_BYTES
        cache = _TileCache(settings.reuse and not is_large)
        all_starts = tiles(shape, patch if is_flat else to_front(patch, axis), settings.step)
        count.total += len(all_starts)
        starts = iter(all_starts)
        while group := list(islice(starts, network.tiles_at_once)):
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
    for planes in stitch(predicted(), shape=shape, weights=network.weights(weights), quantum=settings.quantum):
        yield Planes(start=planes.start, stop=planes.stop, logits=network.finish(planes.logits))


def _axis_first(logits: Any, axis: int) -> Any:
    """Return a view of logits (H, *P) with the given spatial axis in front of the others."""
    axes = (0, *to_front(range(1, logits.ndim), axis))
    return logits.transpose(axes) if isinstance(logits, np.ndarray) else logits.permute(axes)


class _TileCache:
    """Caches the logits of the last tile that had one value in each channel; memory for one tile."""

    def __init__(self, is_used: bool) -> None:
        self.is_used = is_used
        self.reused = 0
        self._value: tuple[float, ...] | None = None
        self._logits: Any = None

    def logits(self, tile_images: Sequence[Floats], forward: Callable[[Sequence[Floats]], Sequence[Any]]) -> list[Any]:
        """Return the logits of tiles (C, *P); `forward` computes those that are not cached."""
        values = [_only_value(tile_image) if self.is_used else None for tile_image in tile_images]
        wanted: list[int] = []
        for index, value in enumerate(values):
            is_first = value is not None and value != self._value and value not in (values[at] for at in wanted)
            if value is None or is_first:
                wanted.append(index)
        made = dict(zip(wanted, forward([tile_images[index] for index in wanted]) if wanted else (), strict=True))
        result: list[Any] = []
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
                self._value, self._logits = values[index], _copied(made[index])
        return result


def _copied(array: Any) -> Any:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _only_value(tile_image: Floats) -> tuple[float, ...] | None:
    """Return the value of each channel of a constant tile (C, *P); None for any other tile."""
    dims = tile_image.ndim - 1
    first = tile_image[(slice(None), *(slice(0, 1),) * dims)]
    corner = tile_image[(slice(None), *(slice(-1, None),) * dims)]  # enough for most tiles
    if (first != corner).any() or (tile_image != first).any():
        return None
    return tuple(first.reshape(-1).tolist())


def _tile_image(image: Floats | NormalizedView, start: Start, patch: Sequence[int]) -> Floats:
    """Return the tile (C, *P) at `start`; a start along an axis that the patch lacks picks one slice."""
    untiled = len(start) - len(patch)
    inside = (slice(low, low + size) for low, size in zip(start[untiled:], patch, strict=True))
    where: tuple[Any, ...] = (slice(None), *start[:untiled], *inside)
    return image[where]
