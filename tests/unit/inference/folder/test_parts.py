"""Parts of a prediction, one after the other or at once, leave what one run over all cases leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from segwright.core.errors import ProblemReport, WorkspaceError
from segwright.core.files.locks import LockHeldError, locked
from segwright.inference.ensemble import Ensemble
from segwright.inference.folder import one_model
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.prediction import CaseRecord
from segwright.inference.predictor import Predictor

PARTS = 3


@pytest.fixture
def predictor(make_model: Callable[..., Path]) -> Predictor:
    return load_predictor(make_model(0), device="cpu", precision="fp32")


@pytest.fixture(params=["one", "ensemble"])
def model(request: pytest.FixtureRequest, predictor: Predictor, make_model: Callable[..., Path]) -> Any:
    if request.param == "one":
        return predictor
    return Ensemble([predictor, load_predictor(make_model(0, name="2d"), device="cpu", precision="fp32")])


@pytest.fixture
def images(images: Path) -> Path:
    """Five cases: three parts are not of equal length."""
    for case in "cde":
        shutil.copy(images / "a_0000.nii.gz", images / f"{case}_0000.nii.gz")
    return images


def read(folder: Path, name: str = "prediction.json") -> Any:
    return json.loads((folder / name).read_text())


def lasting(folder: Path) -> Any:
    """Return the log without what differs from run to run: times and memory."""
    document = read(folder)
    for name in ("peak_memory_mib", "checksum"):
        del document[name]
    for entry in document["cases"].values():
        for name in [key for key in entry if key.endswith("_s")]:
            del entry[name]
        entry["files"] = {name: [state[0], *state[2:]] for name, state in entry["files"].items()}
    return document


def predict_part(
    model: Any, images: Path, out: Path, part: int, parts: int = PARTS, **options: Any
) -> list[CaseRecord]:
    return predict_files(model, images, out, part=part, parts=parts, **options)


@pytest.mark.parametrize("options", [{}, {"probabilities": True, "uncertainty": True}], ids=["plain", "all files"])
def test_the_last_part_joins_the_logs_into_that_of_one_run(
    model: Any, images: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    predict_files(model, images, tmp_path / "whole", **options)
    out = tmp_path / "out"
    for part in (2, 0):
        predict_part(model, images, out, part, **options)
        assert not (out / "prediction.json").exists()
    predict_part(model, images, out, 1, **options)
    assert lasting(out) == lasting(tmp_path / "whole")
    assert list(read(out, "prediction_part_0_of_3.json")["cases"]) == ["a", "d"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert all(record.kept for record in predict_files(model, images, out, **options))
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")} == before


def test_parts_at_once_lose_no_entry(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(PARTS) as pool:
        records = pool.map(lambda part: predict_part(predictor, images, tmp_path, part), range(PARTS))
    assert sorted(record.case for each in records for record in each) == list("abcde")
    assert list(read(tmp_path)["cases"]) == list("abcde")
    assert not [*tmp_path.glob(".*")]


def test_a_killed_join_is_made_up_for_by_any_part(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(PARTS):
        predict_part(predictor, images, tmp_path, part)
    (tmp_path / "prediction.json").unlink()
    assert all(record.kept for record in predict_part(predictor, images, tmp_path, 1))
    assert list(read(tmp_path)["cases"]) == list("abcde")


def test_another_number_of_parts_goes_on_and_joins(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    predict_part(predictor, images, tmp_path, 0)  # a, d
    kept = [[record.kept for record in predict_part(predictor, images, tmp_path, part, parts=2)] for part in (0, 1)]
    assert kept == [[True, False, False], [False, True]]  # a, c, e; b, d
    assert list(read(tmp_path)["cases"]) == list("abcde")


def test_a_part_that_is_predicted_again_replaces_its_entries_alone(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    predict_files(predictor, images, tmp_path)
    before = read(tmp_path)["cases"]
    predict_part(predictor, images, tmp_path, 0, overwrite=True)
    after = read(tmp_path)["cases"]
    assert [case for case in before if before[case] != after[case]] == ["a", "d"]
    assert after["a"] == read(tmp_path, "prediction_part_0_of_3.json")["cases"]["a"]


def test_a_log_names_the_devices_of_all_parts(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    for part in range(PARTS):
        predict_part(predictor, images, tmp_path, part, others=[predictor] * part)
    assert read(tmp_path)["options"]["devices"] == ["cpu"]
    path = tmp_path / "prediction_part_0_of_3.json"
    document = read(tmp_path, path.name)
    document["options"]["devices"] = ["cuda:1"]
    del document["checksum"]
    path.write_text(json.dumps(document))
    predict_part(predictor, images, tmp_path, 2)
    assert read(tmp_path)["options"]["devices"] == ["cpu", "cuda:1"]


def test_a_part_with_other_files_is_not_joined_and_named(
    predictor: Predictor, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict_part(predictor, images, tmp_path, 0, parts=2)
    predict_part(predictor, images, tmp_path, 1, parts=2, uncertainty=True)
    assert not (tmp_path / "prediction.json").exists()
    assert "prediction.json: not written, since a.nii.gz and 2 more lack files that this part has" in caplog.text
    predict_part(predictor, images, tmp_path, 0, parts=2, uncertainty=True)
    assert read(tmp_path)["options"]["uncertainty"] is True


def test_a_part_of_another_model_is_named_at_start_and_end_and_not_joined(
    predictor: Predictor,
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make_model: Callable[..., Path],
) -> None:
    predict_part(predictor, images, tmp_path, 0, parts=2)
    other = load_predictor(make_model(0), device="cpu", precision="fp32", mirroring=False)
    predict_part(other, images, tmp_path, 1, parts=2)
    assert "predicted a.nii.gz and 2 more; the logs of the parts will not be joined" in caplog.text
    assert "prediction.json: not written, since another model, or this one with other options, predicted" in caplog.text
    assert not (tmp_path / "prediction.json").exists()
    with pytest.raises(WorkspaceError, match="predictions of another model"):
        predict_part(other, images, tmp_path, 0, parts=2)
    predict_part(other, images, tmp_path, 0, parts=2, overwrite=True)
    assert {*read(tmp_path)["cases"]} == {*"abcde"}
    assert read(tmp_path)["model"]["mirror_axes"] == []


def test_the_log_of_another_model_stays_until_all_cases_are_replaced(
    predictor: Predictor, images: Path, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    predict_files(predictor, images, tmp_path)
    other = load_predictor(make_model(0), device="cpu", precision="fp32", mirroring=False)
    before = read(tmp_path)
    predict_part(other, images, tmp_path, 0, parts=2, overwrite=True)
    assert read(tmp_path) == before
    predict_part(other, images, tmp_path, 1, parts=2, overwrite=True)
    assert read(tmp_path)["model"]["mirror_axes"] == []


def test_a_case_that_fails_leaves_the_logs_of_the_parts(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    good = (images / "b_0000.nii.gz").read_bytes()
    (images / "b_0000.nii.gz").write_bytes(b"broken")
    for part in (0, 2):
        predict_part(predictor, images, tmp_path, part)
    with pytest.raises(ProblemReport, match="^b: "):
        predict_part(predictor, images, tmp_path, 1)
    assert list(read(tmp_path, "prediction_part_1_of_3.json")["cases"]) == ["e"]
    assert not (tmp_path / "prediction.json").exists()
    (images / "b_0000.nii.gz").write_bytes(good)
    assert [record.kept for record in predict_part(predictor, images, tmp_path, 1)] == [False, True]
    assert list(read(tmp_path)["cases"]) == list("abcde")


def test_a_damaged_log_of_another_part_does_not_fail_one_that_is_predicted_again(
    predictor: Predictor, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "prediction_part_0_of_2.json").write_text("{bad")
    predict_part(predictor, images, tmp_path, 1, parts=2, overwrite=True)
    assert "prediction.json: not written (" in caplog.text
    predict_part(predictor, images, tmp_path, 0, parts=2, overwrite=True)
    assert list(read(tmp_path)["cases"]) == list("abcde")


@pytest.mark.parametrize(
    ("held", "part", "parts"),
    [("prediction", 0, 1), ("prediction", 1, 2), ("prediction_part_1_of_4", 0, 1), ("prediction_part_1_of_4", 1, 2)],
)
def test_runs_with_common_cases_wait_for_each_other(
    predictor: Predictor, images: Path, tmp_path: Path, held: str, part: int, parts: int
) -> None:
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as pool:
        with locked(out / f".{held}.json.lock", "predicting"):
            second = pool.submit(predict_part, predictor, images, out, part, parts)
            with pytest.raises(TimeoutError):
                second.result(0.3)
            with pytest.raises(LockHeldError, match="^predicting is under way on .*; run this again when"):
                predict_part(predictor, images, out, part, parts, wait=False)
            assert not (out / "a.nii.gz").exists()
        assert second.result(60)
    assert not [*out.glob(".*")]


def test_parts_without_common_cases_do_not_wait(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    with locked(tmp_path / ".prediction_part_1_of_4.json.lock", "predicting"):
        assert predict_part(predictor, images, tmp_path, 0, parts=2, wait=False)


def test_of_a_whole_run_and_parts_at_once_each_case_is_predicted_by_one(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[str] = []
    save_labels = one_model.save_labels

    def count(labels: Any, path: Path, *rest: Any) -> None:
        predicted.append(path.name)
        save_labels(labels, path, *rest)

    monkeypatch.setattr(one_model, "save_labels", count)
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(predict_part, predictor, images, tmp_path, *each) for each in ((0, 2), (0, 1), (1, 2))]
        for run in runs:
            run.result(120)
    assert sorted(predicted) == [f"{case}.nii.gz" for case in "abcde"]
    assert list(read(tmp_path)["cases"]) == list("abcde")
