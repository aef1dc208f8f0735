"""Deal groups of cases to folds, so that folds have equal sizes and, if wanted, equal numbers of cases per label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import DatasetError
from segwright.data.crossval.exact import even_folds
from segwright.data.crossval.splits import NUM_FOLDS, SPLIT_SEED, Split

Labels = Mapping[str, Collection[int]]
"""The labels that occur in each case."""

_ROUNDS: Final = 20
"""Times that the best assignment is disturbed and improved again while a label is spread unevenly."""
_DISTURBED: Final = 6
"""Swaps of a disturbance."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


def grouped_splits(groups: Mapping[str, str], labels: Labels | None = None) -> list[Split]:
    """Return five folds, fewer if there are fewer groups, in which no group is in two folds.

    Sizes of folds differ by at most the largest group. Groups of one size each give nnU-Net's folds of groups; so
    groups of one case give nnU-Net's folds.

    Args:
        groups: the group of each case.
        labels: if given, the numbers of cases with a label differ by at most one among the folds, where possible.

    Raises:
        DatasetError: there is one group only.
    """
    names = sorted(set(groups.values()))
    if len(names) < 2:
        raise DatasetError(
            f"all {len(groups)} cases are in one group, {', '.join(names)}, and folds need at least two; give other "
            "groups, or train on all cases (fold all)"
        )
    np.random.RandomState(SPLIT_SEED).shuffle(order := np.arange(len(names)))
    shuffled = [names[index] for index in order]
    counted = Counter(groups.values())
    sizes = np.array([counted[name] for name in shuffled])
    num_folds = min(NUM_FOLDS, len(names))
    slots = _deal(sizes, num_folds)
    if not labels or not any(labels.values()):
        folds = _hand_out(sizes, {size: sorted(found) for size, found in slots.items()}, np.arange(len(sizes)))
        _, first, folds = np.unique(folds, return_index=True, return_inverse=True)
        folds = np.argsort(np.argsort(first))[folds]  # numbered by their first groups, as nnU-Net's folds are
    else:
        folds = _stratify(sizes, slots, _occurrences(groups, shuffled, labels), num_folds)
    fold_of = dict(zip(shuffled, folds.tolist(), strict=True))
    cases = sorted(groups)
    return [
        Split(
            train=tuple(case for case in cases if fold_of[groups[case]] != fold),
            val=tuple(case for case in cases if fold_of[groups[case]] == fold),
        )
        for fold in range(num_folds)
    ]


def _deal(sizes: Ints, num_folds: int) -> dict[int, list[int]]:
    """Return the folds that the groups of each size go to, largest groups first, each to the smallest fold."""
    totals = [0] * num_folds
    slots: dict[int, list[int]] = {}
    for size in sorted(sizes.tolist(), reverse=True):
        fold = totals.index(min(totals))
        totals[fold] += size
        slots.setdefault(size, []).append(fold)
    return slots


def _hand_out(sizes: Ints, slots: Mapping[int, Sequence[int]], order: Ints) -> Ints:
    """Return the fold of each group, the slots of its size handed out in the given order of groups."""
    left = {size: iter(found) for size, found in slots.items()}
    folds = np.empty(len(sizes), dtype=np.intp)
    for index in order:
        folds[index] = next(left[int(sizes[index])])
    return folds


def _occurrences(groups: Mapping[str, str], names: Sequence[str], labels: Labels) -> Ints:
    """Return in how many cases of each group (row) each label (column) occurs."""
    values = sorted({value for found in labels.values() for value in found})
    row, column = ({name: index for index, name in enumerate(each)} for each in (names, values))
    counts = np.zeros((len(names), len(values)), dtype=np.intp)
    for case, group in groups.items():
        for value in labels[case]:
            counts[row[group], column[value]] += 1
    return counts


