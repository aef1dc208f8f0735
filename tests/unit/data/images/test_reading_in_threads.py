"""SimpleITK is called by one thread at a time; values read without it are those that it reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile

from segwright.data.images.image_io import read_header, read_images, write_labels
from segwright.data.images.readers.itk import SimpleITKIO

SHAPE = (5, 4, 3)
TYPES = ("u1", "i1", "<i2", ">i2", "<u2", "<i4", ">u4", "<i8", "<u8", "<f4", ">f4", "<f8")


class OneAtATime:
    """Counts the threads that are in any of the wrapped functions at once."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.most, self.calls = 0, 0
        self.lock = threading.Lock()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                self.inside.append(threading.get_ident())
                self.calls += 1
                self.most = max(self.most, len(set(self.inside)))
            time.sleep(0.002)
            try:
                return function(*args, **kwargs)
            finally:
                with self.lock:
                    self.inside.remove(threading.get_ident())

        return wrapped


def test_simpleitk_is_called_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = SimpleITK.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(SHAPE))
    files = []
    for index, ending in enumerate(("nii.gz", "nrrd", "mha", "gipl") * 3):
        files.append((tmp_path / f"{index}_0000.{ending}", "SimpleITKIO"))
        SimpleITK.WriteImage(image, str(files[-1][0]))
    for index in range(3):
        files.append((tmp_path / f"r{index}_0000.nii.gz", "SimpleITKIOWithReorient"))
        SimpleITK.WriteImage(image, str(files[-1][0]))
        files.append((tmp_path / f"t{index}_0000.tif", "Tiff3DIO"))
        SimpleITK.WriteImage(SimpleITK.Cast(image, SimpleITK.sitkUInt8), str(files[-1][0]), imageIO="TIFFImageIO")
        files[-1][0].with_name(f"t{index}.json").write_text('{"spacing": [1, 1, 1]}')

    def no_codec(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffFile, "asarray", no_codec)
    count = OneAtATime()
    for name in ("ReadImage", "WriteImage", "GetImageFromArray", "DICOMOrient", "GetArrayViewFromImage"):
        monkeypatch.setattr(SimpleITK, name, count.wrap(getattr(SimpleITK, name)))
    for name in ("__init__", "ReadImageInformation", "Execute", "GetSize", "GetDirection"):
        monkeypatch.setattr(SimpleITK.ImageFileReader, name, count.wrap(getattr(SimpleITK.ImageFileReader, name)))

    def read_and_write(job: tuple[Path, str]) -> None:
        file, reader = job
        read_header(file, reader)
        volume = read_images([file], reader)
        if reader != "Tiff3DIO":
            label = np.zeros(volume.array.shape[1:], np.uint8)
            write_labels(label, file.with_name(f"label of {file.name}"), volume.properties, reader)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read_and_write, files))
    assert count.calls > 100
    assert count.most == 1


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", TYPES)
def test_unscaled_nifti_has_the_values_that_itk_reads(tmp_path: Path, dtype: str, ending: str) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE) * 1000
    if np.dtype(dtype).kind == "f":
        values[0, 0] = [np.nan, np.inf, -np.inf]
        if dtype == "<f8":
            values[1, 0, 0] = 1e60
    with np.errstate(invalid="ignore", over="ignore"):
        stored = np.abs(values).astype(dtype) if np.dtype(dtype).kind == "u" else values.astype(dtype)
        header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
        header.set_data_dtype(dtype)
        file = tmp_path / f"image{ending}"
        nibabel.save(nibabel.Nifti1Image(stored, np.diag([1, 2, 3, 1]), header), file)
        expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).astype(np.float32)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(SimpleITK.ImageFileReader, "Execute", None)  # the voxels are read without ITK
            _, array = SimpleITKIO().read(file)
    assert array.shape == (1, *SHAPE[::-1])
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[0], expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 6, 1), (4, 5, 6, 2)])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -3), (0, 7), (1, 7)])
def test_scaled_and_other_shapes_have_the_values_that_itk_reads(
    tmp_path: Path, shape: tuple[int, ...], slope: float, intercept: float
) -> None:
    file = tmp_path / "image.nii.gz"
    image = nibabel.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4))
    image.header.set_slope_inter(slope or 1, intercept)
    nibabel.save(image, file)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file), imageIO="NiftiImageIO")).astype(np.float32)
    _, array = SimpleITKIO().read(file)
    np.testing.assert_array_equal(array.reshape(expected.shape), expected)
