"""Models as a server needs them: loaded on each device, with what an uploaded case must look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import READERS
from segwright.inference.ensemble import Ensemble
from segwright.inference.predictor import Predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model, loaded once on each device.

    Attributes:
        name: by which clients choose it.
        predictors: one for each device.
    """

    name: str
    predictors: tuple[Predictor | Ensemble, ...]

    @property
    def description(self) -> DatasetDescription:
        """The model's dataset.json."""
        first = self.predictors[0]
        found = (first.predictors[0] if isinstance(first, Ensemble) else first).description
        assert found is not None, "segwright.load_model reads it"
        return found

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in the model's order."""
        return tuple(self.description.channel_names.values())

    @property
    def header_reader(self) -> str:
        """The reader that finds the size of an image without reading its voxels."""
        return self.predictors[0].reader.removesuffix("WithReorient")

    @property
    def endings(self) -> tuple[str, ...]:
        """File endings of images that the model's reader can read, the longest first."""
        found = {self.description.file_ending.lower(), *READERS[self.header_reader].endings}
        return tuple(sorted(found, key=lambda ending: (-len(ending), ending)))

    @property
    def label_names(self) -> dict[int, str]:
        """Names of the label map's values, in the order of the values."""
        labels = self.predictors[0].labels
        return {value: labels.class_name(value) for value in labels.foreground_labels}

    @property
    def num_networks(self) -> int:
        """Models that are predicted one after the other for a case."""
        first = self.predictors[0]
        return len(first.predictors) if isinstance(first, Ensemble) else 1


DrawView: TypeAlias = Callable[[ServedModel, Sequence[Path], Path], Mapping[str, Any]]
"""Makes the JSON document that the page draws: of a model, the images of a case, and its label map."""
