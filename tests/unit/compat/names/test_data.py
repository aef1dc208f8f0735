"""Datasets, loaders and augmenters over our store, by nnU-Net's interfaces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segwright.augmentation.recipe import Recipe, build_recipe
from segwright.compat.nnunet.names import arrays
from segwright.compat.nnunet.names.data import (
    ClassRows,
    get_case_identifiers,
    get_patch_size,
    infer_dataset_class,
    make_dataset,
    nnUNetDataset,
    provenance_of,
    unpack_dataset,
)
from segwright.compat.nnunet.names.labels import LabelManager
from segwright.compat.nnunet.names.loaders import (
    DataLoader,
    LimitedLenWrapper,
    NonDetMultiThreadedAugmenter,
    SingleThreadedAugmenter,
    nnUNetDataLoader,
    nnUNetDataLoader2D,
    nnUNetDataLoader3D,
)
from segwright.compat.nnunet.names.transforms import SampleTransform
from segwright.core.errors import ConfigError, WorkspaceError
from segwright.data.labels import Labels
from segwright.data.preprocessed.previous_stage import StageMaps
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore

SHAPE = (6, 10, 12)
LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)
PROVENANCE = Provenance(
    properties={"reader": "SimpleITKIO"},
    shape_before_cropping=(7, 10, 12),
    box=((1, 7), (0, 10), (0, 12)),
    shape_after_cropping=SHAPE,
    spacing=(3.0, 1.0, 2.0),
    transpose_forward=(2, 0, 1),
    transpose_backward=(1, 2, 0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the cases `a` and `b`; label 2 is one voxel in a corner of `b`."""
    place = tmp_path_factory.mktemp("data") / "segwright_3d"
    for name in "ab":
        label = np.zeros((1, *SHAPE), np.int16)
        label[0, 2:4, 3:5, 3:5] = 1
        label[0, 5, 9, 11] = 2 if name == "b" else 0
        locations = {value: np.argwhere(label[0] == value) for value in (1, 2)}
        image = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], SHAPE)[None]
        CaseStore(place).save(name, image, label, locations, PROVENANCE, patch_size=(4, 4, 4), source_hash="x")
    return place


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(0)


def loader(folder: Path, cls: Any = nnUNetDataLoader3D, **changes: Any) -> Any:
    data = nnUNetDataset(folder, ["b"])
    settings: dict[str, Any] = {"oversample_foreground_percent": 0.5, **changes}
    patch = settings.pop("patch", (4, 6, 6))
    return cls(data, 4, settings.pop("read", patch), patch, LABELS, **settings)


def test_dataset_of_2023_is_a_mapping_with_three_parts(folder: Path) -> None:
    dataset = nnUNetDataset(str(folder))
    assert [*dataset.keys()] == [*dataset] == ["a", "b"]
    assert ("a" in dataset, len(dataset)) == (True, 2)
    data, seg, properties = dataset.load_case("b")
    assert (data.shape, seg.shape) == ((1, *SHAPE), (1, *SHAPE))
    assert dataset["b"]["properties"]["spacing"] == properties["spacing"] == [1.0, 2.0, 3.0]
    assert properties["bbox_used_for_cropping"] == [[1, 7], [0, 10], [0, 12]]
    assert provenance_of(properties) == PROVENANCE


def test_dataset_of_2025_has_four_parts(folder: Path) -> None:
    dataset: Any = infer_dataset_class(str(folder))(str(folder), ["b"])
    assert dataset.identifiers == ["b"]
    _, _, previous, properties = dataset.load_case("b")
    assert previous is None
    assert {key: len(rows) for key, rows in properties["class_locations"].items()} == {1: 8, 2: 1}
    assert type(make_dataset(folder, ["a"], before_2_6=True)) is nnUNetDataset


def test_previous_stage_is_added(folder: Path, tmp_path: Path) -> None:
    StageMaps(tmp_path).save("a", np.ones(SHAPE, np.uint8), (4, 4, 4), "hash")
    old = nnUNetDataset(folder, ["a"], folder_with_segs_from_previous_stage=tmp_path)
    assert old.load_case("a")[1].shape == (2, *SHAPE)
    new = make_dataset(folder, ["a"], tmp_path)
    assert new.load_case("a")[2].shape == (1, *SHAPE)
    for dataset in (old, new):
        batch = next(nnUNetDataLoader(dataset, 2, (4, 4, 4), (4, 4, 4), LABELS))
        assert batch["seg"].shape == (2, 2, 4, 4, 4)
        assert batch["seg"][:, 1].max() == 1


