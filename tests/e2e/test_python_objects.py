"""Python objects as components through `train`, `run`, `load_model`, `select` and `compare`; names of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journeys import call
from torch import nn

import segwright
from segwright.core.errors import ConfigError, ModelError
from segwright.data.phantom import write_dataset
from segwright.workspace import Workspace

FEW = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "batch_size": 2}


class Tiny(nn.Module):
    def __init__(self, num_input_channels: int, num_output_channels: int, **kwargs: Any) -> None:
        super().__init__()
        self.layer = nn.Conv3d(num_input_channels, num_output_channels, 3, padding=1)

    def forward(self, data: Any) -> Any:
        return self.layer(data)


class TinyTrainer(segwright.Trainer):
    @staticmethod
    def build_network_architecture(plans, configuration, num_inputs, num_heads, deep_supervision=True):  # type: ignore[no-untyped-def]
        return Tiny(num_inputs, num_heads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workspace]:
    """A preprocessed phantom dataset."""
    work = tmp_path_factory.mktemp("objects")
    raw, workspace = work / "raw" / "Dataset009_Objects", Workspace.under(work)
    write_dataset(raw, num_training=8, num_test=0, edge=24)
    segwright.run(raw, workspace=workspace, settings=FEW, configurations=["3d_fullres"], device="cpu")
    return raw, workspace


def trained(made: tuple[Path, Workspace], **options: Any) -> Path:
    raw, workspace = made
    given = {"configuration": "3d_fullres", "fold": 0, "settings": FEW, "device": "cpu", **options}
    return segwright.train(raw, workspace=workspace, **given).model


def prefix(model: Path) -> str:
    return model.name.split("__")[0]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"network": Tiny}, f"Trainer-{__name__}.Tiny"),
        ({"network": lambda *args, **kwargs: Tiny(*args)}, "Trainer-lambda"),
        ({"network": Tiny(1, 3)}, "Trainer-Tiny"),
        ({"network": Tiny, "name": "tiny"}, "tiny"),
        ({"trainer": TinyTrainer}, "TinyTrainer"),
        ({"name": "second"}, "second"),
    ],
)
def test_models_train_side_by_side_under_their_names(
    made: tuple[Path, Workspace], options: dict[str, Any], name: str
) -> None:
    model = trained(made, **options)
    assert prefix(model) == name
    given = options.get("network") or options.get("trainer")
    predictor = segwright.load_model(model, network=given, device="cpu")
    assert predictor.predict(np.zeros((20, 20, 20), np.float32), spacing=(1, 1, 1)).shape == (20, 20, 20)


def test_a_run_takes_objects_and_resumes(made: tuple[Path, Workspace]) -> None:
    raw, workspace = made

    def step(progress: float) -> float:
        return 1.0

    options: dict[str, Any] = {"workspace": workspace, "network": lambda *args, **kwargs: Tiny(*args), "device": "cpu"}
    options |= {"settings": FEW, "schedule": step, "name": "run", "configurations": ["3d_fullres"], "folds": [0]}
    first = segwright.run(raw, **options)
    again = segwright.run(raw, **options)
    assert prefix(first.folds[0].model) == "run"
    assert again.executed_stages == ()


def test_select_and_compare_know_models_by_their_names(made: tuple[Path, Workspace]) -> None:
    raw, workspace = made
    for name in ("first", "other"):
        for fold in (0, 1, 2):
            trained(made, name=name, fold=fold)
    report = segwright.select(raw, workspace=workspace, names=["first", "other"], ensembles=False, device="cpu")
    assert {candidate.members[0].split("__")[0] for candidate in report.comparison.candidates} == {"first", "other"}
    found = segwright.api.compare(["first", "other"], dataset=raw, workspace=workspace)
    assert (found[0].first, found[0].second) == ("first", "other")
    by_command = call("--work", str(workspace.work), "compare", "first", "other", "--dataset", str(raw), "--json")
    assert by_command.exit_code == 0, by_command.output
    assert json.loads(by_command.stdout)[0]["cases"] == found[0].cases
    select = ("select", raw, "--names", "first,other", "--no-ensembles", "--device", "cpu", "--json")
    selected = call("--work", str(workspace.work), *select)
    assert selected.exit_code == 0, selected.output
    assert "first__" in selected.stdout
    assert "other__" in selected.stdout
    with pytest.raises(ModelError, match="no model of .* is named 'firts'; did you mean 'first'"):
        segwright.api.compare(["firts", "other"], dataset=raw, workspace=workspace)
    with pytest.raises(ModelError, match="no model named 'oter'"):
        segwright.select(raw, workspace=workspace, names=["oter"])


@pytest.mark.parametrize("name", ["a__b", "../up", "", ".hidden", "sp ace", "dash-"])
def test_a_name_that_a_folder_cannot_have_is_refused(made: tuple[Path, Workspace], name: str) -> None:
    with pytest.raises(ConfigError, match=f"name '{name}': expected letters"):
        trained(made, name=name)


def test_what_is_no_trainer_is_refused(made: tuple[Path, Workspace]) -> None:
    with pytest.raises(ConfigError, match="is not a subclass of segwright.Trainer; derive it"):
        trained(made, trainer=Tiny)
