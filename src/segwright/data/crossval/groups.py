"""Read which cases belong together, such as scans of one patient: from a table, by a pattern in names, or as given."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Final

from segwright.core.errors import DatasetError, did_you_mean
from segwright.core.files.names import path_problem, require_text_path
from segwright.data.crossval.splits import shorten

Groups = str | Mapping[str, str | int]
"""`FILE.csv:COLUMN`, `regex:PATTERN`, `none`, or the group of each case."""

REGEX: Final = "regex:"
NO_GROUPS: Final = "none"

_EXPECTED: Final = "expected FILE.csv:COLUMN, regex:PATTERN or none"
_DELIMITERS: Final = ",;\t"


def groups_of(given: Groups | None, identifiers: Sequence[str], *, folder: Path) -> dict[str, str] | None:
    """Return the group of each case; None without groups. Further cases that the groups name are left out.

    Args:
        given: the groups.
        identifiers: of all cases.
        folder: a relative path of a table starts here.

    Raises:
        DatasetError: a case has no group, or the table or the pattern cannot be read.
    """
    if given is None or given == NO_GROUPS:
        return None
    if isinstance(given, Mapping):
        found, source = {str(case): str(group) for case, group in given.items()}, "the mapping"
    elif given.startswith(REGEX):
        found, source = _matched(given.removeprefix(REGEX), identifiers), f"groups '{given}'"
    else:
        file, _, column = given.rpartition(":")
        if not file or not column:
            raise DatasetError(f"groups '{given}': {_EXPECTED}")
        found, source = _from_table(folder / file, column, identifiers), f"{folder / file}, column '{column}'"
    if missing := [case for case in identifiers if not found.get(case, "").strip()]:
        raise DatasetError(f"{source}: no group for case {shorten(missing)}; give every case of the dataset one")
    return {case: found[case].strip() for case in identifiers}


def absolute_source(given: Groups | None, folder: Path) -> Groups | None:
    """Return groups with the path of their table made absolute, so that they can be read from any folder."""
    if not isinstance(given, str) or ":" not in given or given.startswith(REGEX):
        return given
    return str(folder.absolute() / given)


def _matched(pattern: str, identifiers: Sequence[str]) -> dict[str, str]:
    """Return what the pattern matches in each name: its first group in parentheses, else all; other names are left out.

    Raises:
        DatasetError: the pattern is invalid.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DatasetError(
            rf"groups '{REGEX}{pattern}': not a regular expression ({error}); write for instance {REGEX}patient\d+"
        ) from error
    matches = {case: compiled.search(case) for case in identifiers}
    return {case: match[1 if compiled.groups else 0] or "" for case, match in matches.items() if match is not None}


def _from_table(file: Path, column: str, identifiers: Sequence[str]) -> dict[str, str]:
    """Return a column of a table by case; the names of cases are in the column that has most of them.

    Raises:
        DatasetError: the file cannot be read, has no such column or no names of cases, or a case has two groups.
    """
    rows = _rows(file)
    names = list(rows[0]) if rows else []
    if column not in names:
        raise DatasetError(f"{file}: no column '{column}'{did_you_mean(column, names) or '; the table is empty'}")
    known = set(identifiers)
    counts = {name: sum(row[name] in known for row in rows) for name in names}
    key = max(counts, key=lambda name: counts[name])
    if not counts[key]:
        raise DatasetError(f"{file}: no column has names of cases, such as {identifiers[0]}; add one")
    found: dict[str, str] = {}
    for row in rows:
        if found.setdefault(row[key], row[column]) != row[column]:
            raise DatasetError(
                f"{file}: case {row[key]} is in two groups of column '{column}', {found[row[key]]} and {row[column]}; "
                "give it one"
            )
    return found


def _rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a table by the names in its first row, surrounding spaces removed.

    Raises:
        DatasetError: the file is missing, or not a text of rows and columns.
    """
    if wrong := path_problem(require_text_path(file)):
        raise DatasetError(f"{file}: {wrong}; {_EXPECTED}")
    try:
        text = file.read_text(encoding="utf-8-sig")
        delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
        lines = list(csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: cannot be read as a CSV table ({error}); save it as UTF-8 text") from error
    names = [name.strip() for name in lines[0]] if lines else []
    return [
        {name: value.strip() for name, value in zip(names, [*line, *[""] * len(names)], strict=False)}
        for line in lines[1:]
        if any(value.strip() for value in line)
    ]
