"""Check headers of NRRD, MetaImage and GIPL files before ITK reads them: sizes fit the file, voxels are inside it.

Headers that the checks do not understand are refused, so that ITK cannot interpret a header differently.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segwright.data.images.formats import Refusal
from segwright.data.images.readers.limits import DEFLATE_RATIO, file_start, not_this_format, require_room

_USUAL_HEADER = 1 << 16
_MAX_HEADER_BYTES = 4 << 20
"""Bytes; 3D Slicer describes each segment in the header of its label maps."""
_MAX_AXES = 5

_LONE_RETURN = re.compile(rb"\r(?!\n)")
_WHOLE = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[0-9.]{1,20}(e[+]?[0-9]{1,2})?")
_COORDINATE = re.compile(r"[-+]?[0-9]{0,10}[.]?[0-9]{0,40}([eE][-+]?0*[0-9])?([eE]-[0-9]{1,3})?")
"""A number below 1e10; ITK takes minutes for directions of 1e308."""
_DETACHED = "keeps its voxels in another file"
_INLINE = "store header and voxels in one file"

_NRRD_MAGIC = re.compile(rb"NRRD000[1-6]\r?\n")
_NRRD_END = re.compile(rb"\n\r?\n")
_NRRD_FIELD = re.compile(r"(?P<name>[A-Za-z][A-Za-z ]*?)\s*: ?(?P<value>.*)", re.DOTALL)
_NRRD_DATA_FILE = re.compile(rb"^\s*data ?file\s*:", re.IGNORECASE | re.MULTILINE)
_NRRD_TYPES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_NRRD_FIELDS: Final = (
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
"""Units that ITK would read as mm, in UTF-8 decoded as latin-1; other words are not units."""
_MAX_VALUE_LENGTH = 512
"""Characters of a field; ITK copies values it cannot parse into a message buffer of fixed length (overflow)."""
_NRRD_GZIP: Final = ("gzip", "gz")
_NRRD_TEXT: Final = ("ascii", "text", "txt")

_ZLIB_OR_GZIP: Final = 47
"""zlib's wbits: largest window, zlib or gzip header, as in MetaIO."""
_BLOCK: Final = 1 << 20

_META_START = re.compile(rb"\s*[A-Za-z]\w*\s*=")
_META_DATA: Final = b"ElementDataFile"
_META_LOCAL: Final = ("LOCAL", "Local", "local")
_META_LINE = re.compile(r"(?P<name>[^\s=:][^=:]*?)\s*[=:]\s*(?P<value>.*)", re.DOTALL)
_META_TYPES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR", "MET_ASCII_CHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_META_VECTORS: Final = ("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize")
_META_MATRICES: Final = ("TransformMatrix", "Orientation", "Rotation")

_GIPL_LENGTH = 256
_GIPL_MAGICS: Final = (719555000, 4026526128, 2968)
_GIPL_TYPES: Final[Mapping[int, int]] = {
    **dict.fromkeys((7, 8), 1),
    **dict.fromkeys((15, 16), 2),
    **dict.fromkeys((31, 32, 64), 4),
    65: 8,
}


def check_nrrd(file: Path, *, is_label: bool = False) -> None:
    """Check that a NRRD file contains its voxels, and enough bytes for the size in its header.

    Raises:
        Refusal: it does not.
    """
    fields, end = _nrrd_header(file)
    sizes = tuple(map(_whole, fields["sizes"].split()))
    if len(sizes) > _MAX_AXES or str(len(sizes)) != fields["dimension"].strip():
        raise _damaged("NRRD", f"dimension {fields['dimension']} with sizes {fields['sizes']}")
    value_bytes = _NRRD_TYPES.get(fields["type"].strip().lower())
    encoding = _encoding(fields)
    if value_bytes is None:
        raise _damaged("NRRD", f"the unknown type {fields['type']}")
    if encoding not in ("raw", "hex", *_NRRD_GZIP, *_NRRD_TEXT):
        raise Refusal(f"its voxels are encoded as {encoding[:20]}; store them raw or with gzip")
    for unit in re.findall(r"[^\s\"]+", f"{fields.get('space units', '')} {fields.get('units', '')}"):
        if _NOT_MM.fullmatch(unit):
            raise Refusal(f"its header gives lengths in {unit!a}, expected mm; convert spacings and origin to mm")
    is_packed = encoding in _NRRD_GZIP
    require_room(
        sizes,
        value_bytes={"hex": 2 * value_bytes, **dict.fromkeys(_NRRD_TEXT, 1)}.get(encoding, value_bytes),
        available=file.stat().st_size - end,
        ratio=DEFLATE_RATIO if is_packed else 1,
        is_label=is_label,
    )


