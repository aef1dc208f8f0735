"""Find the cases of a folder in any layout, or of a table of paths, and their conversion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segwright.core.errors import Problem, ProblemReport
from segwright.data.cases import Case, list_folder, with_labels
from segwright.data.dataset import IMAGES_FOLDER, LABELS_FOLDER
from segwright.interop.datasets.conversion import Conversion
from segwright.interop.datasets.file_matching import Matching, match_files
from segwright.interop.datasets.file_names import ending_of
from segwright.interop.datasets.path_tables import find_tables, match_table
from segwright.interop.datasets.proposal import Proposal
from segwright.interop.datasets.reencoding import unify


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
        ProblemReport: files have endings of which one cannot be stored as the other.
    """
    matching, ending = proposal.matching, proposal.file_ending.lower()
    cases = {"Tr": matching.cases, **({"Ts": matching.test} if matching.test else {})}
    unified = unify(cases, ending)
    if unified.problems:
        raise ProblemReport(unified.problems)
    return Conversion(
        kind="folders",
        source=source,
        cases=cases,
        file_ending=ending,
        document={**proposal.document(lists_files=False), "file_ending": ending},
        num_split=unified.num_split,
        rewrites=unified.rewrites,
        unread=tuple(file for case in matching.test for file in (*case.images, case.label) if file is not None),
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
    listing = list_folder(images, ending := endings.pop(), labels=labels)
    numbers: Sequence[int] = sorted({len(case.images) for case in listing.cases})
    if listing.problems or listing.stray or len(numbers) != 1:
        return None
    test, notes = _standard_test_cases(folder, ending, numbers[0])
    return Matching(cases=listing.cases, test=test, channels=("",) * numbers[0], notes=notes, is_standard=True)


def _standard_test_cases(folder: Path, ending: str, num_channels: int) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    """Return the cases of `imagesTs` with all channels, with those label maps that there are, and what is skipped."""
    images, labels = (folder / name.replace("Tr", "Ts") for name in (IMAGES_FOLDER, LABELS_FOLDER))
    if not images.is_dir():
        return (), ()
    listing = list_folder(images, ending, labels=None)
    complete = [case for case in listing.cases if len(case.images) == num_channels]
    notes = [
        Problem(where=str(case.images[0]), what="skipped: not all channels")
        for case in listing.cases
        if case not in complete
    ]
    return with_labels(complete, labels, ending), (*notes, *listing.stray)
