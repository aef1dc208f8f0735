"""Shared fixtures: a tiny phantom dataset and a work folder with a finished run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from journeys import RUN, Journey, call, states, watching_children
from traps import World, set_traps

from segwright.data.phantom import write_dataset

EDGE = 16


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw dataset of six training and two test cases; tests must not change it."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset007_Tiny"
    write_dataset(folder, num_training=6, num_test=2, edge=EDGE)
    return folder


@pytest.fixture(scope="session")
def journey(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    work = tmp_path_factory.mktemp("work")
    before = states(tiny)
    with pytest.MonkeyPatch.context() as patch, watching_children() as children:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.delenv(name, raising=False)
        result = call("--work", work, "run", tiny, *RUN)
    return Journey(dataset=tiny, work=work, result=result, children=tuple(children), raw_before=before)


@pytest.fixture
def world(journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A copy of the run with traps in every folder; checks at the end that no trap was imported."""
    world = World(tmp_path / "world", tmp_path / "marker")
    shutil.copytree(journey.dataset, world.data)
    shutil.copytree(journey.model, world.model)
    shutil.copytree(journey.work, world.work)
    world.out.mkdir()
    (world.root / "victim").write_text("keep me")
    world.here.mkdir()
    set_traps(world)
    monkeypatch.chdir(world.here)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield world
    assert not world.marker.exists()
    assert "evil" not in sys.modules
