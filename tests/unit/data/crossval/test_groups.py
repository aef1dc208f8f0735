"""Groups of cases: tables, patterns, mappings, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from segwright.core.errors import DatasetError
from segwright.data.crossval.groups import Groups, absolute_source, groups_of

CASES = ["p01_a", "p01_b", "p02_a"]
EXPECTED = {"p01_a": "p01", "p01_b": "p01", "p02_a": "p02"}


@pytest.mark.parametrize(
    "text",
    [
        "case,patient\np01_a,p01\np01_b,p01\np02_a,p02\n",
        "patient;age;case\np01;60;p01_a\np01;60;p01_b\np02;;p02_a\nmore;1;unknown\n",
        "\ufeffcase\tpatient\r\np01_a\tp01\r\np01_b\t p01 \r\n\r\np02_a\tp02",
        'case,patient\np01_a,"p01"\np01_b,p01\np02_a,p02\np02_a,p02\n',
    ],
)
def test_a_column_of_a_table_gives_the_groups(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")
    assert groups_of("table.csv:patient", CASES, folder=tmp_path) == EXPECTED
    absolute = absolute_source("table.csv:patient", tmp_path)
    assert absolute == f"{tmp_path}/table.csv:patient"
    assert groups_of(absolute, CASES, folder=Path("/elsewhere")) == EXPECTED


@pytest.mark.parametrize("pattern", [r"p\d+", r"^(p\d+)_", r"(p0.)_(a|b)"])
def test_a_pattern_gives_the_groups(pattern: str) -> None:
    assert groups_of(f"regex:{pattern}", CASES, folder=Path()) == EXPECTED


def test_a_mapping_may_have_numbers_and_further_cases() -> None:
    given = {"p01_a": 1, "p01_b": 1, "p02_a": "2", "unknown": 3}
    assert groups_of(given, CASES, folder=Path()) == {"p01_a": "1", "p01_b": "1", "p02_a": "2"}


@pytest.mark.parametrize("given", [None, "none"])
def test_there_may_be_no_groups(given: str | None) -> None:
    assert groups_of(given, CASES, folder=Path()) is None
    assert absolute_source(given, Path("/x")) == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("patients", r"groups 'patients': expected FILE\.csv:COLUMN, regex:PATTERN or none"),
        ("regex:(p", r"groups 'regex:\(p': not a regular expression .* write for instance regex:patient\\d\+"),
        (r"regex:p01", "groups 'regex:p01': no group for case p02_a; give every case"),
        ("regex:x*", "no group for case p01_a, p01_b, p02_a"),
        ({"p01_a": "1"}, "the mapping: no group for case p01_b, p02_a"),
        ("absent.csv:patient", r"absent\.csv: no such file"),
        ("table.csv:patients", r"table\.csv: no column 'patients'; did you mean 'patient'\?"),
        ("table.csv:empty", r"table\.csv, column 'empty': no group for case p01_a, p01_b, p02_a"),
        ("twice.csv:patient", r"twice\.csv: case p01_a is in two groups of column 'patient', 1 and 2; give it one"),
        ("others.csv:patient", r"others\.csv: no column has names of cases, such as p01_a"),
        ("nothing.csv:patient", r"nothing\.csv: no column 'patient'; the table is empty"),
        ("binary.csv:patient", r"binary\.csv: cannot be read as a CSV table"),
    ],
)
def test_unusable_groups_are_refused(tmp_path: Path, given: Groups, message: str) -> None:
    (tmp_path / "table.csv").write_text("case,patient,empty\np01_a,1,\np01_b,1,\np02_a,2,\n")
    (tmp_path / "twice.csv").write_text("case,patient\np01_a,1\np01_a,2\n")
    (tmp_path / "others.csv").write_text("case,patient\nq1,1\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=message) as caught:
        groups_of(given, CASES, folder=tmp_path)
    assert "\n" not in str(caught.value)
