"""Find the files of each case, from a folder or from explicit lists, and report what is missing.

nnU-Net behaviour 1.3, 1.4.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from unicodedata import normalize

from segwright.core.errors import Problem
from segwright.core.files.names import (
    IGNORES_CASE,
    NAME_REMEDY,
    NO_FILE,
    NO_TEXT,
    encoding_remedy,
    name_problem,
    path_problem,
    path_remedy,
    shown_name,
)
from segwright.data.unmatched_files import (
    Entry,
    describe_unmatched,
    entries,
    no_cases,
    similar_folder,
    similar_label,
)

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")

_FIX_PATH: Final = "correct the path in dataset.json"
_FIX_LIST: Final = "correct the list in dataset.json"
_ADD_FILE: Final = "add the file or remove the case"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The files of one case.

    Attributes:
        identifier: name of the case.
        images: one file per channel, in order.
        label: its label map; None for a case to predict.
    """

    identifier: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Cases that were found, and the problems.

    Attributes:
        problems: a problem of one case has its id, so that the other cases can be used.
        stray: files in the image folder that belong to no case but may have been meant to.
        is_explicit: whether dataset.json lists the files; their names then say nothing about channels.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    stray: tuple[Problem, ...] = ()
    is_explicit: bool = False


def list_folder(images: Path, file_ending: str, *, labels: Path | None) -> Listing:
    """List the cases of a folder of `{case}_{CCCC}{file_ending}` files, with their labels `{case}{file_ending}`."""
    remedies = ("the images of a dataset belong there", "the labels of a dataset belong there")
    if labels is None:
        remedies = ("give the folder that holds the images", "")
    missing_folders = [
        Problem(where=str(folder), what=f"{wrong}{similar_folder(folder)}", remedy=remedy)
        for folder, remedy in zip((images, labels), remedies, strict=True)
        if folder is not None and (wrong := path_problem(folder, "folder"))
    ]
    if missing_folders:
        return Listing(cases=(), problems=tuple(missing_folders))
    groups: dict[str, list[Entry]] = {}
    others = []
    for entry in entries(images):
        match = _CHANNEL.fullmatch(entry.name.removesuffix(file_ending)) if entry.name.endswith(file_ending) else None
        if match is None:
            others.append(entry)
        else:
            groups.setdefault(match["case"], []).append(entry)
    known = {entry.name: entry for entry in entries(labels)} if labels is not None else {}
    problems = identity_problems(images, groups)
    usable = [identifier for identifier in sorted(groups) if not name_problem(identifier)]
    cases = []
    for identifier in usable:
        label = None if labels is None else labels / f"{identifier}{file_ending}"
        if label is not None and (label.name not in known or known[label.name].kind != "file"):
            problems.append(_missing_label(label, identifier, file_ending, known.values()))
        files = tuple(images / entry.name for entry in groups[identifier])
        problems += [
            _missing_image(images / entry.name, identifier) for entry in groups[identifier] if entry.kind != "file"
        ]
        cases.append(Case(identifier=identifier, images=files, label=label))
    stray = describe_unmatched(images, others, file_ending)
    if not groups:
        return Listing(cases=(), problems=(no_cases(images, others, stray, file_ending),))
    return Listing(cases=tuple(cases), problems=tuple(problems), stray=stray)


def explicit_cases(
    document: Path, lists: Mapping[str, tuple[Sequence[str], str]], environment: Mapping[str, str]
) -> Listing:
    """Return the cases of the file lists of a dataset.json: variables expanded, paths relative to its folder."""
    cases = []
    problems = identity_problems(document, lists)
    for identifier, (images, label) in lists.items():
        resolved = []
        for text in (*images, label):
            unset = sorted({name for name in variables_in(text) if name not in environment})
            file = Path(os.path.abspath(document.parent / _expand(text, environment)))
            resolved.append(file)
            if unset:
                what = f"environment variable {unset[0]} is not set, needed for {text}"
                remedy = "set it or write the path out"
                problems.append(Problem(where=f"case '{identifier}'", what=what, remedy=remedy, case=identifier))
            elif wrong := path_problem(file):
                what, remedy = f"{wrong}, listed for case '{identifier}'", path_remedy(file, _FIX_PATH)
                problems.append(Problem(where=str(file), what=what, remedy=remedy, case=identifier))
        if not name_problem(identifier):
            cases.append(Case(identifier=identifier, images=tuple(resolved[:-1]), label=resolved[-1]))
    return Listing(cases=tuple(cases), problems=tuple(problems), is_explicit=True)


