"""nnU-Net's classes of datasets over our store of preprocessed cases, and the size of a patch before augmentation."""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.core.errors import WorkspaceError
from segwright.data.labels import ClassKey
from segwright.data.preprocessed.previous_stage import StageMaps
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore, PreprocessedCase
from segwright.workspace import CASE_FOLDER_PREFIX

PROVENANCE = "segwright_provenance"
"""Key of the properties of a case with what maps a prediction back to its image, as JSON."""


class ClassRows(Sequence[Any]):
    """The voxels of one class as rows (n, 4): channel 0 and three coordinates; a row is read when it is indexed."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Return one row (4,), or with a slice or list several."""
        if isinstance(index, int | np.integer):
            return np.concatenate([[0], np.asarray(self._rows[int(index)])])
        return np.asarray(self)[index]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, 4)."""
        return len(self), 4

    def __reduce__(self) -> tuple[type[ClassRows], tuple[npt.NDArray[Any]]]:
        return ClassRows, (np.asarray(self._rows),)  # rows on disk cannot be sent to another process

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        rows = np.asarray(self._rows, dtype=np.int64).reshape(-1, 3)
        return np.concatenate([np.zeros((len(rows), 1), np.int64), rows], 1).astype(dtype or np.int64)


class nnUNetDatasetBlosc2:
    """The preprocessed cases of a folder, as nnU-Net 2.6 opens them.

    Args:
        folder: of the cases.
        identifiers: of the cases to use; all if None.
        folder_with_segs_from_previous_stage: of the maps that a cascade's previous stage predicted.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        identifiers: Sequence[str] | None = None,
        folder_with_segs_from_previous_stage: str | PathLike[str] | None = None,
    ) -> None:
        self.source_folder = str(folder)
        self.folder_with_segs_from_previous_stage = folder_with_segs_from_previous_stage
        self.store = open_store(folder)
        self.identifiers = sorted(self.store.identifiers() if identifiers is None else identifiers)

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def __len__(self) -> int:
        return len(self.identifiers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.identifiers)

    def __contains__(self, identifier: object) -> bool:
        return identifier in self.identifiers

    def keys(self) -> list[str]:
        """Return the cases, as the datasets before 2.6 do."""
        return [*self.identifiers]

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return image (C, *S), label map (1, *S), the previous stage's map (1, *S) or None, and properties.

        The arrays are read when they are sliced.
        """
        return self.open_case(identifier)

    def open_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return the four parts of a case, arrays on disk; for our loaders, in every version."""
        case = self.store.load(identifier)
        return case.image, case.label, self._previous(identifier), properties_of(case)

    @staticmethod
    def get_identifiers(folder: str | PathLike[str]) -> list[str]:
        """Return the cases of a folder."""
        return get_case_identifiers(folder)

    @staticmethod
    def unpack_dataset(*_args: Any, **_kwargs: Any) -> None:
        """Do nothing: cases are read as they are."""

    def _previous(self, identifier: str) -> Any:
        folder = self.folder_with_segs_from_previous_stage
        return None if folder is None else StageMaps(Path(folder)).load(identifier)


class nnUNetDataset(nnUNetDatasetBlosc2):
    """The preprocessed cases of a folder, as nnU-Net 2.0 to 2.5 opens them: a mapping from case to what is known of it.

    Args:
        folder: of the cases.
        case_identifiers: of the cases to use; all if None.
        num_images_properties_loading_threshold: has no effect; properties are read when they are needed.
        folder_with_segs_from_previous_stage: of the maps that a cascade's previous stage predicted.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        case_identifiers: Sequence[str] | None = None,
        num_images_properties_loading_threshold: int = 0,
        folder_with_segs_from_previous_stage: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__(folder, case_identifiers, folder_with_segs_from_previous_stage)
        del num_images_properties_loading_threshold
        place = self.store.folder
        self.dataset = {
            name: {"data_file": str(place / f"{name}.b2nd"), "properties_file": str(place / f"{name}.json")}
            for name in self.identifiers
        }

    def load_case(self, identifier: str) -> Any:
        """Return arrays: image (C, *S), label map (1, *S), or (2, *S) with the previous stage's, and properties."""
        image, label, previous, properties = self.open_case(identifier)
        maps = [np.asarray(each[...]).astype(np.int16, copy=False) for each in (label, previous) if each is not None]
        return np.asarray(image[...]), maps[0] if previous is None else np.concatenate(maps), properties

    def __getitem__(self, identifier: str) -> dict[str, Any]:
        return {**self.dataset[identifier], "properties": properties_of(self.store.load(identifier))}

    def items(self) -> ItemsView[str, dict[str, Any]]:
        """Return the cases with their files."""
        return self.dataset.items()

    def values(self) -> list[dict[str, Any]]:
        """Return the files of all cases."""
        return [*self.dataset.values()]


