"""Print what a prediction needs at its peak: `measure_memory.py export|average HEADS` or `predict|files EXTENT`."""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import Volume
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.ensemble import Ensemble
from segwright.inference.export.labels import LabelMap, export_planes
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.predictor import Predictor
from segwright.inference.window.stitching import Planes

STATUS = Path("/proc/self/status")
MIB = 2**20


def resident_mib(key: str) -> float:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def start_peak() -> float:
    """Set the peak back to what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


def plan(spacing: float) -> Plan:
    name = "resample_data_or_seg_to_shape"
    kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration: dict[str, Any] = {
        "data_identifier": "memory",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64, 64, 64],
        "median_image_size_in_voxels": [64.0, 64.0, 64.0],
        "spacing": [spacing] * 3,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": name,
        "resampling_fn_seg": name,
        "resampling_fn_data_kwargs": {**kwargs, "order": 3},
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True},
        "resampling_fn_probabilities": name,
        "resampling_fn_probabilities_kwargs": kwargs,
        "architecture": {"network_class_name": "unet", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
    }
    return Plan.from_json(
        {
            "dataset_name": "Dataset001_Memory",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"memory": configuration},
            "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
        }
    )


def labels_of(heads: int) -> Labels:
    names = {f"label {value}": value for value in range(1, heads)}
    return Labels.from_dataset_json({"labels": {"background": 0, **names}})


def export(heads: int) -> dict[str, float]:
    network, original = (40, 64, 64), (80, 256, 256)
    configuration = plan(1.0).configuration("memory").model_copy(update={"spacing": (2.0, 4.0, 4.0)})
    provenance = Provenance(
        properties={},
        shape_before_cropping=original,
        box=tuple((0, extent) for extent in original),
        shape_after_cropping=original,
        spacing=(1.0, 1.0, 1.0),
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
    )
    labels = labels_of(heads)
    # Once on little, for what torch sets up at first use stays for good.
    decide(torch.zeros((heads, 1, 2, 2)), small(provenance), configuration, labels)
    logits = torch.randn((heads, *network), generator=torch.Generator().manual_seed(0))
    before = start_peak()
    label_map = decide(logits, provenance, configuration, labels)
    extra = resident_mib("VmHWM") - before
    return {"extra_mib": extra, "label_mib": label_map.nbytes / MIB, "whole_mib": 4 * heads * label_map.size / MIB}


def decide(logits: torch.Tensor, provenance: Provenance, configuration: Configuration, labels: Labels) -> LabelMap:
    inverse = InverseResampling(logits.shape[1:], provenance, configuration)
    return export_planes([Planes(start=0, stop=logits.shape[1], logits=logits)], inverse, labels)


def small(provenance: Provenance) -> Provenance:
    shape = (2, 8, 8)
    box = tuple((0, extent) for extent in shape)
    return Provenance(
        properties={},
        shape_before_cropping=shape,
        box=box,
        shape_after_cropping=shape,
        spacing=provenance.spacing,
        transpose_forward=provenance.transpose_forward,
        transpose_backward=provenance.transpose_backward,
    )


def pointwise(heads: int, *, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), **options: Any) -> Predictor:
    """Return a predictor whose network is one convolution of single voxels."""
    chosen = plan(1.0)
    configuration = chosen.configuration("memory").model_copy(update={"spacing": spacing})
    network, device = nn.Conv3d(1, heads, 1), torch.device("cpu")
    return Predictor([network], chosen, configuration, labels_of(heads), device=device, precision="fp32", **options)


def predict(extent: int) -> dict[str, float]:
    """Predict (128, 128, extent), nothing but the image itself and the labels taken off."""
    predictor = pointwise(4, mirror_axes=(0,))
    array = np.random.default_rng(0).standard_normal((1, 128, 128, extent), dtype=np.float32)
    start_peak()
    prediction = predictor.predict_case(Volume(array=array, spacing=(1.0, 1.0, 1.0), properties={}))
    peak = resident_mib("VmHWM")
    return {"beyond_arrays_mib": peak - (array.nbytes + prediction.labels.nbytes) / MIB}


def files(extent: int) -> dict[str, float]:
    """The same from a file."""
    shape = (128, 128, extent)
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels_of(4).declared, "numTraining": 1, "file_ending": ".nii"}
    with TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        array = np.random.default_rng(0).normal(100, 20, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.eye(4)), images / "long_0000.nii")
        del array
        predictor = pointwise(4, description=DatasetDescription.model_validate(dataset))
        start_peak()
        predict_files(predictor, images, Path(folder, "labels"))
    return {"beyond_arrays_mib": resident_mib("VmHWM") - (4 + 1) * prod(shape) / MIB}


def average(heads: int) -> dict[str, float]:
    """Predict a case with two models whose probabilities, on its own grid, would be large."""
    predictors = [pointwise(heads, spacing=(2.0, 4.0, 4.0)) for _ in range(2)]
    both, spacing = Ensemble(predictors), (1.0, 1.0, 1.0)
    random = np.random.default_rng(0)
    for shape in ((8, 16, 16), (80, 256, 256)):  # once on little, see `export`
        array = random.standard_normal((1, *shape), dtype=np.float32)
        before = start_peak()
        label_map = both.predict_case(Volume(array=array, spacing=spacing, properties={"spacing": spacing})).labels
        extra = resident_mib("VmHWM") - before
    return {"extra_mib": extra, "label_mib": label_map.nbytes / MIB, "whole_mib": 4 * heads * label_map.size / MIB}


if __name__ == "__main__":
    measure = {"export": export, "average": average, "predict": predict, "files": files}[sys.argv[1]]
    sys.stdout.write(json.dumps(measure(int(sys.argv[2]))))
