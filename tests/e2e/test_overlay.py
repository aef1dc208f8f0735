"""Sheets of label maps over images, from files of every kind to the pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from journeys import call
from PIL import Image

from segwright import api
from segwright.core.errors import SegwrightError
from segwright.core.files.hashing import file_hash
from segwright.report.colours import label_colour, rgb
from segwright.workspace import Workspace

Array = npt.NDArray[Any]


def describe(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": 1, "file_ending": ".nii.gz", **changes,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def save(file: Path, array: Array, affine: Array | None = None) -> None:
    """Write an array (x, y, z), or a picture (y, x)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        Image.fromarray(array).save(file)
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), file)


def add_case(folder: Path, name: str = "a", labels: Array | None = None, **named: Any) -> None:
    image = np.zeros((12, 10, 8), np.int16)
    save(folder / "imagesTr" / f"{name}_0000.nii.gz", image, **named)
    if labels is not None:
        save(folder / "labelsTr" / f"{name}.nii.gz", labels, **named)


def box(value: int = 1, shape: tuple[int, ...] = (12, 10, 8)) -> Array:
    labels = np.zeros(shape, np.uint8)
    labels[2:5, 6:8, 3:6] = value
    return labels


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = describe(tmp_path / "Dataset003_Made", numTraining=2)
    add_case(folder, "a", box())
    add_case(folder, "b", box(2))
    return folder


def is_colour(sheet: Path, position: int) -> npt.NDArray[np.bool_]:
    """Return where contours of a label are, below the legend."""
    found: npt.NDArray[np.bool_] = (np.asarray(Image.open(sheet)) == rgb(label_colour(position))).all(axis=-1)
    found[:110] = False
    return found


def panel_box(sheet: Path) -> tuple[slice, slice]:
    """Return where the only panel is, whose image is black."""
    is_black = (np.asarray(Image.open(sheet)) == 0).all(axis=-1)
    rows, columns = np.nonzero(is_black.sum(axis=1) > 50)[0], np.nonzero(is_black.sum(axis=0) > 50)[0]
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("reader", [None, "NibabelIO", "NibabelIOWithReorient"])
def test_the_patients_right_is_on_the_left_and_the_front_above(
    tmp_path: Path, flips: tuple[int, ...], reader: str | None
) -> None:
    """The label is at the patient's right front, in voxels of 2 x 3 mm, however the file is stored."""
    raw = describe(tmp_path / "raw", overwrite_image_reader_writer=reader)
    labels = np.zeros((12, 10, 8), np.uint8)  # RAS+: axes lead to the right, the front and the head
    labels[9:11, 7:9, 3:6] = 1
    for axis, flip in enumerate(flips):
        labels = np.flip(labels, axis) if flip < 0 else labels
    add_case(raw, labels=labels.copy(), affine=np.diag([2 * flips[0], 3 * flips[1], 4 * flips[2], 1]).astype(float))
    (sheet,) = api.overlay(raw, tmp_path / "out", plane="axial", slices=1, size=240)
    rows, columns = panel_box(sheet)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (240, 192)  # 30 x 24 mm
    found = np.argwhere(is_colour(sheet, 1)[rows, columns])
    # 8 pixels per mm: the second and third voxel of 12 from the right, and of 10 from the front
    assert found.min(axis=0).tolist() == [24, 16]
    assert found.max(axis=0).tolist() == [3 * 24 - 1, 3 * 16 - 1]


