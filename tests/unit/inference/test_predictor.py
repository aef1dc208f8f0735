"""The sliding window on networks whose answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import ImageError, ModelError
from segwright.data.images.image_io import Volume
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor
from segwright.inference.window.sliding import Window, window_planes
from segwright.inference.window.tile_planes import TileCount
from segwright.inference.window.tiling import HALF_QUANTUM
from segwright.networks.build import build_network
from segwright.preprocessing.pipeline import NetworkImage

CPU = torch.device("cpu")


class Pointwise(nn.Module):
    """Each voxel's logits depend on that voxel alone, so tiling must not show."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1] * self.gain, x[:, :1] ** 2], dim=1)


class Ramp(nn.Module):
    """Weights voxels by their place along the first spatial axis: sees in which direction it looks."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[2], dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 3))
        return torch.cat([x * places, x], dim=1)


class Fixed(nn.Module):
    """Gives what it was told to, whatever it sees."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def window_logits(
    networks: nn.Module | Sequence[nn.Module],
    image: NetworkImage,
    patch_size: tuple[int, ...],
    num_heads: int = 2,
    *,
    mirror_axes: tuple[int, ...] = (),
    batch: int | None = None,
) -> Tensor:
    """Return the logits (H, *S) of a whole image in float32."""
    window = Window(patch_size=patch_size, device=CPU, mirror_axes=mirror_axes, precision="fp32", batch=batch)
    members = [networks] if isinstance(networks, nn.Module) else networks
    return torch.cat([planes.logits for planes in window_planes(members, image, num_heads, window=window)], dim=1)


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(13, 9, 17), (3, 20, 5), (8, 8, 8)])
@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8)])
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_tiles_and_padding_leave_no_trace(shape: tuple[int, ...], patch: tuple[int, ...], batch: int | None) -> None:
    data = image(*shape)
    axes = tuple(range(len(patch)))
    logits = window_logits(Pointwise(), data, patch, mirror_axes=axes, batch=batch)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.numpy(), np.concatenate([data, data**2]), rtol=1e-5, atol=1e-6)


def test_mirroring_averages_over_the_flips_of_the_patch() -> None:
    data = image(4, 4, 4)
    logits = window_logits(Ramp(), data, (4, 4, 4), mirror_axes=(0, 2), batch=2)
    # A ramp 0..3 and its mirror image have the mean 1.5 everywhere.
    np.testing.assert_allclose(logits[0].numpy(), data[0] * 1.5, rtol=1e-5)
    plain = window_logits(Ramp(), data, (4, 4, 4))
    np.testing.assert_allclose(plain[0].numpy(), data[0] * np.arange(4)[:, None, None], rtol=1e-5, atol=1e-7)


def test_mirror_axes_of_a_2d_patch_count_from_the_patch() -> None:
    data = image(3, 4, 4)
    logits = window_logits(Ramp(), data, (4, 4), mirror_axes=(0,))
    np.testing.assert_allclose(logits[0].numpy(), data[0] * 1.5, rtol=1e-5)


def test_several_networks_are_averaged_as_logits() -> None:
    data = image(10, 8, 8)
    logits = window_logits([Pointwise(1.0), Pointwise(4.0)], data, (8, 8, 8))
    np.testing.assert_allclose(logits[0].numpy(), data[0] * 2.5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_batching_does_not_change_the_answer_of_a_real_network(plan: Plan, dims: int) -> None:
    block = plan.configurations[{2: "2d", 3: "3d_fullres"}[dims]]["architecture"]
    network = build_network(block, 1, 3, deep_supervision=False)
    first, second = (
        window_logits(
            network,
            image(9, 12, 11),
            (8,) * dims,
            3,
            mirror_axes=tuple(range(dims)),
            batch=batch,
        )
        for batch in (1, 24)
    )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [1, 2])
def test_the_window_may_roll_along_any_axis(plan: Plan, axis: int) -> None:
    network = build_network(plan.configurations["3d_fullres"]["architecture"], 1, 3, deep_supervision=False)
    window = Window(patch_size=(8, 8, 8), device=CPU, mirror_axes=(0, 1), precision="fp32")
    data = image(5, 12, 19)
    first, other = (
        torch.cat([planes.logits for planes in window_planes([network], data, 3, window=window, axis=at)], dim=1)
        for at in (0, axis)
    )
    torch.testing.assert_close(first, other.movedim(1, axis + 1), rtol=1e-4, atol=1e-5)


