"""Predict label maps and probabilities of one case, whatever computes the logits of its image.

Legend: C channels, H heads, S spatial axes of the image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from segwright.core.parallel import fork_safe
from segwright.core.process_tuning import release_freed_memory
from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import Volume
from segwright.data.label_maps import one_hot
from segwright.data.labels import Labels
from segwright.data.laterality import LabelPairs, mirrored_heads
from segwright.data.plan import Configuration, Plan
from segwright.inference.export.labels import (
    LabelMap,
    MapArray,
    ProbabilityArray,
    ProbabilityWriter,
    export_planes,
)
from segwright.inference.export.postprocessing import NO_POSTPROCESSING, PostProcessing
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.prediction import ArrayPredictor, Prediction
from segwright.inference.reliability.uncertainty import MAPS, Observer, Uncertainty
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tile_planes import TileCount, TileSettings, require_finite
from segwright.inference.window.tiling import rolling_axis
from segwright.preprocessing import pipeline
from segwright.preprocessing.resampling import Library

HOLD_BYTES = 64 * 2**20
"""Logits of a case up to this size are kept, so that its whole export overlaps with the next case. The labels of larger
cases are decided during prediction, with only a few planes of logits in memory."""


class CasePredictor(ArrayPredictor):
    """One model, with all that is needed to predict a case; subclasses compute logits.

    Args:
        window: settings of the sliding window.
        description: the model's dataset.json; needed to predict from files alone.
        origin: the model's name, folds and hash, for `prediction.json`.
        postprocessing: is applied to label maps, not to probabilities.
        first: the first stage of a cascade, whose labels are input channels of this one.
    """

    library: Library = "torch"
    """What resamples images."""

    def __init__(
        self,
        plan: Plan,
        configuration: Configuration,
        labels: Labels,
        *,
        window: TileSettings,
        description: DatasetDescription | None = None,
        origin: Mapping[str, Any] | None = None,
        postprocessing: PostProcessing = NO_POSTPROCESSING,
        first: CasePredictor | None = None,
    ) -> None:
        self.plan = plan
        self.configuration = configuration
        self.labels = labels
        self.window = window
        self.description = description
        self.origin = dict(origin or {})
        self.postprocessing = postprocessing
        self.first = first
        if first is not None:
            self.origin["previous_stage"] = dict(first.origin)

    @property
    @abstractmethod
    def precision(self) -> str:
        """The precision in which logits are computed.

        Raises:
            ConfigError: the device lacks it.
        """

    @property
    @abstractmethod
    def device_name(self) -> str:
        """Where logits are computed, such as cuda:0."""

    @abstractmethod
    def describe_backend(self) -> str:
        """Return what computes logits, for the log; empty for nothing worth a line."""

    @abstractmethod
    def planes(
        self, image: pipeline.NetworkImage, *, count: TileCount | None = None, disagreement: bool = False
    ) -> Iterator[Planes]:
        """Predict the logits (H, planes, *rest) of a preprocessed image (C, *S) a few planes at a time.

        The planes are those of `axis_of`, which is in front of the other axes. With `disagreement` an additional last
        head holds that of networks and mirrored views; see `uncertainty`.
        """

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the labels: predictions of models with the same identity are interchangeable."""
        window, steps = self.window, self.postprocessing.to_json()
        return {
            **self.origin,
            **({"postprocessing": steps} if steps else {}),
            "mirror_axes": list(window.mirror_axes),
            "step": window.step,
            "precision": self.precision,
            "device": self.device_name.partition(":")[0],
        }

    @property
    def reader(self) -> str:
        """The plan's reader and writer of images."""
        return self.plan.image_reader_writer

    @property
    def num_channels(self) -> int:
        """Channels of an image, those of a previous stage not counted."""
        return len(self.configuration.normalization_schemes)

    def prepare(self, volume: Volume) -> pipeline.PredictionInput:
        """Preprocess one case for the network; in a cascade, predict its first stage.

        Raises:
            ImageError: the image has NaN or infinite values, which normalisation could hide, or does not fit the plan.
        """
        if self.first is not None:
            return self._with_labels(volume, self.first.predict_case(volume).labels)
        require_finite(volume.array, "the image")
        prepared = pipeline.preprocess_for_prediction(volume, self.plan, self.configuration, library=self.library)
        release_freed_memory(volume.array.nbytes)  # intermediate copies
        return prepared

    def _with_labels(self, volume: Volume, label_map: LabelMap) -> pipeline.PredictionInput:
        """Bring an image and the first stage's labels onto the second stage's grid (nnU-Net behaviour 6.1, 11.6).

        As in nnU-Net, labels are passed on, not probabilities, resampled over the case's own grid.
        """
        given = label_map[None].astype(np.int16)
        prepared = pipeline.preprocess_case(volume, given, self.plan, self.configuration, library=self.library)
        assert prepared.label is not None
        channels = one_hot(prepared.label, self.labels.foreground_labels)
        return pipeline.PredictionInput(
            image=np.concatenate([prepared.image, channels]), provenance=prepared.provenance
        )

    def axis_of(self, image: pipeline.NetworkImage) -> int:
        """Return the spatial axis of a preprocessed image (C, *S) along which planes are predicted."""
        return rolling_axis(tuple(image.shape[1:]), self.window.patch_size)

    def may_hold(self, image: pipeline.NetworkImage, hold_bytes: int = HOLD_BYTES) -> bool:
        """Whether the logits of a preprocessed image (C, *S) may be kept until the next case is predicted."""
        return 4 * self.labels.num_heads * prod(image.shape[1:]) <= hold_bytes

    def export(
        self,
        prepared: pipeline.PredictionInput,
        planes: Iterable[Planes],
        *,
        writer: ProbabilityWriter | None = None,
        maps: ProbabilityWriter | None = None,
        temperature: float = 1.0,
    ) -> LabelMap:
        """Return the label map of the `planes` of a case; other arguments as of `export_planes`."""
        inverse = self.inverse_resampling(prepared)
        label_map = export_planes(planes, inverse, self.labels, writer=writer, maps=maps, temperature=temperature)
        found: LabelMap = self.postprocessing(label_map)
        return found

    def observer(self, prepared: pipeline.PredictionInput) -> Observer:
        """Return an observer that collects the statistics of a case from its `planes`."""
        return Observer(self.labels, prepared.provenance, tuple(prepared.image.shape[1:]))

    def inverse_resampling(self, prepared: pipeline.PredictionInput) -> InverseResampling:
        """Return the resampling of a case's `planes` to its own grid."""
        shape, axis = prepared.image.shape[1:], self.axis_of(prepared.image)
        return InverseResampling(shape, prepared.provenance, self.configuration, axis=axis)

    @fork_safe
    def predict_case(self, volume: Volume, *, probabilities: bool = False, uncertainty: bool = False) -> Prediction:
        """Predict one case on its own grid: labels, and on request probabilities and uncertainty maps."""
        prepared = self.prepare(volume)
        writer = ProbabilityArray(self.inverse_resampling(prepared), self.labels) if probabilities else None
        maps = MapArray(self.inverse_resampling(prepared), len(MAPS)) if uncertainty else None
        label_map = self.export(
            prepared, self.planes(prepared.image, disagreement=uncertainty), writer=writer, maps=maps
        )
        return Prediction(
            labels=label_map,
            probabilities=None if writer is None else writer.array,
            uncertainty=None if maps is None else Uncertainty(*maps.array),
        )


def sides_in_patch(plan: Plan, configuration: Configuration, labels: Labels) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the lateral axes of a patch and the counterpart of each head; both empty for a plan without sides."""
    sides = LabelPairs.of_plan(plan)
    return ((), ()) if sides is None else (sides.in_patch(configuration.dims), mirrored_heads(labels, sides.pairs))
