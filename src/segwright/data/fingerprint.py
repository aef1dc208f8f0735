"""Compute the fingerprint of a dataset: shapes, spacings and intensities of its foreground, from which plans follow."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from segwright.core.boxes import box_shape, crop
from segwright.core.errors import DatasetError, ImageError
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.core.parallel import map_threads
from segwright.data.cases import Case
from segwright.data.cropping import content_box
from segwright.data.dataset import Dataset
from segwright.data.images.image_io import Volume, read_images, read_label
from segwright.data.images.orientation import orientation_code
from segwright.data.laterality import FoundPairs, PairFinder
from segwright.data.outliers import TrainingRange, measure
from segwright.data.weighted_sample import WeightedSample, draw

logger = getLogger(__name__)

TOTAL_SAMPLES = 10**8
"""Voxels drawn per channel from the whole dataset, equally many from each case (nnU-Net behaviour 3)."""
SAMPLE_SEED = 1234
"""Seed of the random draws, set anew for each case (nnU-Net behaviour 3)."""


class IntensityStatistics(BaseModel):
    """Intensities of one channel inside the foreground of all cases.

    Attributes:
        mean: of the sampled voxels.
        median: of the same, like all that follow.
        std: standard deviation.
        min: smallest value.
        max: largest value.
        percentile_99_5: value that 99.5 % of the voxels do not exceed.
        percentile_00_5: value that 0.5 % of the voxels do not exceed.
    """

    model_config = ConfigDict(frozen=True)

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_99_5: float
    percentile_00_5: float


class OwnMeasurements(TrainingRange):
    """What nnU-Net does not measure: the range of the training images, to flag outliers at prediction, and label pairs.

    Attributes:
        mirror_pairs: labels that look like left and right; None without any.
    """

    mirror_pairs: FoundPairs | None = None


class Fingerprint(BaseModel):
    """The properties of a dataset that plans follow from (nnU-Net's `dataset_fingerprint.json`, nnU-Net behaviour 3).

    Attributes:
        spacings: per case, mm, in the axis order of the array.
        shapes_after_crop: per case, spatial shape of the non-zero region.
        median_relative_size_after_cropping: voxels kept by the crop, as a fraction.
        foreground_intensity_properties_per_channel: keyed by the position of the channel, "0", "1", ...
        segwright: our own measurements.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    spacings: tuple[tuple[float, ...], ...]
    shapes_after_crop: tuple[tuple[int, ...], ...]
    median_relative_size_after_cropping: FiniteFloat
    foreground_intensity_properties_per_channel: dict[str, IntensityStatistics]
    segwright: OwnMeasurements | None = None

    @model_validator(mode="after")
    def _require_equal_axes(self) -> Fingerprint:
        lengths = sorted({len(row) for row in (*self.spacings, *self.shapes_after_crop)})
        if len(lengths) > 1:
            raise ValueError(f"spacings and shapes_after_crop have rows of {lengths} numbers; expected one per axis")
        return self

    @property
    def mirror_pairs(self) -> FoundPairs | None:
        """Labels that look like left and right; None without any, and in a fingerprint of another program."""
        return None if self.segwright is None else self.segwright.mirror_pairs

    @classmethod
    def load(cls, path: Path) -> Fingerprint:
        """Read a `dataset_fingerprint.json`.

        Raises:
            SegwrightError: the file is missing, not JSON or lacks a key; the message names it.
        """
        return parse_document(cls, path)

    def reordered(self, orders: Sequence[Sequence[int]]) -> Fingerprint:
        """Return the fingerprint with the axes of each case in another order, as for re-oriented images.

        Args:
            orders: per case, the axis of the file for each axis of the result.
        """
        spacings = [tuple(case[axis] for axis in order) for case, order in zip(self.spacings, orders, strict=True)]
        shapes = [
            tuple(case[axis] for axis in order) for case, order in zip(self.shapes_after_crop, orders, strict=True)
        ]
        return self.model_copy(update={"spacings": tuple(spacings), "shapes_after_crop": tuple(shapes)})

    def save(self, path: Path) -> None:
        """Write the file as nnU-Net does, atomically and with a checksum."""
        write_checked_json(path, self.to_json(), indent=4, sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """Return nnU-Net's keys, and `segwright` if it is set."""
        return self.model_dump(mode="json", exclude=None if self.segwright else {"segwright"})


class _CaseProperties(BaseModel):
    """What a fingerprint needs of one case, intensities aside."""

    model_config = ConfigDict(frozen=True)

    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    relative_size: float
    lacks_foreground: bool
    measures: dict[str, float]
    orientation: str | None


class FingerprintCollector:
    """Collects a fingerprint case by case, in any order and from any thread.

    The intensities are those that nnU-Net 2.8.1 draws, voxel for voxel. Draws are counted per value, so that memory
    depends on the number of distinct values, not on the number of draws.
    """

    def __init__(self, *, num_cases: int, num_channels: int) -> None:
        self._num_draws = TOTAL_SAMPLES // max(num_cases, 1)
        self._samples = [WeightedSample() for _ in range(num_channels)]
        self._properties: dict[str, _CaseProperties] = {}

    def add(self, case: Case, volume: Volume, label: Volume) -> None:
        """Measure one case.

        Raises:
            ImageError: image and label differ in shape.
            DatasetError: the number of channels is not that of dataset.json.
        """
        _require_usable(case, volume, label, len(self._samples))
        box = content_box(volume.array)
        foreground = crop(label.array[0], box) > 0  # the ignore label counts as well (nnU-Net behaviour 3.2)
        random = np.random.RandomState(SAMPLE_SEED)
        for channel, sample in zip(crop(volume.array, box), self._samples, strict=True):
            sample.add(*draw(channel[foreground], self._num_draws, random))
        shape = box_shape(box)
        self._properties[case.identifier] = _CaseProperties(
            spacing=volume.spacing,
            shape=shape,
            relative_size=prod(shape) / prod(volume.array.shape[1:]),
            lacks_foreground=not foreground.any(),
            measures=measure(volume),
            orientation=orientation_code(volume.properties),
        )

    def fingerprint(self, dataset: Dataset, pairs: FoundPairs | None) -> Fingerprint:
        """Return the fingerprint, with cases in the order of the dataset, and with the pairs of labels.

        Raises:
            DatasetError: no case has any foreground.
        """
        facts = [self._properties[case.identifier] for case in dataset.cases]
        if all(fact.lacks_foreground for fact in facts):
            raise DatasetError(
                f"{dataset.folder}: none of its {len(facts)} cases has a voxel with a foreground label; "
                "planning needs their intensities. Check the label files"
            )
        # nnU-Net's percentiles are float64 if any case has no foreground, else float32 (nnU-Net behaviour 3.3).
        dtype = np.float64 if any(fact.lacks_foreground for fact in facts) else np.float32
        return Fingerprint(
            spacings=tuple(fact.spacing for fact in facts),
            shapes_after_crop=tuple(fact.shape for fact in facts),
            median_relative_size_after_cropping=median(fact.relative_size for fact in facts),
            foreground_intensity_properties_per_channel={
                str(channel): _statistics(sample, dtype) for channel, sample in enumerate(self._samples)
            },
            segwright=OwnMeasurements.of(
                [fact.measures for fact in facts], [fact.orientation for fact in facts]
            ).model_copy(update={"mirror_pairs": pairs}),
        )


def extract(dataset: Dataset, *, workers: int | None = None) -> Fingerprint:
    """Read every case once and return the dataset's fingerprint.

    Raises:
        ImageError: a file is unreadable or has impossible values, or image and label are not on the same grid.
        DatasetError: no case has any foreground, or channel counts differ from dataset.json.
    """
    collector = FingerprintCollector(num_cases=len(dataset.cases), num_channels=dataset.num_channels)
    finder = PairFinder(dataset.description, dataset.identifiers, dataset.reader)
    label_map = dataset.description.label_map

    def add_case(case: Case) -> None:
        assert case.label is not None, "training cases have labels"
        volume = read_images(case.images, dataset.reader)
        label = read_label(case.label, dataset.reader, like=volume.header, label_map=label_map)
        collector.add(case, volume, label)
        finder.add(case.identifier, label)

    map_threads(add_case, dataset.cases, workers=workers, describe=lambda case: case.identifier, title="fingerprint")
    return collector.fingerprint(dataset, finder.found())


def _require_usable(case: Case, volume: Volume, label: Volume, num_channels: int) -> None:
    if len(volume.array) != num_channels:
        raise DatasetError(
            f"{case.images[0]}: case '{case.identifier}' has {len(volume.array)} channels, dataset.json names "
            f"{num_channels}; make them agree"
        )
    if volume.array.shape[1:] != label.array.shape[1:]:
        raise ImageError(
            f"{case.label}: shape {label.array.shape[1:]} differs from {volume.array.shape[1:]} of its image "
            f"{case.images[0].name}; export both on one grid"
        )


def _statistics(sample: WeightedSample, dtype: type[np.float32] | type[np.float64]) -> IntensityStatistics:
    low, middle, high = sample.percentiles((0.5, 50.0, 99.5))
    mean, std = sample.moments()
    return IntensityStatistics(
        mean=mean,
        std=std,
        min=sample.smallest,
        max=sample.largest,
        median=float(dtype(middle)),
        percentile_00_5=float(dtype(low)),
        percentile_99_5=float(dtype(high)),
    )
