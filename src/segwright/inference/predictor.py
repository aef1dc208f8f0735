"""Predict label maps and probabilities of one case with the networks of a model.

Legend: C channels, H heads, S spatial axes of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from segwright.core.parallel import fork_safe
from segwright.core.process_tuning import release_freed_memory
from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import Volume
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
from segwright.inference.reliability.uncertainty import MAPS, Observer, Uncertainty, log_partition
from segwright.inference.window.sliding import Image, TileCount, Window, require_finite, window_planes
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tiling import DEFAULT_STEP, HALF_QUANTUM, rolling_axis
from segwright.networks.build import move_to_device
from segwright.preprocessing import pipeline

HOLD_BYTES = 64 * 2**20
"""Logits of a case up to this size are kept, so that its whole export overlaps with the next case. The labels of larger
cases are decided during prediction, with only a few planes of logits in memory."""


class Predictor(ArrayPredictor):
    """The networks of one model, with all that is needed to predict a case; safe to use from several threads.

    Args:
        networks: one for each fold, deep supervision off; moved to `device` in its memory format.
        mirror_axes: spatial axes that mirroring may use; none switches it off.
        swap_sides: the networks were trained with left and right labels swapped in mirrored samples, along the plan's
            lateral axes.
        sum_dtype: dtype in which tiles are summed.
        quantum: weighted logits are rounded to multiples of it. The default reproduces nnU-Net's rounding at the border
            of the image, where its float16 sums have one or two digits; 0 switches rounding off.
        reuse: compute tiles of one value, such as air, once instead of one by one.
        description: the model's dataset.json; needed to predict from files alone.
        origin: the model's name, folds and hash, for `prediction.json`.
        postprocessing: is applied to label maps, not to probabilities.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        configuration: Configuration,
        labels: Labels,
        *,
        device: torch.device,
        mirror_axes: Sequence[int] = (),
        swap_sides: bool = False,
        precision: str = "auto",
        step: float = DEFAULT_STEP,
        batch_tiles: int | None = None,
        sum_dtype: torch.dtype = torch.float32,
        quantum: float = HALF_QUANTUM,
        reuse: bool = True,
        description: DatasetDescription | None = None,
        origin: Mapping[str, Any] | None = None,
        postprocessing: PostProcessing = NO_POSTPROCESSING,
    ) -> None:
        self.plan = plan
        self.configuration = configuration
        self.labels = labels
        self.description = description
        self.origin = dict(origin or {})
        self.postprocessing = postprocessing
        sides = LabelPairs.of_plan(plan) if swap_sides else None
        self.window = Window(
            patch_size=tuple(configuration.patch_size),
            device=device,
            mirror_axes=tuple(mirror_axes),
            lateral_axes=sides.in_patch(configuration.dims) if sides else (),
            mirrored_heads=mirrored_heads(labels, sides.pairs) if sides else (),
            step=step,
            precision=precision,
            batch=batch_tiles,
            sum_dtype=sum_dtype,
            quantum=quantum if sum_dtype == torch.float32 else 0.0,
            reuse=reuse,
        )
        self.networks = tuple(move_to_device(network, device, precision) for network in networks)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the labels: predictions of models with the same identity are interchangeable."""
        window, steps = self.window, self.postprocessing.to_json()
        return {
            **self.origin,
            **({"postprocessing": steps} if steps else {}),
            "mirror_axes": list(window.mirror_axes),
            "step": window.step,
            "precision": window.used_precision,
            "device": window.device.type,
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
        """Preprocess one case for the network.

        Raises:
            ImageError: the image has NaN or infinite values, which normalisation could hide, or does not fit the plan.
        """
        require_finite(volume.array, "the image")
        prepared = pipeline.preprocess_for_prediction(volume, self.plan, self.configuration)
        release_freed_memory(volume.array.nbytes)  # intermediate copies
        return prepared

    @fork_safe
    def predict_preprocessed(self, image: Image) -> Tensor:
        """Return the networks' mean logits (H, *S), float32 on the CPU, of a preprocessed image (C, *S)."""
        logits = torch.empty((self.labels.num_heads, *image.shape[1:]))
        axis = self.axis_of(image)
        for planes in self.planes(image):
            logits.movedim(axis + 1, 1)[:, planes.start : planes.stop] = planes.logits
        return logits

    def axis_of(self, image: Image) -> int:
        """Return the spatial axis of a preprocessed image (C, *S) along which planes are predicted."""
        return rolling_axis(tuple(image.shape[1:]), self.window.patch_size)

    def may_hold(self, image: Image, hold_bytes: int = HOLD_BYTES) -> bool:
        """Whether the logits of a preprocessed image (C, *S) may be kept until the next case is predicted."""
        return 4 * self.labels.num_heads * prod(image.shape[1:]) <= hold_bytes

    def planes(self, image: Image, *, count: TileCount | None = None, disagreement: bool = False) -> Iterator[Planes]:
        """Predict the logits of `predict_preprocessed` a few planes at a time, `axis_of` in front of the other axes.

        With `disagreement` an additional last head holds that of networks and mirrored views; see `uncertainty`.
        """
        heads, axis = self.labels.num_heads, self.axis_of(image)
        convex_fn = log_partition(self.labels) if disagreement else None
        return window_planes(
            self.networks, image, heads, window=self.window, axis=axis, count=count, convex_fn=convex_fn
        )

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
