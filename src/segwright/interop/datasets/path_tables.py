"""Read a table (CSV) with one case per row and paths of its images and its label map."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Final

from segwright.core.errors import Problem, ProblemReport, SegwrightError
from segwright.core.files.json_documents import read_bytes
from segwright.core.files.names import path_problem
from segwright.interop.datasets.file_matching import FoundImage, Matching, matching_of
from segwright.interop.datasets.file_names import IMAGE_WORDS, LABEL_WORDS, ending_of, name_file, words

MAX_BYTES: Final = 64 << 20

_DELIMITERS: Final = ",;\t"
_CASE_WORDS: Final = frozenset({"case", "id", "identifier", "subject", "patient", "name"})

Row = Mapping[str, str]


def find_tables(folder: Path) -> list[Path]:
    """Return the CSV files of a folder with columns of paths, one of them of label maps, to files that mostly exist."""
    tables = []
    for file in sorted(folder.glob("[!.]*.csv")):
        try:
            rows = _rows(file)
        except SegwrightError:
            continue
        columns = _path_columns(rows)
        paths = [_file(folder, row[column]) for row in rows for column in columns if row[column]]
        is_meant = 2 * sum(not path_problem(path) for path in paths) > len(paths)
        if is_meant and len(columns) > 1 and any(LABEL_WORDS & {*words(column)} for column in columns):
            tables.append(file)
    return tables


def match_table(file: Path) -> Matching:
    """Return the cases of a table: a column whose name says so (`label`, `mask`) holds label maps, others images.

    A column such as `case` or `id` holds the case ids; without one, the names of the label maps are used. Paths are
    relative to the folder of the table. A row without a label map is a case without one.

    Raises:
        SegwrightError: the file is no table of text.
        ProblemReport: columns or files are missing; every finding is listed.
    """
    rows = _rows(file)
    label, channels = _meanings(file, _path_columns(rows))
    others = [column for column in rows[0] if column != label and column not in channels]
    ids = [column for column in others if _CASE_WORDS & {*words(column)}]
    problems: list[Problem] = []
    found: list[FoundImage] = []
    maps: dict[str, Path] = {}
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        paths = {column: _file(file.parent, row[column]) for column in (*channels, label) if row[column]}
        problems += [
            Problem(where=f"{file}, line {number}, {column}", what=f"{path}: {wrong}", remedy="correct the path")
            for column, path in paths.items()
            if (wrong := path_problem(path))
        ]
        if not paths:
            continue
        case = row[ids[0]] if ids else _identifier(paths.get(label, next(iter(paths.values()))))
        if case in seen:
            what, remedy = f"case '{case}' is there twice", "give a column 'case' with an id for each row"
            problems.append(Problem(where=f"{file}, line {number}", what=what, remedy=remedy))
        seen.add(case)
        if label in paths:
            maps[case] = paths[label]
        found += [
            FoundImage(case=case, channel=channels[column], path=path)
            for column, path in paths.items()
            if column != label
        ]
    if problems:
        raise ProblemReport(problems)
    return matching_of(file.parent, found, maps)


def _meanings(file: Path, columns: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the column of label maps, and the channel of each column of images.

    Raises:
        ProblemReport: there is not one column of label maps, or none of images.
    """
    labels = [column for column in columns if LABEL_WORDS & {*words(column)}]
    images = [column for column in columns if column not in labels]
    if len(labels) != 1 or not images:
        what = f"has columns of paths for {_shown(images)} (images) and {_shown(labels)} (label maps)"
        remedy = "name one column 'label', and at least one other 'image' or as its channel"
        raise ProblemReport([Problem(where=str(file), what=what, remedy=remedy)])
    channels = {column: "_".join(word for word in words(column) if word not in IMAGE_WORDS) for column in images}
    if len({*channels.values()}) < len(images):
        channels = {column: column for column in images}
    return labels[0], channels


def _rows(file: Path) -> list[Row]:
    """Return the rows of a table by the names in its first line."""
    try:
        text = read_bytes(file, max_bytes=MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SegwrightError(f"{file}: is not UTF-8 text; save it as CSV with UTF-8") from error
    if not text.strip():
        raise SegwrightError(f"{file}: is no table with a line of column names (it is empty)")
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    try:
        header, *rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
    except (csv.Error, ValueError) as error:
        raise SegwrightError(f"{file}: is no table with a line of column names ({error})") from error
    names = [name.strip() for name in header]
    if not rows or len({*names}) < len(names):
        raise SegwrightError(
            f"{file}: expected different column names in the first line and one case per line after it"
        )
    return [dict(zip(names, [*(cell.strip() for cell in row), *[""] * len(names)], strict=False)) for row in rows]


def _path_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns whose filled cells, or all but a few, name image files."""
    columns = []
    for column in rows[0]:
        filled = [row[column] for row in rows if row[column]]
        if filled and 2 * sum(bool(ending_of(cell)) for cell in filled) > len(filled):
            columns.append(column)
    return columns


def _file(folder: Path, cell: str) -> Path:
    """Return the path in a cell, relative to a folder; as Windows writes it if there is no other."""
    written = folder / cell
    return folder / cell.replace("\\", "/") if "\\" in cell and path_problem(written) else written


def _identifier(path: Path) -> str:
    named = name_file(path.parent.parent, path)
    return named.pieces[-1] if named.pieces else path.parent.name


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(f"'{column}'" for column in columns) or "none"
