"""Convolutions in float16 by the compiled kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segwright.networks.cpu import kernels
from segwright.networks.cpu import library as compiled
from segwright.networks.cpu.dispatch import CpuKernelMode

CLOSE, USUALLY_CLOSE = 2.5e-2, 1.5e-2
"""Largest and mean distance from float32, of the largest and the mean value of noise; images are smoother."""

NORM = kernels.Norm(None, None, eps=1e-5, slope=0.1)

needs_fp16 = pytest.mark.skipif(compiled.library(fp16=True) is None, reason="no kernels in float16 for this processor")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def halves() -> kernels.WinogradWeightCache:
    return kernels.WinogradWeightCache(fp16=True)


def assert_near(got: Tensor, wanted: Tensor) -> None:
    """See that values are those of float32 but for the digits that halves lack."""
    distance = (got - wanted).abs()
    assert 0 < float(distance.max()) <= CLOSE * float(wanted.abs().max())
    assert float(distance.square().mean()) <= USUALLY_CLOSE**2 * float(wanted.square().mean())


@needs_fp16
@pytest.mark.parametrize(
    ("samples", "channels", "outputs", "size", "kernel", "stride"),
    [
        (1, (16,), 32, (4, 4, 4), (3, 3, 3), 1),
        (2, (32,), 32, (7, 9, 13), (3, 3, 3), 1),
        (1, (48,), 96, (1, 1, 1), (3, 3, 3), 1),
        (3, (64, 16), 32, (5, 21, 6), (3, 3, 3), 1),
        (2, (32, 32), 64, (9, 12, 17), (1, 3, 3), 1),
        (2, (16,), 32, (33, 19), (3, 3), 1),
        (1, (320, 320), 320, (6, 13, 10), (3, 3, 3), 1),
        (1, (16,), 32, (18, 35, 50), (3, 3, 3), 2),
        (1, (320,), 352, (6, 13, 10), (3, 3, 3), 2),
        (2, (32, 16), 32, (33, 19), (3, 3), 2),
    ],
)
def test_convolution(
    samples: int, channels: tuple[int, ...], outputs: int, size: tuple[int, ...], kernel: tuple[int, ...], stride: int
) -> None:
    images = [random(samples, each, *size) for each in channels]
    weight, bias = random(outputs, sum(channels), *kernel) / 10, random(outputs)
    steps = (stride,) * len(size)
    for constant in (bias, None):
        wanted = kernels.convolve(images, weight, constant, steps)
        got = kernels.convolve(images, weight, constant, steps, halves())
        assert_near(got, wanted)
        assert got.is_contiguous(memory_format=torch.channels_last if got.ndim == 4 else torch.channels_last_3d)


@needs_fp16
@pytest.mark.parametrize("stride", [1, 2])
def test_norms_are_found_and_read(stride: int) -> None:
    image, weight, bias = random(2, 32, 9, 14, 11), random(64, 32, 3, 3, 3) / 10, random(64)
    source = kernels.compute_norm(image, kernels.Norm(None, None, 1e-5, 0.01))
    wanted = kernels.convolve_and_norm([source], weight, bias, NORM, (stride,) * 3)
    got = kernels.convolve_and_norm([source], weight, bias, NORM, (stride,) * 3, halves())
    assert_near(got.apply_inplace(), wanted.apply_inplace())


@needs_fp16
def test_small_and_large_weights_are_as_exact() -> None:
    image, weight = random(1, 32, 8, 12, 12), random(32, 32, 3, 3, 3) / 10
    wanted = kernels.convolve([image], weight, None)
    for scale in (2.0**-7, 2.0**7):
        assert_near(kernels.convolve([image], weight * scale, None, cache=halves()) / scale, wanted)


@needs_fp16
@pytest.mark.parametrize(("image_scale", "weight_scale"), [(1e5, 1.0), (1.0, 1e6), (3e3, 30.0)])
def test_what_is_too_large_for_halves_is_convolved_in_float32(image_scale: float, weight_scale: float) -> None:
    image, weight = image_scale * random(1, 32, 8, 12, 12), weight_scale * random(32, 32, 3, 3, 3)
    wanted = kernels.convolve([image], weight, None)
    assert torch.equal(kernels.convolve([image], weight, None, cache=halves()), wanted)
    got = kernels.convolve_and_norm([image], weight, None, NORM, cache=halves())
    assert torch.equal(got.image, wanted)
    assert torch.isfinite(got.apply_inplace()).all()


@needs_fp16
@pytest.mark.parametrize(("channels", "outputs"), [((24,), 32), ((32, 8), 32), ((32,), 48), ((32,), 16)])
def test_other_numbers_of_channels_are_convolved_in_float32(channels: tuple[int, ...], outputs: int) -> None:
    images, weight = [random(1, each, 8, 12, 12) for each in channels], random(outputs, sum(channels), 3, 3, 3)
    assert torch.equal(kernels.convolve(images, weight, None, cache=halves()), kernels.convolve(images, weight, None))


@needs_fp16
def test_transformed_weights_of_both_kinds_are_kept() -> None:
    conv, image = nn.Conv3d(32, 32, 3, padding=1), random(1, 32, 8, 24, 24)
    cache = halves()
    with torch.inference_mode():
        kernels.convolve([image], conv.weight, conv.bias, cache=cache)
        kernels.convolve([image * 1e6], conv.weight, conv.bias, cache=cache)
    assert {points.dtype for _, points in cache._entries.values()} == {torch.float16, torch.float32}


@needs_fp16
def test_layers_compute_in_halves_where_they_are_told_to() -> None:
    conv, image = nn.Conv3d(32, 32, 3, padding=1), random(1, 32, 8, 24, 24)
    found: dict[bool, Tensor] = {}
    with torch.inference_mode():
        for fp16 in (False, True):
            with CpuKernelMode(fp16=fp16):
                found[fp16] = conv(image)
    assert_near(found[True], found[False])


@needs_fp16
@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_show(threads: int) -> None:
    image, weight = random(2, 32, 9, 30, 30), random(32, 32, 3, 3, 3)
    wanted = kernels.convolve([image], weight, None, cache=halves())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = kernels.convolve([image], weight, None, cache=halves())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, wanted)


@pytest.mark.skipif(compiled.library() is None, reason="the kernels are not compiled for this processor")
def test_without_the_instructions_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert compiled.fp16_libraries.__wrapped__() == ()


@needs_fp16
def test_without_wide_vectors_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = compiled.libraries()[-1:]
    monkeypatch.setattr(compiled, "libraries", lambda: narrow)
    assert compiled.fp16_libraries.__wrapped__() == ()


@needs_fp16
def test_few_tiles_are_enough_in_halves() -> None:
    few, image = random(64, 64, 3, 3, 3), random(2, 64, 8, 8, 8)
    assert kernels.supports(few, image, [64], (1, 1, 1), halves())
    assert not kernels.supports(few, image, [64], (1, 1, 1))
    assert not kernels.supports(few, image[:1], [64], (1, 1, 1), halves())


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_without_a_library_there_are_none(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / compiled._FP16_LIBRARY).write_bytes(content)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_fp16": True}, raising=False)
    monkeypatch.setattr(compiled, "libraries", lambda: ("narrow", "wide"))
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert compiled.fp16_libraries.__wrapped__() == ()
