from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from segwright.data import checks
from segwright.data.checks import Findings, check
from segwright.data.images.image_io import Volume, read_label
from tests.unit.data import made_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_files.write_dataset(tmp_path / "Dataset007_Made", num_channels=2, num_cases=3)


def edit(folder: Path, **changes: Any) -> None:
    made_files.edit_json(folder, {**json.loads((folder / "dataset.json").read_text()), **changes})


def rewrite(path: Path, *, array: np.ndarray | None = None, **geometry: tuple[float, ...]) -> None:
    """Write an image again with other voxels or geometry."""
    old = SimpleITK.ReadImage(str(path))
    image = old if array is None else SimpleITK.GetImageFromArray(array, isVector=False)
    if array is not None and array.ndim == 3 and image.GetSize() == old.GetSize():
        image.CopyInformation(old)
    for key, value in geometry.items():
        getattr(image, f"Set{key.capitalize()}")(value)
    SimpleITK.WriteImage(image, str(path))


def voxels(path: Path, dtype: type = np.float32) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(dtype)


def errors(findings: Findings) -> str:
    return "\n".join(str(problem) for problem in findings.errors)


def warnings(findings: Findings) -> str:
    return "\n".join(str(problem) for problem in findings.warnings)


def test_faultless_dataset_has_no_findings(folder: Path) -> None:
    findings = check(folder)

    assert (findings.errors, findings.warnings, findings.num_cases) == ((), (), 3)
    assert findings.is_clean


def test_everything_is_reported_in_one_pass(folder: Path) -> None:
    edit(folder, numTraining=5)
    (folder / "imagesTr" / "case_00_0001.nii.gz").unlink()
    (folder / "imagesTr" / "case_01_0001.nii.gz").write_bytes(b"x")
    label = folder / "labelsTr" / "case_01.nii.gz"
    rewrite(label, array=voxels(label, np.uint8) * 4)
    rewrite(folder / "labelsTr" / "case_02.nii.gz", array=np.zeros((6, 8, 5), np.uint8))

    findings = check(folder)

    assert len(findings.errors) == 5, errors(findings)
    text = errors(findings)
    assert "dataset.json: numTraining is 5, found 3 cases; correct the number" in text
    assert "case_00_0001.nii.gz: no such file, channel 0001 (MR1)" in text
    assert "case_01_0001.nii.gz: cannot be read" in text
    assert "case_01.nii.gz: unexpected label value 4, 8, dataset.json declares 0, 1, 2; correct" in text
    assert "case_02.nii.gz: shape (6, 8, 5) differs from (6, 8, 7) of case_02_0000.nii.gz; resample" in text


def test_a_label_far_larger_than_its_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_files.write_dataset(tmp_path / "d")
    large = folder / "labelsTr" / "case_02.nii.gz"
    SimpleITK.WriteImage(made_files.itk_image(np.ones((60, 80, 70), np.uint8)), str(large))
    was_read: list[Path] = []

    def read(file: Path, reader: str, **options: Any) -> Volume:
        was_read.append(file)
        return read_label(file, reader, **options)

    monkeypatch.setattr(checks, "read_label", read)

    assert "case_02.nii.gz: shape (60, 80, 70) differs from (6, 8, 7)" in errors(check(folder))
    assert large not in was_read
    assert was_read


def test_cases_whose_preprocessed_files_clash_are_an_error(folder: Path) -> None:
    for file in sorted(folder.glob("*Tr/case_02*")):
        file.rename(file.with_name(file.name.replace("case_02", "case_01_seg")))
    assert "case case_01_seg: its preprocessed files would replace those of case case_01; rename" in errors(
        check(folder)
    )


def test_spacing_mismatch_is_an_error(folder: Path) -> None:
    rewrite(folder / "labelsTr" / "case_00.nii.gz", spacing=(1, 1, 1))

    assert "case_00.nii.gz: spacing (1, 1, 1) differs from (2.5, 0.9, 0.8)" in errors(check(folder))


