from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from segwright.core.errors import DiskError, ImageError
from segwright.data.images.image_io import (
    READERS,
    choose_reader,
    read_images,
    read_label,
    reader_of_shapes,
    write_labels,
)
from tests.unit.data import made_files

LABELS = (np.arange(60).reshape(3, 4, 5) % 4).astype(np.int64)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    made_files.write_images(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "ending", "reader"),
    [
        ("v.nii.gz", ".nii.gz", "SimpleITKIO"),
        ("v.nrrd", ".nrrd", "SimpleITKIO"),
        ("v.mha", ".mha", "SimpleITKIO"),
        ("v.gipl", ".gipl", "SimpleITKIO"),
        ("n.nii", ".nii", "NibabelIO"),
        ("grey.png", ".png", "NaturalImage2DIO"),
        ("grey.bmp", ".bmp", "NaturalImage2DIO"),
        ("flat.tif", ".tif", "NaturalImage2DIO"),
        ("stack_0000.tif", ".tif", "Tiff3DIO"),
        ("bare_0000.tiff", ".tiff", "Tiff3DIO"),
    ],
)
def test_reader_is_chosen_by_ending_and_example(images: Path, name: str, ending: str, reader: str) -> None:
    assert choose_reader(ending, images / name) == reader


def test_reader_without_example_is_the_first_of_the_ending() -> None:
    assert choose_reader(".TIF", None) == "NaturalImage2DIO"


def test_override_wins_and_the_text_none_counts_as_absent(images: Path) -> None:
    assert choose_reader(".nii.gz", images / "v.nii.gz", "NibabelIOWithReorient") == "NibabelIOWithReorient"
    assert choose_reader(".nii.gz", images / "v.nii.gz", "None") == "SimpleITKIO"


def test_unknown_override_warns_and_is_passed_over(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_reader(".nii.gz", images / "v.nii.gz", "NibabelI") == "SimpleITKIO"
    assert "did you mean 'NibabelIO'" in caplog.text


def stack(folder: Path, name: str, planes: int, *, spacing: bool = False) -> Path:
    array = np.zeros((planes, 4, 5) if planes else (4, 5), np.uint8)
    tifffile.imwrite(folder / f"{name}_0000.tif", array, photometric="minisblack")
    if spacing:
        (folder / f"{name}.json").write_text('{"spacing": [3.0, 0.5, 0.25]}')
    return folder / f"{name}_0000.tif"


def test_tiff_is_decided_by_all_cases(tmp_path: Path) -> None:
    flat = [stack(tmp_path, f"f{index}", 0) for index in range(3)]
    four, *deep = [stack(tmp_path, f"s{planes}", planes) for planes in (4, 7, 8)]

    assert choose_reader(".tif", [four, *deep]) == "Tiff3DIO"
    assert choose_reader(".tif", [four]) == "NaturalImage2DIO"
    assert choose_reader(".tif", [*flat, deep[0]]) == "NaturalImage2DIO"
    assert choose_reader(".tif", [flat[0], *deep]) == "Tiff3DIO"


def test_spacing_beside_a_tiff_file_makes_it_a_stack(tmp_path: Path) -> None:
    assert choose_reader(".tif", stack(tmp_path, "s", 4, spacing=True)) == "Tiff3DIO"
    assert choose_reader(".tif", stack(tmp_path, "f", 0, spacing=True)) == "NaturalImage2DIO"


def test_tiff_files_that_all_are_damaged_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"")

    with pytest.raises(ImageError, match=r"x\.tif: cannot be read \(the file is empty"):
        choose_reader(".tif", [tmp_path / "x.tif"])


@pytest.mark.parametrize(
    ("shapes", "override", "reader"),
    [
        ([(1, 40, 50), (1, 30, 20)], None, "NaturalImage2DIO"),
        ([(1, 40, 50), (9, 40, 50)], None, "Tiff3DIO"),
        ([(9, 40, 50)], "NaturalImage2DIO", "NaturalImage2DIO"),
    ],
)
def test_reader_of_tiff_files_that_are_away_follows_from_their_shapes(
    shapes: list[tuple[int, ...]], override: str | None, reader: str
) -> None:
    assert reader_of_shapes(".tif", shapes, override) == reader


