"""Operations of the compiled kernels: convolutions (float32, halves within), instance norm with LeakyReLU (also bf16).

For use where `compiled.library` gives one. Nothing here has a gradient.

Legend: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from segwright.networks.cpu.library import Library, library

Size = tuple[int, ...]

LANES, COLUMNS = 8, 16
"""Channels of images, and of what convolutions make, are multiples of these; those of 16 and 32 make wider vectors."""
_TILE, _GROUPS, _TAPS, _STAGGER, _RECORD = 4, 36, 3, 64, 8  # of native/
KERNEL_SIZES: Final = frozenset({(3, 3), (1, 3, 3), (3, 3, 3)})
_LIMITS: Final = MappingProxyType({torch.float32: (256, 1.5), torch.float16: (64, 2.0)})
"""For each type of points the least tiles, for with fewer the transformed weights, eight times as many, take longer to
read than is saved, and how many times the output all tiles may be where there is a stride, for it saves less."""
_JOBS: Final = 4
"""For each thread, so that none waits long for the others at the end."""
RUN: Final = 1024
"""Voxels of a job where each is computed alone; sums of so many are made in float32, then in float64."""
_MOST_KEPT_BYTES: Final = 128 * 2**20
"""For transformed weights, which are eight to thirteen times as many as weights."""


class _Filter(NamedTuple):
    """A filter of filters.h: what it is called there, outputs of a tile, kinds of points."""

    code: int
    tile: int
    kinds: int


_ALONE, _STRIDED, _FOUR, _FIVE = _Filter(0, 1, 1), _Filter(2, 4, 6), _Filter(4, 4, 6), _Filter(5, 5, 7)


class _Shape(ctypes.Structure):
    """`Shape` of winograd.c."""

    _fields_ = [  # noqa: RUF012
        (name, ctypes.c_int64)
        for name in (
            "n", "d", "h", "w", "first", "second", "out", "out_d", "out_h", "out_w", "deep", "flat",
            "units", "length", "strip",
        )
    ]  # fmt: skip


def suits(weight: Tensor, image: Tensor, channels: Sequence[int], stride: Size, known: Points | None = None) -> bool:
    """Return whether `convolve` is made for `weight` and images like `image` with so many `channels`, and pays.

    Args:
        weight: (O, C, *K).
        image: (B, C', *S), one of them.
        channels: of each image; C in all.
        stride: along each axis.
        known: as `convolve` is given it.
    """
    if weight.ndim != image.ndim or tuple(weight.shape[2:]) not in KERNEL_SIZES:
        return False
    deep, rows, columns = (1, *stride)[-3:]
    if rows != columns or not {deep, rows} <= {1, 2} or deep > prod(weight.shape[2:]) // _TAPS**2:
        return False
    size = _strided((1, *image.shape[2:])[-3:], (deep, rows, columns))
    tiles = [ceil(extent / _TILE) for extent in size]
    compiled = _in_halves(known, channels, weight)
    least, most_waste = _LIMITS[torch.float32 if compiled is None else compiled.points]
    return (
        weight.shape[0] % COLUMNS == 0
        and weight.shape[1] == sum(channels)
        and all(each % LANES == 0 for each in channels)
        and len(image) * size[0] * tiles[1] * tiles[2] >= least
        and 2 * len(image) * tiles[1] >= torch.get_num_threads()  # or most of them would have no job
        and (rows == 1 or prod(tiles) * _TILE**3 <= most_waste * prod(size))
    )


@dataclass(frozen=True)
class Norm:
    """An instance norm and the LeakyReLU that follows it.

    Attributes:
        weight: (C) float32, or None.
        bias: (C) float32, or None.
        eps: is added to the variance.
        slope: of the negative half; 1 for no LeakyReLU.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    slope: float


@dataclass(frozen=True)
class Normalised:
    """An image whose norm is known and not yet applied.

    Attributes:
        image: (B, C, *S) float32, channels-last.
        factors: (B, 3, C) mean, scale and shift.
        slope: of the negative half.
    """

    image: Tensor
    factors: Tensor
    slope: float

    def applied(self) -> Tensor:
        """Return the image with its norm, written over it."""
        _norm("segwright_scale", self.image, Norm(None, None, 0.0, self.slope), None, self.factors, self.image)
        return self.image


def values_of(image: Tensor | Normalised) -> Tensor:
    """Return the values of an image, before its norm if that is not applied yet."""
    return image if isinstance(image, Tensor) else image.image


class Points:
    """Transforms weights for the kernels, and keeps those of layers that may come again while they are the same.

    Several threads may share one.

    Args:
        most_bytes: that are kept, a copy of the weights included.
        in_halves: convolve in float16 where there are kernels for it.
    """

    def __init__(self, most_bytes: int = _MOST_KEPT_BYTES, *, in_halves: bool = False) -> None:
        self.in_halves = in_halves
        self._kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._most = most_bytes

    def of(self, weight: Tensor, deep: _Filter, flat: _Filter, compiled: Library) -> Tensor:
        """Return the points of weights (O, C, *K) for these kernels."""
        key = (weight.data_ptr(), deep.code, flat.code, compiled.lanes, compiled.points.itemsize)
        before = self._kept.get(key)
        if before is not None and torch.equal(before[0], weight):  # torch's own count misses some changes
            return before[1]
        self._kept.pop(key, None)
        points = _points(weight, deep, flat, compiled)
        kept = sum(tensor.nbytes for pair in list(self._kept.values()) for tensor in pair)
        if isinstance(weight, nn.Parameter) and kept + weight.nbytes + points.nbytes <= self._most:
            self._kept[key] = weight.detach().clone(), points
        return points


def convolve(
    images: Sequence[Tensor | Normalised],
    weight: Tensor,
    bias: Tensor | None,
    stride: Size | None = None,
    known: Points | None = None,
) -> Tensor:
    """Convolve one or two images, concatenated along their channels, with padding that keeps the shape but for strides.

    Winograd's F(4, 3) or F(5, 3) along every axis with three taps (Lavin & Gray 2016, arXiv:1509.09308): an eighth of
    the multiplications in 3D, three to four times as fast as the direct way, and a few 1e-6 of the largest value away.
    In float16, where `known` asks for it and the processor is fast at it, a few 1e-3 away; values too large for it are
    convolved in float32 after all.

    Args:
        images: (B, C, *S) and (B, C', *S).
        weight: (O, C + C', *K), see `suits`.
        bias: (O).
        stride: along each axis; 1 by default.
        known: keeps the transformed weights.

    Returns:
        (B, O, *S), channels-last.

    Raises:
        ValueError: the images differ in more than their channels.
    """
    return _convolve(images, weight, bias, stride, known, with_records=False)[0]


def convolve_and_norm(
    images: Sequence[Tensor | Normalised],
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    stride: Size | None = None,
    known: Points | None = None,
) -> Normalised:
    """Convolve as `convolve` does and find the norm of the result, while it is in the cache."""
    return normalised_by(*_convolve(images, weight, bias, stride, known, with_records=True), norm)


def find_norm(image: Tensor, norm: Norm) -> Normalised:
    """Return an image (B, C, *S) of float32, C a multiple of 8, with its norm."""
    image = channels_last(image)
    records = records_of(len(image), ceil(prod(image.shape[2:]) / RUN), image.shape[1])
    _norm("segwright_moments", image, norm, records, None, None)
    return normalised_by(image, records, norm)


def instance_norm(image: Tensor, norm: Norm, *, in_place: bool = False) -> Tensor:
    """Return an image (B, C, *S) with its norm.

    Args:
        image: float32 or bfloat16, C a multiple of 8.
        norm: what to apply.
        in_place: write over `image`, if it is channels-last.
    """
    image = channels_last(image)
    out = image if in_place else torch.empty_like(image)
    runs, channels = ceil(prod(image.shape[2:]) / RUN), image.shape[1]
    if len(image) % torch.get_num_threads() == 0:
        work = runs * (2 * channels + _RECORD) + 3 * channels
        _norm("segwright_norm", image, norm, runs, None, out, work=work)
        return out
    records, factors = records_of(len(image), runs, channels), torch.empty((len(image), 3, channels))
    for step in ("segwright_moments", "segwright_factors", "segwright_scale"):
        _norm(step, image, norm, records, factors, out)
    return out


def _convolve(
    images: Sequence[Tensor | Normalised], weight: Tensor, bias: Tensor | None, stride: Size | None,
    known: Points | None, *, with_records: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Convolve, and return the records of the result's moments, too, empty where they are not wanted."""
    sources = _values_in_order(images)
    if len({(len(image), *image.shape[2:]) for image in sources}) > 1:
        raise ValueError(f"images of shapes {[tuple(image.shape) for image in sources]} cannot be concatenated")
    samples, size, steps = len(sources[0]), (1, *sources[0].shape[2:])[-3:], (1, *(stride or (1, 1, 1)))[-3:]
    wanted = _strided(size, steps)
    deep, flat = _filter_along_depth(weight, steps[0], wanted[0]), _FOUR if steps[1] == 1 else _STRIDED
    units = ceil(wanted[0] / deep.tile)
    out = torch.empty((samples, len(weight), *wanted[-weight.ndim + 2 :]), memory_format=channels_last_of(sources[0]))
    records = records_of(samples * with_records, units * wanted[1], len(weight))
    channels = [image.shape[1] for image in (*sources, sources[0][:, :0])[:2]]
    first, second = (source_of(images[at], sources[at]) for at in (0, -1))
    floats = kernels_for(*channels, len(weight) // 2)  # it makes two vectors at once
    for compiled in (_in_halves(known, channels, weight) or floats, floats):
        cut = _cut(samples * units, wanted[1:], weight[:, :, 0].numel(), compiled.lanes)
        shape = _Shape(samples, *size, *channels, len(weight), *wanted, deep.code, flat.code, *cut)
        points = (known or Points()).of(weight, deep, flat, compiled)
        work = compiled.work_of("segwright_convolve_work", shape)
        compiled.call(
            "segwright_convolve", out.numel(), shape, *first, *second, points, ordered(bias), out, records, work=work
        )  # fmt: skip
        sums = records[..., : len(weight)] if with_records else out
        if compiled is floats or bool(torch.isfinite(sums.sum())):
            break  # else something was too large for a half
    return out, records


def _in_halves(known: Points | None, channels: Sequence[int], weight: Tensor) -> Library | None:
    """Return the kernels that convolve images with so many channels in float16, if that is wanted and they can."""
    return library(*channels, len(weight) // 2, in_halves=True) if known is not None and known.in_halves else None


def _points(weight: Tensor, deep: _Filter, flat: _Filter, compiled: Library) -> Tensor:
    """Transform weights (O, C, *K) for segwright_convolve."""
    outputs, inputs = weight.shape[:2]
    stagger = _STAGGER // compiled.points.itemsize
    points = torch.empty(deep.kinds * _GROUPS * (inputs * outputs + stagger), dtype=compiled.points)
    arranged = weight.flatten(2).permute(2, 1, 0).contiguous()
    compiled.call("segwright_weights", points.numel(), arranged, inputs, outputs, deep.code, flat.code, points)
    return points


def kernels_for(*channels: int) -> Library:
    """Return the kernels with the widest vectors for these numbers of channels, all multiples of LANES."""
    found = library(*channels)
    assert found is not None, "the caller has asked"
    return found


def _filter_along_depth(weight: Tensor, stride: int, planes: int) -> _Filter:
    """Return the filter that takes the fewest multiplications for so many planes of the output."""
    if prod(weight.shape[2:]) == _TAPS**2:
        return _ALONE
    if stride > 1:
        return _STRIDED
    return min((_FOUR, _FIVE), key=lambda filter_: ceil(planes / filter_.tile) * filter_.kinds)


def _strided(size: Size, stride: Size) -> Size:
    """Return the size of what a convolution makes of so many voxels along each axis."""
    return tuple((extent - 1) // step + 1 for extent, step in zip(size, stride, strict=True))


def _values_in_order(images: Sequence[Tensor | Normalised]) -> list[Tensor]:
    """Return the values of images, channels-last."""
    tensors = [values_of(image) for image in images]
    return [tensor.contiguous(memory_format=channels_last_of(tensors[0])) for tensor in tensors]


def source_of(image: Tensor | Normalised, values: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """Return values, factors and slope of an image as the kernels have them."""
    return (values, None, 1.0) if isinstance(image, Tensor) else (values, image.factors, float(image.slope))


def ordered(vector: Tensor | None) -> Tensor | None:
    """Return a vector, or none, without gaps."""
    return None if vector is None else vector.contiguous()


def channels_last_of(image: Tensor) -> torch.memory_format:
    """Return how the kernels have images of so many axes in memory."""
    return torch.channels_last if image.ndim == 4 else torch.channels_last_3d


def channels_last(image: Tensor) -> Tensor:
    """Return an image (B, C, *S) as the kernels have it in memory."""
    return image.contiguous(memory_format=channels_last_of(image))


def records_of(samples: int, runs: int, channels: int) -> Tensor:
    """Return room for the moments of so many runs of each sample, and how many voxels they have."""
    return torch.empty((samples, runs, 2 * channels + _RECORD))


def normalised_by(image: Tensor, records: Tensor, norm: Norm) -> Normalised:
    """Return an image with the norm that the records of its moments give."""
    factors = torch.empty((len(image), 3, image.shape[1]))
    _norm("segwright_factors", image, norm, records, factors, None)
    return Normalised(image, factors, norm.slope)


def _norm(
    step: str, image: Tensor, norm: Norm, records: Tensor | int | None, factors: Tensor | None, out: Tensor | None,
    *, work: int = 0,
) -> None:  # fmt: skip
    """Call a kernel of instance_norm.c; `records` may be how many there are for a sample."""
    runs = records if isinstance(records, int) else 0 if records is None else records.shape[1]
    given = records if isinstance(records, Tensor) else None
    samples, channels, voxels = *image.shape[:2], prod(image.shape[2:])
    kernels_for(channels).call(
        step, image.numel(), image, int(image.dtype == torch.bfloat16), samples, voxels, channels, RUN, runs,
        ordered(norm.weight), ordered(norm.bias), float(norm.eps), float(norm.slope), given, factors, out, work=work,
    )  # fmt: skip


def _cut(units: int, plane: Size, weights: int, lanes: int) -> Size:
    """Return how `_Shape` cuts the work: units, rows of tiles of a job, and rows of tiles at once.

    Found by timing 32 to 512 channels: as few tiles as keep both the tiles of a depth and its `weights`, so many floats
    a point, in the second-level cache; where the weights are too many for that, enough tiles to read them seldom.

    Args:
        units: in all samples.
        plane: voxels of the output along its last two axes.
        weights: see above.
        lanes: of the kernels.
    """
    few, limit, many = (10, 1 << 13, 36) if lanes == LANES else (10, 1 << 15, 20)
    wanted = few if weights <= limit else many
    down, across = (ceil(extent / _TILE) for extent in plane)
    strip = ceil(down / max(1, round(down * across / wanted)))
    threads = torch.get_num_threads()
    together = min(max(1, round(wanted / (down * across))), ceil(units / threads))
    parts = ceil(_JOBS * threads / ceil(units / together))  # of a unit, so that there are enough jobs
    return together, ceil(down / parts / strip) * strip, strip
