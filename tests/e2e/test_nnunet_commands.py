"""nnU-Net's commands on cases of Hippocampus: the files that they write are those of nnU-Net 2.8.1.

`tests/golden/commands/make_commands.py` recorded these with the same cases; both predict with the same two models.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segwright.cli.app import exit_code_of
from segwright.cli.nnunet import pretraining, program
from segwright.core.errors import ModelError
from segwright.interop.nnunet import read_checkpoint
from tests.file_server import Served, file_server
from tests.golden.commands import subset
from tests.nnssl_checkpoints import architecture, write_checkpoint

GOLDEN = Path(subset.__file__).parent
RECORDED = json.loads(gzip.decompress((GOLDEN / "documents.json.gz").read_bytes()))
ARRAYS = np.load(GOLDEN / "arrays.npz")
HIPPOCAMPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / subset.DATASET
TREES = ("raw", "preprocessed", "results")
MODEL = ("-p", subset.PLANS)
MIN_AGREEMENT = 0.999
"""Share of equal labels; networks compute in bfloat16 where the processor has fast instructions for it."""

DYNAMIC = ("ptPlans_dynamic__MAE", "nnUNetPlans")

pytestmark = pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the Hippocampus dataset is not here")


def run(name: str, *arguments: object) -> None:
    program.execute([f"nnUNetv2_{name}", *map(str, arguments)])


def set_variables(patch: pytest.MonkeyPatch, work: Path) -> None:
    for name in TREES:
        patch.setenv(f"nnUNet_{name}", str(work / name))


def model_folder(work: Path, configuration: str) -> Path:
    return work / "results" / subset.DATASET / f"{subset.TRAINER}__{subset.PLANS}__{configuration}"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared datasets, and nnU-Net's models of one of them."""
    work = tmp_path_factory.mktemp("nnunet")
    for name in (subset.DATASET, subset.OTHER):
        subset.write_dataset(HIPPOCAMPUS, work / "raw" / name)
    with pytest.MonkeyPatch.context() as patch:
        set_variables(patch, work)
        run("extract_fingerprint", "-d", 4, 5, "-np", 1, "--verify_dataset_integrity")
        run("plan_experiment", "-d", 4)
        run("move_plans_between_datasets", "-s", 4, "-t", 5, "-sp", "nnUNetPlans", "-tp", "moved")
        run("preprocess", "-d", 4, "-c", *subset.CONFIGURATIONS, "3d_lowres", "-np", 1)
        run("install_pretrained_model_from_zip", GOLDEN / "models.zip")
    preprocessed = work / "preprocessed" / subset.DATASET
    subset.shrink(preprocessed / "nnUNetPlans.json", preprocessed / f"{subset.PLANS}.json")
    return work


@pytest.fixture(autouse=True)
def variables(no_variables: None, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, work)


@pytest.fixture(scope="module")
def predicted(work: Path) -> dict[str, Path]:
    """Predictions of the test cases: by both models, and their mean."""
    images = work / "raw" / subset.DATASET / "imagesTs"
    outputs = {name: work / name for name in ("predict", "predict_from_modelfolder", "ensemble")}
    common = ("-f", 0, "-npp", 1, "-nps", 1, "-device", "cpu", "--save_probabilities")
    with pytest.MonkeyPatch.context() as patch:
        set_variables(patch, work)
        run(
            *("predict", "-i", images, "-o", outputs["predict"], "-d", 4, "-c", "2d", "-step_size", 0.5),
            *(*MODEL, *common),
        )
        run(
            *("predict_from_modelfolder", "-i", images, "-o", outputs["predict_from_modelfolder"], *common),
            *("-m", model_folder(work, "3d_fullres"), "--disable_tta"),
        )
        run("ensemble", "-i", *[*outputs.values()][:2], "-o", outputs["ensemble"], "-np", 1)
    return outputs


@pytest.fixture
def scored(work: Path, tmp_path: Path) -> Path:
    """Held-out predictions of nnU-Net's 2D model, with its plans and dataset.json."""
    model = model_folder(work, "2d")
    for file in [*(model / "fold_0" / "validation").glob(f"*{subset.ENDING}"), *model.glob("*.json")]:
        (tmp_path / "scored").mkdir(exist_ok=True)
        shutil.copyfile(file, tmp_path / "scored" / file.name)
    return tmp_path / "scored"


