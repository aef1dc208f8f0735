"""The examples in the docstrings of all public functions run, one after the other, in a folder with what they name."""

from __future__ import annotations

import doctest
import inspect
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journeys import Journey

import segwright

PIPELINE = (
    *("check", "fingerprint", "plan", "plan_from_fingerprint", "preprocess", "preview_augmentation", "run", "train"),
    *("accumulate_crossval", "select", "load_model", "predict", "ensemble", "evaluate", "determine_postprocessing"),
    *("apply_postprocessing", "overlay", "write_report", "install", "convert", "init", "doctor", "tune_process"),
)
"""Functions in an order in which each finds what it needs; `demo` takes minutes and has a test of its own."""

SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
MODEL = "Trainer__nnUNetPlans__3d_fullres"


def example_of(name: str) -> list[doctest.Example]:
    """Return the statements of a docstring, without the mark that keeps them out of the ordinary doctests."""
    text = (inspect.getdoc(getattr(segwright, name)) or "").replace("# doctest: +SKIP", "")
    return doctest.DocTestParser().get_examples(text)


@pytest.fixture
def here(tiny: Path, journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    dataset = tmp_path / "raw" / "Dataset004_Hippocampus"
    shutil.copytree(tiny, dataset)
    for name in ("imagesTr", "labelsTr"):
        shutil.copytree(tiny / name, tmp_path / "scans" / name.removesuffix("Tr"))
    shutil.copytree(tiny / "imagesTs", tmp_path / "images")
    shutil.copytree(tiny / "labelsTs", tmp_path / "references")
    shutil.copy(tiny / "dataset.json", tmp_path)
    shutil.copytree(tiny, tmp_path / "Dataset004_X")
    preprocessed = journey.preprocessed
    shutil.copy(preprocessed / "dataset_fingerprint.json", tmp_path)
    shutil.copytree(journey.model, tmp_path / MODEL)
    shutil.copytree(journey.work / "results" / tiny.name / "model", tmp_path / "model")
    shutil.make_archive(str(tmp_path / "Liver"), "zip", journey.model.parent, journey.model.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_examples_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {name: getattr(segwright, name) for name in segwright.__all__}
    functions["train"] = partial(segwright.train, name="another", settings=SHORT, device="cpu")
    namespace: dict[str, Any] = {**functions, "segwright": segwright, "Path": Path, "array": np.zeros((16, 16, 16))}
    for name in PIPELINE:
        for example in example_of(name):
            source = example.source.replace('"10m"', '"3s", configurations=["3d_fullres"], device="cpu"')
            exec(compile(source, f"example of segwright.{name}", "exec"), namespace)
        if name == "predict":
            shutil.copytree("predicted", "predicted-by-another")
            shutil.copytree("predicted", "predictions")


def test_every_public_function_has_an_example() -> None:
    functions = {name for name in segwright.__all__ if inspect.isfunction(getattr(segwright, name))}
    assert not [name for name in functions if not example_of(name)]
    assert functions - {"demo"} == set(PIPELINE)
