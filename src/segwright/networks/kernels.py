"""Compiled kernels for inference on the CPU: Winograd convolutions (float32), instance norm with LeakyReLU (also bf16).

`native/*.c` is compiled when the package is installed, where there is a C compiler; without one, or on a processor that
lacks AVX2, `library` gives None and torch's own operations serve. Nothing here has a gradient.

Legend: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from math import ceil, prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

LIBRARY: Final = Path(__file__).with_name("_kernels.so")

_VERSION: Final = 7
"""Of the functions in native/; a library of another version, from before an update, is not used."""
LANES, _COLUMNS, _POINTS, _PATCH, _TILE, _STAGGER = 8, 16, 36, 6, 4, 16  # of winograd.c
_LEAST_TILES: Final = 256
"""With fewer tiles the transformed weights, eight times as many, take longer to read than is saved."""
_JOBS: Final = 4
"""For each thread, so that none waits long for the others at the end."""
_RUN: Final = 1024
"""Voxels whose sums are made in float32; runs are put together in float64."""
_GRAIN: Final = 32768
"""Values that are worth several threads, as torch has it."""


class _Shape(ctypes.Structure):
    """`Shape` of winograd.c."""

    _fields_ = [  # noqa: RUF012
        (name, ctypes.c_int64)
        for name in ("n", "d", "h", "w", "first", "second", "out", "taps", "units", "length", "strip")
    ]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where there are none for this processor."""
    if torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.segwright_convolve_work.restype = ctypes.c_int64
        found.segwright_call.restype = None
        return found if found.segwright_version() == _VERSION else None
    except (OSError, AttributeError):  # none, or none of ours
        return None


def suits(weight: Tensor, image: Tensor, channels: Sequence[int]) -> bool:
    """Return whether `convolve` is made for `weight` and images like `image` with so many `channels`, and pays.

    Args:
        weight: (O, C, *K).
        image: (B, C', *S), one of them.
        channels: of each image; C in all.
    """
    if weight.ndim != image.ndim or tuple(weight.shape[2:]) not in {(3, 3), (1, 3, 3), (3, 3, 3)}:
        return False
    depth, rows, columns = (1, *image.shape[2:])[-3:]
    return (
        weight.shape[0] % _COLUMNS == 0
        and weight.shape[1] == sum(channels)
        and all(size % LANES == 0 for size in channels)
        and len(image) * depth * ceil(rows / _TILE) * ceil(columns / _TILE) >= _LEAST_TILES
        and 2 * len(image) * ceil(rows / _TILE) >= torch.get_num_threads()  # or most of them would have no job
    )


