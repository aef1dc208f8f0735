"""Headers are checked before a library sees a file: sizes, data in other files, values that are no single number."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from segwright.core.errors import ImageError
from segwright.data.images.image_io import RefusedError, choose_reader, read_header, read_images, read_label
from segwright.data.images.readers.nifti import NibabelIO

NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nBinaryData = True\n"
LOCAL = "ElementDataFile = LOCAL\n"
VOXELS = bytes(64)


def nifti(**fields: Any) -> bytes:
    """Return a NIfTI-1 file of 4 x 4 x 4 bytes with some fields of its header changed."""
    header = np.zeros((), nibabel.nifti1.header_dtype)
    values = {
        "sizeof_hdr": 348,
        "dim": [3, 4, 4, 4, 1, 1, 1, 1],
        "datatype": 2,
        "bitpix": 8,
        "pixdim": 1,
        "magic": b"n+1",
    }
    for name, value in {**values, "vox_offset": 352, **fields}.items():
        header[name] = value
    return header.tobytes() + bytes(4) + VOXELS


def nifti_with_extensions(size: int, count: int) -> bytes:
    extensions = struct.pack("<ii", size, 4) * count
    header = nifti(vox_offset=352 + 16 * (len(extensions) // 16 + 1))[:348]
    return header + b"\1\0\0\0" + extensions + bytes(16) + VOXELS


def tiff(*, compression: int = 1, size: int = 2**31, strip: int = 64, at: int = 150) -> bytes:
    tags = [(256, 4, size), (257, 4, size), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, at)]
    tags += [(277, 3, 1), (278, 4, size), (279, 4, strip)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(204)


def _name(value: object) -> str | None:
    return "content" if isinstance(value, bytes) or "\n" in str(value) else None


def png(width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", start), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture
def forbid_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every library fail that would read an image."""

    def called(*_: object, **__: object) -> None:
        pytest.fail("a library saw the file")

    monkeypatch.setattr(SimpleITK, "ImageFileReader", called)
    monkeypatch.setattr(SimpleITK, "ReadImage", called)
    monkeypatch.setattr(nibabel.Nifti1Image, "load", called)
    monkeypatch.setattr(nibabel.Nifti2Image, "load", called)
    monkeypatch.setattr(Image, "open", called)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nifti(dim=[3, 1300, 1300, 1300, 1, 1, 1, 1]), "size 1300 x 1300 x 1300"),
        (nifti(dim=[3, 999, 999, 999, 1, 1, 1, 1]), "cut off or damaged: its header says size 999 x 999 x 999"),
        (nifti(dim=[7] + [32767] * 7), "values per voxel"),
        (nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "more than 2147483648 values"),
        (nifti(dim=[3, 0, 4, 4, 1, 1, 1, 1]), "size 0 x 4 x 4; every extent must be 1 or more"),
        (nifti(dim=[3, -4, 4, 4, 1, 1, 1, 1]), "every extent must be 1 or more"),
        (nifti(dim=[0, 4, 4, 4, 1, 1, 1, 1]), "says 0 axes"),
        (nifti(dim=[5, 4, 4, 4, 1, 3, 1, 1]), "has 3 values per voxel .* write one file per channel"),
        (nifti(pixdim=float("nan")), "spacings of .* expected finite numbers above 0"),
        (nifti(pixdim=0), "spacings of .* expected finite numbers above 0"),
        (nifti(sform_code=1, srow_x=float("inf")), "sform holds .* expected finite numbers"),
        (nifti(qform_code=1, quatern_b=float("nan")), "qform holds .* expected finite numbers"),
        (nifti(scl_slope=float("inf")), "scl_slope is infinite"),
        *((nifti(vox_offset=offset), "vox_offset is") for offset in (float("nan"), 0, -1, 348, 1e9)),
        (nifti(datatype=128), "has 3 values per voxel .*RGB.*; write one file per channel"),
        (nifti(datatype=2304), "has 4 values per voxel .*RGBA.*; write one file per channel"),
        *((nifti(datatype=code), "holds complex numbers .*magnitude") for code in (32, 1792, 2048)),
        (nifti(datatype=77), "datatype 77 is unknown to NIfTI"),
        (nifti(magic=b"ni1"), r"header of a pair \(.hdr and .img\)"),
        (nifti(magic=b"xxx"), "NIfTI header is cut off or damaged"),
        (nifti()[:200], "NIfTI header is cut off or damaged"),
        (nifti_with_extensions(16, 200_000), "extension 4097 of its header"),
        (nifti_with_extensions(-16, 1), "extension 1 of its header has a size of -16"),
    ],
    ids=_name,
)
@pytest.mark.usefixtures("forbid_libraries")
def test_nifti_header_that_cannot_be_right_is_refused(
    tmp_path: Path, content: bytes, message: str, ending: str, reader: str
) -> None:
    file = tmp_path / f"image{ending}"
    file.write_bytes(gzip.compress(content, 1) if ending == ".nii.gz" else content)

    with pytest.raises(RefusedError, match=rf"image{ending}: cannot be read \(.*{message}"):
        read_images([file], reader)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((f"i{end}", "", "is empty") for end in (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")),
        ("i.nii.gz", "version https://git-lfs.github.com/spec/v1\noid sha256:a", "Git LFS.*git lfs pull"),
        ("i.nrrd", "/annex/objects/SHA256E-s1--abc.nrrd\n", "git-annex.*git annex get"),
        ("i.nii", "<!DOCTYPE html><html>403", "web page"),
        ("i.mha", "<html>403 Forbidden</html>", "web page"),
        ("i.nii.gz", NRRD, "is an NRRD file inside; name it .nrrd"),
        ("i.nrrd", META, "is a MetaImage file inside; name it .mha"),
        ("i.mha", NRRD, "is an NRRD file inside"),
        ("i.nii.gz", b"\0" * 128 + b"DICM", "is a DICOM file"),
        ("i.nii", gzip.compress(nifti()), "compressed with gzip; rename it to .nii.gz"),
        ("i.nii.gz", gzip.compress(b"{}" * 200), r"is a text document \(JSON\)"),
        ("i.nii.gz", gzip.compress(nifti())[:-30], "cut off or damaged"),
        ("i.nii.gz", b"\x1f\x8b\x08\x08" + b"x" * 100_000, "name in its gzip header has no end"),
        ("i.nrrd", NRRD, "has no end"),
        ("i.nrrd", NRRD + "\n", "cut off or damaged"),
        *(
            ("i.nrrd", f"{NRRD}{line}", r"keeps its voxels in another file \(data file\)")
            for line in (
                "data file: /etc/passwd\n\n",
                "data file: LIST\n",
                "Data File: x%s%n.raw 0 9 1\n\n",
                "datafile:x",
            )
        ),
        ("i.nhdr", NRRD + "data file: i.raw\n", "keeps its voxels in another file"),
        ("i.nrrd", NRRD + "content: a\rdata file: x\n\n", "control characters"),
        ("i.nrrd", NRRD + "space: " + "(" * 3000 + "\n\n", "the invalid line 'space:"),
        ("i.nrrd", NRRD.replace("4 4 4", "1300 1300 1300") + "\n", "size 1300 x 1300 x 1300"),
        ("i.nrrd", NRRD.replace("4 4 4", "4 -4 4") + "\n", "every extent must be 1 or more"),
        ("i.nrrd", NRRD + 'space units: "um" "um" "um"\n\n', "lengths in 'um', expected mm"),
        ("i.nrrd", NRRD + 'units: "" "cm" ""\n\n', "lengths in 'cm', expected mm"),
        ("i.nrrd", NRRD + "space units: \u00b5m \u00b5m \u00b5m\n\n", "expected mm"),
        ("i.nrrd", NRRD.replace("4 4 4", "4 4"), "has no end"),
        ("i.nrrd", NRRD.replace("4 4 4", "4 4") + "\n", "dimension 3 with sizes 4 4"),
        ("i.nrrd", NRRD.replace("uint8", "block") + "block size: 9\n\n", "type block"),
        ("i.nrrd", NRRD.replace("raw", "bzip2") + "\n", "encoded as bzip2"),
        *(
            ("i.mha", f"{META}{line}\n", r"keeps its voxels in another file \(ElementDataFile\)")
            for line in (
                *("ElementDataFile = /etc/passwd", "ElementDataFile = ../i.raw", "ElementDataFile = LIST"),
                *("ElementDataFile = x%s%n.raw 0 9 1", "ElementDataFile = LOCAL x", f"{LOCAL}ElementDataFile = x"),
            )
        ),
        ("i.mhd", META + "ElementDataFile = i.raw\n", "keeps its voxels in another file"),
        ("i.mha", META + "Comment = ElementDataFile = LOCAL\nElementDataFile = x\n", "has no end"),
        ("i.mha", META.replace("4 4 4", "1300 1300 1300") + LOCAL, "size 1300 x 1300 x 1300"),
        ("i.mha", META.replace("NDims = 3", "NDims = 99") + LOCAL, "NDims 99 with DimSize 4 4 4"),
        ("i.mha", META + "ElementSpacing = 1 1\n" + LOCAL, "expected 3 numbers"),
        ("i.mha", META + "TransformMatrix = 1 0 1e308 0 1 0 0 0 1\n" + LOCAL, "expected numbers below 1e10"),
        ("i.mha", META + "ElementNumberOfChannels = 2000000000\n" + LOCAL, "more than 2147483648 values"),
        ("i.mha", META + "CompressedData = True\nCompressedDataSize = 99999999\n" + LOCAL, "cut off"),
        ("i.gipl", struct.pack(">5H", 60000, 60000, 60000, 1, 8).ljust(252, b"\0") + b"\xef\xff\xe9\xb0", "size 60000"),
        ("i.gipl", struct.pack(">5H", 4, 4, 4, 1, 9).ljust(252, b"\0") + b"\xef\xff\xe9\xb0", "type 9"),
        ("i.vtk", "# vtk DataFile Version 3.0", "its ending is not one of"),
    ],
    ids=_name,
)
@pytest.mark.usefixtures("forbid_libraries")
def test_file_that_is_no_image_of_its_own_is_refused(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(RefusedError, match=rf"{name}: cannot be read \(.*{message}"):
        read_header(tmp_path / name, "SimpleITKIO")


@pytest.mark.parametrize(
    "fields",
    [
        'space: LPS\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace units: "mm" "mm" "mm"',
        'spacings: 1 2 3\nunits: "mm" "mm" "???"',
    ],
)
def test_nrrd_in_mm_is_read(tmp_path: Path, fields: str) -> None:
    (tmp_path / "i.nrrd").write_bytes(f"{NRRD}{fields}\n\n".encode() + VOXELS)
    assert read_header(tmp_path / "i.nrrd", "SimpleITKIO").spacing == (3, 2, 1)


def png_with_text(text: bytes) -> bytes:
    whole = png(8, 8, bytes(72))
    chunk = b"zTXt" + b"a\0\0" + zlib.compress(text)
    return whole[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.png", b"", "is empty"),
        ("i.png", b'<svg xmlns="x"/>', "is an SVG drawing"),
        ("i.png", b"\xff\xd8\xff\xe0JFIF", "is a JPEG picture inside"),
        ("i.png", b"%!PS-Adobe-3.0 EPSF-3.0", "no PNG header"),
        ("i.bmp", png(8, 8, bytes(72)), "is a PNG picture inside"),
        ("i.png", png(9000, 9000, b""), "cut off or damaged: its header says size 9000 x 9000"),
        ("i.png", png(2**31 - 1, 2**31 - 1, b""), "decompression bomb"),
        ("i.png", png(0, 0, b""), "cannot identify"),
        ("i.png", png(8, 8, bytes(72))[:-20], "cut off or damaged"),
        ("i.png", png_with_text(bytes(2**22)), "(?i:too large)"),
        ("i.png", png(8, 8, bytes(49 * 8), depth=16, colour=2), "has 16 bits per colour"),
        ("i.png", png(8, 8, bytes(17 * 8), colour=4), "grey and transparency"),
        ("i.tif", tiff(), "size 2147483648 x 2147483648"),
        ("i.tif", tiff(compression=8, size=40000), "cut off or damaged"),
        ("i.tif", tiff(size=8, strip=2**31), "larger than the file"),
        ("i.tif", tiff()[:118], "cut off within its list of pages"),
        ("i.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "list of pages does not end"),
        (
            "i.tif",
            tiff(compression=8, size=8, strip=200_000, at=400).ljust(400, b"\0") + zlib.compress(bytes(2**28), 9),
            "unpacks to more",
        ),
    ],
    ids=_name,
)
def test_picture_that_cannot_be_right_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ImageError, match=rf"{name}: cannot be read \(.*{message}"):
        read_images([tmp_path / name], "NaturalImage2DIO")


