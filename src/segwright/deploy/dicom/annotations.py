"""Read DICOM SEG and RTSTRUCT objects as voxels on the grid of the series that they outline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError
from segwright.core.extensions.extras import imports_of
from segwright.deploy.dicom.headers import Frame, read_file_header
from segwright.deploy.dicom.series import POSITION_TOLERANCE, Series

SEGMENTATION_CLASSES: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of SEG: binary and fractional ones, and label maps."""
STRUCTURE_SET_CLASS: Final = "1.2.840.10008.5.1.4.1.1.481.3"
ANNOTATION_CLASSES: Final = (*SEGMENTATION_CLASSES, STRUCTURE_SET_CLASS)

_PLANE_TOLERANCE: Final = 0.25
"""Distance of contours from their plane, in slices; contours drawn between slices are refused."""
_BACKGROUND: Final = 0

Mask = npt.NDArray[np.bool_]
Voxels = tuple[npt.NDArray[np.int_], ...]
"""Indices along frames, rows and columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """What an object outlines; no pixel or contour has been read.

    Attributes:
        file: SEG or RTSTRUCT.
        series_uids: Series Instance UIDs of the images that it refers to.
        names: name of each segment or region of interest by its number, in the order of the numbers.
    """

    file: Path
    series_uids: frozenset[str]
    names: dict[int, str]


def read_annotation(file: Path) -> Annotation:
    """Return what the header of a SEG or RTSTRUCT says.

    Raises:
        ImageError: the object is damaged.
    """
    dataset = _read(file, only_header=True)
    try:
        if dataset.SOPClassUID == STRUCTURE_SET_CLASS:
            rois = dataset.get("StructureSetROISequence") or ()
            names = {int(roi.ROINumber): str(roi.ROIName or f"ROI {roi.ROINumber}") for roi in rois}
        else:
            names = {int(each.SegmentNumber): str(each.SegmentLabel) for each in dataset.SegmentSequence}
            if dataset.get("SegmentationType") == "LABELMAP":
                names.pop(_BACKGROUND, None)
        uids = frozenset(_series_uids(dataset))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ImageError(f"{file}: is damaged ({error}); copy it again, or remove it") from error
    return Annotation(file=file, series_uids=uids, names=dict(sorted(names.items())))


def voxels_on(annotation: Annotation, series: Series, numbers: Sequence[int]) -> Iterator[tuple[int, Voxels]]:
    """Yield numbers and voxels of segments or regions of interest on the grid of a series, plane by plane.

    Args:
        annotation: of `read_annotation`.
        series: that it refers to.
        numbers: which segments; one without pixels does not occur.

    Raises:
        ImageError: the object lies on another grid, or is damaged.
    """
    dataset = _read(annotation.file)
    if dataset.SOPClassUID != STRUCTURE_SET_CLASS:
        yield from _segment_voxels(annotation.file, dataset, series, {*numbers})
        return
    for item in dataset.get("ROIContourSequence") or ():
        if int(item.ReferencedROINumber) in numbers:
            for voxels in _contour_voxels(annotation.file, item, series):
                yield int(item.ReferencedROINumber), voxels


def fill_contours(contours: Sequence[npt.NDArray[np.float64]], shape: tuple[int, int]) -> Mask:
    """Return the pixels (rows, columns) whose centres are in an odd number of closed contours.

    Args:
        contours: points (N, 2) as (row, column) in pixels; the last is connected to the first.
        shape: of the mask.
    """
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)
    for points in contours:
        following = np.roll(points, -1, axis=0)
        low = np.ceil(np.minimum(points[:, 0], following[:, 0])).clip(0, shape[0]).astype(int)
        high = np.ceil(np.maximum(points[:, 0], following[:, 0])).clip(0, shape[0]).astype(int)
        counts = high - low  # rows that each edge crosses; the upper end counts, the lower one does not
        edges = np.repeat(np.arange(len(points)), counts)
        rows = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + low[edges]
        start, stop = points[edges], following[edges]
        share = (rows - start[:, 0]) / (stop[:, 0] - start[:, 0])
        columns = np.ceil(start[:, 1] + share * (stop[:, 1] - start[:, 1])).clip(0, shape[1]).astype(int)
        np.add.at(crossings, (rows, columns), 1)
    inside: Mask = crossings[:, :-1].cumsum(axis=1) % 2 == 1
    return inside


def _read(file: Path, *, only_header: bool = False) -> Any:
    with imports_of("dicom"):
        import pydicom
    try:
        return pydicom.dcmread(file, stop_before_pixels=only_header)
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ImageError(f"{file}: cannot be read ({error}); copy it again, or remove it") from error


def _series_uids(dataset: Any) -> Iterator[str]:
    """Yield the UIDs of the series that an object refers to."""
    for item in dataset.get("ReferencedSeriesSequence") or ():
        yield str(item.SeriesInstanceUID)
    for frame_of_reference in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame_of_reference.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                yield str(item.SeriesInstanceUID)


def _segment_voxels(file: Path, dataset: Any, series: Series, numbers: set[int]) -> Iterator[tuple[int, Voxels]]:
    """Yield the voxels of each frame of a SEG.

    Raises:
        ImageError: a frame lies on another grid, or the object is damaged.
    """
    from pydicom.pixels import iter_pixels

    header = read_file_header(file)
    assert header is not None, "a SEG is no DICOMDIR"
    kind = dataset.get("SegmentationType")
    threshold = int(dataset.get("MaximumFractionalValue", 1)) / 2 if kind == "FRACTIONAL" else 0
    to_index = np.linalg.inv(series.affine)
    try:
        for frame, pixels in zip(header.frames, iter_pixels(file), strict=True):
            if kind == "LABELMAP":
                found = [
                    (number, pixels == number) for number in sorted(numbers.intersection(np.unique(pixels).tolist()))
                ]
            else:
                number = _segment_number(dataset, frame.index or 0)
                found = [(number, pixels > threshold)] if number in numbers else []
            for number, mask in found:
                yield number, _placed(file, frame, mask, series.shape, to_index)
    except ImageError:
        raise
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ImageError(f"{file}: its pixels cannot be read ({error})") from error


def _segment_number(dataset: Any, index: int) -> int:
    """Return the segment that a frame belongs to."""
    for groups in (dataset.PerFrameFunctionalGroupsSequence[index], dataset.SharedFunctionalGroupsSequence[0]):
        if sequence := groups.get("SegmentIdentificationSequence"):
            return int(sequence[0].ReferencedSegmentNumber)
    raise AttributeError(f"frame {index + 1} names no segment")


def _placed(
    file: Path, frame: Frame, mask: Mask, shape: tuple[int, ...], to_index: npt.NDArray[np.floating[Any]]
) -> Voxels:
    """Return the voxels of a grid where a frame has pixels; its axes may be permuted or flipped.

    Raises:
        ImageError: they lie between voxels or outside the grid.
    """
    pixels = np.argwhere(mask)
    if not len(pixels):
        return (*np.empty((3, 0), dtype=int),)
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        raise ImageError(f"{file}: frame {(frame.index or 0) + 1} has no position, orientation or spacing")
    along_row, along_column = np.reshape(frame.orientation, (2, 3))
    steps = np.stack([along_column * frame.spacing[0], along_row * frame.spacing[1]])
    exact = (np.array(frame.position) + pixels @ steps) @ to_index[:3, :3].T + to_index[:3, 3]
    indices = np.rint(exact).astype(int)
    if np.abs(exact - indices).max() > POSITION_TOLERANCE:
        raise ImageError(f"{file}: its voxels lie between those of the series; resample it to the grid of the images")
    if (indices < 0).any() or (indices >= shape).any():
        raise ImageError(f"{file}: has voxels outside the series; it may belong to another one")
    return (*indices.T,)


def _contour_voxels(file: Path, roi: Any, series: Series) -> Iterator[Voxels]:
    """Yield the voxels of a region of interest on each plane.

    Raises:
        ImageError: its contours do not lie on the planes of the series.
    """
    planes: dict[int, list[npt.NDArray[np.float64]]] = {}
    to_index = np.linalg.inv(series.affine)
    for contour in roi.get("ContourSequence") or ():
        if contour.ContourGeometricType != "CLOSED_PLANAR":
            continue  # points and lines have no area
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3]
        plane = round(points[:, 0].mean())
        if np.abs(points[:, 0] - plane).max() > _PLANE_TOLERANCE or not 0 <= plane < series.shape[0]:
            raise ImageError(
                f"{file}: a contour does not lie on a plane of the series; export it on the planes of the images"
            )
        planes.setdefault(plane, []).append(points[:, 1:])
    for plane, contours in planes.items():
        rows, columns = np.nonzero(fill_contours(contours, series.shape[1:]))
        yield np.full(len(rows), plane), rows, columns