def test_folder_by_the_name_of_nnunet(folder: Path) -> None:
    assert get_case_identifiers(str(folder.with_name("3d"))) == ["a", "b"]
    unpack_dataset(str(folder), unpack_segmentation=True, overwrite_existing=False)
    with pytest.raises(WorkspaceError, match="holds no preprocessed cases"):
        get_case_identifiers(folder / "none")


def test_class_locations_have_a_channel_in_front() -> None:
    rows = ClassRows(np.array([[1, 2, 3], [4, 5, 6]]))
    assert (len(rows), rows.shape, rows[1].tolist()) == (2, (2, 4), [0, 4, 5, 6])
    assert np.asarray(rows)[:, 1:].tolist() == rows[:][:, 1:].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_last_samples_of_a_batch_show_foreground(folder: Path) -> None:
    batch = next(loader(folder))
    assert batch["data"].shape == batch["seg"].shape == (4, 1, 4, 6, 6)
    assert batch["keys"] == ["b"] * 4
    assert all((batch["seg"][index] > 0).any() for index in (2, 3))
    assert len(batch["properties"]) == 4


def test_forced_patch_is_centred_on_a_voxel_and_padded(folder: Path) -> None:
    one = loader(folder)
    rows = {2: ClassRows(np.array([[5, 9, 11]]))}
    assert one.get_bbox(SHAPE, True, rows) == ([3, 6, 8], [7, 12, 14])
    assert one.get_bbox(SHAPE, True, rows, overwrite_class=2)[0] == [3, 6, 8]


def test_random_patches_reach_every_position(folder: Path) -> None:
    one = loader(folder, read=(6, 8, 8))
    starts = np.array([one.get_bbox(SHAPE, False, {})[0] for _ in range(500)])
    assert starts.min(0).tolist() == [-1, -1, -1]
    assert starts.max(0).tolist() == [1, 3, 5]
    assert (starts % 1 == 0).all()


def test_ignore_label_centres_on_annotated_voxels(folder: Path) -> None:
    manager = LabelManager({"background": 0, "a": 1, "ignore": 2}, None)
    one = nnUNetDataLoader(nnUNetDataset(folder), 2, (2, 2, 2), (2, 2, 2), manager)
    voxel = {(-1, 0, 1): ClassRows(np.array([[3, 4, 5]])), 1: ClassRows(np.array([[1, 1, 1]]))}
    assert one.get_bbox(SHAPE, False, voxel)[0] == [2, 3, 4]
    assert one.get_bbox(SHAPE, True, voxel)[0] == [0, 0, 0]


def test_two_dimensional_patches_are_slices(folder: Path) -> None:
    batch = next(loader(folder, nnUNetDataLoader2D, patch=(6, 8)))
    assert batch["data"].shape == (4, 1, 6, 8)


def test_foreground_by_chance(folder: Path) -> None:
    one = loader(folder, probabilistic_oversampling=True, oversample_foreground_percent=0.25)
    forced = [one.get_do_oversample(0) for _ in range(2000)]
    assert np.mean(forced) == pytest.approx(0.25, abs=0.03)


def test_probabilities_of_cases(folder: Path) -> None:
    one = nnUNetDataLoader(nnUNetDataset(folder), 50, (2, 2, 2), (2, 2, 2), LABELS, sampling_probabilities=[0, 1])
    assert {*one.get_indices()} == {"b"}


def test_transforms_make_tensors_and_levels(folder: Path) -> None:
    def transforms(image: Tensor, segmentation: Tensor) -> dict[str, Any]:
        return {"image": image * 2, "segmentation": [segmentation, segmentation[:, ::2, ::2, ::2]]}

    one = nnUNetDataLoader(make_dataset(folder, ["a"]), 3, (4, 6, 6), (4, 6, 6), LABELS, transforms=transforms)
    batch = one.generate_train_batch()
    assert batch["data"].dtype == torch.float32
    assert [tuple(level.shape) for level in batch["target"]] == [(3, 1, 4, 6, 6), (3, 1, 2, 3, 3)]
    assert batch["target"][0].dtype == torch.int16


def test_batches_repeat_with_numpys_seed(folder: Path) -> None:
    one = loader(folder)
    np.random.seed(3)
    first = next(one)
    np.random.seed(3)
    assert np.array_equal(first["data"], next(one)["data"])


def test_method_of_a_subclass_is_used(folder: Path) -> None:
    class OnlyFirst(nnUNetDataLoader):
        def get_indices(self) -> list[str]:
            return ["a"] * self.batch_size

    one = OnlyFirst(make_dataset(folder, ["a", "b"]), 2, (2, 2, 2), (2, 2, 2), LABELS)
    assert next(iter(one))["keys"] == ["a", "a"]