def test_image_in_several_tiff_files_is_refused(tmp_path: Path) -> None:
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(("i_0000.tif", "/etc/passwd"))
    )
    pixels = (
        f'<Pixels ID="p" DimensionOrder="XYZCT" Type="uint8" SizeX="8" SizeY="8" SizeZ="2" SizeC="1" SizeT="1">{planes}'
    )
    text = f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="i">{pixels}'
    text += "</Pixels></Image></OME>"
    tifffile.imwrite(tmp_path / "i_0000.tif", np.zeros((8, 8), np.uint8), description=text, metadata=None)

    with pytest.raises(ImageError, match="one of several files of an OME-TIFF"):
        read_header(tmp_path / "i_0000.tif", "Tiff3DIO")


@pytest.mark.slow
@pytest.mark.parametrize("is_label", [False, True])
def test_bomb_of_zeros_is_refused_before_memory_is_taken(tmp_path: Path, *, is_label: bool) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = packer.compress(nifti(dim=[3, 512, 1024, 1024, 1, 1, 1, 1])[:352])
    content += b"".join(packer.compress(bytes(2**24)) for _ in range(32)) + packer.flush()
    (tmp_path / "bomb.nii.gz").write_bytes(content)

    with pytest.raises(ImageError, match="would unpack to 536870912, as only a blank image does"):
        (read_label if is_label else lambda file, reader: read_images([file], reader))(
            tmp_path / "bomb.nii.gz", "SimpleITKIO"
        )


