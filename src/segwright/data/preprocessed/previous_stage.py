"""Store the label maps that one stage of a cascade predicts for the next, on the next stage's grid.

A case is `<case>.b2nd`, the map (*S) as nnU-Net stores it (nnU-Net behaviour 6.6), and `<case>.json`: hash of
the weights, shape, type, size and checksums. The document is written last; a map without it does not count.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from segwright.core.errors import WorkspaceError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.hashing import file_crc
from segwright.core.files.json_documents import has_valid_checksum, read_json, with_checksum, write_json
from segwright.core.files.names import below, require_name
from segwright.data.preprocessed.chunks import chunk_and_block
from segwright.data.preprocessed.store import LazyArray, lazy_array

FOLDER = "predicted_next_stage"
"""In the model folder of the predicting stage; it has one sub-folder for each stage that reads the maps."""

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class StageMap:
    """A stored map as (1, *S); read when it is sliced."""

    array: LazyArray

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, *S)."""
        return (1, *self.array.shape)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Return (1, *part) for a key that leaves the first axis whole: `...` or `(slice(None), *slices)`."""
        return self.array[... if key is Ellipsis else tuple(key)[1:]][None]


@dataclass(frozen=True, slots=True)
class StageMaps:
    """The stored maps of all cases, in one folder."""

    folder: Path

    def save(self, identifier: str, label_map: npt.NDArray[Any], patch_size: Sequence[int], weights_hash: str) -> None:
        """Write a map (*S) atomically, replacing an old one.

        Args:
            identifier: the case.
            label_map: on the grid of the stage that reads it.
            patch_size: of that stage; decides what is compressed together.
            weights_hash: of the checkpoint that made it.
        """
        below(self.folder, self._json(identifier).name).unlink(missing_ok=True)
        chunks, blocks = chunk_and_block((1, *label_map.shape), patch_size, label_map.itemsize)
        parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, nthreads=1)
        array: Any = blosc2.asarray(
            np.ascontiguousarray(label_map), chunks=chunks[1:], blocks=blocks[1:], cparams=parameters, contiguous=True
        )
        frame = array.to_cframe()
        with atomic_path(self._map(identifier), size=len(frame)) as temporary:
            temporary.write_bytes(frame)
        document = {
            "schema_version": SCHEMA_VERSION,
            "weights_hash": weights_hash,
            "shape": list(label_map.shape),
            "dtype": label_map.dtype.name,
            "bytes": len(frame),
            "crc32": zlib.crc32(frame),
        }
        write_json(self._json(identifier), with_checksum(document))

    def is_fresh(self, identifier: str, shape: Sequence[int], weights_hash: str) -> bool:
        """Whether the map exists, is undamaged, has `shape` and was made by these weights."""
        try:
            document, file = read_json(self._json(identifier)), self._map(identifier)
            wanted = (weights_hash, list(shape), file.stat().st_size)
            is_whole = has_valid_checksum(document) and document.get("crc32") in (None, file_crc(file))
            return is_whole and wanted == tuple(document[key] for key in ("weights_hash", "shape", "bytes"))
        except (ValueError, OSError, KeyError, TypeError, AttributeError):
            return False

    def load(self, identifier: str) -> StageMap:
        """Open a map without reading it.

        Raises:
            WorkspaceError: it is missing or its document is damaged.
        """
        path = self._json(identifier)
        try:
            document = read_json(path)
            if not has_valid_checksum(document):
                raise WorkspaceError(f"{path}: damaged")
            array = lazy_array(self._map(identifier), path, document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkspaceError(
                f"case '{identifier}': no prediction of the previous stage ({path}); train this stage by "
                "'segwright train', which predicts missing maps"
            ) from error
        return StageMap(array)

    def _json(self, identifier: str) -> Path:
        return self.folder / f"{require_name(identifier, 'case id', error=WorkspaceError)}.json"

    def _map(self, identifier: str) -> Path:
        return self.folder / f"{require_name(identifier, 'case id', error=WorkspaceError)}.b2nd"
