"""Open `.b2nd` files of unknown origin, after checking that they hold plain numbers and nothing else.

blosc2 files may hold more than arrays: expressions and functions that it rebuilds, references to other files and
servers, pickled objects, and codecs for which it starts Python to load a plugin. So the header, the index, the header
of every chunk and the trailer of the frame are checked before blosc2 opens the file.
"""

from __future__ import annotations

import mmap
import re
import stat
import struct
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, Final

import blosc2
import numpy as np

from segwright.core.errors import DatasetError

_MAGIC: Final = b"\x9e\xa8b2frame\x00"
_HEADER: Final = struct.Struct(">10s xi xQ x4B xq xq xi xi xi 6xB 18x")
"""Of the frame, in MessagePack: magic, header size, frame size, flags, frame type, codec, (unused), size, compressed
size, item size, block size, chunk size, whether it has attributes."""
_METALAYERS: Final = struct.Struct(">BBHBH")
_CHUNK: Final = struct.Struct("<4B3i 6B2B 6B2B")
"""Head of a chunk: format versions, flags, item size, bytes, block bytes, compressed bytes, filters, codec, the
filters' parameters, flags of special values."""
_NO_METALAYERS: Final = b"\x94\x01\x93\xcd\x00\x06\xde\x00\x00\xdc\x00\x00"
_FALSE, _UINT32, _BIN32, _INT32, _INT64, _STR32, _LIST_OF_7 = 0xC2, 0xCE, 0xC6, 0xD2, 0xD3, 0xDB, 0x97
_LIST: Final = 0x90
"""MessagePack's markers of types; that of a list adds its length."""
_TRAILER_END: Final = 23
_ARRAY_NAME: Final = b"\xa4b2nd\xd2"
_DTYPE: Final = re.compile(r"[<>|=]?(?:[fiu][1248]|b1|\?)")
_CODECS: Final = {0, 1, 2, 4, 5}
"""BloscLZ, LZ4, LZ4HC, Zlib, Zstandard; for others blosc2 looks for a plugin."""
_CODEC_FORMATS: Final = {0, 1, 3, 4}
"""The same codecs, as numbered in chunks."""
_FILTERS: Final = {0, 1, 2, 3, 4}
_EXTENDED: Final = 0x05
"""Both bits of the old shuffle flags: the head of the chunk has 32 bytes."""
_SPECIAL: Final = 0x70
_NEWEST_FORMAT: Final = 3
_MAX_AXES: Final = 8
_MAX_VALUES: Final = 1 << 48
_MAX_CHUNKS: Final = 1 << 22
_MAX_CHUNK_BYTES: Final = 1 << 28
"""Bytes. blosc2 needs memory for a whole chunk to read a part of it; ours have at most 64 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """Shape, chunks and dtype of an array, from the header of its file."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    blocks: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_chunks(self) -> int:
        """How many chunks the array is divided into."""
        return prod(ceil(extent / chunk) for extent, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def block_bytes(self) -> int:
        """Size of a block."""
        return prod(self.blocks) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk, which holds whole blocks."""
        padded = (ceil(chunk / block) * block for chunk, block in zip(self.chunks, self.blocks, strict=True))
        return prod(padded) * self.dtype.itemsize


def open_array(path: Path) -> Any:
    """Open an array to read parts of it.

    Raises:
        DatasetError: the file is missing or damaged, or holds anything but numbers.
    """
    try:
        layout = read_layout(path)
        array = blosc2.open(str(path.absolute()), mode="r", dparams=blosc2.DParams(nthreads=1))
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise DatasetError(f"{path}: is damaged ({error})") from error
    if not isinstance(array, blosc2.NDArray) or tuple(array.shape) != layout.shape or array.dtype != layout.dtype:
        raise DatasetError(f"{path}: is damaged (its header and its content differ)")
    return array


def read_layout(path: Path) -> ArrayLayout:
    """Check that a file is a complete, plain array of numbers; only its index is decompressed.

    Raises:
        OSError: it is missing or cannot be read.
        DatasetError: it is damaged, or holds anything else.
    """
    try:
        if not stat.S_ISREG((found := path.stat()).st_mode):
            raise _RefusedError("is not a regular file")
        if found.st_size < _HEADER.size:
            raise _RefusedError("is not a blosc2 array, or cut off")
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _layout(content)
    except _RefusedError as error:
        raise DatasetError(f"{path}: {error}") from error


class _RefusedError(ValueError):
    """Why a file is not opened."""


def _layout(content: mmap.mmap) -> ArrayLayout:
    """Check a whole file and return its layout."""
    magic, header_size, frame_size, *kinds = _HEADER.unpack_from(content)
    flags, frame_type, codec, _, size, compressed, item_size, block_size, chunk_size, has_attributes = kinds
    if magic != _MAGIC:
        raise _RefusedError("is not a blosc2 array")
    if frame_size != len(content) or not _HEADER.size <= header_size <= frame_size - _TRAILER_END:
        raise _RefusedError("is cut off or damaged (its size is not what its header says)")
    is_plain = frame_type == 0 and flags & 0x0F <= _NEWEST_FORMAT and _CODECS.issuperset((codec & 0x0F, content[77]))
    if not is_plain or not _FILTERS.issuperset(content[71:77]):
        raise _RefusedError("is of a kind that is not read: only plain arrays with built-in codecs and filters are")
    layout = _array_layout(content[:header_size])
    if has_attributes != _FALSE or not _has_plain_trailer(content):
        raise _RefusedError("has attributes, which may hold code or references; only plain arrays are read")
    num_chunks = layout.num_chunks
    expected = (layout.dtype.itemsize, layout.block_bytes, layout.chunk_bytes, num_chunks * layout.chunk_bytes)
    if (item_size, block_size, chunk_size, size) != expected:
        raise _RefusedError("is damaged (its header contradicts itself)")
    if num_chunks > _MAX_CHUNKS or chunk_size > _MAX_CHUNK_BYTES:
        raise _RefusedError(
            f"has {num_chunks} chunks of {chunk_size} bytes; at most {_MAX_CHUNKS} of {_MAX_CHUNK_BYTES}"
        )
    _require_plain_chunks(content, header_size, compressed, num_chunks, layout)
    return layout


def _array_layout(header: bytes) -> ArrayLayout:
    """Return the layout from `b2nd`, the only metalayer of a plain array."""
    start = _HEADER.size
    try:
        _, _, _, _, count = _METALAYERS.unpack_from(header, start)
        names = header[start + _METALAYERS.size :]
        if count != 1 or not names.startswith(_ARRAY_NAME):
            raise _RefusedError(
                "holds more than an array, such as an expression, a function or a reference to other data"
            )
        (offset,) = struct.unpack_from(">i", names, len(_ARRAY_NAME))
        kind, length = struct.unpack_from(">Bi", header, offset)
        content = header[offset + 5 : offset + 5 + length]
        if kind != _BIN32 or len(content) != length or offset + 5 + length != len(header):
            raise _RefusedError("is damaged (its header cannot be read)")
        return _parsed_layout(content)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise _RefusedError("is damaged (its header cannot be read)") from error


def _parsed_layout(content: bytes) -> ArrayLayout:
    """Parse the metalayer: version, number of axes, shape, chunks, blocks, dtype."""
    axes = content[2]
    if content[0] != _LIST_OF_7 or axes > _MAX_AXES or content[3] != _LIST + axes:
        raise _RefusedError("is damaged (its header cannot be read)")
    extents: list[tuple[int, ...]] = []
    position = 4
    for code, marker in (("q", _INT64), ("i", _INT32), ("i", _INT32)):
        item = struct.Struct(f">B{code}")
        parts = [item.unpack_from(content, position + index * item.size) for index in range(axes)]
        if any(kind != marker or extent < 0 for kind, extent in parts):
            raise _RefusedError("is damaged (its shape cannot be read)")
        extents.append(tuple(extent for _, extent in parts))
        position += axes * item.size + 1  # each list begins with its length
    dtype_format, kind, length = struct.unpack_from(">BBi", content, position - 1)
    text = content[position + 5 :].decode("ascii")
    if dtype_format != 0 or kind != _STR32 or length != len(text) or not _DTYPE.fullmatch(text):
        raise _RefusedError("holds values of another type than numbers")
    shape, chunks, blocks = extents
    if not 0 < prod(shape) < _MAX_VALUES:
        raise _RefusedError(f"has the shape {shape}; expected at least one value in it, and less than {_MAX_VALUES}")
    if any(not 1 <= block <= chunk for block, chunk in zip(blocks, chunks, strict=True)):
        raise _RefusedError("is damaged (its shape and its chunks contradict each other)")
    return ArrayLayout(shape=shape, chunks=chunks, blocks=blocks, dtype=np.dtype(text))


def _has_plain_trailer(content: mmap.mmap) -> bool:
    end = len(content) - _TRAILER_END
    kind, length = struct.unpack_from(">BI", content, end)
    start = len(content) - length
    return kind == _UINT32 and 0 <= start <= end and content[start : start + len(_NO_METALAYERS)] == _NO_METALAYERS


def _require_plain_chunks(
    content: mmap.mmap, start: int, compressed: int, num_chunks: int, layout: ArrayLayout
) -> None:
    """Check that all chunks are inside the file and need only built-in codecs."""
    end = start + compressed
    if not start <= end <= len(content) - _TRAILER_END:
        raise _RefusedError("is damaged (its index is outside the file)")
    for offset in _offsets(content, end, num_chunks):
        if offset >= 0:  # others are chunks of one value, which are not stored
            _require_plain_chunk(content, start + offset, end, layout.dtype.itemsize, layout.chunk_bytes)


def _offsets(content: mmap.mmap, start: int, num_chunks: int) -> list[int]:
    """Return the offset of each chunk, from the compressed index at `start`."""
    stop = len(content) - _TRAILER_END
    _require_plain_chunk(content, start, stop, 8, 8 * num_chunks)
    size = _CHUNK.unpack_from(content, start)[6]
    try:
        index = blosc2.decompress2(content[start : start + size])
    except (RuntimeError, ValueError) as error:
        raise _RefusedError(f"is damaged (its index: {error})") from error
    offsets: list[int] = np.frombuffer(index, "<i8").tolist()
    return offsets


def _require_plain_chunk(content: mmap.mmap, start: int, end: int, item_size: int, chunk_bytes: int) -> None:
    if not 0 <= start <= end - _CHUNK.size:
        raise _RefusedError("is damaged (a chunk is outside the file)")
    _, _, flags, width, num_bytes, block, size, *rest = _CHUNK.unpack_from(content, start)
    filters, own_codec = rest[:6], rest[6]
    is_special = rest[15] & _SPECIAL
    if num_bytes != chunk_bytes or width != item_size or not 0 < block <= max(num_bytes, 1):
        raise _RefusedError("is damaged (a chunk is not as the header says)")
    if flags & _EXTENDED != _EXTENDED or not _CHUNK.size <= size <= end - start:
        raise _RefusedError("is damaged (the size of a chunk)")
    if not is_special and (flags >> 5 not in _CODEC_FORMATS or not _FILTERS.issuperset(filters)):
        raise _RefusedError("has chunks whose codec or filter is not built in; they are not read")
    if own_codec not in (0, *_CODECS):
        raise _RefusedError("has chunks whose codec is not built in; they are not read")
