"""Explain why files beside the cases belong to no case, so that none is skipped without notice."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Final, Literal
from unicodedata import normalize

from segwright.core.errors import Problem, WorkspaceError
from segwright.core.files.names import broken_link_problem, path_problem, path_remedy
from segwright.data.images.image_io import READERS

Kind = Literal["file", "folder", "dangling", "special"]

_OTHER_ENDINGS: Final = (".mgz", ".mgh", ".hdr", ".img", ".img.gz", ".nhdr", ".npy", ".npz", ".h5", ".zip")
"""Of images that no reader here supports, and of files that may contain images."""
_DICOM_ENDINGS: Final = (".dcm", ".ima")
_DICOM_MARK, _DICOM_MARK_AT = b"DICM", 128
_CONVERSIONS: Final = {(".nii", ".nii.gz"): "compress it with gzip", (".nii.gz", ".nii"): "unpack it with gunzip"}
_NO_CASE: Final = "belongs to no case: it "
_NAME_CHANNELS: Final = "name the first channel _0000 and use the file_ending of dataset.json"
_SHOWN = 3
"""Names that a message lists at most."""
_PROBED = 1000
"""At most as many entries of subfolders, and files that may be DICOM, are examined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A visible entry of a folder, links followed: `dangling` is a broken link, `special` a pipe or a device."""

    name: str
    kind: Kind


def entries(folder: Path) -> list[Entry]:
    """Return the visible entries of a folder, sorted; dot files are left by systems and interrupted writers.

    Raises:
        WorkspaceError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            listed = [Entry(name=each.name, kind=_kind(each)) for each in found if not each.name.startswith(".")]
    except OSError as error:
        raise WorkspaceError(f"{folder}: {path_problem(folder, 'folder') or error.strerror}") from error
    return sorted(listed, key=lambda entry: entry.name)


def similar_folder(folder: Path) -> str:
    """Return the end of a message about a missing folder: the most similar name beside it."""
    with suppress(WorkspaceError):
        there = [entry.name for entry in entries(folder.parent) if entry.kind == "folder"]
        folded = {name.casefold(): name for name in there}
        close = get_close_matches(folder.name.casefold(), folded, n=1, cutoff=0.6)
        return f"; found {folded[close[0]]}" if close else ""
    return ""


def similar_label(name: str, file_ending: str, labels: Iterable[Entry]) -> str:
    """Return the end of a message about a missing label map: a file that may be it."""
    identifier = name.removesuffix(file_ending)
    for entry in labels:
        stem = entry.name.removesuffix(file_ending)
        if entry.name == name:
            continue
        if normalize("NFC", entry.name) == normalize("NFC", name):
            return f"; found {entry.name}, whose accents are encoded in another way (NFC and NFD): rename one of them"
        if re.fullmatch(rf"{re.escape(identifier)}_\d{{4}}", stem):
            return f"; found {entry.name}, but label maps have no channel number: rename it"
        if entry.name.split(".")[0] == identifier or entry.name.casefold() == name.casefold():
            return f"; found {entry.name}, but images and labels must have the same file_ending and letter case"
    return ""


def describe_unmatched(folder: Path, others: Sequence[Entry], file_ending: str) -> tuple[Problem, ...]:
    """Return problems of entries in an image folder that belong to no case, grouped by reason."""
    groups: dict[str, list[tuple[Entry, str]]] = {}
    remedies: dict[str, str] = {}
    probed = 0
    for entry in others:
        probed += entry.kind == "file"
        found = _explain_unmatched(folder, entry, file_ending, probe=probed <= _PROBED)
        if found is not None:
            kind, reason, remedy = found
            groups.setdefault(kind, []).append((entry, reason))
            remedies.setdefault(kind, remedy)
    problems = []
    for kind, members in groups.items():
        first, reason = members[0]
        what = f"{_NO_CASE}{reason}{_and_more([entry.name for entry, _ in members[1:]])}"
        problems.append(Problem(where=str(folder / first.name), what=what, remedy=remedies[kind]))
    return tuple(problems)


def no_cases(folder: Path, others: Sequence[Entry], misses: Sequence[Problem], file_ending: str) -> Problem:
    """Return the problem of a folder without a case: what was expected, what is there, what to do."""
    wanted = f"no cases: no file named {{case}}_0000{file_ending}"
    if misses:
        first = misses[0]
        reason = first.what.removeprefix(_NO_CASE)
        found = f"{wanted}; found {Path(first.where).name}, which {reason}"
        return Problem(where=str(folder), what=found, remedy=first.remedy)
    found = f"; found {_shown([entry.name for entry in others])}" if others else ""
    return Problem(where=str(folder), what=f"{wanted}{found}", remedy=_NAME_CHANNELS)


