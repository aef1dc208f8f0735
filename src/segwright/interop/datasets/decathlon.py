"""Find what to convert in tasks of the Medical Segmentation Decathlon and of nnU-Net v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ImageError, Problem, ProblemReport, SegwrightError, problem_of
from segwright.core.files.json_documents import read_json
from segwright.core.files.names import path_problem, path_remedy
from segwright.core.parallel import map_threads
from segwright.data.cases import Case, channel_problems, identity_problems, list_folder, with_labels
from segwright.data.description import DATASET_JSON, parse_description
from segwright.data.images.formats import CHANNEL_SUFFIX
from segwright.data.images.readers.nifti_channels import nifti_shape
from segwright.data.images.readers.nifti_header import ENDINGS
from segwright.data.labels import BACKGROUND, ignore_problem
from segwright.data.unmatched_files import entries
from segwright.interop.datasets.conversion import Conversion
from segwright.interop.datasets.renumbering import label_numbers

TRAINING: Final = "Tr"
PARTS: Final = (TRAINING, "Ts", "Val")
"""Of the folders `imagesTr`, `labelsTr` and so on; only the first is required."""

_OTHER_FORMAT: Final = {
    "msd": "if this is a task of the Decathlon, use 'segwright convert msd'",
    "nnunet-v1": "if this is a task of nnU-Net v1, use 'segwright convert nnunet-v1'",
}

_DROPPED: Final = ("modality", "labels", "training", "test", "numTest", "tensorImageSize", "numTraining")
"""Keys of dataset.json that the new one has in another form or not at all."""


@dataclass(slots=True, kw_only=True)
class _Task:
    """A task while its files are looked at.

    Attributes:
        source: its folder.
        file_ending: of most training images.
        document: the new dataset.json as far as the old one says; empty if that is unusable.
        problems: what prevents the conversion.
        notes: what is skipped or changed.
    """

    source: Path
    file_ending: str
    document: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels; none if they are unknown."""
        return tuple(self.document.get("channel_names", {}).values())

    def refuse(self, where: object, what: str, remedy: str = "") -> None:
        self.problems.append(Problem(where=str(where), what=what, remedy=remedy))

    def note(self, where: object, what: str) -> None:
        self.notes.append(Problem(where=str(where), what=what))


def find_msd(source: Path) -> Conversion:
    """Return the conversion of a Decathlon task: one image per case, 4D if it has several channels.

    Raises:
        ProblemReport: everything that prevents it.
    """
    task = _open(source)
    cases = {part: _msd_cases(task, part) for part in _parts(task)}
    images, labels = _images(cases), _label_maps(cases)
    num_split = _count_channels(task, images, task.channels) | _count_channels(task, labels, None)
    return _conversion("msd", task, cases, num_split)


def find_nnunet_v1(source: Path) -> Conversion:
    """Return the conversion of a task of nnU-Net v1: one image per channel, named as in v2.

    Raises:
        ProblemReport: everything that prevents it.
    """
    task = _open(source)
    names, ending = task.channels, task.file_ending
    cases = {}
    for part in _parts(task):
        labels = source / f"labels{part}"
        listing = list_folder(source / f"images{part}", ending, labels=labels if part == TRAINING else None)
        if not listing.cases and (task.source / f"images{part}").is_dir():
            task.refuse(source / f"images{part}", f"holds no {{case}}_0000{ending} file", _OTHER_FORMAT["msd"])
            continue
        task.problems += [*listing.problems, *(channel_problems(listing, names, ending) if names else ())]
        task.notes += listing.stray
        cases[part] = listing.cases if part == TRAINING else with_labels(listing.cases, labels, ending)
    return _conversion("nnunet-v1", task, cases, {})


