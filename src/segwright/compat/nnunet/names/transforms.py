"""Transforms: our augmentation of one sample, and nnU-Net's own transforms of a batch, of 2.0 to 2.4.

Those of a batch are called with its entries as keyword arguments, arrays (B, C, *S), and return the dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from segwright.augmentation.cascade import PreviousStage
from segwright.augmentation.recipe import Recipe
from segwright.augmentation.resampling import Source, patch_centre, resample, source_box
from segwright.augmentation.transform import Samples
from segwright.core.errors import ConfigError
from segwright.core.seeds import generator
from segwright.data.labels import OUTSIDE, Labels
from segwright.training.loading.targets import Scales, downsample, encode_targets


class SampleTransform:
    """Augments one sample and makes its target; called as `transform(image=..., segmentation=...)`.

    The random numbers are keyed by one draw from numpy's global generator, which a training seeds for each batch.

    Args:
        recipe: the augmentation; an empty one only crops.
        patch_size: of the result; the sample may be larger, and is cropped around its centre.
        labels: of the dataset.
        scales: relative sizes of the network's outputs; None for a single target.
        previous: appends a cascade's previous stage to the channels; the sample then has two label maps.
    """

    def __init__(
        self,
        recipe: Recipe,
        patch_size: Sequence[int],
        labels: Labels,
        scales: Scales | None = None,
        previous: PreviousStage | None = None,
    ) -> None:
        self.recipe = recipe
        self.patch_size = tuple(int(size) for size in patch_size)
        self.labels = labels
        self.scales = scales
        self.previous = previous

    def __call__(self, *, image: Tensor, segmentation: Tensor, **others: Any) -> dict[str, Any]:
        """Return the sample: image (C, *patch) float32, and the target of each resolution without a batch axis."""
        seed = int(np.random.randint(2**62))

        def rng_for(name: str) -> np.random.Generator:
            return generator(seed, name)

        drawn: Mapping[str, Any] = self.recipe.draw(rng_for, (len(image), *self.patch_size))
        if self.previous is not None:
            drawn = {**drawn, **self.previous.draw(rng_for)}
        patch = self._patch(image, segmentation, rng_for)
        samples = self.recipe.apply(patch, [drawn])
        images = samples.images if self.previous is None else self.previous.append(samples, [drawn])
        targets = encode_targets(samples.labels[:, :1], self.labels, self.scales)
        target = targets[0] if isinstance(targets, Tensor) else [level[0] for level in targets]
        return {**others, "image": images[0], "segmentation": target}

    def _patch(self, image: Tensor, segmentation: Tensor, rng_for: Any) -> Samples:
        """Return the rotated and scaled, or cropped, centre of the sample as a batch of one."""
        starts = [(have - want) // 2 for have, want in zip(image.shape[1:], self.patch_size, strict=True)]
        matrix = self.recipe.draw_matrix(rng_for, len(self.patch_size))
        labels = segmentation.to(torch.int16)
        if matrix is None:
            stops = [start + size for start, size in zip(starts, self.patch_size, strict=True)]
            inside: Any = (..., *(slice(*pair) for pair in zip(starts, stops, strict=True)))
            return Samples(images=image.float()[inside][None], labels=labels[inside][None])
        centre = patch_centre(starts, self.patch_size)
        box = source_box(matrix, centre, self.patch_size)
        before = [max(0, -low) for low, _ in box]
        after = [max(0, high - size) for (_, high), size in zip(box, image.shape[1:], strict=True)]
        padding = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
        images = pad(image.float(), padding).contiguous()
        centre = tuple(position + width for position, width in zip(centre, before, strict=True))
        source = Source(images=images, labels=pad(labels, padding, value=OUTSIDE), centre=centre, matrix=matrix)
        return resample(source, self.patch_size)


class MaskTransform:
    """Sets channels to a value where the label map is below 0, outside of the non-zero mask."""

    def __init__(
        self,
        apply_to_channels: Sequence[int],
        mask_idx_in_seg: int = 0,
        set_outside_to: float = 0,
        data_key: str = "data",
        seg_key: str = "seg",
    ) -> None:
        self.apply_to_channels = apply_to_channels
        self.mask_idx_in_seg = mask_idx_in_seg
        self.set_outside_to = set_outside_to
        self.data_key = data_key
        self.seg_key = seg_key

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """Change the channels in place."""
        outside = batch[self.seg_key][:, self.mask_idx_in_seg] < 0
        for channel in self.apply_to_channels:
            batch[self.data_key][:, channel][outside] = self.set_outside_to
        return batch


class DownsampleSegForDSTransform2:
    """Adds the label map at the size of each output, as a list."""

    def __init__(
        self,
        ds_scales: Sequence[Sequence[float]],
        order: int = 0,
        input_key: str = "seg",
        output_key: str = "seg",
        axes: Sequence[int] | None = None,
    ) -> None:
        if order != 0 or axes is not None:
            raise ConfigError("DownsampleSegForDSTransform2: only order=0 along all axes is offered")
        self.ds_scales = ds_scales
        self.input_key = input_key
        self.output_key = output_key

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """Replace the label map by the list."""
        maps = torch.as_tensor(batch[self.input_key])
        scales: list[Any] = [
            [each] * (maps.ndim - 2) if isinstance(each, int | float) else each for each in self.ds_scales
        ]
        levels: list[Any] = [downsample(maps, scale) for scale in scales]
        is_tensor = isinstance(batch[self.input_key], Tensor)
        batch[self.output_key] = levels if is_tensor else [level.numpy() for level in levels]
        return batch


class ConvertSegmentationToRegionsTransform:
    """Replaces the label map by one channel of 0 and 1 for each region."""

    def __init__(
        self, regions: Sequence[Any], seg_key: str = "seg", output_key: str = "seg", seg_channel: int = 0
    ) -> None:
        self.regions = regions
        self.seg_key = seg_key
        self.output_key = output_key
        self.seg_channel = seg_channel

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """Return the batch with (B, regions, *S)."""
        maps = batch[self.seg_key][:, self.seg_channel]
        channels = [np.isin(maps, np.atleast_1d(region)) for region in self.regions]
        batch[self.output_key] = np.stack(channels, 1).astype(batch[self.seg_key].dtype)
        return batch


class Convert3DTo2DTransform:
    """Makes the planes along the first axis channels, (B, C * X, Y, Z), so that each is transformed alike."""

    def __init__(self, apply_to_keys: Sequence[str] = ("data", "seg")) -> None:
        self.apply_to_keys = apply_to_keys

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """Return the batch, with the shapes to undo it."""
        for key in self.apply_to_keys:
            shape = batch[key].shape
            batch[f"orig_shape_{key}"] = shape
            batch[key] = batch[key].reshape((shape[0], shape[1] * shape[2], *shape[3:]))
        return batch


class Convert2DTo3DTransform:
    """Undoes `Convert3DTo2DTransform`; the size of the planes may have changed."""

    def __init__(self, apply_to_keys: Sequence[str] = ("data", "seg")) -> None:
        self.apply_to_keys = apply_to_keys

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """Return the batch."""
        for key in self.apply_to_keys:
            shape = batch.pop(f"orig_shape_{key}")
            batch[key] = batch[key].reshape((*shape[:3], *batch[key].shape[2:]))
        return batch


class MoveSegAsOneHotToData:
    """Appends a label map, the previous stage's, to the channels, one for each label."""

    def __init__(
        self,
        index_in_origin: int,
        all_labels: Sequence[int],
        key_origin: str = "seg",
        key_target: str = "data",
        remove_from_origin: bool = True,
    ) -> None:
        self.index_in_origin = index_in_origin
        self.all_labels = all_labels
        self.key_origin = key_origin
        self.key_target = key_target
        self.remove_from_origin = remove_from_origin

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """Return the batch with more channels."""
        maps, data = batch[self.key_origin], batch[self.key_target]
        channels = [maps[:, self.index_in_origin] == value for value in self.all_labels]
        batch[self.key_target] = np.concatenate([data, np.stack(channels, 1).astype(data.dtype)], 1)
        if self.remove_from_origin:
            batch[self.key_origin] = np.delete(maps, self.index_in_origin, 1)
        return batch


class ApplyRandomBinaryOperatorTransform:
    """Is not offered; our own augmentation of a cascade has the operators."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        _refuse_cascade(type(self).__name__)


class RemoveRandomConnectedComponentFromOneHotEncodingTransform:
    """Is not offered; our own augmentation of a cascade removes components."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        _refuse_cascade(type(self).__name__)


def _refuse_cascade(name: str) -> NoReturn:
    raise ConfigError(
        f"{name} is not offered: the trainer file augments the second stage of a cascade itself; leave out its "
        "get_training_transforms for this configuration"
    )
