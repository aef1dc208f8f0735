"""Keeping the largest component: the operation, the decision as nnU-Net makes it, and the document."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from segwright.core.errors import ConfigError, ImageError, SegwrightError
from segwright.data.images.image_io import read_label, write_labels
from segwright.data.labels import Labels
from segwright.evaluation.postprocessing import ANY_GAIN, CLEAR_GAIN, MinimumGain, determine
from segwright.inference.export.postprocessing import (
    MAX_STEPS,
    NO_POSTPROCESSING,
    KeepLargest,
    PostProcessing,
    keep_largest,
    process_folder,
)

GOLDENS = sorted((Path(__file__).parents[2] / "golden" / "selection").glob("postprocessing_*.npz"))
ENDING, READER = ".nii.gz", "SimpleITKIO"
GEOMETRY = {
    "spacing": [2.0, 1.0, 1.0],
    "geometry": {"spacing": [1.0, 1.0, 2.0], "origin": [0.0] * 3, "direction": np.eye(3).ravel().tolist()},
}


def write(folder: Path, arrays: np.ndarray) -> list[Path]:
    folder.mkdir()
    files = [folder / f"case_{index}{ENDING}" for index in range(len(arrays))]
    for file, array in zip(files, arrays, strict=True):
        write_labels(array, file, GEOMETRY, READER)
    return files


@pytest.mark.parametrize("file", GOLDENS, ids=lambda file: file.stem.removeprefix("postprocessing_"))
def test_decision_and_outcome_are_those_of_nnunet(file: Path, tmp_path: Path) -> None:
    golden = np.load(file)
    references = write(tmp_path / "references", golden["references"])
    predictions = write(tmp_path / "predictions", golden["predictions"])
    labels = Labels.from_dataset_json(json.loads(str(golden["dataset"])))
    found = determine(list(zip(references, predictions, strict=True)), labels=labels, reader=READER, workers=1)
    theirs = json.loads(str(golden["decided"]))
    expected = [each["labels_or_regions"] for each in theirs["postprocessing_kwargs"]]
    steps = [step.labels for step in found.processing.steps]
    assert steps == [tuple(each) if isinstance(each, list) else (each,) for each in expected]
    for scores, key in ((found.before, "input_folder"), (found.after, "postprocessed")):
        for name, measures in theirs[key]["mean"].items():
            assert scores.mean[name].dice == pytest.approx(measures["Dice"], abs=1e-12, nan_ok=True)
    for prediction, result in zip(golden["predictions"], golden["results"], strict=True):
        np.testing.assert_array_equal(found.processing(prediction), result)
    out = tmp_path / "out"
    process_folder(found.processing, tmp_path / "predictions", out, file_ending=ENDING, reader=READER)
    for index, result in enumerate(golden["results"]):
        np.testing.assert_array_equal(read_label(out / f"case_{index}{ENDING}", READER).array[0], result)
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    assert PostProcessing.load(tmp_path / "theirs.json").steps == found.processing.steps


def test_the_goldens_differ_in_what_helps() -> None:
    kinds = set()
    for file in GOLDENS:
        theirs = json.loads(str(np.load(file)["decided"]))
        kinds.add(tuple(map(str, (each["labels_or_regions"] for each in theirs["postprocessing_kwargs"]))))
    assert {(), ("[1, 2]",), ("2",)} <= kinds


def test_the_gain_is_measured(tmp_path: Path) -> None:
    golden = np.load(next(file for file in GOLDENS if "one_label" in file.name))
    files = [write(tmp_path / name, golden[name]) for name in ("references", "predictions")]
    labels = Labels.from_dataset_json(json.loads(str(golden["dataset"])))
    found = determine(list(zip(*files, strict=True)), labels=labels, reader=READER)
    assert found.processing.gain == pytest.approx(found.after.mean_dice - found.before.mean_dice)
    assert found.processing.gain > 0
    assert [(item.name, item.accepted) for item in found.processing.decisions] == [
        ("all foreground", False),
        ("one", False),
        ("two", True),
    ]
    found.processing.save(tmp_path / "postprocessing.json")
    assert PostProcessing.load(tmp_path) == found.processing


@pytest.mark.parametrize(
    ("floor", "is_taken"),
    [
        (ANY_GAIN, True),
        (MinimumGain(gain=0.001, cases=2), True),
        (MinimumGain(gain=0.5, cases=2), False),
        (MinimumGain(gain=0.001, cases=3), False),
        (CLEAR_GAIN, False),
    ],
)
def test_a_small_gain_or_one_on_few_cases_is_not_taken(tmp_path: Path, floor: MinimumGain, is_taken: bool) -> None:
    truth = np.zeros((2, 6, 6, 6), np.uint8)
    truth[:, :3] = 1
    predicted = truth.copy()
    predicted[:, 5, 5, 5] = 1
    files = [write(tmp_path / name, arrays) for name, arrays in (("truth", truth), ("predicted", predicted))]
    labels = Labels.from_dataset_json({"labels": {"background": 0, "a": 1}})
    processing = determine(list(zip(*files, strict=True)), labels=labels, reader=READER, minimum=floor).processing
    assert bool(processing.steps) == is_taken
    assert [decision.is_unclear for decision in processing.decisions] == [not is_taken]
    assert processing.decisions[0].after > processing.decisions[0].before


def test_corners_join_and_equals_stay() -> None:
    label_map = np.zeros((3, 6, 6), np.uint8)
    label_map[0, 0, 0] = label_map[1, 1, 1] = 2  # one component, by a corner
    label_map[2, 4:6, 4] = 1  # as large
    label_map[0, 5, 0] = 1  # smaller
    label_map[0, 0, 5] = 3  # another label
    kept = keep_largest(label_map, (1, 2))
    assert kept[0, 5, 0] == 0
    kept[0, 5, 0] = 1
    np.testing.assert_array_equal(kept, label_map)
    assert label_map[0, 5, 0] == 1


def test_both_libraries_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    shapes = [(5, 9, 8), (1, 9, 8), (6, 1, 7), (4, 9, 1), (1, 1, 9)]
    maps = [(generator.random(shape) < 0.3).astype(np.uint8) for shape in shapes for _ in range(8)]
    expected = [keep_largest(each, (1,)) for each in maps]
    calls = []

    def connected_components(mask: Any, *, connectivity: int) -> Any:
        calls.append(connectivity)
        if min(mask.shape) == 1:
            raise RuntimeError("not enough provisional labels")  # as cc3d 4.1.1 does on some thin masks
        return ndimage.label(mask, ndimage.generate_binary_structure(3, 3))[0].astype(np.uint16)

    module = SimpleNamespace(connected_components=connected_components, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cc3d", module)
    for each, wanted in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(keep_largest(each, (1,)), wanted)
    assert set(calls) == {26}


def test_nothing_to_do_changes_nothing() -> None:
    label_map = np.zeros((2, 3, 3), np.uint8)
    assert NO_POSTPROCESSING(label_map) is label_map
    assert KeepLargest(labels=(1,))(label_map) is label_map


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("postprocessing.pkl", "", "reading a pickle can run any code.* postprocessing.json beside it"),
        ("a.json", '{"steps": [{"labels": [0]}]}', r"steps.0.labels.0: Input should be greater than 0"),
        ("a.json", '{"schema_version": 2, "steps": []}', "schema_version"),
        ("a.json", '{"foreground_mean": {}}', "holds no post-processing: expected 'steps', or nnU-Net's"),
        ("a.json", '{"postprocessing_fns": ["os.system"], "postprocessing_kwargs": [{}]}', "unknown step 'os.system'"),
        ("a.json", '{"postprocessing_fns": [], "postprocessing_kwargs": [{}]}', "as many postprocessing_kwargs"),
    ],
)
def test_other_documents_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        PostProcessing.load(tmp_path / name)


def test_more_steps_than_end_in_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "postprocessing.json"
    path.write_text(json.dumps({"schema_version": 1, "steps": [{"labels": [1]}] * (MAX_STEPS + 1)}))

    with pytest.raises(ConfigError, match=r"postprocessing\.json: .*steps: .*at most 10000 items"):
        PostProcessing.load(path)


def test_a_folder_without_maps_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegwrightError, match="no label map ends in .nii.gz"):
        process_folder(NO_POSTPROCESSING, tmp_path, tmp_path, file_ending=ENDING, reader=READER)


def test_a_value_below_0_is_refused_instead_of_wrapped(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.full((4, 4, 4), -5, dtype=np.int16))
    SimpleITK.WriteImage(image, str(tmp_path / f"case{ENDING}"))
    with pytest.raises(ImageError, match="expected integers from 0"):
        process_folder(NO_POSTPROCESSING, tmp_path, tmp_path / "out", file_ending=ENDING, reader=READER)
    assert not list((tmp_path / "out").glob("*"))