def differences(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield where a document differs from nnU-Net's; ours may have more keys, and paths lead elsewhere."""
    if isinstance(expected, Mapping):
        for key, value in expected.items():
            yield from [f"{path}: no {key}"] if key not in found else differences(value, found[key], f"{path}/{key}")
    elif isinstance(expected, list):
        if len(expected) != len(found):
            yield f"{path}: {len(found)} entries, expected {len(expected)}"
        for index, (one, other) in enumerate(zip(expected, found, strict=False)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(expected, float):
        if not (math.isclose(expected, found, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(expected) and found != found)):
            yield f"{path}: {found}, expected {expected}"
    elif isinstance(expected, str) and expected.startswith("WORK"):
        if Path(expected).name.replace(".pkl", ".json") != Path(found).name:  # we write no pickle
            yield f"{path}: {found}, expected {expected}"
    elif expected != found:
        yield f"{path}: {found!r}, expected {expected!r}"


def require_document(key: str, file: Path, *, without: tuple[str, ...] = ()) -> None:
    expected = {name: value for name, value in RECORDED["documents"][key].items() if name not in without}
    assert list(differences(expected, json.loads(file.read_text()))) == []


def require_files(key: str, folder: Path, *, without: tuple[str, ...] = ()) -> None:
    """Check that a folder has nnU-Net's files, but for those that end in one of `without`; it may have more."""
    expected = {name for name in RECORDED["files"][key] if not name.endswith(without)}
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert expected - found == set()


def require_labels(key: str, folder: Path, *, least: float) -> None:
    names = [name for name in ARRAYS.files if name.startswith(f"{key}/")]
    assert names
    for name in names:
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / Path(name).name)))
        assert (found == ARRAYS[name]).mean() >= least, name


def test_fingerprint_and_plans_are_those_of_nnunet(work: Path) -> None:
    preprocessed = work / "preprocessed" / subset.DATASET
    require_document("extract_fingerprint", preprocessed / "dataset_fingerprint.json")
    require_document("plan_experiment", preprocessed / "nnUNetPlans.json")
    require_document("move_plans_between_datasets", preprocessed.with_name(subset.OTHER) / "moved.json")


def test_preprocessed_cases_are_those_of_nnunet(work: Path) -> None:
    preprocessed = work / "preprocessed" / subset.DATASET
    own = (".b2nd", ".pkl")  # in folders of their own, and JSON instead of pickle
    require_files("preprocess", preprocessed, without=own)
    for name in subset.CONFIGURATIONS:
        for ending in (".b2nd", "_seg.b2nd"):
            file = preprocessed / f"segwright_nnUNetPlans_{name}" / f"{subset.TRAINING[0]}{ending}"
            expected = ARRAYS[f"preprocess/{name}{ending}"]
            np.testing.assert_allclose(blosc2.open(str(file))[:][..., ::4, ::4, ::4], expected, atol=1e-4)


