"""Find what to convert in tasks of the Medical Segmentation Decathlon and of nnU-Net v1."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ImageError, Problem, ProblemReport, SegwrightError, problem_of
from segwright.core.files.json_documents import read_json
from segwright.core.files.names import path_problem
from segwright.core.parallel import map_threads
from segwright.data.cases import Case, channel_problems, identity_problems, list_folder
from segwright.data.description import DATASET_JSON
from segwright.data.images.readers.nifti_channels import nifti_shape
from segwright.data.images.readers.nifti_header import ENDINGS
from segwright.data.labels import BACKGROUND
from segwright.data.unmatched_files import Entry, entries
from segwright.interop.datasets.conversion import Conversion, dataset_name

TRAINING: Final = "Tr"
PARTS: Final = (TRAINING, "Ts", "Val")
"""Of the folders `imagesTr`, `labelsTr` and so on; only the first is required."""

_DROPPED: Final = ("modality", "labels", "training", "test", "numTest", "tensorImageSize", "numTraining")
"""Keys of dataset.json that the new one has in another form or not at all."""


def find_msd(source: Path) -> Conversion:
    """Return the conversion of a Decathlon task: one image per case, 4D if it has several channels.

    Raises:
        ProblemReport: everything that prevents it.
    """
    problems: list[Problem] = []
    notes: list[Problem] = []
    document = _new_document(source, problems, notes)
    ending = _ending(source / "imagesTr")
    cases = {part: _msd_cases(source, part, ending, problems, notes) for part in _parts(source, problems)}
    files = [file for part in cases.values() for case in part for file in (*case.images, case.label) if file]
    num_channels = {}
    images = {image for part in cases.values() for case in part for image in case.images}
    names = tuple(document.get("channel_names", {}).values())
    for file, shape in zip(files, map_threads(_shape, files, title="headers"), strict=True):
        if isinstance(shape, Problem):
            problems.append(shape)
            continue
        found = shape[3] if len(shape) > 3 else 1
        wanted = len(names) if file in images else 1
        if found != wanted and (names or file not in images):
            problems.append(_wrong_channels(file, found, names if file in images else ()))
        if len(shape) > 3:
            num_channels[file] = found
    return _conversion("msd", source, cases, ending, document, problems, notes, num_channels)


def find_nnunet_v1(source: Path) -> Conversion:
    """Return the conversion of a task of nnU-Net v1: one image per channel, named as in v2.

    Raises:
        ProblemReport: everything that prevents it.
    """
    problems: list[Problem] = []
    notes: list[Problem] = []
    document = _new_document(source, problems, notes)
    ending = _ending(source / "imagesTr")
    names = tuple(document.get("channel_names", {}).values())
    cases = {}
    for part in _parts(source, problems):
        labels = source / f"labels{part}"
        is_labelled = part == TRAINING or labels.is_dir()
        listing = list_folder(source / f"images{part}", ending, labels=labels if is_labelled else None)
        problems += [*listing.problems, *(channel_problems(listing, names, ending) if names else ())]
        notes += listing.stray
        cases[part] = listing.cases
    return _conversion("nnunet-v1", source, cases, ending, document, problems, notes, {})


def _conversion(
    kind: str,
    source: Path,
    cases: Mapping[str, tuple[Case, ...]],
    ending: str,
    document: Mapping[str, Any],
    problems: list[Problem],
    notes: list[Problem],
    num_split: Mapping[Path, int],
) -> Conversion:
    if problems:
        raise ProblemReport(problems)
    declared, found = document.get("numTraining"), len(cases[TRAINING])
    if declared is not None and declared != found:
        notes.append(Problem(where=str(source / DATASET_JSON), what=f"numTraining is {declared}, found {found} cases"))
    return Conversion(
        kind=kind,
        source=source,
        cases=cases,
        file_ending=ending,
        document={**document, "numTraining": found, "file_ending": ending},
        num_split=num_split,
        name=dataset_name(source),
        notes=tuple(notes),
    )


def _parts(source: Path, problems: list[Problem]) -> list[str]:
    """Return the parts that a task has; training images and labels must be there."""
    required = [source / f"{kind}{TRAINING}" for kind in ("images", "labels")]
    missing = [Problem(where=str(place), what=wrong) for place in required if (wrong := path_problem(place, "folder"))]
    problems += missing
    present = [part for part in PARTS if (source / f"images{part}").is_dir()]
    return [part for part in present if part != TRAINING or not missing]


def _ending(images: Path) -> str:
    """Return the ending of most images."""
    if not images.is_dir():
        return ENDINGS[1]
    plain, packed = ([entry for entry in entries(images) if entry.name.endswith(ending)] for ending in ENDINGS)
    return ENDINGS[0] if len(plain) > len(packed) else ENDINGS[1]


def _msd_cases(source: Path, part: str, ending: str, problems: list[Problem], notes: list[Problem]) -> tuple[Case, ...]:
    """Return the cases of one part, named by their images; hidden files, such as macOS's `._` files, do not count."""
    images, labels = source / f"images{part}", source / f"labels{part}"
    found = {entry.name: entry for entry in entries(images)}
    labelled = {entry.name for entry in entries(labels) if entry.kind == "file"} if labels.is_dir() else set()
    names = [name for name, entry in found.items() if _is_image(entry, ending)]
    notes += [
        Problem(where=str(images / name), what=f"skipped, it is no {ending} file")
        for name in found
        if name not in names
    ]
    notes += [
        Problem(where=str(labels / name), what="skipped, it has no image of the same name")
        for name in sorted(labelled - set(names))
    ]
    problems += identity_problems(images, [name.removesuffix(ending) for name in names])
    if not names:
        problems.append(Problem(where=str(images), what=f"holds no {ending} file", remedy="unpack the task again"))
    if part == TRAINING:
        for name in sorted(set(names) - labelled):
            remedy = "add the label map, or remove the image"
            if name.removesuffix(ending).endswith("_0000"):
                remedy = "if this is a task of nnU-Net v1, use 'segwright convert nnunet-v1'"
            problems.append(
                Problem(where=str(labels / name), what="no such file, the label map of a case", remedy=remedy)
            )
    return tuple(
        Case(
            identifier=name.removesuffix(ending),
            images=(images / name,),
            label=labels / name if name in labelled else None,
        )
        for name in names
    )