def test_unknown_ending_names_the_nearest() -> None:
    with pytest.raises(ImageError, match=r"'.nii.gx' has no reader; did you mean '.nii.gz'"):
        choose_reader(".nii.gx", None)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("name", ["v.nii.gz", "nr.nii.gz"])
def test_labels_return_to_the_exact_grid_of_the_image(images: Path, tmp_path: Path, name: str, reader: str) -> None:
    volume = read_images([images / name], reader)
    # What survives in a JSON file beside the case must be enough.
    properties = json.loads(json.dumps(volume.properties))
    labels = (np.arange(volume.array.size) % 4).reshape(volume.array.shape[1:])

    write_labels(labels, tmp_path / "out" / "case.nii.gz", properties, reader)

    written = read_label(tmp_path / "out" / "case.nii.gz", reader)
    np.testing.assert_array_equal(written.array[0], labels)
    image, copy = nibabel.load(images / name), nibabel.load(tmp_path / "out" / "case.nii.gz")
    assert copy.shape == image.shape
    np.testing.assert_allclose(copy.affine, image.affine, rtol=0, atol=1e-6)
    if reader.startswith("Nibabel"):
        np.testing.assert_array_equal(copy.affine, image.affine)


@pytest.mark.parametrize("name", ["v.nrrd", "v.mha", "flat.mha"])
def test_itk_geometry_is_kept_to_the_last_digit(images: Path, tmp_path: Path, name: str) -> None:
    volume = read_images([images / name], "SimpleITKIO")

    write_labels(LABELS[: volume.array.shape[1]], tmp_path / f"out_{name}", volume.properties, "SimpleITKIO")

    image, copy = SimpleITK.ReadImage(str(images / name)), SimpleITK.ReadImage(str(tmp_path / f"out_{name}"))
    assert copy.GetSize() == image.GetSize()
    for part in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(copy, part)() == getattr(image, part)()
    assert copy.GetPixelIDTypeAsString() == "8-bit unsigned integer"


def test_stack_is_written_with_its_spacing_beside_it(images: Path, tmp_path: Path) -> None:
    volume = read_images([images / "stack_0000.tif"], "Tiff3DIO")

    write_labels(LABELS.repeat(2, axis=0), tmp_path / "out" / "case_0001.tif", volume.properties, "Tiff3DIO")

    written = read_label(tmp_path / "out" / "case_0001.tif", "Tiff3DIO")
    assert written.spacing == (3.0, 0.5, 0.25)
    np.testing.assert_array_equal(written.array[0], LABELS.repeat(2, axis=0))


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_picture_labels_round_trip(images: Path, tmp_path: Path, ending: str) -> None:
    volume = read_images([images / "rgb.png"], "NaturalImage2DIO")

    write_labels(LABELS[:1], tmp_path / f"out{ending}", volume.properties, "NaturalImage2DIO")

    np.testing.assert_array_equal(read_label(tmp_path / f"out{ending}", "NaturalImage2DIO").array, LABELS[:1][None])


@pytest.mark.parametrize(("largest", "dtype"), [(254, np.uint8), (255, np.uint16), (3000, np.uint16)])
def test_labels_below_255_are_written_as_bytes(images: Path, tmp_path: Path, largest: int, dtype: type) -> None:
    volume = read_images([images / "n.nii"], "NibabelIO")
    labels = np.full((3, 4, 5), largest).transpose(0, 1, 2)

    write_labels(np.resize(labels, volume.array.shape[1:]), tmp_path / "o.nii", volume.properties, "NibabelIO")

    assert nibabel.load(tmp_path / "o.nii").get_data_dtype() == dtype


def test_palette_of_a_label_map_gives_indices(images: Path) -> None:
    label = read_label(images / "palette.png", "NaturalImage2DIO")

    np.testing.assert_array_equal(label.array[0, 0], np.asarray(Image.open(images / "palette.png")))


