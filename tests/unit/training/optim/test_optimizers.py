"""Optimisers: fused updates equal torch's plain ones, steps without a finite gradient are skipped, states resume."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from segwright.core.errors import ConfigError, ModelError
from segwright.training.config import TrainConfig
from segwright.training.optim.optimizers import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    update,
)
from segwright.training.optim.rates import LearningRates


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
    optimizer = build_optimizer(ours, TrainConfig())
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
    norm = update(build_optimizer(layer, TrainConfig()), layer, clip_norm=12)
    torch.testing.assert_close(norm, before)
    after = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]).norm()
    assert float(after) == pytest.approx(12, rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_step_with_a_broken_gradient_changes_nothing(bad: float, fused: bool) -> None:
    layer, untouched = network(), network()
    optimizer = (
        build_optimizer(layer, TrainConfig()) if fused else torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    )
    other = (
        build_optimizer(untouched, TrainConfig())
        if fused
        else torch.optim.SGD(untouched.parameters(), lr=0.01, momentum=0.9)
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


def test_restored_optimizer_continues_exactly() -> None:
    first = network()
    optimizer = build_optimizer(first, TrainConfig())
    give_gradients(first, 0)
    update(optimizer, first, clip_norm=12)
    second = network()
    second.load_state_dict(first.state_dict())
    restored = build_optimizer(second, TrainConfig())
    restore_optimizer(restored, second, *optimizer_tensors(optimizer, first))
    for layer, one in ((first, optimizer), (second, restored)):
        give_gradients(layer, 1)
        update(one, layer, clip_norm=12)
    torch.testing.assert_close(weights(second), weights(first), rtol=0, atol=0)


KINDS: list[dict[str, Any]] = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "adam"},
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "optimizer_kwargs": {"amsgrad": True}},
    {"optimizer": "adam", "optimizer_kwargs": {"fused": False}},
    {"optimizer": "torch.optim:RMSprop"},
    {"optimizer": "torch.optim:NAdam"},
]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    gradients=st.lists(st.one_of(st.integers(0, 99), st.just(None)), min_size=1, max_size=6),
    data=st.data(),
)
def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    kind: dict[str, Any], gradients: list[int | None], data: st.DataObject
) -> None:
    """Steps whose gradient is not finite (None) among them; the state goes through a file."""
    stop = data.draw(st.integers(0, len(gradients)))
    config = TrainConfig.from_mapping(kind)
    straight, broken = network(), network()
    steady, optimizer = build_optimizer(straight, config), build_optimizer(broken, config)
    for step, seed in enumerate(gradients):
        if step == stop:
            other = network(7)
            other.load_state_dict(broken.state_dict())
            tensors, values = optimizer_tensors(optimizer, broken)
            tensors, values = load(save(tensors)), json.loads(json.dumps(values))
            broken, optimizer = other, build_optimizer(other, config)
            restore_optimizer(optimizer, broken, tensors, values)
        for layer, one in ((straight, steady), (broken, optimizer)):
            give_gradients(layer, seed or 0, factor=float("nan") if seed is None else 1.0)
            for group in one.param_groups:
                group["lr"] = 0.01 / (step + 1)
            update(one, layer, clip_norm=12)
    torch.testing.assert_close(weights(broken), weights(straight), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_steps_equal_torch_s_plain_ones(name: str) -> None:
    ours, plain = network(), network()
    optimizer = build_optimizer(ours, TrainConfig(optimizer=name, initial_lr=1e-3))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    reference = kind(plain.parameters(), lr=1e-3, weight_decay=3e-5, foreach=False)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(plain, step)
        update(optimizer, ours, clip_norm=12)
        reference.step()
    torch.testing.assert_close(weights(ours), weights(plain))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_step_with_a_broken_gradient_changes_nothing(name: str) -> None:
    layer, untouched = network(), network()
    config = TrainConfig(optimizer=name)
    optimizer, other = build_optimizer(layer, config), build_optimizer(untouched, config)
    for step in range(3):
        give_gradients(layer, 9, factor=float("inf"))
        update(optimizer, layer, clip_norm=12)
        give_gradients(layer, step)
        give_gradients(untouched, step)
        update(optimizer, layer, clip_norm=12)
        update(other, untouched, clip_norm=12)
    torch.testing.assert_close(weights(layer), weights(untouched), rtol=0, atol=0)


def test_nesterov_can_be_switched_off() -> None:
    assert build_optimizer(network(), TrainConfig(nesterov=False)).param_groups[0]["nesterov"] is False


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.decoder = nn.Linear(2, 2)


def test_learning_rate_groups_scale_and_freeze_the_longest_name_first() -> None:
    layer = Net()
    config = TrainConfig(lr_groups={"encoder": 0.1, "encoder.0": 0, "decoder.bias": 2})
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = build_optimizer(
        layer, TrainConfig.from_mapping({**config.model_dump(), "momentum": 0, "weight_decay": 0})
    )
    LearningRates(optimizer).set(50)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    update(optimizer, layer, clip_norm=1e9)
    moved = {name: float((before[name] - after).detach().mean()) for name, after in layer.named_parameters()}
    expected = {"encoder.0": 0, "encoder.1": 0.05, "decoder.weight": 0.5, "decoder.bias": 1.0}
    for name, distance in moved.items():
        wanted = next(value for prefix, value in expected.items() if name.startswith(prefix))
        assert distance == pytest.approx(wanted, abs=1e-6)
    assert not layer.encoder[0].weight.requires_grad


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"lr_groups": {"encodr": 0.1}},
            "'encodr' is not a module or parameter of the network; did you mean 'encoder'",
        ),
        ({"lr_groups": {"enc": 0.1}}, "'enc' is not a module"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'; did you mean 'sgd'"),
        ({"optimizer": "adam", "optimizer_kwargs": {"beta": 1}}, "unexpected keyword argument 'beta'"),
        ({"optimizer": "builtins:print"}, "it is called as fn"),
        ({"optimizer": f"{__name__}:weights"}, "it is called as fn"),
    ],
)
def test_wrong_optimizer_or_group_is_refused_with_the_remedy(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_optimizer(Net(), TrainConfig.from_mapping(values))


def test_network_that_is_frozen_as_a_whole_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter to train"):
        build_optimizer(Net(), TrainConfig(lr_groups={"encoder": 0, "decoder": 0}))


def test_negative_factor_is_refused_when_the_settings_are_made() -> None:
    with pytest.raises(ConfigError, match=r"lr_groups: .*factor of 'encoder' is -1.0"):
        TrainConfig.from_mapping({"lr_groups": {"encoder": -1}})


@pytest.mark.parametrize(
    ("name", "words"), [("gone", "which the network does not"), ("weight", r"has shape \(5,\), the parameter \(2, 3\)")]
)
def test_state_of_another_network_is_refused(name: str, words: str) -> None:
    layer = network()
    with pytest.raises(ModelError, match=words):
        restore_optimizer(build_optimizer(layer, TrainConfig()), layer, {f"momentum_buffer/{name}": torch.zeros(5)}, {})


def test_the_rate_of_each_group_is_scaled() -> None:
    layer = network()
    optimizer = torch.optim.SGD([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 1.0}], lr=0.1)
    LearningRates(optimizer).set(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter to train"):
        build_optimizer(network().requires_grad_(False), TrainConfig())
