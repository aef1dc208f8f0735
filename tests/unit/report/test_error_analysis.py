"""What loses most: which classes, and cases of which size, contrast and position."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from segwright.data.labels import Labels
from segwright.evaluation.scores import CaseScores, Measures, Scores
from segwright.report.case_errors import UNKNOWN_ENDS, CaseErrors, measure_errors
from segwright.report.case_images import CaseImages
from segwright.report.error_analysis import MIN_CASES, ErrorAnalysis, analyse_errors

LABELS = Labels({"background": 0, "organ": 1, "lesion": 2})


def measures(dice: float, size: float) -> Measures:
    counts = {"FN": 0, "FP": 0, "IoU": 0.5, "TN": 1, "TP": 1, "n_pred": size}
    return Measures.model_validate({"Dice": dice, "n_ref": size, **counts})


def scores_of(dice: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], keys: Sequence[str]) -> Scores:
    """Return scores of cases; `dice` and `sizes` have a row for each case and a column for each class."""
    return Scores.of(
        [
            CaseScores(
                metrics={key: measures(*pair) for key, pair in zip(keys, zip(row, volumes, strict=True), strict=True)},
                prediction_file=f"p/{index}.nii.gz",
                reference_file=f"r/{index}.nii.gz",
            )
            for index, (row, volumes) in enumerate(zip(dice, sizes, strict=True))
        ]
    )


def analysed(
    dice: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], measured: dict[str, CaseErrors] | None = None
) -> ErrorAnalysis:
    found = analyse_errors(scores_of(dice, sizes, ("1", "2")), LABELS, measured or {})
    assert found is not None
    return found


def related_to_size(count: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return Dice and sizes of cases; the Dice of the lesion rises with its size."""
    random = np.random.default_rng(0)
    sizes = random.uniform(100, 1000, count)
    lesion = 0.4 + sizes / 2500 + random.normal(0, 0.02, count)
    organ = random.uniform(0.90, 0.95, count)
    return np.stack([organ, lesion], axis=1).tolist(), np.stack([random.permutation(sizes), sizes], axis=1).tolist()


def test_the_class_that_loses_most_comes_first() -> None:
    found = analysed(*related_to_size(20))
    assert [each.name for each in found.classes] == ["lesion", "organ"]
    assert found.classes[0].worst_in == 20
    assert sum(each.share for each in found.classes) == pytest.approx(1)
    assert found.sentences[0].startswith("lesion loses most: 0.3")


def test_a_relation_with_size_is_said_from_ten_cases_on() -> None:
    (sentence,) = [each for each in analysed(*related_to_size(MIN_CASES)).sentences if "annotate" in each]
    assert sentence.startswith("Dice of lesion rises with its size (rank correlation 0.")
    assert "in 10 cases): annotate more cases in which it is small" in sentence
    few = analysed(*related_to_size(MIN_CASES - 1))
    assert not any(each.relations for each in few.classes)
    assert few.sentences[-1].startswith("9 cases cannot show whether Dice depends on size")


def test_chance_is_hardly_ever_reported() -> None:
    random = np.random.default_rng(0)
    claims = 0
    for _ in range(20):
        dice, sizes = random.uniform(0.5, 0.9, (12, 2)), random.uniform(1, 100, (12, 2))
        measured = {
            f"{index}.nii.gz": CaseErrors(
                thirds={key: tuple(random.uniform(0.5, 0.9, 3)) for key in ("1", "2")},
                ends=UNKNOWN_ENDS,
                contrast={key: float(random.uniform(0, 3)) for key in ("1", "2")},
            )
            for index in range(12)
        }
        claims += any("annotate" in each for each in analysed(dice.tolist(), sizes.tolist(), measured).sentences)
    assert claims <= 2


@pytest.mark.parametrize(("count", "words"), [(2, "2 scored cases say little"), (12, "is not certain")])
def test_an_order_that_cases_do_not_decide_is_called_uncertain(count: int, words: str) -> None:
    dice = [[0.8, 0.6] if index % 2 else [0.6, 0.79] for index in range(count)]
    assert any(words in each for each in analysed(dice, [[10.0, 10.0]] * count).sentences)


def test_missed_and_invented_structures_are_counted() -> None:
    dice = [[0.9, 0.0], [0.9, 0.0], [0.9, 0.5], [0.9, math.nan]]
    sizes = [[9.0, 5.0], [9.0, 0.0], [9.0, 5.0], [9.0, 0.0]]
    found = analysed(dice, sizes)
    assert "nothing of lesion is found in 1 of 2 cases that have it" in found.sentences
    assert "lesion is predicted in 1 of 2 cases that do not have it" in found.sentences
    assert found.classes[0].cases == 3


def test_nothing_is_said_where_nothing_is_lost_or_scored() -> None:
    assert analyse_errors(scores_of([[1.0]], [[5.0]], ("1",)), LABELS, {}) is None
    assert analyse_errors(scores_of([[math.nan]], [[0.0]], ("1",)), LABELS, {}) is None


