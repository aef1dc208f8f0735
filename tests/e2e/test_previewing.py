"""The page of augmented samples: complete in itself, with what was drawn, the same for the same seed."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from journeys import Journey, call, states

from segwright import api
from segwright.augmentation.spatial import rotation_matrix
from segwright.core.errors import ConfigError
from segwright.report.augmentation_page import ShownSample, affine_text, render
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
