"""`prediction.json`: what it tells, and what a later run makes of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from segwright.core.errors import ConfigError, WorkspaceError
from segwright.inference.ensemble import Ensemble
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor
from segwright.inference.window.stitching import Planes
from segwright.inference.window.timer import Timer


@pytest.fixture
def predictor(make_model: Callable[..., Path]) -> Predictor:
    return load_predictor(make_model(0), device="cpu", precision="fp32")


@pytest.fixture(params=["one", "ensemble"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., Path]) -> Predictor | Ensemble:
    """A predictor, and an ensemble of two."""
    names = ("3d_fullres",) if request.param == "one" else ("3d_fullres", "2d")
    loaded = [load_predictor(make_model(0, name=name), device="cpu", precision="fp32") for name in names]
    return loaded[0] if len(loaded) == 1 else Ensemble(loaded)


def read(folder: Path, name: str = "prediction.json") -> Any:
    return json.loads((folder / name).read_text())


def kept(model: Predictor | Ensemble, images: Path, out: Path, **options: Any) -> list[bool]:
    return [record.kept for record in predict_files(model, images, out, **options)]


def test_it_tells_the_options_of_the_run(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    saving = ProbabilityFormat(kind="nifti", classes=("outer",))
    predict_files(predictor, images, tmp_path, probabilities=saving, uncertainty=True, overwrite=True, part=1, parts=2)
    assert read(tmp_path, "prediction_part_1_of_2.json")["options"] == {
        "folds": ["0"],
        "mirroring": True,
        "exact": False,
        "precision": "fp32",
        "devices": ["cpu"],
        "probabilities": {"form": "nifti", "classes": ["outer"]},
        "uncertainty": True,
        "calibrated": False,
        "overwrite": True,
        "part": 1,
        "parts": 2,
    }


def test_options_that_are_off_are_told_too(make_model: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    names = ("3d_fullres", "2d")
    loaded = [
        load_predictor(make_model(0, 1, name=name), device="cpu", precision="fp32", mirroring=False, reuse=False)
        for name in names
    ]
    predict_files(Ensemble(loaded), images, tmp_path)
    options = read(tmp_path)["options"]
    assert options["folds"] == [["0", "1"], ["0", "1"]]
    assert (options["exact"], options["mirroring"], options["probabilities"]) == (True, False, None)


def test_auto_is_told_as_what_it_is(
    make_model: Callable[..., Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_fp16_kernels: None,
) -> None:
    monkeypatch.setattr("segwright.core.device.has_fast_bf16", lambda: False)
    predict_files(load_predictor(make_model(0), device="cpu"), images, tmp_path)
    assert read(tmp_path)["options"]["precision"] == read(tmp_path)["model"]["precision"] == "fp32"


@pytest.mark.parametrize("hold_bytes", [0, 2**30])
def test_the_time_of_every_phase_is_told(predictor: Predictor, images: Path, tmp_path: Path, hold_bytes: int) -> None:
    for record in predict_files(predictor, images, tmp_path, hold_bytes=hold_bytes):
        assert min(record.read_s, record.predict_s, record.export_s) > 0
        assert read(tmp_path)["cases"][record.case]["predict_s"] == pytest.approx(record.predict_s, abs=1e-3)


def test_the_network_is_not_counted_as_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that is streamed is predicted within its export."""
    now = [0.0]
    monkeypatch.setattr("segwright.inference.window.timer.time.perf_counter", lambda: now[0])

    def predicted() -> Iterator[Planes]:
        for start in range(3):
            now[0] += 5
            yield Planes(start=start, stop=start + 1, logits=torch.zeros(2, 1, 1, 1))

    timer = Timer()
    for _ in timer.watch(predicted()):
        now[0] += 100  # export
    assert timer.seconds == 15