def _is_image(entry: Entry, ending: str) -> bool:
    return entry.kind == "file" and entry.name.endswith(ending)


def _shape(file: Path) -> tuple[int, ...] | Problem:
    try:
        return nifti_shape(file)
    except ImageError as error:
        return problem_of(error)


def _wrong_channels(file: Path, found: int, names: tuple[str, ...]) -> Problem:
    if not names:
        what = f"has {found} channels, a label map has one whole number per voxel"
        return Problem(where=str(file), what=what, remedy="save it as a single-channel image")
    what = f"has {found} channels, modality of {DATASET_JSON} names {len(names)} ({', '.join(names)})"
    return Problem(where=str(file), what=what, remedy=f"correct modality in {DATASET_JSON}, or remove the case")


def _new_document(source: Path, problems: list[Problem], notes: list[Problem]) -> dict[str, Any]:
    """Return the new dataset.json without the number of cases and the ending; empty if the old one is unusable."""
    path = source / DATASET_JSON
    try:
        old = read_json(path)
    except SegwrightError as error:
        problems.append(problem_of(error))
        return {}
    if not isinstance(old, dict):
        problems.append(Problem(where=str(path), what="is no object", remedy="download it again"))
        return {}
    channels = old.get("modality")
    if not isinstance(channels, dict) or not channels or not all(key.isdecimal() for key in channels):
        remedy = 'give an object of index -> name, such as {"0": "CT"}'
        problems.append(Problem(where=f"{path}, modality", what="is missing or no object of names", remedy=remedy))
        channels = {}
    names = [str(channels[key]) for key in sorted(channels, key=int)]
    kept = {key: value for key, value in old.items() if key not in _DROPPED}
    if isinstance(old.get("numTraining"), int):
        kept["numTraining"] = old["numTraining"]
    labels, label_map = _labels(path, old.get("labels"), problems, notes)
    more = {"label_map": label_map} if label_map else {}
    return {**kept, "channel_names": {str(index): name for index, name in enumerate(names)}, "labels": labels, **more}


def _labels(
    path: Path, old: object, problems: list[Problem], notes: list[Problem]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return `labels` as name -> value, and the values that have to be mapped because of gaps."""
    is_valid = isinstance(old, dict) and all(key.isdecimal() and isinstance(name, str) for key, name in old.items())
    if not isinstance(old, dict) or not is_valid or "0" not in old:
        remedy = 'give an object of value -> name, such as {"0": "background", "1": "liver"}'
        problems.append(Problem(where=f"{path}, labels", what="is no object of names with the value 0", remedy=remedy))
        return {}, {}
    labels: dict[str, int] = {}
    label_map: dict[str, int] = {}
    for new, (value, given) in enumerate(sorted((int(key), name) for key, name in old.items())):
        name = BACKGROUND if value == 0 else given
        if name in labels:
            name = next(other for number in count(value) if (other := f"{given}_{number}") not in labels)
        if name != given:
            notes.append(Problem(where=f"{path}, labels", what=f"label {value} was named '{given}', now '{name}'"))
        labels[name] = new
        if value != new:
            label_map[str(value)] = new
    if label_map:
        notes.append(Problem(where=f"{path}, labels", what=f"values have gaps; label_map renumbers them: {label_map}"))
    return labels, label_map
