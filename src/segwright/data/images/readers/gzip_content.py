"""Verify the gzip checksum of compressed voxels, which ITK and nibabel ignore."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from os import SEEK_END
from pathlib import Path
from typing import Any

import numpy.typing as npt

from segwright.data.images.formats import Refusal

SIZE_WRAPS = 1 << 32
"""gzip stores sizes modulo this."""

_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16
"""Bytes unpacked at once, to at most a thousand times as many."""
_GZIP_FORMAT = 31
"""Value of zlib's `wbits` for members with header and checksum."""
_MAGIC = b"\x1f\x8b"
_TRAILER_BYTES = 8


def unpacked_size(file: Path) -> int:
    """Return the uncompressed size in the last bytes of a gzip file, modulo `SIZE_WRAPS`."""
    return _trailer(file)[1]


def require_undamaged(file: Path, voxels: npt.NDArray[Any], *, num_bytes: int, before: int = 0, start: int = 0) -> None:
    """Refuse a file whose compressed part does not match its checksum.

    If the voxels are given as stored, this takes 2 to 12 % of the reading time (CT and label maps, 23 million voxels).
    Otherwise, and for files of several gzip members, they are unpacked again, which doubles it.

    Args:
        file: ends with its compressed part.
        voxels: as they were read.
        num_bytes: size of the voxels as stored.
        before: uncompressed bytes before the voxels.
        start: offset of the compressed part.

    Raises:
        Refusal: the file is damaged.
    """
    found = 0
    try:
        with file.open("rb") as packed:
            packed.seek(start)
            with gzip.GzipFile(fileobj=packed) as unpacked:
                if voxels.flags.c_contiguous and voxels.nbytes == num_bytes:
                    total = zlib.crc32(voxels.data, zlib.crc32(unpacked.read(before)))
                    if _trailer(file) == (total, (before + num_bytes) % SIZE_WRAPS):
                        return
                    unpacked.seek(0)
                while block := unpacked.read1(_BLOCK):
                    found += len(block)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, gzip.BadGzipFile) and "Not a gzip" in str(error) and found >= before + num_bytes:
            return  # other bytes follow the voxels, whose checksum was right
        raise Refusal(f"it is damaged ({error}); copy or download it again") from error


def unpack(file: Path, *, start: int, num_bytes: int) -> bytearray:
    """Return a part of what a gzip file holds, once all of its checksums are verified.

    Unlike `gzip`, whose threads wait for each other, it holds the interpreter lock for little of its time.

    Args:
        file: of one or several gzip members; other bytes may follow them.
        start: offset of the part in what the file holds.
        num_bytes: size of the part.

    Raises:
        Refusal: the file is damaged or cut off.
    """
    part, place = bytearray(num_bytes), -start
    try:
        for block in _unpacked_blocks(file):
            kept = block[max(0, -place) : max(0, num_bytes - place)]
            part[max(0, place) : max(0, place) + len(kept)] = kept
            place += len(block)
    except (EOFError, zlib.error) as error:
        raise Refusal(f"it is damaged ({error}); copy or download it again") from error
    if place < num_bytes:
        raise Refusal(f"it is cut off: {start + place} bytes of {start + num_bytes}; copy or download it again")
    return part


def _unpacked_blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as packed:
        member, rest = zlib.decompressobj(_GZIP_FORMAT), b""
        while rest := rest or packed.read(_PACKED_BLOCK):
            yield member.decompress(rest)
            rest = b""
            if member.eof:
                rest = (member.unused_data + packed.read(_PACKED_BLOCK)).lstrip(b"\0")
                if not rest.startswith(_MAGIC):
                    return
                member = zlib.decompressobj(_GZIP_FORMAT)
        raise EOFError("the compressed data end too early")


def _trailer(file: Path) -> tuple[int, int]:
    """Return the checksum and the size in the last bytes of a gzip file."""
    with file.open("rb") as stream:
        stream.seek(-min(_TRAILER_BYTES, file.stat().st_size), SEEK_END)
        trailer = stream.read().rjust(_TRAILER_BYTES, b"\0")
    return int.from_bytes(trailer[:4], "little"), int.from_bytes(trailer[4:], "little")
