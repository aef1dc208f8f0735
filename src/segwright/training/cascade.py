"""Cascade: add the previous stage's label maps to the cases of the second stage, and predict these maps.

nnU-Net behaviour 8.8, 10.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.augmentation.cascade import BinaryOperators, ComponentRemoval, PreviousStage
from segwright.augmentation.recipe import Recipe
from segwright.core.errors import DatasetError, locate_errors
from segwright.core.log import progress
from segwright.data.label_maps import one_hot
from segwright.data.labels import Labels
from segwright.data.plan import Configuration
from segwright.data.preprocessed.previous_stage import StageMap, StageMaps
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore, PreprocessedCase
from segwright.inference.predictor import Predictor
from segwright.preprocessing.pipeline import full_spacing
from segwright.preprocessing.resampling import VolumeResampler
from segwright.training.loading.caching import CaseArray
from segwright.training.loading.sampling import ClassLocations

_SLAB_PLANES = 16
"""Planes of logits resampled at once, so that memory never holds all classes on the next stage's whole grid."""


@dataclass(frozen=True, slots=True)
class StackedMaps:
    """The true label map and that of the previous stage as one array (2, *S), read when it is sliced."""

    truth: CaseArray
    previous: StageMap

    @property
    def shape(self) -> tuple[int, ...]:
        """(2, *S)."""
        return (2, *self.truth.shape[1:])

    def __getitem__(self, key: Any) -> npt.NDArray[np.int16]:
        """Return the slice for a key with the full first axis."""
        parts = [np.asarray(part[key]).astype(np.int16, copy=False) for part in (self.truth, self.previous)]
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class CascadeCase:
    """A case of the second stage; `label` has the previous stage's map as its second channel."""

    case: PreprocessedCase
    previous: StageMap

    @property
    def image(self) -> CaseArray:
        """(C, *S) float32, without the previous stage."""
        return self.case.image

    @property
    def label(self) -> CaseArray:
        """(2, *S) int16."""
        return StackedMaps(self.case.label, self.previous)

    @property
    def class_locations(self) -> ClassLocations:
        """Voxels of each class."""
        return self.case.class_locations

    @property
    def provenance(self) -> Provenance:
        """Grid, crop and axis order of the raw case."""
        return self.case.provenance


@dataclass(frozen=True, slots=True)
class CascadeStore:
    """Preprocessed cases with the previous stage's predictions."""

    cases: CaseStore
    maps: StageMaps

    def load(self, identifier: str) -> CascadeCase:
        """Open a case.

        Raises:
            WorkspaceError: the case or its map is missing.
            DatasetError: the map is on another grid.
        """
        case, previous = self.cases.load(identifier), self.maps.load(identifier)
        if previous.shape[1:] != case.image.shape[1:]:
            raise DatasetError(
                f"case {identifier}: the previous stage's map has shape {previous.shape[1:]}, the image "
                f"{case.image.shape[1:]}; delete {self.maps.folder} and train again"
            )
        return CascadeCase(case, previous)


def build_previous_stage(
    configuration: Configuration, labels: Labels, recipe: Recipe | None = None
) -> PreviousStage | None:
    """Build the step that appends the previous stage's maps to batches; None without a previous stage.

    With a recipe that has any transform the maps are augmented too; an empty recipe or None does not change them.
    """
    if configuration.previous_stage is None:
        return None
    if recipe is None or not recipe.names():
        return PreviousStage(labels=labels.foreground_labels)
    return PreviousStage(
        labels=labels.foreground_labels,
        operators=BinaryOperators(per_label=recipe.previous_label_probability),
        removal=ComponentRemoval(per_label=recipe.previous_label_probability),
    )


def network_input(image: CaseArray, label: CaseArray, labels: Labels) -> npt.NDArray[np.float32]:
    """Return a whole case as the network's input: (C, *S), in a second stage (C + foreground labels, *S)."""
    array = np.asarray(image[...], dtype=np.float32)
    if label.shape[0] == 1:
        return array
    return np.concatenate([array, one_hot(np.asarray(label[...])[1:], labels.foreground_labels)])


def missing_maps(maps: StageMaps, next_cases: CaseStore, identifiers: Sequence[str], weights_hash: str) -> list[str]:
    """Return the cases without a label map that these weights predicted on the next stage's grid."""
    shapes = {name: next_cases.load(name).image.shape[1:] for name in identifiers}
    return [name for name, shape in shapes.items() if not maps.is_fresh(name, shape, weights_hash)]


def predict_next_stage(
    predictor: Predictor,
    cases: CaseStore | CascadeStore,
    identifiers: Sequence[str],
    next_cases: CaseStore,
    maps: StageMaps,
    *,
    patch_size: Sequence[int],
    weights_hash: str,
) -> None:
    """Predict cases with the first stage and store their label maps on the second stage's grid.

    Args:
        predictor: of the fold that did not train on these cases.
        cases: preprocessed for the first stage.
        identifiers: of the cases to predict.
        next_cases: preprocessed for the second stage, with its grids.
        maps: where the label maps are stored.
        patch_size: of the second stage.
        weights_hash: of the predictor's checkpoint.
    """
    for name in progress(identifiers, title="next stage" if identifiers else "", total=len(identifiers)):
        case, shape = cases.load(name), next_cases.load(name).image.shape[1:]
        with locate_errors(f"case {name}"):
            label_map = predict_on_grid(predictor, network_input(case.image, case.label, predictor.labels), case, shape)
        maps.save(name, label_map, patch_size, weights_hash)


def predict_on_grid(
    predictor: Predictor,
    image: npt.NDArray[np.float32],
    case: PreprocessedCase | CascadeCase,
    shape: Sequence[int],
) -> npt.NDArray[Any]:
    """Predict an image, resample the logits, and return the label map (*shape) (nnU-Net behaviour 8.8).

    As in nnU-Net both spacings of the resampling are those of the predicting stage.
    """
    configuration = predictor.configuration
    logits = predictor.predict_preprocessed(image)
    spacing = full_spacing(configuration, case.provenance.spacing)
    function, kwargs = configuration.resampling_fn_probabilities, configuration.resampling_fn_probabilities_kwargs
    resampler = VolumeResampler(logits.shape[1:], shape, spacing, spacing, function, kwargs)
    result = np.zeros(resampler.shape, dtype=predictor.labels.dtype)
    for start in range(0, len(result), _SLAB_PLANES):
        stop = min(start + _SLAB_PLANES, len(result))
        result[start:stop] = predictor.labels.decide(resampler.slab(logits, start, stop).numpy(), logits=True)
    return result
