"""Split a 4D NIfTI file into one 3D file per channel, byte by byte: no value is decoded or scaled."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

import nibabel
import numpy as np

from segwright.core.errors import ImageError
from segwright.core.files.atomic_io import atomic_path
from segwright.data.images.formats import Refusal
from segwright.data.images.readers.gzip_content import unpack
from segwright.data.images.readers.limits import file_start, is_gzip
from segwright.data.images.readers.nifti_header import NiftiHeader, check_nifti

_BLOCK: Final = 1 << 20
_GZIP_LEVEL: Final = 3
"""Level 6 takes about three times as long and saves a few percent."""
_SPACE_UNITS: Final = 7
"""Bits of `xyzt_units` for lengths; the others are the unit of time."""

Stream = IO[bytes] | gzip.GzipFile


def nifti_shape(file: Path) -> tuple[int, ...]:
    """Return the extents (x, y, z, ...) of a NIfTI file, from its header alone.

    Raises:
        ImageError: the file is missing, damaged or not NIfTI.
    """
    return _checked(file).shape


def require_undamaged(file: Path) -> None:
    """Require that a NIfTI file is complete, and that the checksums of a compressed one are right; reads all of it.

    Raises:
        ImageError: it is damaged, or not NIfTI.
    """
    header = _checked(file)
    if not is_gzip(file_start(file, 2)):
        return  # its size was compared with that of the voxels
    try:
        unpack(file, start=header.offset + header.voxel_bytes, num_bytes=0)
    except Refusal as refusal:
        raise ImageError(f"{file}: cannot be read ({refusal})") from refusal


def split_channels(file: Path, targets: Sequence[Path]) -> None:
    """Write each channel of a NIfTI file to a 3D file of its own, with the header and the time of the source.

    The targets appear together, once the whole source was read and its checksum was right.

    Args:
        file: three axes and one of channels.
        targets: one for each channel; compressed if the name ends in `.gz`.

    Raises:
        ImageError: the source is damaged, or has another number of channels.
    """
    header = _checked(file)
    found = header.shape[3] if len(header.shape) > 3 else 1
    if found != len(targets):
        raise ImageError(f"{file}: has {found} channels, expected {len(targets)}")
    size = math.prod(header.shape[:3]) * header.value_bytes
    status = file.stat()
    with ExitStack() as whole:
        temporaries = [whole.enter_context(atomic_path(target)) for target in targets]
        try:
            with _opened(file) as stream:
                head = _with_three_axes(stream.read(header.offset), header)
                for temporary in temporaries:
                    _write_channel(stream, temporary, head, size)
                while stream.read(_BLOCK):  # to the end, where the checksum is
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ImageError(f"{file}: is cut off or damaged ({error}); copy or download it again") from error
        for temporary in temporaries:
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))


def _checked(file: Path) -> NiftiHeader:
    """Check the header; with the bounds of label maps, since the voxels are never in memory at once."""
    try:
        return check_nifti(file, is_label=True)
    except Refusal as refusal:
        raise ImageError(f"{file}: cannot be read ({refusal})") from refusal
    except OSError as error:
        raise ImageError(f"{file}: cannot be read ({error.strerror or error})") from error


def _opened(file: Path) -> Stream:
    return gzip.open(file) if is_gzip(file_start(file, 2)) else file.open("rb")


def _write_channel(stream: Stream, target: Path, head: bytes, size: int) -> None:
    """Write a header and the next `size` bytes of a stream."""
    is_packed = target.name.lower().endswith(".gz")
    with target.open("wb") as plain, ExitStack() as packing:
        out: Stream = plain
        if is_packed:
            out = packing.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, plain, mtime=0))
        out.write(head)
        left = size
        while left:
            block = stream.read(min(left, _BLOCK))
            if not block:
                raise EOFError(f"{left} bytes of a channel are missing")
            out.write(block)
            left -= len(block)


def _with_three_axes(raw: bytes, header: NiftiHeader) -> bytes:
    """Return the bytes before the voxels with the fourth axis removed from the header; extensions stay."""
    kind = nibabel.nifti2.header_dtype if header.is_version_2 else nibabel.nifti1.header_dtype
    layout = kind.newbyteorder(header.dtype[0])
    fields = np.frombuffer(raw, layout, 1).copy()
    fields["dim"][:, 0], fields["dim"][:, 4:] = 3, 1
    fields["pixdim"][:, 4:] = 1
    fields["xyzt_units"] &= _SPACE_UNITS
    return bytes(fields.tobytes()) + raw[layout.itemsize :]
