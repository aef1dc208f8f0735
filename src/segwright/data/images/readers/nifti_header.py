"""Check the header of a NIfTI file before a library reads it; return its qform and sform."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import nibabel
import numpy as np

from segwright.data.images.formats import Refusal
from segwright.data.images.readers.gzip_content import SIZE_WRAPS, unpacked_size
from segwright.data.images.readers.limits import (
    DEFLATE_RATIO,
    file_start,
    is_gzip,
    require_enough_bytes,
    wrong_format_refusal,
)

ENDINGS: Final = (".nii", ".nii.gz")

GEOMETRY: Final = "nifti"
"""Key of qform and sform in the geometry of a `Header`."""

_TYPES: Final[Mapping[int, str]] = {
    **{2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8"},
    **{16: "f4", 64: "f8", 1536: "f16"},
}
"""By code of `datatype`, for types of one real number; f16 are IEEE quadruple values, which numpy does not read."""

_LONGEST_READABLE = 8
_LONGEST_EXACT = 2
"""Bytes of values that numpy reads, and of integers that float32 represents exactly."""

_MULTI_VALUE_TYPES: Final[Mapping[int, tuple[int, str]]] = {128: (3, "colours, RGB"), 2304: (4, "colours, RGBA")}
_COMPLEX_TYPES: Final[Mapping[int, str]] = {32: "complex64", 1792: "complex128", 2048: "complex256"}

_MM_PER_UNIT: Final[Mapping[int, float]] = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Metres, mm and microns; an unknown unit counts as mm."""

_SPACE_UNITS = 7
"""Bits of `xyzt_units` for lengths; the others are the unit of time."""

