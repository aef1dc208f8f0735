"""Citations of docs/reference/nnunet-behaviour.md: every cited section exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "nnunet-behaviour.md"
FOLDERS = ("src", "tests", "docs", "benchmarks", "examples")
SUFFIXES = {".py", ".md", ".c", ".h", ".html", ".js", ".css"}

SECTION = r"\d+(?:\.\d+)*"
CITATION = re.compile(rf"\bnnU-Net behaviour ({SECTION}(?:(?:, |-){SECTION})*)")
BROKEN = re.compile(rf"\bnnU-Net\s*\n\W*behaviour {SECTION}|\bnnU-Net behaviour\s*\n\W*\d")
PRIVATE = re.compile(r"\bspec(?:ification)?,? [AB]\b", re.IGNORECASE)
HEADING = re.compile(rf"^(#{{2,4}}) ({SECTION}) \S")


def texts() -> Iterator[tuple[str, str]]:
    """Yield the path and text of every source and documentation file."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def sections() -> list[str]:
    """Return the numbers of the page's headings, in order."""
    return [match[2] for line in PAGE.read_text(encoding="utf-8").splitlines() if (match := HEADING.match(line))]


def test_sections_count_up_without_gaps() -> None:
    expected: list[int] = []
    for number in sections():
        parts = [int(part) for part in number.split(".")]
        expected = [*expected[: len(parts)], *[0] * (len(parts) - len(expected))]
        expected[-1] += 1
        assert parts == expected, f"section {number}: expected {'.'.join(map(str, expected))}"


def test_every_cited_section_exists() -> None:
    known, found = set(sections()), 0
    for path, text in texts():
        for citation in CITATION.finditer(text):
            found += 1
            missing = [number for number in re.split(", |-", citation[1]) if number not in known]
            assert not missing, f"{path}: '{citation[0]}', but the page has no section {', '.join(missing)}"
    assert found > 100, "citations have another form now; change CITATION"


def test_no_citation_is_cut_by_a_line_break() -> None:
    assert not [f"{path}: {match[0]!r}" for path, text in texts() for match in BROKEN.finditer(text)]


def test_no_document_outside_the_repository_is_cited() -> None:
    assert not [f"{path}: {match[0]!r}" for path, text in texts() for match in PRIVATE.finditer(text)]
