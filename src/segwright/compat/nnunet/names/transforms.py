"""Our augmentation and targets as one transform of a sample, in the manner of batchgeneratorsv2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segwright.augmentation.cascade import PreviousStage
from segwright.augmentation.recipe import Recipe
from segwright.augmentation.resampling import Source, patch_centre, resample
from segwright.augmentation.transform import Samples
from segwright.core.seeds import generator
from segwright.data.labels import Labels
from segwright.training.loading.targets import Scales, encode_targets


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
        source = Source(images=image.float().contiguous(), labels=labels.contiguous(), centre=centre, matrix=matrix)
        return resample(source, self.patch_size)
