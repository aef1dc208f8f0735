"""Print results as tables on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from segwright.core.text import printable


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table; columns after the first contain numbers and are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, rows = [printable(name) for name in columns], [[printable(cell) for cell in row] for row in rows]
    console = Console(highlight=False)
    if not console.is_terminal:
        needed = 4 + sum(3 + max(cell_len(row[index]) for row in [columns, *rows]) for index in range(len(columns)))
        console = Console(highlight=False, width=max(80, needed))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Text(printable(title)), style="bold")  # rich would wrap a title at the width of the table
    console.print(table)


def print_scores(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table with one row per name and one column per measure."""
    measures = list(next(iter(rows.values()), {}))
    print_table(
        title, ["", *measures], [[name, *(number(values[key]) for key in measures)] for name, values in rows.items()]
    )


def print_line(text: str) -> None:
    """Print one line without interpreting markup in names."""
    print(printable(text))


def print_json(document: Any) -> None:
    """Print one JSON document; NaN and infinity become null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False, default=str))


def number(value: float | None, digits: int = 4) -> str:
    """Format a score; None and NaN are a dash.

    >>> number(0.87654), number(float("nan"))
    ('0.8765', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
