"""Model folders: what is loaded, and what is said where something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segwright.core.errors import ModelError
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_documents import with_checksum
from segwright.data.description import load_description
from segwright.data.plan import Plan
from segwright.inference.models.model_folder import choose_folds, load_predictor, require_folds
from segwright.interop.export import export_model

MakeModel = Callable[..., Path]


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_a_model_folder_is_all_that_is_needed(make_model: MakeModel, name: str) -> None:
    predictor = load_predictor(make_model(0, 1, name=name), device="cpu", precision="fp32")
    assert len(predictor.networks) == 2
    assert predictor.window.mirror_axes == ((0, 1) if name == "2d" else (0, 1, 2))
    logits = predictor.predict_preprocessed(np.ones((1, 9, 10, 11), dtype=np.float32))
    assert logits.shape == (3, 9, 10, 11)
    assert not any(network.training for network in predictor.networks)


def test_folds_are_averaged(make_model: MakeModel) -> None:
    folder = make_model(0, 1)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)

    def logits(*folds: int) -> torch.Tensor:
        predictor = load_predictor(folder, folds=folds, device="cpu", precision="fp32")
        predictor.window = replace(predictor.window, quantum=0)  # the rounding at the border is not linear
        return predictor.predict_preprocessed(image)

    first, second, both = logits(0), logits(1), logits(0, 1)
    assert not torch.allclose(first, second)
    torch.testing.assert_close((first + second) / 2, both, rtol=1e-4, atol=1e-4)


def test_mirroring_can_be_switched_off(make_model: MakeModel) -> None:
    assert load_predictor(make_model(0), device="cpu", mirroring=False).window.mirror_axes == ()


def test_folds_are_found(make_model: MakeModel) -> None:
    folder = make_model(2, 10, 1, "all")
    assert choose_folds(folder, None, "final") == ("1", "2", "10")
    assert choose_folds(folder, "all", "final") == ("all",)
    assert choose_folds(folder, [10, 1, 1], "final") == ("10", "1")


def test_all_means_every_fold_where_none_was_trained_on_all_cases(make_model: MakeModel) -> None:
    assert choose_folds(make_model(0, 1), "all", "final") == ("0", "1")


def test_a_missing_fold_or_checkpoint_lists_what_is_there(make_model: MakeModel) -> None:
    folder = make_model(0)
    make_model(1, checkpoint="latest")
    with pytest.raises(
        ModelError, match=r"no 'final' checkpoint for fold 1, 3; available: fold 0: final; fold 1: latest"
    ):
        load_predictor(folder, folds=[0, 1, 3], device="cpu")
    assert len(load_predictor(folder, folds=[1], checkpoint="latest", device="cpu").networks) == 1


def test_an_empty_model_folder_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no fold is trained here"):
        load_predictor(make_model(), device="cpu")
    with pytest.raises(ModelError, match="no such model folder"):
        load_predictor(tmp_path / "nowhere", device="cpu")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ModelError, match=r"plans\.json and dataset\.json missing"):
        load_predictor(tmp_path / "bare", device="cpu")


def test_a_damaged_header_names_the_file_and_the_key(make_model: MakeModel) -> None:
    folder = make_model(0)
    (folder / "fold_0" / "checkpoint_final.json").write_text('{"configuration": "3d_fullres"}')
    with pytest.raises(ModelError, match=r"checkpoint_final\.json: network"):
        load_predictor(folder, device="cpu")


def test_weights_of_another_network_are_refused(make_model: MakeModel) -> None:
    folder = make_model(0)
    header = folder / "fold_0" / "checkpoint_final.json"
    document = json.loads(header.read_text())
    document["network"]["kwargs"]["features_per_stage"] = [6, 8]
    header.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"checkpoint_final\.safetensors do not fit the network"):
        load_predictor(folder, device="cpu")


def change_header(folder: Path, fold: int, **values: Any) -> None:
    header = folder / f"fold_{fold}" / "checkpoint_final.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mirror_axes": [0]}, r"mirror axes differ \(fold 0, 2: \[0, 1, 2\]; fold 1: \[0\]\)"),
        ({"swap_sides": True}, "swapping of left and right differ"),
        ({"configuration": "2d"}, "configuration differ"),
        ({"setup_hash": "of other plans"}, "plans differ"),
        (
            {"network": {"reference": "residual-unet"}},
            r"network differs \(fold 0, 2: dyn.*PlainConvUNet; fold 1: dyn.*Res",
        ),
        ({"network": {"reference": "mine:build"}}, "fold 1: mine:build"),
        (
            {"network": {"reference": "unet", "kwargs": {"features_per_stage": [6, 12]}}},
            r"features_per_stage \[6, 12\]",
        ),
    ],
)
def test_folds_of_different_models_are_refused(
    make_model: MakeModel, plan: Plan, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = make_model(0, 1, 2)
    for fold in (0, 2):
        change_header(folder, fold, setup_hash=plan.setup_hash("3d_fullres"))
    change_header(folder, 1, **change)
    with pytest.raises(ModelError, match=message) as error:
        load_predictor(folder, device="cpu")
    assert "for instance --folds 0,2" in str(error.value)
    with pytest.raises(ModelError, match=message):
        require_folds(folder, [0, 1, 2])
    with pytest.raises(ModelError, match=message):
        export_model(folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    assert len(load_predictor(folder, folds=[0, 2], device="cpu").networks) == 2


def test_one_network_may_have_two_names(make_model: MakeModel) -> None:
    folder = make_model(0, 1)
    change_header(folder, 1, network={"reference": "unet"})
    assert len(load_predictor(folder, device="cpu").networks) == 2


def change_plan(folder: Path, plan: Plan, *keys: str, value: Any) -> None:
    document = plan.to_json()
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    Plan.from_json(document).save(folder / "plans.json")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("configurations", "3d_fullres", "spacing"), [2.0, 2.0, 2.0]),
        (("configurations", "3d_fullres", "normalization_schemes"), ["CTNormalization"]),
        (("configurations", "3d_fullres", "use_mask_for_norm"), [True]),
        (("configurations", "3d_fullres", "resampling_fn_data_kwargs"), {"order": 1, "order_z": 0}),
        (("configurations", "3d_fullres", "patch_size"), [16, 8, 8]),
        (("image_reader_writer",), "SimpleITKIOWithReorient"),
    ],
)
def test_plans_that_changed_after_the_training_are_refused(
    make_model: MakeModel, plan: Plan, keys: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    folder = make_model(0)
    change_header(folder, 0, setup_hash=plan.setup_hash("3d_fullres"))
    load_predictor(folder, device="cpu")
    change_plan(folder, plan, *keys, value=value)
    message = r"plans\.json: is not the plan that fold 0 was trained with"
    with pytest.raises(ModelError, match=message):
        load_predictor(folder, device="cpu")
    with pytest.raises(ModelError, match=message):
        require_folds(folder, [0])
    with pytest.raises(ModelError, match=message):
        export_model(folder, tmp_path / "exported")


def test_plans_that_changed_on_purpose_are_taken_without_the_hash(make_model: MakeModel, plan: Plan) -> None:
    folder = make_model(0)
    change_plan(folder, plan, "configurations", "3d_fullres", "spacing", value=[2.0, 2.0, 2.0])
    header = folder / "fold_0" / "checkpoint_final.json"
    document = with_checksum({**json.loads(header.read_text()), "setup_hash": plan.setup_hash("3d_fullres")})
    header.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="delete the lines 'checksum' and 'setup_hash'"):
        load_predictor(folder, device="cpu")
    header.write_text(json.dumps({key: document[key] for key in document if key not in ("checksum", "setup_hash")}))
    assert load_predictor(folder, device="cpu").configuration.spacing == (2.0, 2.0, 2.0)


def test_what_decides_nothing_may_change_in_plans(make_model: MakeModel, plan: Plan) -> None:
    folder = make_model(0)
    change_header(folder, 0, setup_hash=plan.setup_hash("3d_fullres"))
    change_plan(folder, plan, "plans_name", value="renamed")
    assert load_predictor(folder, device="cpu").networks


@pytest.mark.parametrize(
    ("key", "value"),
    [("labels", {"background": 0, "first": 2, "second": 1}), ("channel_names", {"0": "CT"})],
)
def test_a_dataset_json_that_changed_after_the_training_is_refused(
    make_model: MakeModel, key: str, value: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_model(0)
    path = folder / "dataset.json"
    change_header(folder, 0, dataset_hash=content_hash(load_description(path).meaning()))
    load_predictor(folder, device="cpu")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    message = r"dataset\.json: has other labels or channels than those that fold 0 was trained with; restore"
    with pytest.raises(ModelError, match=message):
        load_predictor(folder, device="cpu")
    with pytest.raises(ModelError, match=message):
        export_model(folder, tmp_path / "exported")


@pytest.mark.parametrize("document", ["[]", "{}", '{"configuration": "3d_fullres", "network": 3}'])
def test_a_damaged_header_is_not_exported(make_model: MakeModel, document: str, tmp_path: Path) -> None:
    folder = make_model(0)
    (folder / "fold_0" / "checkpoint_final.json").write_text(document)
    with pytest.raises(ModelError, match=r"fold_0/checkpoint_final\.json: "):
        export_model(folder, tmp_path / "exported")


def test_the_origin_tells_models_apart_but_not_places(make_model: MakeModel) -> None:
    folder = make_model(0, 1)
    first, second = (load_predictor(folder, folds=[fold], device="cpu").origin["model_hash"] for fold in (0, 1))
    moved = folder.rename(folder.parent / "elsewhere")
    assert first != second
    assert load_predictor(moved, folds=[0], device="cpu").origin["model_hash"] == first


def test_folds_trained_with_other_labels_than_dataset_json_are_refused(make_model: MakeModel) -> None:
    folder = make_model(0, 1)
    description = load_description(folder / "dataset.json")
    for fold, hashed in ((0, content_hash(description.meaning())), (1, "of other labels")):
        header = folder / f"fold_{fold}" / "checkpoint_final.json"
        header.write_text(json.dumps({**json.loads(header.read_text()), "dataset_hash": hashed}))
    with pytest.raises(ModelError, match=r"other labels or channels than those that fold 1 was trained with"):
        load_predictor(folder, device="cpu")
    assert len(load_predictor(folder, folds=[0], device="cpu").networks) == 1