def compressed_start(file: Path) -> int | None:
    """Return the offset of the voxels of a NRRD file if they are compressed with gzip, else None."""
    fields, end = _nrrd_header(file)
    return end if _encoding(fields) in _NRRD_GZIP else None


def check_metaimage(file: Path, *, is_label: bool = False) -> None:
    """Check that a MetaImage file contains its voxels, and enough bytes for the size in its header.

    Raises:
        Refusal: it does not.
    """
    _meta_voxels(file, is_label=is_label)


def require_whole_metaimage(file: Path) -> None:
    """Check that the data of a compressed MetaImage is complete; else ITK would return uninitialised memory.

    Raises:
        Refusal: the compressed data is cut off, damaged or of another length.
    """
    voxels = _meta_voxels(file)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _MetaVoxels:
    """Offset of the voxels in a MetaImage file, and their size in bytes, packed and unpacked."""

    offset: int
    packed_bytes: int
    num_bytes: int
    is_packed: bool


def _meta_voxels(file: Path, *, is_label: bool = False) -> _MetaVoxels:
    start = file_start(file, _USUAL_HEADER)
    if not _META_START.match(start):
        raise not_this_format(start, "MetaImage")
    if _META_DATA not in start:
        start = file_start(file, _MAX_HEADER_BYTES)
    head, found, rest = start.partition(_META_DATA)
    if not found or (head and not head.endswith(b"\n")):
        raise Refusal("its MetaImage header has no end: it is cut off; copy or download it again")
    line, newline, data = rest.partition(b"\n")
    fields = _meta_fields(_text(head))
    name = _text(line).strip().lstrip("=:").strip()
    if name not in _META_LOCAL or not newline or _META_DATA in data:
        raise Refusal(f"{_DETACHED} (ElementDataFile); {_INLINE}, as .mha")
    num_axes = _whole(fields.get("NDims", ""))
    sizes = tuple(map(_whole, fields.get("DimSize", "").split()))
    if not 1 < num_axes < _MAX_AXES or len(sizes) != num_axes:
        raise _damaged("MetaImage", f"NDims {num_axes} with DimSize {fields.get('DimSize', 'missing')}")
    for names, count in ((_META_VECTORS, num_axes), (_META_MATRICES, num_axes**2)):
        for each in names:
            if each in fields and len(fields[each].split()) != count:
                raise _damaged("MetaImage", f"{each} {fields[each]}, expected {count} numbers")
            if each in fields and not all(_COORDINATE.fullmatch(number) for number in fields[each].split()):
                raise _damaged("MetaImage", f"{each} {fields[each]}, expected numbers below 1e10")
    value_bytes = _META_TYPES.get(fields.get("ElementType", ""))
    if value_bytes is None:
        raise _damaged("MetaImage", f"an unknown ElementType, {fields.get('ElementType', 'missing')}")
    is_packed, is_binary = (_is_true(fields.get(each, "False")) for each in ("CompressedData", "BinaryData"))
    available = file.stat().st_size - (len(start) - len(data))
    packed = fields.get("CompressedDataSize", "0")
    if not _NUMBER.fullmatch(packed) or float(packed) > available:
        raise Refusal(f"it is cut off: {available} bytes, CompressedDataSize is {packed}; copy or download it again")
    extents = (*sizes, _whole(fields.get("ElementNumberOfChannels", "1")))
    require_room(
        extents,
        value_bytes=value_bytes if is_binary or is_packed else 1,
        available=available,
        ratio=DEFLATE_RATIO if is_packed else 1,
        is_label=is_label,
    )
    return _MetaVoxels(
        offset=file.stat().st_size - available,
        packed_bytes=int(float(packed)) or available,
        num_bytes=math.prod(extents) * value_bytes,
        is_packed=is_packed,
    )


