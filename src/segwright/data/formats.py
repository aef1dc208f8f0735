"""How each family of image files is read and written: one class per reader of nnU-Net, under its name (spec A 2)."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import getLogger
from math import prod
from os import SEEK_END
from pathlib import Path
from typing import Any, Protocol

import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK
import tifffile
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from PIL import Image

from segwright.core.documents import atomic_path, read_json, write_json
from segwright.core.errors import ImageError

logger = getLogger(__name__)

Floats = npt.NDArray[np.float32]
LabelMap = npt.NDArray[np.unsignedinteger[Any]]

FLAT_SPACING_FACTOR = 999.0
"""2D images get a first axis whose spacing is the largest by far (spec A 2.4, 2.7)."""

CHANNEL_SUFFIX = re.compile(r"_\d{4}$")
RGB_CHANNELS = (3, 4)

_CANONICAL_ORIENTATION = "RAS"
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_SIZE_WRAPS = 1 << 32
_NIFTI_HEADER_BYTES = 352
_LARGEST_TAIL = 1 << 16
"""Bytes that may follow the voxels without being looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known of one image file without its voxels.

    `shape` (three spatial axes) and `spacing` are in array axis order; `geometry` is the format's own and JSON.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    num_channels: int = 1
    geometry: Mapping[str, Any] = field(default_factory=dict)


class Format(Protocol):
    """One family of image files."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Lower-case endings that the automatic choice gives to this format."""

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and geometry, without the voxels where the format allows it."""

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one file as (C, *S); what is not a label map has more than one channel."""

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a label map (*S) whose geometry came from `header` or `read` of this format, atomically."""


class SimpleITKIO:
    """NIfTI, NRRD, MetaImage and GIPL through ITK; arrays are (z, y, x)."""

    endings: tuple[str, ...] = (".nii.gz", ".nrrd", ".mha", ".gipl")

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and geometry."""
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        return _itk_header(reader, reader.GetNumberOfComponents())

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one file; a 4D image is taken as channels along its last ITK axis (spec A 2.4)."""
        image = _itk_read(file)
        return _itk_volume(image, _itk_header(image, image.GetNumberOfComponentsPerPixel()))

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write compressed, in the dimension that was read."""
        with atomic_path(path) as temporary:
            _itk_write(_itk_image(labels, geometry), temporary)


class SimpleITKIOWithReorient(SimpleITKIO):
    """As `SimpleITKIO`, worked on in RAS orientation and written in the original one; chosen by name only."""

    endings = ()

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and geometry of the re-oriented image, which needs the voxels."""
        return self.read(file)[0]

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read and re-orient one 3D file."""
        image = _itk_read(file)
        if image.GetDimension() != 3:
            raise ValueError(f"has {image.GetDimension()} dimensions, re-orientation needs 3")
        orientation = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        image = SimpleITK.DICOMOrient(image, _CANONICAL_ORIENTATION)
        header = _itk_header(image, image.GetNumberOfComponentsPerPixel())
        geometry = {**header.geometry, "original_orientation": orientation}
        header = Header(shape=header.shape, spacing=header.spacing, geometry=geometry)
        return _itk_volume(image, header)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write in the original orientation."""
        image = SimpleITK.DICOMOrient(_itk_image(labels, geometry), geometry["original_orientation"])
        with atomic_path(path) as temporary:
            _itk_write(image, temporary)


class NibabelIO:
    """NIfTI through nibabel; arrays are (z, y, x), spacing comes from the header's zooms."""

    endings: tuple[str, ...] = (".nii", ".nii.gz")

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and affine."""
        return _nibabel_header(nibabel.load(file), {})

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one 3D file."""
        image = nibabel.load(file)
        return _nibabel_header(image, {}), _nibabel_array(image)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a NIfTI-1 file with the stored affine."""
        image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), np.array(geometry["affine"]))
        with atomic_path(path) as temporary:
            nibabel.save(image, temporary)


class NibabelIOWithReorient(NibabelIO):
    """As `NibabelIO`, worked on in the closest canonical (RAS+) orientation and written in the original one."""

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read shape, spacing and affine as they are after re-orientation."""
        image = nibabel.load(file)
        return _nibabel_header(nibabel.as_closest_canonical(image), {"original_affine": image.affine.tolist()})

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read and re-orient one 3D file."""
        image = nibabel.load(file)
        canonical = nibabel.as_closest_canonical(image)
        return _nibabel_header(canonical, {"original_affine": image.affine.tolist()}), _nibabel_array(canonical)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write in the original orientation, with the original affine to the last bit."""
        original = np.array(geometry["original_affine"])
        image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), np.array(geometry["affine"]))
        back = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.io_orientation(original)
        )
        restored = nibabel.Nifti1Image(np.asanyarray(image.as_reoriented(back).dataobj), original)
        with atomic_path(path) as temporary:
            nibabel.save(restored, temporary)


