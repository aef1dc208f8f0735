"""Read and write NIfTI, NRRD, MetaImage and GIPL with ITK; headers are checked first, endings choose the parser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import SimpleITK

from segwright.core.files.atomic_io import atomic_path
from segwright.data.images.formats import FLAT_SPACING_FACTOR, Floats, Header, LabelMap, Refusal
from segwright.data.images.readers.gipl_header import check_gipl
from segwright.data.images.readers.gzip_content import SIZE_WRAPS, require_undamaged, unpack, unpacked_size
from segwright.data.images.readers.limits import file_start, is_gzip
from segwright.data.images.readers.metaimage_header import check_metaimage, require_complete_metaimage
from segwright.data.images.readers.nifti import write_nifti
from segwright.data.images.readers.nifti_header import (
    GEOMETRY,
    NiftiHeader,
    check_nifti,
    is_nifti,
    require_complete,
)
from segwright.data.images.readers.nrrd_header import check_nrrd, compressed_start

_CANONICAL_ORIENTATION = "RAS"
_FLOATS = (SimpleITK.sitkFloat32, SimpleITK.sitkFloat64)
_NIFTI_HEADER_BYTES = 352
_ORIGINAL_ORIENTATION = "original_orientation"

_METAIMAGE: Final = "MetaImageIO"
_NRRD: Final = "NrrdImageIO"
_PARSERS: Final[Mapping[str, tuple[str, Callable[..., NiftiHeader | None]]]] = {
    ".nii": ("NiftiImageIO", check_nifti),
    ".nii.gz": ("NiftiImageIO", check_nifti),
    ".nrrd": (_NRRD, check_nrrd),
    ".nhdr": (_NRRD, check_nrrd),
    ".mha": (_METAIMAGE, check_metaimage),
    ".mhd": (_METAIMAGE, check_metaimage),
    ".gipl": ("GiplImageIO", check_gipl),
}
"""ITK's parser for each ending, and the check that a file must pass first."""


ITK_LOCK: Final = Lock()
"""Held around every call of SimpleITK: several threads that read at once corrupt its memory, one time in thousands.

Seen with SimpleITK 2.5.7 (NIfTI) and known upstream, https://github.com/SimpleITK/SimpleITK/issues/74.
"""


class SimpleITKIO:
    """NIfTI, NRRD, MetaImage and GIPL; arrays are (z, y, x)."""

    endings: tuple[str, ...] = (".nii.gz", ".nrrd", ".mha", ".gipl")

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and geometry."""
        parser, nifti = _checked(file, is_label=is_label)
        with ITK_LOCK:
            return _read_header(file, parser, nifti, is_label=is_label)

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one file; a 4D image is taken as channels along its last ITK axis (nnU-Net behaviour 2.4)."""
        parser, nifti = _checked(file, is_label=is_label)
        with ITK_LOCK:
            header = _read_header(file, parser, nifti, is_label=is_label)
        if nifti is not None and _is_stored_as_read(nifti, header):
            return header, _stored_voxels(file, nifti)
        with ITK_LOCK:
            return _read(file, parser, nifti, is_label=is_label)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write compressed, with the number of axes that was read."""
        labels = labels[0] if len(geometry["spacing"]) == 2 else labels
        with atomic_path(path) as temporary:
            if GEOMETRY in geometry and is_nifti(path):
                write_nifti(labels, temporary, geometry[GEOMETRY])
                return
            with ITK_LOCK:
                _write(_image(labels, geometry), temporary)


class SimpleITKIOWithReorient(SimpleITKIO):
    """As `SimpleITKIO`, but re-oriented to RAS when read and back when written; chosen by name only."""

    endings = ()

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and geometry of the re-oriented image; this reads the voxels, too."""
        return self.read(file, is_label=is_label)[0]

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read and re-orient one 3D file."""
        parser, nifti = _checked(file, is_label=is_label)
        with ITK_LOCK:
            return _read_reoriented(file, parser, nifti, is_label=is_label)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write in the original orientation."""
        with atomic_path(path) as temporary:
            with ITK_LOCK:
                image = SimpleITK.DICOMOrient(_image(labels, geometry), geometry[_ORIGINAL_ORIENTATION])
                if GEOMETRY not in geometry or not is_nifti(path):
                    _write(image, temporary)
                    return
                restored = SimpleITK.GetArrayFromImage(image)
                del image
            write_nifti(restored, temporary, geometry[GEOMETRY])


