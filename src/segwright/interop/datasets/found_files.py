"""List the images below a folder, and say why files that may be meant are not among them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from segwright.core.errors import Problem, ProblemReport
from segwright.core.files.names import path_problem, path_remedy
from segwright.data.unmatched_files import is_dicom
from segwright.interop.datasets.file_names import ending_of

_ARCHIVE_LEFTOVERS: Final = "__MACOSX"
"""A folder with macOS's attributes of files, under their names."""
_PROBED: Final = 20
"""Files at most that are opened to see whether they are DICOM."""
_OTHER_PICTURES: Final = (".jpg", ".jpeg", ".gif", ".webp")


def images_below(root: Path) -> list[Path]:
    """Return the files below a folder that have the ending of an image; hidden files and folders are skipped.

    Raises:
        ProblemReport: there are none, or links to missing files.
    """
    files = _files_below(root)
    named = [file for file in files if ending_of(file.name)]
    if broken := [file for file in named if not file.exists()]:
        raise ProblemReport([_broken_links(broken)])
    found = [file for file in named if file.is_file()]
    if not found:
        raise ProblemReport([_no_images(root, files)])
    return found


def unread_pictures(root: Path) -> str:
    """Return what to do about pictures that are not read, if there are some."""
    counts = Counter(_shown_ending(file) for file in _files_below(root))
    found = [f"{counts[ending]} {ending}" for ending in _OTHER_PICTURES if counts[ending]]
    return f"convert the pictures that are not read to .png ({', '.join(found)})" if found else ""


def _files_below(root: Path) -> list[Path]:
    """Return the visible files below a folder, and links to none; links to folders are followed, each folder once."""
    files, seen = [], {os.path.realpath(root)}
    for folder, inner, names in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(inner):
            place = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and name != _ARCHIVE_LEFTOVERS and place not in seen:
                seen.add(place)
                kept.append(name)
        inner[:] = kept
        files += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    return files


def _broken_links(files: Sequence[Path]) -> Problem:
    more = f", as are {len(files) - 1} more" if len(files) > 1 else ""
    what = f"{path_problem(files[0])}{more}"
    return Problem(
        where=str(files[0]), what=what, remedy=path_remedy(files[0], "put the file there or remove the link")
    )


def _no_images(root: Path, files: Sequence[Path]) -> Problem:
    """Return the problem of a folder without a file that can be read, naming what it holds."""
    counts = Counter(_shown_ending(file) for file in files).most_common(3)
    what = "holds no image that can be read"
    if counts:
        what += f"; found {', '.join(f'{count} files with {ending}' for ending, count in counts)}"
    if any(is_dicom(file) for file in files[:_PROBED]):
        remedy = "convert each DICOM series to one .nii.gz file, e.g. with dcm2niix"
    else:
        remedy = "convert the files to .nii.gz (volumes) or .png (pictures)"
    return Problem(where=str(root), what=what, remedy=remedy)


def _shown_ending(file: Path) -> str:
    return file.suffix.lower() or "no ending"
