"""Make batches, each a pure function of (seed, epoch, step).

Array letters: B samples, C channels, L label maps, S spatial axes of the patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from segwright.augmentation.cascade import PreviousStage
from segwright.augmentation.recipe import Recipe
from segwright.augmentation.resampling import Matrix, Source, patch_centre, resample, source_box
from segwright.augmentation.transform import Params, Samples
from segwright.core.boxes import Box, box_shape
from segwright.core.device import CPU, CUDA, copy_to
from segwright.core.errors import ConfigError, DatasetError
from segwright.core.seeds import generator
from segwright.core.torch_threads import one_thread
from segwright.data.labels import OUTSIDE, Labels
from segwright.training.distributed.context import SINGLE, DistributedContext
from segwright.training.loading.caching import CaseCache, CaseSource, OpenCase, name_case_in_errors
from segwright.training.loading.sampling import Sampler, choose_class, choose_start, is_forced, read_box, uniform
from segwright.training.loading.targets import Scales, encode_targets, target_bytes
from segwright.training.losses.builtin import TargetChannel


class Batch(TypedDict):
    """`data` (B, C, *S) float32, `target` as `encode_targets` returns it, and the case of each sample."""

    data: Tensor
    target: Tensor | list[Tensor]
    keys: list[str]


def to_device(batch: Batch, device: torch.device, layout: torch.memory_format) -> tuple[Tensor, Tensor | list[Tensor]]:
    """Copy data and target of a batch to a device, the data in the given memory layout."""
    data, target = copy_to(batch["data"], device).contiguous(memory_format=layout), batch["target"]
    if isinstance(target, Tensor):
        return data, copy_to(target, device)
    return data, [copy_to(level, device) for level in target]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDraw:
    """All random parameters of one sample, drawn before any voxel is read."""

    identifier: str
    start: tuple[int, ...]
    matrix: Matrix | None
    augmentation: Mapping[str, Params]


class BatchLoader:
    """Makes the batch of any (epoch, step), the same in every thread and after a resume.

    Args:
        store: opens cases by identifier; only a `CaseCache` keeps decoded ones.
        identifiers: the cases to sample from, uniformly and with replacement.
        patch_size: 2 or 3 axes; a 2D patch is from one slice along the first axis of the case.
        batch_size: samples per batch.
        labels: of the dataset, with regions and ignore label.
        recipe: the augmentation; not used for validation batches.
        previous: appends a cascade's previous stage to the channels; cases then have two label maps.
        oversample_foreground_percent: share of samples that must show foreground, 0 to 1.
        oversample_by_chance: force each sample with that probability, instead of the last ones of each batch.
        sampler: chooses the case of each sample; all cases are equally likely by default.
        seed: the run's seed.
        training: false for validation batches, which have their own random numbers.
        device: where batches are augmented; the CPU by default.
        scales: relative sizes of the network's outputs, None for a single target.
        channel: computes a further channel of the target, bool (B, 1, *S), from label maps (B, 1, *S).
        distributed: processes that share the global batch of `batch_size`; only the samples of this rank are made.
    """

    def __init__(
        self,
        store: CaseSource | CaseCache,
        identifiers: Sequence[str],
        *,
        patch_size: Sequence[int],
        batch_size: int,
        labels: Labels,
        recipe: Recipe | None = None,
        previous: PreviousStage | None = None,
        oversample_foreground_percent: float = 0.33,
        oversample_by_chance: bool = False,
        sampler: Sampler = uniform,
        seed: int = 0,
        training: bool = True,
        device: torch.device | None = None,
        scales: Scales | None = None,
        channel: TargetChannel | None = None,
        distributed: DistributedContext = SINGLE,
    ) -> None:
        self.identifiers = tuple(identifiers)
        self.patch_size = tuple(patch_size)
        self.batch_size = batch_size
        self.labels = labels
        self.recipe = recipe if recipe is not None and training else Recipe()
        self.previous = previous
        self._num_maps = 1 if previous is None else 2
        self.oversample_foreground_percent = oversample_foreground_percent
        self.oversample_by_chance = oversample_by_chance
        self.sampler = sampler
        self.seed = seed
        self.purpose = "training" if training else "validation"
        self.device = device or torch.device(CPU)
        self.scales = scales
        self.channel = channel
        self._cases = store if isinstance(store, CaseCache) else CaseCache(store)
        self._validate()
        self._indices = distributed.local_indices(batch_size)

    @property
    def batch_bytes(self) -> int:
        """Bytes of one batch: images, channels of a previous stage, and all targets."""
        channels = self._num_channels + (0 if self.previous is None else len(self.previous.labels))
        shares = sum(math.prod(scale) for scale in self.scales or [(1,)])
        per_voxel = 4 * channels + target_bytes(self.labels, has_channel=self.channel is not None) * shares
        return math.ceil(len(self._indices) * math.prod(self.patch_size) * per_voxel)

    def pending_bytes(self, location: str) -> int:
        """Return the bytes that cases still to be opened will take in the cache, in `ram` or on the `device`."""
        return self._cases.pending_bytes(location)

    @property
    def _num_channels(self) -> int:
        return int(self._cases.load(self.identifiers[0]).image.shape[0])

    def draw(self, epoch: int, step: int) -> tuple[SampleDraw, ...]:
        """Draw the parameters of this rank's samples of a batch: case, transform, position, augmentation."""
        return tuple(self._draw_sample(epoch, step, index) for index in self._indices)

    @torch.no_grad()
    def batch(self, epoch: int, step: int) -> Batch:
        """Return the batch of a step, a function of (seed, purpose, epoch, step) alone.

        Raises:
            DatasetError: a case cannot be read.
        """
        draws = self.draw(epoch, step)
        # On the CPU one sample fits the cache, and its bits depend neither on other samples nor on the threads.
        parts: list[Sequence[SampleDraw]] = [[draw] for draw in draws] if self.device.type == CPU else [draws]
        with one_thread():
            made = [self._augmented(part) for part in parts]
            maps = _cat([samples.labels[:, :1] for samples in made])
            channel = None if self.channel is None else self.channel(maps, self.labels)
        return {
            "data": _cat([samples.images for samples in made]),
            "target": encode_targets(maps, self.labels, self.scales, channel=channel),
            "keys": [draw.identifier for draw in draws],
        }

    def _augmented(self, draws: Sequence[SampleDraw]) -> Samples:
        drawn = [draw.augmentation for draw in draws]
        samples = self.recipe.apply(self._assemble(draws), drawn)
        if self.previous is None:
            return samples
        return Samples(images=self.previous.append(samples, drawn), labels=samples.labels)

    def _draw_sample(self, epoch: int, step: int, index: int) -> SampleDraw:
        def rng_for(name: str) -> np.random.Generator:
            return generator(self.seed, f"{self.purpose}:{name}", epoch, step, index)

        rng = rng_for("sample")
        identifier = self.sampler(self.identifiers, rng)
        if identifier not in self.identifiers:
            raise ConfigError(f"the sampler chose '{identifier}', which is not a {self.purpose} case of this fold")
        case = self._cases.load(identifier)
        percent, by_chance = self.oversample_foreground_percent, self.oversample_by_chance
        forced = is_forced(index, self.batch_size, percent, rng, by_chance=by_chance)
        chosen = choose_class(case.class_locations, rng, forced=forced, has_ignore=self.labels.ignore_label is not None)
        voxels = None if chosen is None else case.class_locations[chosen]
        with name_case_in_errors(identifier):  # the voxels may be rows on disk
            start = choose_start(case.image.shape[1:], self._patch_in_case(), rng, voxels=voxels)
        return SampleDraw(
            identifier=identifier,
            start=start,
            matrix=self.recipe.draw_matrix(rng_for, len(self.patch_size)),
            augmentation={
                **self.recipe.draw(rng_for, (case.image.shape[0], *self.patch_size)),
                **(self.previous.draw(rng_for) if self.previous is not None else {}),
            },
        )

    def _validate(self) -> None:
        if not self.identifiers:
            raise ConfigError(f"no case to sample {self.purpose} batches from; check the split")
        if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 1:
            raise ConfigError(f"patch_size {self.patch_size}: expected two or three sizes of at least 1")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size {self.batch_size}: expected at least 1")
        share = self.oversample_foreground_percent
        if not 0 <= share <= 1:
            raise ConfigError(f"oversample_foreground_percent {share}: expected a share from 0 to 1")

    def _patch_in_case(self) -> tuple[int, ...]:
        """Return the patch size in the case's three axes: a 2D patch is one slice of the first."""
        return self.patch_size if len(self.patch_size) == 3 else (1, *self.patch_size)

    def _assemble(self, draws: Sequence[SampleDraw]) -> Samples:
        """Read the patches; one with a matrix is resampled from the box that it needs."""
        parts = [self._patch(draw, self._num_channels) for draw in draws]
        return Samples(images=_cat([part.images for part in parts]), labels=_cat([part.labels for part in parts]))

    def _patch(self, draw: SampleDraw, channels: int) -> Samples:
        """Return one patch as a batch of one."""
        patch_size, dims = self.patch_size, len(self.patch_size)
        if draw.matrix is None:
            whole = tuple((low, low + size) for low, size in zip(draw.start, self._patch_in_case(), strict=True))
            images, labels = self._read(draw.identifier, whole, channels)
            return Samples(images=images.view(1, -1, *patch_size), labels=labels.view(1, -1, *patch_size))
        middle = patch_centre(draw.start[-dims:], patch_size)
        box = source_box(draw.matrix, middle, patch_size)
        centre = tuple(position - low for position, (low, _) in zip(middle, box, strict=True))
        whole = tuple((low, low + 1) for low in draw.start[:-dims]) + box
        cached = self._cached(draw.identifier, whole, channels)
        if cached is not None:  # not copied first, since a rotated patch reads only a fraction of the box
            images, labels = cached if dims == 3 else (part[:, draw.start[0]] for part in cached)
            return resample(
                Source(images=images, labels=labels, centre=centre, matrix=draw.matrix, box=box), patch_size
            )
        images, labels = (part.view(-1, *box_shape(box)) for part in self._read(draw.identifier, whole, channels))
        return resample(Source(images=images, labels=labels, centre=centre, matrix=draw.matrix), patch_size)

    def _cached(self, identifier: str, box: Box, channels: int) -> tuple[Tensor, Tensor] | None:
        """Return image and labels of a case that is cached on the batch's device, if `box` lies inside the case."""
        case = self._case(identifier, channels)
        if not isinstance(case.image, Tensor) or case.image.device.type != self.device.type:
            return None
        inside = all(low >= 0 and high <= size for (low, high), size in zip(box, case.image.shape[1:], strict=True))
        return (case.image, case.label) if inside else None

    def _read(self, identifier: str, box: Box, channels: int) -> tuple[Tensor, Tensor]:
        """Return images (C, *box) and labels (L, *box) on the device, 0 and -1 outside the case."""
        case = self._case(identifier, channels)
        place = case.image.device if isinstance(case.image, Tensor) else torch.device(CPU)
        # From pinned memory a copy to the GPU runs beside other work; torch reuses such memory after the copy.
        pinned = self.device.type == CUDA and place.type == CPU
        images = torch.empty((channels, *box_shape(box)), device=place, pin_memory=pinned)
        labels = torch.empty((self._num_maps, *box_shape(box)), dtype=torch.int16, device=place, pin_memory=pinned)
        with name_case_in_errors(identifier):
            for array, fill, part in ((case.image, 0.0, images), (case.label, OUTSIDE, labels)):
                read_box(array, box, fill=fill, out=part if isinstance(array, Tensor) else part.numpy())
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _case(self, identifier: str, channels: int) -> OpenCase:
        case = self._cases.load(identifier)
        if case.image.shape[0] != channels:
            raise DatasetError(
                f"case {identifier}: {case.image.shape[0]} channels where other cases have {channels}; "
                "preprocess the dataset again"
            )
        if case.label.shape[0] != self._num_maps:
            raise DatasetError(
                f"case {identifier}: {case.label.shape[0]} label maps, expected {self._num_maps}; the second stage "
                "of a cascade is trained from cases with the previous stage's maps (training.cascade.CascadeStore)"
            )
        return case


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
