"""Find what to convert in a raw dataset, so that nnU-Net itself can use it: mapped labels, no keys of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from segwright.core.errors import ImageError, Problem, ProblemReport, problem_of
from segwright.core.parallel import map_threads
from segwright.core.text import listed
from segwright.data.cases import Case, with_labels
from segwright.data.checks import SPLITS_JSON, check
from segwright.data.dataset import IMAGES_FOLDER, LABELS_FOLDER, Dataset, load, usable_cases
from segwright.data.description import DATASET_JSON
from segwright.data.images.geometry import find_reorientation, grid_problem
from segwright.data.images.image_io import READERS, read_header, read_label, write_labels
from segwright.data.images.readers.nifti_header import check_nifti, is_nifti
from segwright.data.images.readers.tiff import is_tiff, tiff_shape
from segwright.data.label_maps import distinct_values
from segwright.data.unmatched_files import entries
from segwright.interop.datasets.conversion import Conversion, Rewrite
from segwright.interop.datasets.reencoding import PICTURE_READER, unify

_KEYS: Final = ("label_map", "groups", "label_pairs", "dataset")
"""Of dataset.json: those that nnU-Net does not have, and the lists of files."""
_READER_KEY: Final = "overwrite_image_reader_writer"
_GREY_MODES: Final = frozenset({"L", "I", "I;16"})
"""Of Pillow, for pictures with one number per pixel; a palette would be read as colours."""


def find_raw(source: Path, *, environment: Mapping[str, str], workers: int | None = None) -> Conversion:
    """Return the conversion of a raw dataset into one that nnU-Net reads as we read this one.

    Label maps are written anew where nnU-Net would read other values: mapped ones, ones stored as floats, and ones
    along other axes than their image. All other files are copied.

    Args:
        source: folder of the dataset.
        environment: variables that paths in file lists may contain.
        workers: threads.

    Raises:
        ProblemReport: what `check` refuses, and what nnU-Net could not read.
    """
    findings = check(source, environment=environment, workers=workers)
    if findings.errors:
        raise ProblemReport(findings.errors)
    dataset = load(source, environment=environment)
    ending = dataset.description.file_ending.lower()
    test = _test_cases(dataset)
    cases = {"Tr": dataset.cases, **({"Ts": test} if test else {})}
    unified = unify(cases, ending)
    problems = [*unified.problems, *_turned_channels(dataset, [*dataset.cases, *test])]
    rewrites = dict(unified.rewrites)
    for part, members in cases.items():
        labelled = [case for case in members if case.label is not None]
        found = map_threads(partial(_label_rewrite, dataset), labelled, workers=workers, title="label maps")
        for case, rewrite in zip(labelled, found, strict=True):
            if isinstance(rewrite, Problem):
                problems.append(rewrite)
            elif rewrite is not None:
                rewrites[f"labels{part}/{case.identifier}{ending}"] = rewrite
    if problems:
        raise ProblemReport(problems)
    document, notes = _document(dataset, ending)
    return Conversion(
        kind="nnunet",
        source=source,
        cases=cases,
        file_ending=ending,
        document=document,
        num_split=unified.num_split,
        rewrites=rewrites,
        unread=tuple(image for case in test for image in case.images),
        notes=tuple(notes),
    )


def _test_cases(dataset: Dataset) -> tuple[Case, ...]:
    """Return the cases of `imagesTs`, with those label maps that there are; none beside file lists."""
    images, labels = (dataset.folder / name.replace("Tr", "Ts") for name in (IMAGES_FOLDER, LABELS_FOLDER))
    if dataset.description.dataset is not None or not images.is_dir() or not entries(images):
        return ()
    ending = dataset.description.file_ending
    cases, problems = usable_cases(images, ending, dataset.num_channels)
    if problems:
        raise ProblemReport(problems)
    return with_labels(cases, labels, ending)


def _turned_channels(dataset: Dataset, cases: Sequence[Case]) -> list[Problem]:
    """Return problems of channels that are stored along other axes than the first one of their case."""
    problems = []
    for case in cases:
        try:
            first, *others = (read_header(image, dataset.reader) for image in case.images)
        except ImageError as error:
            problems.append(problem_of(error))
            continue
        for image, header in zip(case.images[1:], others, strict=True):
            reorientation = find_reorientation(header, first)
            if reorientation is None or not reorientation.is_identity:
                what = f"is stored along other axes than {case.images[0].name}, and nnU-Net does not turn it"
                problems.append(Problem(where=str(image), what=what, remedy="resample or re-export it on that grid"))
    return problems


def _label_rewrite(dataset: Dataset, case: Case) -> Rewrite | Problem | None:
    """Return how a label map changes; None if nnU-Net reads it as we do."""
    assert case.label is not None, "only labelled cases are given"
    label_map, image = dataset.description.label_map, case.images[0]
    try:
        stored = set(distinct_values(read_label(case.label, dataset.reader).array))
        header, grid = read_header(case.label, dataset.reader, is_label=True), read_header(image, dataset.reader)
        is_plain = _is_plain(case.label, dataset.reader)
    except ImageError as error:
        return problem_of(error)
    turned = find_reorientation(header, grid)
    if turned is None:
        return grid_problem(header, grid, file=case.label, name=image.name)
    if undeclared := dataset.labels.undeclared(label_map.get(value, value) for value in stored):
        return Problem(
            where=str(case.label),
            what=f"unexpected label value {listed(undeclared)}, dataset.json declares "
            f"{listed(dataset.labels.declared_values)}",
            remedy="correct one of them, or add a label_map that says which label it is",
        )
    changes = [f"{value} -> {label}" for value, label in sorted(label_map.items()) if value in stored]
    if not turned.is_identity:
        changes.append(f"turned to the axes of {image.name}")
    if not changes and is_plain:
        return None
    return Rewrite(
        change=", ".join(changes) or "stored as whole numbers",
        write=partial(_write_mapped, image=image, reader=dataset.reader, label_map=label_map),
    )


def _is_plain(file: Path, reader: str) -> bool:
    """Whether a label map is stored as one whole number per voxel, as far as its format is known here."""
    if is_nifti(file):
        header = check_nifti(file, is_label=True)
        return header.dtype[1] in "iu" and header.is_plain and len(header.shape) <= 3
    if reader != PICTURE_READER:
        return True
    if is_tiff(file):
        return len(tiff_shape(file, is_label=True)) == 2
    with Image.open(file) as picture:
        return picture.mode in _GREY_MODES


def _write_mapped(source: Path, target: Path, *, image: Path, reader: str, label_map: Mapping[int, int]) -> None:
    grid = read_header(image, reader)
    volume = read_label(source, reader, like=grid, name=image.name, label_map=label_map)
    write_labels(volume.array[0].astype(np.int32), target, volume.properties, reader)


def _document(dataset: Dataset, ending: str) -> tuple[dict[str, Any], list[Problem]]:
    """Return the new dataset.json, and notes on what was left out of it."""
    description, path = dataset.description, dataset.folder / DATASET_JSON
    old, notes = description.raw(), []
    reader = description.overwrite_image_reader_writer
    dropped = [*_KEYS, "modality", "num_training"]
    if reader is not None and reader != "None" and reader not in READERS:
        dropped.append(_READER_KEY)
        notes.append(Problem(where=str(path), what=f"{_READER_KEY} '{reader}' is left out, nnU-Net has no such reader"))
    if description.groups is not None or (dataset.folder / SPLITS_JSON).is_file():
        what = "groups and folds are left out, nnU-Net takes folds from its folder of preprocessed data"
        remedy = f"copy {SPLITS_JSON} there, which 'segwright plan' writes"
        notes.append(Problem(where=str(dataset.folder), what=what, remedy=remedy))
    if description.dataset is not None and (test := dataset.folder / IMAGES_FOLDER.replace("Tr", "Ts")).is_dir():
        what = f"is left out, since {DATASET_JSON} lists the files of the dataset"
        notes.append(Problem(where=str(test), what=what, remedy="copy it yourself if nnU-Net shall find it"))
    document = {key: value for key, value in old.items() if key not in dropped}
    document |= {
        "channel_names": {str(index): name for index, name in enumerate(description.channel_names.values())},
        "numTraining": len(dataset.cases),
        "file_ending": ending,
    }
    return document, notes
