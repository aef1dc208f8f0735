"""The moving average of the weights: its formula, skipped steps, resuming, and its use in a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segwright.core.errors import ConfigError, ModelError
from segwright.inference.models.model_folder import load_predictor
from segwright.training.checkpointing.checkpoints import checkpoint_file
from segwright.training.config import TrainConfig
from segwright.training.loading.batches import Batch
from segwright.training.optim.ema import WeightAverage, applied, attach, split_tensors
from segwright.training.optim.optimizers import build_optimizer, update
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import make, settings

NAN = float("nan")


def network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return layers


def values(layers: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in layers.state_dict().items()}


def train(layers: nn.Module, optimizer: torch.optim.Optimizer, seeds: list[int], *, broken: bool = False) -> None:
    for seed in seeds:
        data = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        (layers(data * NAN if broken else data) ** 2).sum().backward()
        update(optimizer, layers, clip_norm=1.0)


@pytest.mark.parametrize("optimizer_name", ["sgd", "adam", "torch.optim:RMSprop"])
def test_average_is_the_formula_s(optimizer_name: str) -> None:
    layers = network()
    optimizer = build_optimizer(layers, TrainConfig(optimizer=optimizer_name))
    average = attach(layers, optimizer, 0.4)
    assert average is not None
    expected: dict[str, Tensor] = {}
    for step in range(12):
        train(layers, optimizer, [step])
        decay = min(0.4, step / (step + 9))
        for name, now in values(layers).items():
            old = expected.get(name, now)
            expected[name] = old + (1 - decay) * (now - old) if now.is_floating_point() else now
    with applied(average):
        torch.testing.assert_close(values(layers), expected)


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw", "torch.optim:RMSprop"])
def test_step_that_is_not_finite_never_touches_the_average(optimizer_name: str) -> None:
    layers = network()
    optimizer = build_optimizer(layers, TrainConfig(optimizer=optimizer_name))
    average = attach(layers, optimizer, 0.9)
    assert average is not None
    train(layers, optimizer, [0, 1, 2])
    before = {name: tensor.clone() for name, tensor in average.tensors().items()}
    train(layers, optimizer, [3, 4], broken=True)
    assert not torch.isfinite(layers.state_dict()["1.running_mean"]).all()
    torch.testing.assert_close(average.tensors(), before, rtol=0, atol=0)


def test_weights_are_restored_after_the_block_even_after_an_error() -> None:
    layers = network()
    optimizer = build_optimizer(layers, TrainConfig())
    average = attach(layers, optimizer, 0.9)
    train(layers, optimizer, [0, 1, 2, 3])
    before = values(layers)
    with pytest.raises(RuntimeError, match="mine"), applied(average):
        assert not torch.equal(values(layers)["0.weight"], before["0.weight"])
        raise RuntimeError("mine")
    torch.testing.assert_close(values(layers), before, rtol=0, atol=0)


def test_average_of_another_network_is_refused() -> None:
    average = WeightAverage(network(), 0.9)
    with pytest.raises(ModelError, match="do not fit the network"):
        average.restore(WeightAverage(nn.Linear(2, 2), 0.9).tensors())


def test_tensors_of_optimizer_and_average_are_separated() -> None:
    mine = WeightAverage(network(), 0.9).tensors()
    optimizer, average = split_tensors({"momentum_buffer/0.weight": torch.zeros(1), **mine})
    assert list(optimizer) == ["momentum_buffer/0.weight"]
    assert average.keys() == mine.keys()


def test_without_a_decay_there_is_no_average() -> None:
    layers = network()
    optimizer = build_optimizer(layers, TrainConfig())
    assert attach(layers, optimizer, None) is None


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_decay_is_between_0_and_1(decay: float) -> None:
    with pytest.raises(ConfigError, match="ema_weights"):
        TrainConfig.from_mapping({"ema_weights": decay})


class Killed(Exception):
    """Stands for the end of the process."""


class Dying(Trainer):
    """Saves and ends after three steps; one step of a training is broken."""

    lives = 99

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        if self.lives == 0:
            self.save_checkpoint("latest")
            raise Killed
        self.lives -= 1
        if self.current_step == 1:
            batch["data"][0] = NAN
        return super().train_step(batch)


def run(folder: Path, **changes: Any) -> Trainer:
    config = settings(ema_weights=0.5, num_epochs=3, **changes)
    trainer = make(folder, Dying, config=config)
    trainer.run_training()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "initial_lr": 1e-3, "schedule": "warmup+cosine"}])
def test_resumed_training_has_the_average_of_an_uninterrupted_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight = run(tmp_path / "straight", **changes)
    config = settings(ema_weights=0.5, num_epochs=3, **changes)
    killed = make(tmp_path / "killed", Dying, config=config)
    killed.lives = 3
    with pytest.raises(Killed):
        killed.run_training()
    resumed = make(tmp_path / "killed", Dying, config=config)
    resumed.load_checkpoint(checkpoint_file(resumed.output_folder, "latest"))
    resumed.run_training()
    found, expected = (load_file(checkpoint_file(one.output_folder, "final")) for one in (resumed, straight))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert resumed.logbook.column("val_losses") == straight.logbook.column("val_losses")
    assert straight.logbook.column("skipped_steps") == [1, 0, 0]


@pytest.mark.slow
def test_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", Dying, config=settings(num_epochs=3))
    plain.run_training()
    averaged = run(tmp_path / "averaged")
    assert averaged.logbook.column("train_losses") == plain.logbook.column("train_losses")
    assert averaged.logbook.column("val_losses") != plain.logbook.column("val_losses")
    final = load_file(checkpoint_file(averaged.output_folder, "final"))
    other = load_file(checkpoint_file(plain.output_folder, "final"))
    assert not all(torch.equal(final[name], other[name]) for name in other)
    torch.testing.assert_close(final, {name: averaged.network.state_dict()[name] for name in final}, rtol=0, atol=0)


@pytest.mark.slow
def test_batch_norm_is_trained_stored_and_predicted_with(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=settings(norm="batch", ema_weights=0.9))
    trainer.run_training()
    assert any(isinstance(module, nn.BatchNorm3d) for module in trainer.network.modules())
    document = json.loads(checkpoint_file(trainer.output_folder, "final").with_suffix(".json").read_text())
    assert document["network"]["kwargs"]["norm_op"].endswith("BatchNorm3d")
    predictor = load_predictor(tmp_path, device="cpu")
    rebuilt = predictor.networks[0].state_dict()
    assert "running_mean" in " ".join(rebuilt)
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        torch.testing.assert_close(predictor.networks[0].eval()(image), trainer.network(image))


@pytest.mark.parametrize(
    ("network_name", "norm"), [("residual-unet", "batch"), ("unet", "instance"), (None, "instance")]
)
def test_norm_reaches_the_built_in_networks(tmp_path: Path, network_name: str | None, norm: str) -> None:
    trainer = make(tmp_path, config=settings(norm=norm, network=network_name))
    trainer.initialize()
    kinds = {type(module).__name__ for module in trainer.network.modules() if "Norm" in type(module).__name__}
    assert kinds == {{"batch": "BatchNorm3d", "instance": "InstanceNorm3d"}[norm]}


def test_norm_of_a_network_of_one_s_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="norm = 'batch' is for built-in networks; network 'mine:build' chooses"):
        make(tmp_path, config=settings(norm="batch", network="mine:build")).initialize()
