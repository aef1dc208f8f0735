"""Load image, ground truth and prediction of a scored case on one grid, from raw files or the preprocessed store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import crop
from segwright.core.errors import DatasetError, ImageError
from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import read_images, read_label
from segwright.data.plan import inverse_permutation
from segwright.data.preprocessed.store import CaseStore, PreprocessedCase
from segwright.evaluation.scores import CaseScores

_IMAGES_FOLDER = {"labelsTr": "imagesTr", "labelsTs": "imagesTs"}
_LPS = ("RL", "AP", "IS")
"""Start and end direction of each axis of ITK's world coordinates."""
_AFFINE_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_MIN_COSINE = 0.8
"""Below this an axis is too oblique to be named after a direction of the body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseImages:
    """Images of a case for display; spatial axes S in the order of the files.

    Attributes:
        identifier: name of the case.
        image: (C, *S) float32.
        reference: (*S) int32.
        prediction: (*S) int32.
        spacing: spacing of the axes, in the unit of the files (usually mm).
        directions: direction of each axis: one of R, L, A, P, I, S; empty if unknown.
        is_raw: whether the image is the raw one, not the preprocessed (cropped, resampled, normalised) one.
    """

    identifier: str
    image: npt.NDArray[np.float32]
    reference: npt.NDArray[np.int32]
    prediction: npt.NDArray[np.int32]
    spacing: tuple[float, ...]
    directions: str
    is_raw: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSources:
    """Places in which to look for the images of cases.

    Scores are untrusted input and name files, so only files in folders that the user named are opened.

    Attributes:
        description: `dataset.json`.
        reader: nnU-Net's name of the image reader.
        predictions: folders with predictions.
        raw: raw dataset, if known.
        places: folders whose files may be opened; links may not lead outside them.
        datasets: folders of the user's own data, in which links may lead anywhere.
        files: image files of each case, if dataset.json lists them.
        store: preprocessed cases, if known.
    """

    description: DatasetDescription
    reader: str
    predictions: Sequence[Path]
    raw: Path | None
    files: Mapping[str, Sequence[Path]]
    store: CaseStore | None
    places: Sequence[Path] = ()
    datasets: Sequence[Path] = ()

    def finds(self, file: Path) -> bool:
        """Return whether a file exists and may be opened."""
        try:
            return self._may_open(file) and file.is_file()
        except (OSError, ValueError, RuntimeError):  # invalid names, circular links
            return False

    def _may_open(self, file: Path) -> bool:
        named, real = Path(os.path.abspath(file)), file.resolve()
        return any(named.is_relative_to(place.absolute()) for place in self.datasets) or any(
            real.is_relative_to(place.resolve()) for place in self.places
        )


def load_case(scores: CaseScores, sources: ImageSources) -> CaseImages:
    """Load the images of a scored case.

    Raises:
        DatasetError: the prediction, or both raw and preprocessed image, are missing.
        SegwrightError: a file cannot be read.
    """
    identifier = case_identifier(scores, sources.description)
    predictions = [Path(scores.prediction_file), *(folder / scores.case for folder in sources.predictions)]
    prediction = next((file for file in predictions if sources.finds(file)), None)
    if prediction is None:
        raise DatasetError(f"case {identifier}: {_missing_reason('prediction', predictions)}")
    reference, images = _raw_files(scores, identifier, sources)
    if reference is not None and images:
        label_map = sources.description.label_map
        return _from_raw(identifier, images, reference, prediction, sources.reader, label_map)
    if sources.store is not None and identifier in sources.store.identifiers():
        return _from_store(sources.store.load(identifier), prediction, sources.reader)
    store = "there is no preprocessed copy" if sources.store is None else f"it is not in {sources.store.folder} either"
    raise DatasetError(f"case {identifier}: {_missing_reason('image', [Path(scores.reference_file)])}; {store}")


def case_identifier(scores: CaseScores, description: DatasetDescription) -> str:
    """Return the name of a scored case."""
    return scores.case.removesuffix(description.file_ending)


def directions_of(properties: Mapping[str, Any]) -> str:
    """Return the anatomical direction of the three array axes, one letter each; empty if unknown.

    >>> directions_of({"geometry": {"direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}})
    'SPL'
    """
    geometry = properties.get("geometry", {})
    if "affine" in geometry:
        matrix = _AFFINE_TO_LPS @ np.asarray(geometry["affine"], dtype=float)[:3, :3]
    elif len(geometry.get("direction", ())) == 9:
        matrix = np.asarray(geometry["direction"], dtype=float).reshape(3, 3)
    else:
        return ""
    lengths = np.linalg.norm(matrix, axis=0)
    if not lengths.all():
        return ""
    cosines = matrix / lengths
    world = np.abs(cosines).argmax(axis=0)  # of each file axis x, y, z
    if len(set(world.tolist())) < 3 or np.abs(cosines).max(axis=0).min() < _MIN_COSINE:
        return ""
    letters = [_LPS[axis][int(cosines[axis, column] > 0)] for column, axis in enumerate(world)]
    return "".join(reversed(letters))


def _missing_reason(what: str, files: Sequence[Path]) -> str:
    """Return why an image of a case is not shown; the first of `files` is the one named by the scores."""
    existing = next(filter(_exists, files), None)
    if existing is None:
        return f"its {what} is missing ({files[0]})"
    return (
        f"its {what} is not shown: {existing} is neither in the model's folder nor in a given dataset "
        "(--dataset DIR), so it is not opened"
    )


def _exists(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # names that no file can have
        return False


def _raw_files(scores: CaseScores, identifier: str, sources: ImageSources) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the existing reference and image files of a case."""
    recorded = Path(scores.reference_file)
    labels = recorded.parent.name
    references = [recorded] + ([sources.raw / labels / recorded.name] if sources.raw else [])
    reference = next((file for file in references if sources.finds(file)), None)
    listed = tuple(sources.files.get(identifier, ()))
    if listed and all(file.is_file() for file in listed):
        return reference, listed
    ending = sources.description.file_ending
    channels = range(len(sources.description.channel_names))
    for file in references:
        folder = file.parent.parent / _IMAGES_FOLDER.get(labels, "imagesTr")
        files = tuple(folder / f"{identifier}_{channel:04d}{ending}" for channel in channels)
        if not all(map(sources.finds, files)):
            files = files[:1]  # one file may hold all channels
        if all(map(sources.finds, files)):
            return reference, files
    return reference, ()


def _from_raw(
    identifier: str,
    images: Sequence[Path],
    reference: Path,
    prediction: Path,
    reader: str,
    label_map: Mapping[int, int],
) -> CaseImages:
    volume = read_images(images, reader)
    truth = read_label(reference, reader, like=volume.header, label_map=label_map)
    predicted = read_label(prediction, reader, like=volume.header)
    return CaseImages(
        identifier=identifier,
        image=volume.array,
        reference=_as_int32(truth.array[0]),
        prediction=_as_int32(predicted.array[0]),
        spacing=volume.spacing,
        directions=directions_of(volume.properties),
        is_raw=True,
    )


def _from_store(case: PreprocessedCase, prediction: Path, reader: str) -> CaseImages:
    """Load a preprocessed case in the axis order of the files, with the prediction resampled to its grid."""
    provenance = case.provenance
    predicted = read_label(prediction, reader).array[0].transpose(provenance.transpose_forward)
    if predicted.shape != tuple(provenance.shape_before_cropping):
        raise ImageError(
            f"{prediction}: shape {predicted.shape} is not that of the preprocessed case "
            f"{tuple(provenance.shape_before_cropping)}"
        )
    image, label = np.asarray(case.image), np.asarray(case.label)[0]
    cropped = crop(predicted, provenance.box)
    nearest = [
        np.minimum((np.arange(new) + 0.5) * old // new, old - 1).astype(int)
        for new, old in zip(label.shape, cropped.shape, strict=True)
    ]
    spacing = np.asarray(provenance.spacing) * provenance.shape_after_cropping / label.shape
    back = inverse_permutation(provenance.transpose_forward)
    return CaseImages(
        identifier=case.identifier,
        image=image.transpose(0, *(axis + 1 for axis in back)),
        reference=_as_int32(np.maximum(label, 0)).transpose(back),
        prediction=_as_int32(cropped[np.ix_(*nearest)]).transpose(back),
        spacing=tuple(float(spacing[axis]) for axis in back),
        directions=directions_of(provenance.properties),
        is_raw=False,
    )


def _as_int32(array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    result: npt.NDArray[np.int32] = np.rint(array).astype(np.int32)
    return result
