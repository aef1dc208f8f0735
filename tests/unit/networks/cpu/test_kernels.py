"""The compiled kernels against torch's own operations in float64."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segwright.networks.cpu import direct, kernels
from segwright.networks.cpu import library as compiled

IS_FAST_CPU = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
CLOSE = 1e-5
"""Of the largest value: Winograd's algorithm costs a digit of float32."""

PLAIN = kernels.Norm(None, None, eps=1e-5, slope=0.1)

needs_kernels = pytest.mark.skipif(compiled.library() is None, reason="the kernels are not compiled for this processor")


@pytest.mark.skipif(
    not IS_FAST_CPU or platform.machine() != "x86_64" or sys.platform == "win32" or shutil.which("cc") is None,
    reason="no processor or no compiler for the kernels",
)
def test_installing_compiles_the_kernels() -> None:
    assert compiled.library() is not None, "run `make setup`"


@pytest.fixture(params=[1, 2], ids=["8 floats", "16 floats"])
def times(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many times eight floats the vectors have; there are no kernels but those with such vectors."""
    found = tuple(each for each in compiled.libraries() if each.lanes == 8 * request.param)
    if not found:
        pytest.skip("no kernels with such vectors for this processor")
    monkeypatch.setattr(compiled, "libraries", lambda: found)
    return int(request.param)


def layout(image: Tensor) -> torch.memory_format:
    return torch.channels_last if image.ndim == 4 else torch.channels_last_3d


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def exactly(images: list[Tensor], weight: Tensor, bias: Tensor | None, stride: tuple[int, ...] | int = 1) -> Tensor:
    """Convolve in float64."""
    convolve = functional.conv2d if weight.ndim == 4 else functional.conv3d
    padding = [size // 2 for size in weight.shape[2:]]
    return convolve(
        torch.cat(images, 1).double(), weight.double(), None if bias is None else bias.double(), stride, padding
    )


def exactly_normed(image: Tensor, norm: kernels.Norm) -> Tensor:
    """Normalise in the image's precision."""
    weight, bias = (None if each is None else each.to(image.dtype) for each in (norm.weight, norm.bias))
    normed = functional.instance_norm(image, weight=weight, bias=bias, eps=norm.eps)
    return functional.leaky_relu(normed, norm.slope)


@needs_kernels
@pytest.mark.parametrize(
    ("samples", "channels", "outputs", "size", "kernel"),
    [
        (1, (8,), 16, (4, 4, 4), (3, 3, 3)),
        (2, (16,), 32, (7, 9, 13), (3, 3, 3)),
        (1, (24,), 48, (1, 1, 1), (3, 3, 3)),
        (1, (8,), 16, (2, 5, 3), (3, 3, 3)),
        (3, (32, 8), 16, (5, 21, 6), (3, 3, 3)),
        (1, (8, 32), 32, (30, 11, 8), (3, 3, 3)),
        (2, (16, 16), 16, (9, 12, 17), (1, 3, 3)),
        (2, (8,), 16, (33, 19), (3, 3)),
        (1, (16, 24), 64, (64, 6), (3, 3)),
        (1, (160,), 176, (6, 13, 10), (3, 3, 3)),
    ],
)
def test_convolution(
    samples: int, channels: tuple[int, ...], outputs: int, size: tuple[int, ...], kernel: tuple[int, ...], times: int
) -> None:
    images = [random(samples, times * each, *size) for each in channels]
    weight, bias = random(times * outputs, times * sum(channels), *kernel), random(times * outputs)
    for constant in (bias, None):
        wanted = exactly(images, weight, constant)
        got = kernels.convolve(images, weight, constant)
        assert got.is_contiguous(memory_format=layout(got))
        assert got.shape == wanted.shape
        assert float((got - wanted).abs().max()) <= CLOSE * float(wanted.abs().max())
    ordered = [image.contiguous(memory_format=layout(image)) for image in images]
    assert torch.equal(kernels.convolve(ordered, weight.contiguous(memory_format=layout(weight)), bias=None), got)


@needs_kernels
@pytest.mark.parametrize(
    ("samples", "channels", "outputs", "size", "kernel", "stride"),
    [
        (1, (8,), 16, (8, 8, 8), (3, 3, 3), (2, 2, 2)),
        (2, (16,), 32, (7, 9, 13), (3, 3, 3), (2, 2, 2)),
        (1, (24,), 48, (1, 1, 1), (3, 3, 3), (2, 2, 2)),
        (1, (8,), 16, (18, 35, 50), (3, 3, 3), (2, 2, 2)),
        (3, (32, 8), 16, (5, 21, 6), (3, 3, 3), (1, 2, 2)),
        (1, (8,), 32, (30, 11, 8), (3, 3, 3), (2, 1, 1)),
        (2, (16, 16), 16, (9, 12, 17), (1, 3, 3), (1, 2, 2)),
        (2, (8,), 16, (33, 19), (3, 3), (2, 2)),
        (1, (160,), 176, (6, 13, 10), (3, 3, 3), (2, 2, 2)),
    ],
)
def test_convolution_with_strides(
    samples: int,
    channels: tuple[int, ...],
    outputs: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    times: int,
) -> None:
    images = [random(samples, times * each, *size) for each in channels]
    weight, bias = random(times * outputs, times * sum(channels), *kernel), random(times * outputs)
    wanted = exactly(images, weight, bias, stride)
    got = kernels.convolve(images, weight, bias, stride)
    assert got.is_contiguous(memory_format=layout(got))
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= CLOSE * float(wanted.abs().max())


@needs_kernels
@pytest.mark.parametrize(
    ("samples", "channels", "size", "kernel"),
    [
        (2, (16,), (8, 12, 8), (3, 3, 3)),
        (1, (32, 8), (7, 9, 13), (3, 3, 3)),
        (2, (8,), (9, 10, 12), (3, 3, 3)),
        (3, (8, 16), (5, 21, 6), (1, 3, 3)),
        (2, (40,), (33, 19), (3, 3)),
        (1, (8,), (3, 4, 5), (3, 3, 3)),
    ],
)
@pytest.mark.parametrize("step", [1, 2])
def test_norms_before_and_after_a_convolution(
    samples: int, channels: tuple[int, ...], size: tuple[int, ...], kernel: tuple[int, ...], step: int, times: int
) -> None:
    channels, outputs = tuple(times * each for each in channels), 16 * times
    stride = tuple(step if taps == 3 else 1 for taps in kernel)
    images = [3 + 2 * random(samples, each, *size) for each in channels]
    weight, bias = random(outputs, sum(channels), *kernel), random(outputs)
    before = [kernels.Norm(random(each), 1 + random(each), eps=1e-5, slope=0.1) for each in channels]
    after = kernels.Norm(random(outputs), None, eps=1e-5, slope=0.01)

    found = [kernels.compute_norm(image.clone(), norm) for image, norm in zip(images, before, strict=True)]
    normed = [exactly_normed(image.double(), norm) for image, norm in zip(images, before, strict=True)]
    got = kernels.convolve_and_norm(found, weight, bias, after, stride)
    wanted = exactly(normed, weight, bias, stride)
    assert float((got.image - wanted).abs().max()) <= CLOSE * float(wanted.abs().max())
    means, deviations = wanted.flatten(2).mean(2), wanted.flatten(2).std(2, correction=0)
    torch.testing.assert_close(got.factors[:, 0].double(), means, rtol=0, atol=CLOSE * float(wanted.abs().max()))
    assert after.weight is not None
    torch.testing.assert_close(got.factors[:, 1].double(), after.weight / deviations, rtol=1e-4, atol=0)
    normed_after = exactly_normed(wanted, after)
    assert float((got.apply_inplace() - normed_after).abs().max()) <= 10 * CLOSE * float(normed_after.abs().max())

    mixed = kernels.convolve([found[0], *images[1:]], weight, bias)
    wanted = exactly([normed[0], *images[1:]], weight, bias)
    assert float((mixed - wanted).abs().max()) <= CLOSE * float(wanted.abs().max())


@needs_kernels
@pytest.mark.parametrize("classes", [1, 3, 8])
@pytest.mark.parametrize("size", [(5, 9, 13), (31, 17)])
def test_convolution_of_each_voxel(classes: int, size: tuple[int, ...], times: int) -> None:
    channels = 24 * times
    image, norm = 3 + random(2, channels, *size), kernels.Norm(random(channels), random(channels), eps=1e-5, slope=0.1)
    weight, bias = random(classes, channels, *(1,) * len(size)), random(classes)
    convolve = functional.conv2d if len(size) == 2 else functional.conv3d
    for constant in (bias, None):
        exact = None if constant is None else constant.double()
        for given, plain in (
            (image, image.double()),
            (kernels.compute_norm(image, norm), exactly_normed(image.double(), norm)),
        ):
            wanted, got = convolve(plain, weight.double(), exact), direct.convolve_pointwise(given, weight, constant)
            assert got.is_contiguous(memory_format=layout(got))
            assert float((got - wanted).abs().max()) <= CLOSE * float(wanted.abs().max())


@needs_kernels
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize(
    ("size", "kernel"), [((5, 9, 13), (3, 3, 3)), ((3, 18, 5), (1, 3, 3)), ((17, 31), (3, 3)), ((1, 1, 1), (3, 3, 3))]
)
def test_convolution_of_few_channels(channels: int, size: tuple[int, ...], kernel: tuple[int, ...], times: int) -> None:
    outputs = 32 * times
    image, weight, bias = random(2, channels, *size), random(outputs, channels, *kernel), random(outputs)
    for constant in (bias, None):
        wanted, got = exactly([image], weight, constant), direct.convolve_few_channels(image, weight, constant)
        assert got.is_contiguous(memory_format=layout(got))
        assert float((got - wanted).abs().max()) <= CLOSE * float(wanted.abs().max())
    if max(size) > 1:
        norm = kernels.Norm(random(outputs), None, eps=1e-5, slope=0.01)
        found, normed = direct.convolve_few_channels_and_norm(image, weight, bias, norm), exactly([image], weight, bias)
        wanted = exactly_normed(normed, norm)
        assert float((found.apply_inplace() - wanted).abs().max()) <= 10 * CLOSE * float(wanted.abs().max())


@needs_kernels
@pytest.mark.parametrize(
    ("size", "stride"), [((3, 5, 13), (2, 2, 2)), ((3, 4, 5), (1, 2, 2)), ((7, 11), (2, 2)), ((4, 1, 1), (3, 1, 4))]
)
def test_up_sampling(size: tuple[int, ...], stride: tuple[int, ...], times: int) -> None:
    channels, outputs = 24 * times, 48 * times
    image, weight, bias = random(2, channels, *size), random(channels, outputs, *stride), random(outputs)
    convolve = functional.conv_transpose2d if len(size) == 2 else functional.conv_transpose3d
    for constant in (bias, None):
        exact = None if constant is None else constant.double()
        wanted, got = convolve(image.double(), weight.double(), exact, stride), direct.upsample(image, weight, constant)
        assert got.is_contiguous(memory_format=layout(got))
        assert got.shape == wanted.shape
        assert float((got - wanted).abs().max()) <= CLOSE * float(wanted.abs().max())


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="other systems' torch may have another OpenMP")
def test_torchs_team_of_threads_is_found() -> None:
    assert compiled._gomp_parallel() is not None


