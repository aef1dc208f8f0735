"""Check the header of a MetaImage file before ITK reads it: the size fits the file, the voxels are inside it.

A header that the check does not understand is refused, so that ITK cannot interpret it differently.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segwright.data.images.formats import Refusal
from segwright.data.images.readers.header_text import (
    MAX_AXES,
    MAX_HEADER_BYTES,
    USUAL_HEADER_BYTES,
    damaged_header,
    header_text,
    parse_extent,
)
from segwright.data.images.readers.limits import (
    DEFLATE_RATIO,
    file_start,
    require_enough_bytes,
    wrong_format_refusal,
)

_START = re.compile(rb"\s*[A-Za-z]\w*\s*=")
_DATA_FILE: Final = b"ElementDataFile"
"""The last field, after which the voxels begin."""
_IN_THIS_FILE: Final = ("LOCAL", "Local", "local")
_LINE = re.compile(r"(?P<name>[^\s=:][^=:]*?)\s*[=:]\s*(?P<value>.*)", re.DOTALL)
_SIZE = re.compile(r"[0-9.]{1,20}(e[+]?[0-9]{1,2})?")
_COORDINATE = re.compile(r"[-+]?[0-9]{0,10}[.]?[0-9]{0,40}([eE][-+]?0*[0-9])?([eE]-[0-9]{1,3})?")
"""A number below 1e10; ITK takes minutes for directions of 1e308."""
_VALUE_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR", "MET_ASCII_CHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_VECTORS: Final = ("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize")
_MATRICES: Final = ("TransformMatrix", "Orientation", "Rotation")

_ZLIB_OR_GZIP: Final = 47
"""zlib's wbits: largest window, zlib or gzip header, as in MetaIO."""
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Voxels:
    """Where the voxels are in a MetaImage file.

    Attributes:
        offset: of the first byte.
        packed_bytes: size in the file.
        num_bytes: size after unpacking.
        is_packed: whether they are compressed.
    """

    offset: int
    packed_bytes: int
    num_bytes: int
    is_packed: bool


def check_metaimage(file: Path, *, is_label: bool = False) -> None:
    """Check that a MetaImage file contains its voxels, and enough bytes for the size in its header.

    Raises:
        Refusal: it does not.
    """
    _check_header(file, is_label=is_label)


def require_complete_metaimage(file: Path) -> None:
    """Check that the data of a compressed MetaImage is complete; else ITK would return uninitialised memory.

    Raises:
        Refusal: the compressed data is cut off, damaged or of another length.
    """
    voxels = _check_header(file)
    if not voxels.is_packed:
        return
    inflater, found = zlib.decompressobj(_ZLIB_OR_GZIP), 0
    try:
        with file.open("rb") as stream:
            stream.seek(voxels.offset)
            left = voxels.packed_bytes
            while left and not inflater.eof and found <= voxels.num_bytes:
                block = stream.read(min(_BLOCK, left))
                left -= len(block)
                while block and not inflater.eof and found <= voxels.num_bytes:
                    found += len(inflater.decompress(block, _BLOCK))
                    block = inflater.unconsumed_tail
        if not inflater.unconsumed_tail:
            found += len(inflater.flush())  # output that did not fit into the last block
    except zlib.error as error:
        raise Refusal(f"its compressed voxels are damaged ({error}); copy or download it again") from error
    if not inflater.eof or found != voxels.num_bytes:
        raise Refusal(
            f"its compressed voxels are cut off or damaged: {found} bytes of {voxels.num_bytes}; copy or download it "
            "again"
        )


def _check_header(file: Path, *, is_label: bool = False) -> _Voxels:
    """Check the header and return where the voxels are."""
    fields, offset = _read_fields(file)
    num_axes = parse_extent(fields.get("NDims", ""))
    sizes = tuple(map(parse_extent, fields.get("DimSize", "").split()))
    if not 1 < num_axes < MAX_AXES or len(sizes) != num_axes:
        raise damaged_header("MetaImage", f"NDims {num_axes} with DimSize {fields.get('DimSize', 'missing')}")
    _check_geometry(fields, num_axes)
    value_bytes = _VALUE_BYTES.get(fields.get("ElementType", ""))
    if value_bytes is None:
        raise damaged_header("MetaImage", f"an unknown ElementType, {fields.get('ElementType', 'missing')}")
    is_packed, is_binary = (_is_true(fields.get(each, "False")) for each in ("CompressedData", "BinaryData"))
    available = file.stat().st_size - offset
    packed = fields.get("CompressedDataSize", "0")
    if not _SIZE.fullmatch(packed) or float(packed) > available:
        raise Refusal(f"it is cut off: {available} bytes, CompressedDataSize is {packed}; copy or download it again")
    extents = (*sizes, parse_extent(fields.get("ElementNumberOfChannels", "1")))
    require_enough_bytes(
        extents,
        value_bytes=value_bytes if is_binary or is_packed else 1,
        available=available,
        ratio=DEFLATE_RATIO if is_packed else 1,
        is_label=is_label,
    )
    return _Voxels(
        offset=offset,
        packed_bytes=int(float(packed)) or available,
        num_bytes=math.prod(extents) * value_bytes,
        is_packed=is_packed,
    )


def _read_fields(file: Path) -> tuple[dict[str, str], int]:
    """Return the fields of the header, and the offset of the voxels, which must be in the same file."""
    start = file_start(file, USUAL_HEADER_BYTES)
    if not _START.match(start):
        raise wrong_format_refusal(start, "MetaImage")
    if _DATA_FILE not in start:
        start = file_start(file, MAX_HEADER_BYTES)
    head, found, rest = start.partition(_DATA_FILE)
    if not found or (head and not head.endswith(b"\n")):
        raise Refusal("its MetaImage header has no end: it is cut off; copy or download it again")
    line, newline, data = rest.partition(b"\n")
    fields = _parse_fields(header_text(head))
    name = header_text(line).strip().lstrip("=:").strip()
    if name not in _IN_THIS_FILE or not newline or _DATA_FILE in data:
        raise Refusal(
            "keeps its voxels in another file (ElementDataFile); store header and voxels in one file, as .mha"
        )
    return fields, len(start) - len(data)


def _parse_fields(text: str) -> dict[str, str]:
    """Return the fields of a MetaImage header by name."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.split("\n"))):
        match = _LINE.fullmatch(line)
        if match is None or match["name"] in found:
            raise damaged_header("MetaImage", f"the invalid line '{line[:60]}'")
        found[match["name"]] = match["value"]
    return found


def _check_geometry(fields: Mapping[str, str], num_axes: int) -> None:
    """Check that vectors and matrices have as many numbers as axes need, none of them huge."""
    for names, count in ((_VECTORS, num_axes), (_MATRICES, num_axes**2)):
        for name in names:
            if name in fields and len(fields[name].split()) != count:
                raise damaged_header("MetaImage", f"{name} {fields[name]}, expected {count} numbers")
            if name in fields and not all(_COORDINATE.fullmatch(number) for number in fields[name].split()):
                raise damaged_header("MetaImage", f"{name} {fields[name]}, expected numbers below 1e10")


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")
