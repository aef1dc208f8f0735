"""Average saved probabilities, nnU-Net's `.npz` or `.b2nd`, over folders of predictions (nnU-Net behaviour 11.7).

Legend: H heads, (Z, Y, X) a case's own grid in the reader's axis order.
"""

from __future__ import annotations

import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final
from unicodedata import normalize

import blosc2
import numpy as np

from segwright.core.errors import DatasetError, Problem, ProblemReport, SegwrightError, WorkspaceError, locate_errors
from segwright.core.files.atomic_io import require_writable_folder
from segwright.core.files.hashing import file_crc
from segwright.core.files.json_documents import read_checked_json
from segwright.core.files.locks import locked
from segwright.core.files.names import below, path_problem
from segwright.core.files.zip_files import METHODS, open_zip
from segwright.core.log import progress
from segwright.core.resources import resource_error
from segwright.data.images.geometry import find_reorientation, grid_problem
from segwright.data.images.image_io import Volume, read_header, read_label, write_labels
from segwright.data.labels import Labels
from segwright.data.preprocessed.array_files import open_array
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.unmatched_files import entries, similar_label
from segwright.inference.ensemble import mean_labels
from segwright.inference.export.writers import CHECKSUM_OF_ARRAY, NIFTI_FOLDER, ProbabilityFormat, provenance_file
from segwright.workspace import LOCK

ENDINGS: Final = (".b2nd", ".npz")
"""If a case has both, the first is used: it can be read in part."""

_SCRATCH = ".ensemble-"
_MEMBER = "probabilities.npy"
_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, LookupError, EOFError, MemoryError, SyntaxError, TypeError, ArithmeticError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
"""Errors of the readers of zip files and numpy headers for damaged files."""


