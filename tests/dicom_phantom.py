"""Write small DICOM series with pydicom, and read contours back into masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from segwright.deploy.dicom.series import Series

_TILT, _TURN = 0.3, 0.4
_TURNED = np.array([[np.cos(_TURN), -np.sin(_TURN), 0], [np.sin(_TURN), np.cos(_TURN), 0], [0, 0, 1]])
_TILTED = np.array([[1, 0, 0], [0, np.cos(_TILT), -np.sin(_TILT)], [0, np.sin(_TILT), np.cos(_TILT)]])

ORIENTATIONS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "axial": (1, 0, 0, 0, 1, 0),
        "sagittal": (0, 1, 0, 0, 0, -1),
        "coronal": (1, 0, 0, 0, 0, -1),
        "oblique": tuple((_TURNED @ _TILTED).T[:2].ravel()),
    }
)
SPACING = (3.0, 0.8, 1.2)
"""Of slices, rows and columns in mm."""

Change = Callable[[int, Dataset], None]


def no_change(index: int, image: Dataset) -> None:
    """Leave an image as it is."""


def write_series(
    folder: Path,
    array: npt.NDArray[Any],
    *,
    orientation: str = "axial",
    is_reversed: bool = False,
    spacing: tuple[float, float, float] = SPACING,
    change: Change = no_change,
    study: str = "1.2.3",
    description: str = "phantom",
    number: int = 3,
) -> Path:
    """Write an array (slices, rows, columns) as CT images; slices lie along row x column.

    Args:
        is_reversed: number and name the files in the opposite order.
        change: called with the index of each slice and its image before it is written.
        number: Series Number, also part of the UID.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cosines = np.array(ORIENTATIONS[orientation])
    normal = np.cross(cosines[:3], cosines[3:])
    for index, plane in enumerate(array):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.{number}"
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = f"{study}.99", None
        image.Modality, image.SeriesNumber, image.SeriesDescription = "CT", number, description
        image.ImageType, image.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "Segwright"
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "p1", "Phantom^Anna", None, "O"
        image.StudyID, image.StudyDate, image.StudyTime = "1", "20260102", "030405"
        image.AccessionNumber, image.ReferringPhysicianName = None, None
        image.InstanceNumber = len(array) - index if is_reversed else index + 1
        image.PixelSpacing, image.SliceThickness = list(spacing[1:]), spacing[0]
        position = np.array([-10.0, 20.0, 5.0]) + normal * spacing[0] * index
        image.ImagePositionPatient = [round(value, 6) for value in position.tolist()]
        image.ImageOrientationPatient = [round(value, 8) for value in cosines.tolist()]
        image.Rows, image.Columns = plane.shape
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = plane.astype("<i2").tobytes()
        change(index, image)
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID or CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID or generate_uid()
        image.save_as(folder / f"IM{image.InstanceNumber:04d}", enforce_file_format=True)
    return folder


def bundled_series(name: str) -> Path:
    """Return the folder of a series in pydicom's wheel."""
    found = get_testdata_file("dicomdirtests/DICOMDIR", download=False)
    [folder] = Path(str(found)).parent.glob(f"*/{name}")
    return folder


def masks_of_contours(file: Path, series: Series) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the mask of each ROI of an RTSTRUCT by its name: pixels whose centre is in an odd number of contours.

    The test of points in polygons is matplotlib's, not that of the package.
    """
    from matplotlib.path import Path as Polygon

    dataset = pydicom.dcmread(file)
    names = {roi.ROINumber: str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    to_index = np.linalg.inv(series.affine)
    rows, columns = np.mgrid[: series.shape[1], : series.shape[2]]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    found = {}
    for roi in dataset.ROIContourSequence:
        mask = np.zeros(series.shape, dtype=bool)
        for contour in roi.get("ContourSequence", ()):
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            indices = points @ to_index[:3, :3].T + to_index[:3, 3]
            plane = round(indices[:, 0].mean())
            assert np.abs(indices[:, 0] - plane).max() < 1e-2
            assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == series.frames[plane].uid
            ring = np.concatenate([indices, indices[:1]])[:, :0:-1]
            mask[plane] ^= Polygon(ring).contains_points(centres).reshape(mask.shape[1:])
        found[names[roi.ReferencedROINumber]] = mask
    return found


def write_multiframe(file: Path, array: npt.NDArray[Any], *, orientation: str = "axial") -> Path:
    """Write an array (slices, rows, columns) as one enhanced CT file, frames in a shuffled order, each with a slope."""
    cosines = np.array(ORIENTATIONS[orientation])
    normal = np.cross(cosines[:3], cosines[3:])
    order = np.random.default_rng(0).permutation(len(array))
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.99"
    image.Modality, image.SeriesNumber, image.SeriesDescription = "CT", 4, "enhanced"
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "p1", "Phantom^Anna", None, "O"
    image.StudyID, image.StudyDate, image.StudyTime = "1", "20260102", "030405"
    image.AccessionNumber, image.ReferringPhysicianName, image.PositionReferenceIndicator = None, None, None
    image.Rows, image.Columns, image.NumberOfFrames = *array.shape[1:], len(array)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING[1:]), SPACING[0]
    plane.ImageOrientationPatient = [round(value, 8) for value in cosines.tolist()]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for index in order.tolist():
        frame, position, values = Dataset(), Dataset(), Dataset()
        place = np.array([-10.0, 20.0, 5.0]) + normal * SPACING[0] * index
        position.ImagePositionPatient = [round(value, 6) for value in place.tolist()]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = index + 1, -index, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        image.PerFrameFunctionalGroupsSequence.append(frame)
    image.PixelData = array[order].astype("<i2").tobytes()
    image.save_as(file, enforce_file_format=True)
    return file
