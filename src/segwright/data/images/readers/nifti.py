"""Read NIfTI with nibabel; write NIfTI files with the qform and sform of the image of the case."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.volumeutils import apply_read_scaling

from segwright.core.files.atomic_io import atomic_path
from segwright.data.images.formats import Floats, Header, LabelMap
from segwright.data.images.readers.gzip_content import require_undamaged
from segwright.data.images.readers.limits import file_start, is_gzip
from segwright.data.images.readers.nifti_header import (
    GEOMETRY,
    QUATERN,
    SROW,
    NiftiHeader,
    check_nifti,
    require_complete,
)

_GZIP_LEVEL = 3
"""Level 6 takes nearly three times as long for label maps; files are at best half the size."""
_VOXELS_OFFSET = 352


class NibabelIO:
    """NIfTI with nibabel; arrays are (z, y, x), spacing comes from the header's zooms."""

    endings: tuple[str, ...] = (".nii", ".nii.gz")

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and affine."""
        image, nifti = _load(file, is_label=is_label)
        return _header(image, nifti)

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one 3D file."""
        image, nifti = _load(file, is_label=is_label)
        return _header(image, nifti), _array(_voxels(file, image, nifti))

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a NIfTI-1 file with the geometry of the image."""
        _write(labels, path, np.array(geometry["affine"]), geometry)


class NibabelIOWithReorient(NibabelIO):
    """As `NibabelIO`, but re-oriented to the closest RAS+ orientation when read and back when written."""

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and affine after re-orientation."""
        image, nifti = _load(file, is_label=is_label)
        return _header(nibabel.as_closest_canonical(image), nifti, original_affine=image.affine)

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read and re-orient one 3D file."""
        image, nifti = _load(file, is_label=is_label)
        whole = type(image)(_voxels(file, image, nifti), image.affine, image.header)
        canonical = nibabel.as_closest_canonical(whole)
        return _header(canonical, nifti, original_affine=image.affine), _array(np.asanyarray(canonical.dataobj))

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write in the original orientation, with the original affine to the last bit."""
        original, affine = np.array(geometry["original_affine"]), np.array(geometry["affine"])
        back = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.io_orientation(original))
        restored = nibabel.orientations.apply_orientation(labels.transpose(2, 1, 0), back).transpose(2, 1, 0)
        _write(restored, path, original, geometry)


def nonfinite_in_nifti(file: Path) -> tuple[int, int]:
    """Count the NaN and the infinite voxels of a NIfTI file; ITK silently reads both as 0."""
    check_nifti(file)
    image = nibabel.load(file)
    if image.get_data_dtype().kind != "f":
        return 0, 0
    array = np.asanyarray(image.dataobj)
    if np.isfinite(array).all():
        return 0, 0
    return int(np.count_nonzero(np.isnan(array))), int(np.count_nonzero(np.isinf(array)))


def write_nifti(array: npt.NDArray[Any], path: Path, forms: Mapping[str, Any]) -> None:
    """Write an array ([z,] y, x) as NIfTI-1 with qform, sform, their codes and the units of another header.

    `nibabel.save` would derive both forms from one affine, and compress less.
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    header["pixdim"][:4] = forms["pixdim"]
    header["qform_code"], header["sform_code"] = forms["codes"]
    for name, value in zip(QUATERN, forms["quatern"], strict=True):
        header[name] = value
    for name, row in zip(SROW, np.reshape(forms["srow"], (3, 4)), strict=True):
        header[name] = row
    header["xyzt_units"] = forms["xyzt_units"]
    header["vox_offset"], header["magic"] = _VOXELS_OFFSET, b"n+1"
    header["scl_slope"], header["scl_inter"] = 1, 0
    if path.name.lower().endswith(".gz"):
        with path.open("wb") as packed, gzip.GzipFile("", "wb", _GZIP_LEVEL, packed, mtime=0) as stream:
            _write_parts(header, array, stream)
    else:
        with path.open("wb") as plain:
            _write_parts(header, array, plain)


def _write_parts(header: Any, array: npt.NDArray[Any], stream: IO[bytes] | gzip.GzipFile) -> None:
    stream.write(header.binaryblock.ljust(_VOXELS_OFFSET, b"\0"))
    stream.write(np.ascontiguousarray(array).data)


def _load(file: Path, *, is_label: bool) -> tuple[Any, NiftiHeader]:
    nifti = check_nifti(file, is_label=is_label)
    image = (nibabel.Nifti2Image if nifti.is_version_2 else nibabel.Nifti1Image).load(file)
    if len(image.shape) != 3:
        raise ValueError(f"has {len(image.shape)} dimensions {image.shape}, expected 3; write one file per channel")
    return image, nifti


def _header(image: Any, nifti: NiftiHeader, *, original_affine: npt.NDArray[Any] | None = None) -> Header:
    geometry = {"affine": _in_mm(image.affine, nifti), GEOMETRY: nifti.forms}
    if original_affine is not None:
        geometry["original_affine"] = _in_mm(original_affine, nifti)
    return Header(
        shape=tuple(int(extent) for extent in reversed(image.shape)),
        spacing=tuple(float(zoom) * nifti.mm_per_unit for zoom in reversed(image.header.get_zooms())),
        geometry=geometry,
    )


def _in_mm(affine: npt.NDArray[Any], nifti: NiftiHeader) -> list[list[float]]:
    scale = np.array([[nifti.mm_per_unit], [nifti.mm_per_unit], [nifti.mm_per_unit], [1.0]])
    rows: list[list[float]] = (affine * scale).tolist()
    return rows


def _voxels(file: Path, image: Any, nifti: NiftiHeader) -> npt.NDArray[Any]:
    """Read the voxels (x, y, z), scaled by the header's slope and intercept."""
    require_complete(file, nifti)
    stored = image.dataobj.get_unscaled()
    if is_gzip(file_start(file, 2)):
        require_undamaged(file, stored.T, num_bytes=nifti.voxel_bytes, before=nifti.offset)
    slope, inter = map(np.asanyarray, (image.dataobj.slope, image.dataobj.inter))
    scaled: npt.NDArray[Any] = apply_read_scaling(stored, slope, inter)
    return scaled


def _array(voxels: npt.NDArray[Any]) -> Floats:
    array: Floats = voxels.transpose(2, 1, 0)[None].astype(np.float32, order="C")
    return array


def _write(labels: LabelMap, path: Path, affine: npt.NDArray[Any], geometry: Mapping[str, Any]) -> None:
    """Write a label map (z, y, x) along the axes of the original file."""
    with atomic_path(path) as temporary:
        if GEOMETRY in geometry:
            write_nifti(labels, temporary, geometry[GEOMETRY])
        else:  # of an array, or written by a version that stored only the affine
            nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine), temporary)
