"""What every reader of image files has in common: the header it gives, what it does, how it refuses a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
LabelMap = npt.NDArray[np.unsignedinteger[Any]]

FLAT_SPACING_FACTOR = 999.0
"""2D images get a first axis whose spacing is the largest by far (nnU-Net behaviour 2.4, 2.7)."""

_FLAT_SPACING = 0.999 * FLAT_SPACING_FACTOR
"""Spacings may have been rounded."""

CHANNEL_SUFFIX = re.compile(r"_\d{4}$")


class Refusal(ValueError):
    """The reader for a file found why it must not or cannot be read; no other reader is tried.

    The message is a clause about the file, for the parentheses after "cannot be read".
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known of one image file without its voxels.

    `shape` (three spatial axes) and `spacing` in mm are in array axis order; `geometry` is the format's own and JSON.
    `hides_nonfinite` says that the reader gives NaN and infinite voxels of this file as 0, if there are any.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    num_channels: int = 1
    geometry: Mapping[str, Any] = field(default_factory=dict)
    hides_nonfinite: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether the image is 2D, so that its first axis was added."""
        return self.shape[0] == 1 and self.spacing[0] >= _FLAT_SPACING * max(self.spacing[1:])


class Format(Protocol):
    """One family of image files."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Lower-case endings that the automatic choice gives to this format."""

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and geometry, without the voxels where the format allows it."""

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one file as (C, *S); what is not a label map has more than one channel."""

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a label map (*S) whose geometry came from `header` or `read` of this format, atomically."""
