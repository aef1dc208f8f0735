"""Errors in user code are reported with file, line and message first, and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from journeys import Journey, call, small_work

SHORT = ("--config", "3d_fullres", "--fold", "0", "--device", "cpu", "--epochs", "1", "--iterations", "1")
SHORT += ("--batch-size", "2", "--set", "num_val_iterations_per_epoch=1")

HEAD = """
import torch
from torch import nn
from segwright.training.trainer import Trainer

class Own(Trainer):
"""

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x):
        {forward}
        return self.layer(x)

def build(inputs, outputs, *, patch_size, deep_supervision):
    {build}
    return Net(inputs, outputs)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)


def line_of(file: Path, text: str) -> int:
    return next(number for number, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def require_told(journey: Journey, project: Path, text: str, place: str, *options: str, words: str = "") -> None:
    file = project / "mine.py"
    file.write_text(text)
    result = call("--work", small_work(journey, project / "work"), "train", journey.dataset, *SHORT, *options)
    assert result.exit_code == 1, result.output
    [error] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {file}:{line_of(file, place)}: "), error
    assert words in error
    assert "bug in segwright" not in result.stderr


@pytest.mark.parametrize(
    ("body", "place", "words"),
    [
        ("    number = undefined_name\n", "undefined_name", "NameError: name 'undefined_name' is not defined"),
        ("    def on_epoch_end(self):\n        undefined_name\n", "undefined_name", "NameError"),
        (
            "    def __init__(self, *a, **k):\n        super().__init__(*a, **k)\n        1 / 0\n",
            "1 / 0",
            "ZeroDivision",
        ),
        ("    def train_step(self, batch):\n        return batch['nothing']\n", "['nothing']", "KeyError: 'nothing'"),
        (
            "    def __init__(self):\n        pass\n",
            "def __init__",
            "its __init__ must accept the arguments",
        ),
        ("    def train_step(self, batch):\n        return 3.0\n", "def train_step", "train_step returned float"),
        (
            "    def train_step(self, batch):\n        return {'loss': super().train_step(batch)['loss'].item()}\n",
            *("def train_step", "returned float as 'loss'"),
        ),
        (
            "    def configure_optimizers(self):\n        return [super().configure_optimizers()] * 3\n",
            *("def configure_optimizers", "returned list (SGD, SGD, SGD); it must return a torch.optim.Optimizer"),
        ),
        ("    def on_epoch_strat(self):\n        pass\n", "on_epoch_strat", "did you mean the method 'on_epoch_start'"),
        (
            "    inital_lr = 1\n    def f(self):\n        pass\n",
            "def f",
            "did you mean the attribute 'initial_lr'",
        ),
        ("    def logits_of(self, output):\n        return output\n", "def logits_of", "must be a static method"),
        ("    def train_step(self):\n        pass\n", "def train_step", "but is called as train_step(batch)"),
        (
            "    def build_loss(self):\n        return lambda output, target: output[0].mean((1, 2, 3, 4))\n",
            *(
                "return lambda",
                "the loss of build_loss returned a tensor of shape (2,); it must return a scalar",
            ),
        ),
        (
            "    def build_loss(self):\n        return lambda output: output\n",
            *("return lambda", "a loss is called as fn(output, target) with what the network returned"),
        ),
        (
            "    def get_dataloaders(self):\n        return [1, 2]\n",
            "def get_dataloaders",
            "returned a int without batch",
        ),
        (
            "    @staticmethod\n    def build_network_architecture(*arguments):\n        return 3\n",
            *("@staticmethod", "build_network_architecture returned int; it must return a torch.nn.Module"),
        ),
    ],
)
def test_a_trainer_that_fails_is_told_with_its_line(
    journey: Journey, project: Path, body: str, place: str, words: str
) -> None:
    require_told(journey, project, HEAD + body, place, "--trainer", "mine:Own", words=words)


@pytest.mark.parametrize(
    ("forward", "build", "words"),
    [
        ("raise RuntimeError('no such luck')", "pass", "no such luck"),
        ("x = x @ torch.ones(3, 7, device=x.device)", "pass", "the network failed on an input of shape"),
        ("pass", "raise KeyError('lost weights')", "KeyError: 'lost weights'"),
        ("if x.sum().item(): raise RuntimeError('late')", "pass", "late"),
    ],
)
def test_a_network_that_fails_is_told_with_its_line(
    journey: Journey, project: Path, forward: str, build: str, words: str
) -> None:
    text = NETWORK.format(forward=forward, build=build)
    place = forward if forward != "pass" else build
    require_told(journey, project, text, place, "--network", "mine:build", words=words)


@pytest.mark.parametrize(
    ("setting", "body", "place", "words"),
    [
        ("loss", "(output, target, *, labels):\n    return output.nothing", "output.nothing", "AttributeError"),
        ("loss", "(output, target, *, labels):\n    return output", "def part", "returned a tensor of shape"),
        (
            "optimizer",
            "(params, *, lr, weight_decay):\n    return 3",
            "def part",
            "returned int; it must return a torch.opt",
        ),
        ("optimizer", "(params, *, lr, weight_decay):\n    1 / 0", "1 / 0", "ZeroDivisionError"),
        ("loss", "(output, target):\n    pass", "def part", "but is called as fn(output, target, *, labels"),
        ("sampler", "(identifiers):\n    pass", "def part", "but is called as fn(identifiers, rng"),
        ("schedule", "(progress):\n    1 / 0", "1 / 0", "ZeroDivisionError"),
        ("sampler", "(identifiers, rng):\n    1 / 0", "1 / 0", "ZeroDivisionError"),
        ("augmentation", "(patch_size, *, masked_channels=()):\n    1 / 0", "1 / 0", "ZeroDivisionError"),
        ("callbacks", "(trainer):\n    1 / 0", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_part_that_fails_is_told_with_its_line(
    journey: Journey, project: Path, setting: str, body: str, place: str, words: str
) -> None:
    require_told(journey, project, f"def part{body}\n", place, "--set", f"{setting}=mine:part", words=words)
