"""Conversion of our raw datasets into ones that nnU-Net itself reads: values, axes, keys, file lists."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

import segwright
from segwright.core.errors import ProblemReport, SegwrightError
from segwright.core.files.hashing import file_hash
from segwright.data.dataset import load
from segwright.data.images.image_io import read_label
from tests.unit.interop.made_folders import (
    grey_masks_in_colours,
    label_volume,
    mask,
    mixed_in_one_folder,
    palette_masks,
    picture,
    several_channels_in_a_file,
    tree_state,
    volume,
)

LABELS = {"background": 0, "organ": 1, "lesion": 2}
LABEL_MAP = {"255": 1, "100": 2, "7": 0}


def declare(folder: Path, num_cases: int, **changes: Any) -> None:
    document = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": num_cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**document, **changes}))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with all that nnU-Net would read in another way, and one case, `plain`, that it reads as we do."""
    folder = tmp_path / "here" / "Dataset009_Mapped"
    values = {"plain": [1, 2], "mapped": [255, 100, 7], "both": [255, 2], "turned": [1, 100]}
    for name, found in values.items():
        volume(folder / f"imagesTr/{name}_0000.nii.gz")
        label_volume(folder / f"labelsTr/{name}.nii.gz", found)
    file = folder / "labelsTr/turned.nii.gz"
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(file)).as_reoriented([[1, 1], [0, -1], [2, 1]]), file)
    volume(folder / "imagesTr/float_0000.nii.gz")
    label_volume(folder / "labelsTr/float.nii.gz", [1.0002, 1.9998], np.float32)
    for name in ("one", "two"):
        volume(folder / f"imagesTs/{name}_0000.nii.gz")
    label_volume(folder / "labelsTs/one.nii.gz", [100])
    own = {"label_map": LABEL_MAP, "groups": "regex:.*", "label_pairs": [["organ", "lesion"]], "licence": "CC0"}
    declare(folder, 5, **own)
    return folder


def changes_in(new: Path) -> dict[str, str]:
    files = json.loads((new / "conversion.json").read_text())["files"]
    return {each["to"]: each["change"] for each in files if "change" in each}


