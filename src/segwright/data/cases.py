"""Which files make up which case: folder listings by name, explicit lists, and what is missing (spec A 1.4, 1.5)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segwright.core.errors import Problem

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The files of one case: one image per channel, in order, and the label map if there is one."""

    identifier: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Cases that were found, with what is wrong and what belongs to none of them.

    Attributes:
        is_explicit: the files were listed by hand, so that their names say nothing about channels.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    stray: tuple[Path, ...] = ()
    is_explicit: bool = False


def list_folder(images: Path, file_ending: str, *, labels: Path | None) -> Listing:
    """List the cases of a folder of `{case}_{CCCC}{file_ending}` files, with their labels `{case}{file_ending}`."""
    missing_folders = [
        Problem(where=str(folder), what="no such folder", remedy=f"a dataset keeps its {kind} there")
        for folder, kind in ((images, "images"), (labels, "labels"))
        if folder is not None and not folder.is_dir()
    ]
    if missing_folders:
        return Listing(cases=(), problems=tuple(missing_folders))
    groups: dict[str, list[str]] = {}
    stray = []
    for name in _names(images):
        match = _CHANNEL.fullmatch(name.removesuffix(file_ending)) if name.endswith(file_ending) else None
        if match is not None:
            groups.setdefault(match["case"], []).append(name)
        elif name.lower().endswith(file_ending.lower()):
            stray.append(images / name)
    known = set(_names(labels)) if labels is not None else set()
    cases, problems = [], []
    for identifier in sorted(groups):
        label = None if labels is None else labels / f"{identifier}{file_ending}"
        if label is not None and label.name not in known:
            problems.append(_missing_label(label, identifier, known))
        files = tuple(images / name for name in sorted(groups[identifier]))
        cases.append(Case(identifier=identifier, images=files, label=label))
    return Listing(cases=tuple(cases), problems=tuple(problems), stray=tuple(stray))


def explicit_cases(
    folder: Path, entries: Mapping[str, tuple[Sequence[str], str]], environment: Mapping[str, str]
) -> Listing:
    """Return the cases of explicit file lists: variables expanded, relative paths taken from `folder`."""
    cases = []
    problems = []
    for identifier, (images, label) in entries.items():
        resolved = []
        for text in (*images, label):
            unset = sorted({name for name in _variables(text) if name not in environment})
            file = Path(os.path.abspath(folder / _expand(text, environment)))
            resolved.append(file)
            if unset:
                what = f"environment variable {unset[0]} is not set, needed for {text}"
                problems.append(Problem(where=f"case '{identifier}'", what=what, remedy="set it or write the path out"))
            elif not file.is_file():
                what = f"no such file, listed for case '{identifier}'"
                problems.append(Problem(where=str(file), what=what, remedy="mend the path in dataset.json"))
        cases.append(Case(identifier=identifier, images=tuple(resolved[:-1]), label=resolved[-1]))
    return Listing(cases=tuple(cases), problems=tuple(problems), is_explicit=True)


def channel_problems(listing: Listing, names: Sequence[str], file_ending: str) -> list[Problem]:
    """Return which channel files are missing or too many, given the name of the channel that each file should hold."""
    expected = [f"{index:04d}" for index in range(len(names))]
    if not listing.is_explicit:
        expected = _shared_suffixes(listing.cases, file_ending, expected)
    problems = []
    for case in listing.cases:
        wanted = f"expected {len(names)} channel file(s) ({', '.join(names)})"
        if listing.is_explicit:
            if len(case.images) != len(names):
                what = f"lists {len(case.images)} image(s), {wanted}"
                problems.append(Problem(where=f"case '{case.identifier}'", what=what, remedy="mend dataset.json"))
            continue
        found = _suffixes(case, file_ending)
        for suffix, name in zip(expected, names, strict=True):
            if suffix not in found:
                file = case.images[0].with_name(f"{case.identifier}_{suffix}{file_ending}")
                what = f"no such file, channel {suffix} ({name}) of case '{case.identifier}'; {wanted}"
                problems.append(Problem(where=str(file), what=what, remedy="add the file or remove the case"))
        for suffix, file in found.items():
            if suffix not in expected:
                remedy = "remove the file or name its channel in dataset.json"
                problems.append(Problem(where=str(file), what=f"one channel too many, {wanted}", remedy=remedy))
    return problems


def surplus_labels(labels: Path, cases: Sequence[Case], file_ending: str) -> list[Path]:
    """Return label files that no case asks for."""
    wanted = {case.label for case in cases}
    return [labels / name for name in _names(labels) if name.endswith(file_ending) and labels / name not in wanted]


def _names(folder: Path) -> list[str]:
    """Return the visible files of a folder; dot files are what systems and interrupted writers leave behind."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())


def _missing_label(label: Path, identifier: str, known: set[str]) -> Problem:
    similar = sorted(name for name in known if name.split(".")[0] == identifier)
    hint = f"; found {similar[0]}, but images and labels share one file_ending" if similar else ""
    what = f"no such file, the label of case '{identifier}'{hint}"
    return Problem(where=str(label), what=what, remedy="add the file or remove the case's images")


def _suffixes(case: Case, file_ending: str) -> dict[str, Path]:
    return {file.name.removesuffix(file_ending)[-4:]: file for file in case.images}


def _shared_suffixes(cases: Sequence[Case], file_ending: str, expected: list[str]) -> list[str]:
    """Return the channel numbers all cases share; any will do, as only their order counts (spec A 1.4)."""
    counted = Counter(tuple(_suffixes(case, file_ending)) for case in cases)
    if len(counted) == 1:
        (only,) = counted
        if len(only) == len(expected):
            return list(only)
    return expected


def _variables(text: str) -> list[str]:
    return [match["braced"] or match["plain"] for match in _VARIABLE.finditer(text)]


def _expand(text: str, environment: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: environment.get(match["braced"] or match["plain"], match[0]), text)
