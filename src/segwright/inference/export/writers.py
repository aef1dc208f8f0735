"""Write probabilities and uncertainty maps to files: slab by slab to a compressed array, then in the final format.

Legend: H heads, (Z, Y, X) the case's own grid in the reader's axis order.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import box_slices
from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.files.atomic_io import atomic_path, disk_errors
from segwright.core.files.hashing import file_crc
from segwright.core.files.json_documents import write_checked_json
from segwright.core.files.names import below
from segwright.data.images.image_io import READERS
from segwright.data.labels import Labels
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.export.labels import ProbabilityWriter
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.window.tiling import to_front

FORMATS = ("npz", "b2nd", "nifti")
NIFTI_FOLDER = "probabilities"
"""Maps lie apart from the label maps, whose file ending they may share."""
QUANTA = 255
"""The value of a probability of 1 in uint8 maps."""

CHECKSUM_OF_ARRAY = "crc32"
"""Key of the checksum of a b2nd file in the document beside it; it is missing while the file is being replaced."""

_KEY = "probabilities"
_NIFTI_READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient")
_UNUSUAL = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityFormat:
    """The file format of probabilities.

    `npz` is nnU-Net's: float32 (H, Z, Y, X) under the key `probabilities`; `b2nd` the same in a blosc2 array, of which
    a part can be read; `nifti` one uint8 map (255 is 1) for each class, on the grid of the image.

    Raises:
        ConfigError: the format is unknown, or classes are chosen for a format other than nifti.
    """

    kind: str
    classes: Sequence[str] | None = None
    """Of nifti: names of labels or regions, by default all but the background."""

    def __post_init__(self) -> None:
        if self.kind not in FORMATS:
            raise ConfigError(f"probabilities cannot be saved as '{self.kind}'{did_you_mean(self.kind, FORMATS)}")
        if self.classes is not None and self.kind != "nifti":
            raise ConfigError(f"{self.kind} holds the probabilities of all classes; choose classes with nifti only")

    def heads(self, labels: Labels) -> tuple[int, ...]:
        """Return the heads that are written.

        Raises:
            ConfigError: a class is not among the labels.
        """
        if self.kind != "nifti":
            return tuple(labels.names)
        if self.classes is None:
            return tuple(head for head in labels.names if head or labels.has_regions)
        by_name = {name: head for head, name in labels.names.items()}
        for name in self.classes:
            if name not in by_name:
                raise ConfigError(f"no class is called '{name}'{did_you_mean(name, by_name)}")
        return tuple(by_name[name] for name in self.classes)

    def files(self, folder: Path, case: str, labels: Labels) -> tuple[Path, ...]:
        """Return the files that hold the probabilities of a case."""
        if self.kind != "nifti":
            return (below(folder, f"{case}.{self.kind}"),)
        names = _file_names(labels)
        return tuple(below(folder, NIFTI_FOLDER, f"{case}_{names[head]}.nii.gz") for head in self.heads(labels))

    def require_writable(self, reader: str) -> None:
        """Raise a ConfigError if the images have no geometry to write to NIfTI."""
        if self.kind == "nifti" and reader not in _NIFTI_READERS:
            raise ConfigError(
                f"images read by {reader} have no position in space to write maps in NIfTI; choose npz or b2nd"
            )

    @contextmanager
    def open(
        self, folder: Path, case: str, labels: Labels, inverse: InverseResampling, document: Mapping[str, Any]
    ) -> Iterator[ProbabilityWriter]:
        """Open a writer for the probabilities of a case; the files are complete at the end of the block.

        Beside npz and b2nd, `<case>.provenance.json` is written first, so that probabilities never lack it: `document`
        and the provenance, instead of nnU-Net's pickled properties.
        """
        with self.open_whole(folder, case, labels, inverse.provenance, document, axis=_reader_axis(inverse)) as stored:
            background = None if labels.has_regions or 0 not in stored.heads else stored.heads.index(0)
            yield _PlaneWriter(stored, inverse, background)

    @contextmanager
    def open_whole(
        self,
        folder: Path,
        case: str,
        labels: Labels,
        provenance: Provenance,
        document: Mapping[str, Any],
        *,
        axis: int = 0,
    ) -> Iterator[StoredProbabilities]:
        """Like `open`, for planes of the whole case (not cropped) along one axis, in the reader's axis order."""
        files = self.files(folder, case, labels)
        beside, content = provenance_file(folder, case), {**document, "provenance": provenance.to_json()}
        if self.kind != "nifti":
            write_checked_json(beside, content)
        before, back = provenance.shape_before_cropping, provenance.transpose_backward
        shape = tuple(before[source] for source in back)
        with _scratch(files[0]) as path:
            target = StoredProbabilities(path, self.heads(labels), shape, axis, quantised=self.kind == "nifti")
            yield target
            if self.kind == "b2nd":
                checksum = file_crc(path)
                path.replace(files[0])
                write_checked_json(beside, {**content, CHECKSUM_OF_ARRAY: checksum})
            elif self.kind == "npz":
                _write_npz(target.stored, files[0])
            else:
                _write_nifti(target.stored, files, provenance)


