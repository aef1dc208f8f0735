"""Check the header of a GIPL file before ITK reads it: the size fits the file."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from segwright.data.images.readers.header_text import damaged_header
from segwright.data.images.readers.limits import file_start, require_enough_bytes, wrong_format_refusal

_HEADER_BYTES = 256
_MAGICS: Final = (719555000, 4026526128, 2968)
_VALUE_BYTES: Final[Mapping[int, int]] = {
    **dict.fromkeys((7, 8), 1),
    **dict.fromkeys((15, 16), 2),
    **dict.fromkeys((31, 32, 64), 4),
    65: 8,
}
"""By type code."""


def check_gipl(file: Path, *, is_label: bool = False) -> None:
    """Check that a GIPL file has enough bytes for the size in its header.

    Raises:
        Refusal: it does not.
    """
    start = file_start(file, _HEADER_BYTES)
    if len(start) < _HEADER_BYTES or struct.unpack_from(">I", start, _HEADER_BYTES - 4)[0] not in _MAGICS:
        raise wrong_format_refusal(start, "GIPL")
    *sizes, datatype = struct.unpack_from(">5H", start)
    if datatype not in _VALUE_BYTES:
        raise damaged_header("GIPL", f"the unknown type {datatype}")
    if not all(map(math.isfinite, struct.unpack_from(">4f", start, 10))):
        raise damaged_header("GIPL", "spacings that are not finite")
    # Unused axes have an extent of 0 or 1.
    while len(sizes) > 2 and sizes[-1] < 2:
        sizes.pop()
    available = file.stat().st_size - _HEADER_BYTES
    require_enough_bytes(tuple(sizes), value_bytes=_VALUE_BYTES[datatype], available=available, is_label=is_label)
