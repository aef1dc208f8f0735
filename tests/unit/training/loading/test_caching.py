"""Cache placement and its reason, held cases, and batches that are bit-identical with every cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from segwright.augmentation.recipe import build_recipe
from segwright.core.errors import DatasetError
from segwright.core.memory import available_bytes
from segwright.training.checkpointing.checkpoints import find_resumable
from segwright.training.config import CacheMode, TrainConfig
from segwright.training.loading import caching
from segwright.training.loading.batches import BatchLoader
from segwright.training.loading.caching import CachePlacement, CaseCache, choose_placement, decoded_bytes, total_bytes
from segwright.training.loading.prefetch import prefetch
from tests.unit.training.loading.test_batches import LABELS, PATCH, Broken, FakeStore, assert_equal, stored
from tests.unit.training.test_trainer import DyingTrainer, Killed, final_weights
from tests.unit.training.tiny_task import make
from tests.unit.training.tiny_task import settings as tiny_settings

GPU = torch.device("meta")  # any device with a memory of its own
SHAPES = [(22, 24, 19), (7, 9, 5), (26, 18, 40)]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 bytes of memory and 1000 on the device."""
    monkeypatch.setattr(caching, "available_bytes", lambda: 1000)
    monkeypatch.setattr(caching, "free_bytes", lambda device: 1000)


@pytest.mark.parametrize(
    ("mode", "needed", "device", "place"),
    [
        ("auto", 150, GPU, "device"),
        ("auto", 400, GPU, "ram"),
        ("auto", 600, GPU, "none"),
        ("auto", 400, torch.device("cpu"), "ram"),
        ("auto", 600, torch.device("cpu"), "none"),
        ("none", 1, GPU, "none"),
        ("ram", 10_000, GPU, "ram"),
        ("device", 10_000, GPU, "device"),
        ("device", 10_000, torch.device("cpu"), "ram"),
    ],
)
@pytest.mark.usefixtures("free")
def test_the_placement_depends_on_mode_size_and_free_memory(
    mode: CacheMode, needed: int, device: torch.device, place: str
) -> None:
    assert choose_placement(mode, needed, device).location == place


@pytest.mark.parametrize(("budget", "pending"), [(10**9, [1.0, 0.0]), (None, [0.0, 0.0])])
def test_the_bytes_of_cases_still_to_be_cached_are_known(budget: int | None, pending: list[float]) -> None:
    store = FakeStore(SHAPES)
    names = [*store.cases]
    needed = total_bytes(store, names)
    placement = CachePlacement(location="ram", budget_bytes=budget, needed_bytes=needed) if budget else CachePlacement()
    cache = CaseCache(store, placement)
    shares = [cache.pending_bytes("ram") / needed]
    for name in names:
        cache.load(name)
    assert [*shares, cache.pending_bytes("ram") / needed] == pending
    assert cache.pending_bytes("device") == 0


@pytest.mark.usefixtures("free")
def test_the_reason_has_sizes_and_a_budget_can_be_given() -> None:
    assert choose_placement("auto", 2**31, torch.device("cpu"), limit_gib=3).reason == (
        "cases are kept in memory: they take 2.0 GiB of the 3.0 GiB allowed"
    )
    assert (
        "2.0 GiB, more than 1.0 GiB of memory"
        in choose_placement("auto", 2**31, torch.device("cpu"), limit_gib=1).reason
    )
    assert choose_placement("auto", 400, torch.device("cpu"), num_processes=2).location == "none"


def test_free_memory_is_measured() -> None:
    assert 2**20 < available_bytes() < 2**50


def test_cases_are_held_while_the_budget_lasts() -> None:
    store = FakeStore(SHAPES)
    one = decoded_bytes(store.cases["case_0"])
    assert total_bytes(store, list(store.cases)) == sum(map(decoded_bytes, store.cases.values()))
    cache = CaseCache(
        store, CachePlacement(location="ram", budget_bytes=one + decoded_bytes(store.cases["case_1"]) + 1)
    )
    held = [isinstance(cache.load(name).image, torch.Tensor) for name in ("case_0", "case_2", "case_1")]
    assert held == [True, False, True]


@pytest.mark.parametrize("held", [True, False])
def test_a_case_that_cannot_be_read_is_named(held: bool) -> None:
    store = FakeStore([(12, 14, 9)])
    store.cases["case_0"].image = Broken()
    cache = CaseCache(store, CachePlacement(location="ram", budget_bytes=2**40) if held else CachePlacement())
    with pytest.raises(DatasetError, match="case_0"):
        _ = cache.load("case_0").image[0] if held else loader_of(cache).batch(0, 0)


