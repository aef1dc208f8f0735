"""Batches made on a GPU: those of the CPU, noise aside, and the host never waits for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_no_waiting import LABELS, PATCHES, Store, always_turned

from segwright.augmentation.recipe import build_recipe
from segwright.training.loading.batches import BatchLoader
from segwright.training.loading.caching import CachePlacement, CaseCache
from segwright.training.loading.prefetch import prefetched_batches

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


@pytest.mark.parametrize("place", ["ram", "device"])
@pytest.mark.parametrize("recipe", ["default", "strong", "elastic"])
@pytest.mark.parametrize("patch_size", PATCHES)
def test_the_host_does_not_wait_for_a_batch(patch_size: tuple[int, ...], recipe: str, place: Any) -> None:
    loader = loader_on("cuda", patch_size, recipe, place)
    loader.batch(0, 0)  # reads the case and loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        loader.batch(0, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("place", ["ram", "device"])
def test_batches_from_their_own_stream_are_complete_and_stay_so(place: Any) -> None:
    loader, expected = (loader_on("cuda", PATCHES[0], "default", place) for _ in range(2))
    busy = torch.ones(4096, 4096, device="cuda")
    sums, network = [], torch.nn.Identity()
    with prefetched_batches(loader, network, 0, 40) as batches:
        for batch in batches:
            sums.append((batch["data"].double().sum(), batch["target"][0].double().sum()))
            del batch  # its memory may be used again from now on
            busy = busy @ busy * 1e-4  # the steps are behind the batches
    assert batches.mean_wait_s >= 0
    for step, (data, target) in enumerate(sums):
        made = expected.batch(0, step)
        torch.testing.assert_close(data, made["data"].double().sum())
        assert target == made["target"][0].double().sum()
