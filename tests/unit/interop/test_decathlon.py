"""Conversion of Decathlon and nnU-Net v1 tasks: channels, odd files and names, resuming, the source unchanged."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

import segwright
from segwright.core.errors import ProblemReport, SegwrightError
from segwright.core.files.hashing import file_hash
from segwright.data.images.readers.nifti_channels import split_channels
from tests.unit.interop.made_folders import tree_state

HIPPOCAMPUS = Path(__file__).resolve().parents[4] / "shared" / "data" / "Dataset004_Hippocampus"
AFFINE = np.array([[0, -0.9, 0, 10.5], [1.2, 0, 0, -4], [0, 0, 2.5, 7], [0, 0, 0, 1]])


def image_4d(index: int, num_channels: int = 2, dtype: str = "<i2") -> nibabel.Nifti1Image:
    """Return an image (5, 4, 3, channels) with slope and intercept, an oblique affine and a time unit."""
    array = np.random.default_rng(index).integers(0, 100, (5, 4, 3, num_channels)).astype(dtype)
    image = nibabel.Nifti1Image(array, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(0.5, 3)
    return image


def make_task(folder: Path, *, num_cases: int = 2, num_channels: int = 2) -> Path:
    """Write a Decathlon task with macOS's hidden files, a file of notes and a wrong numTraining."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
        (folder / name / "._BRATS_000.nii.gz").write_bytes(b"Mac OS X")
        (folder / name / ".DS_Store").touch()
    for index in range(num_cases):
        nibabel.save(image_4d(index, num_channels), folder / "imagesTr" / f"BRATS_{index:03d}.nii.gz")
        label = np.zeros((5, 4, 3), np.uint8)
        label[index % 5] = 1
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / "labelsTr" / f"BRATS_{index:03d}.nii.gz")
    (folder / "imagesTr" / "notes.txt").write_text("notes")
    (folder / "._dataset.json").write_bytes(b"Mac OS X")
    declare(folder, modality={str(index): name for index, name in enumerate(("FLAIR", "T1w")[:num_channels])})
    return folder


def declare(folder: Path, **changes: object) -> None:
    """Write dataset.json of a task; None removes a key."""
    document = {
        "name": "BRATS",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "4D",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"1": "tumour", "0": "background"},
        "numTraining": 484,
        "numTest": 266,
        "training": [{"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/gone.nii.gz"}],
        "test": [],
        **changes,
    }
    text = json.dumps({key: value for key, value in document.items() if value is not None})
    (folder / "dataset.json").write_text(text)


def hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file_hash(file) for file in folder.rglob("*") if file.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return make_task(tmp_path / "Task01_Brain_Tumour")


def test_channels_become_files_with_the_same_bytes_and_geometry(task: Path, tmp_path: Path) -> None:
    before, raw = hashes(task), tmp_path / "raw"
    raw.mkdir()
    converted = segwright.convert("msd", task, raw)
    assert converted is not None
    assert converted.dataset == raw / "Dataset001_Brain_Tumour"
    for index in range(2):
        whole = nibabel.load(task / "imagesTr" / f"BRATS_{index:03d}.nii.gz")
        for channel in range(2):
            part = nibabel.load(converted.dataset / "imagesTr" / f"BRATS_{index:03d}_{channel:04d}.nii.gz")
            assert part.shape == (5, 4, 3)
            np.testing.assert_array_equal(part.dataobj.get_unscaled(), whole.dataobj.get_unscaled()[..., channel])
            np.testing.assert_array_equal(part.affine, whole.affine)
            assert (part.dataobj.slope, part.dataobj.inter) == (0.5, 3)
            assert part.header.get_xyzt_units() == ("mm", "unknown")
            assert part.header.get_zooms() == whole.header.get_zooms()[:3]
    assert hashes(task) == before
    assert segwright.check(converted.dataset).errors == ()