def make_dataset(
    folder: str | PathLike[str],
    identifiers: Sequence[str],
    previous_stage: str | PathLike[str] | None = None,
    *,
    before_2_6: bool = False,
) -> nnUNetDatasetBlosc2:
    """Return a dataset of the class that a file's version of nnU-Net has.

    Args:
        folder: of the cases.
        identifiers: of the cases to use.
        previous_stage: folder of the maps that a cascade's previous stage predicted.
        before_2_6: the mapping of 2.0 to 2.5, whose cases have three parts.
    """
    if before_2_6:
        return nnUNetDataset(folder, identifiers, folder_with_segs_from_previous_stage=previous_stage)
    return nnUNetDatasetBlosc2(folder, identifiers, previous_stage)


def infer_dataset_class(folder: str | PathLike[str]) -> type[nnUNetDatasetBlosc2]:
    """Return the class of datasets; there is one format."""
    del folder
    return nnUNetDatasetBlosc2


def get_case_identifiers(folder: str | PathLike[str]) -> list[str]:
    """Return the preprocessed cases of a folder, sorted."""
    return [*open_store(folder).identifiers()]


def unpack_dataset(*_args: Any, **_kwargs: Any) -> None:
    """Do nothing: cases are read as they are."""


def open_store(folder: str | PathLike[str]) -> CaseStore:
    """Return the store of a folder; for nnU-Net's name of the folder, our own beside it.

    Raises:
        WorkspaceError: neither has cases.
    """
    given = Path(folder)
    for place in (given, given.with_name(CASE_FOLDER_PREFIX + given.name)):
        store = CaseStore(place)
        if store.identifiers():
            return store
    raise WorkspaceError(f"{given}: holds no preprocessed cases; preprocess the dataset with 'segwright preprocess'")


def properties_of(case: PreprocessedCase) -> dict[str, Any]:
    """Return nnU-Net's properties of a case."""
    provenance = case.provenance
    locations: Mapping[ClassKey, Any] = case.class_locations
    spacing = [provenance.spacing[axis] for axis in provenance.transpose_backward]
    return {
        **provenance.properties,
        "spacing": spacing,
        "shape_before_cropping": provenance.shape_before_cropping,
        "bbox_used_for_cropping": [[*interval] for interval in provenance.box],
        "shape_after_cropping_and_before_resampling": provenance.shape_after_cropping,
        "class_locations": {key: ClassRows(rows) for key, rows in locations.items()},
        PROVENANCE: provenance.to_json(),
    }


def provenance_of(properties: Mapping[str, Any]) -> Provenance:
    """Return what maps a prediction back to its image, from the properties of a case."""
    return Provenance.from_json(properties[PROVENANCE])


def get_patch_size(
    final_patch_size: Sequence[int],
    rot_x: float | Sequence[float],
    rot_y: float | Sequence[float],
    rot_z: float | Sequence[float],
    scale_range: Sequence[float],
) -> npt.NDArray[np.int64]:
    """Return the size of a patch from which `final_patch_size` can be rotated and scaled (nnU-Net behaviour 10.2).

    Args:
        final_patch_size: two or three extents.
        rot_x: angle in radians, or the range of angles, about the first axis; for two extents the only one.
        rot_y: about the second axis.
        rot_z: about the third axis.
        scale_range: factors of the size.
    """
    patch = np.array(final_patch_size, dtype=np.float64)
    x_cos, x_sin = _largest_turn(rot_x)
    size = patch.copy()
    if len(patch) == 2:
        first, second = patch
        turned: list[tuple[float, ...]] = [(first * x_cos + second * x_sin, second * x_cos - first * x_sin)]
    else:
        y_cos, y_sin = _largest_turn(rot_y)
        z_cos, z_sin = _largest_turn(rot_z)
        first, second, third = patch
        turned = [
            (first, second * x_cos + third * x_sin, third * x_cos - second * x_sin),
            (first * y_cos - third * y_sin, second, third * y_cos + first * y_sin),
            (first * z_cos + second * z_sin, second * z_cos - first * z_sin, third),
        ]
    for vector in turned:
        size = np.maximum(size, np.abs(vector))
    enlarged: npt.NDArray[np.int64] = (size / min(scale_range)).astype(np.int64)
    return enlarged


def _largest_turn(rotation: float | Sequence[float]) -> tuple[float, float]:
    """Return cosine and sine of the largest angle, at most 90 degrees."""
    angle = min(math.pi / 2, float(np.max(np.abs(rotation))))
    return math.cos(angle), math.sin(angle)
