"""The HTML page of augmented samples: self-contained, with drawn parameters, reproducible."""

from __future__ import annotations

import json
import re
import shutil
import sys
import weakref
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journeys import Journey, call, states

from segwright import api
from segwright.augmentation.spatial import rotation_matrix
from segwright.core.errors import ConfigError
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.data.preprocessed.previous_stage import FOLDER, StageMaps
from segwright.data.preprocessed.store import CaseStore
from segwright.report.augmentation_page import ShownSample, affine_text, render
from segwright.report.colours import legend
from segwright.training.loading.batches import BatchLoader
from segwright.workspace import Workspace


def test_the_page_shows_samples_before_and_after_and_the_drawn_parameters(journey: Journey, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    before = states(journey.preprocessed)
    options = ("--samples", "6", "-o", page, "--set", "augmentation=strong", "--seed", "3")
    result = call("--work", journey.work, "preview-augmentation", journey.dataset, *options)
    assert result.exit_code == 0, result.output
    assert str(page) in result.stdout
    text = page.read_text(encoding="utf-8")
    assert text.count("<section") == 6
    assert text.count("data:image/png;base64,") == 6 * 4
    assert "augmentation &#39;strong&#39;, seed 3" in text
    assert re.search(r"phantom_\d+, from voxel", text)
    assert {"mirror", "spatial"} & set(re.findall(r'<th scope="row">(\w+)</th>', text))
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert before == states(journey.preprocessed)


def test_the_same_seed_gives_the_same_page_and_by_default_it_lies_beside_the_cases(journey: Journey) -> None:
    workspace = Workspace.under(journey.work)
    pages = []
    for _ in range(2):
        file = api.preview_augmentation(journey.dataset, samples=3, workspace=workspace)
        pages.append(re.findall(r"base64,[^\"]+", file.read_text(encoding="utf-8")))
        assert file == journey.preprocessed / "augmentation.html"
        file.unlink()
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "3d_fulres"), "3d_fullres"),
        (("--set", "augmentation=defalt"), "did you mean 'default'"),
        (("--samples", "1000"), "expected 1 to 200"),
    ],
)
def test_a_wrong_value_is_named(journey: Journey, arguments: tuple[str, ...], message: str) -> None:
    result = call("--work", journey.work, "preview-augmentation", journey.dataset, *arguments)
    assert result.exit_code == 1
    assert message in result.output


def test_json_names_the_page(journey: Journey, tmp_path: Path) -> None:
    arguments = ("--samples", "1", "-o", tmp_path / "p.html", "--json")
    result = call("--work", journey.work, "preview-augmentation", journey.dataset, *arguments)
    assert json.loads(result.stdout) == {"page": str(tmp_path / "p.html")}


def test_more_samples_are_the_next_batches_of_the_same_training(journey: Journey, tmp_path: Path) -> None:
    """Three samples equal the first three of seven and those of the plan's batches, including forced foreground."""
    workspace, settings = Workspace.under(journey.work), {"batch_size": 2, "seed": 5}
    titles = {}
    for count in (3, 7):
        page = api.preview_augmentation(
            journey.dataset, samples=count, workspace=workspace, output=tmp_path / "p.html", settings=settings
        )
        text = page.read_text(encoding="utf-8")
        titles[count] = re.findall(r'<h2 id="sample-\d+">\d+\. (.*?)</h2>', text)
        assert "batches of 2" in text
    plan = Plan.load(workspace.plans_file(journey.dataset.name, "nnUNetPlans"))
    configuration = plan.configuration("3d_fullres")
    description = json.loads((journey.dataset / "dataset.json").read_text())
    store = CaseStore(journey.preprocessed / cases_folder_name(journey.preprocessed))
    loader = BatchLoader(
        store, store.identifiers(), patch_size=configuration.patch_size, batch_size=2, seed=5,
        labels=Labels.from_dataset_json(description),
    )  # fmt: skip
    trained_on = [draw for step in range(4) for draw in loader.draw(0, step)][:7]
    assert titles[7] == [f"{draw.identifier}, from voxel {', '.join(map(str, draw.start))}" for draw in trained_on]
    assert titles[3] == titles[7][:3]


def cases_folder_name(preprocessed: Path) -> str:
    (folder,) = (file.parent for file in preprocessed.rglob("phantom_001.json"))
    return folder.name


def test_an_output_that_is_a_folder_is_refused_with_a_remedy(journey: Journey, tmp_path: Path) -> None:
    result = call("--work", journey.work, "preview-augmentation", journey.dataset, "--samples", "1", "-o", tmp_path)
    assert result.exit_code == 1, result.output
    assert str(tmp_path) in result.output.replace("\n", "")


