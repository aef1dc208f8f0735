"""Read images and label maps, write label maps: choose the reader, stack channels, keep the geometry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.core.errors import DiskError, ImageError, Problem, SegwrightError, did_you_mean
from segwright.core.files.names import path_problem, path_remedy, require_text_path
from segwright.core.resources import resource_error
from segwright.data.images.formats import Floats, Header, LabelMap, ReaderWriter, Refusal
from segwright.data.images.geometry import find_reorientation, grid_problem
from segwright.data.images.intensities import clean_intensities, impossible_values_error, missing_note
from segwright.data.images.readers.itk import SimpleITKIO, SimpleITKIOWithReorient
from segwright.data.images.readers.nifti import NibabelIO, NibabelIOWithReorient, nonfinite_in_nifti
from segwright.data.images.readers.pictures import NaturalImage2DIO, is_picture
from segwright.data.images.readers.tiff import ENDINGS as TIFF_ENDINGS
from segwright.data.images.readers.tiff import Tiff3DIO, is_tiff, spacing_file, tiff_shape
from segwright.data.label_maps import MAX_UINT8_LABEL, MAX_WRITTEN_LABEL, NO_LABEL_MAP, mapped_values, whole_values

logger = getLogger(__name__)

READERS: Mapping[str, ReaderWriter] = {
    "NaturalImage2DIO": NaturalImage2DIO(),
    "SimpleITKIO": SimpleITKIO(),
    "Tiff3DIO": Tiff3DIO(),
    "NibabelIO": NibabelIO(),
    "NibabelIOWithReorient": NibabelIOWithReorient(),
    "SimpleITKIOWithReorient": SimpleITKIOWithReorient(),
}
"""Readers under nnU-Net's names, in the order of its automatic search (nnU-Net behaviour 2.2)."""

_SMALL_BYTES = 1 << 16
"""A smaller file unpacks to at most 64 MiB (deflate: 1032-fold); reading its header first would take a tenth longer."""

_MAX_REASON_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """All channels of a case, or its label map.

    Attributes:
        array: float32 (C, *S), three spatial axes in the reader's order; a label has one channel.
        spacing: of the three axes; in mm unless the format has no unit (pictures, TIFF stacks).
        properties: JSON object with everything that `write_labels` needs to write a label map on the same grid.
        notes: what was changed while reading, or looks wrong but could be read.
    """

    array: Floats
    spacing: tuple[float, float, float]
    properties: Mapping[str, Any]
    notes: tuple[Problem, ...] = ()

    @property
    def header(self) -> Header:
        """The grid, for comparison with others."""
        return header_of(self.array.shape[1:], {**self.properties, "spacing": self.spacing})


class RefusedError(ImageError):
    """The right reader refuses an image file; no other reader should be tried."""


def choose_reader(
    file_ending: str, examples: Path | Sequence[Path] | None, override: str | None = None, *, are_labels: bool = False
) -> str:
    """Return the name of the reader for a dataset (nnU-Net behaviour 2.3).

    Args:
        file_ending: the dataset's, with its leading dot.
        examples: first channels of its cases, in order; readers that cannot open the first are skipped. TIFF files may
            hold pictures or stacks, so all of them are opened, and the reader of most of them is chosen.
        override: `overwrite_image_reader_writer` of dataset.json.
        are_labels: whether the examples are label maps.

    Raises:
        ImageError: no reader knows the ending, or none can open the first example.
    """
    if override is not None and override != "None":
        if override in READERS:
            return override
        logger.warning(
            "dataset.json: unknown image reader '%s'%s; choosing by file", override, did_you_mean(override, READERS)
        )
    candidates = [name for name, reader in READERS.items() if file_ending.lower() in reader.endings]
    if not candidates:
        known = sorted({ending for reader in READERS.values() for ending in reader.endings})
        raise ImageError(f"file ending '{file_ending}' has no reader{did_you_mean(file_ending, known)}")
    files = [examples] if isinstance(examples, Path) else list(examples or ())
    if not files:
        return candidates[0]
    if file_ending.lower() in TIFF_ENDINGS and len(candidates) > 1:
        return _tiff_reader(files, are_labels=are_labels)
    failures = []
    for name in candidates:
        try:
            read_header(files[0], name, is_label=are_labels)
        except RefusedError:
            raise
        except ImageError as error:
            logger.debug("%s", error)
            failures.append(str(error))
        else:
            return name
    raise ImageError(failures[0])


def reader_of_shapes(file_ending: str, shapes: Iterable[Sequence[int]], override: str | None = None) -> str:
    """Return the name of the reader that gave images of these shapes (three axes), without the files.

    Raises:
        ImageError: no reader knows the ending.
    """
    reader = choose_reader(file_ending, None, override)
    is_stack = reader != override and file_ending.lower() in TIFF_ENDINGS and any(shape[0] > 1 for shape in shapes)
    return "Tiff3DIO" if is_stack else reader


