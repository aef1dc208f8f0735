"""Folders of images and label maps as newcomers have them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
import tifffile
from PIL import Image

from segwright.core.files.hashing import file_hash

NUM_CASES = 3


def picture(file: Path, *, channels: int = 1, seed: int = 0) -> None:
    """Write a grey or colour picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (12, 14) if channels == 1 else (12, 14, channels)
    Image.fromarray(np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)).save(file)


def mask(file: Path, values: Sequence[int] = (1,)) -> None:
    """Write a picture of a label map with a row of each value and background."""
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((12, 14), np.uint8)
    for row, value in enumerate(values):
        array[row % 12, 2:9] = value
    Image.fromarray(array).save(file)


def volume(file: Path, *, low: float = 0, high: float = 100, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).uniform(low, high, (6, 7, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])), file)


def label_volume(file: Path, values: Sequence[float] = (1, 2), dtype: Any = np.uint8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((6, 7, 5), dtype)
    for plane, value in enumerate(values):
        array[plane, 2:5, 1:4] = value
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])), file)


def masks_of_0_and_255(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"images/{index:03d}.png", seed=index)
        mask(root / f"masks/{index:03d}.png", [255])


def rgba_with_suffixes(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"photo-{index}.png", channels=4, seed=index)
        mask(root / f"photo-{index}_mask.png", [1, 2])


def a_table(root: Path) -> None:
    with (root / "files.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["patient", "T1", "FLAIR", "label", "age"])
        for index in range(NUM_CASES):
            for number, channel in enumerate(("a", "b")):
                volume(root / f"{channel}/x{index}.nii.gz", seed=10 * number + index)
            label_volume(root / f"c/y{index}.nii.gz")
            writer.writerow([f"p{index}", f"a/x{index}.nii.gz", f"b/x{index}.nii.gz", f"c/y{index}.nii.gz", 50])


def a_folder_per_patient(root: Path) -> None:
    for index in range(NUM_CASES):
        for channel in ("t1", "flair", "adc"):
            volume(root / f"site_a/patient{index}/{channel}.nii.gz", seed=index)
        label_volume(root / f"site_a/patient{index}/seg.nii.gz")


def brats(root: Path) -> None:
    for index in range(NUM_CASES):
        for channel in ("t1", "t2"):
            volume(root / f"BraTS_{index}/BraTS_{index}_{channel}.nii.gz", seed=index)
        label_volume(root / f"BraTS_{index}/BraTS_{index}_seg.nii.gz", [1, 2, 4])


def nested_folders_with_equal_names(root: Path) -> None:
    for site in ("bonn", "oslo"):
        for index in range(2):
            picture(root / f"train/{site}/img/{index}.png", seed=index)
            mask(root / f"train/{site}/gt/{index}.png")


def mixed_endings(root: Path) -> None:
    for index in range(NUM_CASES):
        volume(root / f"imagesTr/case{index}.nii.gz", seed=index)
        label_volume(root / f"labelsTr/case{index}.nii")


def unlabelled_images(root: Path) -> None:
    for index in range(NUM_CASES):
        volume(root / f"scans/ct_{index:02d}.nii.gz", low=-1000, high=1500, seed=index)
        if index:
            label_volume(root / f"segmentations/ct_{index:02d}.nii.gz", [1, 3])
    volume(root / ".cache/ct_07.nii.gz")
    (root / "segmentations" / "._ct_01.nii.gz").write_bytes(b"Mac OS X")


def channels_in_folders(root: Path) -> None:
    for index in range(NUM_CASES):
        for channel in ("dwi", "adc"):
            volume(root / f"{channel}/s{index}.nii.gz", seed=index)
        label_volume(root / f"labels/s{index}.nii.gz", [1.0], np.float32)


def nnunet_layout(root: Path) -> None:
    for index in range(NUM_CASES):
        for channel in range(2):
            volume(root / f"imagesTr/c{index}_{channel:04d}.nii.gz", seed=index)
        label_volume(root / f"labelsTr/c{index}.nii.gz")
    volume(root / "imagesTs/c9_0000.nii.gz")


def grey_coded_classes(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"{index}_image.png", channels=3, seed=index)
        mask(root / f"{index}_label.png", [127, 255])


def label_words_of_their_own(root: Path) -> None:
    for index in range(NUM_CASES):
        volume(root / f"data/{index}.nii.gz", seed=index)
        label_volume(root / f"masks/{index}_liver.nii.gz")


def tiff_stacks(root: Path) -> None:
    for index in range(NUM_CASES):
        for folder in ("volumes", "masks"):
            (root / folder).mkdir(exist_ok=True)
            array = np.arange(6 * 7 * 8, dtype=np.uint8).reshape(6, 7, 8) // (1 if folder == "volumes" else 200)
            tifffile.imwrite(root / folder / f"{index}.tif", array)
            (root / folder / f"{index}.json").write_text('{"spacing": [2.5, 1, 1]}')


def train_and_test_folders(root: Path) -> None:
    for part in ("train", "test"):
        for index in range(NUM_CASES):
            picture(root / part / f"images/{index}.png", seed=index)
            mask(root / part / f"masks/{index}.png")


def mixed_in_one_folder(root: Path) -> None:
    for index in range(NUM_CASES):
        volume(root / f"images/c{index}{'.nii' if index == 1 else '.nii.gz'}", seed=index)
        label_volume(root / f"labels/c{index}{'.nii' if index == 2 else '.nii.gz'}")
    reencoded(root / "images/c0.nii.gz", ".nrrd")
    reencoded(root / "labels/c0.nii.gz", ".mha")


def mixed_pictures(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"images/c{index}.{'bmp' if index == 1 else 'png'}", channels=3, seed=index)
        mask(root / f"masks/c{index}.{'tif' if index else 'bmp'}", [255])


def flat_tiffs(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"images/{index}.tiff", channels=3, seed=index)
        mask(root / f"masks/{index}.tiff", [255])


def upper_case_endings(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"images/C{index}.png", seed=index)
        mask(root / f"masks/c{index}.png", [255])
    for folder in ("images", "masks"):
        for file in [*(root / folder).iterdir()]:
            file.rename(file.with_suffix(".PNG"))


def spaces_brackets_and_accents(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"My Scans/F\u00e4lle/benign ({index}).png", seed=index)
        mask(root / f"My Scans/F\u00e4lle/benign ({index})_mask.png", [255])
    picture(root / "My Scans/F\u00e4lle/normal a\u0308.png")
    mask(root / "My Scans/F\u00e4lle/normal \u00e4_mask.png", [255])


def linked_folders(root: Path) -> None:
    for index in range(NUM_CASES):
        volume(root / f".store/images/c{index}.nii.gz", seed=index)
        label_volume(root / f".store/labels/c{index}.nii.gz", [1.0, 3.0, 10.0], np.float32)
    for name in ("images", "labels"):
        (root / name).symlink_to(root / ".store" / name)
    (root / "images" / "again").symlink_to(root)  # a circle


def several_channels_in_a_file(root: Path) -> None:
    for index in range(NUM_CASES):
        array = np.random.default_rng(index).integers(0, 100, (6, 7, 5, 3)).astype(np.int16)
        (root / "images").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])), root / f"images/c{index}.nii.gz")
        label_volume(root / f"labels/c{index}.nii.gz")