@needs_kernels
@pytest.mark.parametrize("team", ["torch's", "none"])
@pytest.mark.usefixtures("times")
def test_no_bit_depends_on_threads_or_on_the_other_samples(team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if team == "none":
        monkeypatch.setattr(compiled, "_gomp_parallel", lambda: None)
    image, weight, deep = random(3, 16, 11, 22, 18), random(32, 16, 3, 3, 3), random(1024, 16, 1, 3, 3)
    before = torch.get_num_threads()

    def results(given: Tensor) -> list[Tensor]:
        return [
            kernels.convolve([given], weight, None),
            kernels.convolve([given], weight, None, (2, 2, 2)),
            kernels.convolve([given], deep, None),
            kernels.instance_norm(given, PLAIN),
            kernels.convolve_and_norm([kernels.compute_norm(given, PLAIN)], weight, None, PLAIN).apply_inplace(),
            direct.convolve_pointwise(kernels.compute_norm(given, PLAIN), weight[:3, :, :1, :1, :1], None),
            direct.convolve_few_channels_and_norm(given[:, :2], weight[:, :2], None, PLAIN).apply_inplace(),
            direct.upsample(given, weight.transpose(0, 1)[..., :2, :2, :2], None),
        ]

    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(image))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))
    for alone, among in zip(results(image[1:2]), found[0], strict=True):
        assert torch.equal(alone, among[1:2])


