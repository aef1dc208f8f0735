"""Real scans against what is known of the training cases: ours, and those of nnU-Net's models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from segwright.data.images.image_io import Volume, read_images
from segwright.data.outliers import TrainingRange, measure
from segwright.data.plan import Plan
from segwright.inference.reliability.model import training_range

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
SCANS = DATA / "example_scans"
MODEL = DATA / "reference" / "nnUNetTrainerShort__nnUNetPlans__3d_fullres"
SETS = ("Dataset004_Hippocampus", "Dataset303_Acdc", "Dataset307_SpinalCord")

pytestmark = pytest.mark.skipif(not SCANS.is_dir(), reason="the example scans are not here")


def scan(name: str) -> Volume:
    return read_images([SCANS / f"{name}.nii.gz"], "SimpleITKIO")


def some_of(dataset: str, count: int) -> list[Volume]:
    files = sorted((DATA / dataset / "imagesTr").glob("*_0000.nii.gz"))
    return [read_images([file], "SimpleITKIO") for file in random.Random(0).sample(files, min(count, len(files)))]


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("cases", [2, 5, 12])
def test_the_ct_and_the_mr_are_unlike_a_few_cases_of_another_set(dataset: str, cases: int) -> None:
    known = TrainingRange.of([measure(each) for each in some_of(dataset, cases)])
    assert known.findings(scan("example_ct"))
    assert known.findings(scan("example_ct_sm"))
    assert known.findings(scan("example_mr_sm"))


@pytest.mark.parametrize("dataset", SETS[:2])
def test_held_out_cases_are_not_flagged(dataset: str) -> None:
    volumes = some_of(dataset, 40)
    known = TrainingRange.of([measure(each) for each in volumes[:20]])
    flagged = [index for index, volume in enumerate(volumes[20:]) if known.findings(volume)]
    assert len(flagged) <= 1


@pytest.mark.parametrize("with_fingerprint", [True, False])
def test_a_model_of_nnunet_flags_other_voxels_and_modalities(tmp_path: Path, with_fingerprint: bool) -> None:
    plan = Plan.load(MODEL / "plans.json")
    folder = MODEL if with_fingerprint else tmp_path
    known = training_range(folder, plan, plan.configuration("3d_fullres"))
    assert any("as CT has" in finding for finding in known.findings(scan("example_ct")))
    assert any("spacing" in finding for finding in known.findings(scan("example_mr_sm")))
    assert not any(known.findings(volume) for volume in some_of(SETS[0], 20))


def test_a_ct_model_of_nnunet_flags_images_without_negative_intensities(tmp_path: Path) -> None:
    document = json.loads((MODEL / "plans.json").read_text(encoding="utf-8"))
    document["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    document["original_median_spacing_after_transp"] = [3.0, 3.0, 3.0]
    plan = Plan.from_json(document)
    known = training_range(tmp_path, plan, plan.configuration("3d_fullres"))
    assert not known.findings(scan("example_ct"))
    assert any("no negative intensities" in finding for finding in known.findings(some_of(SETS[0], 1)[0]))
