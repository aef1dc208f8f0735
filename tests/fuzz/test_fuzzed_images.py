"""Damaged image files of every format are read or refused, never more."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from segwright.data.images.image_io import read_header, read_images, read_label
from tests.fuzz.isolation import Target, fuzz
from tests.fuzz.mutation import MAX_EDITS, Mutator, mutate_bytes, mutate_text

_PNG_START = 8
_STACK = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def _reader(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        read_header(path, name)
        is_label = path.name.startswith("label")
        return read_label(path, name) if is_label else read_images([path], name, find_nonfinite=True)

    return read


def _make_nifti(folder: Path) -> Sequence[Path]:
    affine = np.array([[0, 0, 2.5, -5], [0.9, 0, 0, 4.5], [0, -0.8, 0, 3], [0, 0, 0, 1]])
    files = [folder / name for name in ("i.nii.gz", "plain.nii", "extended.nii", "label.nii.gz", "float.nii.gz")]
    for file in files:
        array = _STACK.astype(np.float32) if file.name.startswith("float") else _STACK % 3
        image = nibabel.Nifti1Image(array, affine)
        if file.name.startswith("extended"):
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a comment"))
            image.header.set_slope_inter(0.5, 3.0)
        nibabel.save(image, file)
    return files


def _make_both_nifti(folder: Path) -> Sequence[Path]:
    files = [*_make_nifti(folder), folder / "second.nii.gz"]
    nibabel.save(nibabel.Nifti2Image(_STACK, np.diag([2.0, 3.0, 4.0, 1.0])), files[-1])
    return files


def _make_flat_nifti(folder: Path) -> Sequence[Path]:
    files = [*_make_nifti(folder), folder / "flat.nii.gz", folder / "four.nii.gz"]
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(_STACK[0]), str(files[-2]))
    four = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(_STACK)] * 2)
    SimpleITK.WriteImage(four, str(files[-1]))
    return files


def _make_itk(*endings: str) -> Callable[[Path], Sequence[Path]]:
    def make(folder: Path) -> Sequence[Path]:
        image = SimpleITK.GetImageFromArray(_STACK)
        files = []
        for ending in endings:
            for name in ("i", "packed", "label"):
                files.append(folder / f"{name}{ending}")
                SimpleITK.WriteImage(image, str(files[-1]), useCompression=name == "packed")
            files.append(folder / f"flat{ending}")
            SimpleITK.WriteImage(image[:, :, 1], str(files[-1]))
        return files

    return make


def _make_stacks(folder: Path) -> Sequence[Path]:
    files = []
    kinds = {"plain": {}, "zlib": {"compression": "zlib"}, "imagej": {"imagej": True}, "ome": {"ome": True}}
    kinds |= {"big": {"bigtiff": True}, "tiles": {"tile": (16, 16), "compression": "zlib"}}
    for name, options in kinds.items():
        files.append(folder / f"{name}_0000.tif")
        tifffile.imwrite(files[-1], _STACK.astype(np.uint16), photometric="minisblack", **options)
        (folder / f"{name}.json").write_text(json.dumps({"spacing": [3.0, 0.5, 0.25]}))
    pages = [Image.fromarray(plane.astype(np.uint8)) for plane in _STACK]
    for name in ("tiff_lzw", "packbits"):
        files.append(folder / f"{name}_0000.tif")
        pages[0].save(files[-1], save_all=True, append_images=pages[1:], compression=name)
    return files


def _make_pictures(folder: Path) -> Sequence[Path]:
    grey = Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(64, 48))
    palette = grey.convert("P")
    images = {"grey.png": grey, "rgb.png": grey.convert("RGB"), "palette.png": palette, "binary.png": grey.convert("1")}
    images |= {"deep.png": Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))}
    images |= {"grey.bmp": grey, "rgb.bmp": grey.convert("RGB"), "palette.bmp": palette, "label.png": grey}
    for name, image in images.items():
        image.save(folder / name)
    tifffile.imwrite(folder / "flat.tif", np.arange(60, dtype=np.float32).reshape(6, 10))
    tifffile.imwrite(folder / "colours.tif", np.zeros((6, 10, 3), np.uint8), photometric="rgb", compression="zlib")
    return [*(folder / name for name in images), folder / "flat.tif", folder / "colours.tif"]


def mutate_packed(data: bytes, rng: Random) -> bytes:
    """Damage what a gzip file holds, or the file itself."""
    if not data.startswith(b"\x1f\x8b") or rng.random() < 0.3:
        return mutate_bytes(data, rng)
    return gzip.compress(mutate_bytes(gzip.decompress(data), rng), rng.randint(1, 9))


def mutate_header_text(data: bytes, rng: Random) -> bytes:
    """Damage text headers: numbers, tokens that have a meaning, whole lines."""
    for _ in range(rng.randint(1, MAX_EDITS // 2)):
        lines = data.split(b"\n")
        head = rng.randrange(min(len(lines), 16))
        action = rng.random()
        if action < 0.2:
            lines.insert(head, rng.choice(_LINES))
        elif action < 0.3:
            lines.insert(head, rng.choice(lines[:16]))
        elif action < 0.4:
            del lines[head]
        elif action < 0.5:
            key, mark, _ = lines[head].partition(rng.choice((b":", b"=")))
            lines[head] = key + mark + b" " + rng.choice(_TEXTS)
        data = b"\n".join(lines)
    return mutate_text(data, rng) if rng.random() < 0.7 else data


def mutate_picture(data: bytes, rng: Random) -> bytes:
    """Damage a chunk of a PNG file and mend its checksum, or any other file as bytes."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.3:
        return mutate_bytes(data, rng)
    chunks, place = [], _PNG_START
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    if kind == b"IDAT" and rng.random() < 0.5:
        content = zlib.compress(mutate_bytes(zlib.decompress(content), rng))
    else:
        content = mutate_bytes(content, rng)
    chunks[index] = (rng.choice((kind, kind, kind, b"tRNS", b"acTL", b"iCCP", b"zTXt", b"PLTE")), content)
    if rng.random() < 0.1:
        chunks.insert(index, rng.choice(chunks))
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:_PNG_START] + b"".join(packed)