def test_layers_with_too_few_jobs_for_many_threads_are_torchs() -> None:
    weight, image = torch.zeros(16, 16, 3, 3, 3), torch.zeros(1, 16, 16, 16, 16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 8, 9):
            torch.set_num_threads(threads)
            found.append(kernels.supports(weight, image, [16], (1,) * (image.ndim - 2)))
    finally:
        torch.set_num_threads(before)
    assert found == [True, True, False]


@needs_kernels
@pytest.mark.parametrize("size", [(2, 1), (5, 7), (40, 30), (3, 20, 41)])
@pytest.mark.parametrize(("slope", "affine"), [(1.0, True), (0.01, True), (0.2, False)])
def test_instance_norm(size: tuple[int, ...], slope: float, affine: bool, times: int) -> None:
    channels = 40 * times
    offset = random(1, channels, *(1,) * len(size)) * 100
    image = random(2, channels, *size) * random(2, channels, *(1,) * len(size)) + offset
    weight, bias = (random(channels, 2)[:, 1], random(1).expand(channels)) if affine else (None, None)
    factors = [None if each is None else each.double() for each in (weight, bias)]
    wanted = functional.instance_norm(image.double(), weight=factors[0], bias=factors[1], eps=1e-5)
    wanted = functional.leaky_relu(wanted, slope)
    got = kernels.instance_norm(image, kernels.Norm(weight, bias, 1e-5, slope))
    # What float32 keeps of a value of 100 is what the norm can tell.
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=2e-3)
    near = image - offset
    torch.testing.assert_close(
        kernels.instance_norm(near, kernels.Norm(weight, bias, 1e-5, slope)),
        functional.leaky_relu(functional.instance_norm(near, weight=weight, bias=bias, eps=1e-5), slope),
        rtol=1e-4,
        atol=1e-4,
    )
    overwritten = image.contiguous(memory_format=layout(image))
    kernels.instance_norm(overwritten, kernels.Norm(weight, bias, 1e-5, slope), in_place=True)
    assert torch.equal(overwritten, got)