def test_files_hold_what_nnunet_shall_read(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = tree_state(dataset)
    (tmp_path / "nnUNet_raw").mkdir()
    with caplog.at_level(logging.WARNING):
        converted = segwright.convert("nnunet", dataset, tmp_path / "nnUNet_raw")
    assert converted is not None
    new = converted.dataset
    assert new == tmp_path / "nnUNet_raw" / "Dataset009_Mapped"
    assert tree_state(dataset) == before
    assert json.loads((new / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "licence": "CC0",
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    assert "groups and folds are left out" in caplog.text
    old = load(dataset)
    for case in old.cases:
        assert case.label is not None
        file = new / "labelsTr" / case.label.name
        image, label = nibabel.load(case.images[0]), nibabel.load(file)
        expected = read_label(case.label, old.reader, label_map=old.labels.label_map).array[0]
        if case.identifier == "turned":
            expected = np.swapaxes(expected, 1, 2)[:, ::-1]  # undo what the fixture did
        np.testing.assert_array_equal(np.asanyarray(label.dataobj).T, expected)
        np.testing.assert_array_equal(label.affine, image.affine)
        assert (new / "imagesTr" / case.images[0].name).read_bytes() == case.images[0].read_bytes()
    assert changes_in(new) == {
        "labelsTr/both.nii.gz": "255 -> 1",
        "labelsTr/float.nii.gz": "stored as whole numbers",
        "labelsTr/mapped.nii.gz": "7 -> 0, 100 -> 2, 255 -> 1",
        "labelsTr/turned.nii.gz": "100 -> 2, turned to the axes of turned_0000.nii.gz",
        "labelsTs/one.nii.gz": "100 -> 2",
    }
    assert file_hash(new / "labelsTr/plain.nii.gz") == file_hash(dataset / "labelsTr/plain.nii.gz")
    assert set(np.unique(np.asanyarray(nibabel.load(new / "labelsTs/one.nii.gz").dataobj))) == {0, 2}
    assert sorted(file.name for file in (new / "imagesTs").iterdir()) == ["one_0000.nii.gz", "two_0000.nii.gz"]
    assert segwright.check(new).errors == ()
    again = segwright.convert("nnunet", dataset, new)
    assert again is not None
    assert again.num_written == 0


def test_another_map_is_not_mixed_with_the_old(dataset: Path, tmp_path: Path) -> None:
    segwright.convert("nnunet", dataset, tmp_path / "Dataset009_X")
    declare(dataset, 5, label_map={"255": 2, "100": 1, "7": 0})
    with pytest.raises(SegwrightError, match="Dataset009_X: was converted from another source, or from files"):
        segwright.convert("nnunet", dataset, tmp_path / "Dataset009_X")


def test_links_are_made_of_files_that_do_not_change(dataset: Path, tmp_path: Path) -> None:
    segwright.convert("nnunet", dataset, new := tmp_path / "Dataset009_X", link=True)
    for name in ("imagesTr/both_0000.nii.gz", "labelsTr/plain.nii.gz"):
        assert (new / name).samefile(dataset / name)
    assert (new / "labelsTr/both.nii.gz").stat().st_nlink == 1


@pytest.mark.parametrize(
    "make", [mixed_in_one_folder, several_channels_in_a_file, palette_masks, grey_masks_in_colours]
)
def test_file_lists_become_the_two_folders(tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    (folder := tmp_path / "mine").mkdir()
    make(folder)
    segwright.init(folder)
    document = json.loads((folder / "dataset.json").read_text())
    case = next(iter(document["dataset"].values()))
    case["label"] = f"$WHERE/{case['label']}"
    (folder / "dataset.json").write_text(json.dumps(document))
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "of_any_name.nii.gz").touch()
    with pytest.raises(ProblemReport, match="environment variable WHERE is not set"):
        segwright.convert("nnunet", folder, tmp_path / "new")
    with caplog.at_level(logging.WARNING):
        segwright.convert("nnunet", folder, new := tmp_path / "new", environment={"WHERE": str(folder)})
    assert "new: nnU-Net finds a dataset by a name such as Dataset123_Name" in caplog.text
    assert "imagesTs: is left out, since dataset.json lists the files of the dataset" in caplog.text
    written = json.loads((new / "dataset.json").read_text())
    assert not {"dataset", "label_map"} & written.keys()
    images = [file.name for file in (new / "imagesTr").iterdir()]
    are_pictures = written["file_ending"] == ".png"
    num_files = 1 if are_pictures else len(written["channel_names"])
    assert len(images) == num_files * len(document["dataset"])
    assert {"".join(Path(name).suffixes) for name in images} == {written["file_ending"]}
    assert segwright.check(new).errors == ()
    if are_pictures:
        assert {Image.open(file).mode for file in (new / "labelsTr").iterdir()} == {"L"}


def undeclared_test_label(folder: Path) -> str:
    label_volume(folder / "labelsTs/two.nii.gz", [3])
    return "labelsTs/two.nii.gz: unexpected label value 3, dataset.json declares 0, 1, 2; correct one of them"


def label_on_another_grid(folder: Path) -> str:
    file = folder / "labelsTs/two.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), file)
    return "labelsTs/two.nii.gz: shape (4, 4, 4) differs from (5, 7, 6) of two_0000.nii.gz"


def undeclared_label(folder: Path) -> str:
    label_volume(folder / "labelsTr/plain.nii.gz", [3])
    return "labelsTr/plain.nii.gz: unexpected label value 3"


def turned_channel(folder: Path) -> str:
    for file in [*folder.glob("images*/*_0000.nii.gz")]:
        shutil.copy(file, str(file).replace("_0000", "_0001"))
    file = folder / "imagesTr/plain_0001.nii.gz"
    nibabel.save(nibabel.load(file).as_reoriented([[0, -1], [1, 1], [2, 1]]), file)
    declare(folder, 5, label_map=LABEL_MAP, channel_names={"0": "a", "1": "b"})
    return "plain_0001.nii.gz: is stored along other axes than plain_0000.nii.gz, and nnU-Net does not turn it"


def cut_off_test_image(folder: Path) -> str:
    file = folder / "imagesTs/two_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-9])
    return "imagesTs/two_0000.nii.gz: cannot be read"


def no_description(folder: Path) -> str:
    (folder / "dataset.json").unlink()
    return "dataset.json: no such file; a raw dataset has a dataset.json beside its image folders"


@pytest.mark.parametrize(
    "damage",
    [
        label_on_another_grid,
        undeclared_test_label,
        undeclared_label,
        turned_channel,
        cut_off_test_image,
        no_description,
    ],
)
def test_what_nnunet_could_not_use_is_refused_before_anything_is_written(
    dataset: Path, tmp_path: Path, damage: Any
) -> None:
    message = damage(dataset)
    before = tree_state(tmp_path)
    with pytest.raises(SegwrightError) as caught:
        segwright.convert("nnunet", dataset, tmp_path / "Dataset010_New")
    assert message in str(caught.value)
    after = tree_state(tmp_path)
    assert {**after, ".": before["."]} == before  # a lock was beside the new folder for a moment


def test_a_reader_that_nnunet_does_not_have_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "Dataset011_P"
    picture(folder / "imagesTr/a_0000.png")
    mask(folder / "labelsTr/a.png", [1, 2])
    declare(folder, 1, file_ending=".png", overwrite_image_reader_writer="MyReader", modality={"0": "light"})
    with caplog.at_level(logging.WARNING):
        segwright.convert("nnunet", folder, tmp_path / "Dataset012_P")
    assert "overwrite_image_reader_writer 'MyReader' is left out" in caplog.text
    document = json.loads((tmp_path / "Dataset012_P" / "dataset.json").read_text())
    assert document.keys() == {"channel_names", "labels", "numTraining", "file_ending"}
