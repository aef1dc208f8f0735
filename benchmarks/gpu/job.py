"""What a process of the GPU benchmark is to measure, as one argument of its command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A measurement.

    Attributes:
        what: a key of `measure.MEASUREMENTS`.
        task: a key of `tasks.TASKS`.
        device: of torch.
        folder: for the files of a training.
        small: tiny shapes.
        settings: of the training.
        warm_up: steps before those that are timed.
        min_steps: steps to time at least.
        min_s: seconds for which steps are timed at least.
        cases: folder of preprocessed cases, for a loader.
        model: folder of a model to predict with; for nnU-Net's trainer that of plans.json and dataset.json.
        nnunet_model: folder for the same model in nnU-Net's format.
        images: folder of images.
        num_images: number of images to make.
        image_shape: their voxels.
        image_spacing: their spacing in mm.
        output: folder for predictions.
    """

    what: str
    task: str
    device: str
    folder: str = ""
    small: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)
    warm_up: int = 0
    min_steps: int = 1
    min_s: float = 0.0
    cases: str = ""
    model: str = ""
    nnunet_model: str = ""
    images: str = ""
    num_images: int = 0
    image_shape: tuple[int, ...] = ()
    image_spacing: tuple[float, ...] = ()
    output: str = ""

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read a job."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))