@needs_kernels
@pytest.mark.parametrize("size", [(5, 7), (3, 20, 41)])
@pytest.mark.parametrize("slope", [1.0, 0.01])
def test_instance_norm_in_bf16_is_that_of_float32_rounded_once(size: tuple[int, ...], slope: float, times: int) -> None:
    channels = 40 * times
    image, weight, bias = (random(2, channels, *size) * 3 + 1).bfloat16(), random(channels), random(channels)
    got = kernels.instance_norm(image, kernels.Norm(weight, bias, 1e-5, slope))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, kernels.instance_norm(image.float(), kernels.Norm(weight, bias, 1e-5, slope)).bfloat16())
    overwritten = image.contiguous(memory_format=layout(image))
    kernels.instance_norm(overwritten, kernels.Norm(weight, bias, 1e-5, slope), in_place=True)
    assert torch.equal(overwritten, got)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_value_breaks_its_channel_alone(dtype: torch.dtype, times: int) -> None:
    image = random(1, 8 * times, 6, 6).to(dtype)
    image[0, 3, 2, 2] = float("nan")
    got = kernels.instance_norm(image, kernels.Norm(None, None, 1e-5, 0.01))
    assert torch.isnan(got).flatten(2).all(2).tolist() == [[channel == 3 for channel in range(8 * times)]]
    assert torch.isfinite(got[:, :3]).all()


@needs_kernels
def test_a_constant_channel_becomes_its_bias(times: int) -> None:
    channels = 8 * times
    image = torch.full((1, channels, 9, 50, 40), 1234.5)
    norm = kernels.Norm(torch.ones(channels), torch.full((channels,), 0.25), 1e-5, 0.01)
    got = kernels.instance_norm(image, norm)
    torch.testing.assert_close(got, torch.full_like(got, 0.25), rtol=0, atol=1e-6)


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_without_a_library_there_are_none(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        for name in compiled._LIBRARIES:
            (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert compiled.libraries.__wrapped__() == ()


@needs_kernels
def test_without_the_narrowest_vectors_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Or layers with few channels would be asked of kernels that cannot compute them.
    for name in list(compiled._LIBRARIES)[1:]:
        shutil.copy(compiled.FOLDER / name, tmp_path)
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert compiled.libraries.__wrapped__() == ()


@needs_kernels
def test_vectors_are_as_wide_as_all_channels_allow() -> None:
    widths = [each.lanes for each in compiled.libraries()]
    assert widths == ([16, 8] if torch.backends.cpu.get_cpu_capability() == "AVX512" else [8])
    for channels, fit in (((), widths), ((32, 48), widths), ((32, 8), [8]), ((8,), [8]), ((32, 12), [])):
        found = compiled.library(*channels)
        assert (None if found is None else found.lanes) == (fit[0] if fit else None)
