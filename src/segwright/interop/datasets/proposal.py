"""Propose the dataset.json of images and label maps: channels, labels, mapped values, file ending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ImageError, Problem, ProblemReport, problem_of
from segwright.core.parallel import map_threads
from segwright.core.text import listed
from segwright.data.cases import Case
from segwright.data.checks import check
from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import choose_reader, read_header, read_images, read_label
from segwright.data.images.readers.pictures import RGB_CHANNELS
from segwright.data.label_maps import distinct_values
from segwright.data.labels import BACKGROUND, IGNORE
from segwright.interop.datasets.file_matching import Matching
from segwright.interop.datasets.reencoding import PICTURE_ENDINGS, common_ending
from segwright.interop.datasets.renumbering import label_numbers

MAX_GUESSED_LABELS: Final = 64
"""More values than this may be grey values or numbers of objects."""
CT_RANGE: Final = (-500, 200)
"""Hounsfield units between which a CT lies with parts of it on both sides: air is -1000, bone above 300."""

_LOW, _HIGH = 16, 239
"""Up to and from these values a mask of 0 and 255 has grey values after lossy compression."""
_COLOURS: Final = ("R", "G", "B", "A")
_NUM_SAMPLED: Final = 3
"""Cases whose intensities are read to recognise CT."""
_GIVE_NAMES: Final = "name all of them in ascending order with --label-names, the background left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLabel:
    """A value that occurs in label maps.

    Attributes:
        name: proposed or given.
        stored: the value in files.
        value: the value that it gets.
        num_cases: number of label maps that have it.
    """

    name: str
    stored: int
    value: int
    num_cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a dataset.json will say; `check` accepts the dataset.

    Attributes:
        folder: of the dataset.
        channels: their names.
        labels: the background first, then by value.
        matching: the cases.
        file_ending: of most images.
        notes: what was skipped, and warnings of `check`.
    """

    folder: Path
    channels: tuple[str, ...]
    labels: tuple[FoundLabel, ...]
    matching: Matching
    file_ending: str
    notes: tuple[Problem, ...] = ()

    def document(self, *, lists_files: bool | None = None) -> dict[str, Any]:
        """Return the dataset.json, with the files of each case unless they lie as in nnU-Net's layout.

        Args:
            lists_files: whether to list them in any case, or never.
        """
        label_map = {str(label.stored): label.value for label in self.labels if label.stored != label.value}
        document: dict[str, Any] = {
            "channel_names": {str(index): name for index, name in enumerate(self.channels)},
            "labels": {label.name: label.value for label in self.labels},
            "numTraining": len(self.matching.cases),
            "file_ending": self.file_ending,
        }
        if label_map:
            document["label_map"] = label_map
        if lists_files is None:
            lists_files = not self.matching.is_standard
        if lists_files:
            document["dataset"] = {case.identifier: self._files(case) for case in self.matching.cases}
        return document

    def with_names(self, *, channels: Sequence[str], labels: Sequence[str]) -> Proposal:
        """Return the proposal with other names of the channels, and of the labels by stored value, background left out.

        Raises:
            ProblemReport: the numbers differ, or a name occurs twice.
        """
        background, *others = self.labels
        counts = {label.stored: label.num_cases for label in sorted(others, key=lambda label: label.stored)}
        problems = _name_problems(channels, len(self.channels), "--channel-names", "channels")
        problems += _name_problems(labels, len(others), "--label-names", f"labels ({listed([*counts])})")
        if problems:
            raise ProblemReport(problems)
        return replace(self, channels=tuple(channels), labels=(background, *_numbered(counts, labels)))

    def _files(self, case: Case) -> dict[str, Any]:
        assert case.label is not None
        return {"images": [self._shown(image) for image in case.images], "label": self._shown(case.label)}

    def _shown(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else str(file)


def propose(
    folder: Path,
    matching: Matching,
    *,
    channel_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    workers: int | None = None,
) -> Proposal:
    """Read all label maps and some images, and propose a dataset.json that `check` accepts.

    Args:
        folder: of the dataset.
        matching: its cases.
        channel_names: given names instead of proposed ones, in order.
        label_names: given names of all labels but the background, by ascending value.
        workers: threads.

    Raises:
        ProblemReport: what cannot be decided, and what `check` refuses.
    """
    cases = matching.cases
    try:
        file_ending = common_ending(cases)
        reader = choose_reader(file_ending, [case.images[0] for case in cases])
    except ImageError as error:
        raise ProblemReport([problem_of(error, remedy="replace the file or remove its case")]) from error
    problems: list[Problem] = []
    channels = _channels(matching, reader, channel_names, problems, workers=workers)
    labels = _labels(folder, cases, reader, label_names, problems, workers=workers)
    if problems:
        raise ProblemReport(problems)
    proposal = Proposal(
        folder=folder,
        channels=channels,
        labels=labels,
        matching=matching,
        file_ending=file_ending,
        notes=matching.notes,
    )
    findings = check(folder, workers=workers, description=DatasetDescription.model_validate(proposal.document()))
    if findings.errors:
        raise ProblemReport(findings.errors)
    return replace(proposal, notes=(*matching.notes, *findings.warnings))


def _channels(
    matching: Matching, reader: str, given: Sequence[str] | None, problems: list[Problem], *, workers: int | None
) -> tuple[str, ...]:
    """Return the names of the channels: given, of the colours, as in the file names, CT, or numbered."""
    cases = matching.cases
    counts: dict[int, list[Case]] = {}
    for case, count in zip(
        cases, map_threads(lambda case: _num_channels(case, reader), cases, workers=workers), strict=True
    ):
        counts.setdefault(count, []).append(case)
    counts.pop(0, None)  # unreadable, which `check` reports
    if len(counts) > 1:
        what = "; ".join(f"{count} in {len(group)} (first {group[0].identifier})" for count, group in counts.items())
        remedy = "remove the transparency" if {*counts} == {3, 4} else "save all images with the same channels"
        problems.append(Problem(where=str(cases[0].images[0].parent), what=f"channels differ: {what}", remedy=remedy))
        return ()
    number = next(iter(counts), len(matching.channels))
    if given is not None:
        problems += _name_problems(given, number, "--channel-names", "channels")
        return tuple(given)
    if len(matching.channels) == 1 and number in RGB_CHANNELS and cases[0].images[0].suffix.lower() in PICTURE_ENDINGS:
        return _COLOURS[:number]
    if len(matching.channels) == number and all(matching.channels):
        return matching.channels
    are_ct = _are_ct(cases, reader, number)
    usual = ("image",) if number == 1 else tuple(f"channel_{index}" for index in range(number))
    return tuple("CT" if is_ct else name for name, is_ct in zip(usual, are_ct, strict=True))


def _num_channels(case: Case, reader: str) -> int:
    """Return the number of channels of a case; 0 if an image cannot be read."""
    try:
        return sum(read_header(image, reader).num_channels for image in case.images)
    except ImageError:
        return 0


def _are_ct(cases: Sequence[Case], reader: str, number: int) -> list[bool]:
    """Return which channels look like CT in a few cases."""
    sampled = [cases[index] for index in {0, len(cases) // 2, len(cases) - 1}][:_NUM_SAMPLED]
    found = [True] * number
    for case in sampled:
        try:
            array = read_images(case.images, reader).array
        except ImageError:
            continue
        for index, channel in enumerate(array[:number]):
            found[index] &= bool(channel.min() <= CT_RANGE[0] and channel.max() >= CT_RANGE[1])
    return found


def _labels(
    folder: Path,
    cases: Sequence[Case],
    reader: str,
    names: Sequence[str] | None,
    problems: list[Problem],
    *,
    workers: int | None,
) -> tuple[FoundLabel, ...]:
    counts: Counter[int] = Counter()
    first: dict[int, str] = {}
    results = map_threads(lambda case: _values(case, reader), cases, workers=workers, title="label maps")
    unread = [values for values in results if isinstance(values, Problem)]
    problems += _one_for_each_reason(unread)
    for case, values in zip(cases, results, strict=True):
        if isinstance(values, Problem):
            continue
        counts.update(values)
        for value in values:
            first.setdefault(value, case.identifier)
    if not counts:
        return ()
    if doubt := _doubt(counts, first, names):
        problems.append(replace(doubt, where=str(folder)))
        return ()
    others = {value: counts[value] for value in sorted(counts) if value}
    if names is not None:
        names = names[1:] if [*names[:1]] == [BACKGROUND] else names
        wrong = _name_problems(names, len(others), "--label-names", f"labels ({listed([*others])})")
        if wrong:
            problems += wrong
            return ()
    usual = ["foreground"] if len(others) == 1 else [f"label_{index}" for index in range(1, len(others) + 1)]
    background = FoundLabel(name=BACKGROUND, stored=0, value=0, num_cases=counts[0])
    return (background, *_numbered(others, usual if names is None else names))


def _one_for_each_reason(problems: Sequence[Problem]) -> list[Problem]:
    """Return the first of all problems that differ only in their file, with the number of the others."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.what, []).append(problem)
    return [
        replace(first, what=first.what + (f", as in {len(others)} more files" if others else ""))
        for first, *others in groups.values()
    ]


def _values(case: Case, reader: str) -> tuple[int, ...] | Problem:
    assert case.label is not None
    try:
        if (count := read_header(case.label, reader, is_label=True).num_channels) > 1:
            what = f"has {count} channels, a label map has one whole number per voxel"
            return Problem(where=str(case.label), what=what, remedy="save it in grey, with one value for each class")
        return distinct_values(read_label(case.label, reader).array)
    except ImageError as error:
        return problem_of(error)


def _doubt(counts: Counter[int], first: dict[int, str], names: Sequence[str] | None) -> Problem | None:
    """Return why the meaning of values is not certain, if it is not."""
    values = sorted(counts)
    if values[0] < 0:
        what = f"value {values[0]} occurs in {counts[values[0]]} label maps (first {first[values[0]]})"
        return Problem(
            where="", what=what, remedy="replace it; labels are 0 for the background, and whole numbers above"
        )
    if values[0] > 0:
        what = f"no label map has the value 0, found {listed(values)}; which one is the background is not certain"
        return Problem(where="", what=what, remedy="write 0 for the background")
    if len(values) == 1:
        return Problem(
            where="", what="all label maps hold only 0, the background", remedy="check that they are the masks"
        )
    if names is not None:
        return None
    if len(values) > MAX_GUESSED_LABELS:
        what = f"{len(values)} different values, {listed(values)}: labels, grey values or numbers of objects"
        return Problem(where="", what=what, remedy=f"if they are labels, {_GIVE_NAMES}")
    below = [value for value in values if value < _HIGH]
    is_lossy = below[-1] <= _LOW and len(values) > 2
    if _HIGH <= values[-1] <= 255 and (is_lossy or (len(below) > 1 and below == [*range(len(below))])):
        what = f"values {listed(values)}: masks of 0 and 255 with lossy compression, or classes and an ignore label"
        return Problem(where="", what=what, remedy=f"threshold the masks, or {_GIVE_NAMES} ('ignore' is a name)")
    return None


def _name_problems(names: Sequence[str], expected: int, option: str, what: str) -> list[Problem]:
    if len(names) != expected:
        found = f"has {len(names)} names, the dataset has {expected} {what}"
        return [Problem(where=option, what=found, remedy="give one name for each, separated by commas")]
    if twice := sorted({name for name in names if names.count(name) > 1 or name in ("", BACKGROUND)}):
        return [Problem(where=option, what=f"names '{twice[0]}'", remedy="give each a name of its own")]
    return []


def _numbered(counts: Mapping[int, int], names: Sequence[str]) -> list[FoundLabel]:
    """Return the labels by value, from 1 without gaps; `ignore` has the last one.

    Args:
        counts: stored value to number of cases, ascending.
        names: in the same order.

    Raises:
        ProblemReport: `ignore` cannot have the last value.
    """
    named = dict(zip(counts, names, strict=True))
    ignore = next((stored for stored, name in named.items() if name == IGNORE), None)
    numbers = label_numbers([*counts], ignore=ignore)
    if numbers is None:
        what = f"names value {ignore} '{IGNORE}', which must be above the values of all labels ({listed([*counts])})"
        raise ProblemReport([Problem(where="--label-names", what=what, remedy=f"write {max(counts) + 1} for it")])
    found = [
        FoundLabel(name=name, stored=stored, value=numbers[stored], num_cases=counts[stored])
        for stored, name in named.items()
    ]
    return sorted(found, key=lambda label: label.value)