def _conversion(
    kind: str, task: _Task, cases: Mapping[str, tuple[Case, ...]], num_split: Mapping[Path, int]
) -> Conversion:
    if task.problems:
        raise ProblemReport(task.problems)
    declared, found = task.document.get("numTraining"), len(cases[TRAINING])
    document = {**task.document, "numTraining": found, "file_ending": task.file_ending}
    described = parse_description(document, task.source / DATASET_JSON)
    if wrong := ignore_problem(described.labels):
        task.refuse(f"{task.source / DATASET_JSON}, labels", wrong)
        raise ProblemReport(task.problems)
    if declared is not None and declared != found:
        task.note(task.source / DATASET_JSON, f"numTraining is {declared}, found {found} cases")
    return Conversion(
        kind=kind,
        source=task.source,
        cases=cases,
        file_ending=task.file_ending,
        document=document,
        num_split=num_split,
        unread=(*_images(cases), *_label_maps(cases)),
        notes=tuple(task.notes),
    )


def _images(cases: Mapping[str, tuple[Case, ...]]) -> list[Path]:
    return [image for part in cases.values() for case in part for image in case.images]


def _label_maps(cases: Mapping[str, tuple[Case, ...]]) -> list[Path]:
    return [case.label for part in cases.values() for case in part if case.label is not None]


def _parts(task: _Task) -> list[str]:
    """Return the parts that a task has; training images and labels must be there, others may be empty."""
    required = [task.source / f"{kind}{TRAINING}" for kind in ("images", "labels")]
    missing = {place: wrong for place in required if (wrong := path_problem(place, "folder"))}
    for place, wrong in missing.items():
        task.refuse(place, wrong, "unpack the task again")
    present = [part for part in PARTS[1:] if (task.source / f"images{part}").is_dir()]
    filled = [part for part in present if entries(task.source / f"images{part}")]
    return filled if missing else [TRAINING, *filled]


def _ending(images: Path) -> str:
    """Return the ending of most images."""
    if not images.is_dir():
        return ENDINGS[1]
    names = [entry.name.lower() for entry in entries(images)]
    plain, packed = (sum(name.endswith(ending) for name in names) for ending in ENDINGS)
    return ENDINGS[0] if plain > packed else ENDINGS[1]


def _msd_cases(task: _Task, part: str) -> tuple[Case, ...]:
    """Return the cases of one part, named by their images; hidden files, such as macOS's `._` files, do not count."""
    images, labels = task.source / f"images{part}", task.source / f"labels{part}"
    files, maps = _files_by_case(task, images), _files_by_case(task, labels) if labels.is_dir() else {}
    for name in sorted(maps.keys() - files.keys()):
        task.note(maps[name], "skipped, it has no image of the same name")
    task.problems += identity_problems(images, files)
    if not files:
        task.refuse(images, f"holds no {task.file_ending} file", "unpack the task again")
    missing = [name for name in files if part == TRAINING and name not in maps]
    if missing and all(CHANNEL_SUFFIX.search(name) for name in missing):
        task.refuse(images, "holds files with channel numbers", _OTHER_FORMAT["nnunet-v1"])
        missing = []
    for name in missing:
        what, remedy = "no such file, the label map of a case", "add the label map, or remove the image"
        task.refuse(labels / f"{name}{task.file_ending}", what, remedy)
    return tuple(Case(identifier=name, images=(file,), label=maps.get(name)) for name, file in sorted(files.items()))


def _files_by_case(task: _Task, folder: Path) -> dict[str, Path]:
    """Return the NIfTI files of a folder by case; names that begin with `_` do not count, as in nnU-Net."""
    files: dict[str, Path] = {}
    for entry in entries(folder):
        file = folder / entry.name
        ending = next((each for each in reversed(ENDINGS) if entry.name.lower().endswith(each)), "")
        if entry.kind == "dangling" and ending:
            task.refuse(file, path_problem(file), path_remedy(file, "put the file there or remove the link"))
        elif entry.kind != "file" or not ending or entry.name.startswith("_"):
            task.note(file, "skipped, it is no image of a case")
        elif (name := entry.name[: -len(ending)]) in files:
            task.refuse(file, f"is there as {files[name].name} too", "remove one of them")
        else:
            files[name] = file
    return files