class Tiff3DIO:
    """Stacks in TIFF files, with the spacing in a JSON file beside them (array axis order, spec A 2.6).

    The spacing of an image is in `{case}.json`, case without the channel suffix; that of a label in
    `{file without ending}.json`.
    """

    endings: tuple[str, ...] = (".tif", ".tiff")

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read the shape of the stack and the spacing beside it."""
        with tifffile.TiffFile(file) as tiff:
            shape = tuple(int(extent) for extent in tiff.series[0].shape)
        return self._header(file, shape, is_label=is_label)

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read one stack."""
        array = _tiff_array(file)
        return self._header(file, array.shape, is_label=is_label), array[None].astype(np.float32)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a compressed stack and its spacing; the spacing first, so that no stack is ever without."""
        write_json(path.with_name(f"{path.stem}.json"), {"spacing": list(spacing)}, indent=4)
        with atomic_path(path) as temporary:
            tifffile.imwrite(temporary, labels, compression="zlib", photometric="minisblack")

    @staticmethod
    def _header(file: Path, shape: tuple[int, ...], *, is_label: bool) -> Header:
        if len(shape) != 3:
            raise ValueError(f"has {len(shape)} axes {shape}, expected a stack with 3")
        case = file.stem if is_label else CHANNEL_SUFFIX.sub("", file.stem)
        sidecar = file.with_name(f"{case}.json")
        if not sidecar.is_file():
            logger.warning('%s: no %s with {"spacing": [z, y, x]}; taking (1, 1, 1)', file, sidecar.name)
            return Header(shape=shape, spacing=(1.0, 1.0, 1.0))
        return Header(shape=shape, spacing=_sidecar_spacing(sidecar))


class NaturalImage2DIO:
    """Grey or RGB(A) pictures: PNG, BMP, 2D TIFF; spacing is always (999, 1, 1) (spec A 2.7).

    A colour palette means colours in an image and plain values in a label map.
    """

    endings: tuple[str, ...] = (".png", ".bmp", ".tif")

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read the size."""
        if _is_tiff(file):
            with tifffile.TiffFile(file) as tiff:
                return self._header(_colours_last(tuple(int(extent) for extent in tiff.series[0].shape)))
        with Image.open(file) as image:
            bands = len(_palette_mode(image)) if image.mode == "P" and not is_label else len(image.getbands())
            shape = (image.height, image.width)
            return self._header(shape if bands == 1 else (*shape, bands))

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read a picture."""
        if _is_tiff(file):
            array = _tiff_array(file)
            if _colours_last(array.shape) != array.shape:
                array = np.moveaxis(array, 0, -1)
        else:
            with Image.open(file) as image:
                is_coloured = image.mode == "P" and not is_label
                array = np.asarray(image.convert(_palette_mode(image)) if is_coloured else image)
        header = self._header(array.shape)
        channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        return header, np.ascontiguousarray(channels[:, None], dtype=np.float32)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write the only slice."""
        with atomic_path(path) as temporary:
            if _is_tiff(path):
                tifffile.imwrite(temporary, labels[0], compression="zlib", photometric="minisblack")
            else:
                Image.fromarray(labels[0]).save(temporary)

    @staticmethod
    def _header(shape: tuple[int, ...]) -> Header:
        if len(shape) == 3 and shape[-1] in RGB_CHANNELS:
            num_channels = shape[-1]
        elif len(shape) == 2:
            num_channels = 1
        else:
            raise ValueError(f"has shape {shape}, expected a grey (h, w) or RGB(A) (h, w, 3 or 4) picture")
        return Header(shape=(1, *shape[:2]), spacing=(FLAT_SPACING_FACTOR, 1.0, 1.0), num_channels=num_channels)


def nonfinite_in_nifti(file: Path) -> int:
    """Count voxels of a NIfTI file that are NaN or infinite; ITK silently reads them as 0."""
    image = nibabel.load(file)
    if image.get_data_dtype().kind != "f":
        return 0
    return int(np.count_nonzero(~np.isfinite(np.asanyarray(image.dataobj))))


