"""Find pairs of structures that are mirror images of each other in label maps, such as numbered left and right ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

MAX_VOXELS: Final = 2**21
"""Larger label maps are read at every second, third, ... voxel of their axes."""
MAX_POINTS: Final = 100
"""Voxels of a structure that are mirrored; an overlap, from those of both structures, has a standard error of 0.03."""
MIN_VOXELS: Final = 30
"""Smaller structures are not compared: a shift of one voxel decides their overlap."""
MAX_CASES: Final = 5
"""Cases that are measured, evenly spread over a dataset; each takes about 11 ms (37 structures, 1.1 million voxels)."""
MIN_CASES: Final = 3
"""Cases in which a pair must be found."""
MIN_OVERLAP: Final = 0.5
"""Dice of a mirrored structure with its counterpart: 0.57 to 0.97 in mouse brains, with other structures up to 0.2."""
MAX_OTHER_OVERLAP: Final = 0.5
"""Largest overlap with any other structure, as a share of that with the counterpart."""
MAX_VOLUME_RATIO: Final = 2.0
"""Between the structures of a pair."""
MIN_SHARE_OF_CASES: Final = 0.75
"""Share of the cases with both structures in which a proposed pair is found; views may cut structures off."""
MIN_SYMMETRIC_SHARE: Final = 0.8
"""Share of the labelled volume in pairs and in structures that are their own mirror images."""
MIN_CERTAIN_PAIRS: Final = 3
"""Pairs that are used without a declaration: as a plane is determined by one pair, the others confirm it."""
MAX_TILT: Final = 30.0
"""Degrees between the normal of the mirror plane and the left-right axis; the mouse brains lie askew by 15."""

_SLOPES = ((0.0, 0.0), (0.27, 0.0), (-0.27, 0.0), (0.0, 0.27), (0.0, -0.27))
"""Of the normals of the planes that are tried first, towards both other axes; 15 degrees."""
_NUM_OFFSETS = 15
"""Positions of these planes."""
_REACH = 0.15
"""Distance at which structures are similar by exp(-1/2), in units of their RMS distance from their centre."""
_ROUNDS = 8
_PRIOR = 0.05
"""Weight of the axis in the fit of the plane, in units of the structures' mean squared distance from their centre."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSymmetry:
    """How the mirror images of the structures of one case overlap its structures.

    Attributes:
        values: label values with at least `MIN_VOXELS` voxels, K of them.
        volumes: of the structures, voxels (of those that were read); (K,).
        overlap: Dice of the mirror image of a structure (row) with a structure (column); (K, K), symmetric.
        side: distance of the structures' centres from the plane, mm, positive to the left; (K,).
    """

    values: tuple[int, ...]
    volumes: Ints
    overlap: Floats
    side: Floats

    def overlap_of(self, one: int, other: int) -> float:
        """Return the overlap of two label values."""
        return float(self.overlap[self.values.index(one), self.values.index(other)])

    def matches(self) -> dict[int, int]:
        """Return the clear counterparts of structures by label value; a structure itself where it is symmetric.

        Both overlap by `MIN_OVERLAP`, neither overlaps any other structure by more than `MAX_OTHER_OVERLAP` of that,
        and their volumes differ by at most `MAX_VOLUME_RATIO`.
        """
        found = {}
        for one, row in enumerate(self.overlap):
            other = int(row.argmax())
            next_best = np.delete(row, other).max(initial=0.0)
            ratio = self.volumes[one] / self.volumes[other]
            if (
                row[other] >= MIN_OVERLAP
                and next_best <= MAX_OTHER_OVERLAP * row[other]
                and 1 / MAX_VOLUME_RATIO <= ratio <= MAX_VOLUME_RATIO
            ):
                found[one] = other
        return {self.values[one]: self.values[other] for one, other in found.items() if found.get(other) == one}

    def symmetric_share(self) -> float:
        """Return the share of the volume in structures with clear counterparts."""
        matched = np.isin(self.values, list(self.matches()))
        return float(self.volumes[matched].sum() / self.volumes.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetricPairs:
    """Pairs of structures that are mirror images of each other.

    Attributes:
        pairs: label values, that of the left structure first.
        num_cases: cases that were measured.
        least_overlap: smallest Dice of a mirrored structure with its counterpart.
        are_certain: whether they may be used without being declared.
    """

    pairs: tuple[tuple[int, int], ...]
    num_cases: int
    least_overlap: float
    are_certain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Evidence for one pair.

    Attributes:
        values: label values, that of the left structure first.
        least_overlap: in the cases that show it.
        is_in_all: whether all cases with both structures show it.
        is_one_sided: whether the same structure is the left one in these cases.
    """

    values: tuple[int, int]
    least_overlap: float
    is_in_all: bool
    is_one_sided: bool

    @classmethod
    def of(cls, one: int, other: int, cases: Sequence[CaseSymmetry], *, is_in_all: bool) -> _Pair:
        """Return the evidence from the cases that show the pair."""
        to_left = [case.side[case.values.index(one)] > case.side[case.values.index(other)] for case in cases]
        return cls(
            values=(one, other) if 2 * sum(to_left) > len(cases) else (other, one),
            least_overlap=min(case.overlap_of(one, other) for case in cases),
            is_in_all=is_in_all,
            is_one_sided=len(set(to_left)) == 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """The points x with `normal @ x == offset`, in mm."""

    normal: Floats
    offset: float

    def distance(self, points: Floats) -> Floats:
        """Return the signed distances (n,) of points (n, 3)."""
        distance: Floats = points @ self.normal - self.offset
        return distance

    def mirror(self, points: Floats) -> Floats:
        """Return the mirror images (n, 3) of points (n, 3)."""
        mirrored: Floats = points - 2 * self.distance(points)[:, None] * self.normal
        return mirrored


@dataclass(frozen=True, slots=True, kw_only=True)
class _Structures:
    """The structures of one case.

    Attributes:
        grid: label map (Z, Y, X).
        voxel: size of a voxel, mm; (3,).
        values: label values of the structures, ascending, K of them.
        number: structure of each label value, K for none.
        volumes: voxels; (K,).
        points: a sample of their voxels, mm; (n, 3).
        owner: structure of each point; (n,).
    """

    grid: npt.NDArray[Any]
    voxel: Floats
    values: tuple[int, ...]
    number: Ints
    volumes: Ints
    points: Floats
    owner: Ints

    def centres(self) -> Floats:
        """Return the centres of the structures, mm; (K, 3)."""
        counts = np.bincount(self.owner)
        return np.stack([np.bincount(self.owner, column) / counts for column in self.points.T], axis=1)

    def found_at(self, points: Floats) -> Ints:
        """Return the structure at each point (n, 3), K for none."""
        nearest = np.rint(points / self.voxel).astype(np.intp).T
        flat = np.ravel_multi_index((nearest[0], nearest[1], nearest[2]), self.grid.shape, mode="clip")
        found: Ints = self.number[np.clip(self.grid.reshape(-1)[flat], 0, len(self.number) - 1).astype(np.intp)]
        for index, size in zip(nearest, self.grid.shape, strict=True):
            found[(index < 0) | (index >= size)] = len(self.values)
        return found

    def overlap(self, plane: _Plane) -> Floats:
        """Return the Dice of mirrored structures with structures; (K, K), symmetric."""
        num = len(self.values)
        hits = self.found_at(plane.mirror(self.points))
        counts = np.bincount(self.owner * (num + 1) + hits, minlength=num * (num + 1)).reshape(num, num + 1)[:, :num]
        shared = counts * (self.volumes / np.bincount(self.owner))[:, None]  # voxels
        dice: Floats = (shared + shared.T) / (self.volumes[:, None] + self.volumes)
        return dice


def measure_symmetry(
    label: npt.NDArray[Any], spacing: Sequence[float], left_axis: tuple[int, bool], values: Sequence[int]
) -> CaseSymmetry | None:
    """Find the plane about which the structures of a label map are most symmetric, and mirror them.

    The search starts with the plane, upright or tilted, that brings centres of structures nearest to centres. Then, in
    turns, structures are matched, and the plane is fitted to the centres of the matches. Matches are the structures
    with the nearest centres first, and then those with the largest overlap.

    Args:
        label: label map (Z, Y, X).
        spacing: mm, in the order of its axes.
        left_axis: the axis between left and right, and whether it runs to the left.
        values: labels of the structures, ascending; others are ignored.

    Returns:
        None if no structure is large enough.
    """
    structures = _structures(label, spacing, values)
    if structures is None:
        return None
    axis, to_left = left_axis
    normal = np.eye(3)[axis]
    centres = structures.centres()
    plane = _start(centres, structures.volumes, axis)
    best = plane, structures.overlap(plane)
    nearness = _nearness(centres, structures.volumes, plane.normal, np.array([plane.offset]))[0]
    plane = _fit(centres, nearness, plane, normal)
    for _ in range(_ROUNDS):
        overlap = structures.overlap(plane)
        if overlap.max(axis=1).sum() <= best[1].max(axis=1).sum():
            break
        best = plane, overlap
        plane = _fit(centres, overlap, plane, normal)
    plane, overlap = best
    return CaseSymmetry(
        values=structures.values,
        volumes=structures.volumes,
        overlap=overlap,
        side=plane.distance(centres) * (1 if to_left else -1),
    )


def find_symmetric_pairs(cases: Sequence[CaseSymmetry]) -> SymmetricPairs | None:
    """Return the pairs of structures that are clear counterparts of each other in several cases; None without any.

    A pair is found in at least `MIN_CASES` cases and in `MIN_SHARE_OF_CASES` of those with both structures. In none of
    the latter may one of them have another counterpart, itself included. As some plane fits any single pair, one alone
    counts only if it is found in every case with both structures, and if `MIN_SYMMETRIC_SHARE` of the labelled volume
    is symmetric in every case.

    Pairs are certain if there are `MIN_CERTAIN_PAIRS`, each found in every case with both structures and with the same
    one on the left, and if `MIN_SYMMETRIC_SHARE` of the labelled volume is symmetric in every case.
    """
    matches = [case.matches() for case in cases]
    found: list[_Pair] = []
    for one, other in sorted({pair for match in matches for pair in match.items() if pair[0] < pair[1]}):
        has_both = [index for index, case in enumerate(cases) if one in case.values and other in case.values]
        shown_by = [index for index in has_both if matches[index].get(one) == other]
        is_contradicted = any({one, other} & matches[index].keys() for index in has_both if index not in shown_by)
        if len(shown_by) >= max(MIN_CASES, MIN_SHARE_OF_CASES * len(has_both)) and not is_contradicted:
            evidence = [cases[index] for index in shown_by]
            found.append(_Pair.of(one, other, evidence, is_in_all=shown_by == has_both))
    are_symmetric = all(case.symmetric_share() >= MIN_SYMMETRIC_SHARE for case in cases)
    if not found or (len(found) == 1 and not (found[0].is_in_all and are_symmetric)):
        return None
    return SymmetricPairs(
        pairs=tuple(pair.values for pair in found),
        num_cases=len(cases),
        least_overlap=min(pair.least_overlap for pair in found),
        are_certain=are_symmetric
        and len(found) >= MIN_CERTAIN_PAIRS
        and all(pair.is_in_all and pair.is_one_sided for pair in found),
    )


def _structures(label: npt.NDArray[Any], spacing: Sequence[float], values: Sequence[int]) -> _Structures | None:
    """Return the structures that are large enough; None if there are none."""
    steps = _steps(label.shape, spacing)
    grid = np.ascontiguousarray(label[tuple(slice(None, None, step) for step in steps)])
    flat = np.flatnonzero(grid != 0)  # four times as fast as without the comparison
    labelled = np.clip(grid.reshape(-1)[flat], 0, max(values) + 1).astype(np.uint16)
    counts = np.bincount(labelled, minlength=max(values) + 2)
    kept = [value for value in values if counts[value] >= MIN_VOXELS]
    if not kept:
        return None
    flat = flat[np.argsort(labelled, kind="stable")]  # by label value
    ends = np.cumsum(counts)
    samples = [_spread(int(ends[value] - counts[value]), int(ends[value])) for value in kept]
    voxel = np.multiply(spacing, steps).astype(np.float64)
    number = np.full(len(counts), len(kept))
    number[kept] = np.arange(len(kept))
    return _Structures(
        grid=grid,
        voxel=voxel,
        values=tuple(kept),
        number=number,
        volumes=counts[kept],
        points=np.stack(np.unravel_index(flat[np.concatenate(samples)], grid.shape), axis=1) * voxel,
        owner=np.repeat(np.arange(len(kept)), [len(sample) for sample in samples]),
    )


def _steps(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the step along each axis with which at most `MAX_VOXELS` are read; fine axes first."""
    steps = [1] * len(shape)
    while math.prod(-(-size // step) for size, step in zip(shape, steps, strict=True)) > MAX_VOXELS:
        long = [axis for axis, size in enumerate(shape) if size > steps[axis]]
        steps[min(long, key=lambda axis: spacing[axis] * steps[axis])] += 1
    return tuple(steps)


def _spread(start: int, end: int) -> Ints:
    """Return at most `MAX_POINTS` numbers from `start` to `end`, evenly spread."""
    count = min(end - start, MAX_POINTS)
    return start + np.arange(count) * (end - start) // count


def _start(centres: Floats, volumes: Ints, axis: int) -> _Plane:
    """Return the plane across `axis` that brings the centres (K, 3) of structures nearest to centres."""
    candidates = []
    for slopes in _SLOPES:
        normal = np.insert(np.array(slopes), axis, 1.0)
        normal /= np.linalg.norm(normal)
        low, high = np.quantile(centres @ normal, (0.1, 0.9))
        offsets = np.linspace(low, high, _NUM_OFFSETS)
        scores = _nearness(centres, volumes, normal, offsets).max(axis=2).sum(axis=1)
        best = int(scores.argmax())
        candidates.append((scores[best], _Plane(normal=normal, offset=float(offsets[best]))))
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _nearness(centres: Floats, volumes: Ints, normal: Floats, offsets: Floats) -> Floats:
    """Return how near mirrored centres (K, 3) are to centres, less where volumes differ; (planes, K, K)."""
    between = centres[:, None] - centres  # (K, K, 3)
    spread = (between**2).sum(axis=2).mean() / 2
    across = between @ normal
    height = (centres @ normal)[:, None] - offsets[:, None, None]  # (planes, K, 1); mirrored by - 2 height normal
    squares = (
        (between**2).sum(axis=2) - 4 * height * across + 4 * height**2
    )  # of the distances between - 2 height normal
    ratio = volumes[:, None] / volumes
    nearness: Floats = np.exp(-squares / max(2 * _REACH**2 * spread, 1e-12)) * np.minimum(ratio, 1 / ratio)
    return nearness


def _fit(centres: Floats, similarity: Floats, plane: _Plane, axis: Floats) -> _Plane:
    """Return the plane that maps centres (K, 3) best to those of their matches.

    The mirror image of p is p - 2 (n p) n, so that the squared distances of q are least for the normal n with the
    smallest sum of (n p) (n q): the last eigenvector of the sum of p q^T + q p^T.
    """
    match = similarity.argmax(axis=1)
    weight = similarity.max(axis=1) * (match[match] == np.arange(len(match)))  # mutual matches
    if not weight.any():
        return plane
    middle = np.average((centres + centres[match]) / 2, axis=0, weights=weight)
    one, other = centres - middle, centres[match] - middle
    products = np.einsum("k,ki,kj->ij", weight / weight.sum(), one, other)
    prior = _PRIOR * np.average((one**2).sum(axis=1), weights=weight)
    _, vectors = np.linalg.eigh(products + products.T - prior * np.outer(axis, axis))
    normal = vectors[:, 0] * (1.0 if vectors[:, 0] @ axis >= 0 else -1.0)
    if np.degrees(np.arccos(np.clip(normal @ axis, -1, 1))) > MAX_TILT:
        normal = plane.normal
    return _Plane(normal=normal, offset=float(normal @ middle))
