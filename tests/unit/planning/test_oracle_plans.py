"""Plans against nnU-Net's own, recorded by tests/golden/plans/make_plans.py."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.data.images.image_io import choose_reader
from segwright.data.plan import Plan
from segwright.planning.planner import plan
from segwright.planning.presets import preset

ROOT = Path(__file__).parents[3]
GOLDEN = json.loads(gzip.decompress((ROOT / "tests/golden/plans/plans.json.gz").read_bytes()))
REFERENCE = ROOT.parent / "shared" / "data" / "reference"
TOLERANCE = 1e-9


def differences(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield where `found` is not `expected`; dictionaries may hold more keys, but none fewer, in the same order."""
    if isinstance(expected, Mapping):
        if list(expected) != [key for key in found if key in expected]:
            yield f"{path}: keys {list(found)}, expected {list(expected)}"
        for key in expected.keys() & found.keys():
            yield from differences(expected[key], found[key], f"{path}/{key}")
    elif isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            yield f"{path}: {found}, expected {expected}"
        else:
            for index, (left, right) in enumerate(zip(expected, found, strict=True)):
                yield from differences(left, right, f"{path}[{index}]")
    elif type(expected) is not type(found) or (
        abs(found - expected) > TOLERANCE * max(1.0, abs(expected))
        if isinstance(expected, float)
        else found != expected
    ):
        yield f"{path}: {found!r}, expected {expected!r}"


def planned(dataset: str, run: Mapping[str, Any]) -> Plan:
    inputs = GOLDEN["datasets"][dataset]
    description = DatasetDescription.model_validate(inputs["dataset_json"])
    return plan(
        Fingerprint.model_validate(inputs["fingerprint"]),
        description,
        dataset_name=dataset,
        reader=choose_reader(description.file_ending, None, description.overwrite_image_reader_writer),
        preset=preset(run["preset"], run["resampling"]),
        gpu_memory_gb=run.get("gpu_memory"),
        spacing=tuple(run["spacing"]) if "spacing" in run else None,
        plans_name=run.get("plans_name"),
    )


def run_id(entry: Mapping[str, Any]) -> str:
    return "-".join([entry["dataset"][11:], *(str(value) for value in entry["run"].values())])


@pytest.mark.parametrize("entry", GOLDEN["plans"], ids=run_id)
def test_every_key_of_nnunet_has_its_value(entry: Mapping[str, Any]) -> None:
    found = json.loads(json.dumps(planned(entry["dataset"], entry["run"]).to_json()))
    assert list(differences(entry["plan"], found)) == []
    assert list(found["configurations"]) == list(entry["plan"]["configurations"])
    assert found.keys() - entry["plan"].keys() == {"segwright"}


@pytest.mark.parametrize("entry", GOLDEN["plans"][::11], ids=run_id)
def test_nnunet_plans_survive_a_round_trip(entry: Mapping[str, Any], tmp_path: Path) -> None:
    document = {**entry["plan"], "something_of_yours": [1, {"a": None}]}
    Plan.from_json(document).save(tmp_path / "plans.json")
    assert json.loads((tmp_path / "plans.json").read_text()) == document
    assert Plan.load(tmp_path / "plans.json") == Plan.from_json(document)


@pytest.mark.parametrize("entry", GOLDEN["plans"], ids=run_id)
def test_all_planned_configurations_are_valid(entry: Mapping[str, Any]) -> None:
    own = planned(entry["dataset"], entry["run"])
    for name in own.configuration_names:
        assert own.configuration(name).dims == (2 if name == "2d" else 3)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the recorded Hippocampus run is not here")
def test_hippocampus_plan_is_the_recorded_one() -> None:
    expected = json.loads((REFERENCE / "nnUNetPlans.json").read_text())
    document = json.loads((REFERENCE.parent / "Dataset004_Hippocampus" / "dataset.json").read_text())
    found = plan(
        Fingerprint.load(REFERENCE / "dataset_fingerprint.json"),
        DatasetDescription.model_validate(document),
        dataset_name="Dataset004_Hippocampus",
        reader=expected["image_reader_writer"],
        preset=preset("default"),
    )
    assert list(differences(expected, found.to_json())) == []
