"""Classes that a network does not learn for long: named, with how often training shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from segwright.data.labels import ClassKey
from segwright.training.loading.sampling import ClassLocations, is_annotated
from segwright.training.monitoring.logbook import Metric
from segwright.training.optim.schedule import BUDGET_EPOCHS

if TYPE_CHECKING:
    from segwright.training.trainer import Trainer

PATIENCE: Final = 20
"""Epochs without a Dice above 0 after which a class is named, and each time as many more have passed."""

PATIENT_SHARE: Final = 0.2
"""In a short training so large a share of its epochs is patience enough."""


def patience(num_epochs: int | None) -> int:
    """Return the epochs to wait; without a number of epochs a budget decides how many there are.

    >>> patience(1000), patience(None)
    (20, 5)
    """
    return min(PATIENCE, max(2, math.ceil(PATIENT_SHARE * (num_epochs or BUDGET_EPOCHS))))


def epochs_at_zero(rows: Sequence[Mapping[str, Metric]], index: int) -> int:
    """Return for how many epochs, up to the last, class `index` has had no pseudo Dice above 0."""
    count = 0
    for row in reversed(rows):
        dices = row.get("dice_per_class_or_region")
        if not isinstance(dices, list) or (dices[index] or 0.0) > 0:
            break
        count += 1
    return count


def unlearned_lines(trainer: Trainer) -> list[str]:
    """Return a warning for each class that is due to be named at the end of this epoch."""
    wait = patience(trainer.clock.num_epochs)
    epochs = [epochs_at_zero(trainer.logbook.rows, index) for index in range(len(trainer.class_names))]
    due = [index for index, count in enumerate(epochs) if count and count % wait == 0]
    if not due:
        return []
    locations = [trainer.cases.load(name).class_locations for name in trainer.split.train]
    keys, forced = trainer.labels.evaluation_classes(), trainer.oversample_foreground_percent
    return [warning(trainer.class_names[index], epochs[index], keys[index], locations, forced) for index in due]


def expected_share(key: ClassKey, locations: Sequence[ClassLocations], forced: float) -> float:
    """Return the share of samples that is placed on a voxel of `key`: a forced one on any class that its case has.

    >>> expected_share(1, [{1: [0], 2: [0]}, {2: [0]}], 0.5)
    0.125
    """
    chances = []
    for each in locations:
        present = [other for other, voxels in each.items() if len(voxels) and not is_annotated(other)]
        chances.append(1 / len(present) if key in present else 0.0)
    return forced * sum(chances) / max(len(chances), 1)


def warning(name: str, epochs: int, key: ClassKey, locations: Sequence[ClassLocations], forced: float) -> str:
    """Return the line that names a class.

    Args:
        name: of the class.
        epochs: without a Dice above 0.
        key: of the class in `locations`.
        locations: voxels of each class, one mapping for each training case.
        forced: share of samples that must show foreground.
    """
    having = sum(1 for each in locations if len(each.get(key, ())))
    share = expected_share(key, locations, forced)
    return (
        f"warning: class '{name}' has had no pseudo Dice above 0 for {epochs} epochs; {having} of {len(locations)} "
        f"training cases contain it and about {share:.1%} of the samples are placed on it. More foreground "
        "(--set oversample_foreground_percent=0.66), a class weight or more cases may help; check its labels too"
    )
