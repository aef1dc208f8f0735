"""nnU-Net's own transforms of a batch, of 2.0 to 2.4."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segwright.compat.nnunet.names import transforms
from segwright.core.errors import ConfigError


@pytest.fixture
def batch() -> dict[str, Any]:
    seg = np.arange(2 * 2 * 4 * 4 * 4).reshape(2, 2, 4, 4, 4) % 4 - 1.0
    return {"data": np.ones((2, 3, 4, 4, 4), np.float32), "seg": seg.astype(np.float32), "keys": ["a", "b"]}


def test_outside_of_the_mask_is_set(batch: dict[str, Any]) -> None:
    done = transforms.MaskTransform([0, 2], set_outside_to=-5)(**batch)
    outside = done["seg"][:, 0] < 0
    assert (done["data"][:, 0][outside] == -5).all()
    assert (done["data"][:, 1] == 1).all()
    assert done["keys"] == ["a", "b"]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_label_maps_of_all_outputs(batch: dict[str, Any], as_tensor: bool) -> None:
    batch["target"] = torch.from_numpy(batch["seg"]) if as_tensor else batch["seg"]
    scales = [[1, 1, 1], [1, 0.5, 0.5]]
    done = transforms.DownsampleSegForDSTransform2(scales, 0, input_key="target", output_key="target")(**batch)
    assert [tuple(level.shape) for level in done["target"]] == [(2, 2, 4, 4, 4), (2, 2, 4, 2, 2)]
    assert isinstance(done["target"][0], torch.Tensor) == as_tensor
    with pytest.raises(ConfigError, match="only order=0"):
        transforms.DownsampleSegForDSTransform2(scales, 1)


def test_regions_become_channels(batch: dict[str, Any]) -> None:
    done = transforms.ConvertSegmentationToRegionsTransform([(1, 2), 2], "seg", "seg")(**dict(batch))
    assert np.array_equal(done["seg"][:, 0], np.isin(batch["seg"][:, 0], [1, 2]))
    assert np.array_equal(done["seg"][:, 1], batch["seg"][:, 0] == 2)


def test_planes_are_channels_for_a_time(batch: dict[str, Any]) -> None:
    flat = transforms.Convert3DTo2DTransform()(**dict(batch))
    assert flat["data"].shape == (2, 12, 4, 4)
    flat["data"] = flat["data"][:, :, :3, :2]
    back = transforms.Convert2DTo3DTransform()(**flat)
    assert back["data"].shape == (2, 3, 4, 3, 2)
    assert np.array_equal(back["seg"], batch["seg"])


def test_previous_stage_becomes_channels(batch: dict[str, Any]) -> None:
    done = transforms.MoveSegAsOneHotToData(1, [1, 2], "seg", "data", True)(**dict(batch))
    assert done["data"].shape == (2, 5, 4, 4, 4)
    assert np.array_equal(done["data"][:, 3], batch["seg"][:, 1] == 1)
    assert done["seg"].shape == (2, 1, 4, 4, 4)


@pytest.mark.parametrize(
    "name", ["ApplyRandomBinaryOperatorTransform", "RemoveRandomConnectedComponentFromOneHotEncodingTransform"]
)
def test_augmentation_of_a_cascade_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not offered"):
        getattr(transforms, name)(channel_idx=[-1], p_per_sample=0.4)
