"""Find folds in which every label is spread evenly by integer programming, where swaps of groups found none."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

MAX_COEFFICIENTS: Final = 4000
"""Groups times folds times labels, such as 100 groups and 8 labels; larger problems took more than 3 s."""
_MAX_NODES: Final = 100
"""Of the search tree; a number, not a time, so that the same table always gets the same folds."""

Ints = npt.NDArray[np.intp]


def even_folds(sizes: Ints, occurrences: Ints, totals: Ints) -> Ints | None:
    """Return the fold of each group, with the cases of every label spread as evenly over folds as their number allows.

    Args:
        sizes: cases of each group (G,).
        occurrences: cases of each group with each label (G, L).
        totals: cases of each fold (K,) that a search by swaps found. With groups of one size, folds get these sizes;
            else sizes that differ by no more, or by at most the largest group.

    Returns:
        None if there are none, or the search gives up.
    """
    if occurrences.size * len(totals) > MAX_COEFFICIENTS:
        return None
    if np.ptp(sizes) == 0:
        return _solve(sizes, occurrences, totals, None)
    for spread in sorted({int(np.ptp(totals)), int(sizes.max())}):
        if (folds := _solve(sizes, occurrences, totals, spread)) is not None:
            return folds
    return None


def _solve(sizes: Ints, occurrences: Ints, totals: Ints, spread: int | None) -> Ints | None:
    """Solve for folds of the given sizes, or of sizes within `spread` of the smallest, which is the last variable."""
    num_groups, num_folds = len(sizes), len(totals)
    per_fold, no_column = np.eye(num_folds), np.zeros(num_folds)
    cases = np.kron(sizes[None], per_fold)
    in_one_fold = LinearConstraint(_rows(np.kron(np.eye(num_groups), np.ones(num_folds)), 0), 1, 1)
    shares = np.repeat(occurrences.sum(axis=0) / num_folds, num_folds)
    spread_evenly = LinearConstraint(_rows(np.kron(occurrences.T, per_fold), 0), np.floor(shares), np.ceil(shares))
    if spread is None:
        sized = LinearConstraint(_rows(cases, 0), totals, totals)
    else:
        sized = LinearConstraint(_rows(cases, -1), no_column, no_column + spread)
    count = num_groups * num_folds
    found = milp(
        np.zeros(count + 1),
        integrality=np.append(np.ones(count), 0),
        bounds=Bounds(np.append(np.zeros(count), 1), np.append(np.ones(count), sizes.sum())),
        constraints=[in_one_fold, spread_evenly, sized],
        options={"node_limit": _MAX_NODES},
    )
    if found.x is None:
        return None
    folds: Ints = np.asarray(found.x[:count]).reshape(num_groups, num_folds).argmax(axis=1)
    return folds


def _rows(coefficients: npt.NDArray[Any], smallest: float) -> npt.NDArray[Any]:
    """Return rows with the coefficient of the smallest fold's size added."""
    return np.column_stack([coefficients, np.full(len(coefficients), smallest)])
