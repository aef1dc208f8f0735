"""The Triton kernels on the CPU, in Triton's interpreter: run by `test_fused_norm.py` in a process that has it on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from segwright.networks import build
from segwright.networks import norm as norms
from segwright.networks.build import build_network, has_fused_norms
from segwright.networks.gpu import fused_norm as fused
from segwright.networks.gpu import kernels, self_check
from segwright.networks.norm import (
    InstanceNorm3d,
    forbid_fused_norms,
    fuse_norms,
    norm_add_leaky_relu,
    norm_leaky_relu,
)
from tests.unit.training.tiny_task import make, settings

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [(2, 5, 7, 3), (1, 5, 3, 7, 5), (1, 67, 2, 3, 3), (2, 1, 1, 9)]
"""Odd sizes, in 2D and 3D; the second has two parts of two tiles, 67 channels are two blocks."""

FAST = [
    *((torch.float32, shape, True, True) for shape in SHAPES),
    (torch.float32, SHAPES[1], False, False),
    (torch.bfloat16, SHAPES[0], False, True),
    (torch.bfloat16, SHAPES[1], True, False),
]
"""What `make test` runs of all combinations of dtype, shape, affine, and residual."""


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide small images into parts, too; each program takes the interpreter 20 ms."""
    monkeypatch.setattr(fused, "_TILE", 256)
    monkeypatch.setattr(fused, "_MAX_PARTS", 2)


@pytest.fixture
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_TILE", 4096)


@pytest.fixture
def _small_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_SHAPES", SHAPES[:2])
    self_check.works_on.cache_clear()


def noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    if len(shape) > 1:
        values = values.contiguous(memory_format=[torch.channels_last, torch.channels_last_3d][len(shape) - 4])
    return values.to(dtype).requires_grad_()


def plain(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float
) -> Tensor:
    """Compute with torch what the kernels compute."""
    out = functional.instance_norm(x, weight=weight, bias=bias, eps=eps)
    return functional.leaky_relu(out if residual is None else out + residual, slope)


@pytest.mark.parametrize(
    ("dtype", "shape", "affine", "has_residual"),
    [
        pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
        for case in product(TOLERANCE, SHAPES, [False, True], [False, True])
    ],
)
def test_values_and_all_gradients_equal_torchs(
    dtype: torch.dtype, shape: tuple[int, ...], affine: bool, has_residual: bool
) -> None:
    x, residual, upstream = (noise(shape, seed, dtype) for seed in range(3))
    weight, bias = (noise(shape[1:2], seed) for seed in (3, 4))
    inputs = [x, *([weight, bias] if affine else []), *([residual] if has_residual else [])]
    options = (*((weight, bias) if affine else (None, None)), residual if has_residual else None, 1e-5, 0.01)
    out = fused.fused_norm(x, *options)
    assert out.dtype == dtype
    expected = plain(x.float(), *(each.float() if isinstance(each, Tensor) else each for each in options))
    results = (out, *torch.autograd.grad(out, inputs, upstream))
    wanted = (expected, *torch.autograd.grad(expected, inputs, upstream.float()))
    tolerance = TOLERANCE[dtype]
    for got, right, source in zip(results, wanted, [x, *inputs], strict=True):
        assert got.dtype == source.dtype
        largest = float(right.detach().abs().max())
        torch.testing.assert_close(got.float(), right.float(), rtol=tolerance, atol=tolerance * largest)


def test_without_leaky_relu_it_is_the_norm() -> None:
    x, weight, bias = noise(SHAPES[1], 0), noise((5,), 1), noise((5,), 2)
    out = fused.fused_norm(x, weight, bias, None, 1e-5, 1.0)
    torch.testing.assert_close(out, plain(x, weight, bias, None, 1e-5, 1.0), rtol=1e-5, atol=1e-5)


def test_default_tiles_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(SHAPES[1], 0)
    small = fused.fused_norm(x, None, None, None, 1e-5, 0.01)
    monkeypatch.undo()
    torch.testing.assert_close(fused.fused_norm(x, None, None, None, 1e-5, 0.01), small, rtol=1e-6, atol=1e-6)


def test_a_large_mean_loses_no_digits() -> None:
    x = torch.randn((1, 2, 9, 11, 13), generator=torch.Generator().manual_seed(0)) + 1000
    out = fused.fused_norm(x, None, None, None, 1e-5, 1.0)
    expected = functional.instance_norm(x.double())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-4)


def test_contiguous_images_and_gradients_are_taken() -> None:
    x, residual, upstream = (noise(SHAPES[1], seed) for seed in range(3))
    flat, flat_residual = (each.detach().contiguous().requires_grad_() for each in (x, residual))
    out = fused.fused_norm(flat, None, None, flat_residual, 1e-5, 0.01)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    expected = fused.fused_norm(x, None, None, residual, 1e-5, 0.01)
    assert torch.equal(out, expected)
    got = torch.autograd.grad(out, [flat, flat_residual], upstream.contiguous())
    wanted = torch.autograd.grad(expected, [x, residual], upstream)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.slow
