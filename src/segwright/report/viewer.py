"""What the slice viewer of a page needs: its script, and a document about the cases that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segwright.data.labels import Labels
from segwright.report.colours import label_colour
from segwright.report.volumes import PackedCase


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseInViewer:
    """A case as the viewer shows it: name, caption above the pictures, and voxels."""

    name: str
    caption: str
    packed: PackedCase


def viewer_document(cases: Sequence[CaseInViewer], labels: Labels, channels: Sequence[str]) -> dict[str, Any]:
    """Return the document that `templates/viewer.js` reads.

    Args:
        cases: in the order of their buttons.
        labels: of the model; their colours follow the order of their values.
        channels: names of the image's channels; those of the first ones that are packed are kept.
    """
    return {
        "labels": [
            {"name": _value_name(labels, value), "colour": label_colour(position)}
            for position, value in enumerate(labels.foreground_labels, start=1)
        ],
        "channels": list(channels)[: max((case.packed.channels for case in cases), default=0)],
        "cases": [
            {
                "name": case.name,
                "caption": case.caption,
                "shape": case.packed.shape,
                "spacing": case.packed.spacing,
                "planes": case.packed.planes,
                "corners": case.packed.corners,
                "upright": case.packed.is_upright,
                "channels": case.packed.channels,
                "start": case.packed.start,
            }
            for case in cases
        ],
    }


def _value_name(labels: Labels, value: int) -> str:
    """Return the name of a label value; one that only occurs in regions is named after them."""
    name = labels.class_name(value)
    regions = [region for region, values in labels.declared.items() if isinstance(values, tuple) and value in values]
    return f"label {value} of {', '.join(regions)}" if name == str(value) and regions else name
