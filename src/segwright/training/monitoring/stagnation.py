"""Warn about classes whose pseudo Dice stays at 0, and say how often training samples contain them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from segwright.data.labels import ClassKey
from segwright.training.clock import BUDGET_EPOCHS
from segwright.training.loading.sampling import ClassLocations, is_annotated
from segwright.training.monitoring.logbook import Metric

PATIENCE: Final = 20
"""Number of epochs with a pseudo Dice of 0 before a warning, and between repeated warnings."""

PATIENCE_FRACTION: Final = 0.2
"""Upper limit of the patience in short trainings, as a fraction of the epochs."""


def patience(num_epochs: int | None) -> int:
    """Return the epochs until a warning; `num_epochs` is None under a time budget.

    >>> patience(1000), patience(None)
    (20, 5)
    """
    return min(PATIENCE, max(2, math.ceil(PATIENCE_FRACTION * (num_epochs or BUDGET_EPOCHS))))


def epochs_at_zero(rows: Sequence[Mapping[str, Metric]], index: int) -> int:
    """Return for how many epochs, up to the last one, the pseudo Dice of class `index` has been 0."""
    count = 0
    for row in reversed(rows):
        dices = row.get("dice_per_class_or_region")
        if not isinstance(dices, list) or (dices[index] or 0.0) > 0:
            break
        count += 1
    return count


def stagnation_warnings(
    rows: Sequence[Mapping[str, Metric]],
    names: Sequence[str],
    keys: Sequence[ClassKey],
    *,
    num_epochs: int | None,
    forced: float,
    load_locations: Callable[[], Sequence[ClassLocations]],
) -> list[str]:
    """Return a warning for each class whose pseudo Dice has been 0 for a multiple of the patience.

    Args:
        rows: metrics of the epochs so far.
        names: of the foreground classes or regions, in the order of the pseudo Dice.
        keys: their keys in the class locations, in the same order.
        num_epochs: epochs of the training; None under a time budget.
        forced: share of samples that must show foreground.
        load_locations: returns the voxels of each class for every training case; called only if there is a warning.
    """
    wait = patience(num_epochs)
    epochs = [epochs_at_zero(rows, index) for index in range(len(names))]
    due = [index for index, count in enumerate(epochs) if count and count % wait == 0]
    locations = load_locations() if due else []
    return [warning(names[index], epochs[index], keys[index], locations, forced) for index in due]


def expected_share(key: ClassKey, locations: Sequence[ClassLocations], forced: float) -> float:
    """Return the expected share of samples centred on `key`; forced samples draw any class of their case.

    >>> expected_share(1, [{1: [0], 2: [0]}, {2: [0]}], 0.5)
    0.125
    """
    chances = []
    for each in locations:
        present = [other for other, voxels in each.items() if len(voxels) and not is_annotated(other)]
        chances.append(1 / len(present) if key in present else 0.0)
    return forced * sum(chances) / max(len(chances), 1)


def warning(name: str, epochs: int, key: ClassKey, locations: Sequence[ClassLocations], forced: float) -> str:
    """Return the warning for a class.

    Args:
        name: of the class.
        epochs: number of epochs with a pseudo Dice of 0.
        key: of the class in `locations`.
        locations: voxels of each class, one mapping for each training case.
        forced: share of samples that must show foreground.
    """
    num_cases = sum(1 for each in locations if len(each.get(key, ())))
    share = expected_share(key, locations, forced)
    return (
        f"warning: class '{name}': pseudo Dice has been 0 for {epochs} epochs; {num_cases} of {len(locations)} "
        f"training cases contain it and about {share:.1%} of the samples are centred on it. More foreground "
        "(--set oversample_foreground_percent=0.66), a class weight or more cases may help; check its labels too"
    )
