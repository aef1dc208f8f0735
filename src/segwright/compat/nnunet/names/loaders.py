"""nnU-Net's loaders of batches, of every version, and the augmenters that draw from them.

Random numbers come from numpy's global generator, as in files that override a method; a training seeds it for each
batch, and everything is made in the calling thread, so that batches can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segwright.compat.nnunet.names.data import nnUNetDataset, nnUNetDatasetBlosc2
from segwright.compat.nnunet.names.labels import LabelManager
from segwright.core.boxes import Box, box_shape
from segwright.core.errors import ConfigError
from segwright.data.labels import OUTSIDE
from segwright.training.loading.sampling import read_box

Item = dict[str, Any]

_OWN_LOADS: Final = (nnUNetDatasetBlosc2.load_case, nnUNetDataset.load_case)


class DataLoader:
    """batchgenerators' base of loaders: an endless iterator over `generate_train_batch`."""

    def __init__(
        self,
        data: Any,
        batch_size: int,
        num_threads_in_multithreaded: int = 1,
        seed_for_shuffle: int | None = None,
        return_incomplete: bool = False,
        shuffle: bool = True,
        infinite: bool = False,
        sampling_probabilities: Sequence[float] | None = None,
    ) -> None:
        self._data = data
        self.batch_size = batch_size
        self.number_of_threads_in_multithreaded = num_threads_in_multithreaded
        self.seed_for_shuffle = seed_for_shuffle
        self.return_incomplete = return_incomplete
        self.shuffle = shuffle
        self.infinite = infinite
        self.sampling_probabilities = sampling_probabilities
        self.thread_id = 0
        self.indices: Sequence[Any] = ()

    def set_thread_id(self, thread_id: int) -> None:
        """Set the number of the worker."""
        self.thread_id = thread_id

    def reset(self) -> None:
        """Do nothing: there is no order of cases."""

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        """Return the next batch."""
        return self.generate_train_batch()

    def get_indices(self) -> list[Any]:
        """Return the cases of a batch, drawn with replacement from `indices`."""
        chosen = np.random.choice(len(self.indices), self.batch_size, True, self.sampling_probabilities)
        return [self.indices[int(index)] for index in chosen]

    def generate_train_batch(self) -> Item:
        """Return one batch; a subclass defines it.

        Raises:
            ConfigError: it does not.
        """
        raise ConfigError(f"{type(self).__name__} has no generate_train_batch; define it to return a dict with 'data'")