def reencode_volume(file: Path, target: Path) -> None:
    """Write an image in the format of another ending; values that this format cannot hold are changed.

    Raises:
        Refusal: the file is damaged.
        RuntimeError: ITK cannot read or write it.
    """
    parser, nifti = _checked(file, is_label=False)
    with ITK_LOCK:
        image = _read_image(file, parser, nifti)
        for key in image.GetMetaDataKeys():  # of the old format
            image.EraseMetaData(key)
        _write(image, target)


def _checked(file: Path, *, is_label: bool) -> tuple[str, NiftiHeader | None]:
    """Check a file; return ITK's parser for it, and the header of NIfTI files."""
    name = file.name.lower()
    ending = next((each for each in sorted(_PARSERS, key=len, reverse=True) if name.endswith(each)), None)
    if ending is None:
        raise Refusal(f"its ending is not one of {', '.join(_PARSERS)}; convert it")
    parser, check = _PARSERS[ending]
    nifti = check(file, is_label=is_label)
    if nifti is not None and nifti.is_version_2:
        raise ValueError("is NIfTI version 2, which ITK does not read; use NibabelIO, or store it as version 1")
    return parser, nifti


def _open(file: Path, parser: str) -> Any:
    """Return ITK's reader of a file, its header read."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(parser)
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader


def _read_header(file: Path, parser: str, nifti: NiftiHeader | None, *, is_label: bool) -> Header:
    reader = _open(file, parser)
    return _header(reader, reader.GetNumberOfComponents(), nifti, is_label=is_label)


def _read(file: Path, parser: str, nifti: NiftiHeader | None, *, is_label: bool) -> tuple[Header, Floats]:
    image = _read_image(file, parser, nifti)
    header = _header(image, image.GetNumberOfComponentsPerPixel(), nifti, is_label=is_label)
    return header, _array(image, header)


def _read_reoriented(file: Path, parser: str, nifti: NiftiHeader | None, *, is_label: bool) -> tuple[Header, Floats]:
    image = _read_image(file, parser, nifti)
    if image.GetDimension() != 3:
        raise Refusal(f"has {image.GetDimension()} dimensions, re-orientation needs 3; plan without --reorient")
    _require_one_value(image.GetNumberOfComponentsPerPixel(), is_label=is_label)
    orientation = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    image = SimpleITK.DICOMOrient(image, _CANONICAL_ORIENTATION)
    header = _header(image, 1, nifti, is_label=is_label)
    geometry = {**header.geometry, _ORIGINAL_ORIENTATION: orientation}
    header = replace(header, geometry=geometry)
    return header, _array(image, header)


def _is_stored_as_read(nifti: NiftiHeader, header: Header) -> bool:
    """Whether ITK returns the values of a 3D file as they are stored, but for those that are not finite."""
    return nifti.is_plain and nifti.shape == header.shape[::-1]


def _stored_voxels(file: Path, nifti: NiftiHeader) -> Floats:
    """Read the values (1, z, y, x) as ITK does, with NaN and infinite ones as 0; many threads may, ITK's may not."""
    require_complete(file, nifti)
    if is_gzip(file_start(file, 2)):
        stored = np.frombuffer(unpack(file, start=nifti.offset, num_bytes=nifti.voxel_bytes), nifti.dtype)
    else:
        stored = np.fromfile(file, nifti.dtype, math.prod(nifti.shape), offset=nifti.offset)
    stored = stored.reshape(nifti.shape[::-1])
    array: Floats = stored.astype(np.float32)
    if stored.dtype.kind == "f":
        array[~np.isfinite(stored)] = 0
    return array[None]


