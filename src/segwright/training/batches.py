"""Batches as a pure function of (seed, epoch, step), made in a thread ahead of the training step.

Array letters: B samples, C channels, L label maps, S spatial axes of the patch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from segwright.augmentation.cascade import PreviousStage
from segwright.augmentation.recipe import Recipe
from segwright.augmentation.spatial import Matrix, Source, patch_centre, resample, source_box
from segwright.augmentation.transform import Draw, Samples
from segwright.core.arrays import Box, box_shape
from segwright.core.errors import ConfigError, DatasetError, SegwrightError
from segwright.core.seeds import generator
from segwright.data.labels import OUTSIDE, Labels
from segwright.training.distributed import ALONE, Ranks
from segwright.training.sampling import ClassLocations, Sampler, choose_key, choose_start, is_forced, read_box, uniform
from segwright.training.targets import Scales, encode_targets

DEFAULT_CACHE_GIB = 2.0
"""Decoded cases kept in memory by default, in GiB; a data set that needs more is read patch by patch."""


class CaseArray(Protocol):
    """An array on disk or in memory: a shape and slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *spatial)."""
        ...

    def __getitem__(self, key: Any) -> Any:
        """Return the slice as a numpy array."""
        ...


class TrainingCase(Protocol):
    """What a loader needs of a preprocessed case."""

    @property
    def image(self) -> CaseArray:
        """(C, *S3) float32."""
        ...

    @property
    def label(self) -> CaseArray:
        """(1, *S3) int16, -1 outside the nonzero mask; (2, *S3) with the map of a cascade's previous stage."""
        ...

    @property
    def class_locations(self) -> ClassLocations:
        """Voxels of each class."""
        ...


class CaseSource(Protocol):
    """Where cases come from; `data.store.CaseStore` is one."""

    def load(self, identifier: str) -> TrainingCase:
        """Open a case."""
        ...


class Batch(TypedDict):
    """`data` (B, C, *S) float32, `target` as `encode_targets` gives it, and the case of each sample."""

    data: torch.Tensor
    target: torch.Tensor | list[torch.Tensor]
    keys: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDraw:
    """Everything random about one sample of a batch, known before a voxel is read."""

    identifier: str
    start: tuple[int, ...]
    matrix: Matrix | None
    augmentation: Mapping[str, Draw]


