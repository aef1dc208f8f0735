from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segwright.core.errors import DatasetError, ProblemReport, SegwrightError
from segwright.data import dataset
from segwright.data.dataset import list_cases, load
from segwright.data.description import DatasetDescription, load_description
from tests.unit.data import made_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_files.write_dataset(tmp_path / "Dataset007_Made", num_channels=2, num_cases=3)


def edit(folder: Path, **changes: Any) -> None:
    made_files.edit_json(folder, {**json.loads((folder / "dataset.json").read_text()), **changes})


def test_faultless_dataset_is_loaded(folder: Path) -> None:
    loaded = load(folder)

    assert loaded.name == "Dataset007_Made"
    assert loaded.reader == "SimpleITKIO"
    assert loaded.identifiers == ("case_00", "case_01", "case_02")
    assert [file.name for file in loaded.cases[0].images] == ["case_00_0000.nii.gz", "case_00_0001.nii.gz"]
    assert loaded.cases[2].label == folder / "labelsTr" / "case_02.nii.gz"
    assert loaded.num_channels == 2
    assert loaded.labels.num_heads == 3


def test_description_keeps_the_document(folder: Path) -> None:
    document = {
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "regions_class_order": [1, 2],
        "modality": {"1": "b", "0": "a"},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "licence": "CC0",
    }
    made_files.edit_json(folder, document)

    description = load_description(folder / "dataset.json")

    assert list(description.channel_names.items()) == [("1", "b"), ("0", "a")]
    assert description.labels == {"background": 0, "whole": (1, 2), "core": 2}
    assert description.raw() == document
    assert list(description.raw()) == list(document)


def test_description_made_in_memory_has_a_document_too() -> None:
    description = DatasetDescription(
        channel_names={"0": "CT"}, labels={"background": 0, "a": 1}, num_training=1, file_ending=".mha"
    )

    assert DatasetDescription.model_validate(description.raw()) == description


def test_missing_dataset_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.json: no such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, r"dataset\.json, labels: is missing; give an object of name -> value"),
        ({"channel_names": None}, r"channel_names: is missing; give an object of index -> name"),
        ({"numTraining": None}, r"numTraining: is missing; give the number"),
        ({"file_ending": None}, r"file_ending: is missing"),
        ({"file_ending": "nii.gz"}, r"file_ending: is 'nii\.gz', expected an ending with its dot"),
        ({"channel_names": {}}, r"channel_names: .* at least 1"),
        ({"labels": {"0": "background"}}, r"labels\.0: is the text 'background', expected a whole number"),
        ({"labels": {"background": 0, "a": 1.5}}, r"labels\.a: Input should be a valid integer"),
        ({"labels": {"background": 0, "a": 2}}, r"labels: values 0, 2 are not consecutive, 1 missing; renumber"),
        ({"labels": {"background": 0, "a": 1, "ignore": 9}}, r"labels: 'ignore' is 9, expected 2"),
        ({"file_ending": ".xyz"}, r"no cases: no file named \{case\}_0000\.xyz"),
        ({"file_ending": ".NII.gz"}, r"no cases: .*found case_00_0000\.nii\.gz"),
    ],
)
def test_wrong_key_is_named_with_a_remedy(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)

    with pytest.raises(ProblemReport, match=message):
        load(folder)


def test_all_wrong_keys_are_reported_at_once(folder: Path) -> None:
    edit(folder, labels=None, numTraining="many")

    with pytest.raises(ProblemReport) as caught:
        load(folder)

    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON at line 1"), ("[]", "holds a list, expected an")])
def test_broken_json_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "dataset.json").write_text(text)

    with pytest.raises(SegwrightError, match=message):
        load(folder)


def test_missing_files_are_all_reported_at_once(folder: Path) -> None:
    (folder / "imagesTr" / "case_00_0001.nii.gz").unlink()
    (folder / "imagesTr" / "case_01_0000.nii.gz").unlink()
    (folder / "labelsTr" / "case_02.nii.gz").rename(folder / "labelsTr" / "case_02.nii")

    with pytest.raises(ProblemReport) as caught:
        load(folder)

    lines = sorted(str(problem) for problem in caught.value.problems)
    assert len(lines) == 3
    assert "case_00_0001.nii.gz: no such file, channel 0001 (MR1) of case 'case_00'; expected 2 channel" in lines[0]
    assert "case_01_0000.nii.gz: no such file, channel 0000 (MR0) of case 'case_01'" in lines[1]
    assert "case_02.nii.gz: no such file, the label of case 'case_02'; found case_02.nii, but" in lines[2]


def test_surplus_channel_is_named(folder: Path) -> None:
    shutil.copy(folder / "imagesTr" / "case_00_0000.nii.gz", folder / "imagesTr" / "case_00_0002.nii.gz")

    with pytest.raises(ProblemReport, match=r"case_00_0002\.nii\.gz: one channel too many, expected 2"):
        load(folder)


