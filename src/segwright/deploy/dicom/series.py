"""Find DICOM series by their headers, sort their frames by position, and say why a series is no volume.

Vectors are in mm in the patient's axes (L, P, S), as in DICOM and ITK.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import Problem, ProblemReport
from segwright.core.extensions.extras import imports_of
from segwright.data.images.readers.limits import MAX_VALUES
from segwright.deploy.dicom.headers import FileHeader, Frame, read_headers

DIRECTION_TOLERANCE: Final = 1e-3
"""Between direction cosines of frames: half a pixel over 500 pixels. Scanners round to six digits."""
POSITION_TOLERANCE: Final = 0.1
"""Of a slice's position, in slices and in pixels; as `geometry.TOLERANCE` for two files."""
SAME_POSITION_MM: Final = 1e-2
"""Frames closer than this lie at one position."""

_VOLUME_CLASSES: Final = {
    **{"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.2.1": "CT", "1.2.840.10008.5.1.4.1.1.2.2": "CT"},
    **{"1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.4.1": "MR", "1.2.840.10008.5.1.4.1.1.4.4": "MR"},
    **{"1.2.840.10008.5.1.4.1.1.128": "PT", "1.2.840.10008.5.1.4.1.1.130": "PT"},
    "1.2.840.10008.5.1.4.1.1.128.1": "PT",
}
"""SOP classes of images that make up volumes: CT, MR and PET, each also enhanced and converted from single images."""
_OTHER_CLASSES: Final = (
    ("1.2.840.10008.5.1.4.1.1.7", "secondary capture (a screen shot or a derived picture)"),
    ("1.2.840.10008.5.1.4.1.1.20", "nuclear medicine (NM) image, whose frames have no position of their own"),
    ("1.2.840.10008.5.1.4.1.1.6.", "ultrasound image"),
    ("1.2.840.10008.5.1.4.1.1.3.", "ultrasound image"),
    ("1.2.840.10008.5.1.4.1.1.1", "X-ray picture"),
    ("1.2.840.10008.5.1.4.1.1.12.", "X-ray picture"),
    ("1.2.840.10008.5.1.4.1.1.77.", "photograph"),
)
"""What other SOP classes hold, by the beginning of their UIDs."""
_LOCALIZER: Final = "LOCALIZER"
_SHOWN_NAME: Final = 64

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesInfo:
    """What identifies a series.

    Attributes:
        uid: Series Instance UID.
        study_uid: Study Instance UID.
        modality: e.g. CT.
        description: Series Description; may be empty.
        number: Series Number.
        num_frames: number of images or frames.
        folder: that holds all of its files.
    """

    uid: str
    study_uid: str
    modality: str
    description: str
    number: int | None
    num_frames: int
    folder: Path

    def __str__(self) -> str:
        number = "without number" if self.number is None else f"number {self.number}"
        name = f"'{self.description[:_SHOWN_NAME]}'" if self.description else "without description"
        return (
            f"series {number}, {name}, {self.modality or 'unknown modality'}, {self.num_frames} images, UID {self.uid}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series that is a volume, with its frames sorted by position.

    Attributes:
        info: what identifies it.
        frames: in order of their position along `row x column`.
        sop_class: SOP Class UID of its images.
        frame_of_reference_uid: of its coordinates; empty if the headers do not say.
        shape: frames, rows, columns.
        spacing: of the same axes in mm.
        direction: direction cosines of columns (x), rows (y) and frames (z) as the columns of a matrix (3, 3).
        origin: position of the first voxel.
        notes: what was left out or assumed.
    """

    info: SeriesInfo
    frames: tuple[Frame, ...]
    sop_class: str
    frame_of_reference_uid: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    direction: tuple[tuple[float, ...], ...]
    origin: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_multiframe(self) -> bool:
        """Whether frames are in multi-frame files."""
        return self.frames[0].index is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the frames, in their order, each once."""
        return tuple(dict.fromkeys(frame.file for frame in self.frames))

    @property
    def affine(self) -> Vector:
        """Matrix (4, 4) from indices (frame, row, column) to positions in mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction)[:, ::-1] * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSeries:
    """A series that is no volume.

    Attributes:
        info: what identifies it.
        reason: why, and what to do.
        is_other: it is of another kind than images to predict (a localizer, a secondary capture), so that it does not
            count when the only series of a folder is looked for.
    """

    info: SeriesInfo
    reason: str
    is_other: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """What a folder holds.

    Attributes:
        series: that are volumes, in order of study and number.
        refused: that are none.
        others: objects of other kinds, such as reports, RTSTRUCT and SEG.
    """

    series: tuple[Series, ...]
    refused: tuple[RefusedSeries, ...]
    others: tuple[FileHeader, ...] = ()

    @property
    def all(self) -> tuple[Series | RefusedSeries, ...]:
        """Those that are volumes, and the others."""
        return (*self.series, *self.refused)


class _NoVolume(ValueError):
    """Why images are no volume."""


def find_series(place: Path) -> FoundSeries:
    """Return the series of images at or below a folder, or in a file; those that are no volume with the reason.

    Objects of other kinds are listed without looking into them.

    Args:
        place: a folder, searched with all folders below it, or a file.

    Raises:
        ProblemReport: a DICOM file cannot be read.
        ConfigError: pydicom is not installed.
    """
    headers, problems = read_headers(place)
    problems += [
        Problem(where=str(header.file), what="is cut off in its header", remedy="copy the file again, or remove it")
        for header in headers
        if not header.sop_class or (header.sop_class in _VOLUME_CLASSES and not header.samples)
    ]
    if problems:
        raise ProblemReport(problems)
    groups: dict[tuple[str, str], list[FileHeader]] = {}
    others: list[FileHeader] = []
    for header in _identified(headers):
        if header.samples and (header.sop_class in _VOLUME_CLASSES or _other_kind(header)):
            groups.setdefault((header.study_uid, header.series_uid), []).append(header)
        else:
            others.append(header)
    series: list[Series] = []
    refused: list[RefusedSeries] = []
    for group in groups.values():
        info = _info(group)
        other = _other_kind(group[0]) or _only_localizers(group)
        if other:
            refused.append(RefusedSeries(info=info, reason=f"is a {other}", is_other=True))
            continue
        try:
            series.append(_series(info, group))
        except _NoVolume as reason:
            refused.append(RefusedSeries(info=info, reason=str(reason), is_other=False))
    return FoundSeries(
        series=tuple(sorted(series, key=lambda each: _order(each.info))),
        refused=tuple(sorted(refused, key=lambda each: _order(each.info))),
        others=tuple(others),
    )


def _identified(headers: Sequence[FileHeader]) -> Iterator[FileHeader]:
    """Yield the headers; images of a folder without UIDs, which some programs remove, become a series of their own."""
    with imports_of("dicom"):
        from pydicom.uid import generate_uid
    unnamed: dict[Path, list[FileHeader]] = {}
    for header in headers:
        if header.samples and not (header.series_uid and header.study_uid):
            unnamed.setdefault(header.file.parent, []).append(header)
        else:
            yield header
    for group in unnamed.values():
        images = sorted(header.frames[0].uid for header in group)  # so that the UIDs are the same in each run
        study, series = (str(generate_uid(entropy_srcs=[kind, *images])) for kind in ("study", "series"))
        for header in group:
            yield replace(header, study_uid=header.study_uid or study, series_uid=header.series_uid or series)


def _order(info: SeriesInfo) -> tuple[str, int, str]:
    return info.study_uid, -1 if info.number is None else info.number, info.uid


def _info(group: Sequence[FileHeader]) -> SeriesInfo:
    first = group[0]
    return SeriesInfo(
        uid=first.series_uid,
        study_uid=first.study_uid,
        modality=first.modality,
        description=first.description,
        number=first.number,
        num_frames=sum(len(header.frames) for header in group),
        folder=Path(os.path.commonpath([header.file.parent for header in group])),
    )


def _other_kind(header: FileHeader) -> str:
    """Return what an image is if its SOP class is none of volumes; empty otherwise, and for objects without images."""
    if header.sop_class in _VOLUME_CLASSES:
        return ""
    return next((name for start, name in _OTHER_CLASSES if header.sop_class.startswith(start)), "")


def _is_localizer(header: FileHeader) -> bool:
    return _LOCALIZER in (value.strip().upper() for value in header.image_type)


def _only_localizers(group: Sequence[FileHeader]) -> str:
    return "localizer" if all(map(_is_localizer, group)) else ""


def _series(info: SeriesInfo, group: Sequence[FileHeader]) -> Series:
    """Return the volume of a series.

    Raises:
        _NoVolume: it is none.
    """
    headers, notes = _without_copies(group)
    _require_images_of_one_kind(headers)
    frames = [frame for header in headers for frame in header.frames]
    rows, columns = headers[0].rows, headers[0].columns
    if len(frames) * rows * columns > MAX_VALUES:
        raise _NoVolume(f"has {len(frames)} x {rows} x {columns} voxels, more than {MAX_VALUES}")
    row, column = _axes(frames)
    normal = np.cross(row, column)
    between_rows, between_columns = _pixel_spacing(frames)
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    frames, positions, along = [frames[index] for index in order], positions[order], along[order]
    _require_distinct(frames, along)
    distance = _slice_distance(along, headers[0].slice_distance, notes)
    _require_straight(positions, along, np.array([row, column]), (between_columns, between_rows))
    return Series(
        info=info,
        frames=tuple(frames),
        sop_class=headers[0].sop_class,
        frame_of_reference_uid=headers[0].frame_of_reference_uid,
        shape=(len(frames), rows, columns),
        spacing=(distance, between_rows, between_columns),
        direction=tuple(tuple(float(value) for value in line) for line in np.stack([row, column, normal], axis=1)),
        origin=tuple(float(value) for value in positions[0]),
        notes=tuple(notes),
    )


def _without_copies(group: Sequence[FileHeader]) -> tuple[list[FileHeader], list[str]]:
    """Return the headers without copies of the same image.

    Raises:
        _NoVolume: two files have the UID of one image but differ.
    """
    found: dict[str, FileHeader] = {}
    copies = []
    for header in group:
        first = found.setdefault(header.frames[0].uid, header)
        if first is header:
            continue
        if [frame.position for frame in header.frames] != [frame.position for frame in first.frames]:
            raise _NoVolume(
                f"{header.file.name} and {first.file.name} have the same SOP Instance UID but other positions; remove "
                "the wrong one"
            )
        copies.append(header.file.name)
    notes = [f"{len(copies)} files are copies of other ones and left out, first {copies[0]}"] if copies else []
    return list(found.values()), notes


def _require_images_of_one_kind(headers: Sequence[FileHeader]) -> None:
    """Check what headers say without positions: damage, colours, localizers among images, sizes.

    Raises:
        _NoVolume: something does not fit.
    """
    if damaged := next((header for header in headers if header.damage), None):
        raise _NoVolume(f"{damaged.file.name} {damaged.damage}; copy the series again")
    if coloured := next((header for header in headers if header.samples > 1), None):
        raise _NoVolume(f"{coloured.file.name} has {coloured.samples} values per pixel, a colour picture")
    localizers = [header for header in headers if _is_localizer(header)]
    if localizers:
        raise _NoVolume(
            f"{len(localizers)} of {len(headers)} images are localizers, first {localizers[0].file.name}; remove them"
        )
    sizes = Counter((header.rows, header.columns) for header in headers)
    if len(sizes) > 1:
        shown = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.most_common())
        raise _NoVolume(f"its images have different sizes: {shown}; keep those of one size")
    if others := {header.frame_of_reference_uid for header in headers} - {headers[0].frame_of_reference_uid}:
        raise _NoVolume(f"its images have {1 + len(others)} frames of reference, so their positions are not comparable")


def _axes(frames: Sequence[Frame]) -> tuple[Vector, Vector]:
    """Return the directions along rows and columns that all frames share, as unit vectors.

    Raises:
        _NoVolume: a frame has no position or orientation, or they differ.
    """
    for frame in frames:
        missing = [
            name
            for name, value in (
                ("Image Position (Patient)", frame.position),
                ("Image Orientation (Patient)", frame.orientation),
            )
            if value is None or not np.isfinite(value).all()
        ]
        if missing:
            raise _NoVolume(f"{_shown(frame)} has no {missing[0]}, so its place is unknown")
    orientations = np.array([frame.orientation for frame in frames])
    differs = np.abs(orientations - orientations[0]).max(axis=1) > DIRECTION_TOLERANCE
    if differs.any():
        rounded = Counter(_plane(each) for each in orientations)
        what = " and ".join(f"{count} {plane}" for plane, count in rounded.most_common())
        raise _NoVolume(
            f"has mixed orientations ({what} images; {_shown(frames[0])} and {_shown(frames[int(differs.argmax())])} "
            "differ); split it by orientation"
        )
    row, column = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > DIRECTION_TOLERANCE:
        shown = ", ".join(f"{value:g}" for value in orientations[0])
        raise _NoVolume(f"Image Orientation (Patient) [{shown}] is not of two perpendicular unit vectors")
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _plane(orientation: Vector) -> str:
    """Return the plane that is closest to an orientation.

    >>> _plane(np.array([1, 0, 0, 0, 1, 0]))
    'axial'
    """
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return name if normal.max() > 1 - DIRECTION_TOLERANCE else f"oblique {name}"


def _pixel_spacing(frames: Sequence[Frame]) -> tuple[float, float]:
    """Return the distances between rows and between columns that all frames share.

    Raises:
        _NoVolume: they are missing, invalid or different.
    """
    first = frames[0].spacing
    for frame in frames:
        if frame.spacing is None or not np.isfinite(frame.spacing).all() or min(frame.spacing) <= 0 or first is None:
            raise _NoVolume(f"{_shown(frame)} has no valid Pixel Spacing")
        if np.abs(np.divide(frame.spacing, first) - 1).max() > DIRECTION_TOLERANCE:
            raise _NoVolume(
                f"has different pixel spacings: {_mm(first)} in {_shown(frames[0])}, {_mm(frame.spacing)} in "
                f"{_shown(frame)}"
            )
    assert first is not None
    return first[0], first[1]


def _require_distinct(frames: Sequence[Frame], along: Vector) -> None:
    """Check that sorted frames lie at different positions.

    Raises:
        _NoVolume: some share one.
    """
    same = np.flatnonzero(np.diff(along) < SAME_POSITION_MM)
    if not same.size:
        return
    pair = frames[same[0]], frames[same[0] + 1]
    num_positions = len(frames) - len(same)
    acquisitions = sorted({frame.acquisition for frame in frames} - {""})
    hint = f", Acquisition Numbers {', '.join(acquisitions[:5])}" if len(acquisitions) > 1 else ""
    raise _NoVolume(
        f"has several acquisitions at one position ({len(frames)} images at {num_positions} positions{hint}; "
        f"{_shown(pair[0])} and {_shown(pair[1])} lie at the same one); split it, for instance by acquisition or echo"
    )


def _slice_distance(along: Vector, stated: float | None, notes: list[str]) -> float:
    """Return the distance of slices at sorted positions along the normal.

    Raises:
        _NoVolume: the distances differ.
    """
    if len(along) == 1:
        distance = stated if stated and np.isfinite(stated) else 1.0
        notes.append(f"a single slice; its thickness is taken as {distance:g} mm")
        return distance
    gaps = np.diff(along)
    distance = float((along[-1] - along[0]) / len(gaps))
    usual, largest = float(np.median(gaps)), int(gaps.argmax())
    deviation = np.abs(along - (along[0] + distance * np.arange(len(along)))).max()
    if deviation <= POSITION_TOLERANCE * distance:
        return distance
    place = f"between slices {largest + 1} and {largest + 2} of {len(along)}"
    if gaps[largest] > 1.5 * usual:
        raise _NoVolume(f"has a gap: {gaps[largest]:.2f} mm {place}, usually {usual:.2f} mm; copy the missing images")
    raise _NoVolume(
        f"is not evenly spaced: distances from {gaps.min():.2f} to {gaps.max():.2f} mm, the largest {place}; resample "
        "it, or convert it with a program that does"
    )


def _require_straight(positions: Vector, along: Vector, axes: Vector, pixel: tuple[float, float]) -> None:
    """Check that slices are stacked along their normal.

    Args:
        positions: of the sorted frames (N, 3).
        along: the same along the normal.
        axes: directions along a row and along a column (2, 3).
        pixel: spacing along them.

    Raises:
        _NoVolume: they are stacked along another direction, as with a tilted gantry, or shifted.
    """
    shifts = (positions - positions[0]) @ axes.T
    if np.abs(shifts / pixel).max() <= POSITION_TOLERANCE:
        return
    total = shifts[-1] / (along[-1] - along[0])
    if np.abs((shifts - np.outer(along - along[0], total)) / pixel).max() <= POSITION_TOLERANCE:
        angle = np.degrees(np.arctan(np.linalg.norm(total)))
        raise _NoVolume(
            f"has a gantry tilt of {angle:.1f} degrees: its slices are not stacked along their normal; resample it, "
            "for instance with dcm2niix"
        )
    raise _NoVolume("its slices are shifted sideways against each other; resample it")


def _shown(frame: Frame) -> str:
    return frame.file.name if frame.index is None else f"frame {frame.index + 1} of {frame.file.name}"


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in spacing) + " mm"
