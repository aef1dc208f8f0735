"""Options, names and folders of nnU-Net's commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from segwright.cli.nnunet import folders, names, options, preparing, program
from segwright.cli.nnunet.trainers import find_trainer
from segwright.core import log
from segwright.core.errors import ConfigError, DatasetError, ModelError

PACKAGE = Path(__file__).parents[4] / "packages" / "segwright-nnunet" / "pyproject.toml"
SLICER = (
    *("-i", "in", "-o", "out", "-d", "Dataset004_Hippocampus", "-tr", "nnUNetTrainer", "-p", "nnUNetPlans"),
    *("-c", "3d_fullres", "-f", "0", "1", "-npp", "1", "-nps", "1", "-step_size", "0.5", "-device", "cpu"),
    *("-chk", "checkpoint_final.pth", "--disable_tta"),
)


def parsed(name: str, *words: str) -> options.Values:
    return options.parse(f"nnUNetv2_{name}", program.command(name), words)


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def test_the_distribution_has_every_command() -> None:
    scripts = dict(re.findall(r'^(nnUNetv2_\w+) = "(.*)"$', PACKAGE.read_text(), re.MULTILINE))
    assert sorted(scripts) == sorted(program.NAMES)
    assert set(scripts.values()) == {"segwright.cli.nnunet.program:main"}


@pytest.mark.parametrize("name", [name for each in program.MODULES.values() for name in each])
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.execute([f"nnUNetv2_{name}", "-h"])
    assert ended.value.code == 0
    assert f"usage: nnUNetv2_{name}" in capsys.readouterr().out


def test_the_call_of_slicer_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    values = parsed("predict", *SLICER)
    assert values.texts("-f") == ["0", "1"]
    assert values.is_set("--disable_tta")
    assert names.device_of(values) == "cpu"
    assert capsys.readouterr().err.splitlines() == [
        "nnUNetv2_predict: no effect here: -npp, -nps (threads of one process read and write the cases)"
    ]


def test_options_are_abbreviated_as_in_nnunet() -> None:
    assert parsed("predict", *SLICER, "--save_prob", "--c").given >= {"--save_probabilities", "--continue_prediction"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "-i", "in"), r"required: -o, -d, -c \(see 'nnUNetv2_predict -h'\)"),
        (("predict", *SLICER, "--fast"), "unrecognized arguments: --fast"),
        (("train", "4", "2d", "0", "-num_gpus", "two"), "argument -num_gpus: invalid int value: 'two'"),
        (("plan_experiment", "-d", "4", "-preprocessor_name", "Mine"), "-preprocessor_name Mine: Segwright has only"),
        (("predct",), "no command 'nnUNetv2_predct'; did you mean 'nnUNetv2_predict'"),
    ],
)
def test_wrong_arguments_are_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        program.execute(words)


def test_unknown_options_of_preparing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    parsed("extract_fingerprint", "-d", "4", "--fast")
    assert "nnUNetv2_extract_fingerprint: --fast: unknown, no effect" in capsys.readouterr().err


def test_the_script_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(program, "run", lambda words: seen.append([*words]))
    for argv in (["/bin/nnUNetv2_train", "4"], ["/x/__main__.py", "nnUNetv2_train", "4"], ["-c", "train", "4"]):
        monkeypatch.setattr(sys, "argv", argv)
        program.main()
    assert [words[-2:] for words in seen] == [["nnUNetv2_train", "4"], ["nnUNetv2_train", "4"], ["train", "4"]]


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(ConfigError, match="nnUNet_results is not set"):
        folders.folder_of("nnUNet_results")


def test_preparing_needs_no_results(trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    assert folders.preparing_workspace().results == trees / "preprocessed"


def test_an_id_is_found_in_all_trees(trees: Path) -> None:
    (trees / "results" / "Dataset004_A").mkdir()
    (trees / "raw" / "Dataset004_A").mkdir()
    (trees / "raw" / "Dataset0041_B").mkdir()
    assert folders.dataset_name("4") == "Dataset004_A"
    assert folders.dataset_name("Dataset009_X") == "Dataset009_X"
    (trees / "preprocessed" / "Dataset004_C").mkdir()
    with pytest.raises(DatasetError, match=r"several datasets have this id \(Dataset004_A, Dataset004_C\)"):
        folders.dataset_name("4")
    for text, message in (("5", "no folder Dataset005_NAME"), ("x", "expected an id such as 4")):
        with pytest.raises(DatasetError, match=message):
            folders.dataset_name(text)


def test_a_missing_model_names_the_ones_there(trees: Path) -> None:
    (trees / "results" / "Dataset004_A" / "nnUNetTrainer__nnUNetPlans__2d").mkdir(parents=True)
    with pytest.raises(ModelError, match="did you mean 'nnUNetTrainer__nnUNetPlans__2d'"):
        folders.trained_model("4", "nnUNetTrainer", "nnUNetPlans", "3d")


def test_checkpoints_folds_and_devices() -> None:
    assert names.checkpoint_kind("checkpoint_best.pth") == "best"
    assert [names.fold_of(text) for text in ("3", "all")] == [3, "all"]
    assert names.device_of(parsed("train", "4", "2d", "0")) == "auto"
    with pytest.raises(ConfigError, match=r"did you mean 'checkpoint_final\.pth'"):
        names.checkpoint_kind("checkpoint_finl.pth")
    with pytest.raises(ConfigError, match="fold 'first'"):
        names.fold_of("first")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        names.device_of(parsed("train", "4", "2d", "0", "-device", "cuda:1"))


@pytest.mark.parametrize(
    ("planner", "preset", "resampling"),
    [
        ("ExperimentPlanner", "default", "default"),
        ("nnUNetPlannerResEncL", "resenc-l", "default"),
        ("ResEncUNetPlanner", "resenc", "default"),
        ("nnUNetPlannerResEncL_torchres_sepz", "resenc-l", "torch-sepz"),
    ],
)
def test_planners_are_presets(planner: str, preset: str, resampling: str) -> None:
    arguments = parsed("plan_experiment", "-d", "4", "-pl", planner, "-overwrite_target_spacing", "1", "2", "3.5")
    found = preparing.plan_options(arguments)
    assert (found.preset, found.resampling, found.spacing) == (preset, resampling, (1, 2, 3.5))


@pytest.mark.parametrize(
    ("words", "message"),
    [(("-pl", "ResEncPlanner"), "unknown planner"), (("-overwrite_target_spacing", "1"), "expected three numbers")],
)
def test_wrong_plan_options_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preparing.plan_options(parsed("plan_experiment", "-d", "4", *words))


def test_threads_are_one_number_or_one_for_each_configuration() -> None:
    assert preparing.num_threads(["2d", "3d_fullres"], []) == [None, None]
    assert preparing.num_threads(["2d", "3d_fullres"], [3]) == [3, 3]
    assert preparing.num_threads(["2d", "3d_fullres"], [3, 1]) == [3, 1]
    for numbers, message in (([1, 2, 3], "3 numbers for 2"), ([0], "at least 1")):
        with pytest.raises(ConfigError, match=message):
            preparing.num_threads(["2d", "3d_fullres"], numbers)


def test_trainers_of_nnunet_are_settings() -> None:
    assert find_trainer("nnUNetTrainer", 3, {}).settings == {}
    found = find_trainer("nnUNetTrainer_onlyMirror01_1500ep", 3, {})
    assert found.settings == {"mirror_axes": (0, 1), "num_epochs": 1500}
    assert find_trainer("nnUNetTrainer_onlyMirror01", 2, {}).settings == {"mirror_axes": (0,)}


def test_a_trainer_file_is_found_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("class nnUNetTrainerFancy(:")
    file = tmp_path / "deep" / "fancy.py"
    file.parent.mkdir()
    file.write_text("class nnUNetTrainerFancy(nnUNetTrainer):\n    pass\nraise SystemExit\n")
    assert find_trainer("nnUNetTrainerFancy", 3, {"nnUNet_extTrainer": str(tmp_path)}).file == (
        f"{file}:nnUNetTrainerFancy"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nnUNetTrainerFancy", "nnUNet_extTrainer is not set"),
        ("nnUNetTrainerAdan", "nnUNetTrainerAdan cannot be trained"),
        ("nnUNetTrainer_noDummy2DDA", "derive a class from it in a trainer file"),
    ],
)
def test_trainers_that_cannot_train_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_trainer(name, 3, {})