def test_the_worse_end_and_low_contrast_are_named() -> None:
    random = np.random.default_rng(0)
    contrast = random.uniform(0, 3, 20)
    dice = np.stack([np.full(20, 0.95), 0.5 + contrast / 10], axis=1)
    measured = {
        f"{index}.nii.gz": CaseErrors(
            thirds={"2": (0.4 + random.uniform(0, 0.1), 0.8, 0.8 + random.uniform(0, 0.01))},
            ends=("lower", "upper"),
            contrast={"2": float(value)},
        )
        for index, value in enumerate(contrast)
    }
    found = analysed(dice.tolist(), [[5.0, 7.0]] * 20, measured)
    assert any("rises with its contrast" in each and "low in contrast" in each for each in found.sentences)
    assert any("in the lower third of its slices, 0.80 in the middle (20 cases)" in each for each in found.sentences)
    assert not any("upper" in each for each in found.sentences)


def case(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], directions: str = "SPL", **more: Any) -> CaseImages:
    return CaseImages(
        identifier="c",
        image=more.get("image", np.zeros((1, *truth.shape), dtype=np.float32)),
        reference=truth.astype(np.int32),
        prediction=predicted.astype(np.int32),
        spacing=(1.0, 1.0, 1.0),
        directions=directions,
        is_raw=True,
    )


def column(value: int = 1) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return true and predicted labels of a bar along axis 0; the prediction lacks a third and a half."""
    truth = np.zeros((12, 6, 6), dtype=np.int32)
    truth[2:11, 2:4, 2:4] = value
    predicted = truth.copy()
    predicted[:5] = 0
    predicted[8:11, 2] = 0
    return truth, predicted


@pytest.mark.parametrize(
    ("directions", "ends", "is_turned"),
    [("SPL", ("lower", "upper"), False), ("IPL", ("lower", "upper"), True), ("", UNKNOWN_ENDS, False)],
)
def test_thirds_follow_the_direction_of_the_slices(directions: str, ends: tuple[str, str], is_turned: bool) -> None:
    found = measure_errors(case(*column(), directions), ["1", "2"], 0, None)
    expected = (0.0, 1.0, 2 / 3)
    assert found.ends == ends
    assert found.thirds["1"] == pytest.approx(expected[::-1] if is_turned else expected)
    assert "2" not in found.thirds


def test_thirds_along_another_axis_of_regions_and_without_ignored_voxels() -> None:
    truth, predicted = column(value=2)
    truth, predicted = np.moveaxis(truth, 0, 2), np.moveaxis(predicted, 0, 2)
    truth[..., :2] = 3
    predicted[..., :2] = 2  # not scored there
    found = measure_errors(case(truth, predicted), ["(1, 2)"], 2, 3)
    assert found.thirds["(1, 2)"] == pytest.approx((0.0, 1.0, 2 / 3))


def test_a_prediction_beyond_the_structure_counts_at_its_end() -> None:
    truth, _ = column()
    predicted = truth.copy()
    predicted[11:] = predicted[9]
    low, middle, high = measure_errors(case(truth, predicted), ["1"], 0, None).thirds["1"]
    assert (low, middle) == (1, 1)
    assert high == pytest.approx(2 * 12 / (12 + 16))


def test_flat_images_have_no_thirds() -> None:
    truth = np.ones((1, 6, 6), dtype=np.int32)
    assert measure_errors(case(truth, truth), ["1"], 0, None).thirds == {}


@pytest.mark.parametrize("size", [16, 100])
def test_contrast_is_the_difference_in_standard_deviations(size: int) -> None:
    truth = np.zeros((size, size, size), dtype=np.int32)
    truth[2:-2, 2:-2, 2:-2] = 1
    random = np.random.default_rng(0)
    image = random.normal(0, 2.0, (2, *truth.shape)).astype(np.float32)
    image[1, truth == 1] += 6
    found = measure_errors(case(truth, truth, image=image), ["1", "2"], 0, None)
    assert found.contrast["1"] == pytest.approx(3, abs=0.2)
    assert "2" not in found.contrast


def test_an_image_without_spread_has_no_contrast() -> None:
    truth, predicted = column()
    assert measure_errors(case(truth, predicted), ["1"], 0, None).contrast == {}


def test_regions_and_slices_of_other_axes_are_analysed() -> None:
    labels = Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2))
    scores = scores_of([[0.9, 0.5]] * 3, [[9.0, 4.0]] * 3, ("(1, 2)", "2"))
    errors = CaseErrors(thirds={"2": (0.1, 0.2, 0.3)}, ends=("lower", "upper"), contrast={})
    other = dataclasses.replace(errors, ends=("right", "left"))
    found = analyse_errors(scores, labels, {"0.nii.gz": errors, "1.nii.gz": errors, "2.nii.gz": other})
    assert found is not None
    assert [each.name for each in found.classes] == ["core", "whole"]
    assert found.ends == ("lower", "upper")
    assert len(found.classes[0].thirds) == 2