def test_channel_missing_everywhere_is_named(folder: Path) -> None:
    edit(folder, channel_names={"0": "a", "1": "b", "2": "c"})

    with pytest.raises(ProblemReport, match=r"case_02_0002\.nii\.gz: no such file, channel 0002 \(c\)"):
        load(folder)


def test_channel_numbers_need_not_start_at_zero(folder: Path) -> None:
    for index in range(3):
        (folder / "imagesTr" / f"case_0{index}_0000.nii.gz").rename(folder / "imagesTr" / f"case_0{index}_0007.nii.gz")

    assert [file.name[-11:-7] for file in load(folder).cases[0].images] == ["0001", "0007"]


@pytest.mark.parametrize("missing", ["imagesTr", "labelsTr"])
def test_missing_folder_is_named(folder: Path, missing: str) -> None:
    shutil.rmtree(folder / missing)

    with pytest.raises(ProblemReport, match=f"{missing}: no such folder"):
        load(folder)


def test_unreadable_first_image_is_named(folder: Path) -> None:
    (folder / "imagesTr" / "case_00_0000.nii.gz").write_bytes(b"x")

    with pytest.raises(ProblemReport, match=r"case_00_0000\.nii\.gz: cannot be read .*; replace the file"):
        load(folder)


def test_stray_and_hidden_files_make_no_cases(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(folder / "imagesTr" / "case_00_0000.nii.gz", folder / "imagesTr" / "notes.nii.gz")
    (folder / "imagesTr" / "._case_00_0000.nii.gz").write_bytes(b"x")

    assert len(load(folder).cases) == 3
    assert "notes.nii.gz: belongs to no case" in caplog.text
    assert "._case" not in caplog.text


def test_wrong_num_training_only_warns(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder, numTraining=7)

    load(folder)

    assert "numTraining is 7, found 3 cases" in caplog.text


def test_explicit_lists_are_honoured_in_their_order(folder: Path, tmp_path: Path) -> None:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    edit(
        folder,
        numTraining=2,
        channel_names={"0": "MR"},
        dataset={
            "second": {"images": ["imagesTr/case_01_0000.nii.gz"], "label": "$GT/case_01.nii.gz"},
            "first": {"images": [str(images / "case_00_0001.nii.gz")], "label": "${GT}/case_00.nii.gz"},
        },
    )

    loaded = load(folder, environment={"GT": str(labels)})

    assert loaded.identifiers == ("second", "first")
    assert loaded.cases[1].images == (images / "case_00_0001.nii.gz",)
    assert loaded.cases[0].label == labels / "case_01.nii.gz"


def test_explicit_lists_with_unset_variables_and_missing_files_are_reported(folder: Path) -> None:
    edit(
        folder,
        numTraining=1,
        dataset={"a": {"images": ["imagesTr/absent.nii.gz"], "label": "$GT/case_00.nii.gz"}},
    )

    with pytest.raises(ProblemReport) as caught:
        load(folder)

    text = str(caught.value)
    assert "environment variable GT is not set, needed for $GT/case_00.nii.gz; set it" in text
    assert "absent.nii.gz: no such file, listed for case 'a'" in text
    assert "lists 1 image(s), expected 2 channel file(s) (MR0, MR1)" in text


def test_one_rgb_file_carries_three_channels(tmp_path: Path) -> None:
    loaded = load(made_files.write_fingerprint_pictures(tmp_path))

    assert loaded.reader == "NaturalImage2DIO"
    assert len(loaded.cases[0].images) == 1


def test_cases_to_predict_are_listed(folder: Path) -> None:
    cases = list_cases(folder / "imagesTr", ".nii.gz", 2)

    assert [case.identifier for case in cases] == ["case_00", "case_01", "case_02"]
    assert cases[0].label is None


def test_cases_to_predict_with_missing_channels_are_reported(folder: Path) -> None:
    (folder / "imagesTr" / "case_00_0001.nii.gz").unlink()

    assert len(list_cases(folder / "imagesTr", ".nii.gz")) == 3
    with pytest.raises(ProblemReport, match=r"case_00_0001\.nii\.gz: no such file"):
        list_cases(folder / "imagesTr", ".nii.gz", 2)


def test_rgb_cases_to_predict_are_listed(tmp_path: Path) -> None:
    made_files.write_fingerprint_pictures(tmp_path)

    assert len(list_cases(tmp_path / "imagesTr", ".png", 3)) == 6


@pytest.mark.parametrize("name", ["imagesTr", "absent"])
def test_nothing_to_predict_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "imagesTr").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "imagesTr" / "x.png")

    with pytest.raises(DatasetError, match="no such folder|no cases: .*found x.png, which lacks the channel number"):
        list_cases(tmp_path / name, ".png")


def test_loading_writes_nothing(folder: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))

    dataset.load(folder)

    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
