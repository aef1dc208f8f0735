"""Names of labels have codes, which can be written, edited and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segwright.core.errors import ConfigError
from segwright.data.labels import Labels
from segwright.deploy.dicom.codes import guess_segments, read_segments, write_segments
from segwright.workspace import SEGMENTS_JSON

LABELS = Labels({"background": 0, "liver": 1, "Kidney_L": 2, "ignore": 3})


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("liver", "Liver (Anatomical Structure)"),
        ("KidneyLeft", "Kidney, Left (Anatomical Structure)"),
        ("right lung", "Lung, Right (Anatomical Structure)"),
        ("lung_upper_lobe_left", "Upper lobe of lung, Left (Anatomical Structure)"),
        ("left_atrium", "Left atrium (Anatomical Structure)"),
        ("urinary_bladder", "Bladder (Anatomical Structure)"),
        ("oesophagus", "Esophagus (Anatomical Structure)"),
        ("liver_tumour", "Neoplasm in Liver (Morphologically Abnormal Structure)"),
        ("enhancing tumor", "Neoplasm (Morphologically Abnormal Structure)"),
        ("oedema", "Edema (Morphologically Abnormal Structure)"),
        ("whatever", "Tissue (Tissue)"),
    ],
)
def test_codes_are_guessed_from_names(name: str, shown: str) -> None:
    [segment] = guess_segments(Labels({"background": 0, name: 1}))
    assert str(segment) == f"{name}: {shown}"
    assert segment.is_unknown == (name == "whatever")


def test_segments_are_numbered_without_gaps() -> None:
    segments = guess_segments(Labels({"background": 0, "a": 2, "b": 7}))
    assert [(each.number, each.values) for each in segments] == [(1, (2,)), (2, (7,))]
    assert len({each.colour for each in segments}) == 2


def test_segments_can_be_written_edited_and_read(tmp_path: Path) -> None:
    file = tmp_path / SEGMENTS_JSON
    segments = guess_segments(LABELS)
    write_segments(segments, file, model="m")
    assert read_segments(file, LABELS) == segments
    file.write_text(file.read_text().replace('"SegmentLabel": "liver"', '"SegmentLabel": "Leber"'))
    assert read_segments(file, LABELS)[0].name == "Leber"


def without_code(entries: list[list[dict[str, Any]]]) -> None:
    entries[0][0]["SegmentedPropertyTypeCodeSequence"].pop("CodeValue")


def without_entry(entries: list[list[dict[str, Any]]]) -> None:
    entries.pop()


def twice(entries: list[list[dict[str, Any]]]) -> None:
    entries.append(entries[0])


def dark(entries: list[list[dict[str, Any]]]) -> None:
    entries[1][0]["recommendedDisplayRGBValue"] = [1, 2, 300]


def empty(entries: list[list[dict[str, Any]]]) -> None:
    entries.clear()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without_code, "labelID 1: SegmentedPropertyTypeCodeSequence needs CodeValue, CodingSchemeDesignator"),
        (without_entry, r"labelID 1; expected 1 \(liver\), 2 \(Kidney_L\), each once"),
        (twice, r"labelID 1, 2; expected 1 \(liver\), 2 \(Kidney_L\), each once"),
        (dark, r"labelID 2: recommendedDisplayRGBValue is \[1, 2, 300\], expected 3 values to 255"),
        (empty, "expected an object with segmentAttributes"),
    ],
)
def test_an_unusable_file_is_refused(
    tmp_path: Path, edit: Callable[[list[list[dict[str, Any]]]], None], message: str
) -> None:
    file = tmp_path / SEGMENTS_JSON
    write_segments(guess_segments(LABELS), file, model="m")
    document = json.loads(file.read_text())
    edit(document["segmentAttributes"])
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        read_segments(file, LABELS)