@pytest.mark.parametrize(("key", "value"), [("origin", (9, 9, 9)), ("direction", (1, 0, 0, 0, 1, 0, 0, 0, 1))])
def test_other_geometry_is_an_error(folder: Path, key: str, value: tuple[float, ...]) -> None:
    rewrite(folder / "labelsTr" / "case_00.nii.gz", **{key: value})

    findings = check(folder)

    text = errors(findings)
    assert len(findings.errors) == 1, text
    assert f"case_00.nii.gz: {key} differs from that of case_00_0000.nii.gz, voxels of the same index are up to" in text
    assert "if they match voxel by voxel, copy one header into both files" in text


def turn_in_storage(path: Path) -> None:
    """Write an image again with axes in another order, one of them flipped; it shows the same places."""
    image = SimpleITK.PermuteAxes(SimpleITK.ReadImage(str(path)), (2, 0, 1))
    SimpleITK.WriteImage(SimpleITK.Flip(image, (True, False, False)), str(path))


def test_labels_stored_along_other_axes_are_turned_with_one_warning(folder: Path) -> None:
    seen = {}
    check(folder, visit=lambda case, image, label: seen.update({case.identifier: (image.array, label.array)}))
    turned = {}
    for name in ("labelsTr/case_00.nii.gz", "labelsTr/case_01.nii.gz", "imagesTr/case_01_0001.nii.gz"):
        turn_in_storage(folder / name)

    findings = check(
        folder, visit=lambda case, image, label: turned.update({case.identifier: (image.array, label.array)})
    )

    assert findings.is_clean
    assert len(findings.warnings) == 1
    what = "3 files are stored along other axes than the first image of their case, first case_00.nii.gz; their voxels"
    assert what in warnings(findings)
    for case, arrays in seen.items():
        for array, other in zip(arrays, turned[case], strict=True):
            np.testing.assert_array_equal(array, other)


def test_cases_in_several_orientations_are_a_warning_with_the_remedy(folder: Path) -> None:
    for file in (*folder.glob("*/case_01.nii.gz"), *folder.glob("*/case_01_*.nii.gz")):
        turn_in_storage(file)

    text = warnings(check(folder))

    assert "the axes of images run differently among cases: " in text
    assert "in 2 (first case_00), " in text
    assert "'segwright plan --reorient' turns all of them" in text


def test_unreadable_first_image_is_reported_once(folder: Path) -> None:
    (folder / "imagesTr" / "case_00_0000.nii.gz").write_bytes(b"x")

    findings = check(folder)

    assert len(findings.errors) == 1
    assert findings.num_cases == 3


def test_unreadable_label_is_named(folder: Path) -> None:
    (folder / "labelsTr" / "case_01.nii.gz").write_bytes(b"x")

    assert "labelsTr/case_01.nii.gz: cannot be read" in errors(check(folder))


def test_damage_that_only_the_voxels_show_is_found(folder: Path) -> None:
    path = folder / "imagesTr" / "case_01_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])

    assert "case_01_0000.nii.gz: cannot be read" in errors(check(folder))


def put_nonfinite(path: Path, value: float) -> None:
    array = voxels(path)
    array[0, 0, :2] = value
    rewrite(path, array=array)


@pytest.mark.parametrize("ending", [".mha", ".nii.gz", ".nii"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -3e38])
def test_values_of_no_image_are_counted_by_one_rule(tmp_path: Path, value: float, ending: str) -> None:
    folder = made_files.write_dataset(tmp_path / "d", num_cases=2, ending=ending)
    put_nonfinite(folder / "imagesTr" / f"case_01_0000{ending}", value)

    findings = check(folder)

    if np.isnan(value):
        assert findings.is_clean, errors(findings)
        assert f"case_01_0000{ending}: 2 voxels are NaN and are read as 0" in warnings(findings)
    else:
        assert f"case_01_0000{ending}: 2 voxels are infinite or larger than 1e+30, which no image has" in errors(
            findings
        )


@pytest.mark.parametrize("value", [0, 7])
def test_images_without_contrast_are_a_warning(folder: Path, value: int) -> None:
    path = folder / "imagesTr" / "case_01_0000.nii.gz"
    rewrite(path, array=np.full((6, 8, 7), value, np.int16))

    findings = check(folder)

    assert findings.is_clean
    assert f"case_01_0000.nii.gz: every voxel is {value}; an image without contrast shows nothing" in warnings(findings)