def test_four_axes_are_channels_and_labels_can_still_be_written(tmp_path: Path) -> None:
    four = SimpleITK.JoinSeries([made_files.itk_image(np.full((3, 4, 5), value, np.int16)) for value in (1, 2)])
    SimpleITK.WriteImage(four, str(tmp_path / "four.nii.gz"))

    volume = read_images([tmp_path / "four.nii.gz"], "SimpleITKIO")
    write_labels(LABELS, tmp_path / "out.nii.gz", volume.properties, "SimpleITKIO")

    assert volume.array.shape == (2, 3, 4, 5)
    assert volume.array[1, 0, 0, 0] == 2
    assert SimpleITK.ReadImage(str(tmp_path / "out.nii.gz")).GetSpacing() == pytest.approx(made_files.SPACING)


def test_channels_are_stacked_in_order(tmp_path: Path) -> None:
    for index in range(3):
        SimpleITK.WriteImage(made_files.itk_image(np.full((2, 3, 4), index, np.int16)), str(tmp_path / f"{index}.mha"))

    volume = read_images([tmp_path / "2.mha", tmp_path / "0.mha", tmp_path / "1.mha"], "SimpleITKIO")

    assert volume.array[:, 0, 0, 0].tolist() == [2, 0, 1]


def test_channels_of_different_shape_are_refused(tmp_path: Path) -> None:
    SimpleITK.WriteImage(made_files.itk_image(np.zeros((2, 3, 4), np.int16)), str(tmp_path / "a.mha"))
    SimpleITK.WriteImage(made_files.itk_image(np.zeros((2, 3, 5), np.int16)), str(tmp_path / "b.mha"))

    with pytest.raises(ImageError, match=r"b\.mha: shape \(2, 3, 5\) differs from \(2, 3, 4\) of a\.mha; .* share one"):
        read_images([tmp_path / "a.mha", tmp_path / "b.mha"], "SimpleITKIO")


def test_channels_of_different_spacing_are_refused(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4), np.int16)
    SimpleITK.WriteImage(made_files.itk_image(array), str(tmp_path / "a.mha"))
    SimpleITK.WriteImage(made_files.itk_image(array, spacing=(0.8, 0.9, 2.6)), str(tmp_path / "b.mha"))

    with pytest.raises(ImageError, match=r"b\.mha: spacing \(2\.6, 0\.9, 0\.8\) differs from \(2\.5, 0\.9, 0\.8\)"):
        read_images([tmp_path / "a.mha", tmp_path / "b.mha"], "SimpleITKIO")


def test_channels_of_different_places_are_refused(tmp_path: Path) -> None:
    image = made_files.itk_image(np.zeros((2, 3, 4), np.int16))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    image.SetOrigin((1, 2, 3))
    SimpleITK.WriteImage(image, str(tmp_path / "b.mha"))

    with pytest.raises(ImageError, match=r"b\.mha: origin differs from that of a\.mha"):
        read_images([tmp_path / "a.mha", tmp_path / "b.mha"], "SimpleITKIO")


def test_channels_stored_along_other_axes_are_turned(tmp_path: Path) -> None:
    image = made_files.itk_image(np.random.RandomState(0).randint(1, 99, (2, 3, 4)).astype(np.int16))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    turned = SimpleITK.Flip(SimpleITK.PermuteAxes(image, (2, 0, 1)), (True, False, True))
    SimpleITK.WriteImage(turned, str(tmp_path / "b.mha"))

    volume = read_images([tmp_path / "a.mha", tmp_path / "b.mha"], "SimpleITKIO")

    np.testing.assert_array_equal(volume.array[0], volume.array[1])
    assert [str(note) for note in volume.notes] == [
        f"{tmp_path / 'b.mha'}: is stored along other axes than a.mha, and re-oriented when read"
    ]
    label = read_label(tmp_path / "b.mha", "SimpleITKIO", like=volume.header)
    np.testing.assert_array_equal(label.array[0], volume.array[0])
    assert label.properties == volume.properties


@pytest.mark.parametrize("reader", sorted(READERS))
def test_broken_file_is_named_in_one_line(tmp_path: Path, reader: str) -> None:
    file = tmp_path / (
        "x.png" if reader.startswith("Natural") else "x.tif" if reader.startswith("Tiff") else "x.nii.gz"
    )
    file.write_bytes(b"not an image")

    with pytest.raises(ImageError, match=f"{file}: cannot be read") as caught:
        read_images([file], reader)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *((name, kept) for name in ("v.nii.gz", "v.nii", "v.nrrd", "v.mha") for kept in (0.5, 0.9)),
        ("stack_0000.tif", 0.3),
        ("grey.png", 0.5),
    ],
)
def test_file_that_was_cut_off_is_named(images: Path, name: str, kept: float) -> None:
    file = images / name
    if name == "v.nii":
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(images / "v.nii.gz")), str(file))
    reader = {".tif": "Tiff3DIO", ".png": "NaturalImage2DIO"}.get(file.suffix, "SimpleITKIO")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])

    with pytest.raises(ImageError, match=f"{name}: cannot be read"):
        read_images([file], reader)


