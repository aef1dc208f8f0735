"""Match images and label maps below a folder by their names: cases, channels, and files that belong to none."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from segwright.core.errors import Problem, ProblemReport
from segwright.core.files.names import path_problem
from segwright.core.text import listed
from segwright.data.cases import Case, identity_problems
from segwright.interop.datasets.file_names import NamedFile, name_file
from segwright.interop.datasets.found_files import images_below, unread_pictures

_FIELDS: Final = {r"\{case\}": r"(?P<case>[^/]+)", r"\{channel\}": r"(?P<channel>[^/]+?)", r"\*": "[^/]*"}
_AGAIN: Final = {r"\{case\}": "(?P=case)", r"\{channel\}": "(?P=channel)"}
GIVE_PATTERNS: Final = "say where they are with --images and --labels, such as --labels 'masks/{case}_mask.png'"

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Cases that were found, and what is left.

    Attributes:
        cases: with a label map, sorted by identifier; images in the order of the channels.
        test: cases with all channels that are not trained on: without a label map, or in a folder named after tests.
        channels: names of the channels as file names spell them; empty where they say nothing.
        notes: files that belong to no case.
        is_standard: whether the files lie as in nnU-Net's raw layout, so that dataset.json need not list them.
    """

    cases: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    channels: tuple[str, ...]
    notes: tuple[Problem, ...] = ()
    is_standard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """An image with the case and the channel it belongs to."""

    case: str
    channel: str
    path: Path


def match_files(root: Path, *, images: str | None = None, labels: str | None = None) -> Matching:
    """Match images and label maps below a folder.

    Without a pattern, words in file and folder names (`mask`, `labels`, `seg` and so on) tell label maps from images;
    an image belongs to the label map whose other words it has, and words it has besides name its channel.

    Args:
        root: the folder; hidden files and folders are skipped.
        images: a folder below it that holds the images, or a pattern of their paths with `{case}`, and perhaps
            `{channel}` and `*`.
        labels: the same for label maps.

    Raises:
        ProblemReport: nothing matches, or it is not certain what belongs together.
    """
    named = images_below(root)
    if (images is not None and "{case}" in images) or (labels is not None and "{case}" in labels):
        return _match_patterns(root, named, images or "", labels or "")
    return _match_words(root, _with_kinds(root, named, images, labels))


def matching_of(root: Path, found: Sequence[FoundImage], labels: Mapping[str, Path]) -> Matching:
    """Return the matching of images and label maps by case.

    Raises:
        ProblemReport: there is no case with both, or channels are missing or there twice.
    """
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    problems = identity_problems(root, sorted({*labels, *(image.case for image in found)}))
    for image in found:
        other = groups[image.case].setdefault(image.channel, image.path)
        if other != image.path:
            channel = f"channel '{image.channel}' " if image.channel else "image "
            what = f"and {_shown(root, other)} are both the {channel}of case '{image.case}'"
            problems.append(Problem(where=str(image.path), what=what, remedy=f"keep one of them, or {GIVE_PATTERNS}"))
    labelled = {case: group for case, group in sorted(groups.items()) if case in labels}
    if not labelled:
        raise ProblemReport([_nothing_matches(root, [image.path for image in found], [*labels.values()])])
    channels = sorted({channel for group in labelled.values() for channel in group})
    if all(len(group) == 1 for group in labelled.values()):
        channels = channels if len(channels) == 1 else [""]  # words that differ among cases name no channel
        for case, group in [*groups.items()]:
            groups[case] = dict(zip(channels, group.values(), strict=True)) if len(group) == 1 else group
    else:
        for case, group in labelled.items():
            if lacking := [channel for channel in channels if channel not in group]:
                what = f"lacks channel {listed(lacking)}; other cases have {listed(channels)}"
                remedy = f"add the file or remove the case; if these are no channels, {GIVE_PATTERNS}"
                problems.append(Problem(where=f"case '{case}'", what=what, remedy=remedy))
    if problems:
        raise ProblemReport(problems)
    notes = [Problem(where=str(file), what="skipped: no image") for case, file in labels.items() if case not in groups]
    complete = {case: group for case, group in sorted(groups.items()) if [*sorted(group)] == channels}
    notes += [
        Problem(where=str(next(iter(group.values()))), what="skipped: no label map, and not all channels")
        for case, group in sorted(groups.items())
        if case not in complete
    ]
    made = {
        case: Case(identifier=case, images=tuple(group[name] for name in channels), label=labels.get(case))
        for case, group in complete.items()
    }
    return Matching(
        cases=tuple(case for case in made.values() if case.label is not None),
        test=tuple(case for case in made.values() if case.label is None),
        channels=tuple("" if re.fullmatch(r"\d*", name) else name for name in channels),
        notes=tuple(notes),
    )


