"""Components of one's own at work, by command line and from Python: the sentences of `docs/how-to/extend.md`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from journeys import Journey, call, small_work

import segwright
from segwright.core.errors import ConfigError, DatasetError, ModelError
from segwright.workspace import Workspace

FEW = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
FOLD = ("--config", "3d_fullres", "--fold", "0", "--device", "cpu", "--iterations", "2", "--batch-size", "2")
FOLD += ("--set", "num_val_iterations_per_epoch=1")

COMPONENTS = """
import json
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau
import segwright
from segwright.augmentation.recipe import build_recipe

used = set()

def build(num_input_channels, num_output_channels, *, patch_size, deep_supervision, width=4):
    used.add(f"network {width}")
    return nn.Sequential(nn.Conv3d(num_input_channels, width, 3, padding=1), nn.Conv3d(width, num_output_channels, 1))

def focal(output, target, *, labels, gamma=1):
    used.add(f"loss {gamma}")
    return (F.cross_entropy(output, target[:, 0].long(), reduction="none") ** gamma).mean()

def sample(identifiers, rng, *, first=3):
    used.add(f"sampler {first}")
    return str(rng.choice(identifiers[:first]))

def recipe(patch_size, *, masked_channels, keep=False):
    used.add(f"augmentation {keep}")
    return build_recipe("default", patch_size, masked_channels=masked_channels).without("mirror")

def optimizer(params, *, lr, weight_decay, momentum=0.0):
    used.add(f"optimizer {momentum}")
    return SGD(params, lr=lr, weight_decay=weight_decay, momentum=momentum)

def schedule(progress):
    used.add("schedule")
    return 1 - progress / 2

class Watch:
    def on_train_step_end(self, trainer):
        used.add("callbacks")

class Metrics:
    def __init__(self, folder):
        pass

    def log(self, metrics, step):
        used.add("loggers")

    def close(self):
        used.add("loggers closed")

class Groups(segwright.Trainer):
    num_epochs = 3

    def on_train_epoch_end(self, steps):
        super().on_train_epoch_end(steps)
        with open(self.output_folder / "rates.jsonl", "a") as stream:
            stream.write(json.dumps(self.rates.now()) + "\\n")

    def configure_optimizers(self):
        first, *others = self.network.parameters()
        return AdamW([{"params": [first], "lr": 1e-4}, {"params": others, "lr": 1e-3}])

class Plateau(Groups):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return optimizer, ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=1e9)

class PerStep(Plateau):
    scheduler_steps = "step"
