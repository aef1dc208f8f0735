"""Provenance of a preprocessed case: its original grid, and the files it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segwright.core.boxes import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Everything needed to map a prediction back to the original grid of a case.

    Axes are transposed (the plan's order), except in `properties`, which are the reader's.
    """

    properties: Mapping[str, Any]
    shape_before_cropping: tuple[int, ...]
    box: Box
    """The non-zero region in `shape_before_cropping`."""
    shape_after_cropping: tuple[int, ...]
    spacing: tuple[float, ...]
    """Of the case before resampling."""
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the provenance as a JSON document."""
        return {
            "properties": dict(self.properties),
            "shape_before_cropping": list(self.shape_before_cropping),
            "box": [list(interval) for interval in self.box],
            "shape_after_cropping": list(self.shape_after_cropping),
            "spacing": list(self.spacing),
            "transpose_forward": list(self.transpose_forward),
            "transpose_backward": list(self.transpose_backward),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Provenance:
        """Return the provenance from a document of `to_json`."""
        return cls(
            properties=document["properties"],
            shape_before_cropping=tuple(document["shape_before_cropping"]),
            box=tuple((int(start), int(stop)) for start, stop in document["box"]),
            shape_after_cropping=tuple(document["shape_after_cropping"]),
            spacing=tuple(document["spacing"]),
            transpose_forward=tuple(document["transpose_forward"]),
            transpose_backward=tuple(document["transpose_backward"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A raw file that a case was made from; its hash is not computed again while size and time are the same."""

    name: str
    size: int
    mtime_ns: int
    sha256: str