def test_results_are_the_same_every_time_and_in_inference() -> None:
    x, weight, bias = noise(SHAPES[2], 0, torch.bfloat16), noise((67,), 1), noise((67,), 2)
    out = fused.fused_norm(x, weight, bias, None, 1e-5, 0.01)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused.fused_norm(x, weight, bias, None, 1e-5, 0.01), out)


@pytest.mark.slow
def test_autocast_does_not_change_the_gradients() -> None:
    x, weight, bias = noise(SHAPES[2], 0, torch.bfloat16), noise((67,), 1), noise((67,), 2)
    plain_grads = torch.autograd.grad(fused.fused_norm(x, weight, bias, None, 1e-5, 0.01).sum(), [x, weight, bias])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fused.fused_norm(x, weight, bias, None, 1e-5, 0.01)
    grads = torch.autograd.grad(out.sum(), [x, weight, bias])
    assert all(torch.equal(one, other) for one, other in zip(grads, plain_grads, strict=True))


def test_saved_for_the_backward_pass_are_image_parameters_and_statistics() -> None:
    x, weight, bias, residual = noise(SHAPES[1], 0), noise((5,), 1), noise((5,), 2), noise(SHAPES[1], 3)
    out = fused.fused_norm(x, weight, bias, None, 1e-5, 0.01)
    saved = [each for each in out.grad_fn.saved_tensors if each is not None]  # type: ignore[union-attr]
    assert [tuple(each.shape) for each in saved] == [tuple(x.shape), (5,), (5,), (1, 2, 5)]
    summed = fused.fused_norm(x, weight, bias, residual, 1e-5, 0.01)
    kept = summed.grad_fn.saved_tensors[-1]  # type: ignore[union-attr]
    assert kept.data_ptr() == summed.data_ptr()  # what the next convolution keeps anyway


def test_frozen_parts_get_no_gradient() -> None:
    x, weight, bias = noise(SHAPES[1], 0).detach(), noise((5,), 1).requires_grad_(False), noise((5,), 2)
    fused.fused_norm(x, weight, bias, None, 1e-5, 0.01).sum().backward()
    assert (x.grad, weight.grad) == (None, None)
    assert bias.grad is not None


