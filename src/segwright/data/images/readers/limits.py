"""Limits on what a file may unpack to, and recognition of files that are not images."""

from __future__ import annotations

from math import prod
from pathlib import Path

from segwright.data.images.formats import Refusal

DEFLATE_RATIO = 1032
"""Bytes that one byte of a deflate stream can unpack to at most (zlib's technical notes)."""

MAX_VALUES = 1 << 31
"""Most values in one file: 8 GiB as float32, more than ten times a whole-body CT at 1 mm."""

_LARGE_BYTES = 1 << 30
"""Only files whose values need more memory than this, as stored and as float32, may be decompression bombs."""

_IMAGE_RATIO, _LABEL_RATIO = 1000, 1028
"""Bytes that one byte may unpack to in a large image and a label map.

Zeros alone unpack 1028.7-fold (zlib, level 6); label maps of small structures, and masks as images, less than this.

Files that Segwright writes stay far below, because of their compression level.
"""

_TINY_IMAGE_BYTES = 2 << 20
"""Images in files smaller than this must not unpack to more than `_LARGE_BYTES` (512-fold).

Masks stored as images can be compressed so, but do not reach 1024^3 voxels of one byte. Label maps have no such bound.
"""

_OVERHEAD_BYTES = 1 << 16
"""Bytes of headers and trailers that a ratio does not count."""

_GZIP = b"\x1f\x8b"

_OTHER_FORMATS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, the image was not downloaded; run git lfs pull"),
    (b"/annex/objects/", "is a pointer of git-annex, the image was not downloaded; run git annex get"),
    (b"<!doctype html", "is a web page (HTML), perhaps an error message of the server; download the image again"),
    (b"<html", "is a web page (HTML), perhaps an error message of the server; download the image again"),
    (b"<?xml", "is an XML document, not an image"),
    (b"<svg", "is an SVG drawing, not an image of pixels"),
    (b"{", "is a text document (JSON), not an image"),
    (b"PK\x03\x04", "is a zip archive; unpack it"),
    (b"NRRD000", "is an NRRD file inside; name it .nrrd"),
    (b"ObjectType", "is a MetaImage file inside; name it .mha"),
    (b"\x89PNG", "is a PNG picture inside; name it .png"),
    (b"\xff\xd8\xff", "is a JPEG picture inside; convert it"),
    (b"GIF8", "is a GIF picture inside; convert it"),
    (b"II*\x00", "is a TIFF file inside; name it .tif"),
    (b"MM\x00*", "is a TIFF file inside; name it .tif"),
    (b"\x89HDF", "is an HDF5 file inside; convert it"),
    (b"BZh", "is compressed with bzip2; unpack it"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it"),
    (b"(\xb5/\xfd", "is compressed with zstd; unpack it"),
    (_GZIP, "is compressed with gzip; unpack it, or add .gz to its name if it is a NIfTI file"),
)


def file_start(file: Path, length: int) -> bytes:
    """Return the first bytes of a file."""
    with file.open("rb") as stream:
        return stream.read(length)


def is_gzip(start: bytes) -> bool:
    """Whether a file with these first bytes is compressed with gzip."""
    return start.startswith(_GZIP)


def wrong_format_refusal(start: bytes, expected: str) -> Refusal:
    """Return why a file with these first bytes is not of the expected kind, and what it is if that is known."""
    if not start:
        return Refusal("the file is empty (0 bytes); copy or download it again")
    text = start.lstrip().lower()
    for magic, what in _OTHER_FORMATS:
        if start.startswith(magic) or text.startswith(magic.lower()) or (magic[0:1] == b"/" and magic in start[:200]):
            return Refusal(f"it {what}")
    if start[128:132] == b"DICM":
        return Refusal("it is a DICOM file; convert the series to NIfTI first")
    return Refusal(f"no {expected} header at its start; copy or download it again")


def require_enough_bytes(
    shape: tuple[int, ...],
    *,
    value_bytes: float,
    available: int,
    ratio: int = 1,
    is_label: bool = False,
) -> None:
    """Refuse a header that states more values than its file can hold, before memory is allocated for them.

    Args:
        shape: extents of all axes, including values per voxel.
        value_bytes: of one value, uncompressed.
        available: bytes of the file that hold values.
        ratio: bytes that one byte can unpack to at most; 1 for uncompressed data.
        is_label: allow a label map's compression ratio, which is higher because it may be background nearly everywhere.

    Raises:
        Refusal: it does, or it states more than `MAX_VALUES`, or the values look like a decompression bomb.
    """
    if not shape or any(extent < 1 for extent in shape):
        raise Refusal(f"its header says size {_format_shape(shape)}; every extent must be 1 or more")
    count = prod(shape)
    if count > MAX_VALUES:
        raise Refusal(
            f"its header says size {_format_shape(shape)}, more than {MAX_VALUES} values; "
            "crop the image or store it with a larger spacing"
        )
    expected = int(count * value_bytes)
    if expected > available * ratio + (_OVERHEAD_BYTES if ratio > 1 else 0):
        packed = "" if ratio == 1 else " compressed"
        raise Refusal(
            f"it is cut off or damaged: its header says size {_format_shape(shape)} or {expected} bytes, "
            f"the file has {available}{packed} bytes; copy or download it again"
        )
    blank = available * (_LABEL_RATIO if is_label else _IMAGE_RATIO)
    is_tiny = not is_label and available < _TINY_IMAGE_BYTES and expected > _LARGE_BYTES
    if ratio > 1 and expected + 4 * count > _LARGE_BYTES and (expected > blank or is_tiny):
        raise Refusal(
            f"{available} bytes would unpack to {expected}, as only a blank image does; if that is right, store it "
            "uncompressed"
        )


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(extent) for extent in shape) or "of no axis"