def test_one_command_does_all_three(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TREES[1:]:
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    run("plan_and_preprocess", "-d", 4, 5, "-c", "2d", "-pl", "nnUNetPlannerResEncM", "-np", 1, "-npfp", 1, "--clean")
    for dataset in (subset.DATASET, subset.OTHER):
        folder = tmp_path / "preprocessed" / dataset
        assert len([*folder.glob("segwright_nnUNetPlans_2d/*_seg.b2nd")]) == len(subset.TRAINING)
        assert len([*folder.glob(f"gt_segmentations/*{subset.ENDING}")]) == len(subset.TRAINING)
        assert (folder / "nnUNetResEncUNetMPlans.json").is_file()


def test_predictions_are_those_of_nnunet(predicted: dict[str, Path]) -> None:
    for key, folder in predicted.items():
        require_files(key, folder, without=(".pkl", "predict_from_raw_data_args.json"))
        require_labels(key, folder, least=MIN_AGREEMENT)


def test_existing_predictions_are_kept_on_demand(predicted: dict[str, Path], work: Path) -> None:
    folder = predicted["predict_from_modelfolder"]
    before = {file: file.stat().st_mtime_ns for file in folder.glob(f"*{subset.ENDING}")}
    arguments = ("-i", work / "raw" / subset.DATASET / "imagesTs", "-o", folder, "-f", 0, "-device", "cpu")
    run(
        "predict_from_modelfolder",
        *arguments,
        "-m",
        model_folder(work, "3d_fullres"),
        "--disable_tta",
        "--save_probabilities",
        "--c",
    )
    assert before == {file: file.stat().st_mtime_ns for file in folder.glob(f"*{subset.ENDING}")}


def test_scores_are_those_of_nnunet(work: Path, scored: Path, tmp_path: Path) -> None:
    references = work / "raw" / subset.DATASET / "labelsTr"
    documents = ("-djfile", scored / "dataset.json", "-pfile", scored / "plans.json")
    for name, how in (("evaluate_folder", documents), ("evaluate_simple", ("-l", 1, 2))):
        run(name, references, scored, *how, "-np", 1, "-o", tmp_path / "scores.json", "--chill")
        require_document(name, tmp_path / "scores.json")
    (scored / f"unknown{subset.ENDING}").touch()
    message = f"unknown{subset.ENDING}"
    with pytest.raises(ValueError, match=message):
        run("evaluate_folder", references, scored, *documents)


def test_postprocessing_is_that_of_nnunet(work: Path, scored: Path, tmp_path: Path) -> None:
    run("determine_postprocessing", "-i", scored, "-ref", work / "raw" / subset.DATASET / "labelsTr", "-np", 1)
    require_files("determine_postprocessing", scored, without=(".pkl",))
    require_document("determine_postprocessing", scored / "postprocessing.json")
    output = tmp_path / "processed"
    run("apply_postprocessing", "-i", scored, "-o", output, "-np", 1, "-pp_pkl_file", scored / "postprocessing.pkl")
    require_files("apply_postprocessing", output)
    require_labels("apply_postprocessing", output, least=1)


def test_the_best_configuration_is_that_of_nnunet(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = work / "results" / subset.DATASET
    run(
        *("find_best_configuration", 4, "-c", *subset.CONFIGURATIONS, "-f", 0, "-np", 1, "--disable_ensembling"),
        *MODEL,
    )
    require_document("find_best_configuration", results / "inference_information.json")
    text = (results / "inference_instructions.txt").read_text()
    assert text in capsys.readouterr().out
    commands = [line for line in RECORDED["documents"]["instructions"].splitlines() if line.startswith("nnUNetv2_")]
    for command in commands:
        words = command.replace("WORK", str(work)).replace(".pkl", ".json").split()
        assert words in [line.split() for line in text.splitlines()]


def test_an_ensemble_needs_saved_probabilities(work: Path) -> None:
    with pytest.raises(ModelError, match="no probabilities of held-out cases"):
        run("find_best_configuration", 4, "-c", *subset.CONFIGURATIONS, "-f", 0, *MODEL)


def test_held_out_predictions_are_collected_as_by_nnunet(work: Path, tmp_path: Path) -> None:
    run("accumulate_crossval_results", 4, "-c", "3d_fullres", "-f", 0, *MODEL, "-o", tmp_path / "pooled")
    require_files("accumulate_crossval_results", tmp_path / "pooled")
    require_document("accumulate_crossval_results", tmp_path / "pooled" / "summary.json")


def test_a_zip_file_has_what_nnunet_packs(work: Path, tmp_path: Path) -> None:
    archive = tmp_path / "models.zip"
    for name in subset.CONFIGURATIONS:  # which would be the largest part of the golden
        (model_folder(work, name) / "fold_0" / "progress.png").touch()
    run(
        *("export_model_to_zip", "-d", 4, "-o", archive, "-c", *subset.CONFIGURATIONS, "-f", 0, "--exp_cv_preds"),
        *MODEL,
    )
    with zipfile.ZipFile(archive) as stream:
        names = {name for name in stream.namelist() if "crossval" not in name}
    expected = {name for name in RECORDED["files"]["export_model_to_zip"] if "crossval" not in name}
    assert names - expected == set()
    assert {name for name in expected - names if not name.endswith((".pkl", "inference_information.json"))} == set()


def test_datasets_are_converted_as_by_nnunet(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    subset.write_task(HIPPOCAMPUS, tmp_path / subset.TASK)
    run("convert_MSD_dataset", "-i", tmp_path / subset.TASK, "-overwrite_id", 6, "-np", 1)
    subset.write_old_dataset(HIPPOCAMPUS, tmp_path / "Task007_Old")
    run("convert_old_nnUNet_dataset", tmp_path / "Task007_Old", "Dataset007_Old")
    converted = {"convert_MSD_dataset": "Dataset006_Hippocampus", "convert_old_nnUNet_dataset": "Dataset007_Old"}
    for key, name in converted.items():
        require_files(key, raw / name)
        require_document(key, raw / name / "dataset.json", without=("numTest", "tensorImageSize"))  # of version 1


@pytest.fixture(scope="module")
def trained(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of our own trainings with a trainer file, of both configurations."""
    code = tmp_path_factory.mktemp("trainers")
    (code / "quick.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainerQuick(nnUNetTrainer):\n"
        "    def __init__(self, plans, configuration, fold, dataset_json, device):\n"
        "        super().__init__(plans, configuration, fold, dataset_json, device=device)\n"
        "        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 20, 1\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        set_variables(patch, work)
        patch.setenv("nnUNet_extTrainer", str(code))
        for configuration in subset.CONFIGURATIONS:
            arguments = (4, configuration, 0, "-tr", "nnUNetTrainerQuick", "-p", "tinyPlans", "-device", "cpu")
            run("train", *arguments, *(("--npz",) if configuration == "2d" else ()))
        run("train", *arguments, "--val", "--npz")
    return work / "results" / subset.DATASET


def test_a_training_writes_what_nnunet_does(trained: Path, work: Path) -> None:
    model = trained / "nnUNetTrainerQuick__tinyPlans__2d"
    other = (".pkl", ".pdf", "checkpoint_best.pth", "checkpoint_latest.pth")
    logs = tuple(name for name in RECORDED["files"]["train"] if "training_log" in name)
    require_files("train", model, without=(*other, *logs))
    assert (model / "fold_0" / "training.log").is_file()
    checkpoint = read_checkpoint(model / "fold_0" / "checkpoint_final.pth")
    assert checkpoint["init_args"]["configuration"] == "2d"
    splits = json.loads((work / "preprocessed" / subset.DATASET / "splits_final.json").read_text())
    assert splits == RECORDED["documents"]["splits"]


def test_an_ensemble_is_compared_and_its_instructions_run(
    trained: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        *("find_best_configuration", 4, "-c", *subset.CONFIGURATIONS, "-f", 0, "-np", 1),
        *("-tr", "nnUNetTrainerQuick", "-p", "tinyPlans"),
    )
    found = json.loads((trained / "inference_information.json").read_text())
    singles = [f"nnUNetTrainerQuick__tinyPlans__{name}" for name in subset.CONFIGURATIONS]
    assert [*found["all_results"]] == [*singles, f"ensemble___{singles[0]}___{singles[1]}___0"]
    assert (trained / "ensembles" / [*found["all_results"]][2] / "summary.json").is_file()
    printed = capsys.readouterr().out
    places = {"INPUT_FOLDER": work / "raw" / subset.DATASET / "imagesTs"}
    for line in printed.splitlines():
        if line.startswith("nnUNetv2_"):
            words = [
                str(places.get(word, tmp_path / word if word.startswith("OUTPUT") else word)) for word in line.split()
            ]
            run(words[0].removeprefix("nnUNetv2_"), *words[1:])
    assert len([*(tmp_path / "OUTPUT_FOLDER_PP").glob(f"*{subset.ENDING}")]) == len(subset.TEST)


def test_a_training_is_not_replaced_silently(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("nnUNetv2_train", "4", "2d", "0", "-tr", "nnUNetTrainer_1epoch", "-p", "tinyPlans", "-device", "cpu")
    shutil.copytree(trained / "nnUNetTrainerQuick__tinyPlans__2d", trained / "nnUNetTrainer_1epoch__tinyPlans__2d")
    assert exit_code_of(lambda: program.execute(words), words) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "has a training already; continue it with --c" in line


def test_every_case_has_an_overlay(work: Path, tmp_path: Path) -> None:
    run("plot_overlay_pngs", "-d", 4, "-o", tmp_path / "pictures", "--use_raw", "-np", 1)
    pictures = {file.stem: file.read_bytes() for file in (tmp_path / "pictures").iterdir()}
    assert sorted(pictures) == sorted(subset.TRAINING)
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())


def test_models_are_installed_from_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr("segwright.core.files.download.WAIT_S", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with file_server() as server:
        server.files["/models.zip"] = Served((GOLDEN / "models.zip").read_bytes())
        run("download_pretrained_model_by_url", server.address("/models.zip"))
    assert model_folder(tmp_path, "2d").joinpath("fold_0", "checkpoint_final.pth").is_file()
    assert [file.name for file in (tmp_path / "results").iterdir()] == [subset.DATASET]


def test_training_begins_with_an_encoder_of_nnssl(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, preprocessed = tmp_path / "openmind.pth", work / "preprocessed" / subset.DATASET
    write_checkpoint(checkpoint)
    run("preprocess_like_nnssl", "-d", 4, "-n", "MAE", "-pc", checkpoint, "-am", "like_pretrained")
    file = preprocessed / "ptPlans__MAE____Spacing__1.00_1.00_1.00___Norm__Z.json"
    document = json.loads(file.read_text())
    block = document["configurations"]["3d_fullres"]
    assert (block["batch_size"], block["normalization_schemes"]) == (2, ["ZScoreNormalization"])
    assert len([*preprocessed.glob(f"segwright_{block['data_identifier']}/*_seg.b2nd")]) == len(subset.TRAINING)
    block |= {"patch_size": [16, 16, 16], "architecture": architecture()}
    file.write_text(json.dumps(document))
    short = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "warmup_epochs": 1}
    monkeypatch.setitem(pretraining.TRAINERS, "PretrainedTrainer", short)
    for more, name in (((), file.stem), (("--from_scratch",), f"{file.stem}__from_scratch")):
        run("train_pretrained", 4, "3d_fullres", 0, "-p", file.stem, "-device", "cpu", *more)
        fold = work / "results" / subset.DATASET / f"PretrainedTrainer__{name}__3d_fullres" / "fold_0"
        settings = json.loads((fold / "train.json").read_text())["config"]
        assert settings["pretrained"] == (None if more else str(checkpoint))
        assert settings["initial_lr"] == (1e-2 if more else 1e-3)
    with pytest.raises(ModelError, match="not a checkpoint of nnssl"):
        run("plan_like_dynamic", "-d", 4, "-n", "MAE", "-pc", model_folder(work, "2d") / "fold_0/checkpoint_final.pth")
    run("plan_like_dynamic", "-d", 4, "-n", "MAE", "-pc", checkpoint)
    dynamic, plans = (json.loads((preprocessed / f"{name}.json").read_text()) for name in DYNAMIC)
    assert dynamic["configurations"] == {"3d_fullres": plans["configurations"]["3d_fullres"]}
    with pytest.raises(ModelError, match=r"openmind\.pth"):
        run("train_pretrained", 4, "3d_fullres", 0, "-p", DYNAMIC[0], "-device", "cpu")


WRONG = {
    "extract_fingerprint": ("-d", 99),
    "plan_experiment": ("-d", 4, "-pl", "nothing"),
    "preprocess": ("-d", 4, "-plans_name", "nothing"),
    "plan_and_preprocess": ("-d", 4, "-fpe", "Mine"),
    "move_plans_between_datasets": ("-s", 4, "-t", 5, "-sp", "nothing"),
    "train": (4, "2d", 9, "-p", "nothing"),
    "predict": ("-i", "nothing", "-o", "out", "-d", 4, "-c", "2d", "-f", 0, *MODEL, "-prev_stage_predictions", "x"),
    "predict_from_modelfolder": ("-i", "nothing", "-o", "out", "-m", "nothing"),
    "ensemble": ("-i", "nothing", "less", "-o", "out"),
    "evaluate_folder": ("nothing", "less", "-djfile", "x", "-pfile", "x"),
    "evaluate_simple": ("nothing", "less", "-l", 1),
    "accumulate_crossval_results": (4, "-c", "2d"),
    "determine_postprocessing": ("-i", "nothing", "-ref", "less"),
    "apply_postprocessing": ("-i", "nothing", "-o", "out", "-pp_pkl_file", "postprocessing.pkl"),
    "find_best_configuration": (4, "-c", "2d", "-p", "nothing"),
    "export_model_to_zip": ("-d", 4, "-o", "out.zip", *MODEL),
    "install_pretrained_model_from_zip": ("nothing.zip",),
    "download_pretrained_model_by_url": ("ftp://nowhere/models.zip",),
    "convert_MSD_dataset": ("-i", "Task01_Nothing"),
    "convert_old_nnUNet_dataset": ("nothing", "Dataset001_New"),
    "plot_overlay_pngs": ("-d", 99, "-o", "out"),
    "preprocess_like_nnssl": ("-d", 4, "-n", "MAE", "-pc", "nothing.pth", "-am", "like"),
    "plan_like_dynamic": ("-d", 4, "-n", "MAE", "-pc", "nothing.pth", "-pl", "nothing"),
    "train_pretrained": (4, "3d_fullres", 0, "-p", "nothing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line_and_exit_code_1(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"nnUNetv2_{name}", *map(str, WRONG[name])]
    assert exit_code_of(lambda: program.execute(words), words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if ": no effect here: " not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert [*tmp_path.iterdir()] == []


def test_bad_input_is_tried_with_every_command() -> None:
    assert {f"nnUNetv2_{name}" for name in WRONG} == set(program.NAMES)