def test_labels_in_the_border_that_is_cropped_away_are_a_warning(folder: Path) -> None:
    for channel in range(2):
        path = folder / "imagesTr" / f"case_01_000{channel}.nii.gz"
        array = voxels(path)
        array[3:] = 0
        rewrite(path, array=array)

    findings = check(folder)

    assert findings.is_clean
    what = "case_01.nii.gz: 33 % of the labelled voxels lie in the border where all channels are 0, which is cropped"
    assert what in warnings(findings)


def test_label_with_fractions_is_an_error(folder: Path) -> None:
    path = folder / "labelsTr" / "case_01.nii.gz"
    rewrite(path, array=voxels(path) / 2)

    assert "unexpected label value 0.5" in errors(check(folder))


def test_rounding_errors_of_labels_are_accepted(folder: Path) -> None:
    path = folder / "labelsTr" / "case_01.nii.gz"
    rewrite(path, array=voxels(path) * np.float32(0.9999999))

    assert check(folder).is_clean


def test_negative_label_is_an_error(folder: Path) -> None:
    path = folder / "labelsTr" / "case_01.nii.gz"
    rewrite(path, array=-voxels(path, np.int16))

    assert "unexpected label value -2, -1" in errors(check(folder))


def test_label_with_channels_is_an_error(folder: Path) -> None:
    path = folder / "labelsTr" / "case_01.nii.gz"
    rewrite(path, array=np.zeros((2, 6, 8, 7), np.uint8))

    findings = check(folder)

    assert "case_01.nii.gz: has 2 channels, a label map has one" in errors(findings)


def test_file_with_several_channels_is_an_error(folder: Path) -> None:
    path = folder / "imagesTr" / "case_01_0001.nii.gz"
    series = SimpleITK.JoinSeries([SimpleITK.ReadImage(str(path))] * 2)
    SimpleITK.WriteImage(series, str(path))

    assert "case 'case_01' has 3 channels, dataset.json names 2" in errors(check(folder))


def test_ignore_label_is_expected_in_label_files(folder: Path) -> None:
    edit(folder, labels={"background": 0, "organ": 1, "ignore": 2})

    assert check(folder).is_clean


def test_label_that_never_occurs_is_a_warning(folder: Path) -> None:
    edit(folder, labels={"background": 0, "organ": 1, "lesion": 2, "stone": 3})

    assert "label 3 (stone) occurs in no case" in warnings(check(folder))


def test_case_with_only_background_is_a_warning(folder: Path) -> None:
    path = folder / "labelsTr" / "case_01.nii.gz"
    rewrite(path, array=np.zeros((6, 8, 7), np.uint8))

    assert "case_01.nii.gz: has only background" in warnings(check(folder))


def test_gap_in_region_labels_is_an_error(folder: Path) -> None:
    edit(folder, labels={"background": 0, "whole": [1, 4], "core": 4}, regions_class_order=[1, 2])

    assert "labels: values 0, 1, 4 are not consecutive, 2, 3 missing" in errors(check(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [1, 2]},
            "dataset.json, regions_class_order: [1, 2]: label 1",
        ),
        ({"labels": {"background": 0, "organ": 1, "Ignore": 2}}, "dataset.json, labels: 'Ignore' would be trained"),
    ],
)
def test_labels_that_mean_something_else_are_errors(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)

    assert message in errors(check(folder))


def test_unordered_channel_numbers_are_a_warning(folder: Path) -> None:
    edit(folder, channel_names={"1": "a", "0": "b"})

    assert "channel_names are numbered 1, 0, expected 0, 1" in warnings(check(folder))


