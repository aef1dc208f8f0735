"""What must hold for folds of any dataset: groups stay together, sizes and labels are balanced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from segwright.data.crossval import balance
from segwright.data.crossval.balance import grouped_splits
from segwright.data.crossval.splits import NUM_FOLDS, Split, default_splits

NUM_TABLES = 1000


def random_groups(random: np.random.Generator) -> dict[str, str]:
    """Return a group for each of 2 to 80 cases; few or many groups, of equal or very different sizes."""
    num_cases = int(random.integers(2, 81))
    num_groups = int(random.integers(2, num_cases + 1))
    shares = random.dirichlet(np.full(num_groups, random.choice([0.2, 1, 100])))
    drawn = [0, 1, *random.choice(num_groups, size=num_cases - 2, p=shares)]
    return {f"case{number:02}": f"patient{group}" for number, group in enumerate(drawn)}


def random_labels(cases: Sequence[str], num_labels: int, random: np.random.Generator) -> dict[str, set[int]]:
    shares = random.random(num_labels)
    return {case: {int(label) + 1 for label in np.flatnonzero(random.random(num_labels) < shares)} for case in cases}


def spreads(splits: Sequence[Split], labels: Mapping[str, set[int]], num_labels: int) -> list[int]:
    """Return by how much the numbers of held-out cases with each label differ among folds."""
    values = range(1, num_labels + 1)
    counts = [[sum(value in labels[case] for case in split.val) for value in values] for split in splits]
    return [int(spread) for spread in np.ptp(counts, axis=0)]


def require_folds(splits: Sequence[Split], groups: Mapping[str, str]) -> None:
    """Check that each case is held out once, with its group, and that sizes differ by at most the largest group."""
    assert sorted(case for split in splits for case in split.val) == sorted(groups)
    held_out = [{groups[case] for case in split.val} for split in splits]
    assert sum(map(len, held_out)) == len(set(groups.values()))
    for split, inside in zip(splits, held_out, strict=True):
        assert sorted(split.train + split.val) == sorted(groups)
        assert not inside & {groups[case] for case in split.train}
    sizes = [len(split.val) for split in splits]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= max(Counter(groups.values()).values())


def test_groups_are_never_divided_and_sizes_differ_by_at_most_the_largest() -> None:
    random = np.random.default_rng(0)
    for _ in range(NUM_TABLES):
        groups = random_groups(random)
        splits = grouped_splits(groups)
        require_folds(splits, groups)
        assert len(splits) == min(NUM_FOLDS, len(set(groups.values())))


def test_groups_stay_together_when_labels_are_spread() -> None:
    random = np.random.default_rng(1)
    for _ in range(30):
        groups = random_groups(random)
        require_folds(grouped_splits(groups, random_labels([*groups], 3, random)), groups)


@pytest.mark.parametrize("num_cases", [5, 6, 9, 20, 37])
def test_groups_of_one_case_are_nnunet_s_folds(num_cases: int) -> None:
    cases = [f"case{number:02}" for number in range(num_cases)]
    assert grouped_splits({case: case for case in cases}) == default_splits(cases)


def can_be_even(labels: Mapping[str, set[int]], num_labels: int) -> bool:
    """Return whether some folds of nnU-Net's sizes have every label equally often, up to one case."""
    has = np.array([[value + 1 in found for value in range(num_labels)] for found in labels.values()], dtype=float)
    num_cases = len(has)
    in_one_fold = LinearConstraint(np.kron(np.eye(num_cases), np.ones(NUM_FOLDS)), 1, 1)
    counted = np.kron(np.column_stack([np.ones(num_cases), has]).T, np.eye(NUM_FOLDS))  # rows: sizes, then labels
    totals = np.repeat(has.sum(axis=0), NUM_FOLDS)
    sizes = [len(part) for part in np.array_split(range(num_cases), NUM_FOLDS)]
    limits = LinearConstraint(
        counted,
        [*sizes, *np.floor(totals / NUM_FOLDS)],
        [*sizes, *np.ceil(totals / NUM_FOLDS)],
    )
    variables = num_cases * NUM_FOLDS
    found = milp(
        np.zeros(variables), constraints=[in_one_fold, limits], integrality=np.ones(variables), bounds=Bounds(0, 1)
    )
    return bool(found.status != 2)  # 2: infeasible