def test_loader_without_a_batch_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="DataLoader has no generate_train_batch"):
        next(DataLoader(None, 2))
    with pytest.raises(ConfigError, match="no case to sample"):
        nnUNetDataLoader(make_dataset(folder, []), 2, (2, 2, 2), (2, 2, 2), LABELS)


@pytest.mark.parametrize("cls", [SingleThreadedAugmenter, NonDetMultiThreadedAugmenter])
def test_augmenters_transform_batches(folder: Path, cls: Any) -> None:
    def rename(data: Any, seg: Any, **others: Any) -> dict[str, Any]:
        return {"data": torch.from_numpy(data), "target": seg, **others}

    augmenter = cls(loader(folder), rename)
    assert {*next(augmenter)} == {"data", "target", "keys", "properties"}
    augmenter._finish()


def test_augmenter_with_a_length(folder: Path) -> None:
    augmenter = LimitedLenWrapper(
        250, data_loader=loader(folder), transform=None, num_processes=2, num_cached=4, seeds=None, pin_memory=False,
        wait_time=0.002,
    )  # fmt: skip
    assert len(augmenter) == 250
    assert "data" in next(augmenter)


@pytest.mark.parametrize(
    ("patch", "degrees", "expected"),
    [
        ((128, 128, 128), 30, (205, 205, 205)),
        ((96, 160, 160), 30, (191, 257, 219)),
        ((64, 192, 160), 30, (178, 289, 200)),
        ((40, 56, 40), 30, (73, 80, 64)),
        ((512, 512), 180, (602, 602)),
        ((256, 224), 180, (301, 301)),
        ((320, 192), 15, (422, 225)),
    ],
)
def test_size_to_read_for_a_rotated_patch(patch: Any, degrees: float, expected: Any) -> None:
    turn = (-math.radians(degrees), math.radians(degrees))
    assert tuple(get_patch_size(patch, turn, turn, turn, (0.85, 1.25))) == expected


def test_sample_is_cropped_and_its_targets_made() -> None:
    labels = Labels({"background": 0, "a": 1})
    transform = SampleTransform(Recipe(), (2, 4, 4), labels, [(1, 1, 1), (1, 0.5, 0.5)])
    image = torch.arange(64.0).reshape(1, 4, 4, 4)
    sample = transform(image=image, segmentation=torch.full((1, 4, 4, 4), -1), extra=5)
    assert torch.equal(sample["image"], image[:, 1:3])
    assert [tuple(level.shape) for level in sample["segmentation"]] == [(1, 2, 4, 4), (1, 2, 2, 2)]
    assert sample["segmentation"][0].max() == 0
    assert sample["extra"] == 5


def test_sample_is_augmented_the_same_with_the_same_seed() -> None:
    recipe = build_recipe("default", (8, 8, 8))
    transform = SampleTransform(recipe, (8, 8, 8), Labels({"background": 0, "a": 1}))
    image, label = torch.randn(1, 14, 14, 14), torch.ones(1, 14, 14, 14, dtype=torch.int16)
    results = []
    for seed in [*range(12), 0]:
        np.random.seed(seed)
        results.append(transform(image=image, segmentation=label)["image"])
    assert torch.equal(results[0], results[-1])
    assert all(result.shape == (1, 8, 8, 8) for result in results)
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_crop_pad_and_insert(as_tensor: bool) -> None:
    array: Any = np.arange(12.0).reshape(1, 3, 4)
    image: Any = torch.from_numpy(array.copy()) if as_tensor else array.copy()
    cropped: Any = arrays.crop_and_pad_nd(image, [[-1, 2], [3, 5]], pad_value=-1)
    assert cropped.tolist() == [[[-1, -1], [3, -1], [7, -1]]]
    changed: Any = arrays.insert_crop_into_image(image, cropped * 0, [[-1, 2], [3, 5]])
    assert changed[0, :2, 3].tolist() == [0, 0]
    padded, slicer = arrays.pad_nd_image(image, (4, 7), return_slicer=True)
    assert tuple(padded.shape) == (1, 4, 7)
    assert padded[slicer].tolist() == image.tolist()
    assert tuple(arrays.pad_nd_image(image, shape_must_be_divisible_by=[4, 4]).shape[1:]) == (4, 4)
    outside: Any = arrays.crop_and_pad_nd(image, [[9, 10], [0, 1]])
    assert outside.tolist() == [[[0]]]
    with pytest.raises(ConfigError, match="pad_mode 'edge'"):
        arrays.crop_and_pad_nd(image, [[0, 1], [0, 1]], pad_mode="edge")