def average_folders(
    folders: Sequence[Path],
    output: Path,
    *,
    labels: Labels,
    file_ending: str,
    reader: str,
    probability_format: ProbabilityFormat | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the label maps of the mean of the probabilities in several folders; return the files.

    Memory: the label map and a slab of each folder's probabilities, or one head of a file that cannot be read in part.

    Args:
        folders: two or more, with the same cases; each holds label maps too, whose geometry the results get.
        output: another folder.
        labels: of the dataset.
        file_ending: of label maps.
        reader: of label maps, as in the plan.
        probability_format: format in which the mean is written too.
        overwrite: replace existing label maps.

    Raises:
        ProblemReport: cases or label maps are missing; all of them at once.
        SegwrightError: a file is damaged or does not fit; the message names the case.
        WorkspaceError: the output already exists.
    """
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise WorkspaceError(f"{output}: is one of the folders to average; choose another output folder")
    probabilities = [_probability_files(folder) for folder in folders]
    cases = sorted(set().union(*probabilities))
    _require_complete(folders, probabilities, cases, file_ending)
    targets = {case: below(output, f"{case}{file_ending}") for case in cases}
    existing = [file for file in targets.values() if file.exists()]
    if existing and not overwrite:
        raise WorkspaceError(f"{existing[0]}: already exists; choose another output folder or overwrite")
    require_writable_folder(output)
    with locked(below(output, f".ensemble{LOCK}"), f"averaging into {output}"):
        for leftover in output.glob(f"{_SCRATCH}*"):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        for case in progress(cases, title="averaging", total=len(cases)):
            files = [of_folder[case] for of_folder in probabilities]
            try:
                with locate_errors(case):
                    _average(folders, files, targets[case], case, labels, reader, probability_format)
            except RuntimeError as error:  # blosc2's, where the values themselves are damaged
                if known := resource_error(error):
                    raise type(known)(f"{case}: {known}") from error
                raise DatasetError(f"{case}: probabilities cannot be read ({error}); predict the case again") from error
    return list(targets.values())


def _average(
    folders: Sequence[Path],
    files: Sequence[Path],
    target: Path,
    case: str,
    labels: Labels,
    reader: str,
    probability_format: ProbabilityFormat | None,
) -> None:
    """Average the probabilities of one case; `files` are those of the folders."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(dir=target.parent, prefix=_SCRATCH)))
        volume = read_label(folders[0] / target.name, reader)
        for folder in folders[1:]:
            _require_same_grid(folder / target.name, volume, reader)
        arrays = [
            _open_probabilities(file, scratch / f"{index}.b2nd", labels, volume) for index, file in enumerate(files)
        ]
        mean = None
        if probability_format is not None:
            document = {"model": {"ensemble": [str(folder) for folder in folders]}}
            mean = stack.enter_context(
                probability_format.open_whole(target.parent, case, labels, _uncropped(volume), document)
            )
        write_labels(mean_labels(arrays, labels, mean), target, volume.properties, reader)


def _probability_files(folder: Path) -> dict[str, Path]:
    """Return the probability file of each case.

    Raises:
        DatasetError: the folder has none.
    """
    if wrong := path_problem(folder, "folder"):
        raise DatasetError(f"{folder}: {wrong}")
    listed = entries(folder)
    files = {
        entry.name.removesuffix(ending): folder / entry.name
        for ending in reversed(ENDINGS)
        for entry in listed
        if entry.name.endswith(ending) and entry.kind == "file"
    }
    if not files:
        rounded = f"; the maps in {NIFTI_FOLDER} are rounded to 8 bits" if (folder / NIFTI_FOLDER).is_dir() else ""
        hint = next((_near_miss(folder, entry.name.split(".")[0]) for entry in listed), "")
        raise DatasetError(f"{folder}: no probabilities{rounded}{hint}; predict with --probabilities b2nd, or npz")
    return files


def _near_miss(folder: Path, case: str) -> str:
    """Return the end of a message about missing probabilities of a case: a file with a similar name."""
    names = {normalize("NFC", f"{case}{ending}").casefold() for ending in ENDINGS}
    for entry in entries(folder):
        if normalize("NFC", entry.name).casefold() in names:
            what = path_problem(folder / entry.name) or "is spelled in another way: rename it"
            return f"; found {entry.name}, which {what}"
    return ""


def _require_complete(
    folders: Sequence[Path], probabilities: Sequence[dict[str, Path]], cases: Sequence[str], file_ending: str
) -> None:
    """Check that every folder has the probabilities of every case, and the first one the label maps.

    Raises:
        ProblemReport: some are missing; all of them at once.
    """
    problems = [
        Problem(
            where=str(folder),
            what=f"no probabilities of case {case}{_near_miss(folder, case)}",
            remedy="predict it with this model too",
        )
        for folder, files in zip(folders, probabilities, strict=True)
        for case in cases
        if case not in files
    ]
    problems += [
        Problem(
            where=str(folders[0]),
            what=f"no label map {case}{file_ending}, which defines the geometry"
            f"{similar_label(f'{case}{file_ending}', file_ending, entries(folders[0]))}",
        )
        for case in cases
        if not (folders[0] / f"{case}{file_ending}").is_file()
    ]
    if problems:
        raise ProblemReport(problems)


def _require_same_grid(file: Path, volume: Volume, reader: str) -> None:
    """Check that a label map, if there is one, is on the grid of the first folder's, as the probabilities then are.

    Raises:
        DatasetError: it has another grid.
    """
    if not file.is_file():
        return
    header = read_header(file, reader, is_label=True)
    turn = find_reorientation(header, volume.header)
    if turn is None:
        raise DatasetError(str(grid_problem(header, volume.header, file=file, name="the first folder's label map")))
    if not turn.is_identity:
        raise DatasetError(
            f"{file}: is stored along other axes than the first folder's label map, and so are the probabilities; "
            "predict the same image files with both models"
        )


def _open_probabilities(file: Path, scratch: Path, labels: Labels, volume: Volume) -> Any:
    """Return an array (H, Z, Y, X) on disk; a file that cannot be read in part is unpacked to `scratch` first.

    Raises:
        DatasetError: the file is damaged, or its shape or dtype is wrong.
    """
    wanted = (labels.num_heads, *volume.array.shape[1:])
    if file.suffix == ENDINGS[0]:
        _require_checksum(file)
        array = open_array(file)
        _require_shape(file, tuple(array.shape), array.dtype, wanted, labels)
        return array
    try:
        with open_zip(file) as archive, archive.open(_npz_entry(archive)) as stream:
            shape, dtype = _header(stream)
            _require_shape(file, shape, dtype, wanted, labels)
            return _unpack(stream, shape, dtype, scratch)
    except SegwrightError:
        raise
    except _UNREADABLE as error:
        if known := resource_error(error, file):
            raise known from error
        raise DatasetError(f"{file}: cannot be read ({error})") from error


def _require_checksum(file: Path) -> None:
    """Check that an array has the checksum in the document beside it; earlier versions wrote none.

    Raises:
        SegwrightError: the array or the document is damaged.
    """
    beside = provenance_file(file.parent, file.name.removesuffix(ENDINGS[0]))
    document = read_checked_json(beside) if beside.is_file() else None
    recorded = document.get(CHECKSUM_OF_ARRAY) if isinstance(document, dict) else None
    if recorded is not None and file_crc(file) != recorded:
        raise DatasetError(
            f"{file}: damaged (its checksum is not the one in {beside.name}); predict the case again, or remove "
            f"{beside.name} if the probabilities were changed on purpose"
        )


def _npz_entry(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Return the entry of the probabilities; raise a ValueError unless numpy could have compressed it."""
    entry = archive.getinfo(_MEMBER)
    if entry.compress_type not in METHODS:
        raise ValueError(f"it is compressed with method {entry.compress_type}, which numpy does not use")
    return entry


def _require_shape(
    file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], wanted: tuple[int, ...], labels: Labels
) -> None:
    if shape != wanted or dtype.kind != "f":
        raise DatasetError(
            f"{file}: {dtype} {shape}, expected floats {wanted}: a head for each "
            f"{'region' if labels.has_regions else 'label'} on the grid of the label map"
        )


def _uncropped(volume: Volume) -> Provenance:
    """Return the provenance of a case without crop and transposition."""
    shape, axes = volume.array.shape[1:], tuple(range(volume.array.ndim - 1))
    return Provenance(
        properties=volume.properties,
        shape_before_cropping=shape,
        box=tuple((0, extent) for extent in shape),
        shape_after_cropping=shape,
        spacing=volume.spacing,
        transpose_forward=axes,
        transpose_backward=axes,
    )


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and dtype of the array that follows, without unpickling."""
    is_first = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    shape, is_fortran_order, dtype = read(stream)
    if is_fortran_order or dtype.kind != "f" or len(shape) != 4:
        raise ValueError(f"{dtype} {shape}, expected floats of four axes in C order")
    return shape, dtype


def _unpack(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], scratch: Path) -> Any:
    """Copy an array, head by head, to a file that can be read in part."""
    array: Any = blosc2.empty(
        shape,
        dtype=dtype,
        chunks=(1, 1, *shape[2:]),
        urlpath=str(scratch),
        contiguous=True,
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=1),
    )
    size = dtype.itemsize * int(np.prod(shape[1:]))
    for head in range(shape[0]):
        content = stream.read(size)
        if len(content) < size:
            raise ValueError("it is cut off")
        array[head] = np.frombuffer(content, dtype).reshape(shape[1:])
    if stream.read(1):  # reading to the end also compares the checksum of the zip entry
        raise ValueError("it holds more than its header says")
    return array