def test_an_ensemble_tells_the_time_of_every_phase(
    predictor: Predictor, make_model: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    flat = load_predictor(make_model(0, name="2d"), device="cpu", precision="fp32")
    for record in predict_files(Ensemble([predictor, flat]), images, tmp_path):
        assert min(record.read_s, record.predict_s, record.export_s) > 0
        assert read(tmp_path)["cases"][record.case]["export_s"] > 0


def test_tiles_that_were_skipped_are_told(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    array = np.zeros((90, 12, 12), np.float32)
    array[:8] = array[-8:] = np.random.default_rng(0).normal(100, 20, (8, 12, 12))
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.5, 1.5, 1.5))  # that of the network: air stays of one value
    for file in images.iterdir():
        sitk.WriteImage(image, str(file))
    record, _ = predict_files(predictor, images, tmp_path / "out")
    case = read(tmp_path / "out")["cases"]["a"]
    assert 0 < case["tiles_skipped"] == record.tiles_skipped < case["tiles"] == record.tiles


def test_a_run_without_parts_goes_on_from_parts(model: Predictor | Ensemble, images: Path, tmp_path: Path) -> None:
    for part in (0, 1):
        predict_files(model, images, tmp_path, part=part, parts=2)
    assert list(read(tmp_path, "prediction_part_0_of_2.json")["cases"]) == ["a"]
    assert kept(model, images, tmp_path) == [True, True]
    assert list(read(tmp_path)["cases"]) == ["a", "b"]
    assert read(tmp_path)["cases"]["b"]["tiles"] >= 1
    (tmp_path / "b.nii.gz").unlink()
    assert kept(model, images, tmp_path) == [True, False]


