"""Options of a prediction that can be known to be wrong before a model is loaded or anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segwright import api
from segwright.cli.main import app
from segwright.core.errors import ConfigError, SegwrightError, WorkspaceError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8", "device": "cpu"}, "unknown precision 'fp8'; choose from auto, fp32"),
        ({"precision": "fp16", "device": "cpu"}, "precision 'fp16' needs a GPU; choose auto, bf16 or fp32"),
        ({"device": "cpu,"}, "device 'cpu,': a name is missing; expected for instance cpu, or cuda:0,cuda:1"),
        ({"device": ""}, "device '': a name is missing"),
        ({"device": "cpu,gpu"}, "unknown device 'gpu'"),
        ({"step_size": 1.5}, r"tile step 1.5 is outside \(0, 1\]"),
        ({"part": 2, "parts": 2}, "part 2 of 2: parts are counted from 0 to 1"),
        ({"part": 1}, "part 1 of 1: parts are counted from 0 to 0; give the number of parts with --parts N"),
        ({"probabilities": "npy"}, "cannot be saved as 'npy'; did you mean 'npz'"),
        ({"probabilities": "npz", "classes": ["outer"]}, "choose classes with nifti only"),
    ],
)
def test_wrong_options_are_refused_without_a_model(
    images: Path, tmp_path: Path, options: dict[str, Any], message: str, without_fp16_kernels: None
) -> None:
    with pytest.raises(ConfigError, match=message):
        api.predict(tmp_path / "none", images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"precision": "fp16", "device": "cpu"}, {"device": ","}])
def test_a_model_is_not_loaded_with_wrong_options(
    tmp_path: Path, options: dict[str, str], without_fp16_kernels: None
) -> None:
    with pytest.raises(ConfigError):
        api.load_model(tmp_path / "none", **options)


@pytest.mark.parametrize("out", ["file", "file/out", "images", "images/out"])
def test_a_wrong_output_folder_is_refused_without_a_model(images: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WorkspaceError, match="choose another"):
        api.predict(tmp_path / "none", images, tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["file", "/proc/none/out"])
def test_an_output_folder_that_cannot_be_made_is_the_users_to_mend(
    make_model: Callable[..., Path], images: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").touch()
    words = ["predict", "-m", make_model(0), "-i", images, "-o", tmp_path / out, "--device", "cpu"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_several_models_on_several_devices_are_refused_without_a_model(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several models can only predict on one device"):
        api.predict([tmp_path / "a", tmp_path / "b"], images, tmp_path / "out", device="cpu,cpu")


@pytest.mark.parametrize(("fast", "precision", "lines"), [(False, "bf16", 1), (True, "bf16", 0), (False, "fp32", 0)])
def test_bf16_without_fast_instructions_is_told_once(
    make_model: Callable[..., Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fast: bool,
    precision: str,
    lines: int,
) -> None:
    monkeypatch.setattr("segwright.core.device.has_fast_bf16", lambda: fast)
    models = [make_model(0, name=name) for name in ("3d_fullres", "2d")]
    api.predict(models, images, tmp_path / "out", device="cpu", precision=precision)
    told = "precision 'bf16': this CPU has no fast instructions for it, so it is slower than fp32 and less exact"
    assert caplog.text.count(told) == lines
    caplog.clear()
    api.load_model(models[0], device="cpu", precision=precision)
    assert caplog.text.count(told) == lines


def test_a_folder_in_the_place_of_a_label_map_is_the_users_to_mend(
    make_model: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "a.nii.gz").mkdir(parents=True)
    model = make_model(0)
    with pytest.raises(WorkspaceError, match="holds predictions of another model"):
        api.predict(model, images, tmp_path / "out", device="cpu")
    with pytest.raises(SegwrightError, match=r"a.nii.gz: is a folder already; name another file, or remove the folder"):
        api.predict(model, images, tmp_path / "out", device="cpu", overwrite=True)
