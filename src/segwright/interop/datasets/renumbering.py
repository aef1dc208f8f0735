"""Number labels from 1 without gaps, where files may keep their values through a `label_map`."""

from __future__ import annotations

from collections.abc import Sequence


def label_numbers(stored: Sequence[int], *, ignore: int | None = None) -> dict[int, int] | None:
    """Return the label of each value other than the background.

    Values from 1 to their number stay as they are and the others fill the gaps, since a `label_map` may not map the
    value of another label.

    Args:
        stored: values in files.
        ignore: the value of voxels without annotation, which gets the highest label.

    Returns:
        None if the highest label is the stored value of another label, so that `ignore` cannot get it.

    >>> label_numbers([1, 2, 4]), label_numbers([2, 10]), label_numbers([1, 255], ignore=255)
    ({1: 1, 2: 2, 4: 3}, {2: 2, 10: 1}, {1: 1, 255: 2})
    """
    highest = len(stored)
    numbers = {value: value for value in stored if 1 <= value <= highest and value != ignore}
    if ignore is not None:
        if highest in numbers or (ignore < highest and ignore > 0):
            return None
        numbers[ignore] = highest
    free = iter(sorted({*range(1, highest + 1)} - {*numbers.values()}))
    return {value: numbers[value] if value in numbers else next(free) for value in stored}
