"""Plans for the network of a checkpoint of nnssl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from segwright.api import PlanOptions, explain, plan_from_fingerprint
from segwright.core.errors import ConfigError, ModelError, PlanError
from segwright.data.plan import Plan
from segwright.networks.build import ArchitectureSpec, build_on_meta
from segwright.networks.checkpoint import add_aliases
from tests.nnssl_checkpoints import adaptation_plan, write_checkpoint

INTENSITIES = {
    "mean": 1.0, "median": 1.0, "std": 0.5, "min": 0.0, "max": 9.0, "percentile_99_5": 8.0, "percentile_00_5": 0.1,
}  # fmt: skip


def planned(
    folder: Path, shape: tuple[int, ...], measured: tuple[float, ...] = (3.0, 0.8, 0.8), **options: Any
) -> Plan:
    description = {
        "channel_names": {"0": "CT", "1": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 10,
        "file_ending": ".nii.gz",
    }
    fingerprint = {
        "spacings": [measured] * 10,
        "shapes_after_crop": [shape] * 10,
        "median_relative_size_after_cropping": 0.5,
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES, "1": INTENSITIES},
    }
    data = folder / "Dataset001_Test"
    data.mkdir(exist_ok=True)
    (data / "dataset.json").write_text(json.dumps(description))
    (data / "fingerprint.json").write_text(json.dumps(fingerprint))
    return plan_from_fingerprint(data / "fingerprint.json", data / "dataset.json", options=PlanOptions(**options))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "a.pth", features=(2, 4))
    return tmp_path / "a.pth"


def test_spacing_patch_network_and_normalisation_are_those_of_the_pre_training(
    tmp_path: Path, checkpoint: Path
) -> None:
    plan = planned(tmp_path, (100, 500, 500), like=checkpoint)
    assert (plan.plans_name, plan.configuration_names) == ("nnsslResEncUNetLPlans", ("3d_fullres",))
    made = plan.configuration("3d_fullres")
    assert made.spacing == (1.0, 1.0, 1.0)
    assert (made.patch_size, made.batch_size) == ((160, 160, 160), 2)
    assert made.normalization_schemes == ("ZScoreNormalization",) * 2
    assert made.use_mask_for_norm == (False, True)
    assert made.data_identifier == "nnsslResEncUNetLPlans_3d_fullres"
    assert made.median_image_size_in_voxels == (300.0, 400.0, 400.0)
    network = build_on_meta(ArchitectureSpec.from_plan(made.architecture.model_dump(by_alias=True)), 1, 1)
    names: dict[str, Tensor] = add_aliases(network.state_dict(), network)
    assert sum(name.startswith("encoder.") for name in names) == 448  # as in nnssl's ResEnc-L
    assert names["encoder.stages.5.blocks.5.conv2.conv.weight"].shape == (320, 320, 3, 3, 3)
    text = explain(plan)
    assert f"target spacing: 1, 1, 1\n        as {checkpoint} was pre-trained" in text
    assert "patch size: 160, 160, 160\n        160 x 160 x 160 is recommended by the checkpoint" in text
    assert "CTNormalization" not in text
    assert plan.segwright["options"]["like"] == str(checkpoint)


def test_a_patch_is_not_larger_than_the_images_need(tmp_path: Path, checkpoint: Path) -> None:
    made = planned(tmp_path, (20, 180, 300), like=checkpoint).configuration("3d_fullres")
    assert made.median_image_size_in_voxels == (60.0, 144.0, 240.0)
    assert made.patch_size == (128, 160, 160)


def test_another_spacing_may_be_given(tmp_path: Path, checkpoint: Path) -> None:
    given = planned(tmp_path, (100, 500, 500), like=checkpoint, spacing=(2.0, 1.0, 1.0), name="mine")
    assert given.plans_name == "mine"
    assert given.configuration("3d_fullres").spacing == (2.0, 1.0, 1.0)
    assert "as requested" in explain(given)
    plan = adaptation_plan()
    plan["pretrain_plan"]["configurations"]["onemmiso"]["spacing"] = None
    write_checkpoint(tmp_path / "b.pth", plan=plan, features=(2, 4))
    assert planned(tmp_path, (100, 500, 500), like=tmp_path / "b.pth").configuration("3d_fullres").spacing[1:] == (
        0.8,
        0.8,
    )


def test_what_does_not_fit_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(PlanError, match=r"a.pth: its network is 3D, and the images of 'Dataset001_Test' are 2D"):
        planned(tmp_path, (1, 300, 300), (1.0, 1.0, 1.0), like=checkpoint)
    for options in ({"preset": "resenc-l"}, {"gpu_memory_gb": 24}):
        with pytest.raises(ConfigError, match="leave out preset and GPU memory"):
            planned(tmp_path, (100, 500, 500), like=checkpoint, **options)
    for name, changes, error, message in (
        ("primus", {"architecture_plans": {"arch_class_name": "PrimusM"}}, ModelError, "its network is PrimusM"),
        ("odd", {"recommended_downstream_patchsize": [160, 150, 160]}, PlanError, "must be a multiple of 32"),
    ):
        write_checkpoint(tmp_path / f"{name}.pth", plan=adaptation_plan(**changes), features=(2, 4))
        with pytest.raises(error, match=message):
            planned(tmp_path, (100, 500, 500), like=tmp_path / f"{name}.pth")
    with pytest.raises(ModelError, match="no trained model"):
        planned(tmp_path, (100, 500, 500), like=tmp_path / "missing.pth")


def test_options_of_other_plans_are_stored_as_before(tmp_path: Path) -> None:
    assert "like" not in planned(tmp_path, (100, 500, 500)).segwright["options"]
