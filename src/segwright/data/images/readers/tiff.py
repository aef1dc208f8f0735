"""Read and write TIFF stacks, and read any TIFF file as an array, within limits."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Mapping
from logging import getLogger
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK

from segwright.core.errors import ImageError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.json_documents import read_json, write_json
from segwright.data.images.formats import CHANNEL_SUFFIX, Floats, Header, LabelMap, Refusal
from segwright.data.images.readers.itk import ITK_LOCK
from segwright.data.images.readers.limits import DEFLATE_RATIO, file_start, require_enough_bytes, wrong_format_refusal

if TYPE_CHECKING:
    import tifffile

logger = getLogger(__name__)

ENDINGS: Final = (".tif", ".tiff")

_MAGICS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UUID = re.compile(r"<(?:\w+:)?UUID\s[^>]*FileName\s*=[^>]*>([^<]*)<", re.IGNORECASE)

_UNCOMPRESSED = 1
_DEFLATE: Final = (8, 32946, 50013)
_LZMA = 34925
_RATIOS: Final[Mapping[int, int]] = {_UNCOMPRESSED: 1, 32773: 128, 5: 2048, _LZMA: 8192, 50000: 32768}
"""Bytes that one byte can unpack to: PackBits, LZW (strings of at most 4096 bytes in 12 bits), LZMA, Zstandard; others
as deflate."""

_SMALL_SEGMENT = 1 << 17
"""Bytes; a compressed strip or tile of this size unpacks to at most 128 MiB, which needs no check."""
_MIN_PAGE_BYTES = 64
"""Bytes of the five tags that a page needs."""
_MAX_PAGES = 1 << 16
_MAX_SEGMENT_VALUES = 1 << 24
"""Values in a strip or tile that may be larger than its image."""
_MAX_THREADS = 4
_UNPACKED_AT_ONCE = 1 << 24


class Tiff3DIO:
    """Stacks in TIFF files, with the spacing in a JSON file beside them (array axis order, nnU-Net behaviour 2.6).

    The spacing of an image is in `{case}.json`, case without the channel suffix; that of a label in
    `{file without ending}.json`.
    """

    endings: tuple[str, ...] = ENDINGS

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read the shape of the stack and the spacing beside it."""
        return self._header(file, tiff_shape(file, is_label=is_label), is_label=is_label)

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one stack."""
        array = tiff_array(file, is_label=is_label)
        return self._header(file, array.shape, is_label=is_label), array[None].astype(np.float32)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a compressed stack and its spacing; the spacing first, so that no stack is without one."""
        write_json(path.with_name(f"{path.stem}.json"), {"spacing": list(spacing)}, indent=4)
        with atomic_path(path) as temporary:
            write_tiff(labels, temporary)

    @staticmethod
    def _header(file: Path, shape: tuple[int, ...], *, is_label: bool) -> Header:
        if len(shape) != 3:
            raise ValueError(f"has {len(shape)} axes {shape}, expected a stack with 3")
        sidecar = spacing_file(file, is_label=is_label)
        if not sidecar.is_file():
            logger.warning('%s: no %s with {"spacing": [z, y, x]}; taking (1, 1, 1)', file, sidecar.name)
            return Header(shape=shape, spacing=(1.0, 1.0, 1.0))
        return Header(shape=shape, spacing=_sidecar_spacing(sidecar))


def is_tiff(file: Path) -> bool:
    """Whether the file has a TIFF ending."""
    return file.suffix.lower() in ENDINGS


def spacing_file(file: Path, *, is_label: bool = False) -> Path:
    """Return the path of the JSON file with the spacing of a stack."""
    case = file.stem if is_label else CHANNEL_SUFFIX.sub("", file.stem)
    return file.with_name(f"{case}.json")


def tiff_shape(file: Path, *, is_label: bool = False) -> tuple[int, ...]:
    """Return the shape of what `tiff_array` reads."""
    with _open(file, is_label=is_label) as tiff:
        return tuple(int(extent) for extent in tiff.series[0].shape)


def tiff_array(file: Path, *, is_label: bool = False) -> npt.NDArray[Any]:
    """Read the first series of a TIFF file."""
    import tifffile  # other images are read without it

    with _open(file, is_label=is_label) as tiff:
        _check_segments(tiff)
        try:
            array = np.asarray(tiff.asarray(maxworkers=min(_MAX_THREADS, tifffile.TIFF.MAXWORKERS)))
        except ValueError as error:
            # Some compressions (LZW, JPEG) need the optional imagecodecs; ITK brings its own decoders.
            if "imagecodecs" not in str(error):
                raise
            with ITK_LOCK:
                array = _decoded_by_itk(file)
    if array.dtype.kind not in "biuf":
        raise Refusal(f"holds values of type {array.dtype}, expected real numbers")
    return array