def test_image_of_gigabytes_in_a_tiny_file_is_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)  # some 230-fold, as masks are
    content = packer.compress(nifti(dim=[3, 800, 800, 500, 1, 1, 1, 1], datatype=16, bitpix=32)[:352])
    (tmp_path / "a.nii.gz").write_bytes(content + packer.flush() + bytes((2 << 20) - 5000))

    with pytest.raises(ImageError, match="would unpack to 1280000000, as only a blank image does"):
        read_header(tmp_path / "a.nii.gz", "NibabelIO")
    assert read_header(tmp_path / "a.nii.gz", "NibabelIO", is_label=True).shape == (500, 800, 800)


def test_what_lies_elsewhere_is_refused_before_its_voxels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("a_0000", 4), ("a_0001", 70), ("a", 70)):
        voxels = np.random.default_rng(0).bytes(size * 32 * 32)
        content = nifti(dim=[3, size, 32, 32, 1, 1, 1, 1])[:352] + voxels
        (tmp_path / f"{name}.nii.gz").write_bytes(gzip.compress(content))
    like = read_header(tmp_path / "a_0000.nii.gz", "NibabelIO")
    whole = NibabelIO.read

    def read(self: NibabelIO, file: Path, *, is_label: bool = False) -> object:
        assert file.name == "a_0000.nii.gz"
        return whole(self, file, is_label=is_label)

    monkeypatch.setattr(NibabelIO, "read", read)
    with pytest.raises(ImageError, match="a_0001"):
        read_images([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"], "NibabelIO")
    with pytest.raises(ImageError, match="its image"):
        read_label(tmp_path / "a.nii.gz", "NibabelIO", like=like)


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 6, 9])
def test_blank_label_map_of_a_ct_is_no_bomb(tmp_path: Path, level: int) -> None:
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    content = packer.compress(nifti(dim=[3, 512, 512, 400, 1, 1, 1, 1], datatype=4, bitpix=16)[:352])
    content += b"".join(packer.compress(bytes(512 * 512 * 2 * 20)) for _ in range(20)) + packer.flush()
    (tmp_path / "blank.nii.gz").write_bytes(content)

    assert read_header(tmp_path / "blank.nii.gz", "NibabelIO", is_label=True).shape == (400, 512, 512)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "is a folder"),
        (_fifo, "is a pipe, socket or device"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe, socket or device"),
        (lambda path: path.symlink_to("/nowhere/image"), "is a link to /nowhere/image, which does not exist"),
    ],
)
@pytest.mark.parametrize("name", ["i.nii.gz", "i.mha", "i.png", "i.tif"])
def test_what_is_no_file_is_never_opened(tmp_path: Path, name: str, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / name)

    with pytest.raises(ImageError, match=f"{name}: {message}"):
        read_header(tmp_path / name, choose_reader(Path(name).suffix.replace(".gz", ".nii.gz"), None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:-6], "cut off or damaged"),
        (lambda packed: packed[:-1] + bytes([packed[-1] ^ 1]), "damaged"),
        (lambda packed: zlib.compress(VOXELS[1:]), "63 bytes of 64"),
        (lambda packed: zlib.compress(VOXELS + b"1"), "65 bytes of 64"),
    ],
    ids=["cut", "flipped", "short", "long"],
)
def test_compressed_metaimage_unpacks_to_its_voxels_or_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    packed = zlib.compress(VOXELS)
    for name, content in (("good", packed), ("bad", change(packed))):
        head = f"{META}CompressedData = True\nCompressedDataSize = {len(content)}\n{LOCAL}"
        (tmp_path / f"{name}.mha").write_bytes(head.encode() + content)

    assert not read_images([tmp_path / "good.mha"], "SimpleITKIO").array.any()
    with pytest.raises(ImageError, match=message):
        read_images([tmp_path / "bad.mha"], "SimpleITKIO")


def test_refusal_ends_the_search_for_a_reader(tmp_path: Path) -> None:
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(nifti(datatype=128)))

    with pytest.raises(ImageError, match="has 3 values per voxel .* one file per channel"):
        choose_reader(".nii.gz", tmp_path / "c.nii.gz")


def test_file_that_itk_cannot_read_is_left_to_the_next_reader(tmp_path: Path) -> None:
    sheared = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None)
    image.set_sform(sheared, code=1)
    image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "sheared.nii.gz")
    nibabel.save(nibabel.Nifti2Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "second.nii.gz")

    assert choose_reader(".nii.gz", tmp_path / "sheared.nii.gz") == "NibabelIO"
    assert choose_reader(".nii.gz", tmp_path / "second.nii.gz") == "NibabelIO"


def test_layers_of_overlapping_segments_are_named(tmp_path: Path) -> None:
    layers = SimpleITK.GetImageFromArray(np.zeros((3, 4, 5, 2), np.uint8), isVector=True)
    SimpleITK.WriteImage(layers, str(tmp_path / "layers.nrrd"))

    with pytest.raises(ImageError, match="has 2 values per voxel, as label maps with overlapping segments"):
        read_label(tmp_path / "layers.nrrd", "SimpleITKIO")