def identity_problems(where: Path, identifiers: Iterable[str]) -> list[Problem]:
    """Return which case ids cannot be file names, and which equal another one but for what file systems ignore."""
    problems = []
    seen: dict[str, str] = {}
    for identifier in identifiers:
        wrong = name_problem(identifier)
        if wrong:
            remedy = encoding_remedy(identifier) if wrong == NO_TEXT else NAME_REMEDY
            what = f"case id {shown_name(identifier)} {wrong}"
            problems.append(Problem(where=str(where), what=what, remedy=remedy, case=identifier))
            continue
        normal = normalize("NFC", identifier)
        twin = seen.setdefault(normal.casefold() if IGNORES_CASE else normal, identifier)
        if twin != identifier:
            difference = "with accents encoded in two ways (NFC and NFD)"
            if normalize("NFC", twin) != normal:
                difference = f"as '{twin}' too; this system stores names that differ in case only in one file"
            what = f"case id '{identifier}' appears twice, {difference}"
            remedy = "rename the files of one of them"
            problems.append(Problem(where=str(where), what=what, remedy=remedy, case=identifier))
    return problems


def channel_problems(listing: Listing, names: Sequence[str], file_ending: str) -> list[Problem]:
    """Return which channel files are missing or surplus, given the channel names in order."""
    expected = [f"{index:04d}" for index in range(len(names))]
    if not listing.is_explicit:
        expected = _shared_suffixes(listing.cases, file_ending, expected)
    problems = []
    for case in listing.cases:
        wanted = f"expected {len(names)} channel file(s) ({', '.join(names)})"
        if listing.is_explicit:
            if len(case.images) != len(names):
                what = f"lists {len(case.images)} image(s), {wanted}"
                problems.append(
                    Problem(where=f"case '{case.identifier}'", what=what, remedy=_FIX_LIST, case=case.identifier)
                )
            continue
        found = _suffixes(case, file_ending)
        for suffix, name in zip(expected, names, strict=True):
            if suffix not in found:
                file = case.images[0].with_name(f"{case.identifier}_{suffix}{file_ending}")
                what = f"no such file, channel {suffix} ({name}) of case '{case.identifier}'; {wanted}"
                problems.append(Problem(where=str(file), what=what, remedy=_ADD_FILE, case=case.identifier))
        for suffix, file in found.items():
            if suffix not in expected:
                remedy = "remove the file or name its channel in dataset.json"
                what = f"one channel too many, {wanted}"
                problems.append(Problem(where=str(file), what=what, remedy=remedy, case=case.identifier))
    return problems


def with_labels(cases: Iterable[Case], labels: Path, file_ending: str) -> tuple[Case, ...]:
    """Return cases with their label maps `{case}{file_ending}` of a folder, where there are some."""
    files = ((case, labels / f"{case.identifier}{file_ending}") for case in cases)
    return tuple(replace(case, label=file if file.is_file() else None) for case, file in files)


def surplus_labels(labels: Path, cases: Sequence[Case], file_ending: str) -> list[Path]:
    """Return label files that belong to no case."""
    wanted = {case.label for case in cases}
    names = [entry.name for entry in entries(labels) if entry.kind == "file" and entry.name.endswith(file_ending)]
    return [labels / name for name in names if labels / name not in wanted]


def _missing_label(label: Path, identifier: str, file_ending: str, there: Iterable[Entry]) -> Problem:
    wrong = path_problem(label)
    hint = similar_label(label.name, file_ending, there) if wrong == NO_FILE else ""
    what = f"{wrong}, the label of case '{identifier}'{hint}"
    remedy = path_remedy(label, "add the file or remove the case's images")
    return Problem(where=str(label), what=what, remedy=remedy, case=identifier)


def _missing_image(image: Path, identifier: str) -> Problem:
    what = f"{path_problem(image)}, an image of case '{identifier}'"
    remedy = path_remedy(image, "put the file there or remove the case")
    return Problem(where=str(image), what=what, remedy=remedy, case=identifier)


def _suffixes(case: Case, file_ending: str) -> dict[str, Path]:
    return {file.name.removesuffix(file_ending)[-4:]: file for file in case.images}


def _shared_suffixes(cases: Sequence[Case], file_ending: str, expected: list[str]) -> list[str]:
    """Return the channel numbers that all cases share; only their order counts (nnU-Net behaviour 1.3)."""
    counted = Counter(tuple(_suffixes(case, file_ending)) for case in cases)
    if len(counted) == 1:
        (only,) = counted
        if len(only) == len(expected):
            return list(only)
    return expected


def variables_in(text: str) -> list[str]:
    """Return the names of the variables `$NAME` and `${NAME}` in a text."""
    return [match["braced"] or match["plain"] for match in _VARIABLE.finditer(text)]


def _expand(text: str, environment: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: environment.get(match["braced"] or match["plain"], match[0]), text)