def provenance_file(folder: Path, case: str) -> Path:
    """Return the document beside the probabilities of a case."""
    return below(folder, f"{case}.provenance.json")


def require_writable(reader: str, probability_format: ProbabilityFormat | None, *, uncertainty: bool) -> None:
    """Raise a ConfigError if images have no geometry for the requested files."""
    for form in (probability_format, ProbabilityFormat(kind="nifti") if uncertainty else None):
        if form is not None:
            form.require_writable(reader)


@contextmanager
def open_maps(files: Sequence[Path], inverse: InverseResampling) -> Iterator[ProbabilityWriter]:
    """Open a writer for maps from 0 to 1 of a case, (files, planes, Y, X); they become uint8 NIfTI files."""
    with open_whole_maps(files, inverse.provenance, axis=_reader_axis(inverse)) as stored:
        yield _PlaneWriter(stored, inverse, None)


def store_maps(path: Path, inverse: InverseResampling, num_maps: int) -> tuple[Any, ProbabilityWriter]:
    """Create an array (maps, Z, Y, X) float32 on disk for the whole case as read; return it and its writer."""
    target = StoredProbabilities(path, range(num_maps), inverse.case_shape, _reader_axis(inverse), quantised=False)
    return target.stored, _PlaneWriter(target, inverse, None)


@contextmanager
def open_whole_maps(files: Sequence[Path], provenance: Provenance, *, axis: int = 0) -> Iterator[StoredProbabilities]:
    """Open a store for planes of maps of the whole case, in the reader's axis order, along one axis."""
    shape = tuple(provenance.shape_before_cropping[source] for source in provenance.transpose_backward)
    with _scratch(files[0]) as path:
        target = StoredProbabilities(path, range(len(files)), shape, axis, quantised=True)
        yield target
        _write_nifti(target.stored, files, provenance)