"""

KWARGS: dict[str, Any] = {
    "network_kwargs": {"width": 6},
    "loss_kwargs": {"gamma": 2},
    "sampler_kwargs": {"first": 2},
    "augmentation_kwargs": {"keep": True},
    "optimizer_kwargs": {"momentum": 0.5},
}
NAMES = {
    "network": "build",
    "loss": "focal",
    "sampler": "sample",
    "augmentation": "recipe",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "callbacks": "Watch",
    "loggers": "Metrics",
}
USED = {"network 6", "loss 2", "sampler 2", "augmentation True", "optimizer 0.5", "schedule", "callbacks", "loggers"}
USED |= {"loggers closed"}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of the current folder."""
    (tmp_path / "components.py").write_text(COMPONENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("components")
    sys.modules.pop("components", None)


@pytest.fixture
def work(journey: Journey, tmp_path: Path) -> Path:
    return small_work(journey, tmp_path / "work")


def model_of(work: Path, name: str) -> Path:
    [model] = work.glob(f"results/*/{name}__*")
    return model


def lines_of(model: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (model / "fold_0" / name).read_text().splitlines()]


def losses(model: Path) -> list[float]:
    return [row["train_losses"] for row in lines_of(model, "metrics.jsonl")]


def without_name(function: Any) -> Any:
    """Return a function that no file can name."""
    return lambda *arguments, **named: function(*arguments, **named)


@pytest.mark.slow
def test_every_component_works_by_its_name_and_as_an_object(journey: Journey, work: Path, mine: ModuleType) -> None:
    options = [f"{name}=components:{value}" for name, value in NAMES.items()]
    options += [f"{name}={json.dumps(value)}" for name, value in KWARGS.items()]
    settings = [word for option in options for word in ("--set", option)]
    train = ("--work", work, "train", journey.dataset, *FOLD, "--epochs", "2", "--name", "by-command", *settings)
    trained = call(*train)
    assert trained.exit_code == 0, trained.output
    assert mine.used == USED
    functions = {name: getattr(mine, value) for name, value in NAMES.items()}
    closures = {**{name: without_name(value) for name, value in functions.items()}, "callbacks": [mine.Watch()]}
    for name, given in (("functions", functions), ("closures", closures)):
        mine.used.clear()
        found = segwright.train(
            journey.dataset,
            workspace=Workspace.under(work),
            configuration="3d_fullres",
            fold=0,
            device="cpu",
            name=name,
            settings={**FEW, **KWARGS, **given},
        )
        assert mine.used == USED
        assert losses(found.model) == losses(model_of(work, "by-command"))


@pytest.mark.slow
@pytest.mark.usefixtures("mine")
def test_rates_of_groups_and_a_plateau_scheduler_by_command_line(journey: Journey, work: Path) -> None:
    for name in ("Groups", "Plateau"):
        trained = call("--work", work, "train", journey.dataset, *FOLD, "--trainer", f"components:{name}")
        assert trained.exit_code == 0, trained.output
    factors = [(1 - epoch / 3) ** 0.9 for epoch in range(3)]
    for name, expected in (("Groups", factors), ("Plateau", [1, 0.5, 0.25])):
        found = lines_of(model_of(work, name), "rates.jsonl")
        assert found == [pytest.approx([1e-4 * factor, 1e-3 * factor]) for factor in expected]
    refused = call("--work", work, "train", journey.dataset, *FOLD, "--trainer", "components:PerStep")
    assert (refused.exit_code, "ReduceLROnPlateau needs the validation loss" in refused.stderr) == (1, True)
    assert not [*work.glob("results/*/PerStep__*/fold_0/checkpoint*")]


LOAD = """
import sys
import components, numpy, segwright
model = segwright.load_model(sys.argv[1], network=lambda *a, **k: components.build(*a, **k), device="cpu")
print(model.predict(numpy.zeros((20, 20, 20), "float32"), spacing=(1, 1, 1)).shape)
"""


@pytest.mark.slow
def test_a_lambda_predicts_in_another_process_that_passes_it_again(
    journey: Journey, work: Path, mine: ModuleType, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"workspace": Workspace.under(work), "configuration": "3d_fullres", "device": "cpu"}
    options |= {"settings": FEW, "name": "lambda"}
    model = segwright.train(journey.dataset, fold=0, network=without_name(mine.build), **options).model
    refused = call("predict", "--model", model, "-i", journey.dataset / "imagesTs", "-o", tmp_path / "out")
    assert refused.exit_code == 1
    assert "network: files cannot hold the Python object" in refused.stderr
    source = str(Path(segwright.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(model)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((source, str(tmp_path)))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout == "(20, 20, 20)\n", found.stderr
    with pytest.raises(ModelError, match=r"another network \('0.weight' is .* there, .* here\).*--name NAME"):
        wider = without_name(lambda *arguments, **named: mine.build(*arguments, **named, width=7))
        segwright.train(journey.dataset, fold=1, network=wider, **options)


def test_what_cannot_be_a_trainer_of_a_dataset_is_told(journey: Journey, work: Path) -> None:
    class OldInit(segwright.Trainer):
        def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any) -> None:
            """Take nnU-Net's arguments alone."""

    where: dict[str, Any] = {"workspace": Workspace.under(work), "device": "cpu"}
    with pytest.raises(ConfigError, match="its __init__ must accept the arguments of Trainer's and pass them on"):
        OldInit.for_dataset(journey.dataset, "3d_fullres", **where)
    with pytest.raises(DatasetError, match="fold '0': expected a number such as 0, or 'all'"):
        segwright.Trainer.for_dataset(journey.dataset, "3d_fullres", fold="0", **where)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name 3: expected text, not int"):
        segwright.Trainer.for_dataset(journey.dataset, "3d_fullres", name=3, **where)
    refused = call("--work", work, "train", journey.dataset, *FOLD, "--network", "components.build")
    assert refused.exit_code == 1
    assert "is written 'components:build', built-in ones are unet" in refused.stderr