def _count_channels(task: _Task, files: Sequence[Path], names: tuple[str, ...] | None) -> dict[Path, int]:
    """Return the number of channels of each 4D file, and refuse files that do not have one for each name.

    Args:
        task: gets the problems.
        files: images or label maps.
        names: of the channels, empty if unknown; None for label maps.
    """
    found = {}
    for file, shape in zip(files, map_threads(_shape, files), strict=True):
        if isinstance(shape, Problem):
            task.problems.append(shape)
            continue
        size = shape[3] if len(shape) > 3 else 1
        if names is None and size != 1:
            what = f"has {size} channels, a label map has one whole number per voxel"
            task.refuse(file, what, "save it as a single-channel image")
        elif names and size != len(names):
            what = f"has {size} channels, modality of {DATASET_JSON} names {len(names)} ({', '.join(names)})"
            task.refuse(file, what, f"correct modality in {DATASET_JSON}, or remove the case")
        if len(shape) > 3 or not file.name.endswith(task.file_ending):
            found[file] = size
    return found


def _shape(file: Path) -> tuple[int, ...] | Problem:
    try:
        return nifti_shape(file)
    except ImageError as error:
        return problem_of(error)


def _open(source: Path) -> _Task:
    """Read dataset.json of a task."""
    task, path = _Task(source=source, file_ending=_ending(source / "imagesTr")), source / DATASET_JSON
    try:
        old = read_json(path)
    except SegwrightError as error:
        task.problems.append(problem_of(error))
        return task
    if not isinstance(old, dict):
        task.refuse(path, "is no object", "download it again")
        return task
    if "modality" not in old and "channel_names" in old:
        task.refuse(path, "names channel_names, as datasets of nnU-Net v2 do", "use the dataset as it is")
        return task
    channels = old.get("modality")
    if not isinstance(channels, dict) or not channels or not all(key.isdecimal() for key in channels):
        remedy = 'give an object of index -> name, such as {"0": "CT"}'
        task.refuse(f"{path}, modality", "is missing or no object of names", remedy)
        channels = {}
    names = [str(channels[key]) for key in sorted(channels, key=int)]
    kept = {key: value for key, value in old.items() if key not in _DROPPED}
    if isinstance(old.get("numTraining"), int):
        kept["numTraining"] = old["numTraining"]
    labels, label_map = _labels(task, path, old.get("labels"))
    kept |= {"channel_names": {str(index): name for index, name in enumerate(names)}, "labels": labels}
    task.document = kept | ({"label_map": label_map} if label_map else {})
    return task


def _labels(task: _Task, path: Path, old: object) -> tuple[dict[str, int], dict[str, int]]:
    """Return `labels` as name -> value, and the values that have to be mapped because of gaps."""
    where = f"{path}, labels"
    is_valid = isinstance(old, dict) and all(key.isdecimal() and isinstance(name, str) for key, name in old.items())
    if not isinstance(old, dict) or not is_valid or "0" not in old:
        remedy = 'give an object of value -> name, such as {"0": "background", "1": "liver"}'
        task.refuse(where, "is no object of names with the value 0", remedy)
        return {}, {}
    names = {int(key): name for key, name in old.items()}
    numbers = label_numbers([value for value in sorted(names) if value])
    assert numbers is not None  # without an ignore label there always are some
    labels = {BACKGROUND: 0}
    for value, given in sorted(names.items()):
        name = BACKGROUND if value == 0 else given
        if value and name in labels:
            name = next(other for number in count(value) if (other := f"{given}_{number}") not in labels)
        if name != given:
            task.note(where, f"label {value} was named '{given}', now '{name}'")
        labels[name] = numbers.get(value, 0)
    label_map = {str(value): number for value, number in numbers.items() if value != number}
    if label_map:
        task.note(where, f"values have gaps; label_map renumbers them: {label_map}")
    return dict(sorted(labels.items(), key=lambda item: item[1])), label_map