def is_nifti(file: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return file.name.lower().endswith((".nii", ".nii.gz"))


def _itk_read(file: Path) -> Any:
    image = SimpleITK.ReadImage(str(file))
    if is_nifti(file):
        _require_complete_nifti(file)
    return image


def _require_complete_nifti(file: Path) -> None:
    """Refuse a NIfTI file that was cut off, which ITK would fill up with zeros without a word.

    The last four bytes of a gzip file tell its full size; only where they do not fit is the file read to its end,
    because a file of several gzip members tells the size of the last one.
    """
    try:
        image = nibabel.load(file)
        expected = image.dataobj.offset + prod(image.shape) * image.get_data_dtype().itemsize
    except (ImageFileError, HeaderDataError):
        expected = 0  # too short for a header, or a dialect that ITK alone understands
    with file.open("rb") as stream:
        is_compressed = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        found = stream.seek(-4, SEEK_END) + 4
        told = int.from_bytes(stream.read(4), "little")
    if is_compressed:
        if expected and (told - expected) % _GZIP_SIZE_WRAPS <= _LARGEST_TAIL:
            return
        with gzip.open(file) as stream:
            found = sum(map(len, iter(lambda: stream.read(1 << 20), b"")))
    if found < expected:
        raise ValueError(f"is cut off: {found} bytes of {expected}")


def _itk_header(image: Any, num_components: int) -> Header:
    """Describe an ITK image or the reader of one: 2D gets a first axis, the fourth axis counts as channels."""
    dimension = image.GetDimension()
    if num_components != 1:
        raise ValueError(f"has {num_components} values a voxel; write one file per channel")
    if dimension not in (2, 3, 4):
        raise ValueError(f"has {dimension} dimensions, expected 2, 3 or 4")
    size, spacing = image.GetSize(), [abs(float(extent)) for extent in image.GetSpacing()]
    shape = tuple(int(extent) for extent in reversed(size[:3]))
    in_order = tuple(reversed(spacing[:3]))
    if dimension == 2:
        shape, in_order = (1, *shape), (FLAT_SPACING_FACTOR * max(in_order), *in_order)
    # Of a 4D image the geometry of its first three axes is kept, so that 3D predictions can be written.
    kept = min(dimension, 3)
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:kept, :kept]
    geometry = {
        "spacing": [float(extent) for extent in image.GetSpacing()[:kept]],
        "origin": [float(position) for position in image.GetOrigin()[:kept]],
        "direction": [float(cosine) for cosine in direction.ravel()],
    }
    return Header(shape=shape, spacing=in_order, num_channels=size[3] if dimension == 4 else 1, geometry=geometry)


def _itk_volume(image: Any, header: Header) -> tuple[Header, Floats]:
    array = SimpleITK.GetArrayViewFromImage(image).astype(np.float32)
    return header, array.reshape(header.num_channels, *header.shape)


def _itk_write(image: Any, path: Path) -> None:
    """Write an image compressed; ITK says nothing where the disk is full in the middle of a NIfTI or GIPL file.

    Raises:
        RuntimeError: less was written than the image has.
    """
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    name, voxels = path.name.lower(), image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    written = path.stat().st_size
    if name.endswith(".nii.gz"):
        with path.open("rb") as stream:  # the last four bytes are the size of what was compressed
            stream.seek(-min(4, written), SEEK_END)
            is_cut_off = int.from_bytes(stream.read(), "little") != (_NIFTI_HEADER_BYTES + voxels) % _GZIP_SIZE_WRAPS
    else:
        is_cut_off = name.endswith((".nii", ".gipl")) and written < voxels
    if is_cut_off:
        raise RuntimeError("less was written than the image has; is the disk full?")


def _itk_image(labels: LabelMap, geometry: Mapping[str, Any]) -> Any:
    image = SimpleITK.GetImageFromArray(labels[0] if len(geometry["spacing"]) == 2 else labels)
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    return image


def _nibabel_header(image: Any, geometry: Mapping[str, Any]) -> Header:
    if len(image.shape) != 3:
        raise ValueError(f"has {len(image.shape)} dimensions {image.shape}, expected 3; write one file per channel")
    return Header(
        shape=tuple(int(extent) for extent in reversed(image.shape)),
        spacing=tuple(float(zoom) for zoom in reversed(image.header.get_zooms())),
        geometry={"affine": image.affine.tolist(), **geometry},
    )


def _nibabel_array(image: Any) -> Floats:
    array: Floats = np.asanyarray(image.dataobj).transpose(2, 1, 0)[None].astype(np.float32, order="C")
    return array


def _is_tiff(file: Path) -> bool:
    return file.suffix.lower() in (".tif", ".tiff")


def _tiff_array(file: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(tifffile.imread(file))
    except ValueError as error:
        # Some compressions (LZW, JPEG) need the optional imagecodecs; ITK brings its own decoders.
        if "imagecodecs" not in str(error):
            raise
        return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file), imageIO="TIFFImageIO")))


def _colours_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape after colours stored plane by plane are moved to the last axis, as nnU-Net's reader does."""
    if len(shape) == 3 and shape[-1] not in RGB_CHANNELS and shape[0] in RGB_CHANNELS:
        return (*shape[1:], shape[0])
    return shape


def _palette_mode(image: Image.Image) -> str:
    return "RGBA" if "transparency" in image.info else "RGB"


def _sidecar_spacing(sidecar: Path) -> tuple[float, ...]:
    document = read_json(sidecar)
    spacing = document.get("spacing") if isinstance(document, dict) else None
    if (
        not isinstance(spacing, list)
        or len(spacing) != 3
        or not all(isinstance(extent, int | float) and extent > 0 for extent in spacing)
    ):
        raise ImageError(f'{sidecar}: expected {{"spacing": [z, y, x]}} with three positive numbers, found {document}')
    return tuple(float(extent) for extent in spacing)
