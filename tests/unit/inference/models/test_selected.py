"""The folder of a selected model: written, replaced, loaded, predicted with; post-processing reaches every way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segwright import api
from segwright.core.errors import ConfigError, ModelError, SegwrightError, WorkspaceError
from segwright.data.images.image_io import read_images, read_label
from segwright.inference.ensemble import Ensemble
from segwright.inference.export.postprocessing import NO_POSTPROCESSING, PostProcessing
from segwright.inference.models.selected import Source, read_selected, write_selected
from segwright.inference.predictor import Predictor

LARGEST = PostProcessing.model_validate({"steps": [{"labels": 1}, {"labels": 2}]})
READER = "SimpleITKIO"


@pytest.fixture
def select(make_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a selected model of configurations, and removes what it was made from."""

    def write(*names: str, processing: PostProcessing = LARGEST, target: str = "model") -> Path:
        folders = {name: make_model(0, 2, 4, name=name, seed=index + 5) for index, name in enumerate(names)}
        sources = [Source(folder=folder, configuration=name, folds=(0, 2)) for name, folder in folders.items()]
        options: dict[str, Any] = {
            "dataset": "Dataset001_Test",
            "source_hash": "x",
            "made_by": "select",
            "selection": {"a": 1},
        }
        write_selected(tmp_path / target, sources, processing, **options)
        for folder in folders.values():
            shutil.rmtree(folder)
        return tmp_path / target

    return write


def test_the_folder_holds_what_prediction_needs(select: Callable[..., Path]) -> None:
    folder = select("3d_fullres", "2d")
    member = folder / "members" / "Trainer__nnUNetPlans__2d"
    assert {str(path.relative_to(member)) for path in member.rglob("*") if path.is_file()} == {
        "plans.json",
        "dataset.json",
        *(f"fold_{fold}/checkpoint_final.{ending}" for fold in (0, 2) for ending in ("json", "safetensors")),
    }
    document = read_selected(folder)
    assert [each.configuration for each in document.members] == ["3d_fullres", "2d"]
    assert document.selection == {"a": 1}


@pytest.mark.parametrize("names", [("3d_fullres",), ("3d_fullres", "2d")])
def test_postprocessing_is_applied_in_files_and_arrays(
    names: tuple[str, ...], select: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    plain, changed = select(*names, processing=NO_POSTPROCESSING, target="plain"), select(*names)
    differing = 0
    for record in api.predict(changed, images, tmp_path / "changed", device="cpu"):
        api.predict(plain, images, tmp_path / "out", device="cpu")
        found, before = (
            read_label(folder / record.output.name, READER).array[0].astype(np.uint8)
            for folder in (record.output.parent, tmp_path / "out")
        )
        np.testing.assert_array_equal(found, LARGEST(before))
        differing += int((found != before).sum())
        volume = read_images([images / f"{record.case}_0000.nii.gz"], READER)
        array = api.load_model(changed, device="cpu").predict(volume.array[0], spacing=volume.spacing)
        np.testing.assert_array_equal(array, found)
    assert differing > 0
    journal = json.loads((tmp_path / "changed" / "prediction.json").read_text())
    assert journal["model"]["postprocessing"] == [[1], [2]]
    with pytest.raises(WorkspaceError, match="holds predictions of another model or other options"):
        api.predict(plain, images, tmp_path / "changed", device="cpu")


def test_one_member_is_a_predictor_and_several_are_an_ensemble(select: Callable[..., Path]) -> None:
    one, two = select("2d", target="one"), select("2d", "3d_fullres", target="two")
    assert isinstance(api.load_model(one, device="cpu"), Predictor)
    assert isinstance(api.load_model(two, device="cpu"), Ensemble)
    with pytest.raises(ModelError, match="no 'best' checkpoint"):
        api.load_model(one, checkpoint="best", device="cpu")


def test_what_a_selection_cannot_do_is_said(select: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    two = select("2d", "3d_fullres")
    with pytest.raises(ConfigError, match="several models can only predict on one device"):
        api.predict(two, images, tmp_path / "out", device="cpu,cpu")
    with pytest.raises(ConfigError, match=r"cannot be averaged.*give the folders in .*members"):
        api.predict([two, two / "members" / "Trainer__nnUNetPlans__2d"], images, tmp_path / "out", device="cpu")


def test_a_zip_file_of_it_predicts(select: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    folder = select("2d", "3d_fullres")
    file = shutil.make_archive(str(tmp_path / "packed"), "zip", root_dir=tmp_path, base_dir=folder.name)
    shutil.rmtree(folder)
    assert len(api.predict(file, images, tmp_path / "out", device="cpu")) == 2


def test_the_folder_that_holds_one_will_do_and_several_are_named(select: Callable[..., Path], tmp_path: Path) -> None:
    select("2d", target="results/model")
    assert isinstance(api.load_model(tmp_path / "results", device="cpu"), Predictor)
    select("2d", target="results/other")
    with pytest.raises(ModelError, match=r"several selected models; name one of .*results/model, .*results/other"):
        api.load_model(tmp_path / "results", device="cpu")


def test_only_a_selected_model_is_replaced(select: Callable[..., Path]) -> None:
    folder = select("2d")
    select("3d_fullres")
    assert [path.name for path in (folder / "members").iterdir()] == ["Trainer__nnUNetPlans__3d_fullres"]
    (folder / "thesis.tex").write_text("")
    with pytest.raises(WorkspaceError, match="holds other files than those of a selected model"):
        select("2d")
    assert (folder / "thesis.tex").is_file()


def test_a_member_that_is_not_complete_is_not_written(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = Source(folder=make_model(0), configuration="3d_fullres", folds=(0, 1))
    with pytest.raises(ModelError, match=r"fold_1/checkpoint_final.safetensors: no such file"):
        write_selected(tmp_path / "m", [source], LARGEST, dataset="D", source_hash="", made_by="select", selection={})
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", ["../other", "/etc", ".hidden", "a/b"])
def test_members_lie_in_the_folder(name: str, select: Callable[..., Path]) -> None:
    folder = select("2d")
    document = json.loads((folder / "selection.json").read_text())
    document["members"][0]["name"] = name
    del document["checksum"]
    (folder / "selection.json").write_text(json.dumps(document))
    with pytest.raises(SegwrightError, match="members.0.name: .*plain name"):
        api.load_model(folder, device="cpu")


def test_weights_do_not_follow_the_originals(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model(0)
    write_selected(
        tmp_path / "m",
        [Source(folder=source, configuration="3d_fullres", folds=(0,))],
        NO_POSTPROCESSING,
        dataset="D",
        source_hash="",
        made_by="select",
        selection={},
    )
    copy = tmp_path / "m" / "members" / source.name / "fold_0" / "checkpoint_final.safetensors"
    before = copy.read_bytes()
    make_model(0, seed=7)  # written as a training writes its checkpoints
    assert (source / "fold_0" / copy.name).read_bytes() != before
    assert copy.read_bytes() == before
