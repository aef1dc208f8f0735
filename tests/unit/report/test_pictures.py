"""Overlay pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from segwright.report.pictures import best_slice, save_overlay


def test_the_slice_shows_the_smaller_structure() -> None:
    reference = np.zeros((6, 5, 5), dtype=np.int16)
    reference[0:3] = 1
    reference[4, 1:3, 1:3] = 2
    assert best_slice(reference, np.zeros_like(reference)) == 4


def test_without_a_reference_the_prediction_decides_then_the_middle() -> None:
    empty = np.zeros((6, 5, 5), dtype=np.int16)
    predicted = empty.copy()
    predicted[5] = 1
    assert (best_slice(empty, predicted), best_slice(empty, empty)) == (5, 3)


def test_truth_and_prediction_are_drawn_in_their_panels(tmp_path: Path) -> None:
    image = np.linspace(0, 1, 512, dtype=np.float32).reshape(8, 8, 8)
    label = np.zeros((8, 8, 8), dtype=np.int16)
    label[2:6, 2:6, 2:6] = 1
    save_overlay(tmp_path / "p.png", image, label, np.zeros_like(label), names=["organ"])
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    is_coloured = (pixels.max(axis=2) - pixels.min(axis=2) > 30)[: int(height * 0.8)]
    left, middle, right = (is_coloured[:, part * width // 3 : (part + 1) * width // 3].any() for part in range(3))
    assert (left, middle, right) == (False, True, False)


def test_drawing_needs_no_display_and_no_global_figure(tmp_path: Path) -> None:
    program = "import sys, segwright.report.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=tmp_path).returncode == 0
