"""Predictions on a GPU: in every precision those of the CPU, from arrays and files, on one device or a list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

import segwright
from segwright.inference.models.model_folder import load_predictor

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 5e-3), ("bf16", 5e-2), ("fp16", 1e-2), ("auto", 5e-2)])
@pytest.mark.parametrize("name", ["3d_fullres", "2d"])
def test_probabilities_are_those_of_the_cpu(
    make_model: Callable[..., Path], precision: str, bound: float, name: str
) -> None:
    image = np.random.default_rng(0).normal(size=(1, 22, 19, 17)).astype(np.float32)
    model = make_model(0, 1, name=name)
    expected, found = (
        torch.softmax(load_predictor(model, device=device, precision=of).predict_preprocessed(image), 0)
        for device, of in (("cpu", "fp32"), ("cuda", precision))
    )
    assert found.device.type == "cpu"
    assert (found - expected).abs().max() < bound
    margin = expected.topk(2, dim=0).values.diff(dim=0)[0].abs()
    assert (found.argmax(0) == expected.argmax(0))[margin > 2 * bound].all()


def test_uncertainty_is_computed_on_the_gpu(make_model: Callable[..., Path]) -> None:
    predictor = load_predictor(make_model(0, 1), device="cuda")
    image = np.random.default_rng(0).normal(size=(1, 12, 11, 10)).astype(np.float32)
    planes = list(predictor.planes(image, disagreement=True))
    assert all((part.logits[-1] >= 0).all() and torch.isfinite(part.logits).all() for part in planes)


@pytest.mark.parametrize("devices", ["auto", "cuda", "cuda:0", "cuda:0,cpu"])
def test_files_are_predicted(make_model: Callable[..., Path], images: Path, tmp_path: Path, devices: str) -> None:
    model = make_model(0)
    segwright.predict(model, images, tmp_path / "cpu", device="cpu")
    segwright.predict(model, images, tmp_path / "gpu", device=devices)
    for path in sorted((tmp_path / "cpu").glob("*.nii.gz")):
        expected, found = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / side / path.name))) for side in ("cpu", "gpu")
        )
        assert (found == expected).mean() > 0.99


def test_memory_of_the_gpu_does_not_grow(make_model: Callable[..., Path]) -> None:
    model = segwright.load_model(make_model(0), device="cuda")
    image = np.random.default_rng(0).normal(size=(28, 30, 24)).astype(np.float32)
    held = []
    for _ in range(8):
        model.predict(image, spacing=(1, 1, 1))
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[-1] == held[1]
