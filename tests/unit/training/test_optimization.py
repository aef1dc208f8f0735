"""The update of the weights: equal to torch's plain one, skipped where a gradient is not finite, resumable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import ModelError
from segwright.training.config import TrainConfig
from segwright.training.optimization import build_sgd, optimizer_tensors, restore_optimizer, set_learning_rate, update


def network(seed: int = 0) -> nn.Linear:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return layer


def give_gradients(layer: nn.Module, seed: int, factor: float = 1.0) -> None:
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.grad = factor * noise


def weights(layer: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in layer.parameters()]


def test_fused_steps_equal_torch_s_plain_ones() -> None:
    ours, plain = network(), network()
    optimizer = build_sgd(ours, TrainConfig())
    reference = torch.optim.SGD(
        plain.parameters(), lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5, foreach=False
    )
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(plain, step)
        update(optimizer, ours, clip_norm=12)
        reference.step()
    torch.testing.assert_close(weights(ours), weights(plain))


def test_gradient_is_clipped_over_all_parameters_and_its_norm_returned() -> None:
    layer = network()
    give_gradients(layer, 1, factor=100)
    before = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]).norm()
    norm = update(build_sgd(layer, TrainConfig()), layer, clip_norm=12)
    torch.testing.assert_close(norm, before)
    after = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]).norm()
    assert float(after) == pytest.approx(12, rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_step_with_a_broken_gradient_changes_nothing(bad: float, fused: bool) -> None:
    layer, untouched = network(), network()
    optimizer = build_sgd(layer, TrainConfig()) if fused else torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    other = (
        build_sgd(untouched, TrainConfig()) if fused else torch.optim.SGD(untouched.parameters(), lr=0.01, momentum=0.9)
    )
    for step in range(3):
        if step == 1 or (step == 0 and fused):
            give_gradients(layer, 9, factor=bad)
            update(optimizer, layer, clip_norm=12)
        give_gradients(layer, step)
        give_gradients(untouched, step)
        update(optimizer, layer, clip_norm=12)
        update(other, untouched, clip_norm=12)
    torch.testing.assert_close(weights(layer), weights(untouched), rtol=0, atol=0)


def test_restored_optimizer_goes_on_as_if_it_had_not_stopped() -> None:
    first = network()
    optimizer = build_sgd(first, TrainConfig())
    give_gradients(first, 0)
    update(optimizer, first, clip_norm=12)
    second = network()
    second.load_state_dict(first.state_dict())
    restored = build_sgd(second, TrainConfig())
    restore_optimizer(restored, second, *optimizer_tensors(optimizer, first))
    for layer, one in ((first, optimizer), (second, restored)):
        give_gradients(layer, 1)
        update(one, layer, clip_norm=12)
    torch.testing.assert_close(weights(second), weights(first), rtol=0, atol=0)


def test_adam_s_counters_survive_too() -> None:
    first, second = network(), network()
    optimizers = [torch.optim.AdamW(layer.parameters(), lr=0.01) for layer in (first, second)]
    give_gradients(first, 0)
    update(optimizers[0], first, clip_norm=12)
    second.load_state_dict(first.state_dict())
    restore_optimizer(optimizers[1], second, *optimizer_tensors(optimizers[0], first))
    for layer, one in zip((first, second), optimizers, strict=True):
        give_gradients(layer, 1)
        update(one, layer, clip_norm=12)
    torch.testing.assert_close(weights(second), weights(first), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "words"), [("gone", "which the network does not"), ("weight", r"has shape \(5,\), the parameter \(2, 3\)")]
)
def test_state_of_another_network_is_refused(name: str, words: str) -> None:
    layer = network()
    with pytest.raises(ModelError, match=words):
        restore_optimizer(build_sgd(layer, TrainConfig()), layer, {f"momentum_buffer/{name}": torch.zeros(5)}, {})


def test_learning_rate_is_set_for_all_groups() -> None:
    layer = network()
    optimizer = torch.optim.SGD([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 1.0}], lr=0.1)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter to train"):
        build_sgd(network().requires_grad_(False), TrainConfig())
