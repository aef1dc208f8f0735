"""Compressed images that were damaged: the checksum of gzip is compared, for ITK and nibabel don't."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK

from segwright.core.errors import ImageError
from segwright.data.images.image_io import read_images, read_label, write_labels
from segwright.data.images.readers import gzip_content

ARRAY = np.random.default_rng(0).integers(0, 3, (9, 8, 7)).astype(np.uint8)
FLIPS = 60
NIBABEL = ("NibabelIO", "NibabelIOWithReorient")
ITK = ("SimpleITKIO", "SimpleITKIOWithReorient")


def written(file: Path, array: np.ndarray, *, slope: float = 1.0, intercept: float = 0.0) -> Path:
    """Write (z, y, x) as NIfTI with a scaling in its header, or as NRRD."""
    if file.suffix == ".nrrd":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file), useCompression=True)
        return file
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(file)
    return file


@pytest.mark.parametrize(
    ("name", "reader"), [*(("a.nii.gz", each) for each in (*ITK, *NIBABEL)), ("a.nrrd", "SimpleITKIO")]
)
def test_a_flipped_bit_of_the_voxels_is_never_read(tmp_path: Path, name: str, reader: str) -> None:
    file = written(tmp_path / name, ARRAY)
    right, whole = read_label(file, reader), file.read_bytes()
    start = whole.index(b"\x1f\x8b") + 10
    for bit in np.random.default_rng(0).integers(8 * start, 8 * len(whole), FLIPS).tolist():
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            found = read_label(file, reader)
        except ImageError:
            continue
        np.testing.assert_array_equal(found.array, right.array)
        assert found.properties == right.properties


@pytest.mark.parametrize("reader", [*ITK, *NIBABEL])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<u2", "<i4", "<f4", "<f8"])
@pytest.mark.parametrize("scaling", [(1.0, 0.0), (0.5, -1024.0), (0.1, 3.0), (np.nan, np.nan)])
def test_undamaged_voxels_of_every_type_are_read(
    tmp_path: Path, reader: str, dtype: str, scaling: tuple[float, float]
) -> None:
    slope, intercept = scaling
    file = written(tmp_path / "a.nii.gz", ARRAY.astype(dtype), slope=slope, intercept=intercept)
    factor, added = (1.0, 0.0) if np.isnan(slope) else scaling
    expected = ARRAY.astype(np.float32) * np.float32(factor) + np.float32(added)
    found = read_images([file], reader).array[0]
    np.testing.assert_allclose(np.sort(found, axis=None), np.sort(expected, axis=None), rtol=1e-6)


def test_whole_numbers_are_compared_without_unpacking_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Once(gzip.GzipFile):
        def seek(self, *_: object) -> int:
            raise AssertionError("unpacked again")

    monkeypatch.setattr(gzip_content, "gzip", SimpleNamespace(GzipFile=Once, BadGzipFile=gzip.BadGzipFile))
    for reader in ("SimpleITKIO", "NibabelIO"):
        for dtype, scaling in (("u1", (1.0, 0.0)), ("i2", (1.0, -1024.0)), ("u2", (0.1, 3.0)), ("f4", (1.0, 0.0))):
            slope, intercept = scaling
            file = written(tmp_path / "a.nii.gz", ARRAY.astype(dtype), slope=slope, intercept=intercept)
            read_images([file], reader)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_several_members_and_what_follows_them_are_read(tmp_path: Path, reader: str) -> None:
    file = written(tmp_path / "a.nii.gz", ARRAY)
    content = gzip.decompress(file.read_bytes())
    several = gzip.compress(content[:400]) + gzip.compress(content[400:])
    for more in (b"", b"\0" * 8):
        file.write_bytes(several + more)
        np.testing.assert_array_equal(read_label(file, reader).array[0], ARRAY)
    file.write_bytes(several + b"something else")
    gzip_content.require_undamaged(file, ARRAY, num_bytes=ARRAY.size, before=352)
    damaged = bytearray(several)
    damaged[-6] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ImageError, match="damaged .*copy or download it again"):
        read_label(file, reader)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    volume = read_label(written(tmp_path / "a.nii.gz", ARRAY), "NibabelIO")
    write_labels(ARRAY, tmp_path / "b.nii.gz", volume.properties, "NibabelIO")
    np.testing.assert_array_equal(read_label(tmp_path / "b.nii.gz", "SimpleITKIO").array[0], ARRAY)
    assert gzip_content.unpacked_size(tmp_path / "b.nii.gz") == 352 + ARRAY.size
