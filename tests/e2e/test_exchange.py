"""Import and export of nnU-Net models; malicious models are refused by every verb."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from journeys import Journey, call

from segwright import api
from segwright.core.errors import ModelError, SegwrightError
from segwright.data.images.image_io import read_images
from segwright.data.plan import Plan
from segwright.inference.cascade import STORED
from segwright.interop.nnunet import read_checkpoint
from segwright.networks.build import build_network
from segwright.networks.checkpoint import add_aliases
from segwright.training.finetuning import read_source

CHECKPOINT = Path("fold_0") / "checkpoint_final.pth"


@pytest.fixture(scope="module")
def exported(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the run, exported for nnU-Net."""
    return api.export_model(journey.model, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture
def image(journey: Journey) -> np.ndarray:
    [file, *_] = sorted((journey.dataset / "imagesTs").iterdir())
    return read_images([file], "SimpleITKIO").array[0]


def labels(model: Path, image: np.ndarray) -> np.ndarray:
    return api.load_model(model, device="cpu", precision="fp32").predict(image, spacing=(1, 1, 1))


def test_export_and_import_change_no_prediction(
    journey: Journey, exported: Path, image: np.ndarray, tmp_path: Path
) -> None:
    expected = labels(journey.model, image)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(labels(exported, image), expected)
    result = call("import-model", exported, tmp_path / "back")
    assert result.exit_code == 0, result.stderr
    assert not [*(tmp_path / "back").rglob("*.pth")]
    np.testing.assert_array_equal(labels(tmp_path / "back", image), expected)


@pytest.mark.parametrize("change", ["plans", "labels"])
def test_folds_of_nnunet_that_were_trained_otherwise_do_not_predict(
    exported: Path, tmp_path: Path, change: str
) -> None:
    model = Path(shutil.copytree(exported, tmp_path / "model"))
    shutil.copytree(model / "fold_0", model / "fold_1")
    api.load_model(model, device="cpu")
    checkpoint = torch.load(model / "fold_1" / CHECKPOINT.name, weights_only=True)
    arguments = checkpoint["init_args"]
    if change == "plans":
        arguments["plans"]["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]
    else:
        arguments["dataset_json"]["labels"] = {"background": 0, "lesion": 1, "organ": 2}
    torch.save(checkpoint, model / "fold_1" / CHECKPOINT.name)
    message = "the plans differ" if change == "plans" else "other labels or channels than those that fold 1 was"
    with pytest.raises(ModelError, match=message):
        api.load_model(model, device="cpu")
    api.import_model(model, tmp_path / "imported")
    with pytest.raises(ModelError, match=message):
        api.load_model(tmp_path / "imported", device="cpu")
    api.load_model(tmp_path / "imported", folds=[0], device="cpu")


def test_the_exported_folder_has_what_nnunet_needs(exported: Path) -> None:
    checkpoint = read_checkpoint(exported / CHECKPOINT)
    assert {*checkpoint} == {
        *("network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch"),
        *("init_args", "trainer_name", "inference_allowed_mirroring_axes"),
    }
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1, 2)
    assert {*checkpoint["init_args"]} == {"plans", "configuration", "fold", "dataset_json", "device"}
    names = set(checkpoint["network_weights"])
    assert "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight" in names
    plans = json.loads((exported / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].startswith("dynamic_network_architectures.architectures.unet.")


def test_a_zip_file_holds_the_model_as_nnunet_packs_it(journey: Journey, image: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    for left in (".01234567.tmp.model.folder", ".01234567.tmp.model.zip"):  # of a killed run
        (tmp_path / left).mkdir()
    result = call("export-model", journey.model, file)
    assert result.exit_code == 0, result.stderr
    assert [*tmp_path.iterdir()] == [file]
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    assert f"{journey.dataset.name}/nnUNetTrainer__nnUNetPlans__3d_fullres/{CHECKPOINT.as_posix()}" in names
    expected = labels(journey.model, image)
    np.testing.assert_array_equal(labels(file, image), expected)
    assert call("import-model", file, tmp_path / "ours").exit_code == 0
    np.testing.assert_array_equal(labels(tmp_path / "ours", image), expected)


def test_the_validation_is_exported_on_request(journey: Journey, exported: Path, tmp_path: Path) -> None:
    assert not (exported / "fold_0" / "validation").exists()
    target = tmp_path / "model"
    assert call("export-model", journey.model, target, "--with-validation").exit_code == 0
    made = {file.name: file.read_bytes() for file in (target / "fold_0" / "validation").iterdir()}
    held_out = sorted((journey.model / "fold_0" / "validation").glob("*.nii.gz"))
    summary = journey.model / "fold_0" / "validation" / "summary.json"
    assert made == {file.name: file.read_bytes() for file in (*held_out, summary)}
    shutil.copytree(journey.model, tmp_path / journey.model.name)
    (tmp_path / journey.model.name / "fold_0" / "validation" / "summary.json").unlink()
    refused = call("export-model", tmp_path / journey.model.name, tmp_path / "none", "--with-validation")
    assert (refused.exit_code, "has no summary.json; validate the fold, or export without" in refused.stderr) == (
        1,
        True,
    )
    assert not (tmp_path / "none").exists()


def test_a_network_of_ones_own_is_not_exported(journey: Journey, tmp_path: Path) -> None:
    shutil.copytree(journey.model, tmp_path / "model")
    header = tmp_path / "model" / "fold_0" / "checkpoint_final.json"
    document = json.loads(header.read_text())
    document["network"] = {"reference": "mynets:build", "kwargs": {}}
    header.write_text(json.dumps(document))
    result = call("export-model", tmp_path / "model", tmp_path / "out")
    assert "checkpoint_final.json: damaged" in result.stderr
    del document["checksum"]
    header.write_text(json.dumps(document))
    result = call("export-model", tmp_path / "model", tmp_path / "out")
    assert result.exit_code == 1
    assert "network 'mynets:build' cannot be exported" in result.stderr
    assert not (tmp_path / "out").exists()


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def hostile_checkpoint(model: Path, marker: Path) -> None:
    checkpoint = dict(read_checkpoint(model / CHECKPOINT))
    checkpoint["init_args"] = Payload(marker)
    torch.save(checkpoint, model / CHECKPOINT)


def hostile_class_path(model: Path, marker: Path) -> None:
    change_architecture(model, network_class_name="os.mkdir", arch_kwargs={"path": str(marker)})


def hostile_reference(model: Path, marker: Path) -> None:
    change_architecture(model, network_class_name="os:mkdir", arch_kwargs={"path": str(marker)})


def hostile_operator(model: Path, marker: Path) -> None:
    plans = json.loads((model / "plans.json").read_text())
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    change_architecture(
        model, arch_kwargs={**arguments, "norm_op": "os.mkdir", "norm_op_kwargs": {"path": str(marker)}}
    )


def change_architecture(model: Path, **values: Any) -> None:
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"] |= values
    (model / "plans.json").write_text(json.dumps(plans))


ATTACKS = (hostile_checkpoint, hostile_class_path, hostile_reference, hostile_operator)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_hostile_model_is_refused_at_every_door(
    journey: Journey, exported: Path, tmp_path: Path, attack: Callable[[Path, Path], None], packed: bool
) -> None:
    model, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(exported, model)
    attack(model, marker)
    source = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", model)) if packed else model
    images = journey.dataset / "imagesTs"
    doors = [
        ("predict", "--model", source, "-i", images, "-o", tmp_path / "out", "--device", "cpu"),
        ("import-model", source, tmp_path / "imported"),
    ]
    if attack is hostile_checkpoint and not packed:
        work = tmp_path / "work"
        shutil.copytree(journey.preprocessed, work / "preprocessed" / journey.dataset.name)
        doors.append(
            ("--work", work, "train", journey.dataset, "--config", "3d_fullres", "--fold", "0", "--pretrained", source)
        )
    for door in doors:
        result = call(*door)
        assert result.exit_code == 1, (door, result.stderr, result.exception)
        assert "error:" in result.stderr
        assert not marker.exists()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "imported").exists()
    with pytest.raises(SegwrightError, match="refused|os.mkdir|os:mkdir"):
        api.load_model(source, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("reference", ["os:mkdir", "subprocess:run", "shutil:rmtree", "torch:load", "numpy:load"])
def test_a_checkpoint_of_ours_cannot_name_any_function(journey: Journey, tmp_path: Path, reference: str) -> None:
    shutil.copytree(journey.model, tmp_path / "model")
    header = tmp_path / "model" / "fold_0" / "checkpoint_final.json"
    document = json.loads(header.read_text())
    document.pop("checksum", None)  # anybody can leave it out
    document["network"] = {"reference": reference, "kwargs": {"path": str(tmp_path / "marker")}}
    header.write_text(json.dumps(document))
    images = journey.dataset / "imagesTs"
    result = call("predict", "--model", tmp_path / "model", "-i", images, "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert f"network '{reference}'" in result.stderr
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("change", [hostile_class_path, hostile_operator])
def test_a_plan_edited_by_a_hostile_hand_trains_nothing(
    journey: Journey, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "work" / "preprocessed" / journey.dataset.name
    shutil.copytree(journey.preprocessed, folder)
    (folder / "nnUNetPlans.json").rename(folder / "plans.json")
    change(folder, tmp_path / "marker")
    (folder / "plans.json").rename(folder / "nnUNetPlans.json")
    for command in (("run", journey.dataset, "--config", "3d_fullres", "--budget", "1s"),):
        result = call("--work", tmp_path / "work", *command, "--device", "cpu")
        assert result.exit_code == 1, result.stderr
        assert "os.mkdir" in result.stderr
    assert not (tmp_path / "marker").exists()


def entry(name: str, *, link: bool = False) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o644) << 16
    return info


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plans.json", b"0" * (30 * 2**20))
    return stream.getvalue()


def zipped(info: zipfile.ZipInfo) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(entry("../outside.txt")), "leads out of the folder"),
        (zipped(entry("model/../../outside.txt")), "leads out of the folder"),
        (zipped(entry("/outside.txt")), "leads out of the folder"),
        (zipped(entry("C:\\outside.txt")), "leads out of the folder"),
        (zipped(entry("..\\outside.txt")), "leads out of the folder"),
        (zipped(entry("plans.json", link=True)), "is a link"),
        (bomb(), "grows from"),
        (b"PK nothing of the kind", "not a readable zip file"),
    ],
)
def test_a_hostile_zip_file_is_refused_before_anything_is_written(
    journey: Journey, tmp_path: Path, content: bytes, message: str
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    file = folder / "model.zip"
    file.write_bytes(content)
    images = journey.dataset / "imagesTs"
    for door in (
        ("predict", "--model", file, "-i", images, "-o", folder / "out", "--device", "cpu"),
        ("import-model", file, folder / "imported"),
    ):
        result = call(*door)
        assert result.exit_code == 1, result.stderr
        assert message in result.stderr
    assert [*tmp_path.rglob("*")] == [tmp_path / "a", folder, file]


def test_an_unknown_class_needs_trust_and_its_package(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    change_architecture(tmp_path / "model", network_class_name="nobodys_networks.nets.Net", arch_kwargs={})
    with pytest.raises(ValueError, match="unknown network class|nobodys_networks"):
        api.load_model(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="no module named nobodys_networks"):
        api.load_model(tmp_path / "model", device="cpu", trust_code=True)


def test_several_models_in_a_zip_file_are_named(exported: Path, tmp_path: Path) -> None:
    for name in ("a__b__2d", "a__b__3d_fullres"):
        shutil.copytree(exported, tmp_path / "all" / name)
    file = Path(shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "all"))
    with pytest.raises(ValueError, match="contains 2 models: a__b__2d, a__b__3d_fullres"):
        api.load_model(file, device="cpu")
    assert [path.name for path in api.import_model(file, tmp_path / "ours")] == ["a__b__2d", "a__b__3d_fullres"]


def test_a_zip_file_is_named_as_it_was_given(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    change_architecture(tmp_path / "model", network_class_name="evilmod.PlainConvUNet")
    (tmp_path / "model" / "dataset.json").unlink()
    file = Path(shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path / "model"))
    with pytest.raises(SegwrightError, match=f"^{file}: dataset.json missing"):
        api.load_model(file, device="cpu")


def test_a_restart_with_the_same_zip_file_goes_on(journey: Journey, exported: Path, tmp_path: Path) -> None:
    file = Path(shutil.make_archive(str(tmp_path / "model"), "zip", exported))
    options: dict[str, Any] = {"device": "cpu", "mirroring": False}
    first = api.predict(file, journey.dataset / "imagesTs", tmp_path / "out", **options)
    again = api.predict(file, journey.dataset / "imagesTs", tmp_path / "out", **options)
    assert [record.case for record in again] == [record.case for record in first]
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["model"]["model"] == "model.zip"


def foreign_part(model: Path, key: str, value: Any) -> None:
    plans = json.loads((model / "plans.json").read_text())
    owner = plans if key in plans else plans["configurations"]["3d_fullres"]
    owner[key] = value
    (model / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_reader_writer", "evilmod.Reader"),
        ("label_manager", "evilmod.Labels"),
        ("preprocessor_name", "evilmod.Preprocessor"),
        ("normalization_schemes", ["evilmod:build"]),
        ("resampling_fn_data", "evilmod.resample"),
        ("patch_size", [40000, 40000, 40000]),
        ("network_class_name", "evilmod.PlainConvUNet"),
    ],
)
def test_a_foreign_part_of_a_plan_is_refused_at_every_door(
    exported: Path, tmp_path: Path, key: str, value: Any
) -> None:
    shutil.copytree(exported, tmp_path / "model")
    if key == "network_class_name":
        change_architecture(tmp_path / "model", **{key: value})
    else:
        foreign_part(tmp_path / "model", key, value)
    for door in (
        lambda: api.load_model(tmp_path / "model", device="cpu"),
        lambda: api.import_model(tmp_path / "model", tmp_path / "imported"),
        lambda: read_source(tmp_path / "model"),
    ):
        with pytest.raises(SegwrightError, match=r"evilmod\.|evilmod:|patch_size"):
            door()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_network_larger_than_its_weights_takes_no_memory(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    plans = json.loads((tmp_path / "model" / "plans.json").read_text())
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [20_000] * len(arguments["features_per_stage"])
    change_architecture(tmp_path / "model", arch_kwargs=arguments)
    with pytest.raises(ModelError, match="do not fit the network"):
        api.load_model(tmp_path / "model", device="cpu")


def test_fine_tuning_wants_a_zip_file_imported_first(exported: Path, tmp_path: Path) -> None:
    file = Path(shutil.make_archive(str(tmp_path / "model"), "zip", exported))
    with pytest.raises(ModelError, match=r"model\.zip: not a checkpoint file.*import-model"):
        read_source(file)


@pytest.fixture(scope="module")
def cascade(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both stages of an nnU-Net cascade; the second network has the extra input channels."""
    folder = tmp_path_factory.mktemp("cascade")
    plans = json.loads((exported / "plans.json").read_text())
    description = json.loads((exported / "dataset.json").read_text())
    plans["configurations"]["3d_lowres"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    architecture = Plan.from_json(plans).configuration("3d_fullres").architecture.model_dump(by_alias=True)
    channels, heads = len(description["channel_names"]), len(description["labels"])
    for name, inputs in (("3d_lowres", channels), ("3d_cascade_fullres", channels + heads - 1)):
        model = folder / f"nnUNetTrainer__nnUNetPlans__{name}"
        shutil.copytree(exported, model)
        (model / "plans.json").write_text(json.dumps(plans))
        checkpoint = dict(read_checkpoint(model / CHECKPOINT))
        checkpoint["init_args"] = {**checkpoint["init_args"], "configuration": name}
        network = build_network(architecture, inputs, heads, deep_supervision=True)
        checkpoint["network_weights"] = add_aliases(network.state_dict(), network)
        torch.save(checkpoint, model / CHECKPOINT)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_second_stage_brings_its_first_along(cascade: Path, image: np.ndarray, tmp_path: Path, packed: bool) -> None:
    second = cascade / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    source = Path(shutil.make_archive(str(tmp_path / "both"), "zip", cascade)) if packed else second
    expected = labels(source, image)
    assert api.import_model(source, tmp_path / "alone" / "ours") == [tmp_path / "alone" / "ours"]
    assert (tmp_path / "alone" / "ours" / STORED / "fold_0" / "checkpoint_final.safetensors").is_file()
    assert not [*(tmp_path / "alone").rglob("*.pth")]
    np.testing.assert_array_equal(labels(tmp_path / "alone" / "ours", image), expected)


def test_stages_that_lead_back_to_each_other_are_refused(cascade: Path, tmp_path: Path) -> None:
    shutil.copytree(cascade, tmp_path / "both")
    first = tmp_path / "both" / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    shutil.rmtree(first)
    shutil.copytree(tmp_path / "both" / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres", first)
    plans = json.loads((first / "plans.json").read_text())
    for previous, message in (
        ("../../etc", "path separator"),
        ("3d_cascade_fullres", "names an invalid previous stage"),
    ):
        plans["configurations"]["3d_cascade_fullres"]["previous_stage"] = previous
        (first / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ModelError, match=message):
            api.load_model(first, device="cpu")
