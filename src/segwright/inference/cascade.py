"""Predict with a cascade: the first stage's labels of a case become input channels of the second stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segwright.core.errors import ModelError
from segwright.data.images.image_io import Volume
from segwright.data.label_maps import one_hot
from segwright.inference.predictor import Predictor
from segwright.preprocessing import pipeline

STORED = "previous_stage"
"""Folder in a model folder for the first stage's model; without it, that model is next to the model folder."""


class CascadePredictor(Predictor):
    """The second stage of a cascade; `first` is the predictor of the first stage."""

    def __init__(self, first: Predictor, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.first = first
        self.origin["previous_stage"] = dict(first.origin)

    def prepare(self, volume: Volume) -> pipeline.PredictionInput:
        """Run the first stage and bring image and labels onto the second stage's grid (nnU-Net behaviour 6.1, 11.6).

        As in nnU-Net, labels are passed on, not probabilities, resampled over the case's own grid.

        Raises:
            ImageError: the image holds NaN or infinite values or does not fit the plan.
        """
        previous = self.first.predict_case(volume).labels
        prepared = pipeline.preprocess_case(volume, previous[None].astype(np.int16), self.plan, self.configuration)
        assert prepared.label is not None
        channels = one_hot(prepared.label, self.labels.foreground_labels)
        return pipeline.PredictionInput(
            image=np.concatenate([prepared.image, channels]), provenance=prepared.provenance
        )


def previous_stage_folder(model_folder: Path, configuration: str, previous: str) -> Path:
    """Find the model folder of the first stage: in the second stage's folder, or beside it.

    Raises:
        ModelError: there is none.
    """
    if Path(previous).name != previous or previous == configuration:
        raise ModelError(
            f"{model_folder}: configuration '{configuration}' names an invalid previous stage '{previous}'; "
            "the plan is damaged"
        )
    absolute = model_folder.absolute()
    beside = absolute.with_name(absolute.name.removesuffix(configuration) + previous)
    for folder in (model_folder / STORED, beside):
        if folder.is_dir():
            return folder
    raise ModelError(
        f"{model_folder}: configuration '{configuration}' needs the model of '{previous}', which is neither in "
        f"{model_folder / STORED} nor at {beside}; copy the first stage's model folder to one of them"
    )
