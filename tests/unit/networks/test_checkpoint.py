"""Weights files."""

from __future__ import annotations

from pathlib import Path

import torch

from segwright.networks.checkpoint import save_weights


def test_weights_are_as_readable_as_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    save_weights(tmp_path / "weights.safetensors", {"weight": torch.zeros(1)})
    assert (tmp_path / "weights.safetensors").stat().st_mode == other.stat().st_mode