def _match_patterns(root: Path, files: Sequence[Path], images: str, labels: str) -> Matching:
    problems = [
        Problem(where=option, what=f"is '{pattern}', expected a path below {root} with {{case}}", remedy=GIVE_PATTERNS)
        for option, pattern in (("--images", images), ("--labels", labels))
        if "{case}" not in pattern
    ]
    if problems:
        raise ProblemReport(problems)
    maps: dict[str, Path] = {}
    for file, match in _matches(root, files, labels):
        _require_one_each(root, [[maps.setdefault(match["case"], file), file]])
    masks = {*maps.values()}
    found = [
        FoundImage(case=match["case"], channel=match.groupdict().get("channel") or "", path=file)
        for file, match in _matches(root, files, images)
        if file not in masks
    ]
    return matching_of(root, found, maps)


def _matches(root: Path, files: Iterable[Path], pattern: str) -> Iterator[tuple[Path, re.Match[str]]]:
    expression = re.escape(pattern.removeprefix("./"))
    for written, meaning in _FIELDS.items():
        expression = expression.replace(written, meaning, 1).replace(written, _AGAIN.get(written, meaning))
    for file in files:
        if match := re.fullmatch(expression, file.relative_to(root).as_posix()):
            yield file, match


def _with_kinds(root: Path, files: Sequence[Path], images: str | None, labels: str | None) -> list[NamedFile]:
    """Return files by what their names or the given folders say; files outside the given folders do not count."""
    folders = {is_label: root / given for is_label, given in ((False, images), (True, labels)) if given is not None}
    problems = [
        Problem(where=str(folder), what=wrong, remedy=GIVE_PATTERNS)
        for folder in folders.values()
        if (wrong := path_problem(folder, "folder"))
    ]
    if problems:
        raise ProblemReport(problems)
    named = []
    for file in files:
        inside = [is_label for is_label, folder in folders.items() if file.is_relative_to(folder)]
        if inside:
            named.append(name_file(folders[inside[-1]], file, is_label=inside[-1]))
        elif len(folders) < 2:
            found = name_file(root, file)
            if found.is_label not in folders:
                named.append(found)
    return named


def _match_words(root: Path, named: Sequence[NamedFile]) -> Matching:
    training = [file for file in named if not file.is_test]
    test = [file for file in named if file.is_test]
    if not any(file.is_label for file in training):  # the folders are named after tests for another reason
        training, test = [*named], []
    matching, channels = _match(root, training)
    images = [file for file in test if not file.is_label]
    if not images:
        return matching
    if len(images) < len(test):
        more = _match(root, test)[0]
        tested = (*more.cases, *more.test)
    else:
        groups: dict[str, dict[str, Path]] = defaultdict(dict)
        for image in _unlabelled(images, channels):
            groups[image.case][image.channel] = image.path
        names = sorted(map(_joined, channels))
        more = Matching(cases=(), channels=matching.channels)
        tested = tuple(
            Case(identifier=case, images=tuple(group[channel] for channel in sorted(group)))
            for case, group in sorted(groups.items())
            if len(group) == len(names) or len(matching.channels) == 1
        )
    return replace(matching, test=(*matching.test, *tested), notes=(*matching.notes, *more.notes))


def _match(root: Path, named: Sequence[NamedFile]) -> tuple[Matching, set[Words]]:
    """Return the cases of files, and the words of their channels."""
    images = [file for file in named if not file.is_label]
    labels = [file for file in named if file.is_label]
    if not images or not labels:
        raise ProblemReport([_nothing_matches(root, [file.path for file in images], [file.path for file in labels])])
    by_words: dict[Words, list[NamedFile]] = defaultdict(list)
    for label in labels:
        by_words[label.words].append(label)
    _require_one_each(root, [[file.path for file in twins] for twins in by_words.values()])
    owners = {image.path: _part(image.words, by_words) for image in images}
    if not any(owner is not None for owner in owners.values()):  # label maps with words of their own
        owners = _by_words_of_images(root, images, by_words)
    _require_owners(root, labels, {owner for owner in owners.values() if owner is not None})
    identifiers = _identifiers(labels)
    channels = {_rest(image.words, owner) for image in images if (owner := owners[image.path]) is not None}
    found = [
        FoundImage(
            case=identifiers[by_words[owner][0].path], channel=_joined(_rest(image.words, owner)), path=image.path
        )
        for image in images
        if (owner := owners[image.path]) is not None
    ]
    found += _unlabelled([image for image in images if owners[image.path] is None], channels)
    return matching_of(root, found, {identifiers[label.path]: label.path for label in labels}), channels


