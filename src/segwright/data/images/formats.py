"""The interface of image readers and writers: header, reader-writer, and refusal of a file."""

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
"""2D images get a first axis with by far the largest spacing (nnU-Net behaviour 2.4, 2.7)."""

_FLAT_SPACING = 0.999 * FLAT_SPACING_FACTOR
"""Slightly less, since spacings may have been rounded."""

CHANNEL_SUFFIX = re.compile(r"_\d{4}$")


class Refusal(ValueError):
    """The reader for a file refuses to read it; no other reader is tried.

    The message is a clause about the file, which is put in parentheses after "cannot be read".
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known about an image file without its voxels.

    `shape` (three spatial axes) and `spacing` in mm are in array axis order; `geometry` is format-specific JSON.
    `hides_nonfinite`: the reader returns NaN and infinite voxels of this file, if any, as 0.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    num_channels: int = 1
    geometry: Mapping[str, Any] = field(default_factory=dict)
    hides_nonfinite: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether the image is 2D, with an added first axis."""
        return self.shape[0] == 1 and self.spacing[0] >= _FLAT_SPACING * max(self.spacing[1:])


class ReaderWriter(Protocol):
    """Reads and writes one family of image files, as nnU-Net's class of the same purpose (`BaseReaderWriter`)."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Lower-case file endings for which this reader is chosen automatically."""

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and geometry, without the voxels if the format allows it."""

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one file as (C, *S) with three spatial axes; a label map has one channel."""

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a label map (*S) whose geometry came from `header` or `read` of this format, atomically."""
