"""Batches made on a GPU: those of the CPU, noise aside, and the host never waits for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_no_waiting import LABELS, PATCHES, Store, always_turned

from segwright.augmentation.recipe import build_recipe
from segwright.training.loading.batches import BatchLoader
from segwright.training.loading.caching import CachePlacement, CaseCache

pytestmark = pytest.mark.gpu
BATCH = 24


def loader_on(device: str, patch_size: tuple[int, ...], recipe: str, place: Any) -> BatchLoader:
    chosen = always_turned(build_recipe(recipe, patch_size, masked_channels=[0]), patch_size)
    return BatchLoader(
        CaseCache(Store(), CachePlacement(location=place, budget_bytes=2**40), torch.device(device)),
        ["case"],
        patch_size=patch_size,
        batch_size=BATCH,
        labels=LABELS,
        recipe=chosen.without("noise"),  # each device has random numbers of its own
        device=torch.device(device),
        scales=[[1.0] * len(patch_size), [0.5] * len(patch_size)],
    )


@pytest.mark.parametrize("place", ["none", "ram", "device"])
@pytest.mark.parametrize("recipe", ["default", "strong", "elastic"])
@pytest.mark.parametrize("patch_size", PATCHES)
def test_batches_are_those_of_the_cpu(patch_size: tuple[int, ...], recipe: str, place: Any) -> None:
    ours, expected = (loader_on(device, patch_size, recipe, place).batch(0, 0) for device in ("cuda", "cpu"))
    assert ours["data"].device.type == "cuda"
    # A ramp of intensities or a rounding at the border of two voxels may differ in single places.
    close = torch.isclose(ours["data"].cpu(), expected["data"], rtol=1e-3, atol=1e-3)
    assert close.float().mean() > 0.999
    for level, target in zip(ours["target"], expected["target"], strict=True):
        assert (level.cpu() == target).float().mean() > 0.999


@pytest.mark.parametrize("recipe", ["default", "strong", "elastic"])
@pytest.mark.parametrize("patch_size", PATCHES)
def test_the_host_does_not_wait_for_a_batch(patch_size: tuple[int, ...], recipe: str) -> None:
    loader = loader_on("cuda", patch_size, recipe, "device")
    loader.batch(0, 0)  # reads the case and loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        loader.batch(0, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
