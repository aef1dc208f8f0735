from __future__ import annotations

import json
from pathlib import Path

import pytest

from segwright.core.errors import DatasetError, SegwrightError
from segwright.data.splits import Split, default_splits, load, resolve, save, select

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


def test_saved_splits_are_read_back(tmp_path: Path) -> None:
    save(tmp_path / "splits_final.json", default_splits(NAMES))

    assert load(tmp_path / "splits_final.json") == default_splits(NAMES)
    assert list(json.loads((tmp_path / "splits_final.json").read_text())[0]) == ["train", "val"]


@pytest.mark.parametrize("text", ["[]", "{}", '[{"train": ["a"]}]', '[{"train": "a", "val": []}]', "no json"])
def test_unusable_splits_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)

    with pytest.raises(SegwrightError, match=r"s\.json"):
        load(tmp_path / "s.json")


def test_resolving_makes_and_keeps_the_default(tmp_path: Path) -> None:
    made = resolve(tmp_path / "p" / "splits_final.json", NAMES)

    assert made == load(tmp_path / "p" / "splits_final.json") == default_splits(NAMES)


def test_resolving_prefers_the_datasets_own(tmp_path: Path) -> None:
    own = [Split(train=("c0",), val=("c1",))]
    save(tmp_path / "raw.json", own)

    assert resolve(tmp_path / "p.json", NAMES, raw_file=tmp_path / "raw.json") == own
    assert load(tmp_path / "p.json") == own


def test_resolving_accepts_the_same_folds_in_other_order(tmp_path: Path) -> None:
    save(tmp_path / "raw.json", [Split(train=("c1", "c0"), val=("c2",))])
    present = [Split(train=("c0", "c1"), val=("c2",)), Split(train=("c2",), val=("c1",))]
    save(tmp_path / "p.json", present)

    assert resolve(tmp_path / "p.json", NAMES, raw_file=tmp_path / "raw.json") == present


def test_resolving_refuses_contradicting_files(tmp_path: Path) -> None:
    save(tmp_path / "raw.json", [Split(train=("c0",), val=("c1",))])
    save(tmp_path / "p.json", [Split(train=("c1",), val=("c0",))])

    with pytest.raises(DatasetError, match="folds differ from those of"):
        resolve(tmp_path / "p.json", NAMES, raw_file=tmp_path / "raw.json")


def test_fold_all_trains_and_validates_on_everything() -> None:
    assert select([], NAMES[::-1], "all") == Split(train=tuple(NAMES), val=tuple(NAMES))


@pytest.mark.parametrize("fold", [5, -1])
def test_absent_fold_is_refused(fold: int) -> None:
    with pytest.raises(DatasetError, match=f"fold {fold} does not exist; choose from 0 to 4, or all"):
        select(default_splits(NAMES), NAMES, fold)


def test_fold_with_missing_cases_is_refused() -> None:
    with pytest.raises(DatasetError, match="fold 0: no data for c8, c9; preprocess the missing cases"):
        select(default_splits(NAMES), NAMES[:8], 0)


def test_fold_without_validation_is_refused() -> None:
    with pytest.raises(DatasetError, match="at least one training and one validation case"):
        select([Split(train=("c0",), val=())], NAMES, 0)


def test_overlap_warns(caplog: pytest.LogCaptureFixture) -> None:
    select([Split(train=("c0", "c1"), val=("c1",))], NAMES, 0)

    assert "c1 are both in train and val" in caplog.text