def _stratify(sizes: Ints, slots: Mapping[int, Sequence[int]], occurrences: Ints, num_folds: int) -> Ints:
    """Return the fold of each group with which all labels are spread most evenly.

    Groups are dealt in the order of their labels, rare labels first. Then pairs of groups are swapped while that makes
    the spread more even, anew from disturbed assignments while a label is spread unevenly. If one stays so, all
    assignments are searched.
    """
    rarest_last = np.argsort(-occurrences.sum(axis=0), kind="stable")
    folds = _hand_out(sizes, slots, np.lexsort(occurrences.T[rarest_last])[::-1])
    random = np.random.RandomState(SPLIT_SEED)
    best = _Assignment.of(sizes, occurrences, folds, num_folds).improved()
    for _ in range(_ROUNDS):
        if not best.unevenness:
            break
        other = best.disturbed(random).improved()
        best = min(best, other, key=lambda each: (each.unevenness, each.cost))
    even = even_folds(sizes, occurrences, best.totals[:, 0].astype(np.intp)) if best.unevenness else None
    return best.folds if even is None else even


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assignment:
    """Groups assigned to folds.

    Attributes:
        folds: fold of each group; (G,).
        columns: cases of each group: all, and those with each label; (G, 1 + L).
        totals: sums over the groups of each fold; (K, 1 + L).
    """

    folds: Ints
    columns: Floats
    totals: Floats

    @classmethod
    def of(cls, sizes: Ints, occurrences: Ints, folds: Ints, num_folds: int) -> _Assignment:
        """Return the assignment of groups with these sizes and label counts."""
        columns = np.column_stack([sizes, occurrences]).astype(np.float64)
        totals = np.stack([columns[folds == fold].sum(axis=0) for fold in range(num_folds)])
        return cls(folds=folds, columns=columns, totals=totals)

    @property
    def unevenness(self) -> float:
        """By how much the numbers of cases with each label differ by more than one among folds, summed."""
        return float(np.maximum(np.ptp(self.totals[:, 1:], axis=0) - 1, 0).sum())

    @property
    def cost(self) -> float:
        """Squared deviations of the totals from their means, summed."""
        return float(((self.totals - self.totals.mean(axis=0)) ** 2).sum())

    def improved(self) -> _Assignment:
        """Return the assignment after all swaps of two groups that lower the cost."""
        current, is_better = self, True
        while is_better:
            is_better = False
            for one, other in combinations(range(len(self.totals)), 2):
                swap = current.best_swap(one, other)
                if swap is not None:
                    current, is_better = current.swapped(*swap), True
        return current

    def best_swap(self, one: int, other: int) -> tuple[int, int] | None:
        """Return the groups of two folds whose swap lowers the cost most; None if none lowers it."""
        first, second = np.flatnonzero(self.folds == one), np.flatnonzero(self.folds == other)
        here, there = self.columns[first], self.columns[second]
        gap = self.totals[other] - self.totals[one]
        squares = (here**2).sum(axis=1)[:, None] + (there**2).sum(axis=1) - 2 * here @ there.T
        change = 2 * ((here @ gap)[:, None] - there @ gap + squares)  # whole numbers, exact in any order of addition
        moved = here[:, :1] - there[:, 0]  # cases that fold `other` gains
        change[~self._keeps_sizes(one, other, moved)] = np.inf
        row, column = np.unravel_index(int(change.argmin()), change.shape)
        return (int(first[row]), int(second[column])) if change[row, column] < 0 else None

    def swapped(self, group: int, other: int) -> _Assignment:
        """Return the assignment with two groups swapped."""
        folds, totals = self.folds.copy(), self.totals.copy()
        difference = self.columns[group] - self.columns[other]
        totals[folds[group]] -= difference
        totals[folds[other]] += difference
        folds[[group, other]] = folds[[other, group]]
        return _Assignment(folds=folds, columns=self.columns, totals=totals)

    def disturbed(self, random: np.random.RandomState) -> _Assignment:
        """Return the assignment after some swaps of groups of equal size."""
        current = self
        for _ in range(_DISTURBED):
            group = int(random.randint(len(self.folds)))
            equal = np.flatnonzero(self.columns[:, 0] == self.columns[group, 0])
            current = current.swapped(group, int(equal[random.randint(len(equal))]))
        return current

    def _keeps_sizes(self, one: int, other: int, moved: Floats) -> npt.NDArray[np.bool_]:
        """Return whether sizes of folds still differ by at most the largest group after fold `other` gains cases."""
        sizes = self.totals[:, 0]
        others = np.delete(sizes, [one, other])
        new = np.stack([sizes[one] - moved, sizes[other] + moved])
        largest = np.maximum(new.max(axis=0), others.max(initial=-np.inf))
        smallest = np.minimum(new.min(axis=0), others.min(initial=np.inf))
        kept: npt.NDArray[np.bool_] = largest - smallest <= self.columns[:, 0].max()
        return kept
