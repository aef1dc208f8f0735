"""Read what the headers of DICOM files say about their images: series, position and orientation of each frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ImageError, Problem
from segwright.core.extensions.extras import imports_of
from segwright.data.unmatched_files import is_dicom

DIRECTORY_CLASS: Final = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR, which lists files."""

_TAGS: Final = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "SeriesDescription", "SeriesNumber", "AcquisitionNumber", "ImageType"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "SpecificCharacterSet"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_DELIMITER: Final = b"\xfe\xff\xdd\xe0"
"""Tag at the end of compressed pixels."""
_TAIL: Final = 4096
"""Bytes at the end of a file in which compressed pixels must end; padding may follow."""
_BLANK_RATIO: Final = 1000
_LARGE_BYTES: Final = 1 << 30
"""Compressed pixels may unpack to this size, or to `_BLANK_RATIO` times their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image plane: a file, or a frame of a multi-frame file. Vectors are in mm in the patient's axes (L, P, S).

    Attributes:
        file: where it is.
        index: of the frame in a multi-frame file, from 0; None for a file of one image.
        uid: SOP Instance UID.
        position: of the centre of the first pixel; None if the header does not say.
        orientation: direction cosines along a row, then along a column; None if the header does not say.
        spacing: between rows and between columns; None if the header does not say.
        acquisition: Acquisition Number, for messages.
    """

    file: Path
    index: int | None
    uid: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    acquisition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """What the header of one DICOM file says.

    Attributes:
        file: where it is.
        sop_class: SOP Class UID.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.
        frame_of_reference_uid: empty if it is missing.
        modality: e.g. CT.
        description: Series Description.
        number: Series Number.
        image_type: values of Image Type, e.g. ORIGINAL, PRIMARY, AXIAL.
        rows: pixels of a column.
        columns: pixels of a row.
        samples: values of a pixel; 0 if the file holds no image.
        slice_distance: Spacing Between Slices or else Slice Thickness, in mm; None if neither is given.
        frames: one, or those of a multi-frame file.
        damage: what is wrong with the pixels as far as the file's size tells; empty if nothing is.
    """

    file: Path
    sop_class: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    description: str
    number: int | None
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    slice_distance: float | None
    frames: tuple[Frame, ...] = field(repr=False)
    damage: str = ""


def dicom_files(place: Path) -> Iterator[Path]:
    """Yield the DICOM files at or below a path, by their content; names and endings do not matter.

    Linked folders are not entered. Files that begin with a dot, as those of macOS, are skipped.
    """
    if place.is_file():
        if is_dicom(place):
            yield place
        return
    for folder, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            if not name.startswith(".") and file.is_file() and is_dicom(file):
                yield file


def read_headers(place: Path) -> tuple[list[FileHeader], list[Problem]]:
    """Return the headers of the DICOM files at or below a path, and the problems of those that cannot be read."""
    headers, problems = [], []
    for file in dicom_files(place):
        try:
            header = read_file_header(file)
        except ImageError as error:
            where, _, what = str(error).partition(": ")
            problems.append(Problem(where=where, what=what, remedy="copy the file again, or remove it"))
        else:
            headers += [header] if header is not None else []
    return headers, problems


def read_file_header(file: Path) -> FileHeader | None:
    """Return the header of a DICOM file; None for a DICOMDIR.

    Raises:
        ImageError: the file is damaged.
        ConfigError: pydicom is not installed.
    """
    with imports_of("dicom"):
        import pydicom
    try:
        with file.open("rb") as stream:
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
            if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == DIRECTORY_CLASS:
                return None
            return _header(file, dataset, available=os.fstat(stream.fileno()).st_size - stream.tell())
    except Exception as error:  # pydicom raises many kinds for damaged files
        if isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{file}: its DICOM header cannot be read ({reason})") from error


def _header(file: Path, dataset: Any, *, available: int) -> FileHeader:
    """Return the header of a data set; `available` counts the bytes of the file from its pixels on."""
    frames = tuple(_frames(file, dataset))
    shared = _item(dataset, "SharedFunctionalGroupsSequence")
    measures = _item(shared, "PixelMeasuresSequence") or dataset
    distance = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
    number = dataset.get("SeriesNumber")
    image_type = dataset.get("ImageType") or ()
    return FileHeader(
        file=file,
        sop_class=_text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        modality=_text(dataset, "Modality"),
        description=_text(dataset, "SeriesDescription"),
        number=None if number is None else int(number),
        image_type=(image_type,) if isinstance(image_type, str) else tuple(map(str, image_type)),
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        samples=int(dataset.get("SamplesPerPixel") or 0),
        slice_distance=None if distance is None else abs(float(distance)),
        frames=frames,
        damage=_damage(file, dataset, len(frames), available),
    )


def _frames(file: Path, dataset: Any) -> Iterator[Frame]:
    """Yield the frames of a file; geometry of a multi-frame file is in its functional groups."""
    shared = _item(dataset, "SharedFunctionalGroupsSequence")
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    count = int(dataset.get("NumberOfFrames") or 1)
    is_multiframe = groups is not None or count > 1
    for index in range(count):
        own = groups[index] if groups is not None else None
        places = [_item(each, "PlanePositionSequence") for each in (own, shared)]
        planes = [_item(each, "PlaneOrientationSequence") for each in (own, shared)]
        measures = [_item(each, "PixelMeasuresSequence") for each in (own, shared)]
        yield Frame(
            file=file,
            index=index if is_multiframe else None,
            uid=_text(dataset, "SOPInstanceUID") or _text(dataset.file_meta, "MediaStorageSOPInstanceUID"),
            position=_numbers([*places, *([] if is_multiframe else [dataset])], "ImagePositionPatient", 3),
            orientation=_numbers([*planes, dataset], "ImageOrientationPatient", 6),
            spacing=_numbers([*measures, dataset], "PixelSpacing", 2),
            acquisition=_text(dataset, "AcquisitionNumber"),
        )


def _text(dataset: Any, keyword: str) -> str:
    """Return an attribute as text; empty if it is missing or has no value."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _item(dataset: Any, keyword: str) -> Any:
    """Return the first item of a sequence; None if there is none."""
    sequence = None if dataset is None else dataset.get(keyword)
    return sequence[0] if sequence else None


def _numbers(datasets: list[Any], keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the values of an attribute in the first data set that has it."""
    for dataset in datasets:
        values = None if dataset is None else dataset.get(keyword)
        if values is not None and not isinstance(values, float | int) and len(values) == count:
            return tuple(float(value) for value in values)
    return None


def _damage(file: Path, dataset: Any, count: int, available: int) -> str:
    """Return what is wrong with the size of the pixels; `available` bytes hold them and the header of their element."""
    samples, bits = int(dataset.get("SamplesPerPixel") or 0), int(dataset.get("BitsAllocated") or 0)
    expected = count * int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * samples * bits // 8
    if not expected:
        return "is cut off in its header" if samples else ""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_deflated:  # pydicom unpacked the file in memory
        return ""
    if syntax is None or not syntax.is_compressed:
        left = max(0, available - (8 if syntax is None or syntax.is_implicit_VR else 12))
        return "" if left >= expected else f"is cut off: {left} of {expected} bytes of its pixels are left"
    if expected > max(_LARGE_BYTES, _BLANK_RATIO * available):
        return f"would unpack from {available} to {expected} bytes"
    with file.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - min(available, _TAIL)))
        is_whole = _DELIMITER in stream.read()
    return "" if is_whole else "is cut off: its compressed pixels have no end"