class BatchLoader:
    """Makes the batch of any (epoch, step), the same in every thread and after every resume.

    Args:
        store: opens cases by identifier.
        identifiers: the cases to sample from, uniformly and with replacement.
        patch_size: 2 or 3 axes; with 2 a slice along the first axis of the case is taken.
        batch_size: samples per batch.
        labels: tell regions and the ignore label.
        recipe: the augmentation; without training it is left out.
        previous: appends the previous stage's map of a cascade to the channels; cases have two label maps then.
        oversample_foreground_percent: share of samples that must show foreground, 0 to 1.
        oversample_by_chance: each sample is forced with that chance, instead of the last ones of each batch.
        sampler: chooses the case of each sample; all cases are equally likely by default.
        seed: the run's seed.
        training: false for validation batches, which have draws of their own.
        device: where the batch is augmented and handed over; the CPU by default.
        scales: relative sizes of the network's outputs, None for a single target.
        cache: `ram` keeps decoded cases in memory up to `cache_gib`, `none` reads every patch from the store.
        cache_gib: see `cache`.
        ranks: makes its own samples of the global batch of `batch_size`.
    """

    def __init__(
        self,
        store: CaseSource,
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
        cache: Literal["ram", "none"] = "ram",
        cache_gib: float = DEFAULT_CACHE_GIB,
        ranks: Ranks = ALONE,
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
        self.device = device or torch.device("cpu")
        self.scales = scales
        self._cases = _CaseCache(store, int(cache_gib * 2**30) if cache == "ram" else 0)
        self._require_sense()
        self._own = ranks.own(batch_size)

    def draw(self, epoch: int, step: int) -> tuple[SampleDraw, ...]:
        """Draw every sample of a batch that is this rank's: case, transform, position, augmentation."""
        return tuple(self._draw_sample(epoch, step, index) for index in self._own)

    @torch.no_grad()
    def batch(self, epoch: int, step: int) -> Batch:
        """Return the batch of this step, a function of (seed, purpose, epoch, step) alone.

        Raises:
            DatasetError: a case cannot be read; the message names it.
        """
        draws = self.draw(epoch, step)
        samples = self._assemble(draws)
        drawn = [draw.augmentation for draw in draws]
        self.recipe.apply_inplace(samples, drawn)
        return {
            "data": samples.images if self.previous is None else self.previous.append(samples, drawn),
            "target": encode_targets(samples.labels[:, :1], self.labels, self.scales),
            "keys": [draw.identifier for draw in draws],
        }

    def _draw_sample(self, epoch: int, step: int, index: int) -> SampleDraw:
        def key(name: str) -> np.random.Generator:
            return generator(self.seed, f"{self.purpose}:{name}", epoch, step, index)

        rng = key("sample")
        identifier = self.sampler(self.identifiers, rng)
        if identifier not in self.identifiers:
            raise ConfigError(f"the sampler chose '{identifier}', which is no {self.purpose} case of this fold")
        case = self._cases.get(identifier)
        percent, by_chance = self.oversample_foreground_percent, self.oversample_by_chance
        forced = is_forced(index, self.batch_size, percent, rng, by_chance=by_chance)
        chosen = choose_key(case.locations, rng, forced=forced, has_ignore=self.labels.ignore_label is not None)
        voxels = None if chosen is None else case.locations[chosen]
        with _naming(identifier):  # the voxels may be rows on disk
            start = choose_start(case.image.shape[1:], self._patch_in_case(), rng, voxels=voxels)
        return SampleDraw(
            identifier=identifier,
            start=start,
            matrix=self.recipe.draw_matrix(key, len(self.patch_size)),
            augmentation={
                **self.recipe.draw(key, (case.image.shape[0], *self.patch_size)),
                **(self.previous.draw(key) if self.previous is not None else {}),
            },
        )

    def _require_sense(self) -> None:
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
        """Return the patch in the case's three axes: a 2D patch is one slice of the first."""
        return self.patch_size if len(self.patch_size) == 3 else (1, *self.patch_size)

    def _assemble(self, draws: Sequence[SampleDraw]) -> Samples:
        """Read the patches; those with a matrix are read at the box it needs and resampled."""
        patch = self._patch_in_case()
        channels = self._cases.get(draws[0].identifier).image.shape[0]
        shape = (len(draws), channels, *self.patch_size)
        images = np.zeros((len(draws), channels, *patch), dtype=np.float32)
        labels = np.full((len(draws), self._num_maps, *patch), OUTSIDE, dtype=np.int16)
        for index, draw in enumerate(draws):
            if draw.matrix is None:
                box = tuple((low, low + size) for low, size in zip(draw.start, patch, strict=True))
                self._read(draw.identifier, box, images[index], labels[index])
        samples = Samples(
            images=torch.from_numpy(images).view(shape).to(self.device),
            labels=torch.from_numpy(labels).view(len(draws), self._num_maps, *self.patch_size).to(self.device),
        )
        turned = [index for index, draw in enumerate(draws) if draw.matrix is not None]
        if turned:
            shown = resample([self._source(draws[index], channels) for index in turned], self.patch_size)
            where = torch.tensor(turned, device=self.device)
            samples.images.index_copy_(0, where, shown.images)
            samples.labels.index_copy_(0, where, shown.labels)
        return samples

    def _source(self, draw: SampleDraw, channels: int) -> Source:
        """Read what one transformed patch needs."""
        assert draw.matrix is not None
        patch_size = self.patch_size
        dims = len(patch_size)
        centre = patch_centre(draw.start[-dims:], patch_size)
        box = source_box(draw.matrix, centre, patch_size)
        whole = tuple((low, low + 1) for low in draw.start[:-dims]) + box
        images = np.empty((channels, *box_shape(whole)), dtype=np.float32)
        labels = np.empty((self._num_maps, *box_shape(whole)), dtype=np.int16)
        self._read(draw.identifier, whole, images, labels)
        return Source(
            images=torch.from_numpy(images).view(channels, *box_shape(box)).to(self.device),
            labels=torch.from_numpy(labels).view(self._num_maps, *box_shape(box)).to(self.device),
            centre=tuple(middle - low for middle, (low, _) in zip(centre, box, strict=True)),
            matrix=draw.matrix,
        )

    def _read(self, identifier: str, box: Box, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        case = self._cases.get(identifier)
        if case.image.shape[0] != images.shape[0]:
            raise DatasetError(
                f"case {identifier}: {case.image.shape[0]} channels where other cases have {images.shape[0]}; "
                "preprocess the dataset again"
            )
        if case.label.shape[0] != self._num_maps:
            raise DatasetError(
                f"case {identifier}: {case.label.shape[0]} label maps, expected {self._num_maps}; the second stage "
                "of a cascade is trained from cases with the previous stage's maps (training.cascade.CascadeStore)"
            )
        with _naming(identifier):
            read_box(case.image, box, fill=0.0, out=images)
            read_box(case.label, box, fill=OUTSIDE, out=labels)


def prefetch(
    loader: BatchLoader, epoch: int, steps: int, *, ahead: int = 2, first_step: int = 0
) -> Generator[Batch, None, None]:
    """Yield the batches `first_step ... steps - 1` of an epoch, made in a thread up to `ahead` steps ahead.

    An error in the thread is raised here at the step it belongs to. The thread has ended when the iterator is
    exhausted, closed or has raised.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="segwright-batches")
    waiting: deque[Future[Batch]] = deque()
    try:
        for step in range(first_step, steps):
            waiting.append(pool.submit(loader.batch, epoch, step))
            if len(waiting) > max(ahead, 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenCase:
    image: CaseArray
    label: CaseArray
    locations: ClassLocations


class _CaseCache:
    """Opens each case once; decodes cases into memory while the byte budget lasts, the others are read by slices."""

    def __init__(self, store: CaseSource, budget: int) -> None:
        self._store = store
        self._left = budget
        self._open: dict[str, _OpenCase] = {}
        self._lock = threading.Lock()

    def get(self, identifier: str) -> _OpenCase:
        """Return the case; a case that cannot be opened is a `DatasetError` that names it."""
        with self._lock:
            case = self._open.get(identifier)
            if case is None:
                with _naming(identifier):
                    case = self._load(identifier)
                self._open[identifier] = case
            return case

    def _load(self, identifier: str) -> _OpenCase:
        case = self._store.load(identifier)
        image, label, locations = case.image, case.label, case.class_locations
        if tuple(image.shape[1:]) != tuple(label.shape[1:]):
            raise DatasetError(
                f"case {identifier}: image {tuple(image.shape[1:])}, label {tuple(label.shape[1:])}: shapes differ; "
                "preprocess the dataset again"
            )
        rows = sum(len(voxels) for voxels in locations.values())
        size = int(np.prod(image.shape)) * 4 + int(np.prod(label.shape)) * 2 + rows * 3 * 4
        if size > self._left:
            return _OpenCase(image=image, label=label, locations=locations)
        self._left -= size
        return _OpenCase(
            image=np.ascontiguousarray(image[...], dtype=np.float32),
            label=np.ascontiguousarray(label[...], dtype=np.int16),
            locations={key: np.asarray(voxels, dtype=np.int32) for key, voxels in locations.items()},
        )


@contextmanager
def _naming(identifier: str) -> Iterator[None]:
    """Name the case in any error of reading it."""
    try:
        yield
    except SegwrightError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DatasetError(
            f"case {identifier}: cannot be read from the preprocessed data ({type(error).__name__}: {error}); "
            "delete its files and preprocess again"
        ) from error