def test_stray_and_surplus_files_are_warnings(folder: Path) -> None:
    shutil.copy(folder / "labelsTr" / "case_00.nii.gz", folder / "labelsTr" / "other.nii.gz")
    shutil.copy(folder / "labelsTr" / "case_00.nii.gz", folder / "imagesTr" / "other.nii.gz")

    text = warnings(check(folder))

    assert "labelsTr/other.nii.gz: label without an image" in text
    assert "imagesTr/other.nii.gz: belongs to no case" in text


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"train": ["case_00", "ghost"], "val": ["case_01"]}], "fold 0: the dataset has no case ghost; correct"),
        ([{"train": ["case_00"], "val": []}], "fold 0: 1 training and 0 validation cases"),
        ([{"training": []}], "0.train: Field required"),
    ],
)
def test_bad_splits_are_errors(folder: Path, splits: list[Any], message: str) -> None:
    (folder / "splits_final.json").write_text(json.dumps(splits))

    assert message in errors(check(folder))


def test_overlapping_split_is_a_warning(folder: Path) -> None:
    splits = [{"train": ["case_00", "case_01"], "val": ["case_01"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))

    assert "fold 0: case_01 in both train and val" in warnings(check(folder))


def test_groups_that_lack_a_case_are_an_error(folder: Path) -> None:
    edit(folder, groups=r"regex:case_\d+")
    assert check(folder).is_clean
    edit(folder, groups={"case_00": 1})

    assert "dataset.json, groups: the mapping: no group for case case_01" in errors(check(folder))


def test_folder_without_dataset_json_is_reported(tmp_path: Path) -> None:
    assert "dataset.json: no such file" in errors(check(tmp_path))


def test_dataset_without_cases_is_reported(folder: Path) -> None:
    for file in (folder / "imagesTr").iterdir():
        file.unlink()

    assert "imagesTr: no cases: no file named {case}_0000.nii.gz; name the first" in errors(check(folder))


def test_unknown_file_ending_is_reported(folder: Path) -> None:
    edit(folder, file_ending=".gz")

    assert "file ending '.gz' has no reader" in errors(check(folder))


def test_checking_writes_nothing(folder: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))

    check(folder)

    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def write_pictures(folder: Path, modes: list[str], num_channels: int = 3) -> Path:
    """Write a dataset of one picture a case, of the modes of Pillow."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index, mode in enumerate(modes):
        Image.new(mode, (9, 7)).save(folder / "imagesTr" / f"p{index}_0000.png")
        Image.new("L", (9, 7), 1).save(folder / "labelsTr" / f"p{index}.png")
    document = {
        "channel_names": {str(channel): "RGB"[channel] for channel in range(num_channels)},
        "labels": {"background": 0, "a": 1},
        "numTraining": len(modes),
        "file_ending": ".png",
    }
    made_files.edit_json(folder, document)
    return folder


@pytest.mark.parametrize(
    ("modes", "odd"),
    [
        (["L", "RGB", "RGB", "RGB", "RGB"], {0: "has 1 channels, dataset.json names 3"}),
        (["RGB", "RGB", "RGB", "RGB", "L"], {4: "has 1 channels, dataset.json names 3"}),
        (["RGB", "RGBA", "RGB"], {1: "has 4 channels, dataset.json names 3"}),
        (["RGBA", "RGBA"], dict.fromkeys((0, 1), "4 channels in 1 file.* names 3 .*; remove the transparency")),
        (["RGB", "LA", "RGB"], {1: "grey and transparency"}),
        (["LA", "RGB", "RGB"], {0: "grey and transparency"}),
    ],
)
def test_odd_pictures_are_named_and_no_others(tmp_path: Path, modes: list[str], odd: dict[int, str]) -> None:
    findings = check(write_pictures(tmp_path / "Dataset008_Pictures", modes))

    assert len(findings.errors) == len(odd)
    for problem, (index, message) in zip(findings.errors, odd.items(), strict=True):
        assert re.search(rf"p{index}_0000\.png: .*{message}", str(problem))


def test_2d_image_among_3d_ones_is_an_error(folder: Path) -> None:
    for file in (*folder.glob("imagesTr/case_01*"), folder / "labelsTr" / "case_01.nii.gz"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(file))[:, :, 2], str(file))

    findings = check(folder)

    assert "case_01_0000.nii.gz: is a 2D image, most cases are 3D" in errors(findings)
