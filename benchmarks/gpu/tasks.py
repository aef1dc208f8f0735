"""The tasks of the GPU benchmark: plans for made-up datasets, and the same code on tiny ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint, IntensityStatistics
from segwright.data.plan import Plan
from segwright.planning import planner
from segwright.planning.presets import preset

DATASET: Final = "Dataset001_Benchmark"
FILE_ENDING: Final = ".nii.gz"
LABELS: Final = {"background": 0, "a": 1, "b": 2}
_INTENSITIES: Final = IntensityStatistics(
    mean=100.0, median=100.0, std=30.0, min=0.0, max=255.0, percentile_99_5=200.0, percentile_00_5=1.0
)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Cases of equal shape, at 1 mm."""

    shape: tuple[int, int, int]
    num_cases: int
    gpu_memory_gb: float | None = None
    """Target of the planner; None: that of the preset."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A configuration to train.

    Attributes:
        configuration: its name in the plan.
        dataset: from which its size follows.
        tiny: the dataset for a test without a GPU.
        preset: of the planner.
    """

    configuration: str
    dataset: Dataset
    tiny: Dataset
    preset: str = "default"

    def sizes(self, *, small: bool) -> Dataset:
        """Return the dataset."""
        return self.tiny if small else self.dataset

    def description(self, *, small: bool) -> DatasetDescription:
        """Return its `dataset.json`."""
        document = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": FILE_ENDING}
        return DatasetDescription.model_validate({**document, "numTraining": self.sizes(small=small).num_cases})

    def plan(self, *, small: bool) -> Plan:
        """Return the plan that Segwright, and nnU-Net, make for it."""
        sizes = self.sizes(small=small)
        fingerprint = Fingerprint(
            spacings=((1.0, 1.0, 1.0),) * sizes.num_cases,
            shapes_after_crop=(sizes.shape,) * sizes.num_cases,
            median_relative_size_after_cropping=1.0,
            foreground_intensity_properties_per_channel={"0": _INTENSITIES},
        )
        return planner.plan(
            fingerprint,
            self.description(small=small),
            dataset_name=DATASET,
            reader="SimpleITKIO",
            preset=preset(self.preset),
            gpu_memory_gb=sizes.gpu_memory_gb,
        )


_CUBES: Final = Dataset(shape=(300, 300, 300), num_cases=200)
_TINY_CUBES: Final = Dataset(shape=(18, 18, 18), num_cases=6)

TASKS: Final = {
    "hippocampus": Task(
        configuration="3d_fullres",
        dataset=Dataset(shape=(36, 50, 35), num_cases=260),
        tiny=Dataset(shape=(16, 16, 16), num_cases=6),
    ),
    "plain-128": Task(configuration="3d_fullres", dataset=_CUBES, tiny=_TINY_CUBES),
    "resenc-m": Task(
        configuration="3d_fullres",
        dataset=_CUBES,
        tiny=Dataset(shape=(18, 18, 18), num_cases=2, gpu_memory_gb=0.1),
        preset="resenc-m",
    ),
    "2d": Task(
        configuration="2d",
        dataset=Dataset(shape=(300, 512, 512), num_cases=200),
        tiny=Dataset(shape=(4, 24, 24), num_cases=12),
    ),
}
"""Patches and batches: 40x56x40 and 9, as in Hippocampus; 128x128x128 and 2, plain and residual; 512x512 and 12."""
