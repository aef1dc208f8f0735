"""Components given as Python objects: what is stored, what trains, what is said, and how it predicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.given import GivenObject, reference_to
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.inference.models.model_folder import load_predictor
from segwright.training.checkpointing.resume import resumed_config
from segwright.training.config import TrainConfig, changed
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import make, settings


class Small(nn.Module):
    """Two convolutions; with `extra` it returns its features beside the logits."""

    def __init__(
        self,
        num_input_channels: int,
        num_output_channels: int,
        *,
        patch_size: tuple[int, ...],
        deep_supervision: bool,
        width: int = 4,
        extra: str = "",
    ) -> None:
        super().__init__()
        self.first = nn.Conv3d(num_input_channels, width, 3, padding=1)
        self.head = nn.Conv3d(width, num_output_channels, 1)
        self.extra = extra

    def forward(self, data: Tensor) -> Any:
        features = self.first(data).relu()
        logits = self.head(features)
        return {"": logits, "dict": {"logits": logits, "features": features}, "pair": (logits, features)}[self.extra]


def small(num_input_channels: int, num_output_channels: int, **kwargs: Any) -> nn.Module:
    return Small(num_input_channels, num_output_channels, **kwargs)


def squares(output: Tensor, target: Tensor, *, labels: Any, weight: float = 1.0) -> Tensor:
    return weight * (output.float().softmax(1)[:, 1:] - (target == 1).float()).square().mean()


class Squares(nn.Module):
    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, output: Tensor, target: Tensor, *, labels: Any) -> Tensor:
        return squares(output, target, labels=labels) * self.weight


def closures() -> dict[str, Any]:
    """The same components in forms that no file can name."""
    made = Small(1, 3, patch_size=(16,) * 3, deep_supervision=False)
    return {
        "network": [lambda *args, **kwargs: small(*args, **kwargs), made],
        "loss": [lambda output, target, *, labels: squares(output, target, labels=labels), Squares()],
        "optimizer": [lambda params, *, lr, weight_decay: torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)],
        "schedule": [lambda progress: 1.0 - progress],
        "sampler": [lambda identifiers, rng: identifiers[0]],
        "callbacks": [[lambda trainer: None]],
    }


CLOSURES = [(name, index) for name, values in closures().items() for index in range(len(values))]


@pytest.mark.parametrize(
    ("name", "value"), [("network", small), ("network", Small), ("loss", squares), ("loss", Squares)]
)
def test_what_a_file_can_name_is_stored_as_a_reference(tmp_path: Path, name: str, value: Any) -> None:
    config = settings(num_epochs=1, **{name: value})
    assert getattr(config, name) == f"{__name__}:{value.__name__}"
    by_reference = make(tmp_path / "reference", config=settings(num_epochs=1, **{name: reference_to(value)}))
    trainer = make(tmp_path / "object", config=config)
    for each in (trainer, by_reference):
        each.run_training()
    assert not any("Python object" in note for note in trainer.notes)
    assert trainer.logbook.column("train_losses") == by_reference.logbook.column("train_losses")


@pytest.mark.parametrize(("name", "index"), CLOSURES)
def test_what_no_file_can_name_trains_and_says_so_once(tmp_path: Path, name: str, index: int) -> None:
    trainer = make(tmp_path, config=settings(num_epochs=1, **{name: closures()[name][index]}))
    trainer.run_training()
    said = [line for line in (tmp_path / "fold_0" / "training.log").read_text().splitlines() if "Python object" in line]
    assert len(said) == 1
    assert f"{name}: the model folder cannot name the Python object" in said[0]
    assert ("load_model(path, network=...)" in said[0]) == (name == "network")


def predictor_of(model: Path, network: Any) -> Any:
    return load_predictor(model, device="cpu", trust=CodeTrust(network=network))


@pytest.mark.parametrize("index", [0, 1])
def test_a_network_that_no_file_can_name_predicts_when_it_is_given_again(tmp_path: Path, index: int) -> None:
    folder = tmp_path / "model"
    trainer = make(folder, config=settings(num_epochs=1, network=closures()["network"][index]))
    trainer.run_training()
    with pytest.raises(ModelError, match="files cannot hold the Python object .*pass it again from Python"):
        load_predictor(folder, device="cpu")
    data = torch.randn(1, 16, 16, 16)
    found = predictor_of(folder, closures()["network"][index]).predict_preprocessed(data.numpy())
    again = predictor_of(folder, Small).predict_preprocessed(data.numpy())
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(again))


def test_a_network_given_for_a_built_in_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(folder, config=settings(num_epochs=1)).run_training()
    with pytest.raises(ConfigError, match="the network is the built-in .*leave out network="):
        predictor_of(folder, Small)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "network 'python-object:int' cannot be called; give a function"),
        ("nets:small", "network='nets:small': expected the function or class itself"),
        (Trainer, "not that of a trainer class; give it as network="),
        (squares, r"squares': got an unexpected keyword argument 'patch_size'; it is called as fn\(num_input_channels"),
        (lambda inputs, heads, **kwargs: Small(inputs, heads, **{**kwargs, "width": 7}), "use the network, plans and "),
    ],
)
def test_a_wrong_network_to_load_is_told(small_model: Path, given: Any, words: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=words):
        predictor_of(small_model, given)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make(folder, config=settings(num_epochs=1, network=small, network_kwargs={"width": 4})).run_training()
    return folder


def test_a_made_module_replaces_a_function_with_arguments(small_model: Path) -> None:
    predictor_of(small_model, Small(1, 3, patch_size=(16,) * 3, deep_supervision=False))


def test_a_network_with_lazy_layers_trains_as_a_further_fold(tmp_path: Path) -> None:
    def build(inputs: int, outputs: int, *, patch_size: Any, deep_supervision: bool) -> nn.Module:
        return nn.LazyConv3d(outputs, 1)

    make(tmp_path, config=settings(network=build), output_folder=tmp_path / "fold_1").on_train_start()
    trainer = make(tmp_path, config=settings(network=build))
    trainer.initialize()
    assert trainer.network.weight.shape[1] == trainer.num_input_channels


def test_another_network_of_one_name_is_refused_as_a_fold(small_model: Path) -> None:
    def fold(width: int) -> Trainer:
        config = settings(network=lambda *args, **kwargs: small(*args, width=width, **kwargs))
        return make(small_model, config=config, fold=1, output_folder=small_model / "fold_1")

    with pytest.raises(ModelError, match=r"'first.weight' is \(4, 1, 3, 3, 3\) there, \(5, 1, .* here.*--name NAME"):
        fold(5).initialize()
    fold(4).initialize()


def local_trainer(**members: Any) -> type[Trainer]:
    """A trainer class in a function, which no file can name."""
    return type("LocalTrainer", (Trainer,), {"__qualname__": "f.<locals>.LocalTrainer", **members})


def build(plans: Any, configuration: Any, inputs: int, heads: int, deep: bool = True) -> nn.Module:
    return Small(inputs, heads, patch_size=(16,) * 3, deep_supervision=deep)


def test_a_trainer_class_that_no_file_can_name_trains_and_predicts(tmp_path: Path) -> None:
    cls = local_trainer(build_network_architecture=staticmethod(build))
    folder = tmp_path / "model"
    trainer = make(folder, cls, config=settings(num_epochs=1))
    trainer.run_training()
    assert any("trainer: the model folder cannot name" in note for note in trainer.notes)
    data = torch.randn(1, 16, 16, 16).numpy()
    by_class, by_network = (predictor_of(folder, given) for given in (cls, Small))
    torch.testing.assert_close(by_class.predict_preprocessed(data), by_network.predict_preprocessed(data))


class Extra(Trainer):
    """Its network returns features beside the logits."""

    @staticmethod
    def logits_of(output: Any) -> Any:
        return output["logits"] if isinstance(output, dict) else output[0]


class ExtraLoss(Extra):
    def build_loss(self) -> Callable[[Any, Any], Tensor]:
        plain, self.sizes = super().build_loss(), []

        def loss(output: Any, target: Any) -> Tensor:
            self.sizes.append(tuple(output["features"].shape))
            return plain(output, target) + 1e-3 * output["features"].square().mean()

        return loss


@pytest.mark.parametrize("extra", ["dict", "pair"])
def test_a_network_with_extra_outputs_trains_validates_and_predicts(tmp_path: Path, extra: str) -> None:
    plain = make(tmp_path / "plain", config=settings(network=Small))
    folder = tmp_path / "model"
    trainer = make(folder, Extra, config=settings(network=Small, network_kwargs={"extra": extra}))
    for each in (plain, trainer):
        each.run_training()
    assert trainer.logbook.column("train_losses") == plain.logbook.column("train_losses")
    assert trainer.logbook.column("mean_fg_dice") == plain.logbook.column("mean_fg_dice")
    assert json.loads((folder / "fold_0" / "checkpoint_final.json").read_text())["network"]["logits_of"].endswith(
        "Extra.logits_of"
    )
    trust = TRUST_NONE.with_references(f"{__name__}:Small", f"{__name__}:Extra")
    found = load_predictor(folder, device="cpu", trust=trust)
    data = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        expected = trainer.network(data[None])
    assert found.predict_preprocessed(data.numpy()).shape == (3, 16, 16, 16)
    torch.testing.assert_close(found.networks[0](data[None]), Extra.logits_of(expected))
    with pytest.raises(ModelError, match=r"trainer '.*Extra.rebuild_network', which is code"):
        load_predictor(folder, device="cpu", trust=TRUST_NONE.with_references(f"{__name__}:Small"))


def test_an_error_in_logits_of_is_not_blamed_on_the_network(tmp_path: Path) -> None:
    cls = local_trainer(logits_of=staticmethod(lambda output: output["segmentation"]))
    with pytest.raises(ConfigError, match="logits_of failed with KeyError: 'segmentation'") as error:
        make(tmp_path, cls, config=settings(network=Small, network_kwargs={"extra": "dict"})).initialize()
    assert "strides" not in str(error.value)


def test_extra_outputs_reach_the_loss(tmp_path: Path) -> None:
    trainer = make(tmp_path, ExtraLoss, config=settings(num_epochs=1, network=Small, network_kwargs={"extra": "dict"}))
    trainer.run_training()
    assert set(trainer.sizes) == {(3, 4, 16, 16, 16)}


def test_objects_survive_a_change_of_other_settings_and_a_resume(tmp_path: Path) -> None:
    loss = closures()["loss"][0]
    config = settings(loss=loss)
    assert changed(config, num_epochs=7).loss.value is loss  # type: ignore[union-attr]
    trainer = make(tmp_path, config=config)
    trainer.on_train_start()
    checkpoint = tmp_path / "fold_0" / "checkpoint_latest.safetensors"
    with pytest.raises(ModelError, match="loss: files cannot hold the Python object .*lambda.*pass it again"):
        make(tmp_path, config=TrainConfig()).load_checkpoint(checkpoint)
    resumed = make(tmp_path, config=settings(loss=loss))
    resumed.load_checkpoint(checkpoint)
    resumed.run_training()


def test_a_resumed_setting_carries_the_object_that_was_given_again() -> None:
    from tests.unit.training.checkpointing.test_checkpoints import state

    loss = closures()["loss"][0]
    before = state(config=settings(loss=loss))
    resumed = resumed_config(TrainConfig(loss=loss), before, Path("c"))
    assert isinstance(resumed.loss, GivenObject)
    assert resumed.loss.value is loss


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"network": 5}, "network: .*expected a name, 'module:attr', or a function, class or object, not 5"),
        ({"loss": [squares]}, "loss: .*expected a name"),
        ({"loss": squares, "loss_kwargs": {"wait": 2}}, "with {'wait': 2}: got an unexpected keyword argument 'wait'"),
        (
            {"loss": lambda output, target: output.sum()},
            r"takes \(output, target\), but is called as fn\(output, target, \*, labels, .*'labels'",
        ),
        ({"loss_kwargs": {"weight": 2}}, "for a loss of one's own; 'dice_ce' takes none"),
        ({"loss": lambda *, labels: 0}, r"takes \(\*, labels\), but is called"),
        ({"loss": object()}, "is not callable; name a function fn"),
        ({"sampler": lambda identifiers, rng: "a", "sampler_kwargs": {"k": 1}}, "sampler .* with {'k': 1}: got"),
        (
            {"sampler": lambda identifiers: "a"},
            r"takes \(identifiers\), but is called as fn\(identifiers, rng",
        ),
        ({"sampler": Squares}, r"Squares' is a class; give a function fn\(identifiers, rng, .* or an object"),
        ({"augmentation_kwargs": {"k": 1}}, "augmentation recipe 'default' .* with {'k': 1}: got"),
        ({"network": "mypkg_nets.build"}, "unknown network .*is written 'mypkg_nets:build', built-in ones are unet"),
        ({"network": closures()["network"][1], "network_kwargs": {"width": 2}}, "{'width': 2} have no effect"),
        ({"network": Small, "network_kwargs": {"extra": "dict"}}, r"returned dict .*says in its logits_of\(output\)"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=1)},
            "is already made, of other parameters; give its ",
        ),
        (
            {"optimizer": lambda params, *, lr, weight_decay: (torch.optim.SGD(params, lr=lr), None)},
            r"tuple \(SGD, NoneType\); .* alone \(a scheduler comes from configure_optimizers",
        ),
        ({"network": lambda inputs: None}, "it is called as fn"),
        ({"network": lambda *args, **kwargs: "net"}, "returned str; it must return a torch.nn.Module"),
        ({"optimizer": lambda params, **kwargs: None}, "returned NoneType; it must return a torch.optim.Optimizer"),
        ({"callbacks": [object()]}, "has none of the methods"),
        ({"callbacks": [type("Three", (), {"on_epoch_end": 3})]}, "on_epoch_end is 3, expected a method on_epoch_end"),
    ],
)
def test_a_mistake_is_told_with_the_repair(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=words):
        trainer = make(tmp_path, config=settings(**values))
        trainer.initialize()
        trainer.get_dataloaders()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"build_loss": lambda self: None}, "build_loss returned a NoneType; it must return"),
        ({"build_loss": lambda self: Squares}, "build_loss returned the class Squares, not made"),
    ],
)
def test_a_mistake_in_a_hook_is_told_with_the_repair(tmp_path: Path, members: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(tmp_path, local_trainer(**members), config=settings(network=Small)).initialize()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            lambda output, target: output.square().mean((1, 2, 3, 4)),
            r"returned a tensor of shape \(3,\); it must",
        ),
        (lambda output, target: 3.0, "returned a float; it must return a scalar tensor"),
        (
            lambda output, target, labels: output.sum(),
            r"TypeError.*labels.*called as fn\(output, target\).*list of",
        ),
        (lambda output, target: output.nothing, "AttributeError: 'Tensor' object has no attribute 'nothing'"),
    ],
)
def test_a_loss_of_build_loss_that_fails_is_told_with_its_line(tmp_path: Path, loss: Any, words: str) -> None:
    trainer = make(tmp_path, local_trainer(build_loss=lambda self: loss), config=settings(network=Small))
    with pytest.raises(ConfigError, match=words) as error:
        trainer.run_training()
    assert str(error.value).startswith(f"{__file__}:{loss.__code__.co_firstlineno}: ")


@pytest.mark.parametrize("given", [squares, Squares])
def test_arguments_of_a_loss_are_passed(tmp_path: Path, given: Any) -> None:
    losses = []
    for weight in (1.0, 2.0):
        config = settings(num_epochs=1, loss=given, loss_kwargs={"weight": weight}, initial_lr=1e-9)
        trainer = make(tmp_path / str(weight), config=config)
        trainer.run_training()
        losses.append(trainer.logbook.value("train_losses"))
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-4)  # type: ignore[operator]
