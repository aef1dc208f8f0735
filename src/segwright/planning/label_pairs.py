"""Choose mirroring for datasets with pairs of left and right labels."""

from __future__ import annotations

from collections.abc import Collection

from segwright.data.description import DatasetDescription
from segwright.data.labels import Labels
from segwright.data.laterality import FoundPairs, LabelPairs, find_pairs, mirrored_values
from segwright.planning.rationale import EVERYWHERE, Decision

Lateral = tuple[int, bool]
"""Left-right axis of an image as read (Z, Y, X), and whether its direction is positive; see `lateral_axis`."""

_SWAPPED = "all images have the same orientation, so mirrored samples get the labels of the other side"


def choose_mirroring(
    description: DatasetDescription,
    order: tuple[int, ...],
    lateral: Collection[Lateral | None],
    found: FoundPairs | None = None,
) -> tuple[LabelPairs | None, tuple[Decision, ...]]:
    """Choose the label pairs and mirroring of a plan; None and no decision for labels without sides.

    If orientations differ, a network can tell left from right by appearance only, not by position. Mirroring would make
    that impossible, so the left-right axis is then not mirrored.

    Pairs that were found by their symmetry are swapped if they are certain and all images have the same orientation;
    otherwise they are proposed, and mirroring stays as in nnU-Net.

    Args:
        description: the dataset's `dataset.json`.
        order: axis order, `transpose_forward`.
        lateral: the distinct left-right axes of the images; None for an image without orientation.
        found: pairs that look like left and right in the label maps, used if none are named or declared.
    """
    pairs = find_pairs(description)
    source = "found by name" if description.label_pairs is None else "declared in dataset.json"
    if not pairs:
        found = _usable(found, description)
        if found is None:
            return None, ()
        if not found.certain or len(lateral) != 1 or None in lateral:
            return None, (_proposal(found),)
        pairs, source = found.pairs, f"found by symmetry ({found.describe()}; to declare them: {found.declaration()})"
    if not lateral or None in lateral:
        axes = tuple(range(len(order)))
        swap, why = False, "some images have no orientation in their header, so no axis is mirrored"
    else:
        axes = tuple(sorted({order.index(axis) for axis, _ in filter(None, lateral)}))
        swap, why = len(lateral) == 1, _SWAPPED
        if not swap:
            why = f"images have {len(lateral)} different orientations, so these axes are not mirrored"
    if swap and mirrored_values(Labels.from_description(description), pairs) is None:
        swap, why = False, "left and right regions have different numbers of labels, so this axis is not mirrored"
    sides = LabelPairs(pairs=pairs, axes=axes, swap=swap)
    shown = {
        "mirroring": "swaps the labels" if swap else "off",
        "axes": list(axes),
        "pairs": [f"{left} | {right}" for left, right in pairs],
    }
    reason = f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of labels, {source}; {why}"
    return sides, (Decision(configuration=EVERYWHERE, decision="left and right", value=shown, reason=reason),)


def _usable(found: FoundPairs | None, description: DatasetDescription) -> FoundPairs | None:
    """Return the found pairs; None if dataset.json declares others, or has other labels by now."""
    if found is None or description.label_pairs is not None:
        return None
    return found if {name for pair in found.pairs for name in pair} <= set(description.labels) else None


def _proposal(found: FoundPairs) -> Decision:
    """Return the decision not to use pairs that are not certain."""
    why = "the evidence is not certain" if not found.certain else "the orientation of the images differs or is unknown"
    reason = (
        f"{found.describe()}; {why}, so all axes are mirrored with unchanged labels; if they are left and right, add"
        f" {found.declaration()} to dataset.json"
    )
    return Decision(configuration=EVERYWHERE, decision="left and right", value="proposed, not used", reason=reason)