def architecture(dims: int = 3, *, residual: bool) -> dict[str, Any]:
    """Return a plan's architecture block of two stages."""
    kwargs = {
        "n_stages": 2,
        "features_per_stage": [4, 6],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * 2,
        "strides": [[1] * dims, [2] * dims],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": [2, 2],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def network(dims: int = 3, *, residual: bool = False) -> nn.Module:
    built = build_network(architecture(dims, residual=residual), 1, 2, deep_supervision=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.parameters():  # some norms start at zero, which hides the residual blocks
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return built


def train(net: nn.Module, steps: int = 2) -> list[float]:
    """Return the losses of a few steps."""
    dims = next(weight.ndim - 2 for weight in net.parameters() if weight.ndim > 1)
    x = noise((1, 1, 4, 6, 4)[: dims + 2], 0).detach()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@dataclass
class Calls:
    """Counts the calls of `fused_norm`, all and those with a residual."""

    total: int = 0
    with_residual: int = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()

    def counting(x: Tensor, weight: Any, bias: Any, residual: Tensor | None, *rest: float) -> Tensor:
        counted.total += 1
        counted.with_residual += residual is not None
        return fused.fused_norm(x, weight, bias, residual, *rest)

    monkeypatch.setattr(norms, "fused_norm", counting)
    return counted


@pytest.mark.usefixtures("_small_self_check", "_large_tiles")
@pytest.mark.parametrize(
    ("dims", "residual", "expected"), [pytest.param(2, True, (11, 4), marks=pytest.mark.slow), (3, False, (5, 0))]
)
def test_networks_train_to_the_same_loss(calls: Calls, dims: int, residual: bool, expected: tuple[int, int]) -> None:
    wanted = train(network(dims, residual=residual))
    assert calls.total == 0
    net = network(dims, residual=residual)
    assert fuse_norms(net, torch.float32)
    assert train(net) == pytest.approx(wanted, rel=1e-4)
    assert (calls.total / 2, calls.with_residual / 2) == expected


@pytest.mark.usefixtures("_small_self_check")
def test_other_dtypes_and_single_voxels_are_left_to_torch(calls: Calls) -> None:
    norm = InstanceNorm3d(5, affine=True)
    assert fuse_norms(norm, torch.float32)
    norm(noise(SHAPES[1], 0, torch.bfloat16))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm_leaky_relu(norm, torch.zeros(1, 5, 1, 1, 1), 0.01)
    assert calls.total == 0


@pytest.mark.usefixtures("_small_self_check")
def test_a_sum_before_a_negative_slope_is_left_to_torch(calls: Calls) -> None:
    norm = InstanceNorm3d(5, affine=True)
    assert fuse_norms(norm, torch.float32)
    x, residual = noise(SHAPES[1], 0), noise(SHAPES[1], 1)
    out = norm_add_leaky_relu(norm, x, residual, -0.1)
    assert calls.with_residual == 0
    torch.testing.assert_close(out, plain(x, norm.weight, norm.bias, residual, norm.eps, -0.1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_self_check", "_large_tiles")
def test_a_block_with_a_hook_shows_what_it_computes(calls: Calls) -> None:
    net = network(2, residual=True)
    seen: list[Tensor] = []
    for module in net.modules():
        if hasattr(module, "conv2"):
            module.conv2.register_forward_hook(lambda module, inputs, out: seen.append(out))
    x = noise((2, 1, 4, 6), 0).detach()
    net(x)
    assert fuse_norms(net, torch.float32)
    net(x)
    assert calls.with_residual == 0
    half = len(seen) // 2
    for plainly, fusedly in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(fusedly, plainly, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_small_self_check")
def test_it_can_be_forbidden() -> None:
    net = InstanceNorm3d(5, affine=True)
    assert fuse_norms(net, torch.float32)
    assert has_fused_norms(net)
    forbid_fused_norms(net)
    assert not has_fused_norms(net)
    assert not fuse_norms(net, torch.float32)


class Planted:
    """A kernel that raises, or whose output is then scaled."""

    def __init__(self, kernel: Any, index: int, error: Exception | None = None) -> None:
        self.kernel, self.index, self.error = kernel, index, error

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            if self.error is not None:
                raise self.error
            self.kernel[grid](*arguments, **options)
            arguments[self.index].mul_(1.001)

        return launch


@pytest.mark.parametrize(
    ("name", "index", "error", "reason"),
    [
        ("normalize", 6, None, "results differ by 1.0e-03, where 1e-05 is allowed"),
        ("input_gradient", 7, None, "results differ by 1.0e-03"),
        ("gradient_sums", 6, None, "results differ by"),
        ("moments", 1, RuntimeError("PassManager::run failed\nat line 3"), "RuntimeError: PassManager::run failed"),
    ],
)
@pytest.mark.usefixtures("_small_self_check")
def test_a_failure_falls_back_with_one_line_and_trains_to_the_same_loss(
    name: str,
    index: int,
    error: Exception | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = train(network())
    monkeypatch.setattr(kernels, name, Planted(getattr(kernels, name), index, error))
    net = network()
    with caplog.at_level(logging.INFO):
        assert not fuse_norms(net, torch.float32)
        assert not fuse_norms(network(), torch.float32)
    (line,) = caplog.messages
    assert line.startswith("torch's own instance norm is used on cpu, not the fused one: ")
    assert reason in line
    assert "\n" not in line
    assert train(net) == wanted


def losses_of_a_training(folder: Path, **changes: Any) -> list[Any]:
    """Return training and validation loss of a short training on the tiny task."""
    config = settings(
        num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1, precision="fp32", **changes
    )
    trainer = make(folder, config=config)
    trainer.run_training()
    assert has_fused_norms(trainer.network) == (folder.name == "fused")
    return [*trainer.logbook.column("train_losses"), *trainer.logbook.column("val_losses")]


@pytest.mark.slow
@pytest.mark.usefixtures("_small_self_check")
def test_a_training_has_the_same_losses_with_it_without_it_and_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    monkeypatch.setattr(fused, "_TILE", 2**16)
    wanted = losses_of_a_training(tmp_path / "on the CPU")
    monkeypatch.setattr(build, "CUDA", "cpu")
    assert losses_of_a_training(tmp_path / "switched off", fused_norm=False) == wanted
    assert calls.total == 0
    assert losses_of_a_training(tmp_path / "fused") == pytest.approx(wanted, rel=1e-4)
    assert calls.total > 0
    monkeypatch.setattr(kernels, "normalize", Planted(kernels.normalize, 6))
    self_check.works_on.cache_clear()
    assert losses_of_a_training(tmp_path / "wrong kernel") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("has_residual", [False, True])
def test_custom_operations_keep_torchs_rules(has_residual: bool) -> None:
    x, weight, bias = noise(SHAPES[1], 0), noise((5,), 1), noise((5,), 2)
    residual = noise(SHAPES[1], 3) if has_residual else None
    torch.library.opcheck(fused._FORWARD_OP, (x, weight, bias, residual, 1e-5, 0.01))
    stats = fused._forward(x.detach(), weight, bias, residual, 1e-5, 0.01)[1]
    tensors = (each.detach() for each in (x, x, weight, bias, stats))
    torch.library.opcheck(fused._BACKWARD_OP, (*tensors, None if residual is None else x.detach(), 0.01))


@pytest.mark.slow
@pytest.mark.usefixtures("_small_self_check")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_network_is_one_graph_and_trains_to_the_same_loss(calls: Calls, backend: str) -> None:
    wanted = train(network(2, residual=True))
    net = network(2, residual=True)
    assert fuse_norms(net, torch.float32)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    assert train(compiled) == pytest.approx(wanted, rel=1e-4)
