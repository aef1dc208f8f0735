"""A model trained by nnU-Net, run here: the same probabilities and labels as nnU-Net's own prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from segwright.data.description import load_description
from segwright.data.images.image_io import read_images
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.inference.predictor import Predictor
from segwright.networks.build import build_network
from segwright.networks.checkpoint import load_state
from segwright.networks.cpu.library import library

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
REFERENCE = SHARED / "reference"
MODEL = REFERENCE / "nnUNetTrainerShort__nnUNetPlans__3d_fullres"

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the reference model is not here")

# What a checkpoint of nnU-Net holds beside tensors: the logged numbers are numpy scalars.
NUMPY_SCALARS = [np.float64().__reduce__()[0], np.dtype, *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8"))]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    if request.param == "fp16" and library(fp16=True) is None:
        pytest.skip("no kernels in float16 for this processor")
    with torch.serialization.safe_globals(NUMPY_SCALARS):
        checkpoint = torch.load(MODEL / "fold_0" / "checkpoint_final.pth", weights_only=True, map_location="cpu")
    plan = Plan.load(MODEL / "plans.json")
    description = load_description(MODEL / "dataset.json")
    configuration = plan.configuration(checkpoint["init_args"]["configuration"])
    labels = Labels.from_description(description)
    architecture = configuration.architecture.model_dump(by_alias=True)
    network = build_network(architecture, 1, labels.num_heads, deep_supervision=False)
    load_state(network, checkpoint["network_weights"])
    return Predictor(
        [network],
        plan,
        configuration,
        labels,
        device=torch.device("cpu"),
        mirror_axes=checkpoint["inference_allowed_mirroring_axes"],
        precision=request.param,
        description=description,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["hippocampus_023", "hippocampus_102"])
def test_the_reference_prediction_is_reproduced(predictor: Predictor, case: str) -> None:
    image = SHARED / "Dataset004_Hippocampus" / "imagesTr" / f"{case}_0000.nii.gz"
    prediction = predictor.predict_case(read_images([image], "SimpleITKIO"), probabilities=True)
    with np.load(REFERENCE / "predictions" / f"{case}.npz") as archive:
        expected = archive["probabilities"]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(REFERENCE / "predictions" / f"{case}.nii.gz")))
    assert prediction.probabilities is not None
    fp16 = predictor.window.used_precision == "fp16"
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1.5e-2 if fp16 else 5e-3)
    assert (prediction.labels == labels).mean() >= 0.999
    first, second = np.sort(expected, axis=0)[-2:]
    assert ((prediction.labels != labels) & (second - first > (2e-2 if fp16 else 5e-3))).sum() == 0