def palette_masks(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"JPEGImages/{index}.png", channels=3, seed=index)
        file = root / f"SegmentationClass/{index}.png"
        mask(file, [1, 2])
        coloured = Image.open(file).convert("P")
        coloured.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
        coloured.save(file)


def numbers_glued_to_words(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"imagesTr/image{index:03d}.png", seed=index)
        mask(root / f"masksTr/mask{index:03d}.png", [255])


def grey_masks_in_colours(root: Path) -> None:
    for index, mode in enumerate(("RGB", "RGBA", "LA")):
        picture(root / f"images/{index}.png", channels=3, seed=index)
        mask(file := root / f"masks/{index}.png", [255])
        Image.open(file).convert(mode).save(file)


def an_archive_of_a_mac(root: Path) -> None:
    masks_of_0_and_255(root)
    for file in [*root.rglob("*.png")]:
        copy = root / "__MACOSX" / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"Mac OS X")
    for name in ("images/Thumbs.db", "masks/3.png.part", "readme.txt"):
        (root / name).write_text("x")


def reencoded(file: Path, ending: str) -> None:
    """Replace a NIfTI file by one of another format."""
    image = SimpleITK.ReadImage(str(file))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    SimpleITK.WriteImage(image, str(file).replace(".nii.gz", ending))
    file.unlink()


def tree_state(folder: Path) -> dict[str, tuple[str, int]]:
    """Return content hash and modification time of everything in a folder, itself and hidden files included."""
    return {
        str(path.relative_to(folder)): (file_hash(path) if path.is_file() else "", path.lstat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
    }


def hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file_hash(file) for file in sorted(folder.rglob("*")) if file.is_file()}
