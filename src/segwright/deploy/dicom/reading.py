"""Read the voxels of a DICOM series as float32, in the order of its frames, and write them as a NIfTI file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from segwright.core.errors import ImageError
from segwright.core.extensions.extras import imports_of
from segwright.core.files.atomic_io import atomic_path
from segwright.data.images.formats import Floats
from segwright.data.images.readers.itk import ITK_LOCK
from segwright.data.label_maps import MAX_UINT8_LABEL
from segwright.deploy.dicom.series import Series


def read_voxels(series: Series) -> Floats:
    """Return the voxels (frames, rows, columns) in the units of the headers' rescale slope and intercept.

    Raises:
        ImageError: a file cannot be decoded; the message names the packages that would.
    """
    if series.is_multiframe:
        return _read_multiframe(series)
    try:
        return _read_single_images(series.files)
    except RuntimeError as error:
        return _read_with_pydicom(series, error)


def headers_of(series: Series) -> list[Any]:
    """Return the data sets of the series' files without their pixels, in the order of the frames."""
    with imports_of("dicom"):
        import pydicom
    return [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]


def write_nifti(series: Series, path: Path) -> None:
    """Write a series as a NIfTI file on its own grid; the file gets the time of the newest source file.

    Values that all are whole and fit 16 bits are stored so, others as float32.

    Args:
        series: what to write.
        path: new file, `.nii` or `.nii.gz`.

    Raises:
        ImageError: a file of the series cannot be decoded.
        WorkspaceError: the file cannot be written.
    """
    voxels = read_voxels(series)
    with np.errstate(invalid="ignore"):
        short = voxels.astype(np.int16)
    _write(short if np.array_equal(short, voxels) else voxels, series, path)
    newest = max(file.stat().st_mtime_ns for file in series.files)
    os.utime(path, ns=(newest, newest))


def write_label_map(labels: npt.NDArray[np.uint16], series: Series, path: Path) -> None:
    """Write a label map (frames, rows, columns) of a series as a NIfTI file on its grid.

    Raises:
        WorkspaceError: the file cannot be written.
    """
    _write(labels.astype(np.uint8) if labels.max(initial=0) <= MAX_UINT8_LABEL else labels, series, path)


def _write(array: npt.NDArray[Any], series: Series, path: Path) -> None:
    with ITK_LOCK:
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(series.spacing[::-1])
        image.SetOrigin(series.origin)
        image.SetDirection(np.asarray(series.direction).ravel().tolist())
        with atomic_path(path, durable=False) as temporary:
            SimpleITK.WriteImage(image, str(temporary))


def _read_single_images(files: Sequence[Path]) -> Floats:
    """Read files of one image each with ITK, which applies the rescale slope and intercept of every file."""
    with ITK_LOCK:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        reader.SetFileNames([str(file) for file in files])
        voxels: Floats = SimpleITK.GetArrayFromImage(reader.Execute())
    return voxels


def _read_multiframe(series: Series) -> Floats:
    voxels = np.empty(series.shape, dtype=np.float32)
    decoded: dict[Path, tuple[Any, npt.NDArray[Any]]] = {}
    for target, frame in zip(voxels, series.frames, strict=True):
        assert frame.index is not None
        if frame.file not in decoded:
            decoded[frame.file] = _decoded(frame.file)
        dataset, stored = decoded[frame.file]
        slope, intercept = _scaling(dataset, frame.index)
        target[:] = stored.reshape(-1, *series.shape[1:])[frame.index]
        target *= slope
        target += intercept
    return voxels


def _read_with_pydicom(series: Series, reason: RuntimeError) -> Floats:
    """Read files that ITK cannot decode, such as those of newer transfer syntaxes.

    Raises:
        ImageError: pydicom cannot decode them either.
    """
    voxels = np.empty(series.shape, dtype=np.float32)
    for target, file in zip(voxels, series.files, strict=True):
        dataset, stored = _decoded(file, reason)
        target[:] = stored
        target *= float(dataset.get("RescaleSlope") or 1)
        target += float(dataset.get("RescaleIntercept") or 0)
    return voxels


def _decoded(file: Path, reason: RuntimeError | None = None) -> tuple[Any, npt.NDArray[Any]]:
    """Return the data set of a file and its stored values.

    Raises:
        ImageError: the transfer syntax needs a package that is not installed, or the file is damaged.
    """
    with imports_of("dicom"):
        import pydicom
    try:
        dataset = pydicom.dcmread(file)
        return dataset, dataset.pixel_array
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        what = " ".join(str(error).split())[:500]
        raise ImageError(f"{file}: its pixels cannot be decoded ({what})") from (reason or error)


def _scaling(dataset: Any, index: int) -> tuple[float, float]:
    """Return rescale slope and intercept of a frame: its own, those of all frames, or those of the file."""
    groups = []
    if frames := dataset.get("PerFrameFunctionalGroupsSequence"):
        groups.append(frames[index])
    if shared := dataset.get("SharedFunctionalGroupsSequence"):
        groups.append(shared[0])
    transforms = [sequence[0] for group in groups if (sequence := group.get("PixelValueTransformationSequence"))]
    source = [*transforms, dataset][0]
    return float(source.get("RescaleSlope", 1)), float(source.get("RescaleIntercept", 0))
