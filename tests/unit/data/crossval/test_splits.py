from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segwright.core.errors import DatasetError, SegwrightError
from segwright.data.crossval.splits import (
    Split,
    are_default,
    default_splits,
    left_out,
    load,
    save,
    select,
    several_scans,
    shared_subjects,
    subject_pattern,
)

NAMES = [f"c{index}" for index in range(10)]


def test_validation_positions_are_the_published_ones() -> None:
    assert [split.val for split in default_splits(NAMES)] == [
        ("c0", "c7"),
        ("c3", "c9"),
        ("c4", "c6"),
        ("c1", "c8"),
        ("c2", "c5"),
    ]


def test_too_few_cases_are_refused() -> None:
    with pytest.raises(DatasetError, match="at least 5 cases, found 4; add cases"):
        default_splits(NAMES[:4])


def test_default_splits_are_known_and_others_are_not() -> None:
    made = default_splits(NAMES)
    assert are_default(made, NAMES)
    assert not are_default([Split(train=made[0].train[:-1], val=made[0].val), *made[1:]], NAMES)
    assert not are_default(made[:1], NAMES[:4])


def test_saved_splits_are_read_back(tmp_path: Path) -> None:
    save(tmp_path / "splits_final.json", default_splits(NAMES))

    assert load(tmp_path / "splits_final.json") == default_splits(NAMES)
    assert list(json.loads((tmp_path / "splits_final.json").read_text())[0]) == ["train", "val"]


@pytest.mark.parametrize("text", ["[]", "{}", '[{"train": ["a"]}]', '[{"train": "a", "val": []}]', "no json"])
def test_unusable_splits_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)

    with pytest.raises(SegwrightError, match=r"s\.json"):
        load(tmp_path / "s.json")


def test_fold_all_trains_and_validates_on_everything() -> None:
    assert select([], NAMES[::-1], "all") == Split(train=tuple(NAMES), val=tuple(NAMES))


@pytest.mark.parametrize("fold", [5, -1])
def test_absent_fold_is_refused(fold: int) -> None:
    with pytest.raises(DatasetError, match=f"fold {fold} does not exist; choose from 0 to 4, or all"):
        select(default_splits(NAMES), NAMES, fold)


@pytest.mark.parametrize("fold", ["0", None, 0.5, True])
def test_what_is_no_number_of_a_fold_is_refused(fold: Any) -> None:
    with pytest.raises(DatasetError, match=f"fold {fold!r}: expected a number such as 0, or 'all'"):
        select(default_splits(NAMES), NAMES, fold)


def test_fold_with_missing_cases_is_refused() -> None:
    with pytest.raises(DatasetError, match="fold 0: the dataset has no case c8, c9, which .* put back the files"):
        select(default_splits(NAMES), NAMES[:8], 0)


def test_fold_without_validation_is_refused() -> None:
    with pytest.raises(DatasetError, match="at least one training and one validation case"):
        select([Split(train=("c0",), val=())], NAMES, 0)


def test_overlap_warns(caplog: pytest.LogCaptureFixture) -> None:
    select([Split(train=("c0", "c1"), val=("c1",))], NAMES, 0)

    assert "c1 are in both train and val" in caplog.text


def test_cases_in_no_fold_are_found() -> None:
    assert left_out(default_splits(NAMES[:6]), NAMES) == NAMES[6:]
    assert left_out([Split(train=("c0",), val=("c1",)), Split(train=("c2",), val=("c0",))], NAMES[:3]) == []


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        (["patient001_frame01", "patient002_frame01", "patient003_frame01"], ["patient001_frame12"], ["patient001"]),
        (["cord_97Ses1", "cord_98Ses1", "cord_99"], ["cord_97Ses2", "cord_96ses1"], ["cord_97"]),
        (["cord_97Ses1", "cord_94", "cord_95", "cord_93"], ["cord_97Ses2", "cord_96"], ["cord_97"]),
        (["patient001_frame01", "patient001_frame02", "patient002_frame01"], ["patient003_frame01"], []),
        (["case_scan_001", "case_scan_002", "case_scan_003"], ["case_scan_004"], []),  # no number before the word
        (["site1_scan_1", "site1_scan_2"], ["site1_scan_3"], []),  # one name shared by all
        (["hippocampus_001", "hippocampus_003"], ["hippocampus_004"], []),
    ],
)
def test_subjects_on_both_sides_are_found_by_their_names(train: list[str], val: list[str], expected: list[str]) -> None:
    assert shared_subjects(Split(tuple(train), tuple(val))) == expected


def test_a_shared_subject_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    split = Split(("p1_ses1", "p2_ses1", "p3_ses1"), ("p1_ses2",))
    select([split], [*split.train, *split.val], 0)
    assert "cases of p1 are in both train and val" in caplog.text
    assert "splits_final.json" in caplog.text
    assert "'segwright plan --groups'" in caplog.text


def test_a_group_on_both_sides_is_warned_about_instead_of_names(caplog: pytest.LogCaptureFixture) -> None:
    split = Split(("p1_ses1", "p2_ses1", "p3_ses1"), ("p1_ses2",))
    everyone = [*split.train, *split.val]
    select([split], everyone, 0, groups={name: name for name in everyone})
    assert not caplog.records
    select([split], everyone, 0, groups={**dict.fromkeys(everyone, "other"), "p3_ses1": "third"})
    assert "cases of group other are in both train and val" in caplog.text


def test_subjects_with_several_scans_are_found_with_a_pattern_for_all_names() -> None:
    names = ["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient003_frame01"]
    assert several_scans(names) == ["patient001"]
    assert subject_pattern(names) == r"patient\d+"
    assert subject_pattern([*names, "control_7"]) is None
    assert subject_pattern(["sub-01_ses-1", "sub-01_ses-2", "sub-02"]) == r"sub-\d+"