_VERSION_1_BYTES, _VERSION_2_BYTES = 348, 540
"""Lengths of the headers of NIfTI-1 and NIfTI-2, which are also their first field."""
_MAGICS: Final[Mapping[int, bytes]] = {_VERSION_1_BYTES: b"n+1\0", _VERSION_2_BYTES: b"n+2\0"}
"""By length of the header."""
_LAYOUTS: Final[Mapping[int, np.dtype[Any]]] = {
    _VERSION_1_BYTES: nibabel.nifti1.header_dtype,
    _VERSION_2_BYTES: nibabel.nifti2.header_dtype,
}
_PAIR_MAGICS: Final = (b"ni1\0", b"ni2\0")
QUATERN: Final = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SROW: Final = ("srow_x", "srow_y", "srow_z")
_FIELDS: Final = (
    *("dim", "datatype", "vox_offset", "scl_slope", "scl_inter", "pixdim", "qform_code", "sform_code", "xyzt_units"),
    *QUATERN,
    *SROW,
)
_MAX_EXTENSION_BYTES = 16 << 20
_MAX_EXTENSIONS = 4096
"""niftilib copies its list for each new extension."""
_GZIP_NAMES = 0x18
"""Flags of a gzip file that holds the name of what was compressed, or a comment."""
_BLOCK = 1 << 20
_MAX_TAIL_BYTES = 1 << 16
"""Bytes after the voxels that may follow and are ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiHeader:
    """Content of the header, with axes in the file's order (x, y, z, ...).

    Attributes:
        shape: extents of all axes.
        is_version_2: whether the format is NIfTI version 2.
        offset: of the voxels, in the uncompressed file.
        dtype: of the stored values, as `<i2`.
        scaling: slope and intercept.
        mm_per_unit: factor from lengths in the header to mm.
        forms: value of `GEOMETRY`: qform and sform with all fields they depend on, as JSON.
    """

    shape: tuple[int, ...]
    is_version_2: bool
    offset: int
    dtype: str
    scaling: tuple[float, float]
    mm_per_unit: float
    forms: Mapping[str, Any]

    @property
    def value_bytes(self) -> int:
        """Size of one value."""
        return int(self.dtype[2:])

    @property
    def has_exact_integers(self) -> bool:
        """Whether the values are integers that float32 represents exactly."""
        return self.dtype[1] in "iu" and self.value_bytes <= _LONGEST_EXACT

    @property
    def is_plain(self) -> bool:
        """Whether numpy reads the values, and no slope and intercept apply; a slope of 0 means none."""
        return self.value_bytes <= _LONGEST_READABLE and (self.scaling[0] == 0 or self.scaling == (1, 0))

    @property
    def voxel_bytes(self) -> int:
        """Size of all voxels as stored, uncompressed."""
        return math.prod(self.shape) * self.value_bytes


def is_nifti(file: Path) -> bool:
    """Whether the file has a NIfTI ending."""
    return file.name.lower().endswith(ENDINGS)


def check_nifti(file: Path, *, is_label: bool = False) -> NiftiHeader:
    """Read the header of a NIfTI file, and check that the file can hold the voxels.

    Raises:
        Refusal: the file is damaged or not NIfTI, or its voxels are not one real number each.
    """
    start = file_start(file, max(_MAGICS))
    is_compressed = is_gzip(start)
    if is_compressed and not file.name.lower().endswith(".gz"):
        raise Refusal("it is compressed with gzip; rename it to .nii.gz, or unpack it")
    if not is_compressed:
        with file.open("rb") as stream:
            header = _parse(stream)
    else:
        _check_gzip_name(file)
        try:
            with gzip.open(file) as unpacked:
                header = _parse(unpacked)
        except (EOFError, OSError, zlib.error) as error:
            raise Refusal(f"it is cut off or damaged ({error}); copy or download it again") from error
    packed = file.stat().st_size
    require_enough_bytes(
        header.shape,
        value_bytes=header.value_bytes,
        available=packed if is_compressed else packed - header.offset,
        ratio=DEFLATE_RATIO if is_compressed else 1,
        is_label=is_label,
    )
    return header


def require_complete(file: Path, header: NiftiHeader) -> None:
    """Refuse a truncated compressed file, which ITK would silently fill with zeros.

    The last four bytes of a gzip file are its unpacked size. Only if they do not match is the file unpacked up to the
    end of its voxels, because in a file of several gzip members they are the size of the last one.
    """
    expected = header.offset + header.voxel_bytes
    with file.open("rb") as stream:
        if not is_gzip(stream.read(2)):
            return
    if (unpacked_size(file) - expected) % SIZE_WRAPS <= _MAX_TAIL_BYTES:
        return
    found = 0
    try:
        with gzip.open(file) as unpacked:
            while found < expected and (block := unpacked.read(_BLOCK)):
                found += len(block)
    except (EOFError, OSError, zlib.error) as error:
        raise Refusal(f"it is cut off or damaged ({error}); copy or download it again") from error
    if found < expected:
        raise Refusal(f"it is cut off: {found} bytes of {expected}; copy or download it again")


def _check_gzip_name(file: Path) -> None:
    """Refuse a gzip file whose name or comment does not end; Python would search the end byte by byte."""
    start = file_start(file, _MAX_TAIL_BYTES)
    if start[3:4] and start[3] & _GZIP_NAMES and b"\0" not in start[10:]:
        raise Refusal("the name in its gzip header has no end; the file is damaged")


def _parse(stream: IO[bytes] | gzip.GzipFile) -> NiftiHeader:
    """Read and check a header of either version and byte order."""
    raw = stream.read(max(_MAGICS))
    order, length = _layout(raw)
    layout = _LAYOUTS[length].newbyteorder(order)
    fields = {name: np.frombuffer(raw, layout, 1)[0][name] for name in _FIELDS}
    dtype = order + _type(int(fields["datatype"]))
    shape = _shape([int(extent) for extent in fields["dim"]])
    offset, slope, intercept = (float(fields[name]) for name in ("vox_offset", "scl_slope", "scl_inter"))
    if not math.isfinite(offset) or offset % 1 or not length + 4 <= offset <= length + _MAX_EXTENSION_BYTES:
        raise Refusal(f"vox_offset is {offset:g}, expected {length + 4} or more; the header is damaged")
    if math.isinf(slope):
        raise Refusal("scl_slope is infinite; the header is damaged")
    _check_extensions(stream, raw[length:], order=order, length=length, offset=int(offset))
    forms = _forms(fields, shape)
    return NiftiHeader(
        shape=shape,
        is_version_2=length != _VERSION_1_BYTES,
        offset=int(offset),
        dtype=dtype,
        scaling=(slope, intercept),
        mm_per_unit=_MM_PER_UNIT.get(forms["xyzt_units"] & _SPACE_UNITS, 1.0),
        forms=forms,
    )


def _layout(raw: bytes) -> tuple[Literal["<", ">"], int]:
    """Return byte order and length of the header, from its first field."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        length = struct.unpack(f"{order}i", raw[:4].ljust(4, b"\0"))[0]
        if length not in _MAGICS:
            continue
        magic = raw[344:348] if length == _VERSION_1_BYTES else raw[4:8]
        if magic in _PAIR_MAGICS:
            raise Refusal("it is the header of a pair (.hdr and .img); store it as one .nii.gz file")
        if len(raw) >= length and magic == _MAGICS[length]:
            return order, length
        raise Refusal("its NIfTI header is cut off or damaged; copy or download it again")
    raise wrong_format_refusal(raw, "NIfTI")


