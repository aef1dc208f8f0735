"""Splits are found or made, and made anew when cases or groups change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segwright.core.errors import ConfigError, DatasetError
from segwright.data.crossval.balance import grouped_splits
from segwright.data.crossval.resolving import RECORD_JSON, SplitMaker, SplitOptions
from segwright.data.crossval.splits import Split, default_splits, load, save

NAMES = [f"c{index}" for index in range(10)]
PAIRS = {name: f"g{index // 2}" for index, name in enumerate(NAMES)}
BY_PAIR = SplitOptions(groups=PAIRS)
RARE = {name: {1} if index < 5 else set() for index, name in enumerate(NAMES)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "splits_final.json"


def test_the_default_is_made_and_kept_without_a_record(file: Path) -> None:
    made = SplitMaker(file, NAMES).resolve()

    assert made == load(file) == default_splits(NAMES)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_datasets_own_are_preferred(file: Path, tmp_path: Path) -> None:
    own = [Split(train=("c0",), val=("c1",))]
    save(tmp_path / "raw.json", own)

    assert SplitMaker(file, NAMES, raw_file=tmp_path / "raw.json", declared=PAIRS).resolve() == own
    assert load(file) == own


def test_the_same_folds_in_other_order_are_accepted(file: Path, tmp_path: Path) -> None:
    save(tmp_path / "raw.json", [Split(train=("c1", "c0"), val=("c2",))])
    present = [Split(train=("c0", "c1"), val=("c2",)), Split(train=("c2",), val=("c1",))]
    save(file, present)

    assert SplitMaker(file, NAMES, raw_file=tmp_path / "raw.json").resolve() == present


def test_contradicting_files_are_refused(file: Path, tmp_path: Path) -> None:
    save(tmp_path / "raw.json", [Split(train=("c0",), val=("c1",))])
    save(file, [Split(train=("c1",), val=("c0",))])

    with pytest.raises(DatasetError, match="folds differ from those of"):
        SplitMaker(file, NAMES, raw_file=tmp_path / "raw.json").resolve()


@pytest.mark.parametrize("grown", [NAMES, NAMES[:5], NAMES[1:7]])
def test_default_splits_of_other_cases_are_made_anew_while_no_fold_is_trained(
    file: Path, grown: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    save(file, default_splits(NAMES[:6]))

    assert SplitMaker(file, grown).resolve(in_use=False, write=False) == default_splits(grown)
    assert load(file) == default_splits(NAMES[:6])
    with caplog.at_level("INFO"):
        assert SplitMaker(file, grown).resolve(in_use=False) == load(file) == default_splits(grown)
    assert "so new folds are made" in caplog.text


def test_splits_in_use_or_of_a_person_are_kept_whatever_cases_there_are(file: Path) -> None:
    save(file, default_splits(NAMES[:6]))
    assert SplitMaker(file, NAMES, declared=PAIRS).resolve(in_use=True) == default_splits(NAMES[:6])

    own = [Split(train=tuple(NAMES[:4]), val=(NAMES[5],))]
    save(file, own)
    assert SplitMaker(file, NAMES, declared=PAIRS).resolve(in_use=False) == own


def test_groups_and_strata_are_remembered_with_a_record(file: Path) -> None:
    made = SplitMaker(file, NAMES, options=BY_PAIR).resolve()

    assert made == load(file) == grouped_splits(PAIRS)
    record = json.loads((file.parent / RECORD_JSON).read_text())
    assert record["schema_version"] == 1
    assert record["group_of_case"] == PAIRS
    again = SplitMaker(file, NAMES)
    assert again.groups == PAIRS
    assert again.resolve(in_use=False) == made
    file.unlink()
    assert SplitMaker(file, NAMES).resolve(in_use=False) == made
    even = SplitMaker(file, NAMES, options=SplitOptions(groups="none", stratify=True))
    assert even.resolve(in_use=False, read_labels=lambda: RARE) == load(file)
    assert [sum(RARE[case] == {1} for case in split.val) for split in load(file)] == [1] * 5
    assert SplitMaker(file, NAMES).resolve(in_use=False) == load(file)


def test_labels_are_read_only_where_folds_are_made(file: Path) -> None:
    options = SplitOptions(stratify=True)
    calls: list[int] = []

    def read() -> dict[str, set[int]]:
        calls.append(1)
        return RARE

    for _ in range(2):
        SplitMaker(file, NAMES, options=options).resolve(in_use=False, read_labels=read)
    assert calls == [1]


def test_groups_of_the_dataset_hold_until_a_command_gives_others(file: Path) -> None:
    assert SplitMaker(file, NAMES, declared=PAIRS).resolve(in_use=False) == grouped_splits(PAIRS)
    threes = {name: f"g{index // 3}" for index, name in enumerate(NAMES)}
    assert SplitMaker(file, NAMES, declared=threes).resolve(in_use=False) == grouped_splits(threes)
    assert SplitMaker(file, NAMES).resolve(in_use=False) == default_splits(NAMES)
    SplitMaker(file, NAMES, options=SplitOptions(groups="none")).resolve(in_use=False)
    maker = SplitMaker(file, NAMES, declared=PAIRS)
    assert (maker.groups, maker.knows_groups) == (None, True)


def test_new_cases_need_groups_and_get_folds_with_them(file: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = ["case,patient", *(f"{name},{group}" for name, group in PAIRS.items())]
    table.write_text("\n".join(rows))
    given = SplitOptions(groups=f"{table}:patient")
    first = SplitMaker(file, NAMES[:8], options=given).resolve(in_use=False)
    table.rename(tmp_path / "moved.csv")
    assert SplitMaker(file, NAMES[:8]).resolve() == first
    with pytest.raises(DatasetError, match=r"table\.csv: no such file"):
        SplitMaker(file, NAMES)
    (tmp_path / "moved.csv").rename(table)
    assert SplitMaker(file, NAMES).resolve(in_use=True) == first
    assert SplitMaker(file, NAMES).resolve(in_use=False) == grouped_splits(PAIRS)


def test_groups_do_not_change_folds_that_are_in_use(file: Path, tmp_path: Path) -> None:
    SplitMaker(file, NAMES, options=BY_PAIR).resolve()
    kept = load(file)
    assert SplitMaker(file, NAMES, options=SplitOptions(groups={**PAIRS, "new": "g9"})).resolve() == kept
    for options in (SplitOptions(groups="regex:c."), SplitOptions(groups="none"), SplitOptions(stratify=True)):
        with pytest.raises(ConfigError, match="a fold was trained with these splits"):
            SplitMaker(file, NAMES, options=options).resolve()
    assert load(file) == kept


def test_options_do_not_replace_folds_made_by_hand(file: Path, tmp_path: Path) -> None:
    own = [Split(train=tuple(NAMES[:4]), val=(NAMES[5],))]
    save(file, own)
    with pytest.raises(ConfigError, match="edited or made by another program.*delete the file"):
        SplitMaker(file, NAMES, options=BY_PAIR).resolve(in_use=False)
    save(tmp_path / "raw.json", own)
    with pytest.raises(ConfigError, match=r"raw\.json: these folds are used as they are; leave out --groups"):
        SplitMaker(file, NAMES, raw_file=tmp_path / "raw.json", options=BY_PAIR).resolve(in_use=False)


def test_edited_splits_are_no_longer_ours_and_a_damaged_record_is_told(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = SplitMaker(file, NAMES, options=BY_PAIR).resolve()
    assert SplitMaker(file, NAMES).is_ours(made)
    edited = [made[1], made[0], *made[2:]]
    assert not SplitMaker(file, NAMES).is_ours(edited)
    (file.parent / RECORD_JSON).write_text("{}")
    assert SplitMaker(file, NAMES).resolve(in_use=False) == made
    assert "from what the splits were made is unknown" in caplog.text


def test_one_group_makes_no_folds(file: Path) -> None:
    with pytest.raises(DatasetError, match="all 10 cases are in one group, c, and folds need at least two"):
        SplitMaker(file, NAMES, options=SplitOptions(groups="regex:c")).resolve()
    assert not file.exists()
