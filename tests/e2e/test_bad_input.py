"""Bad input ends with one line (place, expectation, remedy) and exit code 1; no partial files are left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from journeys import RUN, Journey, call


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the dataset for tests to damage."""
    return Path(shutil.copytree(tiny, tmp_path / tiny.name))


def _image(folder: Path, number: int) -> Path:
    return folder / "imagesTr" / f"phantom_{number:03d}_0000.nii.gz"


def _label(folder: Path, number: int) -> Path:
    return folder / "labelsTr" / f"phantom_{number:03d}.nii.gz"


def _rewrite(file: Path, change: Callable[[np.ndarray], np.ndarray], scale: float = 1.0) -> None:
    image = nib.load(file)
    affine = image.affine @ np.diag([scale, 1, 1, 1])
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), affine), file)


def lose_a_channel(folder: Path) -> str:
    _declare(folder, channel_names={"0": "MRI", "1": "PET"})
    return "phantom_001_0001.nii.gz"


def damage_an_image(folder: Path) -> str:
    _image(folder, 2).write_bytes(b"not an image")
    return "phantom_002_0000.nii.gz"


def crop_a_label(folder: Path) -> str:
    _rewrite(_label(folder, 3), lambda array: array[1:])
    return "phantom_003"


def stretch_a_label(folder: Path) -> str:
    _rewrite(_label(folder, 4), lambda array: array, scale=2)
    return "phantom_004"


def invent_a_label(folder: Path) -> str:
    _rewrite(_label(folder, 5), lambda array: np.where(array == 2, 7, array).astype(np.uint8))
    return "phantom_005"


def remove_all_cases(folder: Path) -> str:
    for file in (folder / "imagesTr").iterdir():
        file.unlink()
    return "imagesTr"


def _declare(folder: Path, **changes: object) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    "break_it",
    [lose_a_channel, damage_an_image, crop_a_label, stretch_a_label, invent_a_label, remove_all_cases],
)
@pytest.mark.parametrize("verb", [("run",), ("fingerprint",), ("plan",), ("check",)])
def test_a_broken_dataset_is_refused(
    broken: Path, tmp_path: Path, break_it: Callable[[Path], str], verb: tuple[str, ...]
) -> None:
    place = break_it(broken)
    work = tmp_path / "work"
    options = RUN if verb == ("run",) else ()
    done = call(*verb, broken, *options, "--work", work)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert done.exit_code == 1
    assert any(place in line for line in lines), done.output
    assert all("Traceback" not in line and len(line) < 400 for line in lines)
    assert not [path for path in work.rglob("*") if path.is_file()]


def test_check_reports_everything_in_one_pass(broken: Path, tmp_path: Path) -> None:
    places = [damage_an_image(broken), crop_a_label(broken), stretch_a_label(broken), invent_a_label(broken)]
    _label(broken, 6).unlink()
    (tmp_path / "file").touch()
    done = call("check", broken, "--work", tmp_path / "file")
    assert done.exit_code == 1
    for place in [*places, "phantom_006.nii.gz", "work folder"]:
        assert f"{place}" in done.stdout


def test_an_unwritable_work_folder_is_found_before_any_work(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call("run", tiny, *RUN, "--work", tmp_path / "file")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cannot be written" in done.stderr
    assert "--work DIR" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", "7"), "fold 7 does not exist; choose from 0 to 4, or all"),
        (("--config", "3d_fulres"), "no configuration '3d_fulres'; did you mean '3d_fullres'?"),
        (("--device", "gpu9"), "unknown device 'gpu9'"),
        (("--preset", "resnet"), "unknown preset 'resnet'"),
        (("--budget", "0s"), "is not a duration"),
    ],
)
def test_a_wrong_choice_is_refused(journey: Journey, options: tuple[str, ...], message: str) -> None:
    done = call("run", journey.dataset, *options, "--work", journey.work)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.exit_code, done.stdout, len(errors)) == (1, "", 1)
    assert message in errors[0]


def test_fewer_than_five_cases_name_the_remedy(broken: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        _image(broken, number).unlink()
        _label(broken, number).unlink()
    _declare(broken, numTraining=4)
    done = call("run", broken, *RUN, "--work", tmp_path / "work")
    assert done.exit_code == 1
    assert "at least 5 cases" in done.stderr
    assert "fold all" in done.stderr


def test_a_model_of_another_plan_is_not_mixed(journey: Journey, tmp_path: Path) -> None:
    work = Path(shutil.copytree(journey.work, tmp_path / "work"))
    plans = work / "preprocessed" / journey.dataset.name / "nnUNetPlans.json"
    document = json.loads(plans.read_text(encoding="utf-8"))
    document["configurations"]["3d_fullres"]["patch_size"] = [8, 8, 8]
    plans.write_text(json.dumps(document), encoding="utf-8")
    done = call("run", journey.dataset, *RUN, "--work", work)
    assert done.exit_code == 1
    assert "was trained with a plan that has changed since; delete the folder" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "--model", "none", "-i", "in", "-o", "out"), "no such model folder"),
        (("evaluate", "none", "none"), "none: no such folder"),
        (("train", "DATASET", "--config", "2d", "--fold", "0"), "create them with 'segwright plan"),
        (("preprocess", "DATASET"), "create them with 'segwright plan"),
    ],
)
def test_what_is_missing_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*(str(tiny) if word == "DATASET" else word for word in arguments))
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr


def test_predictions_do_not_go_into_the_input_folder(journey: Journey) -> None:
    images = journey.dataset / "imagesTs"
    done = call("predict", "--model", journey.model, "-i", images, "-o", images, "--device", "cpu")
    assert done.exit_code == 1
    assert "never written to" in done.stderr