def loader_of(cache: CaseCache, **options: Any) -> BatchLoader:
    given = {"patch_size": PATCH, "batch_size": 4, "labels": LABELS, "seed": 3, **options}
    return BatchLoader(cache, ["case_0"], **given)


PLACES: tuple[Literal["none", "ram", "device"], ...] = ("none", "ram", "device")


@pytest.mark.parametrize("patch_size", [PATCH, (4, 14, 13), (12, 11)])
@pytest.mark.parametrize("recipe", ["default", "strong"])
def test_batches_are_the_same_bits_in_every_cache_and_number_of_threads(
    tmp_path: Path, patch_size: tuple[int, ...], recipe: str
) -> None:
    store = stored(FakeStore(SHAPES, channels=2), tmp_path)
    options: dict[str, Any] = {
        "patch_size": patch_size, "batch_size": 5, "labels": LABELS, "recipe": build_recipe(recipe, patch_size)
    }  # fmt: skip
    runs = []
    for place in PLACES:
        cache = CaseCache(store, CachePlacement(location=place, budget_bytes=2**40))
        loader = BatchLoader(cache, store.identifiers(), **options)
        for threads, ahead in ((1, 1), (3, 5)):
            runs.append(list(prefetch(loader, 2, 6, threads=threads, ahead=ahead)))
    assert all(len(run) == 6 for run in runs)
    for run in runs[1:]:
        for batch, first in zip(run, runs[0], strict=True):
            assert_equal(batch, first)


@pytest.mark.parametrize("patch_size", [(40, 41, 39), (24, 80, 80), (190, 180)])
def test_samples_depend_neither_on_other_samples_nor_on_torchs_threads(patch_size: tuple[int, ...]) -> None:
    store = FakeStore([(70, 200, 190)])
    options: dict[str, Any] = {
        "patch_size": patch_size, "oversample_foreground_percent": 0.0, "labels": LABELS,
        "recipe": build_recipe("default", patch_size),
    }  # fmt: skip
    before = torch.get_num_threads()
    try:
        seen = []
        for threads, batch_size in ((1, 6), (2, 3), (4, 2), (3, 6)):
            torch.set_num_threads(threads)
            loader = BatchLoader(store, ["case_0"], batch_size=batch_size, **options)
            seen.append(loader.batch(0, 4))
    finally:
        torch.set_num_threads(before)
    for batch in seen[1:]:
        count = len(batch["data"])
        assert torch.equal(batch["data"], seen[0]["data"][:count])
        assert isinstance(batch["target"], torch.Tensor)
        assert isinstance(seen[0]["target"], torch.Tensor)
        assert torch.equal(batch["target"], seen[0]["target"][:count])


def test_batches_continue_where_they_stopped() -> None:
    loader = BatchLoader(
        FakeStore(SHAPES), [f"case_{number}" for number in range(3)], patch_size=PATCH, batch_size=2, labels=LABELS,
        recipe=build_recipe("default", PATCH),
    )  # fmt: skip
    whole = list(prefetch(loader, 1, 6))
    for batch, later in zip(whole[4:], prefetch(loader, 1, 6, first_step=4, threads=2), strict=True):
        assert_equal(batch, later)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "none", "ram", "device"])
def test_a_training_has_the_same_losses_in_every_mode_and_says_where_its_cases_are(tmp_path: Path, mode: str) -> None:
    losses = []
    for name in (mode, "none"):
        trainer = make(tmp_path / name, config=tiny_settings(cache=name, num_epochs=1))
        trainer.run_training()
        losses.append(trainer.logbook.rows[0]["train_losses"])
        log = (trainer.output_folder / "training.log").read_text()
        assert f"cases are {'read from disk' if name == 'none' else 'kept in memory'}" in log
    assert losses[0] == losses[1]
    assert not np.isnan(losses[0])


@pytest.mark.slow
def test_a_training_resumed_with_another_cache_gives_the_same_losses(tmp_path: Path) -> None:
    config = tiny_settings(num_iterations_per_epoch=3, cache="ram")
    whole = make(tmp_path / "whole", config=config)
    whole.run_training()
    dying = make(tmp_path / "parts", DyingTrainer, config=config)
    dying.steps_left = 4
    with pytest.raises(Killed):
        dying.run_training()
    resumed = make(tmp_path / "parts", config=TrainConfig(cache="none"))
    checkpoint = find_resumable(resumed.output_folder)
    assert checkpoint is not None
    resumed.load_checkpoint(checkpoint)
    resumed.run_training()
    assert resumed.config.cache == "none"
    torch.testing.assert_close(final_weights(resumed), final_weights(whole), rtol=0, atol=0)
    assert resumed.logbook.column("train_losses") == whole.logbook.column("train_losses")
