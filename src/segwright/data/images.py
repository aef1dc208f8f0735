"""Image files in, label maps out: the choice of a reader, stacking of channels, kind errors, exact geometry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.core.errors import DiskError, ImageError, SegwrightError, nearest
from segwright.core.resources import resource_error
from segwright.data.formats import Floats, Format, Header, LabelMap, Refusal
from segwright.data.labels import LARGEST_UINT8_LABEL, whole_values
from segwright.data.readers.itk import SimpleITKIO, SimpleITKIOWithReorient
from segwright.data.readers.nifti import NibabelIO, NibabelIOWithReorient, nonfinite_in_nifti
from segwright.data.readers.nifti_header import is_nifti
from segwright.data.readers.pictures import NaturalImage2DIO, is_picture
from segwright.data.readers.tiff import ENDINGS as TIFF_ENDINGS
from segwright.data.readers.tiff import Tiff3DIO, spacing_file, tiff_shape

logger = getLogger(__name__)

READERS: Mapping[str, Format] = {
    "NaturalImage2DIO": NaturalImage2DIO(),
    "SimpleITKIO": SimpleITKIO(),
    "Tiff3DIO": Tiff3DIO(),
    "NibabelIO": NibabelIO(),
    "NibabelIOWithReorient": NibabelIOWithReorient(),
    "SimpleITKIOWithReorient": SimpleITKIOWithReorient(),
}
"""Readers under nnU-Net's names, in the order of its automatic search (spec A 2.2)."""

_LARGEST_LABEL = 65535
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """All channels of a case, or its label map.

    Attributes:
        array: float32 (C, *S), three spatial axes in the reader's order; a label has one channel.
        spacing: extent of a voxel along the three axes.
        properties: JSON object with all that `write_labels` needs to put a label map on the same grid.
    """

    array: Floats
    spacing: tuple[float, float, float]
    properties: Mapping[str, Any]


class RefusedError(ImageError):
    """An image file that the right reader refuses; no other reader is to be tried."""


def choose_reader(
    file_ending: str, examples: Path | Sequence[Path] | None, override: str | None = None, *, are_labels: bool = False
) -> str:
    """Return the name of the reader for a dataset (spec A 2.3).

    Args:
        file_ending: the dataset's, with its leading dot.
        examples: first channels of its cases, in their order; readers that cannot open the first are passed over.
            TIFF files may hold pictures or stacks, so all of them are looked at: the reader that opens most is taken.
        override: `overwrite_image_reader_writer` of dataset.json.
        are_labels: whether the examples are label maps.

    Raises:
        ImageError: no reader knows the ending, or none can open the first example.
    """
    if override is not None and override != "None":
        if override in READERS:
            return override
        logger.warning(
            "dataset.json: unknown image reader '%s'%s; choosing by file", override, nearest(override, READERS)
        )
    candidates = [name for name, reader in READERS.items() if file_ending.lower() in reader.endings]
    if not candidates:
        known = sorted({ending for reader in READERS.values() for ending in reader.endings})
        raise ImageError(f"file ending '{file_ending}' has no reader{nearest(file_ending, known)}")
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


def _tiff_reader(files: Sequence[Path], *, are_labels: bool) -> str:
    """Return whether most of the files are pictures or stacks; one with a spacing beside it is a stack."""
    found = {"NaturalImage2DIO": 0, "Tiff3DIO": 0}
    failures = []
    for file in files:
        try:
            with _naming(file, "read"):
                shape = tiff_shape(file, is_label=are_labels)
                has_spacing = len(shape) == 3 and spacing_file(file, is_label=are_labels).is_file()
                found[
                    "Tiff3DIO" if has_spacing or (len(shape) == 3 and not is_picture(shape)) else "NaturalImage2DIO"
                ] += 1
        except ImageError as error:
            failures.append(error)
    if len(failures) == len(files):
        raise failures[0]
    return max(found, key=lambda name: found[name])


def read_header(file: Path, reader: str, *, is_label: bool = False) -> Header:
    """Read what is known of an image without its voxels, where the format allows that.

    Raises:
        ImageError: the file is missing or no image of this kind.
    """
    with _naming(file, "read"):
        return _reader(reader).header(file, is_label=is_label)


def read_images(files: Sequence[Path], reader: str) -> Volume:
    """Read the channel files of one case and stack them in order.

    Raises:
        ImageError: a file is missing or unreadable, or the channels do not share shape and spacing.
    """
    assert files, "a case has at least one channel file"
    parts: list[Floats] = []
    first: Header | None = None
    for file in files:
        with _naming(file, "read"):
            header, array = _reader(reader).read(file)
        if first is None:
            first = header
        else:
            problem = grid_problem(header, first, files[0])
            if problem:
                raise ImageError(f"{file}: {problem}; the channels of a case must share one grid")
            for warning in geometry_differences(header, first):
                logger.warning("%s: %s differs from %s", file, warning, files[0].name)
        parts.append(array)
    assert first is not None
    return _volume(first, parts[0] if len(parts) == 1 else np.concatenate(parts), reader)