def test_labels_are_spread_within_one_case_wherever_that_is_possible() -> None:
    random = np.random.default_rng(2)
    num_uneven = 0
    for _ in range(300):
        num_labels = int(random.integers(1, 10))
        cases = [f"case{number:02}" for number in range(int(random.integers(5, 50)))]
        labels = random_labels(cases, num_labels, random)
        splits = grouped_splits({case: case for case in cases}, labels)
        assert [len(split.val) for split in splits] == [len(split.val) for split in default_splits(cases)]
        if max(spreads(splits, labels, num_labels)) > 1:
            num_uneven += 1
            assert not can_be_even(labels, num_labels)
    assert num_uneven > 0, "no table is hard; the comparison is not tested"


def even_assignment_exists(groups: Mapping[str, str], labels: Mapping[str, set[int]], num_labels: int) -> bool:
    """Try all assignments of a few groups to folds that differ in size by at most the largest group."""
    names = sorted(set(groups.values()))
    sizes = np.array([sum(group == name for group in groups.values()) for name in names])
    counts = np.zeros((len(names), num_labels), dtype=int)
    for case, group in groups.items():
        counts[names.index(group), [value - 1 for value in labels[case]]] += 1
    num_folds = min(NUM_FOLDS, len(names))
    folds = np.indices((num_folds,) * len(names)).reshape(len(names), -1)
    per_fold = [folds == fold for fold in range(num_folds)]  # each (groups, assignments)
    totals = np.stack([sizes @ chosen for chosen in per_fold])
    is_even = (totals.min(axis=0) > 0) & (np.ptp(totals, axis=0) <= sizes.max())
    for column in counts.T:
        is_even &= np.ptp(np.stack([column @ chosen for chosen in per_fold]), axis=0) <= 1
    return bool(is_even.any())


def test_labels_of_groups_are_spread_within_one_case_wherever_that_is_possible() -> None:
    random = np.random.default_rng(3)
    num_even = num_uneven = 0
    for _ in range(30):
        num_labels = int(random.integers(1, 4))
        sizes = random.integers(1, 4, size=int(random.integers(4, 7)))
        groups = {f"case{group}{case}": f"g{group}" for group, size in enumerate(sizes) for case in range(size)}
        labels = random_labels([*groups], num_labels, random)
        splits = grouped_splits(groups, labels)
        require_folds(splits, groups)
        if max(spreads(splits, labels, num_labels)) <= 1:
            num_even += 1
        else:
            num_uneven += 1
            assert not even_assignment_exists(groups, labels, num_labels)
    assert min(num_even, num_uneven) > 5


def test_folds_that_swaps_do_not_find_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    of_groups = [(1, 1), (1, 3), (1, 1), (2, 2), (2, 3), (1, 1), (2, 2)]  # cases with the label, and all
    groups: dict[str, str] = {}
    labels: dict[str, set[int]] = {}
    for group, (count, size) in enumerate(of_groups):
        for case in range(size):
            groups[f"case{group}{case}"] = f"g{group}"
            labels[f"case{group}{case}"] = {1} if case < count else set()
    assert spreads(grouped_splits(groups, labels), labels, 1) == [0]
    monkeypatch.setattr(balance, "even_folds", lambda *_: None)
    assert spreads(grouped_splits(groups, labels), labels, 1) == [2]


def test_nnunet_s_folds_spread_a_rare_label_worse() -> None:
    cases = [f"case{number:02}" for number in range(30)]
    labels = {case: {1} if number < 6 else set() for number, case in enumerate(cases)}
    assert spreads(default_splits(cases), labels, 1) > [1]
    assert spreads(grouped_splits({case: case for case in cases}, labels), labels, 1) == [1]