def read_header(file: Path, reader: str, *, is_label: bool = False) -> Header:
    """Read the header of an image, without the voxels if the format allows it.

    Raises:
        ImageError: the file is missing or not an image of this kind.
    """
    with _locate_decoder_errors(file, "read"):
        return _reader(reader).header(file, is_label=is_label)


def is_small(file: Path) -> bool:
    """Whether a file is small enough to be read whatever its header says; True if it cannot be accessed."""
    try:
        return file.stat().st_size < _SMALL_BYTES
    except OSError:
        return True


def read_images(files: Sequence[Path], reader: str, *, find_nonfinite: bool = False) -> Volume:
    """Read the channel files of one case and stack them in order.

    A channel on the same grid as the first one, but stored along other axes, is re-oriented. NaN is read as 0.

    Args:
        files: channels in order.
        reader: as in the plan.
        find_nonfinite: also find NaN and infinite voxels that the reader hides; reads NIfTI files of floats twice.

    Raises:
        ImageError: a file is missing, unreadable or has impossible values, or the channels are on different grids.
    """
    assert files, "a case has at least one channel file"
    parts: list[Floats] = []
    notes: list[Problem] = []
    first: Header | None = None
    for file in files:
        if first is not None:
            _require_same_grid(file, reader, first, files[0].name)
        # Values that overflow float32 are refused by `clean_intensities`, which names the file.
        with _locate_decoder_errors(file, "read"), np.errstate(over="ignore"):
            header, array = _reader(reader).read(file)
        array, found = clean_intensities(array, file)
        notes += [*found, *(_hidden_notes(file, header) if find_nonfinite else ())]
        if first is None:
            first = header
        else:
            array, reoriented = _reorient_onto(array, header, first, file, files[0].name)
            notes += reoriented
        parts.append(array)
    assert first is not None
    return _volume(first, parts[0] if len(parts) == 1 else np.concatenate(parts), reader, notes)


def read_label(
    file: Path,
    reader: str,
    *,
    like: Header | None = None,
    name: str = "its image",
    label_map: Mapping[int, int] = NO_LABEL_MAP,
) -> Volume:
    """Read one label map as float32 (1, *S) with integer values.

    Args:
        file: the label map.
        reader: as in the plan.
        like: header of its image; a label stored along other axes is re-oriented onto that grid.
        name: what `like` belongs to, for messages.
        label_map: from values in the file to labels (`Labels.label_map`); for references, not for predictions.

    Raises:
        ImageError: the file is missing, unreadable, has more than one channel or values that are not integers, or is
            not on the grid of `like`.
    """
    if like is not None:
        _require_same_grid(file, reader, like, name, is_label=True)
    with _locate_decoder_errors(file, "read"), np.errstate(over="ignore"):
        header, array = _reader(reader).read(file, is_label=True)
    if len(array) != 1:
        raise ImageError(f"{file}: has {len(array)} channels, a label map has one whole number per voxel")
    if bad := sum(_hidden_nonfinite(file, header)):
        raise ImageError(f"{file}: {bad} voxels are NaN or infinite, expected a whole number for each; replace them")
    array = mapped_values(whole_values(array, file), label_map)
    if like is None:
        return _volume(header, array, reader)
    array, notes = _reorient_onto(array, header, like, file, name)
    return _volume(like, array, reader, notes)


def header_of(shape: Sequence[int], properties: Mapping[str, Any]) -> Header:
    """Return the grid of an array (*S) that has the properties of a `Volume`."""
    spacing, geometry = tuple(properties["spacing"]), properties.get("geometry", {})
    return Header(shape=tuple(shape), spacing=spacing, geometry=geometry)


def reorientation_note(file: Path, name: str) -> Problem:
    """Return the note about a file that is re-oriented when it is read."""
    return Problem(where=str(file), what=f"is stored along other axes than {name}, and re-oriented when read")


def write_labels(labels: npt.NDArray[Any], path: Path, properties: Mapping[str, Any], reader: str) -> None:
    """Write a label map on the grid that `properties` (of the case's `Volume`) describe, atomically.

    Args:
        labels: integers (*S), three axes in the reader's order; stored as uint8 below a maximum of 255, else uint16.

    Raises:
        ImageError: the labels do not fit the format, or writing fails.
    """
    largest = int(labels.max(initial=0))
    if labels.ndim != 3 or labels.dtype.kind not in "iub" or largest > MAX_WRITTEN_LABEL or labels.min(initial=0) < 0:
        raise ImageError(
            f"{path}: labels are {labels.dtype} {labels.shape} up to {largest}, "
            f"expected integers from 0 to {MAX_WRITTEN_LABEL} on three axes"
        )
    stored: LabelMap = labels.astype(np.uint8 if largest <= MAX_UINT8_LABEL else np.uint16)
    with _locate_decoder_errors(path, "written", must_exist=False):
        _reader(reader).write(stored, path, tuple(properties["spacing"]), properties.get("geometry", {}))