def test_logits_beyond_the_range_of_half_precision_give_their_labels() -> None:
    """nnU-Net adds up ten times a logit in float16, whose largest number is 65504."""
    data = np.sign(image(12, 12, 12)) * 6e4

    class Extreme(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, -x], dim=1)

    window = Window(patch_size=(8, 8, 8), device=CPU, mirror_axes=(0, 1, 2), precision="fp32", quantum=HALF_QUANTUM)
    logits = torch.cat([planes.logits for planes in window_planes([Extreme()], data, 2, window=window)], dim=1)
    np.testing.assert_allclose(logits[0].numpy(), data[0], rtol=1e-5)
    np.testing.assert_array_equal(logits.argmax(0).numpy(), data[0] < 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", ["CTNormalization", "NoNormalization"])
def test_a_case_with_nan_or_inf_is_refused_whatever_normalisation_makes_of_it(
    plan: Plan, scheme: str, value: float
) -> None:
    array = image(9, 9, 9)
    array[0, 4, 4, 4] = value
    configuration = plan.configuration("3d_fullres").model_copy(update={"normalization_schemes": (scheme,)})
    labels = Labels.from_dataset_json({"labels": {"background": 0, "one": 1}})
    predictor = Predictor([Pointwise()], plan, configuration, labels, device=CPU)
    with pytest.raises(ImageError, match="the image holds NaN or infinite"):
        predictor.predict_case(Volume(array=array, spacing=(1.5, 1.5, 1.5), properties={}))


def test_a_tensor_gives_what_its_array_gives() -> None:
    data = image(9, 9, 9)
    first, second = (window_logits(Pointwise(), given, (8, 8, 8)) for given in (data, torch.from_numpy(data)))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_network_in_training_is_evaluated_and_goes_back() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Dropout(0.5))
    network.train()
    first, second = (window_logits(network, image(8, 8, 8), (8, 8, 8)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert network.training


def test_the_result_can_be_changed_by_its_owner(make_model: Callable[..., Path]) -> None:
    logits = load_predictor(make_model(0), device="cpu").predict_preprocessed(image(8, 8, 8))
    logits += 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_nan_or_inf_is_refused(value: float) -> None:
    data = image(8, 8, 8)
    data[0, 1, 2, 3] = value
    with pytest.raises(ImageError, match="NaN or infinite"):
        window_logits(Pointwise(), data, (8, 8, 8))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Fixed(torch.zeros(1, 5, 8, 8, 8)), r"gave \(1, 5, 8, 8, 8\), expected logits of shape \(1, 2, 8, 8, 8\)"),
        (Fixed(torch.full((1, 2, 8, 8, 8), torch.inf)), "NaN or infinite logits"),
    ],
)
def test_a_network_that_fails_is_named(network: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        window_logits(network, image(8, 8, 8), (8, 8, 8))


def test_mirror_axes_beyond_the_patch_are_refused() -> None:
    with pytest.raises(ModelError, match="mirror axes"):
        window_logits(Pointwise(), image(8, 8, 8), (8, 8), mirror_axes=(2,))


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_a_case_comes_back_on_its_own_grid(plan: Plan, name: str) -> None:
    """With permuted axes, a crop and resampling in between, an asymmetric structure stays where it is."""
    labels = Labels.from_dataset_json({"labels": {"background": 0, "bright": 1}})
    array = np.full((1, 24, 32, 40), 10.0, dtype=np.float32)
    array[0, :, :, :4] = 0
    array[0, 4:16, 6:24, 12:36] = 200
    volume = Volume(array=array, spacing=(1.2, 1.0, 1.1), properties={})

    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.full_like(x, 105), x], dim=1)

    configuration = plan.configuration(name).model_copy(update={"normalization_schemes": ("NoNormalization",)})
    predictor = Predictor([Brightness()], plan, configuration, labels, device=CPU, mirror_axes=(0, 1), precision="fp32")
    prediction = predictor.predict_case(volume, probabilities=True)
    assert prediction.labels.dtype == np.uint8
    assert prediction.probabilities is not None
    truth = array[0] > 100
    overlap = 2 * (truth & (prediction.labels == 1)).sum() / (truth.sum() + (prediction.labels == 1).sum())
    assert overlap > 0.93
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(prediction.probabilities.argmax(0), prediction.labels)
    assert (prediction.probabilities[0, :, :, :4] == 1).all()


def test_plain_float32_sums_are_had_by_the_window(make_model: Callable[..., Path]) -> None:
    """As docs/how-to/predict.md tells."""
    model = load_predictor(make_model(0), device="cpu", precision="fp32")
    data = image(13, 9, 17)
    plain = window_logits(model.networks, data, (8, 8, 8), 3, mirror_axes=(0, 1, 2))
    rounded = model.predict_preprocessed(data)
    model.window = replace(model.window, quantum=0.0)
    torch.testing.assert_close(model.predict_preprocessed(data), plain, rtol=1e-5, atol=1e-5)
    assert (rounded - plain).abs().max() > 1e-3


class Counting(nn.Module):
    """A convolution that sees its neighbours, and counts the tiles it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(1, 2, 3, padding=1)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch", [1, 5])
def test_tiles_of_one_value_are_computed_once_and_change_nothing(batch: int) -> None:
    data = np.full((1, 40, 24, 24), -1.0, dtype=np.float32)
    data[0, 2:10, 2:10, 2:10] = np.random.default_rng(0).normal(size=(8, 8, 8))
    data[0, 32:] = 0.5
    found, passes, counts = [], [], []
    for reuse in (False, True):
        network, count = Counting(), TileCount()
        window = Window(patch_size=(8, 8, 8), device=CPU, precision="fp32", batch=batch, reuse=reuse)
        planes = [part.logits for part in window_planes([network], data, 2, window=window, count=count)]
        found.append(torch.cat(planes, dim=1))
        passes.append(network.seen)
        counts.append(count)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    assert passes[0] == counts[0].tiles == counts[1].tiles
    assert counts[0].reused == 0
    assert passes[1] == counts[1].tiles - counts[1].reused
    assert counts[1].reused > 0.7 * counts[1].tiles


@pytest.mark.parametrize(
    ("patch", "heads", "device", "batch"),
    [
        ((40, 56, 40), 3, "cpu", 11),
        ((256, 256), 3, "cpu", 16),
        ((64, 64, 64), 3, "cpu", 2),
        ((48, 96, 80), 3, "cpu", 2),
        ((96, 96, 96), 3, "cpu", 1),
        ((64, 64, 64), 105, "cpu", 1),
        ((64, 64, 64), 3, "cuda", 16),
    ],
)
def test_large_patches_are_few_at_once_on_the_cpu(patch: tuple[int, ...], heads: int, device: str, batch: int) -> None:
    assert Window(patch_size=patch, device=torch.device(device)).forward_batch(heads) == batch