def possible_label_map(folder: Path, file_ending: str) -> str:
    """Return the end of a message about a folder without label maps of `file_ending`: a file that may be one."""
    for entry in entries(folder):
        reason = _explain_unmatched(folder, entry, file_ending, probe=False)
        if reason is not None:
            return f"; found {entry.name}, which {reason[1]}"
    return ""


def _kind(entry: os.DirEntry[str]) -> Kind:
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError:  # links in a circle
        return "dangling"
    return "dangling" if entry.is_symlink() else "special"


def _explain_unmatched(folder: Path, entry: Entry, ending: str, *, probe: bool) -> tuple[str, str, str] | None:
    """Return group, reason and remedy for an entry that belongs to no case; None if it can be ignored."""
    path, name = folder / entry.name, entry.name
    if entry.kind == "folder":
        held = _images_below(path)
        what = f"is a folder that holds {_shown(held)}"
        return ("folder", what, "move the files up, or give that folder") if held else None
    if entry.kind == "dangling":
        if not _looks_like_image(name):
            return None
        return "dangling", broken_link_problem(path), path_remedy(path, "put the file there or remove the link")
    if entry.kind == "special":
        return "special", "is a pipe, socket or device", "remove it"
    if name.endswith(ending):
        return _wrong_name(name.removesuffix(ending), ending)
    if name.lower().endswith(ending.lower()):
        found = name[-len(ending) :]
        return "case", f"ends in {found}, not in {ending}", f"rename it {name[: -len(ending)]}{ending}"
    if name.lower().endswith(_DICOM_ENDINGS) or (probe and not _image_ending(name) and is_dicom(path)):
        return "dicom", "is a DICOM file", f"convert each series to one {ending} file, e.g. with dcm2niix"
    if found := _image_ending(name):
        how = _CONVERSIONS.get((found, ending), f"convert it to {ending}, e.g. with SimpleITK")
        return f"ending {found}", f"ends in {found}, not in {ending}", how
    return None


def _wrong_name(stem: str, ending: str) -> tuple[str, str, str]:
    """Return what is wrong with a name of the right ending."""
    if stem.lower().endswith(ending.lower()):
        return "twice", f"has the ending {ending} twice", f"rename it {stem[: -len(ending)]}{ending}"
    if re.fullmatch(r"_\d{4}", stem):
        return "nameless", "has no name before the channel number", f"rename it case{stem}{ending}"
    lacks = "lacks the channel number" + (", which has four digits" if re.search(r"_\d+$", stem) else "")
    return "channel", lacks, f"rename it {stem}_0000{ending} if it is the first channel"


def _images_below(folder: Path) -> list[str]:
    """Return files in a subfolder, and one level further down, that look like images."""
    found = []
    with suppress(WorkspaceError):
        for entry in islice(entries(folder), _PROBED):
            path = folder / entry.name
            if entry.kind == "folder":
                with suppress(WorkspaceError):
                    below = islice(entries(path), _PROBED)
                    found += [f"{entry.name}/{each.name}" for each in below if _looks_like_image(each.name)]
            elif _looks_like_image(entry.name) or (entry.kind == "file" and not found and is_dicom(path)):
                found.append(entry.name)
    return [f"{folder.name}/{name}" for name in found]


def _looks_like_image(name: str) -> bool:
    return bool(_image_ending(name)) or name.lower().endswith(_DICOM_ENDINGS)


def _image_ending(name: str) -> str:
    """Return the image ending as spelled in the name; empty for other files."""
    known = {ending for reader in READERS.values() for ending in reader.endings}
    fitting = [ending for ending in (*known, *_OTHER_ENDINGS) if name.lower().endswith(ending)]
    return name[-max(map(len, fitting)) :] if fitting else ""


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as stream:
            return stream.read(_DICOM_MARK_AT + len(_DICOM_MARK))[_DICOM_MARK_AT:] == _DICOM_MARK
    except OSError:
        return False


def _shown(names: Sequence[str]) -> str:
    return f"{names[0]}{_and_more(names[1:], before=' and ')}"


def _and_more(names: Sequence[str], *, before: str = "; so do ") -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{before}{shown}" + (f" and {more} more" if more > 0 else "")