def test_a_fault_of_a_users_transform_ends_the_preview_with_its_name(
    journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for builder, message in (("recipe", "'broken': Broken.apply failed"), ("bare", "masked_channels")):
        options = ("--samples", "1", "-o", tmp_path / "p.html", "--set", f"augmentation=faulty:{builder}")
        result = call("--work", journey.work, "preview-augmentation", journey.dataset, *options)
        assert result.exit_code == 1, result.output
        assert message in result.output


FAULTY = """
from segwright.augmentation.recipe import build_recipe

class Broken:
    def draw(self, rng, shape):
        return {}

    def apply(self, samples, draws):
        return samples.image

def recipe(patch_size, *, masked_channels=()):
    return build_recipe("none", patch_size).insert_after("spatial", "broken", Broken())

def bare(patch_size):
    return build_recipe("none", patch_size)
"""


def test_a_second_stage_is_shown_with_its_previous_one_or_refused(journey: Journey, tmp_path: Path) -> None:
    workspace, name = Workspace.under(tmp_path / "work"), journey.dataset.name
    shutil.copytree(journey.work / "preprocessed", tmp_path / "work" / "preprocessed")
    plans = workspace.plans_file(name, "nnUNetPlans")
    document = json.loads(plans.read_text())
    full = document["configurations"]["3d_fullres"]
    document["configurations"]["3d_lowres"] = {**full, "data_identifier": "low", "next_stage": "3d_cascade_fullres"}
    document["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans.write_text(json.dumps(document))
    options: dict[str, Any] = {
        "configuration": "3d_cascade_fullres", "samples": 2, "workspace": workspace, "output": tmp_path / "p.html"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="trained on predictions of '3d_lowres', which some cases lack .*preview"):
        api.preview_augmentation(journey.dataset, **options)
    assert not (tmp_path / "p.html").exists()
    store = CaseStore(workspace.preprocessed / name / cases_folder_name(workspace.preprocessed / name))
    maps = StageMaps(
        workspace.model_folder(name, "Trainer", "nnUNetPlans", "3d_lowres") / FOLDER / "3d_cascade_fullres"
    )
    for identifier in store.identifiers():
        maps.save(identifier, np.asarray(store.load(identifier).label[...])[0].clip(0), (8, 8, 8), "x")
    text = api.preview_augmentation(journey.dataset, **options).read_text(encoding="utf-8")
    assert "previous stage: organ, augmented" in text
    assert text.count("previous stage: lesion, original") == 2 * 2  # as text and as what a screen reader says


def test_the_legend_names_the_values_of_regions_and_the_ignore_label() -> None:
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    labels = Labels.from_dataset_json({"labels": regions, "regions_class_order": [1, 2]})
    assert legend(labels) == {1: "1: whole", 2: "2: whole, core", 3: "ignore (not trained on)"}
    assert legend(Labels({"background": 0, "liver": 1})) == {1: "liver"}


def test_samples_are_drawn_one_after_the_other() -> None:
    image, label = np.zeros((1, 8, 9), np.float32), np.ones((8, 9), np.int16)
    alive: weakref.WeakSet[ShownSample] = weakref.WeakSet()
    most = []

    class Watched(ShownSample):
        __slots__ = ("__weakref__",)
        __hash__ = object.__hash__

    def samples() -> Iterator[ShownSample]:
        for number in range(20):
            sample = Watched(
                title=str(number), plain=image, plain_labels=label, augmented=image, augmented_labels=label, drawn=[]
            )
            alive.add(sample)
            most.append(len(alive))
            yield sample
            del sample

    render(
        samples(), title="t", notes=[], labels={1: "a"}, channels=["CT"], spacing=(1.0, 1.0),
        created=datetime.now(timezone.utc),
    )  # fmt: skip
    assert max(most) <= 2


def test_no_sample_is_a_config_error(journey: Journey) -> None:
    with pytest.raises(ConfigError, match="samples 0"):
        api.preview_augmentation(journey.dataset, samples=0, workspace=Workspace.under(journey.work))


def test_affines_are_told_by_angles_and_factors() -> None:
    matrix = rotation_matrix(np.radians([10.0, -20.0, 30.0])) * 1.2
    assert affine_text(matrix) == "rotation 10.0, -20.0, 30.0 degrees; scaling 1.2"
    assert affine_text(np.diag([1.0, 0.8, 1.1])) == "scaling 1, 0.8, 1.1"


def test_names_from_outside_are_escaped_and_flat_patches_are_drawn() -> None:
    image, label = np.zeros((2, 8, 9), np.float32), np.ones((8, 9), np.int16)
    evil = "<script>alert(1)</script>"
    sample = ShownSample(
        title=evil, plain=image, plain_labels=label, augmented=image, augmented_labels=label, drawn=[(evil, evil)]
    )

    text = render(
        [sample], title=evil, notes=[evil], labels={1: evil}, channels=[evil, "T2"], spacing=(1.0, 1.0),
        created=datetime.now(timezone.utc),
    )  # fmt: skip
    assert "<script" not in text
    assert text.count("data:image/png") == 6
