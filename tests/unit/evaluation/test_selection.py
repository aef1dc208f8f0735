"""Which candidate wins: as nnU-Net finds it, ties, margins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segwright.core.errors import ModelError
from segwright.data.images.image_io import write_labels
from segwright.data.labels import Labels
from segwright.evaluation.postprocessing import determine
from segwright.evaluation.scores import CaseScores, Scores, evaluate_case, evaluate_files
from segwright.evaluation.selection import Candidate, Summary, choose, ensemble_name
from segwright.inference.ensemble import mean_labels

GOLDENS = sorted((Path(__file__).parents[2] / "golden" / "selection").glob("selection_*.npz"))
STEPS = 1024  # of the stored probabilities
READER = "SimpleITKIO"
GEOMETRY = {
    "spacing": [2.0, 1.0, 1.0],
    "geometry": {"spacing": [1.0, 1.0, 2.0], "origin": [0.0] * 3, "direction": np.eye(3).ravel().tolist()},
}
LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1}})


def write(folder: Path, arrays: dict[str, Any]) -> dict[str, Path]:
    folder.mkdir()
    for case, array in arrays.items():
        write_labels(array, folder / f"{case}.nii.gz", GEOMETRY, READER)
    return {case: folder / f"{case}.nii.gz" for case in arrays}


@pytest.mark.parametrize("file", GOLDENS, ids=lambda file: file.stem.removeprefix("selection_"))
def test_winner_and_postprocessing_are_those_of_nnunet(file: Path, tmp_path: Path) -> None:
    golden = np.load(file)
    labels = Labels.from_dataset_json(json.loads(str(golden["dataset"])))
    theirs = json.loads(str(golden["found"]))
    cases = sorted(key.split("/")[1] for key in golden if key.startswith("reference/"))
    references = write(tmp_path / "references", {case: golden[f"reference/{case}"] for case in cases})
    first, second = ("nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    maps = {
        name: {case: golden[f"probabilities/{name.split('__')[-1]}/{case}"] / np.float32(STEPS) for case in cases}
        for name in (first, second)
    }
    candidates, files = [], {}
    for names in ((first,), (second,), (first, second)):
        name = names[0] if len(names) == 1 else ensemble_name(first, second, (0, 2))
        predicted = {case: mean_labels([maps[member][case] for member in names], labels) for case in cases}
        files[name] = write(tmp_path / name, predicted)
        pairs = [(references[case], files[name][case]) for case in cases]
        candidates.append(
            Candidate(name=name, members=names, scores=evaluate_files(pairs, labels=labels, reader=READER))
        )
    selection = choose(candidates, (0, 2))
    assert {each.name: each.dice for each in candidates} == pytest.approx(theirs["all_results"], abs=1e-12)
    expected = [each["configuration"] for each in theirs["selected_model_or_models"]]
    assert [name.split("__")[-1] for name in selection.winner.members] == expected
    assert selection.winner.dice == pytest.approx(theirs["result_on_crossval_pre_pp"], abs=1e-12)
    pairs = [(references[case], files[selection.winner.name][case]) for case in cases]
    found = determine(pairs, labels=labels, reader=READER).processing
    steps = [each["labels_or_regions"] for each in json.loads(str(golden["decided"]))["postprocessing_kwargs"]]
    assert [list(step.labels) for step in found.steps] == [each if isinstance(each, list) else [each] for each in steps]
    assert found.dice_after == pytest.approx(theirs["result_on_crossval_post_pp"], abs=1e-12)


def scores(dice: list[float]) -> Scores:
    """Scores of one class in cases with (about) these Dice values."""
    cases = []
    for index, value in enumerate(dice):
        reference = np.zeros(1000, np.int64)
        reference[:500] = 1
        prediction = np.roll(reference, round(500 * (1 - value)))
        metrics = evaluate_case(reference, prediction, LABELS)
        cases.append(CaseScores(metrics=metrics, prediction_file=f"p{index}", reference_file=f"r{index}"))
    return Scores.of(cases)


def candidate(name: str, dice: list[float]) -> Candidate:
    return Candidate(name=name, members=(name,), scores=scores(dice))


def test_of_equals_the_first_wins_and_the_next_is_runner_up() -> None:
    same = [0.5, 0.75, 1.0, 0.5, 0.5]
    found = choose([candidate("low", [0.5] * 5), candidate("one", same), candidate("two", same)], (0,))
    assert found.runner_up is not None
    assert (found.winner.name, found.runner_up.name, found.margin) == ("one", "two", 0)
    assert found.margin_interval == (0, 0)


def test_the_margin_is_paired_by_case() -> None:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.3, 0.9, 40)
    found = choose([candidate("worse", [*base]), candidate("better", [*(base + 0.02)])], (0, 2))
    summary = Summary.model_validate(json.loads(json.dumps(found.summary().model_dump())))
    assert summary == found.summary()
    assert summary.winner == "better"
    assert summary.margin_interval is not None
    low, high = summary.margin_interval
    # Cases differ by tenths, models by 0.02 in every case: only a paired interval excludes 0.
    assert 0.015 < low <= summary.margin <= high < 0.025
    first, second = (each.interval for each in summary.candidates)
    assert first is not None
    assert second is not None
    assert second[0] < first[1]


def test_one_candidate_has_no_margin() -> None:
    found = choose([candidate("only", [0.5, 0.6])], (0,)).summary()
    assert (found.winner, found.runner_up, found.margin, found.margin_interval) == ("only", None, None, None)
    assert found.dice == pytest.approx(0.55)


def test_nothing_to_compare_is_said() -> None:
    empty = np.zeros(4, np.int64)
    case = CaseScores(metrics=evaluate_case(empty, empty, LABELS), prediction_file="p", reference_file="r")
    with pytest.raises(ModelError, match="x: no class is in any held-out case"):
        choose([Candidate(name="x", members=("x",), scores=Scores.of([case]))], (0,))