_LINES = (
    *(
        b"data file: /etc/passwd",
        b"data file: LIST",
        b"data file: x%s%n.raw 0 9 1",
        b"DataFile: x.raw",
        b"encoding: hex",
    ),
    *(b"ElementDataFile = /etc/passwd", b"ElementDataFile = LIST", b"ElementDataFile = x%s%n.raw 0 9 1", b"", b"\r"),
    *(b"HeaderSize = -1", b"CompressedData = True", b"BinaryData = False", b"CompressedDataSize = 99999999999"),
    *(
        b"byte skip: -1",
        b"line skip: 999999999",
        b"kinds: list domain domain",
        b"key:=" + b"v" * 5000,
        b"encoding: ascii",
    ),
    *(b"space directions: none (1,0,0) (0,1,0)", b"space: left-posterior-superior", b"ElementNumberOfChannels = 3"),
)
_TEXTS = (
    *(b"", b"nan nan nan", b"inf 1 1", b"0 0 0", b"-1 -1 -1", b"1300 1300 1300", b"32767 32767 32767", b"1e308 1 1"),
    *(b"99999999999999999999 1 1", b"1", b"16", b"MET_DOUBLE", b"MET_OTHER", b"block", b"double", b"LIST", b"True"),
)


def _target(make: Callable[[Path], Sequence[Path]], reader: str, mutate: Mutator) -> Target:
    return Target(make=make, read=_reader(reader), mutate=mutate)


TARGETS = {
    "nifti-itk": _target(_make_flat_nifti, "SimpleITKIO", mutate_packed),
    "nifti-itk-turned": _target(_make_nifti, "SimpleITKIOWithReorient", mutate_packed),
    "nifti-nibabel": _target(_make_both_nifti, "NibabelIO", mutate_packed),
    "nifti-nibabel-turned": _target(_make_both_nifti, "NibabelIOWithReorient", mutate_packed),
    "nrrd": _target(_make_itk(".nrrd"), "SimpleITKIO", mutate_header_text),
    "metaimage": _target(_make_itk(".mha"), "SimpleITKIO", mutate_header_text),
    "gipl": _target(_make_itk(".gipl"), "SimpleITKIO", mutate_bytes),
    "tiff": _target(_make_stacks, "Tiff3DIO", mutate_bytes),
    "pictures": _target(_make_pictures, "NaturalImage2DIO", mutate_picture),
}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_images_are_read_or_refused(name: str, fuzz_count: int, fuzz_seed: int) -> None:
    outcome = fuzz(f"tests.fuzz.test_fuzzed_images:{name}", count=fuzz_count, seed=fuzz_seed)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert outcome.tried == fuzz_count
