"""A training and a prediction on a stand-in for an Apple GPU, which refuses what the real one lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segwright.inference.models.model_folder import load_predictor
from segwright.training.trainer import Trainer
from tests.unit.training.fake_mps import MissingOnMpsError, fake_mps
from tests.unit.training.tiny_task import DATASET_JSON, REGIONS_JSON, TinyStore, make, settings, write_references

OPERATIONS = """
_local_scalar_dense _log_softmax _log_softmax_backward_data _to_copy _unsafe_view abs add.Tensor add_.Tensor
addcdiv_ addcmul_ alias all argmax avg_pool3d avg_pool3d_backward binary_cross_entropy_with_logits
bitwise_and.Tensor bitwise_not cat clamp clamp_min clone convolution convolution_backward copy_ detach div.Scalar
div.Tensor div_.Tensor empty_like eq.Scalar eq.Tensor exp expand fill_.Tensor flip full_like gather ge.Scalar
gt.Scalar index.Tensor leaky_relu_ leaky_relu_backward lerp.Tensor lerp_.Scalar linalg_vector_norm logsumexp
masked_fill.Scalar mean minimum mul.Tensor mul_.Tensor native_batch_norm native_batch_norm_backward ne.Scalar neg
new_empty_strided new_zeros nll_loss2d_backward nll_loss2d_forward ones_like permute reciprocal repeat round_
rsub.Scalar scatter.src scatter_.value scatter_add select.int sigmoid sigmoid_backward slice.Tensor slice_backward
softplus split.Tensor sqrt stack sub.Tensor sum sum.dim_IntList topk transpose.int unbind.int unsqueeze view
where.self zeros_like
"""
"""Operations that have a kernel for MPS, or are made of such, in torch 2.9 (`device.MPS_TORCH`), by its file
`aten/src/ATen/native/native_functions.yaml`; look another one up there before adding it."""

VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "labels": ("3d", DATASET_JSON, {}),
    "regions": ("2d", REGIONS_JSON, {"optimizer": "adam"}),
    "residual": ("3d", DATASET_JSON, {"network": "residual-unet", "optimizer": "adamw", "ema_weights": 0.9}),
    "top-k": ("3d", DATASET_JSON, {"loss": "dice_topk10", "class_weights": [1.0, 2.0, 3.0], "norm": "batch"}),
}


def trained(folder: Path, device: str, variant: str) -> Trainer:
    """Return a trainer after one epoch with online validation."""
    configuration, dataset_json, values = VARIANTS[variant]
    trainer = make(
        folder,
        device=device,
        configuration=configuration,
        dataset_json=dataset_json,
        config=settings(num_epochs=1, **values),
        references=write_references(folder / "labelsTr", dataset_json),
    )
    trainer.run_training()
    return trainer


@pytest.mark.parametrize(
    "variant", ["labels", "regions", *(pytest.param(name, marks=pytest.mark.slow) for name in ("residual", "top-k"))]
)
def test_an_epoch_and_a_prediction_use_nothing_that_mps_lacks(tmp_path: Path, variant: str) -> None:
    image: Any = TinyStore().load("case_3").image
    with fake_mps() as operations:
        trainer = trained(tmp_path / "mps", "mps", variant)
        assert {parameter.device.type for parameter in trainer.network.parameters()} == {"mps"}
        trainer.perform_actual_validation()
        logits = load_predictor(tmp_path / "mps", device="mps").predict_preprocessed(image)
    assert operations - {*OPERATIONS.split()} == set()
    assert (logits.device.type, bool(logits.isfinite().all())) == ("cpu", True)
    expected = trained(tmp_path / "cpu", "cpu", variant).logbook
    for name in ("train_losses", "val_losses", "mean_fg_dice"):
        assert trainer.logbook.column(name) == pytest.approx(expected.column(name), abs=1e-4)


def fused_step() -> None:
    parameter = nn.Parameter(torch.ones(2, device="mps"))
    parameter.grad = torch.ones(2, device="mps")
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=True)
    optimizer.found_inf = torch.zeros((), device="mps")  # type: ignore[attr-defined]
    optimizer.step()


def add_counts() -> None:
    ones = torch.ones(3, dtype=torch.int64, device="mps")
    ones.index_add(0, ones, ones)


def upsample_halves() -> None:
    image, kernel = torch.ones(1, 1, 2, 2, 2, device="mps").half(), torch.ones(1, 1, 2, 2, 2, device="mps").half()
    nn.functional.conv_transpose3d(image, kernel, stride=2)


@pytest.mark.parametrize(
    ("compute", "what"),
    [
        (lambda: torch.ones(2, device="mps").double(), "float64"),
        (lambda: torch.ones(2).to("mps", non_blocking=True), "asynchronous"),
        (lambda: torch.ones(2, device="mps") + torch.ones(2), "two devices"),
        (add_counts, "int64"),
        (fused_step, "found_inf"),
        (upsample_halves, "3D transposed"),
    ],
)
def test_the_stand_in_refuses_what_mps_lacks(compute: Callable[[], object], what: str) -> None:
    with fake_mps(), pytest.raises(MissingOnMpsError, match=what):
        compute()