def test_colour_pictures_keep_colours_and_show_a_channel_if_asked(tmp_path: Path) -> None:
    raw = describe(tmp_path / "raw", channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 210, 40
    picture[0] = 0
    save(raw / "imagesTr" / "a_0000.png", picture)
    labels = np.zeros((20, 30), np.uint8)
    labels[2:6, 20:28] = 1
    save(raw / "labelsTr" / "a.png", labels)
    (sheet,) = api.overlay(raw, tmp_path / "out", size=240)
    pixels = np.asarray(Image.open(sheet))
    assert (pixels == (210, 40, 0)).all(axis=-1).sum() > 80 * 100
    rows, columns = np.nonzero(is_colour(sheet, 1))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (4 * 8, 8 * 8)
    (grey,) = api.overlay(raw, tmp_path / "out", size=240, channel="G")
    assert not (np.asarray(Image.open(grey)) == (210, 40, 0)).all(axis=-1).any()


def test_channels_regions_ignore_label_label_map_empty_and_missing_labels(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    raw = describe(
        tmp_path / "raw", labels=labels, regions_class_order=[1, 2], label_map={"255": 2},
        channel_names={"0": "T1", "1": "CT"},
    )  # fmt: skip
    for name, stored in {"a": box(255), "b": box(3), "c": box(0), "d": None, "e": box(77)}.items():
        add_case(raw, name, stored)
        save(raw / "imagesTr" / f"{name}_0001.nii.gz", np.full((12, 10, 8), -1000, np.int16))
    before = {file: file_hash(file) for file in raw.rglob("*") if file.is_file()}
    drawn = {}
    for case in "abcde":
        (drawn[case],) = api.overlay(raw, tmp_path / case, cases=[case], channel=1)
    seen = {case: [place for place in range(1, 5) if is_colour(sheet, place).any()] for case, sheet in drawn.items()}
    assert seen == {"a": [2], "b": [3], "c": [], "d": [], "e": [4]}  # the last one is not declared
    assert {file: file_hash(file) for file in raw.rglob("*") if file.is_file()} == before


def test_predictions_find_their_images(raw: Path, tmp_path: Path) -> None:
    predicted = describe(tmp_path / "work" / "predictions")
    for name in "ab":
        save(predicted / f"{name}.nii.gz", box(1))
    with pytest.raises(SegwrightError, match="no image of case 'a' and 1 more.*--images DIR"):
        api.overlay(predicted, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for named in ({"images": raw}, {"images": raw / "imagesTr"}, {"reference": raw}, {"reference": raw / "labelsTr"}):
        assert len(api.overlay(predicted, tmp_path / "out", **named)) == 1  # type: ignore[arg-type]
    (sheet,) = api.overlay(predicted, tmp_path / "out", reference=raw, cases=["b"], contours=True)
    assert not is_colour(sheet, 2).any()  # the reference is black and white
    (sheet,) = api.overlay(predicted, tmp_path / "out", reference=raw, cases=["b"])
    above, below = (np.nonzero(is_colour(sheet, position).any(axis=1))[0] for position in (2, 1))
    assert above.max() < below.min()


def test_predictions_of_a_dataset_of_the_workspace_find_its_images(raw: Path, tmp_path: Path) -> None:
    place = Workspace.under(tmp_path / "work")
    place.raw.mkdir(parents=True)
    raw.rename(place.raw / raw.name)
    assert api.overlay("3", tmp_path / "out", workspace=place) == (tmp_path / "out" / "overlay_001.png",)
    held_out = describe(tmp_path / "model" / "fold_0" / "validation")
    save(held_out / "a.nii.gz", box())
    api.plan("3", workspace=place)
    place.plans_file(raw.name, "nnUNetPlans").rename(tmp_path / "model" / "plans.json")
    assert api.overlay(held_out, tmp_path / "out", workspace=place)


def test_listed_files_are_drawn_and_predictions_with_a_copy_of_the_lists_are_no_dataset(tmp_path: Path) -> None:
    add_case(tmp_path / "files", "a", box())
    lists = {"one": {"images": ["$FILES/imagesTr/a_0000.nii.gz"], "label": "$FILES/labelsTr/a.nii.gz"}}
    raw = describe(tmp_path / "raw", dataset=lists)
    found: dict[str, Any] = {"environment": {"FILES": str(tmp_path / "files")}}
    (sheet,) = api.overlay(raw, tmp_path / "out", **found)
    assert is_colour(sheet, 1).any()
    predicted = describe(tmp_path / "ensemble", dataset=lists)
    save(predicted / "one.nii.gz", box(2))
    (sheet,) = api.overlay(predicted, tmp_path / "out", images=raw, **found)
    assert (is_colour(sheet, 1).any(), is_colour(sheet, 2).any()) == (False, True)
    (sheet,) = api.overlay(predicted, tmp_path / "out", reference=raw, **found)
    assert (is_colour(sheet, 1).any(), is_colour(sheet, 2).any()) == (True, True)


def test_sheets_of_an_earlier_call_are_replaced_and_no_other_file(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("overlay_001.png", "overlay_002.png", "overlay_notes.png", "mine.txt"):
        (out / name).write_text("before")
    done = call("overlay", raw, "-o", out, "--json")
    assert json.loads(done.stdout) == {"sheets": [str(out / "overlay_001.png")]}
    assert {file.name for file in out.iterdir()} == {"overlay_001.png", "overlay_notes.png", "mine.txt"}


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--plane", "corona"), ["did you mean 'coronal'"]),
        (("--slices", "0"), ["slices 0: expected 1 to 16"]),
        (("--size", "9"), ["size 9: expected 64 to 1024"]),
        (("--channel", "CT"), ["no channel 'CT'"]),
        (("--channel", "1"), ["no channel '1'", "index from 0 to 0"]),
        (("--cases", "a,c"), ["has no case 'c'"]),
        (("--images", "."), ["--images and --dataset-json are for predictions"]),
        (("--reference", "nowhere"), ["nowhere: no such folder"]),
        (("--reference", "."), ["holds no reference for any case"]),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], messages: list[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = call("overlay", raw, "-o", tmp_path / "out", *options)
    (line,) = done.stderr.splitlines()
    assert (done.exit_code, line.startswith("error: ")) == (1, True), done.stderr
    assert [message for message in messages if message not in line] == []
    assert not (tmp_path / "out").exists()


def test_no_case_at_all_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(SegwrightError, match="cases: is empty"):
        api.overlay(raw, tmp_path / "out", cases=[])


def test_every_damaged_case_is_named_and_no_sheet_is_written(raw: Path, tmp_path: Path) -> None:
    add_case(raw, "c", box())
    (raw / "labelsTr" / "a.nii.gz").write_bytes(b"none")
    save(raw / "labelsTr" / "b.nii.gz", box()[:-1].copy())
    done = call("overlay", raw, "-o", tmp_path / "out", "--size", 1024)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.exit_code, len(errors)) == (1, 2), done.stderr
    assert "a.nii.gz" in errors[0]
    assert "shape (8, 10, 11) differs" in errors[1]
    assert not (tmp_path / "out").exists()


def test_a_plane_of_unknown_orientation_and_an_output_in_the_input_are_refused(raw: Path, tmp_path: Path) -> None:
    oblique = np.eye(4)
    oblique[:2, :2] = [[0.71, -0.71], [0.71, 0.71]]
    add_case(raw, "c", box(), affine=oblique)
    done = call("overlay", raw, "-o", tmp_path / "out", "--plane", "coronal")
    assert (done.exit_code, "case c: the coronal plane is unknown" in done.stderr) == (1, True), done.stderr
    for folder in (raw, raw / "imagesTr", raw / "sheets"):
        done = call("overlay", raw, "-o", folder)
        assert (done.exit_code, "is or lies in the input folder" in done.stderr) == (1, True), done.stderr
    assert not [*raw.rglob("overlay*")]


@pytest.mark.parametrize("target", ["nowhere", "7", "file.txt", "."])
def test_what_is_no_dataset_and_holds_no_predictions_is_refused(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    Path("file.txt").touch()
    done = call("overlay", target, "-o", tmp_path / "out")
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert not (tmp_path / "out").exists()
