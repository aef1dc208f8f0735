"""Find the files to draw: of a raw dataset, or of a folder of predictions, whose images are elsewhere."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Final

from segwright.api.datasets.references import listed_references, reference_labels
from segwright.api.evaluating import find_description, find_label_reader, require_folders
from segwright.core.errors import ConfigError, DatasetError, ProblemReport, SegwrightError, did_you_mean
from segwright.core.files.names import path_problem, require_name
from segwright.core.text import listed
from segwright.data.cases import explicit_cases, list_folder
from segwright.data.dataset import IMAGES_FOLDER, LABELS_FOLDER, list_cases, scan
from segwright.data.description import DatasetDescription, load_description
from segwright.data.images.image_io import choose_reader
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.report.overlays.shown_case import CaseSource, ReadOptions
from segwright.workspace import DATASET_JSON, PLANS_JSON, Workspace

logger = getLogger(__name__)

_LABELS_OF: Final = {IMAGES_FOLDER: LABELS_FOLDER, "imagesTs": "labelsTs"}
"""Folders of a raw dataset: images, and their label maps."""
_IMAGES_OF: Final = {labels: images for images, labels in _LABELS_OF.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayFiles:
    """What is drawn.

    Attributes:
        title: of the sheets.
        sources: the files of every case.
        reading: how they are read.
        are_predictions: whether the label maps are predictions.
        folders: of the user's files, in which nothing is written.
    """

    title: str
    sources: tuple[CaseSource, ...]
    reading: ReadOptions
    are_predictions: bool
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where files lie, as the user says it.

    Attributes:
        target: a raw dataset (folder, name or id), one of its folders of images or label maps, or predictions.
        reference: folder of other label maps, or raw dataset.
        images: folder of the images of predictions, or raw dataset.
        dataset_json: file that describes predictions.
        workspace: where raw datasets are.
        environment: variables that paths in file lists may contain.
    """

    target: str | Path
    reference: Path | None
    images: Path | None
    dataset_json: Path | None
    workspace: Workspace
    environment: Mapping[str, str]


def find_files(places: Places, cases: Collection[str] | None) -> OverlayFiles:
    """Find the files of all cases, or of `cases`.

    Raises:
        SegwrightError: a folder or file is missing, or a case is unknown.
    """
    require_folders(*_given(places.reference, places.images))
    target = _target(places)
    found = _raw_dataset(target, places.environment)
    if found is None:
        return _of_predictions(target, places, cases)
    if places.images is not None or places.dataset_json is not None:
        raise ConfigError(
            f"{target}: is a raw dataset, and --images and --dataset-json are for predictions; leave them out; give "
            f"{found[0] / 'imagesTs'} instead to draw the test cases"
        )
    return _of_dataset(*found, places, cases)


def _target(places: Places) -> Path:
    """Return the folder that the user means: a path, else the raw dataset of this name or id."""
    text = str(places.target)
    if text.isdecimal() or not os.path.lexists(text):
        return places.workspace.resolve_dataset(text)
    require_folders(Path(text))
    return Path(os.path.abspath(text))


def _raw_dataset(folder: Path, environment: Mapping[str, str]) -> tuple[Path, Path | None] | None:
    """Return a raw dataset and its folder of images if one is chosen; None if the folder is not (in) a raw dataset."""
    if _is_raw(folder, environment):
        return folder, None
    part = _IMAGES_OF.get(folder.name, folder.name)
    if part in _LABELS_OF and _is_raw(folder.parent, environment):
        return folder.parent, folder.parent / part
    return None


def _is_raw(folder: Path, environment: Mapping[str, str]) -> bool:
    """Return whether a folder is a raw dataset; those of models and predictions have a copy of its dataset.json."""
    file = folder / DATASET_JSON
    if path_problem(file) or (folder / PLANS_JSON).exists():
        return False
    if (folder / IMAGES_FOLDER).is_dir():
        return True
    description = load_description(file)
    cases = explicit_cases(file, description.file_lists(), environment).cases
    predictions = [Path(os.path.abspath(folder)) / f"{case.identifier}{description.file_ending}" for case in cases]
    if any(case.label != made and made.exists() for case, made in zip(cases, predictions, strict=True)):
        return False
    return any(image.exists() for case in cases for image in case.images)


def _of_dataset(folder: Path, images: Path | None, places: Places, cases: Collection[str] | None) -> OverlayFiles:
    description = load_description(folder / DATASET_JSON)
    ending = description.file_ending
    if description.dataset is not None and images is None:
        result = scan(folder, environment=places.environment)
        if result.problems:
            raise ProblemReport(result.problems)
        found = [CaseSource(identifier=case.identifier, images=case.images, labels=case.label) for case in result.cases]
    else:
        place = images or folder / IMAGES_FOLDER
        labels = folder / _LABELS_OF[place.name]
        found = [
            CaseSource(
                identifier=case.identifier,
                images=case.images,
                labels=file if (file := labels / f"{case.identifier}{ending}").is_file() else None,
            )
            for case in list_cases(place, ending, len(description.channel_names))
        ]
    found = _selected(found, cases, folder)
    reader = choose_reader(ending, [case.images[0] for case in found], description.overwrite_image_reader_writer)
    return OverlayFiles(
        title=folder.name if images is None else f"{folder.name}, {images.name}",
        sources=_with_references(found, places, ending),
        reading=ReadOptions(
            description=description,
            labels=Labels.from_description(description),
            reader=reader,
            label_map=description.label_map,
            reference_map=_reference_map(description, places.reference),
        ),
        are_predictions=False,
        folders=(folder, *_given(places.reference)),
    )


