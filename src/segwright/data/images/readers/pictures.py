"""Read and write grey and colour pictures: PNG, BMP and 2D TIFF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.files.atomic_io import atomic_path
from segwright.data.images.formats import FLAT_SPACING_FACTOR, Floats, Header, LabelMap, Refusal
from segwright.data.images.readers.limits import DEFLATE_RATIO, file_start, require_enough_bytes, wrong_format_refusal
from segwright.data.images.readers.tiff import is_tiff, tiff_array, tiff_shape, write_tiff

if TYPE_CHECKING:
    from PIL import Image

RGB_CHANNELS: Final = (3, 4)

_MAGICS: Final[Mapping[str, tuple[str, bytes]]] = {".png": ("PNG", b"\x89PNG\r\n\x1a\n"), ".bmp": ("BMP", b"BM")}
"""Format and magic bytes by file ending, so that Pillow tries only this format."""

_PNG_SIGNATURE = 8
_PNG_CHUNK_OVERHEAD = 12
"""Bytes of a chunk besides its data: length, name, checksum."""
_PNG_DEPTH = 24
"""Offset of the bit depth in a PNG file."""


class NaturalImage2DIO:
    """Grey or RGB(A) pictures: PNG, BMP, 2D TIFF; spacing is always (999, 1, 1) (nnU-Net behaviour 2.7).

    A palette image is converted to RGB(A) if it is an image; a label map keeps its palette indices. A label map that is
    grey in all its pixels but stored in colours, without transparency, is read as grey.
    """

    endings: tuple[str, ...] = (".png", ".bmp", ".tif")

    def header(self, file: Path, *, is_label: bool = False) -> Header:
        """Read the size and the number of channels."""
        if is_tiff(file):
            shape = _colours_last(tiff_shape(file, is_label=is_label))
        else:
            with _open(file, is_label=is_label) as image:
                bands = len(_palette_mode(image)) if image.mode == "P" and not is_label else len(image.getbands())
                shape = (image.height, image.width) if bands == 1 else (image.height, image.width, bands)
        return _header(_pixels(file, is_label=True).shape if is_label and len(shape) == 3 else shape)

    def read(self, file: Path, *, is_label: bool = False) -> tuple[Header, Floats]:
        """Read a picture."""
        array = _pixels(file, is_label=is_label)
        header = _header(array.shape)
        channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        return header, np.ascontiguousarray(channels[:, None], dtype=np.float32)

    def write(self, labels: LabelMap, path: Path, spacing: tuple[float, ...], geometry: Mapping[str, Any]) -> None:
        """Write a label map of one slice."""
        with atomic_path(path) as temporary:
            if is_tiff(path):
                write_tiff(labels[0], temporary)
            else:
                from PIL import Image  # other images are read and written without it

                Image.fromarray(labels[0]).save(temporary)


def write_picture(array: Floats, path: Path) -> None:
    """Write a picture (C, H, W) of whole numbers, as 8 bits per value if they fit, else as 16.

    Raises:
        ValueError: they are negative, or no whole numbers, or the format cannot hold them.
        OSError: the file cannot be written.
    """
    from PIL import Image

    largest = array.max(initial=0)
    if array.min(initial=0) < 0 or largest > np.iinfo(np.uint16).max or not np.array_equal(array, np.rint(array)):
        raise ValueError(f"values up to {largest:g}, expected whole numbers from 0 to {np.iinfo(np.uint16).max}")
    values = array.astype(np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
    Image.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)).save(path)


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether a TIFF file of this shape is a grey or RGB(A) picture, with the colour axis first or last."""
    return len(shape) == 2 or (len(shape) == 3 and _colours_last(shape)[-1] in RGB_CHANNELS)


def _pixels(file: Path, *, is_label: bool) -> npt.NDArray[Any]:
    """Return the pixels (H, W[, C]); of a label map without its colours if these are all the same."""
    if is_tiff(file):
        array = tiff_array(file, is_label=is_label)
        array = array if _colours_last(array.shape) == array.shape else np.moveaxis(array, 0, -1)
    else:
        with _open(file, is_label=is_label) as image:
            is_coloured = image.mode == "P" and not is_label
            array = np.asarray(image.convert(_palette_mode(image)) if is_coloured else image)
    return array[..., 0] if is_label and _is_grey(array) else array


def _is_grey(array: npt.NDArray[Any]) -> bool:
    """Whether all colours of a picture (H, W, C) are the same, and none of it is transparent."""
    if array.ndim != 3 or array.dtype.kind != "u":
        return False
    num_colours = {2: 1, 3: 3, 4: 3}.get(array.shape[-1], 0)
    colours, alpha = array[..., :num_colours], array[..., num_colours:]
    is_opaque = bool((alpha == np.iinfo(array.dtype).max).all())
    return num_colours > 0 and is_opaque and bool((colours == colours[..., :1]).all())


def _open(file: Path, *, is_label: bool) -> Image.Image:
    """Open a picture, after checking its format and size."""
    from PIL import Image

    kind, magic = _MAGICS.get(file.suffix.lower(), ("PNG or BMP", b"\0no picture"))
    start = file_start(file, 256)
    if not start.startswith(magic):
        raise wrong_format_refusal(start, kind)
    depth = start[_PNG_DEPTH] if kind == "PNG" and len(start) > _PNG_DEPTH else 1
    if kind == "PNG":
        _check_chunks(file)
    image: Image.Image = Image.open(file, formats=[kind])
    try:
        shape = (image.height, image.width, len(image.getbands()))
        if depth > 8 and shape[-1] > 1:
            raise Refusal(f"has {depth} bits per colour, expected 8; save it with 8 bits, or one file per channel")
        available = file.stat().st_size
        require_enough_bytes(shape, value_bytes=depth / 8, available=available, ratio=DEFLATE_RATIO, is_label=is_label)
    except BaseException:
        image.close()
        raise
    return image


def _check_chunks(file: Path) -> None:
    """Refuse a PNG file whose chunks do not fit into it; Pillow allocates memory for the lengths they state."""
    size, offset = file.stat().st_size, _PNG_SIGNATURE
    with file.open("rb") as stream:
        while offset + _PNG_CHUNK_OVERHEAD <= size:
            stream.seek(offset)
            length = int.from_bytes(stream.read(4), "big")
            is_last = stream.read(4) == b"IEND"
            offset += length + _PNG_CHUNK_OVERHEAD
            if is_last:
                return
    if offset != size:
        raise Refusal("it is cut off or damaged: a chunk extends past the end of the file; copy or download it again")


def _header(shape: tuple[int, ...]) -> Header:
    if len(shape) == 3 and shape[-1] in RGB_CHANNELS:
        num_channels = shape[-1]
    elif len(shape) == 2:
        num_channels = 1
    elif len(shape) == 3 and shape[-1] == 2:
        raise Refusal("has 2 values per pixel (grey and transparency); save it as grey without transparency")
    else:
        raise ValueError(f"has shape {shape}, expected a grey (h, w) or RGB(A) (h, w, 3 or 4) picture")
    return Header(shape=(1, *shape[:2]), spacing=(FLAT_SPACING_FACTOR, 1.0, 1.0), num_channels=num_channels)


def _colours_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with the colour axis moved from first to last, as nnU-Net's reader does."""
    if len(shape) == 3 and shape[-1] not in RGB_CHANNELS and shape[0] in RGB_CHANNELS:
        return (*shape[1:], shape[0])
    return shape


def _palette_mode(image: Image.Image) -> str:
    return "RGBA" if "transparency" in image.info else "RGB"