def read_label(file: Path, reader: str) -> Volume:
    """Read one label map as float32 (1, *S) of whole numbers.

    Raises:
        ImageError: the file is missing, unreadable, has more than one channel or values that are no whole numbers.
    """
    with _naming(file, "read"):
        header, array = _reader(reader).read(file, is_label=True)
    if len(array) != 1:
        raise ImageError(f"{file}: has {len(array)} channels, a label map has one whole number per voxel")
    if bad := hidden_nonfinite(file, reader):
        raise ImageError(f"{file}: {bad} voxels are NaN or infinite, expected a whole number for each; replace them")
    return _volume(header, whole_values(array, file), reader)


def write_labels(labels: npt.NDArray[Any], path: Path, properties: Mapping[str, Any], reader: str) -> None:
    """Write a label map on the grid that `properties` (of the case's `Volume`) describe; whole or not at all.

    Args:
        labels: integers (*S), three axes in the reader's order; stored as uint8 below a maximum of 255, else uint16.

    Raises:
        ImageError: the labels do not fit the format, or writing fails.
    """
    largest = int(labels.max(initial=0))
    if labels.ndim != 3 or labels.dtype.kind not in "iub" or largest > _LARGEST_LABEL or labels.min(initial=0) < 0:
        raise ImageError(
            f"{path}: labels are {labels.dtype} {labels.shape} up to {largest}, "
            f"expected integers from 0 to {_LARGEST_LABEL} on three axes"
        )
    stored: LabelMap = labels.astype(np.uint8 if largest <= LARGEST_UINT8_LABEL else np.uint16)
    with _naming(path, "written", must_exist=False):
        _reader(reader).write(stored, path, tuple(properties["spacing"]), properties.get("geometry", {}))


def hidden_nonfinite(file: Path, reader: str) -> int:
    """Count NaN and infinite voxels that `reader` hides by reading them as 0."""
    if not (reader.startswith("SimpleITKIO") and is_nifti(file)):
        return 0
    with _naming(file, "read"):
        return nonfinite_in_nifti(file)


def grid_problem(header: Header, other: Header, other_file: Path) -> str | None:
    """Return how shape or spacing disagree with those of another file, if they do (numpy's allclose, spec A 2.1)."""
    if header.shape != other.shape:
        return f"shape {header.shape} differs from {other.shape} of {other_file.name}"
    if not np.allclose(header.spacing, other.spacing):
        return f"spacing {_rounded(header.spacing)} differs from {_rounded(other.spacing)} of {other_file.name}"
    return None


def geometry_differences(header: Header, other: Header) -> list[str]:
    """Return which of origin, direction and affine disagree; that is worth a warning only (spec A 2.1)."""
    differing = []
    for key in ("origin", "direction", "affine"):
        ours, theirs = header.geometry.get(key), other.geometry.get(key)
        if (
            ours is not None
            and theirs is not None
            and not (np.shape(ours) == np.shape(theirs) and np.allclose(ours, theirs))
        ):
            differing.append(key)
    return differing


def _volume(header: Header, array: Floats, reader: str) -> Volume:
    depth, height, width = header.spacing
    properties = {"reader": reader, "spacing": list(header.spacing), "geometry": dict(header.geometry)}
    return Volume(array=array, spacing=(depth, height, width), properties=properties)


def _reader(name: str) -> Format:
    try:
        return READERS[name]
    except KeyError:
        raise ImageError(f"unknown image reader '{name}'{nearest(name, READERS)}") from None


@contextmanager
def _naming(file: Path, action: str, *, must_exist: bool = True) -> Iterator[None]:
    """Turn whatever a decoder raises into an error that names the file; their exception types have no common base."""
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
    """Refuse what is no file before it is opened; a pipe would never end."""
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        raise RefusedError(f"{str(file)!r}: its name is not UTF-8, which libraries cannot open; rename it") from error
    if file.is_file():
        return
    if file.is_dir():
        raise RefusedError(f"{file}: is a folder, expected an image file")
    if file.exists():
        raise RefusedError(f"{file}: is a pipe, socket or device, expected an image file")
    if file.is_symlink():
        raise ImageError(f"{file}: links to {file.readlink()}, which is not there; download it or remove the link")
    raise ImageError(f"{file}: no such file")


def _reason(error: Exception) -> str:
    """Return the telling part of a decoder's message: ITK puts it on the last line, after its source position."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = text.rsplit("ITK ERROR:", maxsplit=1)[-1].strip()
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."


def _rounded(spacing: Sequence[float]) -> str:
    return f"({', '.join(f'{extent:.6g}' for extent in spacing)})"
