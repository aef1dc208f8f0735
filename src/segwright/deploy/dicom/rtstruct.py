"""Write a label map as contours (RTSTRUCT) on the planes of its source series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from math import floor, log10
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError
from segwright.core.extensions.extras import imports_of
from segwright.core.files.atomic_io import atomic_path
from segwright.deploy.dicom.codes import Segment
from segwright.deploy.dicom.objects import (
    CHARACTER_SET,
    NOTICE,
    SOFTWARE,
    SourceModel,
    complete_headers,
    dicom_time,
    mask_of,
    require_same_grid,
    shortened,
)
from segwright.deploy.dicom.series import Series

SERIES_NUMBER: Final = 901
STRUCTURE_SET_CLASS: Final = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY_CLASS: Final = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, by which treatment planning systems know the reference to the study."""

Holes = Literal["xor", "keyhole"]
HOLES: Final[tuple[Holes, ...]] = ("xor", "keyhole")

_ANATOMY: Final = "91723000"
_FRACTION_OF_SPACING: Final = 1000
"""Coordinates are rounded to less than this part of a pixel."""
_SHORT_STRING: Final = 16

Points = npt.NDArray[np.float64]


def write_rtstruct(
    labels: npt.NDArray[Any],
    series: Series,
    segments: Sequence[Segment],
    file: Path,
    *,
    model: SourceModel,
    holes: Holes = "xor",
) -> None:
    """Write a label map as closed contours halfway between the centres of pixels; empty segments have none.

    A pixel belongs to a segment where its centre is inside an odd number of the segment's contours.

    Args:
        labels: (frames, rows, columns) in the order of the series' frames, as in the NIfTI file of its prediction.
        series: that was predicted.
        segments: of the model.
        file: new file, replaced if it exists.
        model: that made the label map.
        holes: `xor` writes the border of a hole as a contour of its own; `keyhole` joins it to the outer contour by a
            channel of no width, for programs that fill every contour.

    Raises:
        ImageError: the label map is not of the series.
        ConfigError: pydicom is not installed, or `holes` is neither.
        WorkspaceError: the file cannot be written.
    """
    if holes not in HOLES:
        raise ConfigError(f"holes '{holes}': expected {' or '.join(HOLES)}")
    require_same_grid(labels, series)
    dataset = _structure_set(labels, series, segments, model, holes)
    with atomic_path(file) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def plane_contours(mask: npt.NDArray[np.bool_], holes: Holes) -> list[Points]:
    """Return closed contours (N, 2) of a mask (rows, columns), as (column, row) in pixels; the last point is open.

    Args:
        mask: of one plane.
        holes: see `write_rtstruct`.
    """
    from contourpy import FillType, contour_generator

    if not mask.any():
        return []
    padded = np.pad(mask, 1).astype(np.float64)
    polygons, offsets = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    found: list[Points] = []
    for points, bounds in zip(polygons, offsets, strict=True):
        rings = [points[start : stop - 1] - 1 for start, stop in pairwise(bounds)]
        found += [_joined(rings)] if holes == "keyhole" else rings
    return found


def _joined(rings: list[Points]) -> Points:
    """Return one ring: the first, and each hole joined to it by a way there and back between their closest points."""
    ring = rings[0]
    for hole in rings[1:]:
        distances = np.linalg.norm(ring[:, None] - hole[None], axis=-1)
        start, entry = np.unravel_index(distances.argmin(), distances.shape)
        around = np.concatenate([hole[entry:], hole[: entry + 1]])
        ring = np.concatenate([ring[: start + 1], around, ring[start:]])
    return ring