@contextmanager
def _scratch(final: Path) -> Iterator[Path]:
    """Yield the path of a temporary blosc2 file beside `final`; remove the file after the block."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path = final.with_name(f".{uuid4().hex[:8]}.tmp.{final.name}.b2nd")
    try:
        with disk_errors(final, path):
            yield path
    finally:
        path.unlink(missing_ok=True)


class StoredProbabilities:
    """A blosc2 array (kept heads, Z, Y, X) that is filled plane by plane along one axis."""

    def __init__(self, path: Path, heads: Sequence[int], shape: tuple[int, ...], axis: int, *, quantised: bool) -> None:
        import blosc2  # importing it takes 0.3 s, which other predictions need not wait for

        self.heads = list(heads)
        self.axis = axis
        self.quantised = quantised
        # One head of one plane: each chunk is written once, whatever the slabs.
        chunks = [1 if each == axis else extent for each, extent in enumerate(shape)]
        self.stored: Any = blosc2.zeros(
            (len(heads), *shape),
            dtype=np.uint8 if quantised else np.float32,
            chunks=(1, *chunks),
            urlpath=str(path),
            mode="w",
            contiguous=True,
            cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.SHUFFLE]),
        )

    def put(self, start: int, stop: int, planes: npt.NDArray[np.float32]) -> None:
        """Store planes [start, stop) of the kept heads, (kept heads, Z, Y, X) with stop - start along the axis."""
        self._put(slice(None), start, stop, planes)

    def put_head(self, head: int, start: int, stop: int, planes: npt.NDArray[np.float32]) -> None:
        """Store planes [start, stop) of one head (Z, Y, X), if it is kept."""
        if head in self.heads:
            index = self.heads.index(head)
            self._put(slice(index, index + 1), start, stop, planes[None])

    def _put(self, heads: slice, start: int, stop: int, planes: npt.NDArray[np.float32]) -> None:
        values = np.rint(planes * QUANTA) if self.quantised else planes
        key = (heads, *(slice(start, stop) if axis == self.axis else slice(None) for axis in range(3)))
        self.stored[key] = np.ascontiguousarray(values, dtype=self.stored.dtype)


class _PlaneWriter:
    """Receives planes of the cropped case, axes as in prediction, and stores planes of the whole case."""

    def __init__(self, target: StoredProbabilities, inverse: InverseResampling, background: int | None) -> None:
        self.target = target
        self.inverse = inverse
        self.background = background
        self.shape = to_front(inverse.provenance.shape_before_cropping, inverse.axis)
        self.box = to_front(inverse.provenance.box, inverse.axis)
        if self.background is not None:
            low, high = self.box[0]
            for plane in (*range(low), *range(high, self.shape[0])):
                self._put(plane, plane + 1, None)

    def write(self, start: int, stop: int, probabilities: npt.NDArray[np.float32]) -> None:
        """Store planes [start, stop) of the cropped case."""
        first = self.box[0][0]
        self._put(first + start, first + stop, probabilities)

    def _put(self, start: int, stop: int, probabilities: npt.NDArray[np.float32] | None) -> None:
        """Store planes [start, stop) of the whole case; None is background."""
        heads = self.target.heads
        planes = np.zeros((len(heads), stop - start, *self.shape[1:]), np.float32)
        if self.background is not None:
            planes[self.background] = 1
        if probabilities is not None:
            planes[box_slices(self.box[1:])] = probabilities[heads]
        # From the planes' axis order to the plan's to the reader's.
        planned = np.moveaxis(planes, 1, 1 + self.inverse.axis)
        read = planned.transpose((0, *(axis + 1 for axis in self.inverse.provenance.transpose_backward)))
        self.target.put(start, stop, read)


def _file_names(labels: Labels) -> dict[int, str]:
    """Return a file name part for each head: its class name, with the head's number where several are equal."""
    names = {head: _UNUSUAL.sub("_", name) for head, name in labels.names.items()}
    while True:
        folded = [name.casefold() for name in names.values()]  # some file systems ignore case
        shared = {name for name in folded if folded.count(name) > 1}
        if not shared:
            return names
        names = {head: f"{name}_{head}" if name.casefold() in shared else name for head, name in names.items()}


def _reader_axis(inverse: InverseResampling) -> int:
    """Return the reader's axis along which planes are predicted."""
    return list(inverse.provenance.transpose_backward).index(inverse.axis)


def _write_nifti(stored: Any, files: Sequence[Path], provenance: Provenance) -> None:
    """Write each map of an array (maps, Z, Y, X) on the grid of the images."""
    reader = READERS[str(provenance.properties["reader"])]
    spacing, geometry = tuple(provenance.properties["spacing"]), provenance.properties.get("geometry", {})
    for index, file in enumerate(files):
        reader.write(stored[index], file, spacing, geometry)


def _write_npz(stored: Any, path: Path) -> None:
    """Write the same content as `np.savez_compressed`, one head at a time."""
    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(stored.shape)}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{_KEY}.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for head in range(stored.shape[0]):
            stream.write(np.ascontiguousarray(stored[head], dtype="<f4").data)