def _decoded_by_itk(file: Path) -> npt.NDArray[Any]:
    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file), imageIO="TIFFImageIO")))


def write_tiff(array: npt.NDArray[Any], path: Path) -> None:
    """Write an array as a compressed grey picture or stack."""
    import tifffile

    tifffile.imwrite(path, array, compression="zlib", photometric="minisblack")


def _open(file: Path, *, is_label: bool) -> tifffile.TiffFile:
    """Open a file, after checking that its first series fits into it and is not spread over several files."""
    import tifffile

    start = file_start(file, 256)
    if not start.startswith(_MAGICS):
        raise wrong_format_refusal(start, "TIFF")
    _check_page_list(file, start)
    tiff = tifffile.TiffFile(file, _multifile=False)
    try:
        _check_first_series(tiff, file.stat().st_size, is_label=is_label)
    except BaseException:
        tiff.close()
        raise
    return tiff


def _check_page_list(file: Path, start: bytes) -> None:
    """Check that the linked list of pages ends; tifffile would follow a loop for ever."""
    order: Literal["little", "big"] = "little" if start.startswith(b"II") else "big"
    is_big = start[2:4] in (b"+\0", b"\0+")
    count_bytes, entry_bytes, offset_bytes = (8, 20, 8) if is_big else (2, 12, 4)
    seen: set[int] = set()
    most = min(_MAX_PAGES, file.stat().st_size // _MIN_PAGE_BYTES + 1)
    with file.open("rb") as stream:

        def number(place: int, length: int) -> int:
            stream.seek(place)
            found = stream.read(length)
            if len(found) < length:
                raise Refusal("it is cut off within its list of pages; copy or download it again")
            return int.from_bytes(found, order)

        offset = number(8 if is_big else 4, offset_bytes)
        while offset:
            seen_before = len(seen)
            seen.add(offset)
            if len(seen) == seen_before or len(seen) > most or offset > file.stat().st_size:
                raise Refusal(f"its list of pages does not end after {seen_before}; the file is damaged")
            offset = number(offset + count_bytes + entry_bytes * number(offset, count_bytes), offset_bytes)


def _check_first_series(tiff: tifffile.TiffFile, available: int, *, is_label: bool) -> None:
    """Check that the first series is in this file and fits into it."""
    first = tiff.pages[0]
    if tiff.is_ome and len(set(_UUID.findall(first.description))) > 1:
        raise Refusal("is one of several files of an OME-TIFF image; store the image in one file")
    series = tiff.series[0]
    page = series.keyframe
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    ratio = _RATIOS.get(page.compression, DEFLATE_RATIO)
    require_enough_bytes(tuple(series.shape), value_bytes=bits / 8, available=available, ratio=ratio, is_label=is_label)
    if prod(page.chunks) > max(_MAX_SEGMENT_VALUES, 2 * prod(series.shape)):
        raise Refusal(f"its strips or tiles have a size of {page.chunks}; the file is damaged")


def _check_segments(tiff: tifffile.TiffFile) -> None:
    """Refuse strips and tiles that unpack to more than stated (decompression bombs); tifffile unpacks them whole."""
    series, size = tiff.series[0], tiff.filehandle.size
    compression, expected = series.keyframe.compression, prod(series.keyframe.chunks) * series.dtype.itemsize
    suspicious = {_LZMA: 0, **dict.fromkeys(_DEFLATE, _SMALL_SEGMENT)}.get(compression, size)
    for page in filter(None, series.pages):
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if count > size:
                raise Refusal("it is cut off or damaged: a strip or tile is larger than the file; copy it again")
            if count > suspicious:
                tiff.filehandle.seek(offset)
                _require_unpacked_size(tiff.filehandle.read(count), compression, expected + _UNPACKED_AT_ONCE)


def _require_unpacked_size(packed: bytes, compression: int, largest: int) -> None:
    """Refuse a strip or tile that unpacks to more than `largest` bytes."""
    unpacker: Any = lzma.LZMADecompressor() if compression == _LZMA else zlib.decompressobj()
    size = 0
    while size <= largest:
        block = unpacker.decompress(packed, _UNPACKED_AT_ONCE)
        size += len(block)
        if not block or unpacker.eof:
            return
        packed = b"" if compression == _LZMA else unpacker.unconsumed_tail
    raise Refusal("a strip or tile unpacks to more than its size; the file is damaged")


def _sidecar_spacing(sidecar: Path) -> tuple[float, ...]:
    document = read_json(sidecar)
    spacing = document.get("spacing") if isinstance(document, dict) else None
    if (
        not isinstance(spacing, list)
        or len(spacing) != 3
        or not all(isinstance(extent, int | float) and 0 < extent < float("inf") for extent in spacing)
    ):
        raise ImageError(f'{sidecar}: expected {{"spacing": [z, y, x]}} with three positive numbers, found {document}')
    return tuple(float(extent) for extent in spacing)
