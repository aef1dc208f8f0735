from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segwright.core.errors import ModelError
from segwright.inference.model_folder import load_predictor
from segwright.interop.nnunet import import_model, is_nnunet_model, read_checkpoint

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "data" / "reference"
MODEL = REFERENCE / "nnUNetTrainerShort__nnUNetPlans__3d_fullres"


class Unknown:
    """Stands for whatever code a downloaded file might want to run."""


def test_what_is_not_weights_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "init_args": Unknown(), "trainer_name": "x"}, path)
    with pytest.raises(ModelError, match=r"refused.*Unknown"):
        read_checkpoint(path)


def test_logged_numpy_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "init_args": {}, "trainer_name": "x", "_best_ema": np.float64(0.5)}, path)
    assert read_checkpoint(path)["_best_ema"] == 0.5


def test_a_file_without_the_expected_keys_says_which(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}}, path)
    with pytest.raises(ModelError, match="lacks init_args, trainer_name"):
        read_checkpoint(path)


def test_a_folder_without_folds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no nnU-Net model"):
        import_model(tmp_path, tmp_path / "ours")


@pytest.mark.skipif(not MODEL.is_dir(), reason="the reference model is not here")
def test_the_reference_model_becomes_one_of_ours(tmp_path: Path) -> None:
    assert is_nnunet_model(MODEL)
    (fold,) = import_model(MODEL, tmp_path / "ours")
    header = json.loads((fold / "checkpoint_final.json").read_text())
    assert (header["configuration"], header["fold"], header["mirror_axes"]) == ("3d_fullres", 0, [0, 1, 2])
    predictor = load_predictor(tmp_path / "ours", device="cpu")
    logits = predictor.predict_preprocessed(np.zeros((1, 16, 16, 16), np.float32))
    assert logits.shape == (3, 16, 16, 16)
