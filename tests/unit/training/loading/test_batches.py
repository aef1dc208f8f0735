"""Batches: determinism, reading of patches, errors that name the case, and the end of prefetching threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segwright.augmentation.cascade import PreviousStage
from segwright.augmentation.recipe import Recipe, Step, build_recipe
from segwright.augmentation.spatial import Affine, Mirror
from segwright.core.errors import ConfigError, DatasetError, OutOfMemoryError, SegwrightError, WorkspaceError
from segwright.data.labels import Labels
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore
from segwright.training.loading.batches import Batch, BatchLoader
from segwright.training.loading.caching import CachePlacement, CaseCache, name_case_in_errors
from segwright.training.loading.prefetch import THREAD_NAME, prefetch

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
PATCH = (8, 10, 6)


@dataclass
class FakeCase:
    image: Any
    label: Any
    class_locations: dict[Any, Any]


class FakeStore:
    """Cases in memory whose voxel values tell their position, and a list of what was read."""

    def __init__(self, shapes: list[tuple[int, ...]], channels: int = 1) -> None:
        self.loaded: list[str] = []
        self.cases: dict[str, FakeCase] = {}
        for number, shape in enumerate(shapes):
            rng = np.random.default_rng(number)
            image = rng.normal(size=(channels, *shape)).astype(np.float32) + 10
            label = np.zeros((1, *shape), dtype=np.int16)
            label[0, 1:3, 1:3, 1:3] = 1
            label[0, -2:, -2:, -2:] = 2
            places = {key: np.argwhere(label[0] == key) for key in (1, 2)}
            self.cases[f"case_{number}"] = FakeCase(image, label, places)

    def load(self, identifier: str) -> FakeCase:
        self.loaded.append(identifier)
        return self.cases[identifier]


def make_loader(store: FakeStore | None = None, *, held: bool = False, **options: Any) -> BatchLoader:
    """Return a loader; with `held` all cases stay in memory."""
    store = store or FakeStore([(12, 14, 9), (7, 9, 5), (16, 8, 20)])
    given = {"patch_size": PATCH, "batch_size": 4, "labels": LABELS, "seed": 3, **options}
    placement = CachePlacement(location="ram", budget_bytes=2**40) if held else CachePlacement()
    return BatchLoader(CaseCache(store, placement), list(store.cases), **given)


def assert_equal(first: Batch, second: Batch) -> None:
    assert first["keys"] == second["keys"]
    torch.testing.assert_close(first["data"], second["data"], atol=0, rtol=0)
    torch.testing.assert_close(first["target"], second["target"], atol=0, rtol=0)


@pytest.mark.parametrize("recipe", ["none", "default"])
def test_batch_has_the_stated_shapes(recipe: str) -> None:
    scales = [[1, 1, 1], [0.5, 0.5, 0.5]]
    batch = make_loader(recipe=build_recipe(recipe, PATCH), scales=scales).batch(0, 0)
    assert batch["data"].shape == (4, 1, *PATCH)
    assert batch["data"].dtype == torch.float32
    assert [tuple(target.shape) for target in batch["target"]] == [(4, 1, 8, 10, 6), (4, 1, 4, 5, 3)]
    assert len(batch["keys"]) == 4


def test_plain_patches_are_cut_exactly_and_padded_with_zero() -> None:
    store = FakeStore([(12, 14, 9), (7, 9, 5)])
    loader = make_loader(store)
    draws, batch = loader.draw(2, 5), loader.batch(2, 5)
    for index, draw in enumerate(draws):
        image = np.pad(store.cases[draw.identifier].image[0], 20)
        label = np.pad(store.cases[draw.identifier].label[0], 20)
        cut = tuple(slice(20 + low, 20 + low + size) for low, size in zip(draw.start, PATCH, strict=True))
        np.testing.assert_array_equal(batch["data"][index, 0].numpy(), image[cut])
        target = batch["target"]
        assert isinstance(target, torch.Tensor)
        np.testing.assert_array_equal(target[index, 0].numpy(), label[cut])


def test_epochs_steps_seeds_and_purposes_differ() -> None:
    loader = make_loader()
    batches = [
        loader.batch(0, 0),
        loader.batch(0, 1),
        loader.batch(1, 0),
        make_loader(seed=4).batch(0, 0),
        make_loader(training=False).batch(0, 0),
    ]
    for index, batch in enumerate(batches):
        assert all(not torch.equal(batch["data"], other["data"]) for other in batches[:index])


def test_forced_samples_show_foreground() -> None:
    loader = make_loader(FakeStore([(40, 40, 40)]), batch_size=6)
    for step in range(10):
        target = loader.batch(0, step)["target"]
        assert isinstance(target, torch.Tensor)
        assert (target[4:].flatten(1).amax(1) > 0).all()


def test_validation_batches_are_not_augmented() -> None:
    recipe = build_recipe("default", PATCH)
    assert_equal(make_loader(training=False, recipe=recipe).batch(0, 0), make_loader(training=False).batch(0, 0))


def test_identity_affine_equals_a_plain_crop() -> None:
    still = Affine(rotation=(0.0, 0.0), rotation_probability=1.0, scaling_probability=0.0)
    for step in range(3):
        shown, plain = make_loader(recipe=Recipe(spatial=still)).batch(0, step), make_loader().batch(0, step)
        torch.testing.assert_close(shown["data"], plain["data"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shown["target"], plain["target"], atol=0, rtol=0)


@pytest.mark.parametrize("spatial", [False, True])
def test_two_dimensional_patches_are_slices_of_the_first_axis(spatial: bool) -> None:
    still = Affine(rotation=(0.0, 0.0), rotation_probability=1.0, scaling_probability=0.0)
    store = FakeStore([(12, 14, 9)], channels=2)
    loader = make_loader(store, patch_size=(10, 6), recipe=Recipe(spatial=still if spatial else None))
    draws, batch = loader.draw(0, 0), loader.batch(0, 0)
    assert batch["data"].shape == (4, 2, 10, 6)
    for image, draw in zip(batch["data"], draws, strict=True):
        z, y, x = draw.start
        expected = store.cases["case_0"].image[:, z, y : y + 10, x : x + 6]
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-5)


def test_mirrored_batch_is_the_flipped_plain_batch() -> None:
    always = Recipe(steps=(Step(name="mirror", transform=Mirror(axes=(2,), probability=1.0)),))
    plain, flipped = make_loader().batch(0, 0), make_loader(recipe=always).batch(0, 0)
    assert torch.equal(flipped["data"], plain["data"].flip(4))
    assert isinstance(plain["target"], torch.Tensor)
    assert isinstance(flipped["target"], torch.Tensor)
    assert torch.equal(flipped["target"], plain["target"].flip(4))


def stored(store: FakeStore, folder: Path) -> CaseStore:
    """Write the cases of a fake store to disk."""
    result = CaseStore(folder)
    for identifier, case in store.cases.items():
        shape = case.image.shape[1:]
        provenance = Provenance(
            properties={},
            shape_before_cropping=shape,
            box=tuple((0, size) for size in shape),
            shape_after_cropping=shape,
            spacing=(1.0, 1.0, 1.0),
            transpose_forward=(0, 1, 2),
            transpose_backward=(0, 1, 2),
        )
        result.save(
            identifier, case.image, case.label, case.class_locations, provenance, patch_size=PATCH, source_hash="x"
        )
    return result


def test_case_that_is_missing_on_disk_is_named(tmp_path: Path) -> None:
    store = stored(FakeStore([(12, 14, 9)]), tmp_path)
    loader = BatchLoader(store, ["case_0"], patch_size=PATCH, batch_size=2, labels=LABELS)
    loader.batch(0, 0)
    (tmp_path / "case_0.b2nd").unlink()
    with pytest.raises(SegwrightError, match="case_0"):
        loader.batch(0, 1)


def test_each_case_is_opened_once() -> None:
    store = FakeStore([(12, 14, 9), (7, 9, 5)])
    loader = make_loader(store)
    for step in range(5):
        loader.batch(0, step)
    assert sorted(store.loaded) == ["case_0", "case_1"]


class Broken:
    """An array whose data cannot be read."""

    shape = (1, 12, 14, 9)

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("blosc2: bad chunk")


@pytest.mark.parametrize("kind", [EOFError, AttributeError, ZeroDivisionError, RecursionError])
def test_an_error_of_any_kind_names_the_case(kind: type[Exception]) -> None:
    class Worse(Broken):
        def __getitem__(self, key: Any) -> Any:
            raise kind("boom")

    store = FakeStore([(12, 14, 9)])
    store.cases["case_0"].image = Worse()
    with pytest.raises(DatasetError, match=rf"case case_0: .*{kind.__name__}: boom\); .*preprocess again"):
        make_loader(store).batch(0, 0)


@pytest.mark.parametrize(("kind", "remedy"), [(MemoryError, "--cache none"), (torch.OutOfMemoryError, "--cache ram")])
def test_missing_memory_names_the_case_and_a_cheaper_cache(kind: type[Exception], remedy: str) -> None:
    class Larger(Broken):
        def __getitem__(self, key: Any) -> Any:
            raise kind("boom")

    store = FakeStore([(12, 14, 9)])
    store.cases["case_0"].image = Larger()
    with pytest.raises(OutOfMemoryError, match=rf"case case_0: out of memory.*{remedy}"):
        make_loader(store).batch(0, 0)


@pytest.mark.parametrize("kind", [DatasetError, WorkspaceError])
def test_an_error_that_names_only_a_path_gets_the_cases_name(kind: type[SegwrightError]) -> None:
    class Lost(FakeStore):
        def load(self, identifier: str) -> FakeCase:
            raise kind(f"/data/{identifier}.b2nd: missing or damaged")

    with pytest.raises(kind, match=r"^case case_0: /data/case_0.b2nd: missing"):
        make_loader(Lost([(12, 14, 9)])).batch(0, 0)


def test_a_name_is_not_repeated_in_the_message() -> None:
    for message in ("case case_0: image and label differ", "no map for case 'case_0' of the previous stage"):
        with pytest.raises(DatasetError, match=f"^{message}"), name_case_in_errors("case_0"):
            raise DatasetError(message)


@pytest.mark.parametrize("scales", [None, [[1, 1, 1], [0.5, 0.5, 0.5]]])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("cascade", [False, True])
def test_the_bytes_of_a_batch_are_those_of_its_tensors(scales: Any, regions: bool, cascade: bool) -> None:
    declared = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3} if regions else {"background": 0, "a": 1}
    labels = Labels.from_dataset_json({"labels": declared, "regions_class_order": [1, 2]})
    store = FakeStore([(12, 14, 9)], channels=3)
    if cascade:
        store.cases["case_0"].label = np.concatenate([store.cases["case_0"].label] * 2)
    previous = PreviousStage(labels=labels.foreground_labels) if cascade else None
    loader = make_loader(store, patch_size=(8, 12, 4), labels=labels, scales=scales, previous=previous)
    batch = loader.batch(0, 0)
    targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
    assert loader.batch_bytes == batch["data"].nbytes + sum(target.nbytes for target in targets)


@pytest.mark.parametrize("held", [True, False])
def test_reading_error_in_the_thread_names_the_case_and_ends(held: bool) -> None:
    store = FakeStore([(12, 14, 9)])
    store.cases["case_0"].image = Broken()
    with pytest.raises(DatasetError, match=r"case_0.*bad chunk.*preprocess again"):
        list(prefetch(make_loader(store, held=held), 0, 3))
    assert not batch_threads()


def test_different_channel_counts_name_the_case() -> None:
    store = FakeStore([(12, 14, 9), (12, 14, 9)])
    store.cases["case_1"].image = np.zeros((2, 12, 14, 9), dtype=np.float32)
    with pytest.raises(DatasetError, match=r"case_[01]: [12] channels where other cases have"):
        for step in range(10):
            make_loader(store).batch(0, step)


def test_image_and_label_of_different_shape_name_the_case() -> None:
    store = FakeStore([(12, 14, 9)])
    store.cases["case_0"].label = np.zeros((1, 12, 14, 8), dtype=np.int16)
    with pytest.raises(DatasetError, match="case_0: .*shapes differ"):
        make_loader(store).batch(0, 0)


def batch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def test_prefetcher_ends_its_thread_when_left_early() -> None:
    batches = prefetch(make_loader(), 0, 100, ahead=4)
    next(batches)
    assert batch_threads()
    batches.close()
    assert not batch_threads()


def test_prefetcher_resumes_in_the_middle_of_an_epoch() -> None:
    loader = make_loader()
    rest = list(prefetch(loader, 0, 6, first_step=4))
    assert len(rest) == 2
    assert_equal(rest[0], loader.batch(0, 4))


def test_an_error_of_a_later_step_ends_the_epoch_at_once() -> None:
    loader = make_loader()

    def failing(epoch: int, step: int) -> Batch:
        if step == 2:
            raise DatasetError("case x: gone")
        return make_loader().batch(epoch, step)

    loader.batch = failing  # type: ignore[method-assign]
    batches = prefetch(loader, 0, 60, ahead=4)
    with pytest.raises(DatasetError, match="case x"):
        for _ in range(8):
            next(batches)
    assert not batch_threads()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": (8,)}, "patch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"oversample_foreground_percent": 33}, "share from 0 to 1"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_loader(**options)


def test_empty_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="no case to sample training"):
        BatchLoader(FakeStore([]), [], patch_size=PATCH, batch_size=2, labels=LABELS)


class Allocated(Exception):
    """Memory was requested."""


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False), ("meta", False)])
def test_patches_for_a_gpu_are_read_into_pinned_memory(
    device: str, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*shape: Any, pin_memory: bool = False, **how: Any) -> torch.Tensor:
        assert how["device"].type == "cpu"
        raise Allocated(pin_memory)

    loader = make_loader(held=True, device=torch.device(device))
    loader.draw(0, 0)
    monkeypatch.setattr(torch, "empty", allocate)
    with pytest.raises(Allocated, match=str(pinned)):
        loader.batch(0, 0)
