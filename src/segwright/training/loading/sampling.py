"""Sampling of cases, classes and patch positions: pure functions of a random generator (nnU-Net behaviour 9.1-9.3).

Two intended deviations: a patch centred on a foreground voxel stays inside the case at the upper border as it
does at the lower (nnU-Net lets it extend beyond, nnU-Net behaviour 9.3), and with batch size 1 foreground is forced by
chance rather than never (nnU-Net behaviour 9.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from segwright.core.boxes import Box
from segwright.core.errors import ConfigError
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import require_arguments
from segwright.data.labels import OUTSIDE, ClassKey


class Voxels(Protocol):
    """Voxel indices (n, 3) in the axis order of the case, an array or rows on disk; n may be 0."""

    def __len__(self) -> int:
        """Return n."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return one voxel index (3,)."""
        ...


ClassLocations = Mapping[ClassKey, Voxels]
"""Voxels of each class or region in a preprocessed case."""


def num_forced(batch_size: int, fraction: float) -> int:
    """Return how many samples at the end of a batch must show foreground, by nnU-Net's rule.

    >>> [num_forced(size, 0.33) for size in (1, 2, 5, 9)]
    [0, 1, 2, 3]
    """
    return batch_size - min(max(round(batch_size * (1 - fraction)), 0), batch_size)


def uniform(identifiers: Sequence[str], rng: np.random.Generator) -> str:
    """Return one of the cases, all equally likely."""
    return identifiers[int(rng.integers(len(identifiers)))]


Sampler = Callable[[Sequence[str], np.random.Generator], str]
"""Chooses the case of a sample among those of a fold; its only randomness is the generator."""

SAMPLERS: Registry[Sampler] = Registry("sampler")
SAMPLERS.register("uniform", uniform)


def build_sampler(reference: str, kwargs: Mapping[str, Any] | None = None) -> Sampler:
    """Return the sampler of a registered name, or the function behind `module:attr`, with keyword arguments.

    Raises:
        ConfigError: there is none of that name, or it cannot be called as a sampler.
    """
    sampler: Sampler = import_reference(reference, kind="sampler") if ":" in reference else SAMPLERS.get(reference)
    contract = "fn(identifiers, rng, **sampler_kwargs) -> identifier"
    if isinstance(sampler, type):
        raise ConfigError(f"sampler '{reference}' is a class; give a function {contract}, or an object of the class")
    if not callable(sampler):
        raise ConfigError(f"sampler '{reference}' cannot be called; give a function {contract}")
    require_arguments(sampler, f"sampler '{reference}'", (), 2, kwargs or {}, contract=contract)
    return partial(sampler, **kwargs) if kwargs else sampler


def is_forced(
    index: int, batch_size: int, fraction: float, rng: np.random.Generator, *, by_chance: bool = False
) -> bool:
    """Return whether sample `index` of a batch must show foreground; in a batch of one it is always random."""
    if batch_size == 1 or by_chance:
        return bool(rng.random() < fraction)
    return index >= batch_size - num_forced(batch_size, fraction)


def start_range(shape: Sequence[int], patch_size: Sequence[int]) -> Box:
    """Return the half-open range of patch starts per axis; a case smaller than the patch is roughly centred in it."""
    ranges = []
    for size, patch in zip(shape, patch_size, strict=True):
        missing = max(patch - size, 0)
        low = -((missing + 1) // 2)
        high = size - patch + missing // 2 + missing % 2
        ranges.append((low, high + 1))
    return tuple(ranges)


def is_annotated(key: ClassKey) -> bool:
    """Return whether a key stands for all annotated voxels of a case with an ignore label, instead of a class."""
    return isinstance(key, tuple) and key[0] == OUTSIDE


def choose_class(
    locations: ClassLocations, rng: np.random.Generator, *, forced: bool, has_ignore: bool
) -> ClassKey | None:
    """Return the class on whose voxels the patch is centred, or None for a random position.

    If `forced`, it is one of the classes or regions of the case, all equally likely. With an ignore label all other
    patches are centred on annotated voxels, since there is nothing to learn elsewhere.
    """
    present = [key for key, voxels in locations.items() if len(voxels)]
    annotated = [key for key in present if is_annotated(key)]
    if not forced:
        return annotated[0] if has_ignore and annotated else None
    classes = [key for key in present if key not in annotated] or annotated
    return classes[int(rng.integers(len(classes)))] if classes else None


def choose_start(
    shape: Sequence[int],
    patch_size: Sequence[int],
    rng: np.random.Generator,
    *,
    voxels: Voxels | None = None,
) -> tuple[int, ...]:
    """Return the first voxel of the patch in the case; negative where the patch begins with padding.

    Args:
        shape: spatial shape of the case.
        patch_size: of the same length.
        rng: the generator of this sample.
        voxels: n > 0 candidates for the patch's centre; None: every position is equally likely.
    """
    ranges = start_range(shape, patch_size)
    if voxels is None:
        return tuple(int(rng.integers(low, high)) for low, high in ranges)
    voxel = voxels[int(rng.integers(len(voxels)))][-len(ranges) :]
    return tuple(
        min(max(int(position) - patch // 2, low), high - 1)
        for position, patch, (low, high) in zip(voxel, patch_size, ranges, strict=True)
    )


def read_box(array: Any, box: Box, *, fill: float, out: Any) -> None:
    """Copy `box` of `array` (K, *S) into `out` (K, *box), with `fill` outside of the array.

    `array` is anything with a shape and slices. Both are numpy arrays, or both tensors.
    """
    shape = array.shape[1:]
    inside = [(max(low, 0), min(high, size)) for (low, high), size in zip(box, shape, strict=True)]
    if any(low >= high for low, high in inside):
        out[...] = fill
        return
    if any(pair != wanted for pair, wanted in zip(inside, box, strict=True)):
        out[...] = fill
    source = (slice(None), *(slice(low, high) for low, high in inside))
    target = (
        slice(None),
        *(slice(low - first, high - first) for (low, high), (first, _) in zip(inside, box, strict=True)),
    )
    out[target] = array[source]
