"""Numbers and drawings of the report."""

from __future__ import annotations

import numpy as np
import pytest

from segwright.data.labels import Labels
from segwright.evaluation.scores import Scores
from segwright.evaluation.statistics import interval
from segwright.report.charts import Group, Series, dots, lines
from segwright.report.tables import class_rows, measure_names, surface_names, surface_rows


def test_the_interval_is_that_of_a_percentile_bootstrap() -> None:
    dice = np.random.default_rng(1).uniform(0.5, 0.9, size=60)
    found = interval(dice[:, None])
    resampled = np.random.default_rng(0).choice(dice, (5000, len(dice))).mean(axis=1)
    assert found == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.004)


def test_the_interval_leaves_out_classes_that_a_case_lacks() -> None:
    dice = np.array([[0.5, np.nan], [0.7, 1.0], [0.6, np.nan], [0.6, np.nan], [0.6, 0.9]])
    found = interval(dice)
    assert found is not None
    assert 0.5 <= found[0] <= found[1] <= 0.85
    assert interval(dice[:1]) is None
    assert interval(np.full((6, 1), np.nan)) is None


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    drawn = lines("t", [Series(name="a<b", x=range(5), y=[1, 2, None, 3, 4])], x_name="epoch")
    assert drawn.count("<polyline") == 2
    assert "a&lt;b" in drawn
    assert "a<b" not in drawn


def test_charts_without_values_are_not_drawn() -> None:
    assert lines("t", [Series(name="a", x=[0, 1], y=[None, None])], x_name="epoch") == ""
    assert dots("t", [Group(name="a", values=[])], x_name="mL") == ""


def test_a_dot_for_every_value_and_a_bar_at_the_median() -> None:
    drawn = dots("t", [Group(name="a", values=[1.0, 2.0, 3.0])], x_name="mL", limits=(1.0, 3.0))
    assert drawn.count("<circle") == 3
    assert "median 2, lowest 1, n = 3" in drawn


def test_further_measures_of_a_summary_are_shown_and_gaps_are_nan() -> None:
    counts = {"FN": 1, "FP": 1, "IoU": 0.5, "TN": 1, "TP": 1, "n_pred": 2, "n_ref": 2}
    measures = {"Dice": 0.6, **counts, "HD95": 3.5, "worst_place": [1, 2]}
    case = {"metrics": {"1": measures}, "prediction_file": "a/c.nii.gz", "reference_file": "b/c.nii.gz"}
    document = {"mean": {"1": measures, "2": {"Dice": 0.4, **counts, "HD95": None}}}
    both = {"metrics": {"1": measures, "2": {"Dice": 0.4, **counts}}}
    summary = Scores.model_validate(
        {"foreground_mean": {"Dice": 0.5, **counts}, **document, "metric_per_case": [case | both] * 5}
    )
    assert measure_names(summary) == ("Dice", "IoU", "n_pred", "n_ref")
    assert surface_names(summary) == ("HD95",)
    labels = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
    first, second, mean = class_rows(summary, labels)
    surfaces = surface_rows(summary, labels)
    assert [row.name for row in surfaces] == ["a", "b", mean.name]
    assert surfaces[0].values["HD95"] == 3.5
    assert surfaces[0].intervals["HD95"] == (3.5, 3.5)
    assert surfaces[1].intervals["HD95"] is None
    assert (surfaces[0].num_cases, surfaces[1].num_cases) == (5, 0)
    assert all(np.isnan(row.values["HD95"]) for row in surfaces[1:])
    assert [row.interval for row in (first, second)] == [(0.6, 0.6), (0.4, 0.4)]
    assert mean.values["Dice"] == 0.5