def test_gzip_file_of_several_members_is_complete(images: Path) -> None:
    content = gzip.decompress((images / "v.nii.gz").read_bytes())
    (images / "v.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))

    assert read_images([images / "v.nii.gz"], "SimpleITKIO").array.shape == (1, 3, 4, 5)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.nii\.gz: no such file"):
        read_label(tmp_path / "absent.nii.gz", "SimpleITKIO")


def test_picture_stack_is_refused_by_the_picture_reader(images: Path) -> None:
    with pytest.raises(ImageError, match=r"has shape \(6, 4, 5\), expected a grey"):
        read_images([images / "stack_0000.tif"], "NaturalImage2DIO")


def test_several_values_a_voxel_are_refused(tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.Image((4, 4, 4), SimpleITK.sitkVectorUInt8, 3), str(tmp_path / "v.nrrd"))

    with pytest.raises(ImageError, match="has 3 values per voxel; write one file per channel"):
        read_images([tmp_path / "v.nrrd"], "SimpleITKIO")


def test_colour_label_is_refused(images: Path) -> None:
    with pytest.raises(ImageError, match=r"rgb\.png: has 3 channels, a label map has one"):
        read_label(images / "rgb.png", "NaturalImage2DIO")


def test_bad_spacing_beside_a_stack_is_refused(images: Path) -> None:
    (images / "stack.json").write_text('{"spacing": [1, 0, 1]}')

    with pytest.raises(ImageError, match=r"stack\.json: expected .* three positive numbers"):
        read_images([images / "stack_0000.tif"], "Tiff3DIO")


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 4)), np.full((3, 4, 5), -1), np.full((3, 4, 5), 70000), np.zeros((1, 2, 2))]
)
def test_labels_that_are_no_label_map_are_refused(images: Path, tmp_path: Path, bad: np.ndarray) -> None:
    volume = read_images([images / "v.nii.gz"], "SimpleITKIO")

    with pytest.raises(ImageError, match="expected integers from 0 to 65535 on three axes"):
        write_labels(bad, tmp_path / "out.nii.gz", volume.properties, "SimpleITKIO")


def test_failed_write_leaves_nothing_behind(images: Path, tmp_path: Path) -> None:
    volume = read_images([images / "v.nii.gz"], "SimpleITKIO")
    (tmp_path / "out").mkdir()

    with pytest.raises(ImageError, match=r"case\.unknown: cannot be written"):
        write_labels(LABELS, tmp_path / "out" / "case.unknown", volume.properties, "SimpleITKIO")

    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tif"])
def test_a_file_that_the_disk_takes_only_in_part_is_an_error(
    tmp_path: Path, ending: str, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    noise = np.random.default_rng(0).integers(0, 3000, (16, 16, 16))
    reader = "Tiff3DIO" if ending == ".tif" else "SimpleITKIO"
    geometry = {"spacing": [1.0] * 3, "origin": [0.0] * 3, "direction": np.eye(3).ravel().tolist()}
    properties = {"reader": reader, "spacing": [1.0] * 3, "geometry": geometry}
    with largest_file(2000), pytest.raises(DiskError, match=rf"case{ending}: .*larger than the system lets"):
        write_labels(noise, tmp_path / f"case{ending}", properties, reader)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_compressed_tiff_needs_no_extra_codec(tmp_path: Path) -> None:
    picture = (np.arange(20).reshape(4, 5) * 3).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "lzw.tif", compression="tiff_lzw")

    np.testing.assert_array_equal(read_images([tmp_path / "lzw.tif"], "NaturalImage2DIO").array[0, 0], picture)
    with tifffile.TiffFile(tmp_path / "lzw.tif") as file:
        assert file.pages[0].compression.name == "LZW"