def _type(datatype: int) -> str:
    if datatype in _MULTI_VALUE_TYPES:
        count, what = _MULTI_VALUE_TYPES[datatype]
        raise Refusal(f"has {count} values per voxel ({what}, datatype {datatype}); write one file per channel")
    if datatype in _COMPLEX_TYPES:
        raise Refusal(
            f"holds complex numbers ({_COMPLEX_TYPES[datatype]}, datatype {datatype}); "
            "write the magnitude, or real and imaginary part as two channels"
        )
    if datatype not in _TYPES:
        raise Refusal(f"datatype {datatype} is unknown to NIfTI")
    return _TYPES[datatype]


def _shape(dim: list[int]) -> tuple[int, ...]:
    """Return the extents; axes from the fifth on are values per voxel, of which there must be one."""
    if not 1 <= dim[0] < len(dim):
        raise Refusal(f"its header says {dim[0]} axes, expected 1 to 7; the header is damaged")
    # Some programs write 0 for unused axes.
    shape = tuple(extent or int(axis > 2) for axis, extent in enumerate(dim[1 : dim[0] + 1]))
    if (count := math.prod(shape[4:])) > 1:
        raise Refusal(f"has {count} values per voxel ({len(shape)} axes {shape}); write one file per channel")
    return shape


def _check_extensions(stream: IO[bytes] | gzip.GzipFile, rest: bytes, *, order: str, length: int, offset: int) -> None:
    """Check the sizes of the extensions between header and voxels, which libraries trust."""
    if offset <= length + 4:
        return
    between = (rest + stream.read(max(0, offset - length - len(rest))))[: offset - length]
    if not between[:1].strip(b"\0"):
        return
    place, count = 4, 0
    while place + 8 <= len(between):
        (size,) = struct.unpack_from(f"{order}i", between, place)
        count += 1
        if size < 8 or place + size > len(between) or count > _MAX_EXTENSIONS:
            raise Refusal(f"extension {count} of its header has a size of {size} bytes; it is damaged")
        place += size


def _forms(fields: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return qform and sform; a form whose code is 0 is unused and may be anything."""
    codes = [int(fields["qform_code"]), int(fields["sform_code"])]
    pixdim = [float(extent) for extent in fields["pixdim"][:4]]
    quatern = [float(fields[name]) for name in QUATERN]
    srow = [float(value) for name in SROW for value in fields[name]]
    used = {"qform": quatern if codes[0] > 0 else [], "sform": srow if codes[1] > 0 else []}
    for name, values in used.items():
        if not all(map(math.isfinite, values)):
            raise Refusal(f"{name} holds {values}, expected finite numbers; the header is damaged")
    if any(extent > 1 and not 0 < abs(step) < math.inf for extent, step in zip(shape, pixdim[1:], strict=False)):
        raise Refusal(f"its header says spacings of {pixdim[1:]}, expected finite numbers above 0")
    return {
        "codes": codes,
        "pixdim": _finite(pixdim),
        "quatern": _finite(quatern),
        "srow": _finite(srow),
        "xyzt_units": int(fields["xyzt_units"]),
    }


def _finite(values: list[float]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in values]
