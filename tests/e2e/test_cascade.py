"""A cascade on the command line: which stages and folds are trained, and prediction."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
from journeys import states

from segwright import api
from segwright.cli.nnunet import program
from segwright.core.errors import ConfigError, ModelError
from segwright.data.phantom import write_dataset
from segwright.inference.cascade import STORED
from segwright.inference.predictor import Predictor
from segwright.workspace import Workspace

NAME = "Dataset011_Cascade"
SETTINGS = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
CASCADE, LOWRES = "3d_cascade_fullres", "3d_lowres"


def train(raw: Path, work: Workspace, **options: Any) -> Any:
    return api.train(
        raw,
        workspace=work,
        configuration=CASCADE,
        fold=0,
        settings=SETTINGS,
        device="cpu",
        resume=(model(work, CASCADE) / "fold_0").is_dir(),
        **options,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workspace, str]:
    """A cascade of two folds after training fold 0 of the second stage, and the log."""
    folder = tmp_path_factory.mktemp("cascade")
    raw, work = folder / NAME, Workspace.under(folder / "work")
    write_dataset(raw, num_training=4, num_test=1, edge=16)
    api.fingerprint(raw, workspace=work)
    api.plan(raw, workspace=work)
    plans = work.plans_file(NAME, "nnUNetPlans")
    document = json.loads(plans.read_text())
    full = document["configurations"]["3d_fullres"]
    low = {**full, "data_identifier": "nnUNetPlans_3d_lowres", "next_stage": CASCADE}
    low["spacing"] = [1.3 * extent for extent in full["spacing"]]
    document["configurations"][LOWRES] = low
    document["configurations"][CASCADE] = {"inherits_from": "3d_fullres", "previous_stage": LOWRES}
    plans.write_text(json.dumps(document))
    names = [f"phantom_{index:03d}" for index in (1, 2, 3, 4)]
    splits = [{"train": names[2:], "val": names[:2]}, {"train": names[:2], "val": names[2:]}]
    work.splits_file(NAME).write_text(json.dumps(splits))
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("segwright").addHandler(handler)
    logging.getLogger("segwright").setLevel(logging.INFO)
    try:
        train(raw, work)
    finally:
        logging.getLogger("segwright").removeHandler(handler)
    return raw, work, "\n".join(records)


def model(work: Workspace, configuration: str) -> Path:
    return work.model_folder(NAME, "Trainer", "nnUNetPlans", configuration)


def test_the_second_stage_makes_what_is_missing_of_the_first_and_says_so(trained: tuple[Path, Workspace, str]) -> None:
    _, work, log = trained
    for fold in (0, 1):
        assert (model(work, LOWRES) / f"fold_{fold}" / "checkpoint_final.safetensors").is_file()
        assert not (model(work, LOWRES) / f"fold_{fold}" / "validation").exists()
    assert (model(work, CASCADE) / "fold_0" / "validation" / "summary.json").is_file()
    assert not (model(work, CASCADE) / "fold_1").exists()
    assert "training its missing folds 0, 1 with the same settings" in log


def test_maps_lie_on_the_second_stages_grid(trained: tuple[Path, Workspace, str]) -> None:
    _, work, _ = trained
    folder = model(work, LOWRES) / "predicted_next_stage" / CASCADE
    for index in (1, 2, 3, 4):
        stored = blosc2.open(str(folder / f"phantom_{index:03d}.b2nd"), mode="r")
        cases = work.case_folder(NAME, "nnUNetPlans_3d_fullres")
        image = blosc2.open(str(cases / f"phantom_{index:03d}.b2nd"), mode="r")
        assert stored.shape == image.shape[1:]
        assert stored.dtype == np.uint8


def test_asking_again_does_nothing(trained: tuple[Path, Workspace, str]) -> None:
    raw, work, _ = trained
    before = states(work.results)
    train(raw, work)
    assert states(work.results) == before


def test_only_the_map_that_is_missing_is_made_again(trained: tuple[Path, Workspace, str], tmp_path: Path) -> None:
    raw, finished, _ = trained
    shutil.copytree(finished.results.parent, tmp_path / "work")
    work = Workspace.under(tmp_path / "work")
    folder = model(work, LOWRES) / "predicted_next_stage" / CASCADE
    lost = folder / "phantom_003.b2nd"
    content = lost.read_bytes()
    lost.unlink()
    shutil.rmtree(model(work, CASCADE))
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    folds = [states(model(work, LOWRES) / f"fold_{fold}") for fold in (0, 1)]
    train(raw, work)
    changed = {path.name for path in folder.iterdir() if kept.get(path) != path.stat().st_mtime_ns}
    assert changed == {"phantom_003.b2nd", "phantom_003.json"}
    assert lost.read_bytes() == content
    assert folds == [states(model(work, LOWRES) / f"fold_{fold}") for fold in (0, 1)]


def test_a_case_is_predicted_by_the_fold_that_held_it_out(trained: tuple[Path, Workspace, str]) -> None:
    _, work, _ = trained
    folder = model(work, LOWRES) / "predicted_next_stage" / CASCADE
    hashes = [json.loads((folder / f"phantom_{index:03d}.json").read_text())["weights_hash"] for index in (1, 2, 3, 4)]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]


def test_prediction_runs_the_first_stage_first(trained: tuple[Path, Workspace, str], tmp_path: Path) -> None:
    raw, work, _ = trained
    predictor = api.load_model(model(work, CASCADE), device="cpu")
    assert predictor.first is not None
    [record] = api.predict(model(work, CASCADE), raw / "imagesTs", tmp_path / "out", device="cpu")
    image = nib.load(raw / "imagesTs" / f"{record.case}_0000.nii.gz")
    assert nib.load(record.output).shape == image.shape
    # the labels of the first stage are an input: without them the second decides otherwise
    logits = [
        next(iter(predictor.networks))(data)
        for data in _inputs(predictor, raw / "imagesTs" / f"{record.case}_0000.nii.gz")
    ]
    assert not np.allclose(logits[0].detach().numpy(), logits[1].detach().numpy())


def _inputs(predictor: Predictor, file: Path) -> list[Any]:
    import torch

    from segwright.data.images.image_io import read_images

    volume = read_images([file], predictor.plan.image_reader_writer)
    prepared = predictor.prepare(volume)
    assert prepared.image.shape[0] == 3
    patch = predictor.window.patch_size
    padded = np.zeros((3, *patch), np.float32)
    inside = tuple(slice(0, min(a, b)) for a, b in zip(patch, prepared.image.shape[1:], strict=True))
    padded[(slice(None), *inside)] = prepared.image[(slice(None), *inside)]
    other = padded.copy()
    other[1:] = 1 - other[1:]
    return [torch.from_numpy(array)[None] for array in (padded, other)]


def test_the_first_stage_may_be_stored_in_the_second(trained: tuple[Path, Workspace, str], tmp_path: Path) -> None:
    _, work, _ = trained
    alone = tmp_path / model(work, CASCADE).name
    shutil.copytree(model(work, CASCADE), alone)
    with pytest.raises(ModelError, match="needs the model of '3d_lowres'"):
        api.load_model(alone, device="cpu")
    shutil.copytree(model(work, LOWRES), alone / STORED)
    assert api.load_model(alone, device="cpu").first is not None


def test_a_selected_cascade_stands_alone(trained: tuple[Path, Workspace, str], tmp_path: Path) -> None:
    raw, finished, _ = trained
    shutil.copytree(finished.results.parent, tmp_path / "work")
    work = Workspace.under(tmp_path / "work")
    first = {"configuration": LOWRES, "fold": 0, "settings": SETTINGS, "device": "cpu", "resume": True}
    api.train(raw, workspace=work, **first)  # its training is there, its validation was not asked for yet
    report = api.select(raw, workspace=work, device="cpu")
    assert [len(each.members) for each in report.comparison.candidates] == [1, 1, 2]
    alone = api.select(raw, workspace=work, configurations=[CASCADE], output=tmp_path / "model", device="cpu")
    expected = api.load_model(model(work, CASCADE), device="cpu")
    shutil.rmtree(work.results.parent)
    found = api.load_model(alone.model, device="cpu")
    assert isinstance(found, Predictor)
    assert found.first is not None
    assert found.first.origin["folds"] == ["0", "1"]
    image = np.random.default_rng(0).normal(size=(16, 14, 15))
    plain = expected.predict(image, spacing=(1, 1, 1))
    np.testing.assert_array_equal(found.predict(image, spacing=(1, 1, 1)), alone.postprocessing(plain))


def test_nnunets_command_takes_predictions_of_the_first_stage_that_are_its_own(
    trained: tuple[Path, Workspace, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, work, _ = trained
    monkeypatch.setenv("nnUNet_results", str(work.results))

    def predict(name: str, folder: str, folds: str, *more: str) -> None:
        options = f"-i {raw / 'imagesTs'} -o {tmp_path / folder} -d 11 -tr Trainer -c {name} -f {folds} -device cpu"
        program.execute(["nnUNetv2_predict", *options.split(), *more])

    predict(LOWRES, "all", "0 1")
    predict(LOWRES, "one", "0")
    predict(CASCADE, "second", "0", "-prev_stage_predictions", str(tmp_path / "all"))
    assert [*(tmp_path / "second").glob("*.nii.gz")]
    with pytest.raises(ConfigError, match="not predicted by all folds of"):
        predict(CASCADE, "refused", "0", "-prev_stage_predictions", str(tmp_path / "one"))
    with pytest.raises(ConfigError, match="not the second stage of a cascade"):
        predict(LOWRES, "refused", "0", "-prev_stage_predictions", str(tmp_path / "one"))
    assert not (tmp_path / "refused").exists()
