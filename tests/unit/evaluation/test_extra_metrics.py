"""Measures beside nnU-Net's in `summary.json`, as CSV and on the command line; paired tests between models."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import stats
from typer.testing import CliRunner

from segwright.cli.main import app
from segwright.core.errors import DatasetError
from segwright.data.labels import Labels
from segwright.evaluation.masks import class_mask
from segwright.evaluation.scores import CaseScores, ExtraMetrics, Measures, Scores, evaluate_case
from segwright.evaluation.statistics import compare, dice_table, holm, interval, measure_table

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
SPACING = (2.0, 1.0, 0.5)


def maps() -> tuple[np.ndarray, np.ndarray]:
    reference = np.zeros((6, 8, 8), dtype=np.int64)
    reference[1:3, 1:4, 1:4] = 1
    reference[5, :, :] = 3
    prediction = reference.copy()
    prediction[1:3, 1:4, 4] = 1
    prediction[5, :, :] = 1  # where nobody has annotated
    return reference, prediction


def test_volumes_and_distances_are_in_mm_and_ignored_voxels_do_not_count() -> None:
    extra = ExtraMetrics(surface=True, lesions=True, tolerances=(0.4, 0.5))
    found = evaluate_case(*maps(), LABELS, spacing=SPACING, extra=extra)
    first, second = found["1"].extra, found["2"].extra
    assert first["Volume_ref_mm3"] == 18
    assert first["Volume_error_mm3"] == 6
    assert first["HD"] == 0.5
    assert first["NSD_0.5mm"] == 1.0
    assert first["NSD_0.4mm"] < 1.0
    assert first["Lesion_F1"] == 1.0
    assert first["PQ"] == pytest.approx(18 / 24)
    assert first["Precision"] == pytest.approx(0.75)
    assert all(math.isnan(second[name]) for name in ("HD", "HD95", "ASSD", "NSD_0.4mm", "Lesion_F1", "PQ"))


def test_a_flat_image_is_measured_in_its_plane_and_has_no_volume() -> None:
    reference, prediction = np.zeros((2, 1, 20, 20), dtype=np.int64)
    reference[0, 4:14, 4:14] = 1
    prediction[0, 4:14, 4:17] = 1
    extra = ExtraMetrics(surface=True, lesions=True, tolerances=(1.0,))
    found = evaluate_case(reference, prediction, LABELS, spacing=(999.0, 1.0, 1.0), extra=extra)["1"].extra
    plane = evaluate_case(reference[0], prediction[0], LABELS, spacing=(1.0, 1.0), extra=extra)["1"].extra
    assert {name: plane[name] for name in found} == pytest.approx(found)
    assert (found["HD"], found["HD95"]) == (3.0, 3.0)
    assert found["ASSD"] == pytest.approx(54 / (36 + 42))  # over the outlines, not over every voxel
    assert not [name for name in found if name.startswith("Volume")]
    one_slice = evaluate_case(reference, prediction, LABELS, spacing=(5.0, 1.0, 1.0), extra=extra)["1"].extra
    assert (one_slice["Volume_ref_mm3"], one_slice["HD"]) == (500, 3.0)


def test_regions_and_single_labels_have_the_masks_of_isin() -> None:
    label_map = np.random.default_rng(0).integers(0, 5, (3, 4, 5))
    for key in (1, (2,), (1, 3), (1, 2, 4)):
        np.testing.assert_array_equal(class_mask(label_map, key), np.isin(label_map, key))


def measures(dice: float, **extra: float) -> Measures:
    return Measures(dice=dice, iou=dice, tp=1, fp=1, fn=1, tn=1, n_pred=2, n_ref=2, **extra)


def scores(*dices: float) -> Scores:
    return Scores.of(
        [
            CaseScores(metrics={"1": measures(dice)}, prediction_file=f"p{index}", reference_file=f"r{index}")
            for index, dice in enumerate(dices)
        ]
    )


def test_means_leave_out_what_cannot_be_measured() -> None:
    several = [measures(0.5, HD=4.0), measures(0.0, HD=math.inf), measures(0.7, HD=math.nan), measures(0.9, HD=2.0)]
    mean = Measures.mean_of(several, skip_nan=True)
    assert mean.extra["HD"] == 3.0
    assert mean.dice == pytest.approx(0.525)


def test_every_measure_has_a_table_and_an_interval() -> None:
    hd95 = [4.0, math.inf, math.nan, 2.0, 3.0, 2.5, 3.5]
    cases = [
        CaseScores(
            metrics={"1": measures(0.5, HD95=value), "2": measures(0.8)}, prediction_file="p", reference_file="r"
        )
        for value in hd95
    ]
    table = measure_table(Scores.of(cases), "HD95")
    np.testing.assert_array_equal(
        table, [[4, math.nan], *[[math.nan] * 2] * 2, *[[value, math.nan] for value in hd95[3:]]]
    )
    low, high = interval(table) or (math.nan, math.nan)
    assert 2 <= low < 3 < high <= 4
    np.testing.assert_array_equal(dice_table(Scores.of(cases)), [[0.5, 0.8]] * 7)
    np.testing.assert_array_equal(measure_table(Scores.of(cases), "n_ref"), [[2, 2]] * 7)
    assert interval(measure_table(Scores.of(cases), "NSD_7mm")) is None


def test_models_are_compared_on_common_cases() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.5, 0.8, size=20)
    second, third = first + rng.uniform(0.0, 0.05, size=20), first + rng.normal(0, 0.01, size=20)
    found = compare({"a": scores(*first), "b": scores(*second), "c": scores(*third)})
    assert [(item.first, item.second) for item in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0].p == pytest.approx(stats.wilcoxon(second - first).pvalue)
    assert found[0].difference == pytest.approx((second - first).mean())
    assert [item.p_holm for item in found] == pytest.approx(holm([item.p for item in found]))
    assert found[0].p_holm < 0.05 < found[1].p_holm
    with pytest.raises(DatasetError, match="2 scored cases in common"):
        compare({"a": scores(0.1, 0.2), "b": scores(0.1, 0.2)})


def test_equal_models_do_not_differ(caplog: pytest.LogCaptureFixture) -> None:
    assert compare({"a": scores(*[0.5] * 8), "b": scores(*[0.5] * 8)})[0].p == 1.0
    assert not caplog.records


def test_models_scored_against_other_references_or_classes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    one = scores(*[0.5] * 8)
    [case, *others] = one.metric_per_case
    larger = case.model_copy(
        update={"metrics": {key: each.model_copy(update={"n_ref": 99}) for key, each in case.metrics.items()}}
    )
    compare({"a": one, "b": Scores.of([larger, *others])})
    assert f"1 of 8 common cases of a and b have references of different size, first {case.case}" in caplog.text
    renamed = [each.model_copy(update={"metrics": {"7": each.metrics["1"]}}) for each in one.metric_per_case]
    compare({"a": one, "b": Scores.of(renamed)})
    assert "b scores 7: the means compared are not of the same classes" in caplog.text


def test_the_command_line_writes_and_compares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, size=(8, 6, 6, 6)).astype(np.uint8)
    for name, share in (("truth", 0.0), ("good", 0.02), ("bad", 0.3)):
        (tmp_path / name).mkdir()
        for index, label in enumerate(truth):
            wrong = rng.random(label.shape) < share
            sitk.WriteImage(sitk.GetImageFromArray(label ^ wrong), str(tmp_path / name / f"{index}.nii.gz"))
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "truth" / "dataset.json").write_text(json.dumps({**description, "numTraining": 8}))
    for name in ("good", "bad"):
        words = [
            "evaluate",
            tmp_path / "truth",
            tmp_path / name,
            "--surface",
            "--lesions",
            "--csv",
            tmp_path / f"{name}.csv",
        ]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.stderr
        assert "HD95" in result.stdout
    with (tmp_path / "good.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    assert {"case", "class", "Dice", "HD95", "NSD_1mm", "PQ", "Volume_error_mm3"} <= rows[0].keys()
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "bad"), str(tmp_path / "good"), "--json"])
    [found] = json.loads(result.stdout)
    assert (found["cases"], found["difference"] > 0, found["p"] < 0.05) == (8, True, True)
