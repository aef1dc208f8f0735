"""A whole run with `--device cuda`: training, validation, and a prediction equal to the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813
from journeys import call

pytestmark = pytest.mark.gpu


def test_the_journey_on_a_gpu(tiny: Path, tmp_path: Path) -> None:
    arguments = ("--config", "3d_fullres", "--folds", "0", "--budget", "20s", "--device", "cuda")
    result = call("--work", tmp_path / "work", "run", tiny, *arguments)
    assert result.exit_code == 0, result.stderr
    model = tmp_path / "work" / "results" / tiny.name / "model"
    for device in ("cuda", "cpu"):
        done = call("predict", "--model", model, "-i", tiny / "imagesTs", "-o", tmp_path / device, "--device", device)
        assert done.exit_code == 0, done.stderr
    names = [path.name for path in sorted((tmp_path / "cpu").glob("*.nii.gz"))]
    assert len(names) == 2
    for name in names:
        found, expected = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / at / name))) for at in ("cuda", "cpu"))
        assert (found == expected).mean() > 0.99
