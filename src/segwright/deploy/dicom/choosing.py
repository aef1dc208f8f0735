"""Choose the series of each case: the only one, those that the user names, or by the names of the channels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np

from segwright.core.errors import ConfigError, Problem, ProblemReport
from segwright.core.files.json_documents import read_json
from segwright.core.files.names import name_problem
from segwright.core.text import printable
from segwright.deploy.dicom.series import (
    POSITION_TOLERANCE,
    FoundSeries,
    RefusedSeries,
    Series,
    SeriesInfo,
    find_series,
)

_MODALITY_NAMES: Final = {"ct": "CT", "pet": "PT", "pt": "PT", "mr": "MR", "mri": "MR"}
"""Names of channels that mean a modality."""
_ADVICE: Final = "choose with --series UID, number or description"


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomCase:
    """The series of one case.

    Attributes:
        identifier: name of the case.
        channels: one series for each channel, on one grid.
    """

    identifier: str
    channels: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selectors:
    """Which series a user wants.

    Attributes:
        of_channels: for each channel a UID, a series number, or a description (`*` and `?` stand for any text); empty
            to choose by the names of the channels.
    """

    of_channels: tuple[str, ...] = ()

    @classmethod
    def parse(cls, given: Sequence[str], channels: Sequence[str]) -> Selectors:
        """Return what `--series` means.

        Args:
            given: one selector for each channel in order, `CHANNEL=SELECTOR` for each, or a JSON file of such pairs.
            channels: names of the model's channels in order.

        Raises:
            ConfigError: a channel is unknown or has no selector.
        """
        if not given:
            return cls()
        if _is_mapping_file(given):
            return cls._of_mapping(parse_pairs(given, "--series"), channels, given[0])
        pairs = [each.partition("=") for each in given]
        if all(name in channels for name, _, _ in pairs):
            return cls._of_mapping({name: selector for name, _, selector in pairs}, channels, "--series")
        if len(given) != len(channels):
            raise ConfigError(
                f"--series: {len(given)} given, the model has {len(channels)} channels ({', '.join(channels)}); give "
                "one for each in this order, or CHANNEL=SERIES"
            )
        return cls(of_channels=tuple(given))

    @classmethod
    def _of_mapping(cls, found: Mapping[str, str], channels: Sequence[str], where: str) -> Selectors:
        if {*found} != {*channels}:
            odd = sorted({*found} ^ {*channels})
            raise ConfigError(
                f"{where}: '{odd[0]}'; expected one series for each of the channels {', '.join(channels)}"
            )
        return cls(of_channels=tuple(str(found[name]) for name in channels))


def find_dicom_cases(
    place: Path, *, channels: Sequence[str], series: Sequence[str] = ()
) -> tuple[tuple[DicomCase, ...], tuple[Problem, ...]]:
    """Return the cases of a folder, one for each study, and the problems of studies that are none.

    Args:
        place: folder, or a DICOM file.
        channels: names of the model's channels in order.
        series: which series to use, as `Selectors.parse` takes them; by default the only one that is a volume, or for
            several channels those whose descriptions contain the channels' names.

    Raises:
        ProblemReport: there is no case.
        SegwrightError: a file cannot be read, or a selector is wrong.
    """
    selectors = Selectors.parse(series, channels)
    found = find_series(place)
    studies = sorted({each.info.study_uid for each in found.all})
    if not studies:
        what = "holds no DICOM image; CT, MR and PET series are read"
        raise ProblemReport([Problem(where=str(place), what=what, remedy="give the folder of a series")])
    cases: dict[str, tuple[Series, ...]] = {}
    problems: dict[str, Problem] = {}
    for study in studies:
        try:
            cases[study] = _channels_of(_of_study(found, study), channels, selectors)
        except _NotChosenError as reason:
            where = str(place) if len(studies) == 1 else f"{place}, study {study}"
            if not (reason.is_unselected and len(studies) > 1):
                problems[study] = Problem(where=where, what=reason.what, remedy=reason.remedy)
    if not cases and not problems:
        what = f"{len(studies)} studies, none with such a series: {_listing(found.all)}"
        raise ProblemReport([Problem(where=str(place), what=what, remedy=_ADVICE)])
    if not cases:
        raise ProblemReport([*problems.values()])
    if len(studies) == 1:
        names = [_file_name(place.resolve().name)]
    else:
        names = case_names(place, [channels[0] for channels in cases.values()])
    found_cases = [
        DicomCase(identifier=name, channels=channels) for name, channels in zip(names, cases.values(), strict=True)
    ]
    return tuple(found_cases), tuple(problems.values())


def channels_of_study(
    found: FoundSeries, annotated: Series, channels: Sequence[str], selectors: Sequence[str]
) -> tuple[Series, ...]:
    """Return the series of the channels of a case that is annotated on one of them, or on their grid.

    Args:
        found: all series.
        annotated: the series that is annotated; it is the only channel if there are not several, and no selectors.
        channels: their names.
        selectors: as `Selectors.parse` takes them.

    Raises:
        ProblemReport: the study has no series for a channel, or they lie on other grids.
        ConfigError: a selector is wrong.
    """
    if len(channels) < 2 and not selectors:
        return (annotated,)
    wanted = Selectors.parse(selectors, channels)
    try:
        chosen = _channels_of(_of_study(found, annotated.info.study_uid), channels, wanted)
        _require_one_grid([annotated, *chosen])
    except _NotChosenError as reason:
        where = str(annotated.info)
        raise ProblemReport([Problem(where=where, what=reason.what, remedy=reason.remedy)]) from reason
    return chosen


def parse_pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """Return the pairs of an option that takes `KEY=VALUE`, or one JSON file of them.

    Raises:
        ConfigError: a word is no pair, or the file is no object of texts.
    """
    if _is_mapping_file(given):
        return _read_mapping(Path(given[0]))
    pairs = [each.rpartition("=") for each in given]
    if wrong := [
        word for word, (key, _, value) in zip(given, pairs, strict=True) if not key.strip() or not value.strip()
    ]:
        raise ConfigError(f"{option}: '{wrong[0]}'; expected KEY=VALUE, or a JSON file of such pairs")
    return {key: value.strip() for key, _, value in pairs}


def case_names(place: Path, series: Sequence[Series]) -> list[str]:
    """Return names of cases: the `top_folders` of their series, numbered where several have the same."""
    tops = top_folders(place, series)
    counts, seen, names = Counter(tops), Counter[str](), []
    for top in tops:
        seen[top] += 1
        names.append(f"{top}_{seen[top]}" if counts[top] > 1 else top)
    return names


def top_folders(place: Path, series: Sequence[Series]) -> list[str]:
    """Return the name of the first folder below `place` on the way to each series; in collections that of a patient."""
    root = place.resolve()
    ways = [each.info.folder.resolve().relative_to(root).parts for each in series]
    return [_file_name(parts[0] if parts else root.name) for parts in ways]


def joined_channels(cases: Sequence[DicomCase]) -> DicomCase:
    """Return one case whose channels are those of several, with the name of the first.

    Raises:
        ProblemReport: their grids differ.
    """
    channels = tuple(series for case in cases for series in case.channels)
    try:
        _require_one_grid(channels)
    except _NotChosenError as reason:
        where = cases[0].identifier
        raise ProblemReport([Problem(where=where, what=reason.what, remedy=reason.remedy)]) from reason
    return DicomCase(identifier=cases[0].identifier, channels=channels)


class _NotChosenError(ValueError):
    """Why a study has no series for every channel."""

    def __init__(self, what: str, remedy: str, *, is_unselected: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.is_unselected = is_unselected


_Any = Series | RefusedSeries


def _of_study(found: FoundSeries, study: str) -> list[_Any]:
    return [each for each in found.all if each.info.study_uid == study]


def _channels_of(found: Sequence[_Any], channels: Sequence[str], selectors: Selectors) -> tuple[Series, ...]:
    """Return one series of a study for each channel.

    Raises:
        _NotChosenError: there is none, there are several, one is no volume, or their grids differ.
    """
    images = [each for each in found if isinstance(each, Series) or not each.is_other]
    if selectors.of_channels:
        matches = [[each for each in found if _is_selected(each.info, text)] for text in selectors.of_channels]
        if not any(matches):
            raise _NotChosenError(
                f"no series is {' or '.join(map(repr, selectors.of_channels))}, found: {_listing(found)}",
                _ADVICE,
                is_unselected=True,
            )
        wanted = [f"'{text}'" for text in selectors.of_channels]
    elif not images:
        raise _NotChosenError(f"no series is a volume: {_listing(found)}", "give another folder", is_unselected=True)
    elif len(channels) == 1:
        matches, wanted = [images], ["the image"]
    else:
        matches, wanted = [_named(images, name) for name in channels], [f"channel '{name}'" for name in channels]
    chosen = [_only(each, what, found) for each, what in zip(matches, wanted, strict=True)]
    if len({each.info.uid for each in chosen}) < len(chosen):
        raise _NotChosenError(f"two channels are the same series: {_listing(chosen)}", _ADVICE)
    _require_one_grid(chosen)
    return tuple(chosen)


def _only(matches: Sequence[_Any], wanted: str, found: Sequence[_Any]) -> Series:
    if len(matches) > 1:
        raise _NotChosenError(f"{len(matches)} series may be {wanted}: {_listing(matches)}", _ADVICE)
    if not matches:
        raise _NotChosenError(f"no series is {wanted}, found: {_listing(found)}", _ADVICE)
    [only] = matches
    if isinstance(only, RefusedSeries):
        raise _NotChosenError(f"{only.info}: {only.reason}", "choose another series" if only.is_other else "")
    return only


def _listing(found: Sequence[_Any]) -> str:
    return "; ".join(
        printable(each.info) + (f" ({each.reason})" if isinstance(each, RefusedSeries) else "") for each in found
    )


def _is_selected(info: SeriesInfo, text: str) -> bool:
    """Whether a selector means a series: its UID, its number, or its description."""
    if text in (info.uid, str(info.number)):
        return True
    return fnmatchcase(" ".join(_words(info.description)), " ".join(text.casefold().split()))


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _named(found: Sequence[_Any], channel: str) -> list[_Any]:
    """Return the series whose description is the name of a channel, else those that contain it, else its modality."""
    name = [*_tokens(channel)]
    exact = [each for each in found if [*_tokens(each.info.description)] == name]
    within = [each for each in found if _contains([*_tokens(each.info.description)], name)]
    modality = _MODALITY_NAMES.get(channel.casefold())
    return exact or within or [each for each in found if modality and each.info.modality == modality]


def _tokens(text: str) -> Iterator[str]:
    yield from re.findall(r"[^\W_]+", text.casefold())


def _contains(words: list[str], part: list[str]) -> bool:
    return bool(part) and any(words[start : start + len(part)] == part for start in range(len(words)))


def _require_one_grid(chosen: Sequence[Series]) -> None:
    first, *others = chosen
    for other in others:
        corners = np.array([(0, 0, 0, 1), (*(extent - 1 for extent in first.shape), 1)], dtype=float).T
        shift = np.abs((first.affine - other.affine) @ corners)[:3].max()
        if first.shape != other.shape or shift > POSITION_TOLERANCE * min(first.spacing):
            raise _NotChosenError(
                f"the channels lie on different grids: {first.info} has {_grid(first)}, "
                f"{other.info} has {_grid(other)}",
                "resample them to one grid, and predict the files",
            )


def _grid(series: Series) -> str:
    spacing = ", ".join(f"{value:g}" for value in series.spacing)
    origin = ", ".join(f"{value:g}" for value in series.origin)
    return f"shape {series.shape}, spacing ({spacing}) mm, origin ({origin})"


def _file_name(text: str) -> str:
    """Return a text as the name of a case, with other characters replaced.

    >>> _file_name("Anna B (2).dcm")
    'Anna_B_2'
    """
    name = re.sub(r"[^\w.+-]+", "_", text.removesuffix(".dcm")).strip("._")
    return "case" if not name or name_problem(name) else name


def _is_mapping_file(given: Sequence[str]) -> bool:
    return len(given) == 1 and given[0].lower().endswith(".json")


def _read_mapping(file: Path) -> dict[str, str]:
    document = read_json(file)
    if not isinstance(document, dict) or not all(isinstance(value, str | int) for value in document.values()):
        raise ConfigError(f'{file}: expected an object of texts, such as {{"T1": "t1_mprage*"}}')
    return {str(key): str(value) for key, value in document.items()}