def _of_predictions(folder: Path, places: Places, cases: Collection[str] | None) -> OverlayFiles:
    description = load_description(places.dataset_json or find_description(*_given(places.reference), folder))
    ending = description.file_ending
    files = [file for file in sorted(folder.iterdir()) if file.name.endswith(ending) and not file.name.startswith(".")]
    if not files:
        raise DatasetError(f"{folder}: holds no label map (*{ending}); give a raw dataset or a folder of predictions")
    found = [CaseSource(identifier=file.name.removesuffix(ending), images=(), labels=file) for file in files]
    found = _with_images(_selected(found, cases, folder), places, folder, ending)
    return OverlayFiles(
        title=folder.name,
        sources=_with_references(found, places, ending),
        reading=ReadOptions(
            description=description,
            labels=Labels.from_description(description),
            reader=find_label_reader(ending, description.overwrite_image_reader_writer, folder),
            reference_map=_reference_map(description, places.reference),
        ),
        are_predictions=True,
        folders=(folder, *_given(places.reference, places.images)),
    )


def _selected(found: Sequence[CaseSource], cases: Collection[str] | None, folder: Path) -> list[CaseSource]:
    """Return the cases of these names; all by default."""
    if cases is None:
        return list(found)
    known = {source.identifier for source in found}
    for case in cases:
        if case not in known:
            raise ConfigError(f"{folder}: has no case '{case}'{did_you_mean(case, sorted(known))}")
    return [source for source in found if source.identifier in cases]


def _with_images(found: Sequence[CaseSource], places: Places, folder: Path, ending: str) -> list[CaseSource]:
    """Return predictions with their images, from the first place that has them.

    Raises:
        DatasetError: some have none.
    """
    searched = _given(places.images) or _image_places(places, folder)
    images: dict[str, tuple[Path, ...]] = {}
    for place in searched:
        images = {**_images_in(place, ending, places.environment), **images}
    missing = [source.identifier for source in found if source.identifier not in images]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        where = f" in {', '.join(map(str, searched))}" if searched else ", and it is not known where images are"
        raise DatasetError(
            f"{folder}: no image of case '{missing[0]}'{more}{where}; name the folder of the images with --images DIR"
        )
    return [replace(source, images=images[source.identifier]) for source in found]


def _image_places(places: Places, folder: Path) -> tuple[Path, ...]:
    """Return where images of predictions may be: beside the references, or in the workspace's dataset of this name.

    Predictions may come from somebody else, so a path that their files name is not opened.
    """
    found = []
    if places.reference is not None:
        raw = _raw_dataset(Path(os.path.abspath(places.reference)), places.environment)
        found += [raw[0]] if raw is not None else []
    plans = next((file for up in (folder, *folder.parents[:2]) if (file := up / PLANS_JSON).is_file()), None)
    if plans is not None:
        try:
            name = require_name(Plan.load(plans).dataset_name, "name of the dataset")
            found.append(places.workspace.resolve_dataset(name))
        except SegwrightError as error:
            logger.debug("%s: its dataset is not found: %s", plans, error)
    return tuple(dict.fromkeys(found))


def _images_in(place: Path, ending: str, environment: Mapping[str, str]) -> dict[str, tuple[Path, ...]]:
    """Return the images of each case in a raw dataset, or in a folder of images."""
    if not _is_raw(place, environment):
        return {case.identifier: case.images for case in list_folder(place, ending, labels=None).cases}
    folders = [place / name for name in _LABELS_OF if (place / name).is_dir()]
    cases = [case for folder in folders for case in list_folder(folder, ending, labels=None).cases]
    if load_description(place / DATASET_JSON).dataset is not None:
        cases += scan(place, environment=environment).cases
    return {case.identifier: case.images for case in cases}


def _with_references(found: Sequence[CaseSource], places: Places, ending: str) -> tuple[CaseSource, ...]:
    """Return cases with the references that exist.

    Raises:
        DatasetError: there is none.
    """
    truth = places.reference
    if truth is None:
        return tuple(found)
    by_name = listed_references(truth, places.environment)
    folders = [truth / name for name in _IMAGES_OF] if _is_raw(truth, places.environment) else [truth]

    def reference_of(case: str) -> Path | None:
        files = (*_given(by_name.get(case)), *(folder / f"{case}{ending}" for folder in folders))
        return next((file for file in files if file.is_file()), None)

    result = tuple(replace(source, reference=reference_of(source.identifier)) for source in found)
    missing = [source.identifier for source in result if source.reference is None]
    if len(missing) == len(result):
        raise DatasetError(f"{truth}: holds no reference for any case, for instance {missing[0]}{ending}")
    if missing:
        logger.warning("%s: no reference for %s; drawn without", truth, listed(missing))
    return result


def _reference_map(description: DatasetDescription, truth: Path | None) -> Mapping[int, int]:
    return {} if truth is None else reference_labels(description, truth).label_map


def _given(*paths: Path | None) -> tuple[Path, ...]:
    """Return the paths that are given."""
    return tuple(path for path in paths if path is not None)
