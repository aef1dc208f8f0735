"""Find the cases of a folder in any layout, or of a table of paths, and their conversion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segwright.core.errors import Problem, ProblemReport
from segwright.data.cases import list_folder
from segwright.data.dataset import IMAGES_FOLDER, LABELS_FOLDER
from segwright.interop.datasets.conversion import Conversion
from segwright.interop.datasets.file_matching import Matching, match_files
from segwright.interop.datasets.file_names import ending_of
from segwright.interop.datasets.path_tables import find_tables, match_table
from segwright.interop.datasets.proposal import Proposal


def find_cases(source: Path, *, images: str | None = None, labels: str | None = None) -> Matching:
    """Return the cases of a table, of a folder in nnU-Net's raw layout or with one table, or by file names.

    Args:
        source: folder or table.
        images: folder or pattern, as `match_files`.
        labels: the same for label maps.

    Raises:
        ProblemReport: there are none, or it is not certain what belongs together.
    """
    if source.is_file():
        return match_table(source)
    if images is None and labels is None:
        if standard := _standard_layout(source):
            return standard
        tables = find_tables(source)
        if len(tables) > 1:
            what = f"holds several tables of paths: {', '.join(table.name for table in tables)}"
            raise ProblemReport([Problem(where=str(source), what=what, remedy="keep one of them")])
        if tables:
            return match_table(tables[0])
    return match_files(source, images=images, labels=labels)


def folders_conversion(source: Path, proposal: Proposal) -> Conversion:
    """Return the conversion of cases found by `find_cases`.

    Raises:
        ProblemReport: files have several endings.
    """
    matching = proposal.matching
    ending = proposal.file_ending
    every = [*matching.cases, *matching.test]
    files = [file for case in every for file in (*case.images, case.label) if file is not None]
    others = [file for file in files if ending_of(file.name).lower() != ending.lower()]
    if others:
        what = f"ends in {ending_of(others[0].name)}, most images in {ending}; so do {len(others) - 1} more files"
        remedy = f"convert them to {ending}, or use 'segwright init', whose file lists may mix endings"
        raise ProblemReport([Problem(where=str(others[0]), what=what, remedy=remedy)])
    return Conversion(
        kind="folders",
        source=source,
        cases={"Tr": matching.cases, **({"Ts": matching.test} if matching.test else {})},
        file_ending=ending.lower(),
        document={**proposal.document(lists_files=False), "file_ending": ending.lower()},
        notes=proposal.notes,
    )


def _standard_layout(folder: Path) -> Matching | None:
    """Return the cases of a folder in nnU-Net's raw layout without a fault; None for any other."""
    images, labels = folder / IMAGES_FOLDER, folder / LABELS_FOLDER
    if not images.is_dir() or not labels.is_dir():
        return None
    endings = {ending_of(file.name) for file in images.iterdir() if not file.name.startswith(".")}
    if len(endings) != 1 or "" in endings:
        return None
    listing = list_folder(images, endings.pop(), labels=labels)
    numbers: Sequence[int] = sorted({len(case.images) for case in listing.cases})
    if listing.problems or listing.stray or len(numbers) != 1:
        return None
    return Matching(cases=listing.cases, channels=("",) * numbers[0], is_standard=True)