class nnUNetDataLoader(DataLoader):
    """Samples patches of preprocessed cases (nnU-Net behaviour 8.2).

    A two-dimensional patch is one slice along the first axis of the case.

    Args:
        data: dataset of `names.data`, or anything with its `load_case` and `identifiers` or `keys`.
        batch_size: samples in a batch.
        patch_size: of what is read, before augmentation.
        final_patch_size: of the network's input.
        label_manager: of the dataset.
        oversample_foreground_percent: share of samples that must show foreground.
        sampling_probabilities: of each case; None: all are equally likely.
        pad_sides: voxels by which a patch may lie outside of the case.
        probabilistic_oversampling: force each sample by chance, not the last ones of a batch.
        transforms: of one sample `(image=, segmentation=)`; None: the batch is returned as arrays `data` and `seg`.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        patch_size: Sequence[int],
        final_patch_size: Sequence[int],
        label_manager: LabelManager,
        oversample_foreground_percent: float = 0.0,
        sampling_probabilities: Sequence[float] | None = None,
        pad_sides: Sequence[int] | None = None,
        probabilistic_oversampling: bool = False,
        transforms: Callable[..., Item] | None = None,
    ) -> None:
        super().__init__(data, batch_size, infinite=True, sampling_probabilities=sampling_probabilities)
        self.indices = [*(data.identifiers if hasattr(data, "identifiers") else data.keys())]
        if not self.indices:
            raise ConfigError("no case to sample batches from; check the split")
        self.patch_size_was_2d = len(patch_size) == 2
        lead = (1,) if self.patch_size_was_2d else ()
        self.patch_size = (*lead, *(int(size) for size in patch_size))
        self.final_patch_size = (*lead, *(int(size) for size in final_patch_size))
        self.list_of_keys = self.indices
        self.need_to_pad = np.array(self.patch_size) - np.array(self.final_patch_size)
        if pad_sides is not None:
            self.need_to_pad = self.need_to_pad + np.array((*((0,) if self.patch_size_was_2d else ()), *pad_sides))
        self.num_channels: int | None = None
        self.pad_sides = pad_sides
        self.sampling_probabilities = sampling_probabilities
        self.oversample_foreground_percent = oversample_foreground_percent
        self.label_manager = label_manager
        self.annotated_classes_key = (OUTSIDE, *label_manager.all_labels)
        self.has_ignore = label_manager.has_ignore_label
        self.probabilistic_oversampling = probabilistic_oversampling
        self.get_do_oversample = (
            self._probabilistic_oversampling if probabilistic_oversampling else self._oversample_last_XX_percent
        )
        self.transforms = transforms
        self.data_shape, self.seg_shape = self.determine_shapes()

    def determine_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of a batch of images and of label maps before augmentation."""
        data, seg, previous, _ = self._load(self.indices[0])
        maps: int = seg.shape[0] + (0 if previous is None else 1)
        return (self.batch_size, data.shape[0], *self.patch_size), (self.batch_size, maps, *self.patch_size)

    def get_bbox(
        self,
        data_shape: Sequence[int] | npt.NDArray[np.int64],
        force_fg: bool,
        class_locations: Any,
        overwrite_class: Any = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Return first and last + 1 voxel of a patch; both may lie outside of the case.

        Args:
            data_shape: spatial shape of the case.
            force_fg: the patch must show a class of `class_locations`.
            class_locations: voxels (n, 4) of each class.
            overwrite_class: the class to show.
            verbose: has no effect.
        """
        del verbose
        patch, shape = np.array(self.patch_size), np.array(data_shape)
        need = np.where(self.need_to_pad + shape < patch, patch - shape, self.need_to_pad).astype(int)
        low = -((need + 1) // 2)
        high = shape + need // 2 + need % 2 - patch
        chosen = self._class_to_show(force_fg, class_locations, overwrite_class)
        if chosen is None:
            starts = [int(np.random.randint(first, last + 1)) for first, last in zip(low, high, strict=True)]
        else:
            voxels = class_locations[chosen]
            voxel = np.asarray(voxels[int(np.random.choice(len(voxels)))])[-len(patch) :]
            starts = [int(start) for start in np.maximum(low, voxel - patch // 2)]
        return starts, [start + size for start, size in zip(starts, self.patch_size, strict=True)]

    @torch.no_grad()
    def generate_train_batch(self) -> Item:
        """Return `data`, `target` and `keys`, or without transforms `data`, `seg`, `properties` and `keys`."""
        keys = self.get_indices()
        images, maps, properties = [], [], []
        for index, key in enumerate(keys):
            image, label, known = self._sample(key, self.get_do_oversample(index))
            images.append(image)
            maps.append(label)
            properties.append(known)
        if self.transforms is None:
            return {"data": np.stack(images), "seg": np.stack(maps), "properties": properties, "keys": keys}
        samples = [
            self.transforms(image=torch.from_numpy(image).float(), segmentation=torch.from_numpy(label).to(torch.int16))
            for image, label in zip(images, maps, strict=True)
        ]
        target = [sample["segmentation"] for sample in samples]
        stacked: Any = (
            [torch.stack(levels) for levels in zip(*target, strict=True)]
            if isinstance(target[0], list | tuple)
            else torch.stack(target)
        )
        return {"data": torch.stack([sample["image"] for sample in samples]), "target": stacked, "keys": keys}

    def _oversample_last_XX_percent(self, sample_idx: int) -> bool:
        return not sample_idx < round(self.batch_size * (1 - self.oversample_foreground_percent))

    def _probabilistic_oversampling(self, sample_idx: int) -> bool:
        del sample_idx
        return bool(np.random.uniform() < self.oversample_foreground_percent)

    def _class_to_show(self, force_fg: bool, class_locations: Any, overwrite_class: Any) -> Any:
        """Return the class on whose voxels the patch is centred; None for a random position."""
        annotated = self.annotated_classes_key
        if not force_fg:
            is_there = self.has_ignore and len(class_locations.get(annotated, ())) > 0
            return annotated if is_there else None
        if overwrite_class is not None and len(class_locations.get(overwrite_class, ())):
            return overwrite_class
        present = [key for key in class_locations if len(class_locations[key])]
        if annotated in present and len(present) > 1:
            present.remove(annotated)
        return present[int(np.random.choice(len(present)))] if present else None

    def _load(self, key: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return a case by either interface of datasets; of our own classes, arrays that stay on disk."""
        if getattr(type(self._data), "load_case", None) in _OWN_LOADS:
            opened: tuple[Any, Any, Any, dict[str, Any]] = self._data.open_case(key)
            return opened
        case = self._data.load_case(key)
        return case if len(case) == 4 else (case[0], case[1], None, case[2])

    def _sample(self, key: Any, force_fg: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Return one patch: image (C, *patch) and label maps (L, *patch)."""
        data, seg, previous, properties = self._load(key)
        first, last = self.get_bbox(data.shape[1:], force_fg, properties["class_locations"])
        box = tuple(zip(first, last, strict=True))
        maps = [seg] if previous is None else [seg, previous]
        image = _read(data, box, 0, np.float32)
        label = np.concatenate([_read(each, box, OUTSIDE, np.int16) for each in maps])
        return (image[:, 0], label[:, 0], properties) if self.patch_size_was_2d else (image, label, properties)


nnUNetDataLoaderBase = nnUNetDataLoader
nnUNetDataLoader2D = nnUNetDataLoader
nnUNetDataLoader3D = nnUNetDataLoader


class SingleThreadedAugmenter:
    """Draws batches from a loader and transforms them, in the calling thread.

    Attributes:
        data_loader: gives the batches.
        transform: of a batch, called with its entries as keyword arguments; None: as they are.
    """

    def __init__(self, data_loader: Any, transform: Callable[..., Item] | None = None) -> None:
        self.data_loader = data_loader
        self.transform = transform

    @property
    def generator(self) -> Any:
        """The loader, by its name in the other augmenter."""
        return self.data_loader

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        """Return the next batch."""
        item: Item = next(self.data_loader)
        return item if self.transform is None else self.transform(**item)

    def next(self) -> Item:
        """Return the next batch."""
        return next(self)

    def restart(self) -> None:
        """Do nothing."""

    def _finish(self, timeout: float = 10) -> None:
        """Do nothing."""


class NonDetMultiThreadedAugmenter(SingleThreadedAugmenter):
    """As `SingleThreadedAugmenter`: its workers would be processes, whose random numbers cannot be repeated."""

    def __init__(
        self,
        data_loader: Any,
        transform: Callable[..., Item] | None = None,
        num_processes: int = 1,
        num_cached: int = 2,
        seeds: Sequence[int] | None = None,
        pin_memory: bool = False,
        wait_time: float = 0.02,
    ) -> None:
        super().__init__(data_loader, transform)
        self.num_processes = num_processes
        self.num_cached = num_cached
        self.seeds = seeds
        self.pin_memory = pin_memory
        self.wait_time = wait_time

    def __next__(self) -> Item:
        """Return the next batch, in pinned memory if that was asked for."""
        item = super().__next__()
        return {key: _pinned(value) for key, value in item.items()} if self.pin_memory else item


class MultiThreadedAugmenter(NonDetMultiThreadedAugmenter):
    """As `NonDetMultiThreadedAugmenter`, with batchgenerators' other arguments."""

    def __init__(
        self,
        data_loader: Any,
        transform: Callable[..., Item] | None,
        num_processes: int,
        num_cached_per_queue: int = 2,
        seeds: Sequence[int] | None = None,
        pin_memory: bool = False,
        timeout: float = 10,
        wait_time: float = 0.02,
    ) -> None:
        del timeout
        super().__init__(data_loader, transform, num_processes, num_cached_per_queue, seeds, pin_memory, wait_time)


class LimitedLenWrapper(NonDetMultiThreadedAugmenter):
    """An augmenter with a length, which has no other effect."""

    def __init__(self, my_imaginary_length: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.len = my_imaginary_length

    def __len__(self) -> int:
        return self.len


def _read(array: Any, box: Box, fill: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a box of an array (K, *S), with `fill` outside of it."""
    out = np.empty((array.shape[0], *box_shape(box)), dtype=dtype)
    read_box(array, box, fill=fill, out=out)
    return out


def _pinned(value: Any) -> Any:
    if isinstance(value, list):
        return [_pinned(part) for part in value]
    return value.pin_memory() if isinstance(value, Tensor) and torch.cuda.is_available() else value