def check_gipl(file: Path, *, is_label: bool = False) -> None:
    """Check that a GIPL file has enough bytes for the size in its header.

    Raises:
        Refusal: it does not.
    """
    start = file_start(file, _GIPL_LENGTH)
    if len(start) < _GIPL_LENGTH or struct.unpack_from(">I", start, _GIPL_LENGTH - 4)[0] not in _GIPL_MAGICS:
        raise not_this_format(start, "GIPL")
    *sizes, datatype = struct.unpack_from(">5H", start)
    if datatype not in _GIPL_TYPES:
        raise _damaged("GIPL", f"the unknown type {datatype}")
    if not all(map(math.isfinite, struct.unpack_from(">4f", start, 10))):
        raise _damaged("GIPL", "spacings that are not finite")
    # Unused axes have an extent of 0 or 1.
    while len(sizes) > 2 and sizes[-1] < 2:
        sizes.pop()
    available = file.stat().st_size - _GIPL_LENGTH
    require_room(tuple(sizes), value_bytes=_GIPL_TYPES[datatype], available=available, is_label=is_label)


def _nrrd_header(file: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a NRRD header, and the offset of the voxels."""
    start = file_start(file, _USUAL_HEADER)
    if not _NRRD_MAGIC.match(start):
        raise not_this_format(start, "NRRD")
    end = _NRRD_END.search(start)
    if end is None:
        start = file_start(file, _MAX_HEADER_BYTES)
        end = _NRRD_END.search(start)
    if _NRRD_DATA_FILE.search(start):
        raise Refusal(f"{_DETACHED} (data file); {_INLINE}")
    if end is None:
        raise Refusal("its NRRD header has no end: it is cut off; copy or download it again")
    return _nrrd_fields(_text(start[: end.start()])), end.end()


def _encoding(fields: Mapping[str, str]) -> str:
    return fields["encoding"].strip().lower()


def _nrrd_fields(text: str) -> dict[str, str]:
    """Return the fields of a NRRD header by name; comments and key/value pairs are skipped."""
    found: dict[str, str] = {}
    for line in text.split("\n")[1:]:
        if line.startswith("#") or ":=" in line:
            continue
        match = _NRRD_FIELD.fullmatch(line)
        name = "" if match is None else match["name"].lower()
        if match is None or name in found or name not in _NRRD_FIELDS or len(match["value"]) > _MAX_VALUE_LENGTH:
            raise _damaged("NRRD", f"the invalid line '{line[:60]}'")
        found[name] = match["value"]
    if missing := [name for name in ("type", "dimension", "sizes", "encoding") if name not in found]:
        raise _damaged("NRRD", f"no {' and no '.join(missing)}")
    return found


def _meta_fields(text: str) -> dict[str, str]:
    """Return the fields of a MetaImage header by name."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.split("\n"))):
        match = _META_LINE.fullmatch(line)
        if match is None or match["name"] in found:
            raise _damaged("MetaImage", f"the invalid line '{line[:60]}'")
        found[match["name"]] = match["value"]
    return found


def _text(head: bytes) -> str:
    if _LONE_RETURN.search(head) or b"\0" in head:
        raise Refusal("its header holds control characters; it is damaged")
    return head.decode("latin-1").replace("\r\n", "\n")


def _whole(text: str) -> int:
    """Return a non-negative integer; -1 for anything else."""
    return int(text) if _WHOLE.fullmatch(text) else -1


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")


def _damaged(kind: str, what: str) -> Refusal:
    return Refusal(f"its {kind} header has {what}; it is damaged")