def test_other_partitions_go_on_from_one_another(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    assert kept(predictor, images, tmp_path) == [False, False]
    assert kept(predictor, images, tmp_path, part=1, parts=2) == [True]
    assert kept(predictor, images, tmp_path, part=0, parts=3) == [True]


def test_parts_of_another_model_are_not_gone_on_from(
    predictor: Predictor, make_model: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict_files(predictor, images, out, part=0, parts=2)
    other = load_predictor(make_model(3), folds=[3], device="cpu", precision="fp32")
    with pytest.raises(WorkspaceError, match="predictions of another model"):
        predict_files(other, images, out)
    predict_files(other, images, out, overwrite=True)
    with pytest.raises(WorkspaceError, match=r"predictions of another model or other options \(a.nii.gz\)"):
        predict_files(predictor, images, out, part=0, parts=2)
    assert kept(other, images, out) == [True, True]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz"])
def test_a_damaged_output_is_predicted_again(
    model: Predictor | Ensemble, images: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    predict_files(model, images, tmp_path, probabilities=True)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:100])
    assert kept(model, images, tmp_path, probabilities=True) == [False, True]
    assert len((tmp_path / name).read_bytes()) == len(whole)
    assert f"{name}: is damaged; predicted again" in caplog.text
    assert kept(model, images, tmp_path, probabilities=True) == [True, True]


def test_a_label_map_that_somebody_corrected_is_kept(
    predictor: Predictor, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    predict_files(predictor, images, tmp_path)
    found = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    noise = np.random.default_rng(0).integers(0, 2, sitk.GetArrayFromImage(found).shape).astype(np.uint8)
    corrected = sitk.GetImageFromArray(noise)
    corrected.CopyInformation(found)
    sitk.WriteImage(corrected, str(tmp_path / "a.nii.gz"))
    before = (tmp_path / "a.nii.gz").read_bytes()
    assert kept(predictor, images, tmp_path) == [True, True]
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    assert "a.nii.gz: was changed since it was predicted; kept" in caplog.text


def test_what_an_earlier_run_wrote_beside_stays_good(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    assert kept(predictor, images, tmp_path, probabilities=True) == [False, False]
    assert kept(predictor, images, tmp_path, uncertainty=True) == [False, False]
    assert kept(predictor, images, tmp_path, probabilities=True, uncertainty=True) == [True, True]


def test_a_label_map_with_a_flipped_bit_is_predicted_again(
    predictor: Predictor, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict_files(predictor, images, tmp_path)
    file = sorted(tmp_path.glob("*.nii.gz"))[0]
    right, times = file.read_bytes(), file.stat()
    content = bytearray(right)
    content[4] ^= 1  # the time in the header of gzip: readers would take the file
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert kept(predictor, images, tmp_path) == [False, True]
    assert f"{file}: is damaged; predicted again" in caplog.text
    assert file.read_bytes() == right


def test_a_damaged_journal_is_refused(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    predict_files(predictor, images, tmp_path)
    path = tmp_path / "prediction.json"
    path.write_text(path.read_text().replace('"inputs": "', '"inputs": "0', 1))
    with pytest.raises(WorkspaceError, match=r"damaged .*; remove the file and its label maps, or predict them again"):
        kept(predictor, images, tmp_path)


def test_a_run_that_was_killed_before_its_first_note_goes_on(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    predict_files(predictor, images, tmp_path)
    document = {**read(tmp_path), "cases": {}}
    del document["checksum"]
    (tmp_path / "prediction.json").write_text(json.dumps(document))
    assert kept(predictor, images, tmp_path) == [False, False]


def test_leftovers_of_a_killed_run_are_swept(model: Predictor | Ensemble, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "probabilities").mkdir(parents=True)
    (out / ".01234567.tmp.a.ensemble").mkdir()
    (out / ".01234567.tmp.a.ensemble" / "0.b2nd").touch()
    names = ["prediction.json", "plans.json", "a.nii.gz", "probabilities/.01234567.tmp.a_outer.nii.gz.b2nd"]
    for name in names:
        (out / (name if "/" in name else f".01234567.tmp.{name}")).touch()
    foreign = out / ".01234567.tmp.prediction_part_0_of_2.json"
    foreign.touch()
    predict_files(model, images, out, probabilities=ProbabilityFormat(kind="nifti"))
    assert [*out.rglob(".*")] == [foreign]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{bad",
            "not valid JSON at line 1, column 2: .*; remove the file and its label maps, or predict .*--overwrite",
        ),
        ('{"model": 1, "cases": []}', "expected an object with 'model' and 'cases'.*; remove the file"),
        ("[]", "expected an object with 'model' and 'cases'"),
    ],
)
def test_a_damaged_journal_names_the_remedy(
    predictor: Predictor, images: Path, tmp_path: Path, text: str, message: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "prediction.json").write_text(text)
    with pytest.raises(WorkspaceError, match=message):
        predict_files(predictor, images, out)
    assert [path.name for path in out.iterdir()] == ["prediction.json"]
    assert kept(predictor, images, out, overwrite=True) == [False, False]


@pytest.mark.parametrize("precision", ["fp8", "fp16"])
def test_a_precision_that_is_none_is_refused_before_anything_is_written(
    make_model: Callable[..., Path], images: Path, tmp_path: Path, precision: str, without_fp16_kernels: None
) -> None:
    loaded = [load_predictor(make_model(0, name=name), device="cpu", precision="fp32") for name in ("3d_fullres", "2d")]
    wrong = load_predictor(make_model(0), device="cpu", precision=precision)
    for each in (wrong, Ensemble([*loaded, wrong])):
        with pytest.raises(ConfigError, match=precision):
            predict_files(each, images, tmp_path / "out")
    with pytest.raises(ConfigError, match=precision):
        predict_files(loaded[0], images, tmp_path / "out", others=[wrong])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["out", "out/deeper", "folder"])
def test_a_file_in_the_place_of_a_folder_is_told_before_work(
    predictor: Predictor, images: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("out", "folder/probabilities"):
        (tmp_path / name).touch()
    with pytest.raises(WorkspaceError, match=r"cannot be written to: .* is a file; choose another folder"):
        predict_files(predictor, images, tmp_path / out, probabilities=ProbabilityFormat(kind="nifti"))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["probabilities"]