def convolve(images: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve one or two images, concatenated along their channels, with stride 1 and padding that keeps the shape.

    Winograd's F(4, 3) along every axis with three taps (Lavin & Gray 2016, arXiv:1509.09308): an eighth of the
    multiplications in 3D, three to four times as fast as the direct way, and a few 1e-6 of the largest value from it.

    Args:
        images: (B, C, *S) and (B, C', *S).
        weight: (O, C + C', *K), see `suits`.
        bias: (O).

    Returns:
        (B, O, *S), channels-last.

    Raises:
        ValueError: the images differ in more than their channels.
    """
    if len({(len(image), *image.shape[2:]) for image in images}) > 1:
        raise ValueError(f"images of shapes {[tuple(image.shape) for image in images]} cannot be concatenated")
    layout = torch.channels_last if images[0].ndim == 4 else torch.channels_last_3d
    images = [image.contiguous(memory_format=layout) for image in images]
    outputs, inputs, *kernel = weight.shape
    taps = prod(kernel) // 9
    ordered = weight.reshape(outputs, inputs, taps, 3, 3).permute(2, 3, 4, 1, 0).contiguous()
    depths = _PATCH if taps == 3 else 1
    points = torch.empty(depths * _POINTS * (inputs * outputs + _STAGGER))
    _call("segwright_weights", points.numel(), ordered, taps, inputs, outputs, points)

    size = (1, *images[0].shape[2:])[-3:]
    channels = [image.shape[1] for image in (*images, images[0][:, :0])[:2]]
    cut = _cut(len(images[0]), size, taps, inputs * outputs)
    shape = _Shape(len(images[0]), *size, *channels, outputs, taps, *cut)
    loaded = library()
    assert loaded is not None, "the caller has asked"
    out = torch.empty((len(images[0]), outputs, *images[0].shape[2:]), memory_format=layout)
    constant = None if bias is None else bias.contiguous()
    work = loaded.segwright_convolve_work(ctypes.byref(shape))
    _call("segwright_convolve", out.numel(), shape, images[0], images[-1], points, constant, out, work=work)
    return out


def instance_norm(
    image: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, *, in_place: bool = False
) -> Tensor:
    """Return the LeakyReLU of the instance norm of an image (B, C, *S); slope 1 for no LeakyReLU.

    Args:
        image: float32 or bfloat16, C a multiple of 8.
        weight: (C) float32.
        bias: (C) float32.
        eps: is added to the variance.
        slope: of the negative half.
        in_place: write over `image`, if it is channels-last.
    """
    layout = torch.channels_last if image.ndim == 4 else torch.channels_last_3d
    image = image.contiguous(memory_format=layout)
    samples, channels, voxels = *image.shape[:2], prod(image.shape[2:])
    runs, threads = ceil(voxels / _RUN), torch.get_num_threads()
    moments, factors = torch.empty((samples, runs, 2, channels)), torch.empty((samples, 3, channels))
    out = image if in_place else torch.empty_like(image)
    geometry = (image, int(image.dtype == torch.bfloat16), samples, voxels, channels, _RUN)
    affine = (None if each is None else each.contiguous() for each in (weight, bias))
    arguments = (*geometry, *affine, float(eps), float(slope), moments, factors, out)
    if samples % threads == 0:
        _call("segwright_norm", image.numel(), *arguments, work=(2 * runs + 3) * channels)
    else:
        for step in ("segwright_moments", "segwright_factors", "segwright_scale"):
            _call(step, image.numel(), *arguments)
    return out


def _cut(samples: int, size: Sequence[int], taps: int, weights: int) -> tuple[int, int, int]:
    """Return how `_Shape` cuts the work: units, rows of tiles of a job, and rows of tiles at once.

    Found by timing 32 to 512 channels: as few tiles as keep both the tiles of a depth and its `weights`, so many floats
    a point, in the second-level cache; where the weights are too many for that, enough tiles to read them seldom.
    """
    wanted = 10 if weights <= 1 << 13 else 36
    depth, down, across = (
        ceil(extent / group) for extent, group in zip(size, (_TILE ** (taps // 3), _TILE, _TILE), strict=True)
    )
    strip = ceil(down / max(1, round(down * across / wanted)))
    threads = torch.get_num_threads()
    units = min(max(1, round(wanted / (down * across))), ceil(samples * depth / threads))
    parts = ceil(_JOBS * threads / ceil(samples * depth / units))  # of a unit, so that there are enough jobs
    return units, ceil(down / parts / strip) * strip, strip


class _Argument(ctypes.Union):
    """`Argument` of native.h."""

    _fields_ = [("whole", ctypes.c_int64), ("real", ctypes.c_float), ("array", ctypes.c_void_p)]  # noqa: RUF012


def _call(name: str, values: int, *arguments: Tensor | ctypes.Structure | float | None, work: int = 0) -> None:
    """Call a kernel in as many threads as torch computes with.

    Args:
        name: of the function in native/.
        values: that it writes or reads; where they are few, the caller's thread serves.
        arguments: as the function has them; None for no array.
        work: floats that each thread needs for itself.
    """
    loaded = library()
    assert loaded is not None, "the caller has asked"
    threads = torch.get_num_threads() if values >= _GRAIN else 1
    space = torch.empty(threads * work)
    passed = (_Argument * len(arguments))(*map(_argument, arguments))
    loaded.segwright_call(
        getattr(loaded, name), passed, ctypes.c_void_p(space.data_ptr()), ctypes.c_int64(work), ctypes.c_int64(threads),
        _team(),
    )  # fmt: skip


def _argument(value: Tensor | ctypes.Structure | float | None) -> _Argument:
    if isinstance(value, Tensor):
        return _Argument(array=value.data_ptr())
    if isinstance(value, ctypes.Structure):
        return _Argument(array=ctypes.addressof(value))
    if isinstance(value, float):
        return _Argument(real=value)
    return _Argument(array=None) if value is None else _Argument(whole=value)


@lru_cache(maxsize=1)
def _team() -> Any:
    """Return the function by which torch calls its threads; None where its OpenMP has another."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
