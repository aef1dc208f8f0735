"""Winograd convolutions (float32 or fp16) and instance norm with LeakyReLU (float32 or bf16) by the compiled kernels.

For use where `library` finds the kernels. Nothing here has a gradient.

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
"""Input channels are multiples of LANES, output channels of COLUMNS; multiples of 16 and 32 allow wider vectors."""
_TILE, _GROUPS, _TAPS, _STAGGER, _RECORD = 4, 36, 3, 64, 8  # constants of native/
KERNEL_SIZES: Final = frozenset({(3, 3), (1, 3, 3), (3, 3, 3)})
_LIMITS: Final = MappingProxyType({torch.float32: (256, 1.5), torch.float16: (64, 2.0)})
"""Minimum number of tiles, and maximum ratio of tile area to output area with a stride, for each dtype of the products.

With fewer tiles, reading the transformed weights, eight times as many as the weights, takes longer than is saved. With
a stride less is saved, so little of the tiles may lie outside of the output."""
_JOBS: Final = 4
"""Jobs per thread, so that no thread waits long for the others at the end."""
RUN: Final = 1024
"""Voxels of a job where each voxel is computed alone; sums over a run are in float32, sums of runs in float64."""
_MAX_CACHE_BYTES: Final = 128 * 2**20
"""Transformed weights are eight to thirteen times as large as the weights."""


class _Filter(NamedTuple):
    """A Winograd filter of filters.h: its code there, outputs per tile, and transformed weights for its taps."""

    code: int
    tile: int
    kinds: int


_IDENTITY, _F_STRIDED, _F4, _F5 = _Filter(0, 1, 1), _Filter(2, 4, 6), _Filter(4, 4, 6), _Filter(5, 5, 7)


class _Shape(ctypes.Structure):
    """`Shape` of winograd.c."""

    _fields_ = [  # noqa: RUF012
        (name, ctypes.c_int64)
        for name in (
            "n", "d", "h", "w", "first", "second", "out", "out_d", "out_h", "out_w", "deep", "flat",
            "units", "length", "strip",
        )
    ]  # fmt: skip


def supports(
    weight: Tensor, image: Tensor, channels: Sequence[int], stride: Size, cache: WinogradWeightCache | None = None
) -> bool:
    """Return whether `convolve` supports `weight` and images like `image`, and is faster than torch.

    Args:
        weight: (O, C, *K).
        image: (B, C', *S), one of them.
        channels: of each image, C in total.
        stride: along each axis.
        cache: the one that `convolve` gets.
    """
    if weight.ndim != image.ndim or tuple(weight.shape[2:]) not in KERNEL_SIZES:
        return False
    deep, rows, columns = (1, *stride)[-3:]
    if rows != columns or not {deep, rows} <= {1, 2} or deep > prod(weight.shape[2:]) // _TAPS**2:
        return False
    size = _strided((1, *image.shape[2:])[-3:], (deep, rows, columns))
    tiles = [ceil(extent / _TILE) for extent in size]
    compiled = _fp16_kernels(cache, channels, weight)
    min_tiles, max_ratio = _LIMITS[torch.float32 if compiled is None else compiled.dtype]
    return (
        weight.shape[0] % COLUMNS == 0
        and weight.shape[1] == sum(channels)
        and all(each % LANES == 0 for each in channels)
        and len(image) * size[0] * tiles[1] * tiles[2] >= min_tiles
        and 2 * len(image) * tiles[1] >= torch.get_num_threads()  # else most threads would have no job
        and (rows == 1 or prod(tiles) * _TILE**3 <= max_ratio * prod(size))
    )


@dataclass(frozen=True)
class Norm:
    """An instance norm and the LeakyReLU that follows it.

    Attributes:
        weight: (C) float32, or None.
        bias: (C) float32, or None.
        eps: added to the variance.
        slope: of the LeakyReLU for negative values; 1 for no LeakyReLU.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    slope: float


@dataclass(frozen=True)
class Normalized:
    """An image and the norm that is still to be applied to it.

    Attributes:
        image: (B, C, *S) float32, channels-last.
        factors: (B, 3, C) mean, scale and shift.
        slope: of the LeakyReLU for negative values.
    """

    image: Tensor
    factors: Tensor
    slope: float

    def apply_inplace(self) -> Tensor:
        """Apply the norm and the LeakyReLU to the image, and return it."""
        _norm("segwright_scale", self.image, Norm(None, None, 0.0, self.slope), None, self.factors, self.image)
        return self.image


def tensor_of(image: Tensor | Normalized) -> Tensor:
    """Return the tensor of an image; a norm that is pending is not applied."""
    return image if isinstance(image, Tensor) else image.image


class WinogradWeightCache:
    """Keeps the transformed weights of layers, as long as the weights stay the same; several threads may share one.

    Args:
        max_bytes: memory for all entries, each with a copy of its weights.
        fp16: convolve in float16 where there are kernels for it.
    """

    def __init__(self, max_bytes: int = _MAX_CACHE_BYTES, *, fp16: bool = False) -> None:
        self.fp16 = fp16
        self._entries: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._max_bytes = max_bytes

    def transformed(self, weight: Tensor, deep: _Filter, flat: _Filter, compiled: Library) -> Tensor:
        """Return weights (O, C, *K) as `compiled` multiplies by them."""
        key = (weight.data_ptr(), deep.code, flat.code, compiled.lanes, compiled.dtype.itemsize)
        entry = self._entries.get(key)
        if entry is not None and torch.equal(entry[0], weight):  # torch's version counter misses some changes
            return entry[1]
        self._entries.pop(key, None)
        transformed = _transform_weight(weight, deep, flat, compiled)
        used = sum(tensor.nbytes for pair in list(self._entries.values()) for tensor in pair)
        if isinstance(weight, nn.Parameter) and used + weight.nbytes + transformed.nbytes <= self._max_bytes:
            self._entries[key] = weight.detach().clone(), transformed
        return transformed


def convolve(
    images: Sequence[Tensor | Normalized],
    weight: Tensor,
    bias: Tensor | None,
    stride: Size | None = None,
    cache: WinogradWeightCache | None = None,
) -> Tensor:
    """Convolve one or two images, concatenated along their channels, with "same" padding.

    Winograd's F(4, 3) or F(5, 3) along every axis with three taps (Lavin & Gray 2016, arXiv:1509.09308): an eighth of
    the multiplications in 3D, and three to four times as fast as a direct convolution. Errors are a few 1e-6 of the
    largest value. In float16, if `cache` wants it and the processor is fast at it, they are a few 1e-3; a layer with
    values too large for float16 is computed in float32.

    Args:
        images: (B, C, *S) and (B, C', *S).
        weight: (O, C + C', *K), see `supports`.
        bias: (O).
        stride: along each axis; 1 by default.
        cache: holds the transformed weights.

    Returns:
        (B, O, *S), channels-last.

    Raises:
        ValueError: the images differ in more than their channels.
    """
    return _convolve(images, weight, bias, stride, cache, with_records=False)[0]


def convolve_and_norm(
    images: Sequence[Tensor | Normalized],
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    stride: Size | None = None,
    cache: WinogradWeightCache | None = None,
) -> Normalized:
    """Convolve like `convolve`, and compute the norm of the result while it is in the processor's cache."""
    return to_normalized(*_convolve(images, weight, bias, stride, cache, with_records=True), norm)


def compute_norm(image: Tensor, norm: Norm) -> Normalized:
    """Compute the norm of an image (B, C, *S) of float32, C a multiple of 8, without applying it."""
    image = channels_last(image)
    records = empty_records(len(image), ceil(prod(image.shape[2:]) / RUN), image.shape[1])
    _norm("segwright_moments", image, norm, records, None, None)
    return to_normalized(image, records, norm)


def instance_norm(image: Tensor, norm: Norm, *, in_place: bool = False) -> Tensor:
    """Apply an instance norm and its LeakyReLU to an image (B, C, *S).

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
    records, factors = empty_records(len(image), runs, channels), torch.empty((len(image), 3, channels))
    for step in ("segwright_moments", "segwright_factors", "segwright_scale"):
        _norm(step, image, norm, records, factors, out)
    return out


def _convolve(
    images: Sequence[Tensor | Normalized], weight: Tensor, bias: Tensor | None, stride: Size | None,
    cache: WinogradWeightCache | None, *, with_records: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Convolve; also return the records of the result's moments, empty unless `with_records`."""
    sources = _values_in_order(images)
    if len({(len(image), *image.shape[2:]) for image in sources}) > 1:
        raise ValueError(f"images of shapes {[tuple(image.shape) for image in sources]} cannot be concatenated")
    samples, size, steps = len(sources[0]), (1, *sources[0].shape[2:])[-3:], (1, *(stride or (1, 1, 1)))[-3:]
    wanted = _strided(size, steps)
    deep, flat = _filter_along_depth(weight, steps[0], wanted[0]), _F4 if steps[1] == 1 else _F_STRIDED
    units = ceil(wanted[0] / deep.tile)
    out = torch.empty((samples, len(weight), *wanted[-weight.ndim + 2 :]), memory_format=channels_last_of(sources[0]))
    records = empty_records(samples * with_records, units * wanted[1], len(weight))
    channels = [image.shape[1] for image in (*sources, sources[0][:, :0])[:2]]
    first, second = (kernel_source(images[at], sources[at]) for at in (0, -1))
    floats = kernels_for(*channels, len(weight) // 2)  # the kernels write two vectors at once
    for compiled in (_fp16_kernels(cache, channels, weight) or floats, floats):
        cut = _divide_work(samples * units, wanted[1:], weight[:, :, 0].numel(), compiled.lanes)
        shape = _Shape(samples, *size, *channels, len(weight), *wanted, deep.code, flat.code, *cut)
        weights = (cache or WinogradWeightCache()).transformed(weight, deep, flat, compiled)
        work = compiled.work_of("segwright_convolve_work", shape)
        compiled.call(
            "segwright_convolve", out.numel(), shape, *first, *second, weights, contiguous(bias), out, records,
            work=work,
        )  # fmt: skip
        sums = records[..., : len(weight)] if with_records else out
        if compiled is floats or bool(torch.isfinite(sums.sum())):
            break  # else a value was too large for float16
    return out, records


def _fp16_kernels(cache: WinogradWeightCache | None, channels: Sequence[int], weight: Tensor) -> Library | None:
    """Return the kernels that convolve images with these channels in float16; None unless wanted and supported."""
    return library(*channels, len(weight) // 2, fp16=True) if cache is not None and cache.fp16 else None


def _transform_weight(weight: Tensor, deep: _Filter, flat: _Filter, compiled: Library) -> Tensor:
    """Transform weights (O, C, *K) as segwright_convolve needs them."""
    outputs, inputs = weight.shape[:2]
    stagger = _STAGGER // compiled.dtype.itemsize
    out = torch.empty(deep.kinds * _GROUPS * (inputs * outputs + stagger), dtype=compiled.dtype)
    arranged = weight.flatten(2).permute(2, 1, 0).contiguous()
    compiled.call("segwright_weights", out.numel(), arranged, inputs, outputs, deep.code, flat.code, out)
    return out


def kernels_for(*channels: int) -> Library:
    """Return the kernels with the widest vectors for these numbers of channels, all multiples of LANES."""
    found = library(*channels)
    assert found is not None, "callers check this"
    return found


def _filter_along_depth(weight: Tensor, stride: int, planes: int) -> _Filter:
    """Return the filter with the fewest multiplications for this number of output planes."""
    if prod(weight.shape[2:]) == _TAPS**2:
        return _IDENTITY
    if stride > 1:
        return _F_STRIDED
    return min((_F4, _F5), key=lambda filter_: ceil(planes / filter_.tile) * filter_.kinds)


def _strided(size: Size, stride: Size) -> Size:
    """Return the output size of a convolution with "same" padding and a stride."""
    return tuple((extent - 1) // step + 1 for extent, step in zip(size, stride, strict=True))


def _values_in_order(images: Sequence[Tensor | Normalized]) -> list[Tensor]:
    """Return the values of images, channels-last."""
    tensors = [tensor_of(image) for image in images]
    return [tensor.contiguous(memory_format=channels_last_of(tensors[0])) for tensor in tensors]


def kernel_source(image: Tensor | Normalized, values: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """Return values, factors and slope of an image: three arguments of a kernel."""
    return (values, None, 1.0) if isinstance(image, Tensor) else (values, image.factors, float(image.slope))


def contiguous(vector: Tensor | None) -> Tensor | None:
    """Return a contiguous vector, or None."""
    return None if vector is None else vector.contiguous()


def channels_last_of(image: Tensor) -> torch.memory_format:
    """Return the channels-last format for the axes of `image`."""
    return torch.channels_last if image.ndim == 4 else torch.channels_last_3d


def channels_last(image: Tensor) -> Tensor:
    """Return an image (B, C, *S) in channels-last, the layout of the kernels."""
    return image.contiguous(memory_format=channels_last_of(image))


def empty_records(samples: int, runs: int, channels: int) -> Tensor:
    """Return empty records for the moments and voxel counts of `runs` runs of each sample."""
    return torch.empty((samples, runs, 2 * channels + _RECORD))


def to_normalized(image: Tensor, records: Tensor, norm: Norm) -> Normalized:
    """Return an image with the norm that follows from the records of its moments."""
    factors = torch.empty((len(image), 3, image.shape[1]))
    _norm("segwright_factors", image, norm, records, factors, None)
    return Normalized(image, factors, norm.slope)


def _norm(
    step: str, image: Tensor, norm: Norm, records: Tensor | int | None, factors: Tensor | None, out: Tensor | None,
    *, work: int = 0,
) -> None:  # fmt: skip
    """Call a kernel of instance_norm.c; `records` may be their number per sample."""
    runs = records if isinstance(records, int) else 0 if records is None else records.shape[1]
    given = records if isinstance(records, Tensor) else None
    samples, channels, voxels = *image.shape[:2], prod(image.shape[2:])
    kernels_for(channels).call(
        step, image.numel(), image, int(image.dtype == torch.bfloat16), samples, voxels, channels, RUN, runs,
        contiguous(norm.weight), contiguous(norm.bias), float(norm.eps), float(norm.slope), given, factors, out,
        work=work,
    )  # fmt: skip


def _divide_work(units: int, plane: Size, weights: int, lanes: int) -> Size:
    """Return how `_Shape` divides the work: units per job, rows of tiles per job, and rows of tiles at once.

    Chosen by timing 32 to 512 channels: few enough tiles that they and the weights of a depth fit the second-level
    cache; if the weights alone do not fit, enough tiles that they are seldom read.

    Args:
        units: in all samples.
        plane: voxels of the output along its last two axes.
        weights: floats per point.
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