def _require_owners(root: Path, labels: Sequence[NamedFile], owners: Collection[Words]) -> None:
    """Require that most label maps belong to an image, and none is a further one of the same case, by its number.

    Raises:
        ProblemReport: it is not certain which label maps are meant.
    """
    owned = {label.words: label.path for label in labels if label.words in owners}
    left = [label for label in labels if label.words not in owned]
    further = [label for label in left if label.words[-1:] and label.words[-1].isdecimal()]
    _require_one_each(root, [[owned[key], label.path] for label in further if (key := label.words[:-1]) in owned])
    if owned and 2 * len(left) >= len(labels):
        example = _shown(root, left[0].path)
        what = f"{len(left)} of {len(labels)} label maps match no image by their name, such as {example}"
        remedy = unread_pictures(root) or f"remove them, or {GIVE_PATTERNS}"
        raise ProblemReport([Problem(where=str(root), what=what, remedy=remedy)])


def _part(image: Words, labels: Mapping[Words, object]) -> Words | None:
    """Return the longest run of the words of an image that are all words of a label map."""
    for size in range(len(image), 0, -1):
        for start in range(len(image) - size + 1):
            if image[start : start + size] in labels:
                return image[start : start + size]
    return None


def _rest(image: Words, part: Words) -> Words:
    """Return the words of an image besides a run of them, which are its channel."""
    for start in range(len(image) - len(part) + 1):
        if image[start : start + len(part)] == part:
            return image[:start] + image[start + len(part) :]
    return ()


def _joined(channel: Words) -> str:
    return "_".join(channel)


def _by_words_of_images(
    root: Path, images: Sequence[NamedFile], labels: Mapping[Words, Sequence[NamedFile]]
) -> dict[Path, Words | None]:
    """Match label maps that have all words of an image's own name and more, one for each image."""
    known = {image.own_words: image for image in images}
    if len(known) < len(images):
        return {image.path: None for image in images}
    owned: dict[Words, list[Words]] = defaultdict(list)
    for key, (label, *_) in labels.items():
        if part := _part(label.own_words, known):
            owned[part].append(key)
    _require_one_each(root, [[labels[key][0].path for key in keys] for keys in owned.values()])
    return {image.path: owned[image.own_words][0] if image.own_words in owned else None for image in images}


def _unlabelled(images: Sequence[NamedFile], channels: set[Words]) -> list[FoundImage]:
    """Return images without a label map, by case and channel."""
    short = _identifiers(images)
    found = []
    for image in images:
        fitting = [name for name in channels if name and image.words[-len(name) :] == name]
        channel = max(fitting, key=len, default=())
        case = short[image.path]
        for _ in channel:
            case = re.sub(r"[\W_]*[^\W_]+[\W_]*$", "", case)
        if not case and len(image.pieces) > 1:
            case = image.pieces[-2]
        found.append(FoundImage(case=case or short[image.path], channel=_joined(channel), path=image.path))
    return found


def _identifiers(files: Sequence[NamedFile]) -> dict[Path, str]:
    """Return a case id for each file: its own part of the name, or that with its folders where it is not unique."""
    last = {file.path: file.pieces[-1] if file.pieces else file.path.name.partition(".")[0] for file in files}
    if len({*last.values()}) == len(files):
        return last
    return {file.path: "_".join(file.pieces) or last[file.path] for file in files}


def _require_one_each(root: Path, groups: Iterable[Sequence[Path]]) -> None:
    """Require that each case has one label map, given all label maps of each case.

    Raises:
        ProblemReport: a case has several; the first is named.
    """
    several = [group for group in ([*dict.fromkeys(group)] for group in groups) if len(group) > 1]
    if several:
        first, *others = several[0]
        more = f", as in {len(several) - 1} more cases" if len(several) > 1 else ""
        what = f"and {listed([_shown(root, file) for file in others])} are label maps of the same case{more}"
        remedy = f"merge them into one, or {GIVE_PATTERNS}"
        raise ProblemReport([Problem(where=str(first), what=what, remedy=remedy)])


def _nothing_matches(root: Path, images: Sequence[Path], labels: Sequence[Path]) -> Problem:
    def example(files: Sequence[Path], what: str) -> str:
        return f"{len(files)} {what}" + (f" such as {_shown(root, files[0])}" if files else "")

    what = (
        f"no image matches a label map by its name: found {example(images, 'images')}, {example(labels, 'label maps')}"
    )
    return Problem(where=str(root), what=what, remedy=unread_pictures(root) or GIVE_PATTERNS)


def _shown(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