def _read_image(file: Path, parser: str, nifti: NiftiHeader | None) -> Any:
    """Read a file with ITK and check that it is complete."""
    reader = _open(file, parser)
    if nifti is not None:
        require_complete(file, nifti)
    if reader.GetImageIO() == _METAIMAGE:
        require_complete_metaimage(file)
    image = reader.Execute()
    if nifti is not None and is_gzip(file_start(file, 2)):
        voxels = _as_stored(SimpleITK.GetArrayViewFromImage(image), nifti)
        require_undamaged(file, voxels, num_bytes=nifti.voxel_bytes, before=nifti.offset)
    elif reader.GetImageIO() == _NRRD and (start := compressed_start(file)) is not None:
        voxels = SimpleITK.GetArrayViewFromImage(image)
        require_undamaged(file, voxels, num_bytes=voxels.nbytes, start=start)
    return image


def _as_stored(voxels: npt.NDArray[Any], nifti: NiftiHeader) -> npt.NDArray[Any]:
    """Return integers before scaling, which is many times faster than unpacking them again; others unchanged."""
    slope, intercept = nifti.scaling
    if not nifti.has_exact_integers or voxels.dtype.kind != "f" or not slope:
        return voxels
    stored: npt.NDArray[Any] = np.subtract(voxels, np.float32(intercept))
    stored /= np.float32(slope)
    np.rint(stored, out=stored)
    with np.errstate(invalid="ignore"):
        return stored.astype(nifti.dtype)


def _header(image: Any, num_components: int, nifti: NiftiHeader | None, *, is_label: bool) -> Header:
    """Return the header of an ITK image or reader: 2D gets a first axis, a fourth axis counts as channels."""
    dimension = image.GetDimension()
    _require_one_value(num_components, is_label=is_label)
    if dimension not in (2, 3, 4):
        raise Refusal(f"has {dimension} dimensions, expected 2, 3 or 4")
    size, spacing = image.GetSize(), [abs(float(extent)) for extent in image.GetSpacing()]
    if not np.isfinite([*spacing, *image.GetOrigin(), *image.GetDirection()]).all() or not all(spacing):
        raise Refusal(f"its spacing {spacing}, origin or direction is not finite; repair them")
    shape = tuple(int(extent) for extent in reversed(size[:3]))
    in_order = tuple(reversed(spacing[:3]))
    if dimension == 2:
        shape, in_order = (1, *shape), (FLAT_SPACING_FACTOR * max(in_order), *in_order)
    # A 4D image keeps the geometry of its first three axes, so that 3D predictions can be written.
    kept = min(dimension, 3)
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:kept, :kept]
    geometry = {
        "spacing": [float(extent) for extent in image.GetSpacing()[:kept]],
        "origin": [float(position) for position in image.GetOrigin()[:kept]],
        "direction": [float(cosine) for cosine in direction.ravel()],
        **({} if nifti is None else {GEOMETRY: nifti.forms}),
    }
    return Header(
        shape=shape,
        spacing=in_order,
        num_channels=size[3] if dimension == 4 else 1,
        geometry=geometry,
        hides_nonfinite=nifti is not None and image.GetPixelID() in _FLOATS,
    )


def _require_one_value(count: int, *, is_label: bool) -> None:
    if count == 1:
        return
    if is_label:
        raise Refusal(
            f"has {count} values per voxel, as label maps with overlapping segments (3D Slicer's layers) do; "
            "export a label map with one integer per voxel, without overlap"
        )
    raise Refusal(f"has {count} values per voxel; write one file per channel")


def _array(image: Any, header: Header) -> Floats:
    array: Floats = SimpleITK.GetArrayViewFromImage(image).astype(np.float32)
    return array.reshape(header.num_channels, *header.shape)


def _image(labels: LabelMap, geometry: Mapping[str, Any]) -> Any:
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    return image


def _write(image: Any, path: Path) -> None:
    """Write an image compressed; ITK reports no error if the disk becomes full within a NIfTI or GIPL file.

    Raises:
        RuntimeError: the file is shorter than the image.
    """
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    name, voxels = path.name.lower(), image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    written = path.stat().st_size
    if name.endswith(".nii.gz"):
        is_cut_off = unpacked_size(path) != (_NIFTI_HEADER_BYTES + voxels) % SIZE_WRAPS
    else:
        is_cut_off = name.endswith((".nii", ".gipl")) and written < voxels
    if is_cut_off:
        raise RuntimeError("the file is shorter than the image; is the disk full?")
