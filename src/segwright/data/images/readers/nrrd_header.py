"""Check the header of a NRRD file before ITK reads it: the size fits the file, the voxels are inside it.

A header that the check does not understand is refused, so that ITK cannot interpret it differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

_MAGIC = re.compile(rb"NRRD000[1-6]\r?\n")
_HEADER_END = re.compile(rb"\n\r?\n")
_FIELD = re.compile(r"(?P<name>[A-Za-z][A-Za-z ]*?)\s*: ?(?P<value>.*)", re.DOTALL)
_DATA_FILE = re.compile(rb"^\s*data ?file\s*:", re.IGNORECASE | re.MULTILINE)
_VALUE_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
"""By name of the type."""
_KNOWN_FIELDS: Final = (
    *("type", "dimension", "sizes", "encoding", "endian", "content", "min", "max", "old min", "oldmin", "old max"),
    *("oldmax", "number", "block size", "blocksize", "line skip", "lineskip", "byte skip", "byteskip", "spacings"),
    *("thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "centerings", "kinds", "labels"),
    *("units", "space", "space dimension", "space units", "space origin", "space directions", "measurement frame"),
    *("sample units", "sampleunits"),
)
_NOT_MM: Final = re.compile(
    r"nm|um|mu|(?:\xc2\xb5|\xb5|\xce\xbc)m|microns?|cm|dm|m|in|inch(?:es)?|feet|(?:nano|micro|centi|deci)?met(?:er|re)s?",
    re.IGNORECASE,
)
"""Length units that ITK would read as mm, in UTF-8 decoded as latin-1; other words are not units."""
_MAX_VALUE_LENGTH = 512
"""Characters of a field; ITK copies values it cannot parse into a message buffer of fixed length (overflow)."""
_GZIP_ENCODINGS: Final = ("gzip", "gz")
_TEXT_ENCODINGS: Final = ("ascii", "text", "txt")


def check_nrrd(file: Path, *, is_label: bool = False) -> None:
    """Check that a NRRD file contains its voxels, and enough bytes for the size in its header.

    Raises:
        Refusal: it does not.
    """
    fields, end = _read_fields(file)
    sizes = tuple(map(parse_extent, fields["sizes"].split()))
    if len(sizes) > MAX_AXES or str(len(sizes)) != fields["dimension"].strip():
        raise damaged_header("NRRD", f"dimension {fields['dimension']} with sizes {fields['sizes']}")
    value_bytes = _VALUE_BYTES.get(fields["type"].strip().lower())
    encoding = _encoding(fields)
    if value_bytes is None:
        raise damaged_header("NRRD", f"the unknown type {fields['type']}")
    if encoding not in ("raw", "hex", *_GZIP_ENCODINGS, *_TEXT_ENCODINGS):
        raise Refusal(f"its voxels are encoded as {encoding[:20]}; store them raw or with gzip")
    for unit in re.findall(r"[^\s\"]+", f"{fields.get('space units', '')} {fields.get('units', '')}"):
        if _NOT_MM.fullmatch(unit):
            raise Refusal(f"its header gives lengths in {unit!a}, expected mm; convert spacings and origin to mm")
    is_packed = encoding in _GZIP_ENCODINGS
    require_enough_bytes(
        sizes,
        value_bytes={"hex": 2 * value_bytes, **dict.fromkeys(_TEXT_ENCODINGS, 1)}.get(encoding, value_bytes),
        available=file.stat().st_size - end,
        ratio=DEFLATE_RATIO if is_packed else 1,
        is_label=is_label,
    )


def compressed_start(file: Path) -> int | None:
    """Return the offset of the voxels of a NRRD file if they are compressed with gzip, else None."""
    fields, end = _read_fields(file)
    return end if _encoding(fields) in _GZIP_ENCODINGS else None


def _read_fields(file: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a NRRD header, and the offset of the voxels."""
    start = file_start(file, USUAL_HEADER_BYTES)
    if not _MAGIC.match(start):
        raise wrong_format_refusal(start, "NRRD")
    end = _HEADER_END.search(start)
    if end is None:
        start = file_start(file, MAX_HEADER_BYTES)
        end = _HEADER_END.search(start)
    if _DATA_FILE.search(start):
        raise Refusal("keeps its voxels in another file (data file); store header and voxels in one file")
    if end is None:
        raise Refusal("its NRRD header has no end: it is cut off; copy or download it again")
    return _parse_fields(header_text(start[: end.start()])), end.end()


def _encoding(fields: Mapping[str, str]) -> str:
    return fields["encoding"].strip().lower()


def _parse_fields(text: str) -> dict[str, str]:
    """Return the fields of a NRRD header by name; comments and key/value pairs are skipped."""
    found: dict[str, str] = {}
    for line in text.split("\n")[1:]:
        if line.startswith("#") or ":=" in line:
            continue
        match = _FIELD.fullmatch(line)
        name = "" if match is None else match["name"].lower()
        if match is None or name in found or name not in _KNOWN_FIELDS or len(match["value"]) > _MAX_VALUE_LENGTH:
            raise damaged_header("NRRD", f"the invalid line '{line[:60]}'")
        found[name] = match["value"]
    if missing := [name for name in ("type", "dimension", "sizes", "encoding") if name not in found]:
        raise damaged_header("NRRD", f"no {' and no '.join(missing)}")
    return found