def test_dataset_json_keeps_what_is_known_and_counts_anew(task: Path, tmp_path: Path) -> None:
    segwright.convert("msd", task, tmp_path / "Dataset001_X")
    assert json.loads((tmp_path / "Dataset001_X" / "dataset.json").read_text()) == {
        "name": "BRATS",
        "licence": "CC-BY-SA 4.0",
        "channel_names": {"0": "FLAIR", "1": "T1w"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    record = json.loads((tmp_path / "Dataset001_X" / "conversion.json").read_text())
    assert record["files"][1] == {
        "from": "imagesTr/BRATS_000.nii.gz",
        "channel": 1,
        "to": "imagesTr/BRATS_000_0001.nii.gz",
    }
    assert {each["to"] for each in record["files"]} == {*names_in(tmp_path / "Dataset001_X")} - {
        "dataset.json",
        "conversion.json",
    }
    assert any("notes.txt: skipped" in note for note in record["notes"])


def test_test_images_are_converted_where_there_are_some(task: Path, tmp_path: Path) -> None:
    (task / "imagesTs").mkdir()
    nibabel.save(image_4d(9), task / "imagesTs" / "BRATS_900.nii.gz")
    segwright.convert("msd", task, tmp_path / "new")
    assert names_in(tmp_path / "new" / "imagesTs") == ["BRATS_900_0000.nii.gz", "BRATS_900_0001.nii.gz"]


def test_an_interrupted_conversion_continues(task: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    segwright.convert("msd", task, new)
    whole = {file: (new / file).stat().st_mtime_ns for file in names_in(new)}
    for name in ("dataset.json", "imagesTr/BRATS_001_0001.nii.gz", "labelsTr/BRATS_000.nii.gz"):
        (new / name).unlink()
    (new / "labelsTr" / ".12345678.tmp.BRATS_000.nii.gz").touch()
    again = segwright.convert("msd", task, new)
    assert again is not None
    assert (again.num_written, again.num_kept) == (3, 3)  # both channels of the case, and the label
    assert names_in(new) == sorted(whole)
    unchanged = {*whole} - {"dataset.json", "conversion.json"}
    assert {(new / file).stat().st_mtime_ns - whole[file] for file in unchanged} == {0}


def test_a_changed_dataset_json_is_kept(task: Path, tmp_path: Path) -> None:
    segwright.convert("msd", task, tmp_path / "new")
    (tmp_path / "new" / "dataset.json").write_text("{}")
    again = segwright.convert("msd", task, tmp_path / "new")
    assert again is not None
    assert again.num_written == 0
    assert (tmp_path / "new" / "dataset.json").read_text() == "{}"


def test_links_share_the_file_and_channels_do_not(task: Path, tmp_path: Path) -> None:
    segwright.convert("msd", task, tmp_path / "new", link=True)
    assert (tmp_path / "new/labelsTr/BRATS_000.nii.gz").samefile(task / "labelsTr/BRATS_000.nii.gz")
    assert (tmp_path / "new/imagesTr/BRATS_000_0000.nii.gz").stat().st_nlink == 1
    again = segwright.convert("msd", task, tmp_path / "new", link=True)
    assert again is not None
    assert again.num_written == 0


def test_a_fourth_axis_of_one_is_dropped(tmp_path: Path) -> None:
    task = make_task(tmp_path / "Task2_Heart", num_channels=1)
    label = nibabel.Nifti1Image(np.ones((5, 4, 3, 1), np.uint8), AFFINE)
    nibabel.save(label, task / "labelsTr" / "BRATS_001.nii.gz")
    segwright.convert("msd", task, tmp_path / "new")
    assert nibabel.load(tmp_path / "new" / "labelsTr" / "BRATS_001.nii.gz").shape == (5, 4, 3)
    assert nibabel.load(tmp_path / "new" / "imagesTr" / "BRATS_001_0000.nii.gz").shape == (5, 4, 3)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<u1", ">i2", "<f8"])
def test_every_version_and_byte_order_is_split(tmp_path: Path, kind: type, dtype: str) -> None:
    array = np.arange(120, dtype=dtype).reshape(5, 4, 3, 2)
    image = kind(array, AFFINE, kind.header_class(endianness=dtype[0]))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept"))
    nibabel.save(image, tmp_path / "whole.nii")
    targets = [tmp_path / "0.nii", tmp_path / "1.nii.gz"]
    split_channels(tmp_path / "whole.nii", targets)
    for channel, target in enumerate(targets):
        part = nibabel.load(target)
        assert isinstance(part, kind)
        np.testing.assert_array_equal(np.asanyarray(part.dataobj), array[..., channel])
        assert len(part.header.extensions) == 1


def test_odd_files_and_endings_of_an_archive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = make_task(tmp_path / "Task05_Prostate_2", num_cases=3)
    for folder in ("imagesTr", "labelsTr"):
        for index, name in enumerate(("prostate_00.nii.gz", "prostate_07.nii", "prostate_10.NII.GZ")):
            file = task / folder / f"BRATS_{index:03d}.nii.gz"
            target = task / folder / name
            if name.endswith(".nii"):
                target.write_bytes(gzip.decompress(file.read_bytes()))
                file.unlink()
            else:
                file.rename(target)
        (task / folder / "_prostate_03.nii.gz").write_bytes(b"no image")
        (task / folder / "._prostate_07.nii").write_bytes(b"Mac OS X")
    (task / "imagesTs").mkdir()
    (task / "imagesTs" / ".DS_Store").touch()
    before = tree_state(task)
    (tmp_path / "raw").mkdir()
    converted = segwright.convert("msd", task, tmp_path / "raw")
    assert converted is not None
    assert converted.dataset.name == "Dataset005_Prostate_2"
    cases = ("prostate_00", "prostate_07", "prostate_10")
    assert names_in(converted.dataset / "labelsTr") == [f"{case}.nii.gz" for case in cases]
    assert names_in(converted.dataset / "imagesTr") == [f"{case}_000{part}.nii.gz" for case in cases for part in (0, 1)]
    assert not (converted.dataset / "imagesTs").exists()
    assert "_prostate_03.nii.gz: skipped, it is no image of a case" in caplog.text
    for folder, name, new in (("labelsTr", "prostate_07.nii", ""), ("imagesTr", "prostate_10.NII.GZ", "_0001")):
        (tmp_path / "copy.nii").write_bytes(unpacked(task / folder / name))
        old = nibabel.load(tmp_path / "copy.nii")
        case = nibabel.load(converted.dataset / folder / f"{name.partition('.')[0]}{new}.nii.gz")
        stored = old.dataobj.get_unscaled()
        np.testing.assert_array_equal(case.dataobj.get_unscaled(), stored[..., 1] if new else stored)
        np.testing.assert_array_equal(case.affine, old.affine)
    assert tree_state(task) == before
    assert segwright.check(converted.dataset).errors == ()


def unpacked(file: Path) -> bytes:
    content = file.read_bytes()
    return content if file.suffix == ".nii" else gzip.decompress(content)


def test_tasks_of_another_kind_are_recognised(task: Path, tmp_path: Path) -> None:
    with pytest.raises(ProblemReport, match="if this is a task of the Decathlon, use 'segwright convert msd'"):
        segwright.convert("nnunet-v1", task, tmp_path / "new")
    for file in [*(task / "imagesTr").glob("BRATS*")]:
        file.rename(str(file).replace(".nii.gz", "_0000.nii.gz"))
    with pytest.raises(ProblemReport, match=r"imagesTr: holds files with channel numbers; if this is .* nnunet-v1'$"):
        segwright.convert("msd", task, tmp_path / "new")
    declare(task, modality=None, channel_names={"0": "CT"})
    with pytest.raises(ProblemReport, match="names channel_names, as datasets of nnU-Net v2 do; use the dataset as it"):
        segwright.convert("msd", task, tmp_path / "new")


def test_a_link_to_a_missing_image_is_named(task: Path, tmp_path: Path) -> None:
    (task / "imagesTr" / "BRATS_001.nii.gz").unlink()
    (task / "imagesTr" / "BRATS_001.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(ProblemReport, match=r"BRATS_001.nii.gz: is a link to .*gone.nii.gz, which does not exist"):
        segwright.convert("msd", task, tmp_path / "new")


def test_label_names_are_unique_and_gaps_are_mapped(task: Path, tmp_path: Path) -> None:
    declare(task, labels={"0": "BG", "2": "kidney", "10": "kidney"})
    segwright.convert("msd", task, tmp_path / "new")
    document = json.loads((tmp_path / "new" / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "kidney_10": 1, "kidney": 2}
    assert document["label_map"] == {"10": 1}


def cut_off(task: Path) -> str:
    file = task / "imagesTr" / "BRATS_001.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])
    return r"BRATS_001.nii.gz: cannot be read \(it is damaged"


def damage_a_checksum(task: Path) -> str:
    file = task / "imagesTr" / "BRATS_000.nii.gz"
    whole = bytearray(file.read_bytes())
    whole[-8] ^= 1
    file.write_bytes(bytes(whole))
    return r"BRATS_000.nii.gz: cannot be read \(it is damaged"


def damage_a_label_map(task: Path) -> str:
    file = task / "labelsTr" / "BRATS_000.nii.gz"
    whole = bytearray(file.read_bytes())
    whole[-8] ^= 1
    file.write_bytes(bytes(whole))
    return r"labelsTr/BRATS_000.nii.gz: cannot be read \(it is .*damaged"


@pytest.mark.parametrize("damage", [cut_off, damage_a_checksum, damage_a_label_map])
def test_nothing_is_written_if_a_file_is_damaged(task: Path, tmp_path: Path, damage: Callable[[Path], str]) -> None:
    message = damage(task)
    with pytest.raises(ProblemReport, match=message):
        segwright.convert("msd", task, tmp_path / "new")
    assert [*tmp_path.iterdir()] == [task]


def test_all_problems_are_in_one_report_and_nothing_is_written(task: Path, tmp_path: Path) -> None:
    (task / "labelsTr" / "BRATS_000.nii.gz").unlink()
    nibabel.save(image_4d(1, 3), task / "imagesTr" / "BRATS_001.nii.gz")
    (task / "imagesTr" / "BRATS_002.nii.gz").write_bytes(b"<html>")
    shutil.copy(task / "labelsTr" / "BRATS_001.nii.gz", task / "labelsTr" / "BRATS_002.nii.gz")
    declare(task, labels=["background"])
    with pytest.raises(ProblemReport) as caught:
        segwright.convert("msd", task, tmp_path / "new")
    lines = "\n".join(caught.value.lines())
    assert len(caught.value.problems) == 4
    assert "labelsTr/BRATS_000.nii.gz: no such file, the label map of a case" in lines
    assert "BRATS_001.nii.gz: has 3 channels, modality of dataset.json names 2 (FLAIR, T1w)" in lines
    assert "BRATS_002.nii.gz: cannot be read (it is a web page" in lines
    assert "labels: is no object of names with the value 0" in lines
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "labels",
            {"0": "background", "1": "ignored"},
            "labels: 'ignored' would be trained as a class; name it 'ignore'",
        ),
        ("labels", {"0": "background", "1": "ignore", "2": "x"}, "dataset.json, labels: "),
        ("labels", {"0": "background", "9" * 20: "x"}, "label_map: maps '9{20}' to 1, expected whole numbers"),
        ("label_map", {"x": 1}, "label_map: maps 'x' to 1, expected whole numbers"),
        ("groups", 7, "dataset.json, groups: "),
        ("dataset", 5, "dataset.json, dataset: "),
        ("modality", "CT", "modality: is missing or no object of names"),
    ],
)
def test_a_description_that_check_would_refuse_is_not_written(
    task: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    declare(task, **{key: value})
    with pytest.raises(ProblemReport, match=message):
        segwright.convert("msd", task, tmp_path / "new")
    assert [*tmp_path.iterdir()] == [task]


def test_missing_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "Task09_X").mkdir()
    with pytest.raises(ProblemReport) as caught:
        segwright.convert("msd", tmp_path / "Task09_X", tmp_path / "new")
    assert len(caught.value.problems) == 3
    assert "imagesTr: no such folder" in str(caught.value)


def test_targets_that_are_taken_are_refused(task: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "raw" / "Dataset001_Other").mkdir(parents=True)
    other = make_task(tmp_path / "elsewhere")
    with pytest.raises(SegwrightError, match="its id is taken by Dataset001_Other"):
        segwright.convert("msd", task, tmp_path / "raw")
    with pytest.raises(SegwrightError, match="lies in the source"):
        segwright.convert("msd", task, task / "new")
    with pytest.raises(SegwrightError, match="exists and is no converted dataset; name a new folder"):
        segwright.convert("msd", other, tmp_path / "raw")
    segwright.convert("msd", task, tmp_path / "new")
    with pytest.raises(SegwrightError, match="was converted from another source"):
        segwright.convert("msd", other, tmp_path / "new")
    with pytest.raises(SegwrightError, match="unknown format 'mds'; did you mean 'msd'"):
        segwright.convert("mds", task, tmp_path / "new")
    with pytest.raises(SegwrightError, match="no such folder; give the folder of the dataset"):
        segwright.convert("msd", tmp_path / "none", tmp_path / "new")


def test_a_task_of_nnunet_v1_keeps_its_file_names(tmp_path: Path) -> None:
    task = make_task(tmp_path / "Task507_Liver")
    for index in range(2):
        file = task / "imagesTr" / f"BRATS_{index:03d}.nii.gz"
        for channel in range(2):
            part = task / "imagesTr" / f"BRATS_{index:03d}_{channel:04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), AFFINE), part)
        file.unlink()
    (task / "imagesVal").mkdir()
    for channel in range(2):
        shutil.copy(
            task / "imagesTr" / f"BRATS_000_{channel:04d}.nii.gz", task / "imagesVal" / f"v_{channel:04d}.nii.gz"
        )
    (tmp_path / "raw").mkdir()
    converted = segwright.convert("nnunet-v1", task, tmp_path / "raw")
    assert converted is not None
    assert converted.dataset.name == "Dataset507_Liver"
    kept = [name for name in names_in(task) if name.endswith(".nii.gz") and "/._" not in name]
    assert [name for name in names_in(converted.dataset) if not name.endswith(".json")] == kept
    assert all(file_hash(converted.dataset / name) == file_hash(task / name) for name in kept)
    (task / "imagesTr" / "BRATS_001_0001.nii.gz").unlink()
    with pytest.raises(ProblemReport, match=r"no such file, channel 0001 \(T1w\)"):
        segwright.convert("nnunet-v1", task, tmp_path / "again")


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"needs the dataset {HIPPOCAMPUS}")
def test_hippocampus_is_what_it_was(tmp_path: Path) -> None:
    task = tmp_path / "Task04_Hippocampus"
    shutil.copytree(HIPPOCAMPUS / "labelsTr", task / "labelsTr")
    (task / "imagesTr").mkdir()
    for image in (HIPPOCAMPUS / "imagesTr").iterdir():
        shutil.copy(image, task / "imagesTr" / image.name.replace("_0000", ""))
        (task / "imagesTr" / f"._{image.name}").write_bytes(b"Mac OS X")
    new = json.loads((HIPPOCAMPUS / "dataset.json").read_text())
    old = {key: value for key, value in new.items() if key not in ("channel_names", "labels", "file_ending")}
    inverse = {str(value): name for name, value in new["labels"].items()}
    (task / "dataset.json").write_text(json.dumps({**old, "modality": new["channel_names"], "labels": inverse}))
    converted = segwright.convert("msd", task, tmp_path / "Dataset004_Hippocampus")
    assert converted is not None
    assert json.loads((converted.dataset / "dataset.json").read_text()) == new
    expected, found = hashes(HIPPOCAMPUS), hashes(converted.dataset)
    for each in (expected, found):
        each.pop("dataset.json")
    found.pop("conversion.json")
    assert found == expected
