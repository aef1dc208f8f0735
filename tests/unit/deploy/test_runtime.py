"""Prediction with a bundle: the labels of torch, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from segwright.core.errors import ModelError, SegwrightError
from segwright.data.plan import Plan
from segwright.deploy.onnx_export import export_bundle
from segwright.deploy.runtime.bundle import BUNDLE_JSON
from segwright.deploy.runtime.loading import check_bundle, load_bundle
from segwright.deploy.runtime.predictor import log_partition
from segwright.inference.cascade import STORED
from segwright.inference.ensemble import Ensemble
from segwright.inference.export.postprocessing import KeepLargest, PostProcessing
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor
from segwright.inference.reliability import log_partition as of_torch
from segwright.networks.build import build_network
from segwright.networks.checkpoint import save_weights
from tests.unit.inference.conftest import DATASET, configuration

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BLOCKED = ("torch", "typer", "rich", "blosc2", "matplotlib", "tifffile", "PIL", "onnx", "onnxscript", "safetensors")
"""Packages of Segwright that the runtime does not need."""

MakeModel = Callable[..., Path]
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}


def load(folder: Path) -> Predictor:
    return load_predictor(folder, device="cpu", precision="fp32")


def two_folds(make_model: MakeModel, plan: Plan) -> Predictor:
    return load(make_model(0, 1))


def flat(make_model: MakeModel, plan: Plan) -> Predictor:
    return load(make_model(0, name="2d"))


def regions(make_model: MakeModel, plan: Plan) -> Predictor:
    folder = make_model(0)
    (folder / "dataset.json").write_text(json.dumps({**DATASET, "labels": REGIONS, "regions_class_order": [1, 2, 3]}))
    return load(folder)


def anisotropic(make_model: MakeModel, plan: Plan) -> Predictor:
    """Thick slices, resampled apart; left and right labels, swapped in mirrored views."""
    kwargs = {"order": 3, "order_z": 0, "force_separate_z": True}
    for key in ("data", "probabilities"):
        plan.configurations["3d_fullres"][f"resampling_fn_{key}_kwargs"] |= kwargs
    plan.configurations["3d_fullres"]["spacing"] = [2.5, 0.8, 0.9]
    plan.segwright["left_right"] = {"pairs": [["inner", "outer"]], "axes": [2], "swap": True}
    folder = make_model(0, seed=3)  # whose network finds more than background
    header = folder / "fold_0" / "checkpoint_final.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "swap_sides": True}))
    predictor = load(folder)
    assert predictor.window.mirrored_heads == (0, 2, 1)
    return predictor


def cascade(make_model: MakeModel, plan: Plan) -> Predictor:
    plan.configurations["second"] = {**configuration(3), "previous_stage": "3d_fullres", "spacing": [1.2, 1.2, 1.2]}
    first, second = make_model(0), make_model(0, name="second")
    first.rename(second / STORED)
    block = plan.configurations["second"]["architecture"]
    network = build_network(block, 3, 3, deep_supervision=True, generator=torch.Generator().manual_seed(5))
    save_weights(second / "fold_0" / "checkpoint_final.safetensors", network.state_dict())
    return load(second)


@pytest.mark.parametrize(
    "make",
    [two_folds, *(pytest.param(each, marks=pytest.mark.slow) for each in (flat, regions, anisotropic, cascade))],
)
def test_labels_probabilities_and_maps_are_those_of_torch(
    make: Callable[[MakeModel, Plan], Predictor], make_model: MakeModel, plan: Plan, images: Path, tmp_path: Path
) -> None:
    predictor = make(make_model, plan)
    export_bundle(predictor, tmp_path / "bundle.zip", name="tiny")
    runtime = load_bundle(tmp_path / "bundle.zip")
    options: dict[str, Any] = {"probabilities": True, "uncertainty": True}
    expected = predict_files(predictor, images, tmp_path / "torch", **options)
    found = runtime.predict_files(images, tmp_path / "onnx", **options)
    for one, other in zip(expected, found, strict=True):
        labels, again = (sitk.GetArrayFromImage(sitk.ReadImage(str(each.output))) for each in (one, other))
        assert len(np.unique(labels)) > 1
        assert (labels == again).mean() >= 0.9999
        assert (one.tiles, one.confidence) == (other.tiles, pytest.approx(other.confidence, abs=1e-4))
        maps = [np.load(each.output.parent / f"{each.case}.npz")["probabilities"] for each in (one, other)]
        np.testing.assert_allclose(*maps, atol=1e-4)
        for name in ("entropy", "disagreement"):
            files = [each.output.parent / "uncertainty" / f"{each.case}_{name}.nii.gz" for each in (one, other)]
            drawn = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(int) for file in files]
            assert np.abs(drawn[0] - drawn[1]).max() <= 1, "rounded to 8 bits"


@pytest.mark.slow
def test_an_ensemble_is_averaged_and_post_processed(make_model: MakeModel, images: Path, tmp_path: Path) -> None:
    members = [load(make_model(0)), load(make_model(0, name="2d"))]
    ensemble = Ensemble(members, PostProcessing(steps=(KeepLargest(labels=(1,)),)))
    export_bundle(ensemble, tmp_path / "bundle", name="pair")
    expected = predict_files(ensemble, images, tmp_path / "torch")
    found = load_bundle(tmp_path / "bundle").predict_files(images, tmp_path / "onnx")
    for one, other in zip(expected, found, strict=True):
        labels = [sitk.GetArrayFromImage(sitk.ReadImage(str(each.output))) for each in (one, other)]
        assert (labels[0] == labels[1]).mean() >= 0.9999


def test_damaged_bundles_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export_bundle(load(make_model(0)), folder, name="tiny")
    assert max(check_bundle(folder).values()) < 1e-3
    [network] = folder.rglob("*.onnx")
    content = network.read_bytes()
    network.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"fold_0\.onnx: damaged \(its SHA-256"):
        load_bundle(folder)
    network.unlink()
    with pytest.raises(ModelError, match="no such file"):
        load_bundle(folder)
    document = (folder / BUNDLE_JSON).read_text()
    (folder / BUNDLE_JSON).write_text(document.replace('"step": 0.5', '"step": 0.7'))
    with pytest.raises(SegwrightError, match="checksum does not match"):
        load_bundle(folder)
    with pytest.raises(ModelError, match="no bundle; expected"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("declared", [DATASET["labels"], REGIONS])
def test_log_partition_is_that_of_torch(declared: dict[str, Any]) -> None:
    from segwright.data.labels import Labels

    labels = Labels.from_dataset_json({"labels": declared, "regions_class_order": [1, 2, 3]})
    logits = np.random.default_rng(0).normal(0, 30, (2, 3, 4, 5)).astype(np.float32)
    expected = of_torch.log_partition(labels)(torch.from_numpy(logits))[:, 0].numpy()
    np.testing.assert_allclose(log_partition(logits, labels), expected, rtol=1e-5)


def test_the_runtime_imports_neither_torch_nor_training() -> None:
    names = ("torch", "typer", "rich", "blosc2", "matplotlib", "tifffile", "segwright.networks", "segwright.training")
    program = (
        f"import sys, segwright.deploy.runtime.loading\nsys.exit(' '.join(set(sys.modules) & set({names!r})) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_program_predicts_where_torch_cannot_be_imported(
    make_model: MakeModel, images: Path, tmp_path: Path
) -> None:
    predictor = load(make_model(0))
    export_bundle(predictor, tmp_path / "bundle.zip", name="tiny")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in BLOCKED:
        (blocked / f"{name}.py").write_text(f"raise ImportError('{name}')")
    source = str(Path(__file__).parents[3] / "src")
    program = f"import sys; sys.path[:0] = {[str(blocked), source]!r}\n"
    program += "from segwright.deploy.runtime.__main__ import main; main()"
    command = [sys.executable, "-c", program, "predict", "--bundle", tmp_path / "bundle.zip", "--json"]
    out = tmp_path / "onnx"
    done = subprocess.run([*command, "-i", images, "-o", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [record["case"] for record in json.loads(done.stdout)] == ["a", "b"]
    log = json.loads((out / "prediction.json").read_text())
    assert set(log["versions"]) == {"segwright", "onnxruntime", "numpy"}
    for record in predict_files(predictor, images, tmp_path / "torch"):
        expected, found = (sitk.ReadImage(str(each)) for each in (record.output, out / record.output.name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(expected), sitk.GetArrayFromImage(found))
        assert expected.GetOrigin() == found.GetOrigin()
    done = subprocess.run([*command, "-i", images, "-o", images], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