def files_beside(label: Path) -> tuple[Path, ...]:
    """Return files that belong to a label map: the JSON file with the spacing of a TIFF stack."""
    beside = spacing_file(label, is_label=True)
    return (beside,) if is_tiff(label) and beside.is_file() else ()


def _tiff_reader(files: Sequence[Path], *, are_labels: bool) -> str:
    """Return the reader for most of the files, pictures or stacks; a file with a spacing beside it is a stack."""
    num_stacks, failures = 0, []
    for file in files:
        try:
            with _locate_decoder_errors(file, "read"):
                shape = tiff_shape(file, is_label=are_labels)
        except ImageError as error:
            failures.append(error)
        else:
            has_spacing = spacing_file(file, is_label=are_labels).is_file()
            num_stacks += len(shape) == 3 and (has_spacing or not is_picture(shape))
    if len(failures) == len(files):
        raise failures[0]
    return "Tiff3DIO" if 2 * num_stacks > len(files) - len(failures) else "NaturalImage2DIO"


def _hidden_notes(file: Path, header: Header) -> list[Problem]:
    """Return notes about values that a reader hides by reading them as 0.

    Raises:
        ImageError: some are infinite.
    """
    missing, infinite = _hidden_nonfinite(file, header)
    if infinite:
        raise impossible_values_error(file, infinite)
    return [missing_note(file, missing)] if missing else []


def _hidden_nonfinite(file: Path, header: Header) -> tuple[int, int]:
    """Count NaN and infinite voxels that a reader hides by reading them as 0."""
    if not header.hides_nonfinite:
        return 0, 0
    with _locate_decoder_errors(file, "read"):
        return nonfinite_in_nifti(file)


def _require_same_grid(file: Path, reader: str, wanted: Header, name: str, *, is_label: bool = False) -> None:
    """Refuse a file by its header if its grid is not that of another, before its voxels take memory.

    Raises:
        ImageError: the grids differ, or the file cannot be read.
    """
    if is_small(file):
        return
    header = read_header(file, reader, is_label=is_label)
    if find_reorientation(header, wanted) is None:
        raise ImageError(str(grid_problem(header, wanted, file=file, name=name)))


def _reorient_onto(
    array: Floats, header: Header, wanted: Header, file: Path, name: str
) -> tuple[Floats, list[Problem]]:
    """Return an array (C, *S) re-oriented onto the grid of another file, with a note if that changed it.

    Raises:
        ImageError: the grids differ.
    """
    reorientation = find_reorientation(header, wanted)
    if reorientation is None:
        raise ImageError(str(grid_problem(header, wanted, file=file, name=name)))
    return reorientation(array), [] if reorientation.is_identity else [reorientation_note(file, name)]


def _volume(header: Header, array: Floats, reader: str, notes: Sequence[Problem] = ()) -> Volume:
    depth, height, width = header.spacing
    properties = {"reader": reader, "spacing": list(header.spacing), "geometry": dict(header.geometry)}
    return Volume(array=array, spacing=(depth, height, width), properties=properties, notes=tuple(notes))


def _reader(name: str) -> ReaderWriter:
    try:
        return READERS[name]
    except KeyError:
        raise ImageError(f"unknown image reader '{name}'{did_you_mean(name, READERS)}") from None


@contextmanager
def _locate_decoder_errors(file: Path, action: str, *, must_exist: bool = True) -> Iterator[None]:
    """Turn any exception of a decoder into an error that names the file; decoders have no common exception type."""
    try:
        require_text_path(file)
    except SegwrightError as error:
        raise RefusedError(str(error)) from error
    if must_exist:
        _require_file(file)
    try:
        yield
    except SegwrightError:
        raise
    except Refusal as refusal:
        raise RefusedError(f"{file}: cannot be {action} ({refusal})") from refusal
    except Exception as error:
        if found := resource_error(error, file):
            raise found if isinstance(found, DiskError) else type(found)(f"{file}: {found}") from error
        what = "it is damaged or of an unknown kind: " if must_exist else ""
        raise ImageError(f"{file}: cannot be {action} ({what}{_reason(error)})") from error


def _require_file(file: Path) -> None:
    """Refuse anything but a regular file before it is opened; reading a pipe may never end."""
    wrong = path_problem(file)
    if wrong:
        kind = RefusedError if file.exists() else ImageError
        remedy = f"; {path_remedy(file, 'put the file there or remove the link')}" if file.is_symlink() else ""
        raise kind(f"{file}: {wrong}{remedy}")


def _reason(error: Exception) -> str:
    """Return the informative part of a decoder's message: ITK puts it on the last line, after its source position."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = text.rsplit("ITK ERROR:", maxsplit=1)[-1].strip()
    return text if len(text) <= _MAX_REASON_LENGTH else text[: _MAX_REASON_LENGTH - 3] + "..."
