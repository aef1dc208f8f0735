"""Several models at once: the mean of their probabilities, on disk as in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segwright.core.errors import ConfigError, ModelError, ProblemReport
from segwright.data.images.image_io import read_images, read_label
from segwright.data.labels import Labels
from segwright.inference.ensemble import Ensemble, mean_labels
from segwright.inference.export.postprocessing import PostProcessing, keep_largest
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor


@pytest.fixture
def predictors(make_model: Callable[..., Path]) -> list[Predictor]:
    """A 3D and a 2D model with weights of their own."""
    models = [make_model(0, name=name, seed=seed) for seed, name in ((1, "3d_fullres"), (2, "2d"))]
    return [load_predictor(model, device="cpu", precision="fp32") for model in models]


def test_labels_are_those_of_the_mean_probabilities(predictors: list[Predictor], images: Path, tmp_path: Path) -> None:
    records = predict_files(Ensemble(predictors), images, tmp_path / "out")
    reader = predictors[0].plan.image_reader_writer
    for record in records:
        files = sorted(images.glob(f"{record.case}_*"))
        volume = read_images(files, reader)
        maps = [predictor.predict_case(volume, probabilities=True).probabilities for predictor in predictors]
        expected = predictors[0].labels.decide(np.mean(maps, axis=0), logits=False)
        np.testing.assert_array_equal(read_label(record.output, reader).array[0], expected)
    assert not [*(tmp_path / "out").glob(".*")]
    journal = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert len(journal["model"]["ensemble"]) == 2


def test_finished_cases_are_kept(predictors: list[Predictor], images: Path, tmp_path: Path) -> None:
    first = predict_files(Ensemble(predictors), images, tmp_path / "out")
    first[0].output.unlink()
    again = predict_files(Ensemble(predictors), images, tmp_path / "out")
    assert [record.kept for record in again] == [False, *[True] * (len(first) - 1)]


def test_a_bad_image_costs_its_case_alone(predictors: list[Predictor], images: Path, tmp_path: Path) -> None:
    (images / "a_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(ProblemReport, match="^a: .*cannot be read"):
        predict_files(Ensemble(predictors), images, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["b.nii.gz"]


def test_models_of_another_task_are_refused(predictors: list[Predictor]) -> None:
    predictors[1].labels = Labels.from_dataset_json({"labels": {"background": 0, "other": 1}})
    with pytest.raises(ModelError, match="have different labels; an ensemble needs models of the same task"):
        Ensemble(predictors)


def test_models_of_other_channels_are_refused(predictors: list[Predictor]) -> None:
    description = predictors[1].description
    assert description is not None
    predictors[1].description = description.model_copy(update={"channel_names": {"0": "another"}})
    with pytest.raises(ModelError, match="have different channel names; an ensemble needs"):
        Ensemble(predictors)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
    arrays = [np.random.default_rng(seed).random((3, 9, 5, 4), dtype=np.float32) for seed in (0, 1)]
    whole = mean_labels(arrays, labels)
    monkeypatch.setattr("segwright.inference.ensemble.SLAB_BYTES", 1)
    np.testing.assert_array_equal(mean_labels(arrays, labels), whole)
    np.testing.assert_array_equal(whole, np.argmax(arrays[0] + arrays[1], axis=0))


def test_what_an_ensemble_cannot_do_is_said(make_model: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    from segwright import api

    models = [make_model(0), make_model(0, name="2d")]
    with pytest.raises(ConfigError, match="several models can only predict on one device; .* --parts 2"):
        api.predict(models, images, tmp_path / "out", device="cpu,cpu")
    parts = [api.predict(models, images, tmp_path / "out", part=part, parts=2, device="cpu") for part in range(2)]
    assert [[record.case for record in part] for part in parts] == [["a"], ["b"]]
    assert len(api.predict(models, images, tmp_path / "whole", device="cpu")) == len([*images.glob("*_0000*")])


def test_an_ensemble_answers_as_a_predictor(predictors: list[Predictor], images: Path) -> None:
    volume = read_images([images / "a_0000.nii.gz"], "SimpleITKIO")
    both = Ensemble(predictors, PostProcessing.model_validate({"steps": [{"labels": 1}]}))
    found = both.predict_probabilities(volume.array[0], spacing=volume.spacing)
    maps = [each.predict_probabilities(volume.array[0], spacing=volume.spacing).probabilities for each in predictors]
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, np.mean(maps, axis=0), atol=1e-7)
    plain = predictors[0].labels.decide(found.probabilities, logits=False)
    np.testing.assert_array_equal(found.labels, keep_largest(plain, (1,)))
    assert (found.labels != plain).any()
    np.testing.assert_array_equal(both.predict(volume.array[0], spacing=volume.spacing), found.labels)


def test_mean_probabilities_are_written(predictors: list[Predictor], images: Path, tmp_path: Path) -> None:
    volume = read_images([images / "a_0000.nii.gz"], "SimpleITKIO")
    expected = np.mean([each.predict_case(volume, probabilities=True).probabilities for each in predictors], axis=0)
    both = Ensemble(predictors)
    predict_files(both, images, tmp_path / "npz", probabilities=True)
    with np.load(tmp_path / "npz" / "a.npz") as archive:
        np.testing.assert_allclose(archive["probabilities"], expected, atol=1e-6)
    document = json.loads((tmp_path / "npz" / "a.provenance.json").read_text())
    assert (len(document["model"]["ensemble"]), document["provenance"]["properties"]["reader"]) == (2, "SimpleITKIO")
    predict_files(both, images, tmp_path / "maps", probabilities=ProbabilityFormat(kind="nifti", classes=["outer"]))
    found = read_label(tmp_path / "maps" / "probabilities" / "a_outer.nii.gz", "SimpleITKIO").array[0]
    np.testing.assert_allclose(found / 255, expected[2], atol=0.5 / 255 + 1e-6)
