"""Store preprocessed cases: compressed arrays that are read patch by patch, and one JSON document per case.

A case is `<case>.b2nd` (image), `<case>_seg.b2nd` (label map), `<case>_locations.b2nd` (voxels of each class, one row
of three coordinates per voxel, class after class; absent if there is none) and `<case>.json`: provenance, the number
of rows of each class, hashes of the raw files, size and checksum of the arrays, and a checksum of its own. The JSON
is written last; a case without it does not count. Each array is checked against its checksum before it is first read.
Arrays are opened for each access, since handles of blosc2 must not be shared between threads.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from segwright.core.errors import DatasetError, Problem, SegwrightError, WorkspaceError, did_you_mean
from segwright.core.files.atomic_io import atomic_path, sweep_leftovers
from segwright.core.files.hashing import file_crc
from segwright.core.files.json_documents import has_valid_checksum, read_json, with_checksum, write_json
from segwright.core.files.names import below, require_name
from segwright.data.labels import ClassKey
from segwright.data.preprocessed.array_files import read_layout
from segwright.data.preprocessed.chunks import chunk_and_block
from segwright.data.preprocessed.provenance import Provenance, SourceFile

SCHEMA_VERSION = 1

_IMAGE, _LABEL, _LOCATIONS = "image", "label", "locations"
_ENDINGS = {_IMAGE: ".b2nd", _LABEL: "_seg.b2nd", _LOCATIONS: "_locations.b2nd"}
_OLD_CHECKSUM_BYTES = 64 * 1024
"""The checksum of older versions covers this many bytes at both ends of a file."""
_ROWS_PER_CHUNK, _ROWS_PER_BLOCK = 16384, 512
_FILTERS = {
    _IMAGE: (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE),
    _LABEL: (blosc2.Filter.SHUFFLE,),
    _LOCATIONS: (blosc2.Filter.SHUFFLE,),
}
"""Filters to try: images of integers compress best without a filter, others shuffled."""
_REMEDY = "preprocess the dataset again"


class DamagedCaseError(WorkspaceError):
    """A case is damaged; from now on it counts as missing, so that preprocessing makes it again."""


class IntegrityCheck:
    """Checks an array file against its document once, in the first thread that reads it.

    Args:
        path: of the array.
        json_path: document of the case; removed if the array is damaged, so that the case is made again.
        size: of the file in bytes.
        crc: of the whole file; None if an older version wrote it.
    """

    def __init__(self, path: Path, json_path: Path, *, size: int | None, crc: int | None) -> None:
        self._path = path
        self._json_path = json_path
        self._size = size
        self._crc = crc
        self._is_done = False
        self._lock = threading.Lock()

    def require(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Require that the file is undamaged and holds a plain array of this shape and type.

        Raises:
            DamagedCaseError: it is not.
        """
        if self._is_done:
            return
        with self._lock:
            if not self._is_done:
                if reason := self._damage(shape, dtype):
                    with suppress(OSError):
                        self._json_path.unlink(missing_ok=True)
                    raise DamagedCaseError(f"{self._path}: missing or damaged ({reason}); {_REMEDY}")
                self._is_done = True

    def _damage(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        try:
            if self._size is not None and self._path.stat().st_size != self._size:
                return "its size has changed since it was written"
            if self._crc is not None and file_crc(self._path) != self._crc:
                return "its checksum does not match"
            layout = read_layout(self._path)
        except FileNotFoundError:
            return "the file does not exist"
        except DatasetError as error:
            return str(error).removeprefix(f"{self._path}: ")
        if layout.shape != shape or layout.dtype != dtype:
            return f"it holds {layout.dtype} {layout.shape} instead of {dtype} {shape}"
        return ""


@dataclass(frozen=True, slots=True)
class LazyArray:
    """An array on disk that is decompressed when it is sliced; thread-safe."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    integrity: IntegrityCheck = field(compare=False)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        self.integrity.require(self.shape, self.dtype)
        try:
            result: npt.NDArray[Any] = _open(self.path)[key]
        except RuntimeError as error:
            raise DamagedCaseError(f"{self.path}: damaged ({error}); {_REMEDY}") from error
        return result

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)


@dataclass(frozen=True, slots=True)
class LazyRows:
    """The voxels (n, 3) of one class; a row is read when it is indexed."""

    array: LazyArray
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, 3)."""
        return self.count, self.array.shape[1]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        if not -self.count <= index < self.count:
            raise IndexError(f"row {index} of {self.count}")
        return self.array[self.first + index % self.count]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if not self.count:
            return np.zeros(self.shape, dtype=dtype or self.array.dtype)
        return np.asarray(self.array[self.first : self.first + self.count], dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessedCase:
    """A preprocessed case; its arrays stay on disk until they are sliced."""

    identifier: str
    image: LazyArray  # (C, *S) float32
    label: LazyArray  # (1, *S) int16, -1 outside the non-zero mask
    class_locations: Mapping[ClassKey, Any]
    """Voxel indices (n, 3) of each class or region, int16 or int32: all if there are at most 10000, else a sample of
    max(10000, 1 %)."""
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class CaseStore:
    """A folder of preprocessed cases.

    >>> CaseStore(Path("no/such/folder")).identifiers()
    ()
    """

    folder: Path

    def identifiers(self) -> tuple[str, ...]:
        """Return the stored cases, sorted."""
        if not self.folder.is_dir():
            return ()
        names = (path.name for path in self.folder.iterdir() if path.suffix == ".json")
        return tuple(sorted(name[: -len(".json")] for name in names if not name.startswith(".")))

    def load(self, identifier: str) -> PreprocessedCase:
        """Open a case without reading its arrays.

        Raises:
            WorkspaceError: the case is missing or its document is damaged.
        """
        if not self._json(identifier).is_file():
            raise WorkspaceError(
                f"{self.folder}: case '{identifier}' is not preprocessed{did_you_mean(identifier, self.identifiers())}"
            )
        try:
            document = self._document(identifier)
        except SegwrightError as error:
            raise DamagedCaseError(f"{error}; {_REMEDY}") from error
        try:
            arrays = document["arrays"]
            return PreprocessedCase(
                identifier=identifier,
                image=self._lazy_array(identifier, _IMAGE, arrays),
                label=self._lazy_array(identifier, _LABEL, arrays),
                class_locations=self._class_locations(identifier, document),
                provenance=Provenance.from_json(document["provenance"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedCaseError(f"{self._json(identifier)}: not a preprocessed case ({error}); {_REMEDY}") from error

    def save(
        self,
        identifier: str,
        image: npt.NDArray[np.float32],
        label: npt.NDArray[Any],
        class_locations: Mapping[ClassKey, npt.NDArray[Any]],
        provenance: Provenance,
        *,
        patch_size: Sequence[int],
        source_hash: str,
        sources: Sequence[SourceFile] = (),
    ) -> None:
        """Write a case, replacing an old one; until it is complete, the case counts as missing.

        Args:
            identifier: the case.
            image: (C, *S).
            label: (1, *S).
            class_locations: class or region to voxels (n, 3).
            provenance: for mapping predictions back to the original grid.
            patch_size: of training; determines the chunks.
            source_hash: of everything that the case was made from; see `is_fresh`.
            sources: the raw files, see `recorded_sources`.
        """
        below(self.folder, f"{identifier}{_ENDINGS[_LOCATIONS]}")
        self.remove(identifier)
        rows = [np.asarray(voxels).reshape(-1, 3) for voxels in class_locations.values()]
        arrays: dict[str, npt.NDArray[Any]] = {
            _IMAGE: np.asarray(image, dtype=np.float32),
            _LABEL: np.asarray(label, dtype=np.int16),
        }
        if sum(map(len, rows)):
            small = max(image.shape[1:]) <= np.iinfo(np.int16).max
            arrays[_LOCATIONS] = np.concatenate(rows).astype(np.int16 if small else np.int32)
        entries = {
            kind: _write(
                self._array(identifier, kind), array, _chunks_and_blocks(kind, array, patch_size), _FILTERS[kind]
            )
            for kind, array in arrays.items()
        }
        document = {
            "schema_version": SCHEMA_VERSION,
            "source_hash": source_hash,
            "sources": [[file.name, file.size, file.mtime_ns, file.sha256] for file in sources],
            "arrays": entries,
            "classes": [[key, len(voxels)] for key, voxels in zip(class_locations, rows, strict=True)],
            "provenance": provenance.to_json(),
        }
        write_json(self._json(identifier), with_checksum(document))

    def remove(self, identifier: str) -> None:
        """Delete a case, its document first."""
        self._json(identifier).unlink(missing_ok=True)
        for kind in _ENDINGS:
            self._array(identifier, kind).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete temporary files of killed processes; recent ones are kept, since they may still be written."""
        sweep_leftovers(self.folder, is_shared=True)

    def is_fresh(self, identifier: str, source_hash: str) -> bool:
        """Whether the case exists, is undamaged, and was made from `source_hash`."""
        try:
            document = self._document(identifier)
            if document["source_hash"] != source_hash:
                return False
            return all(_is_whole(self._array(identifier, kind), entry) for kind, entry in document["arrays"].items())
        except (SegwrightError, KeyError, TypeError, AttributeError):
            return False

    def recorded_sources(self, identifier: str) -> tuple[SourceFile, ...]:
        """Return the raw files the case was made from; empty if the case is missing."""
        try:
            entries = self._document(identifier)["sources"]
            return tuple(SourceFile(name=n, size=s, mtime_ns=t, sha256=h) for n, s, t, h in entries)
        except (SegwrightError, KeyError, TypeError, ValueError):
            return ()

    @staticmethod
    def name_clashes(identifiers: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield pairs of cases whose files would have the same name, such as `a` and `a_seg`."""
        known = set(identifiers)
        for identifier in identifiers:
            for kind in (_LABEL, _LOCATIONS):
                other = identifier + _ENDINGS[kind].removesuffix(_ENDINGS[_IMAGE])
                if other in known:
                    yield identifier, other

    @staticmethod
    def clash_problems(where: str, identifiers: Sequence[str]) -> list[Problem]:
        """Return problems of cases whose preprocessed files would have the same name."""
        return [
            Problem(
                where=f"{where}, case {second}",
                what=f"its preprocessed files would replace those of case {first}",
                remedy="rename one of the two",
            )
            for first, second in CaseStore.name_clashes(identifiers)
        ]

    def _document(self, identifier: str) -> dict[str, Any]:
        path = self._json(identifier)
        document = read_json(path)
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            raise WorkspaceError(f"{path}: expected schema_version {SCHEMA_VERSION}")
        if not has_valid_checksum(document):
            raise WorkspaceError(f"{path}: damaged (its checksum does not match)")
        return document

    def _class_locations(self, identifier: str, document: Mapping[str, Any]) -> dict[ClassKey, LazyRows]:
        entry = document["arrays"].get(_LOCATIONS, {"shape": (0, 3), "dtype": "i2"})
        array = self._lazy_array(identifier, _LOCATIONS, {_LOCATIONS: entry})
        result: dict[ClassKey, LazyRows] = {}
        first = 0
        for key, count in document["classes"]:
            result[tuple(key) if isinstance(key, list) else key] = LazyRows(array, first, count)
            first += count
        return result

    def _lazy_array(self, identifier: str, kind: str, arrays: Mapping[str, Any]) -> LazyArray:
        return lazy_array(self._array(identifier, kind), self._json(identifier), arrays[kind])

    def _json(self, identifier: str) -> Path:
        return self.folder / f"{require_name(identifier, 'case id', error=WorkspaceError)}.json"

    def _array(self, identifier: str, kind: str) -> Path:
        return self.folder / f"{require_name(identifier, 'case id', error=WorkspaceError)}{_ENDINGS[kind]}"


def lazy_array(path: Path, json_path: Path, entry: Mapping[str, Any]) -> LazyArray:
    """Return an array that is checked against its entry in the document at `json_path` when it is first read."""
    integrity = IntegrityCheck(path, json_path, size=entry.get("bytes"), crc=entry.get("crc32"))
    return LazyArray(path, tuple(entry["shape"]), np.dtype(entry["dtype"]), integrity)


def _chunks_and_blocks(
    kind: str, array: npt.NDArray[Any], patch_size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if kind == _LOCATIONS:
        return (min(len(array), _ROWS_PER_CHUNK), 3), (min(len(array), _ROWS_PER_BLOCK), 3)
    return chunk_and_block(array.shape, patch_size, array.itemsize)


def _write(
    path: Path,
    array: npt.NDArray[Any],
    layout: tuple[tuple[int, ...], tuple[int, ...]],
    filters: Sequence[blosc2.Filter],
) -> dict[str, Any]:
    """Compress an array into a file, atomically, and return its entry in the document."""
    frame = _compressed(np.ascontiguousarray(array), *layout, filters).to_cframe()
    with atomic_path(path, durable=False, size=len(frame)) as temporary:  # the document holds its checksum
        temporary.write_bytes(frame)
    return {"shape": list(array.shape), "dtype": array.dtype.name, "bytes": len(frame), "crc32": zlib.crc32(frame)}


def _compressed(
    array: npt.NDArray[Any], chunks: tuple[int, ...], blocks: tuple[int, ...], filters: Sequence[blosc2.Filter]
) -> Any:
    """Compress the array with the filter that compresses its middle slab best.

    Zstandard at level 1 instead of nnU-Net's LZ4HC at level 5: about the same size or smaller, several times faster
    to write, and readable by every blosc2.
    """
    middle = tuple(
        slice((extent - min(extent, chunk)) // 2, (extent + min(extent, chunk)) // 2)
        for extent, chunk in zip(array.shape, chunks, strict=True)
    )
    slab = np.ascontiguousarray(array[middle])

    def compress(part: npt.NDArray[Any], chosen: blosc2.Filter) -> Any:
        # In memory first: blosc2 would rewrite the file's trailer after each chunk.
        parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, nthreads=1, filters=[chosen], filters_meta=[0])
        fitting = tuple(min(block, extent) for block, extent in zip(blocks, part.shape, strict=True))
        limits = tuple(min(chunk, extent) for chunk, extent in zip(chunks, part.shape, strict=True))
        return blosc2.asarray(part, chunks=limits, blocks=fitting, cparams=parameters, contiguous=True)

    if len(filters) == 1:
        return compress(array, filters[0])
    trials = {chosen: compress(slab, chosen) for chosen in filters}
    best = min(trials, key=lambda chosen: trials[chosen].schunk.cbytes)
    return trials[best] if slab.shape == array.shape else compress(array, best)


def _open(path: Path) -> Any:
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
    except (OSError, RuntimeError, ValueError) as error:
        raise DamagedCaseError(f"{path}: missing or damaged ({error}); {_REMEDY}") from error


def _is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        if path.stat().st_size != int(entry["bytes"]):
            return False
        return file_crc(path) == entry["crc32"] if "crc32" in entry else _old_checksum(path) == int(entry["checksum"])
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _old_checksum(path: Path) -> int:
    """Return the CRC-32 of the file's first and last part, the checksum of older versions."""
    with path.open("rb") as stream:
        total = zlib.crc32(stream.read(_OLD_CHECKSUM_BYTES))
        size = path.stat().st_size
        stream.seek(max(_OLD_CHECKSUM_BYTES, size - _OLD_CHECKSUM_BYTES))
        return zlib.crc32(stream.read(_OLD_CHECKSUM_BYTES), total)
