"""Mirroring where labels tell left from right."""

from __future__ import annotations

from collections.abc import Collection

from segwright.data.dataset import DatasetDescription
from segwright.data.labels import Labels
from segwright.data.laterality import LabelPairs, find_pairs, mirrored_values
from segwright.planning.rationale import EVERYWHERE, Decision

Lateral = tuple[int, bool]
"""The axis of an image as read (Z, Y, X) that runs between left and right, and which way."""

_SWAPPED = "all images lie the same way, so a mirrored sample gets the labels of the other side"


def choose_mirroring(
    description: DatasetDescription, order: tuple[int, ...], lateral: Collection[Lateral | None]
) -> tuple[LabelPairs | None, tuple[Decision, ...]]:
    """Return the left and right of a plan, and why; None and no reason for labels without sides.

    Where images lie in different ways, the side is no matter of position, and only the appearance can tell it: a
    mirrored sample would show one that does not exist, so the axis is not mirrored.

    Args:
        description: the dataset's `dataset.json`.
        order: axis order, `transpose_forward`.
        lateral: the different ways the images lie; None for one whose file does not tell.
    """
    pairs = find_pairs(description)
    if not pairs:
        return None, ()
    if not lateral or None in lateral:
        axes = tuple(range(len(order)))
        swap, because = False, "not every image tells where left and right are, so nothing is mirrored"
    else:
        axes = tuple(sorted({order.index(way[0]) for way in lateral if way is not None}))
        swap, because = len(lateral) == 1, _SWAPPED
        if not swap:
            because = f"images lie in {len(lateral)} ways, so position does not tell the side: these axes not mirrored"
    if swap and mirrored_values(Labels.from_description(description), pairs) is None:
        swap, because = False, "the regions of both sides do not have as many labels: this axis is not mirrored"
    sides = LabelPairs(pairs=pairs, axes=axes, swap=swap)
    shown = {
        "mirroring": "swaps the labels" if swap else "off",
        "axes": list(axes),
        "pairs": [f"{left} | {right}" for left, right in pairs],
    }
    source = "found by their names" if description.label_pairs is None else "declared in dataset.json"
    reason = f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of labels, {source}; {because}"
    return sides, (Decision(configuration=EVERYWHERE, decision="left and right", value=shown, because=reason),)