def _structure_set(
    labels: npt.NDArray[Any], series: Series, segments: Sequence[Segment], model: SourceModel, holes: Holes
) -> Any:
    with imports_of("dicom"):
        import pydicom
        from pydicom.dataset import Dataset, FileMetaDataset
    headers = complete_headers(series)
    now = datetime.now()
    date, time = dicom_time(now)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    # explicit value representations limit the points of a contour to 64 KiB of text
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = STRUCTURE_SET_CLASS
    dataset.SOPClassUID = STRUCTURE_SET_CLASS
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SpecificCharacterSet = CHARACTER_SET
    _copy_patient_and_study(headers[0], dataset)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesNumber, dataset.InstanceNumber = SERIES_NUMBER, 1
    dataset.SeriesDescription = shortened(f"{model.name} ({SOFTWARE})")
    dataset.OperatorsName = None
    dataset.Manufacturer, dataset.ManufacturerModelName = SOFTWARE, shortened(model.name)
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = model.digest, model.software_versions
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = headers[0].FrameOfReferenceUID, None
    dataset.StructureSetLabel = shortened(model.name, _SHORT_STRING)
    dataset.StructureSetName = shortened(f"{model.name} ({SOFTWARE})")
    dataset.StructureSetDescription = f"{NOTICE}. {', '.join(model.software_versions)}"
    dataset.StructureSetDate, dataset.StructureSetTime = date, time
    dataset.ReferencedFrameOfReferenceSequence = [_referenced(headers[0], series)]
    dataset.StructureSetROISequence = [_roi(segment, headers[0].FrameOfReferenceUID) for segment in segments]
    dataset.ROIContourSequence = [_contours(labels, series, segment, holes) for segment in segments]
    dataset.RTROIObservationsSequence = [_observation(segment) for segment in segments]
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _copy_patient_and_study(source: Any, dataset: Any) -> None:
    """Copy what says whose study it is."""
    for name in (
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge"),
        *("PatientWeight", "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription"),
        *("AccessionNumber", "ReferringPhysicianName", "PatientIdentityRemoved", "DeidentificationMethod"),
    ):
        if name in source:
            setattr(dataset, name, source[name].value)


def _referenced(header: Any, series: Series) -> Any:
    """Return the item that lists study, series and every image."""
    from pydicom.dataset import Dataset

    frame_of_reference, study, of_series = Dataset(), Dataset(), Dataset()
    frame_of_reference.FrameOfReferenceUID = header.FrameOfReferenceUID
    frame_of_reference.RTReferencedStudySequence = [study]
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = header.StudyInstanceUID
    study.RTReferencedSeriesSequence = [of_series]
    of_series.SeriesInstanceUID = header.SeriesInstanceUID
    uids = dict.fromkeys(frame.uid for frame in series.frames)
    of_series.ContourImageSequence = [_image(series.sop_class, uid) for uid in uids]
    return frame_of_reference


def _image(sop_class: str, uid: str, frame: int | None = None) -> Any:
    from pydicom.dataset import Dataset

    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, uid
    if frame is not None:
        image.ReferencedFrameNumber = frame + 1
    return image


def _roi(segment: Segment, frame_of_reference: str) -> Any:
    from pydicom.dataset import Dataset

    roi = Dataset()
    roi.ROINumber, roi.ROIName = segment.number, shortened(segment.name)
    roi.ReferencedFrameOfReferenceUID = frame_of_reference
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    return roi


def _observation(segment: Segment) -> Any:
    from pydicom.dataset import Dataset

    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = segment.number
    observation.RTROIInterpretedType = "ORGAN" if segment.category.value == _ANATOMY else None
    observation.ROIInterpreter = None
    return observation


def _contours(labels: npt.NDArray[Any], series: Series, segment: Segment, holes: Holes) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROIDisplayColor = list(segment.colour)
    item.ReferencedROINumber = segment.number
    contours = []
    mask = mask_of(labels, segment)
    for plane in np.flatnonzero(mask.any(axis=(1, 2))):
        frame = series.frames[plane]
        for points in _in_patient(plane_contours(mask[plane], holes), series, int(plane)):
            contour = Dataset()
            contour.ContourImageSequence = [_image(series.sop_class, frame.uid, frame.index)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = points.ravel().tolist()
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _in_patient(contours: Sequence[Points], series: Series, plane: int) -> Iterator[Points]:
    """Yield contours as positions (N, 3) in mm, rounded to what matters and fits 16 characters."""
    position = np.array(series.frames[plane].position)
    _, rows, columns = series.affine[:3, :3].T
    digits = max(2, -floor(log10(min(series.spacing[1:]) / _FRACTION_OF_SPACING)))
    for points in contours:
        yield np.round(position + points[:, :1] * columns + points[:, 1:] * rows, digits)
