"""Small datasets and images with known content, for tests and for the script that asks the oracle about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
import tifffile
from PIL import Image

SPACING = (0.8, 0.9, 2.5)  # ITK order
ORIGIN = (-12.5, 30.25, 7.0)
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def itk_image(array: np.ndarray, *, spacing: tuple[float, ...] = SPACING) -> SimpleITK.Image:
    """Return an ITK image of `array` (z, y, x) or (y, x) that lies obliquely enough to notice a mistake."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[: array.ndim])
    image.SetOrigin(ORIGIN[: array.ndim])
    if array.ndim == 3:
        image.SetDirection(DIRECTION)
    return image


def write_dataset(
    folder: Path,
    *,
    num_cases: int = 5,
    num_channels: int = 1,
    ending: str = ".nii.gz",
    shape: tuple[int, ...] = (6, 8, 7),
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a complete, faultless dataset with two labels; `changes` go into dataset.json (None removes a key)."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for index in range(num_cases):
        random = np.random.RandomState(index)
        label = np.zeros(shape, np.uint8)
        label[1:4, 2:5, 2:5] = 1
        label[2, 3, 3:5] = 2
        for channel in range(num_channels):
            image = random.randint(1, 100, shape).astype(np.int16)
            SimpleITK.WriteImage(itk_image(image), str(folder / "imagesTr" / f"case_{index:02d}_{channel:04d}{ending}"))
        SimpleITK.WriteImage(itk_image(label), str(folder / "labelsTr" / f"case_{index:02d}{ending}"))
    document = {
        "channel_names": {str(channel): f"MR{channel}" for channel in range(num_channels)},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": num_cases,
        "file_ending": ending,
    }
    edit_json(folder, {**document, **(changes or {})})
    return folder


def edit_json(folder: Path, document: dict[str, Any]) -> None:
    """Write dataset.json without the keys whose value is None."""
    kept = {key: value for key, value in document.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(kept))


def write_fingerprint_volumes(folder: Path, *, every_case_has_foreground: bool) -> Path:
    """Write six two-channel cases: zero borders, skewed floats, an ignore label, perhaps a case without foreground."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for index in range(6):
        random = np.random.RandomState(100 + index)
        shape = (9 + index, 12, 10 + index % 3)
        images = [random.gamma(2.0, 50.0, shape).astype(np.float32), random.normal(0, 3, shape).astype(np.float32)]
        label = random.randint(0, 4, shape).astype(np.uint8)
        for image in images:
            image[: index % 3] = 0
            image[:, -2:] = 0
        if index == 4 and not every_case_has_foreground:
            label[:] = 0
        spacing = (0.5 + 0.1 * index, 0.75, 3.0)
        for channel, image in enumerate(images):
            path = folder / "imagesTr" / f"c{index}_{channel:04d}.nii.gz"
            SimpleITK.WriteImage(itk_image(image, spacing=spacing), str(path))
        SimpleITK.WriteImage(itk_image(label, spacing=spacing), str(folder / "labelsTr" / f"c{index}.nii.gz"))
    edit_json(
        folder,
        {
            "channel_names": {"0": "T1", "1": "CT"},
            "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3},
            "numTraining": 6,
            "file_ending": ".nii.gz",
        },
    )
    return folder


def write_fingerprint_pictures(folder: Path) -> Path:
    """Write six RGB pictures with labels."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for index in range(6):
        random = np.random.RandomState(200 + index)
        picture = random.randint(0, 255, (14 + index, 16, 3)).astype(np.uint8)
        picture[:2] = 0
        label = random.randint(0, 2, picture.shape[:2]).astype(np.uint8)
        Image.fromarray(picture).save(folder / "imagesTr" / f"p{index}_0000.png")
        Image.fromarray(label).save(folder / "labelsTr" / f"p{index}.png")
    edit_json(
        folder,
        {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": {"background": 0, "a": 1},
            "numTraining": 6,
            "file_ending": ".png",
        },
    )
    return folder


def write_images(folder: Path) -> dict[str, str]:
    """Write one tiny image per format and return file name -> reader that nnU-Net's rules choose or that is forced."""
    random = np.random.RandomState(7)
    volume = random.randint(-50, 1000, (3, 4, 5)).astype(np.int16)
    picture = random.randint(0, 255, (4, 5)).astype(np.uint8)
    colours = random.randint(0, 255, (4, 5, 4)).astype(np.uint8)
    for name in ("v.nii.gz", "v.nrrd", "v.mha", "v.gipl", "flat.mha", "re.nii.gz"):
        array = picture if name.startswith("flat") else volume
        SimpleITK.WriteImage(itk_image(array), str(folder / name))
    affine = np.array([[0, 0, 2.5, -5], [0.9, 0, 0, 4.5], [0, -0.8, 0, 3], [0, 0, 0, 1]])
    for name in ("n.nii", "nr.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / name)
    scaled = nibabel.Nifti1Image(volume, affine)
    scaled.header.set_slope_inter(0.1, 3.0)
    nibabel.save(scaled, folder / "scaled.nii")
    tifffile.imwrite(folder / "stack_0000.tif", volume[:, :, :].repeat(2, axis=0), photometric="minisblack")
    (folder / "stack.json").write_text(json.dumps({"spacing": [3.0, 0.5, 0.25]}))
    tifffile.imwrite(folder / "bare_0000.tiff", volume, photometric="minisblack")
    tifffile.imwrite(folder / "flat.tif", random.rand(4, 5).astype(np.float32))
    tifffile.imwrite(
        folder / "planes.tif",
        np.ascontiguousarray(colours[..., :3].transpose(2, 0, 1)),
        photometric="rgb",
        planarconfig="separate",
    )
    Image.fromarray(picture).save(folder / "grey.png")
    Image.fromarray(picture).save(folder / "grey.bmp")
    Image.fromarray(colours[..., :3]).save(folder / "rgb.png")
    Image.fromarray(colours).save(folder / "rgba.png")
    Image.fromarray(picture > 100).save(folder / "binary.png")
    Image.fromarray(picture.astype(np.uint16) * 200).save(folder / "deep.png")
    palette = Image.fromarray(picture % 3).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(folder / "palette.png")
    natural = (
        "flat.tif",
        "planes.tif",
        "grey.png",
        "grey.bmp",
        "rgb.png",
        "rgba.png",
        "binary.png",
        "deep.png",
        "palette.png",
    )
    return {
        **dict.fromkeys(("v.nii.gz", "v.nrrd", "v.mha", "v.gipl", "flat.mha"), "SimpleITKIO"),
        "re.nii.gz": "SimpleITKIOWithReorient",
        "n.nii": "NibabelIO",
        "scaled.nii": "NibabelIO",
        "nr.nii.gz": "NibabelIOWithReorient",
        "stack_0000.tif": "Tiff3DIO",
        "bare_0000.tiff": "Tiff3DIO",
        **dict.fromkeys(natural, "NaturalImage2DIO"),
    }
