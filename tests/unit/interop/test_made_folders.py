"""`init` and `convert folders` on folders as newcomers have them: `check` accepts the result, or the doubt is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

import segwright
from segwright.core.errors import ProblemReport, SegwrightError
from segwright.core.files.hashing import file_hash
from tests.unit.interop.made_folders import (
    NUM_CASES,
    a_folder_per_patient,
    a_table,
    an_archive_of_a_mac,
    brats,
    channels_in_folders,
    flat_tiffs,
    grey_coded_classes,
    grey_masks_in_colours,
    hashes,
    label_volume,
    label_words_of_their_own,
    linked_folders,
    mask,
    masks_of_0_and_255,
    mixed_endings,
    mixed_in_one_folder,
    mixed_pictures,
    nested_folders_with_equal_names,
    nnunet_layout,
    numbers_glued_to_words,
    palette_masks,
    picture,
    reencoded,
    rgba_with_suffixes,
    several_channels_in_a_file,
    spaces_brackets_and_accents,
    tiff_stacks,
    train_and_test_folders,
    tree_state,
    unlabelled_images,
    upper_case_endings,
    volume,
)

Made = Callable[[Path], None]
ACCEPTED: dict[Made, dict[str, Any]] = {
    masks_of_0_and_255: {"labels": {"background": 0, "foreground": 1}, "label_map": {"255": 1}},
    rgba_with_suffixes: {"channel_names": {"0": "R", "1": "G", "2": "B", "3": "A"}, "file_ending": ".png"},
    a_table: {"channel_names": {"0": "flair", "1": "t1"}, "labels": {"background": 0, "label_1": 1, "label_2": 2}},
    a_folder_per_patient: {"channel_names": {"0": "adc", "1": "flair", "2": "t1"}},
    brats: {"label_map": {"4": 3}, "channel_names": {"0": "t1", "1": "t2"}},
    nested_folders_with_equal_names: {"numTraining": 4, "channel_names": {"0": "image"}},
    mixed_endings: {"file_ending": ".nii.gz", "numTraining": 3},
    unlabelled_images: {"channel_names": {"0": "CT"}, "label_map": {"3": 2}, "numTraining": 2},
    channels_in_folders: {"channel_names": {"0": "adc", "1": "dwi"}, "labels": {"background": 0, "foreground": 1}},
    nnunet_layout: {"channel_names": {"0": "channel_0", "1": "channel_1"}, "numTraining": 3},
    grey_coded_classes: {"label_map": {"127": 1, "255": 2}},
    label_words_of_their_own: {"numTraining": 3},
    train_and_test_folders: {"numTraining": NUM_CASES},
    tiff_stacks: {"file_ending": ".tif", "labels": {"background": 0, "foreground": 1}},
    mixed_in_one_folder: {"file_ending": ".nii.gz", "channel_names": {"0": "image"}, "numTraining": 3},
    mixed_pictures: {"file_ending": ".png", "channel_names": {"0": "R", "1": "G", "2": "B"}, "label_map": {"255": 1}},
    flat_tiffs: {"file_ending": ".tif", "label_map": {"255": 1}},
    upper_case_endings: {"label_map": {"255": 1}, "numTraining": 3},
    spaces_brackets_and_accents: {"numTraining": 4},
    linked_folders: {"label_map": {"10": 2}, "labels": {"background": 0, "label_1": 1, "label_3": 2, "label_2": 3}},
    several_channels_in_a_file: {"channel_names": {str(index): f"channel_{index}" for index in range(3)}},
    palette_masks: {"labels": {"background": 0, "label_1": 1, "label_2": 2}},
    numbers_glued_to_words: {"label_map": {"255": 1}, "numTraining": 3},
    grey_masks_in_colours: {"label_map": {"255": 1}, "labels": {"background": 0, "foreground": 1}},
    an_archive_of_a_mac: {"label_map": {"255": 1}, "numTraining": 3},
}
IDENTIFIERS = {
    masks_of_0_and_255: ["000", "001", "002"],
    rgba_with_suffixes: ["photo-0", "photo-1", "photo-2"],
    a_table: ["p0", "p1", "p2"],
    a_folder_per_patient: ["patient0", "patient1", "patient2"],
    brats: ["BraTS_0", "BraTS_1", "BraTS_2"],
    nested_folders_with_equal_names: ["train_bonn_0", "train_bonn_1", "train_oslo_0", "train_oslo_1"],
    unlabelled_images: ["ct_01", "ct_02"],
    grey_coded_classes: ["0", "1", "2"],
    numbers_glued_to_words: ["000", "001", "002"],
    spaces_brackets_and_accents: ["benign (0)", "benign (1)", "benign (2)", "normal \u00e4"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "my data").mkdir()
    return tmp_path / "my data"


@pytest.mark.parametrize("make", ACCEPTED, ids=lambda make: make.__name__)
def test_init_writes_a_dataset_that_check_accepts(root: Path, make: Made) -> None:
    make(root)
    before = hashes(root)
    segwright.init(root)
    document = json.loads((root / "dataset.json").read_text())
    assert ACCEPTED[make].items() <= document.items()
    assert ("dataset" in document) == (make is not nnunet_layout)
    if make in IDENTIFIERS:
        assert sorted(document["dataset"]) == IDENTIFIERS[make]
    assert segwright.check(root).errors == ()
    after = hashes(root)
    after.pop("dataset.json")
    assert after == before


REWRITTEN = (mixed_endings, mixed_in_one_folder, mixed_pictures, several_channels_in_a_file)


@pytest.mark.parametrize("make", ACCEPTED, ids=lambda make: make.__name__)
def test_folders_are_converted(root: Path, tmp_path: Path, make: Made) -> None:
    make(root)
    before = tree_state(root)
    converted = segwright.convert("folders", root, tmp_path / "Dataset020_Mine")
    assert converted is not None
    document = json.loads((converted.dataset / "dataset.json").read_text())
    assert ACCEPTED[make].items() <= document.items()
    assert "dataset" not in document
    assert segwright.check(converted.dataset).errors == ()
    assert tree_state(root) == before
    if make is tiff_stacks:
        assert "2.5" in (converted.dataset / "imagesTr" / "0.json").read_text()
    record = json.loads((converted.dataset / "conversion.json").read_text())
    new = hashes(converted.dataset)
    assert {each["to"] for each in record["files"]} == {*new} - {"dataset.json", "conversion.json"}
    copied = [each for each in record["files"] if not {"change", "channel"} & each.keys()]
    assert [new[each["to"]] for each in copied] == [file_hash(root / each["from"]) for each in copied]
    assert (len(copied) == len(record["files"])) == (make not in REWRITTEN)
    again = segwright.convert("folders", root, tmp_path / "Dataset020_Mine")
    assert again is not None
    assert again.num_written == 0


def test_images_without_label_map_become_test_images(root: Path, tmp_path: Path) -> None:
    unlabelled_images(root)
    segwright.convert("folders", root, tmp_path / "new")
    assert [file.name for file in (tmp_path / "new" / "imagesTs").iterdir()] == ["ct_00_0000.nii.gz"]


def test_cases_of_test_folders_are_not_trained_on(root: Path, tmp_path: Path) -> None:
    train_and_test_folders(root)
    segwright.convert("folders", root, tmp_path / "new")
    for folder, names in (
        ("imagesTs", ["0_0000.png", "1_0000.png", "2_0000.png"]),
        ("labelsTs", ["0.png", "1.png", "2.png"]),
    ):
        assert sorted(file.name for file in (tmp_path / "new" / folder).iterdir()) == names
    assert (tmp_path / "new/labelsTs/1.png").read_bytes() == (root / "test/masks/1.png").read_bytes()


def test_images_of_an_imagests_folder_are_test_images(root: Path, tmp_path: Path) -> None:
    for index in range(NUM_CASES):
        for channel in ("a", "b"):
            volume(root / f"imagesTr/s{index}_{channel}.nii.gz", seed=index)
            volume(root / f"imagesTs/s{index}_{channel}.nii.gz", seed=9 + index)
        label_volume(root / f"labelsTr/s{index}.nii.gz")
    segwright.convert("folders", root, tmp_path / "new")
    tested = tmp_path / "new/imagesTs/s0_0001.nii.gz"
    assert tested.read_bytes() == (root / "imagesTs/s0_b.nii.gz").read_bytes()
    assert not (tmp_path / "new/labelsTs").exists()


def test_patterns_decide_what_words_do_not(root: Path, tmp_path: Path) -> None:
    for index in range(NUM_CASES):
        for channel in "xy":
            volume(root / f"all/{channel}.{index}.nii.gz", seed=index)
        label_volume(root / f"all/z.{index}.nii.gz")
    with pytest.raises(ProblemReport, match="no image matches a label map by its name: found 9 images such as all/x.0"):
        segwright.init(root)
    patterns = {"images": "all/{channel}.{case}.nii.gz", "labels": "all/z.{case}.nii.gz"}
    segwright.convert("folders", root, tmp_path / "new", **patterns)
    document = json.loads((tmp_path / "new" / "dataset.json").read_text())
    assert document["channel_names"] == {"0": "x", "1": "y"}
    assert (tmp_path / "new" / "labelsTr" / "2.nii.gz").is_file()


def test_given_folders_decide_what_words_do_not(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"one/{index}.png")
        mask(root / f"two/{index}.png")
    segwright.init(root, images="one", labels="two", channel_names=["light"], label_names=["cell"])
    document = json.loads((root / "dataset.json").read_text())
    assert document["channel_names"] == {"0": "light"}
    assert document["labels"] == {"background": 0, "cell": 1}
    with pytest.raises(ProblemReport, match="three: no such folder; say where they are with --images and --labels"):
        segwright.init(root, images="one", labels="three", force=True)


def no_images(root: Path) -> str:
    (root / "scan.jpg").touch()
    return "holds no image that can be read; found 1 files with .jpg; convert the files to"


def only_images(root: Path) -> str:
    picture(root / "a.png")
    return "found 1 images such as a.png, 0 label maps"


def soft_masks(root: Path) -> str:
    masks_of_0_and_255(root)
    for index in range(NUM_CASES):
        volume(root / f"soft/images/{index}.nii.gz")
        label_volume(root / f"soft/masks/{index}.nii.gz", [0.5], np.float32)
    for folder in ("images", "masks"):
        for file in (root / folder).iterdir():
            file.unlink()
    return "unexpected label value 0.5, expected whole numbers"


def lossy_masks(root: Path) -> str:
    masks_of_0_and_255(root)
    mask(root / "masks/001.png", [1, 3, 253, 255])
    return "masks of 0 and 255 with lossy compression, or classes and an ignore label; threshold the masks"


def classes_and_255(root: Path) -> str:
    masks_of_0_and_255(root)
    mask(root / "masks/000.png", [*range(1, 11)])
    mask(root / "masks/001.png", [*range(11, 21)])
    return "classes and an ignore label; threshold the masks, or name all of them in ascending order"


def grey_values(root: Path) -> str:
    masks_of_0_and_255(root)
    picture(root / "masks/001.png")
    array = np.arange(12 * 14).reshape(12, 14).astype(np.uint8)
    Image.fromarray(array).save(root / "masks/001.png")
    return "different values, 0, 1, 2, 3, 4, 5, 6, 7, ...: labels, grey values or numbers of objects"


def coloured_masks(root: Path) -> str:
    masks_of_0_and_255(root)
    picture(root / "masks/002.png", channels=3)
    picture(root / "masks/001.png", channels=3)
    return "masks/001.png: has 3 channels, a label map has one whole number per voxel, as in 1 more files; save it"


def transparent_masks(root: Path) -> str:
    masks_of_0_and_255(root)
    array = np.zeros((12, 14, 4), np.uint8)
    array[2:5, 2:5, 3] = 255
    Image.fromarray(array).save(root / "masks/000.png")
    return "masks/000.png: has 4 channels, a label map has one whole number per voxel; save it in grey"


def no_background(root: Path) -> str:
    for index in range(NUM_CASES):
        volume(root / f"images/{index}.nii.gz")
        file = root / f"labels/{index}.nii.gz"
        label_volume(file)
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + np.uint8(1), image.affine), file)
    return "no label map has the value 0, found 1, 2, 3; which one is the background is not certain"


def some_transparent(root: Path) -> str:
    for index in range(NUM_CASES):
        picture(root / f"images/{index}.png", channels=4 if index else 3)
        mask(root / f"masks/{index}.png")
    return "channels differ: 3 in 1 (first 0); 4 in 2 (first 1); remove the transparency"


def a_channel_less(root: Path) -> str:
    a_folder_per_patient(root)
    (root / "site_a/patient1/flair.nii.gz").unlink()
    return "case 'patient1': lacks channel flair; other cases have adc, flair, t1; add the file"


def several_masks(root: Path) -> str:
    for index in range(NUM_CASES):
        picture(root / f"images/{index}.png")
        for organ in ("liver", "spleen"):
            mask(root / f"masks/{index}_{organ}.png")
    return "masks/0_spleen.png are label maps of the same case, as in 2 more cases; merge them into one"


def other_grids(root: Path) -> str:
    masks_of_0_and_255(root)
    Image.fromarray(np.eye(20, dtype=np.uint8)).save(root / "masks/001.png")
    for name in ("000", "002"):
        mask(root / f"masks/{name}.png")
    return "shape (1, 20, 20) differs from (1, 12, 14) of 001.png"


def a_wrong_path_in_a_table(root: Path) -> str:
    a_table(root)
    (root / "a/x1.nii.gz").unlink()
    return "files.csv, line 3, T1"


def linked_to_nothing(root: Path) -> str:
    masks_of_0_and_255(root)
    (root / "images/001.png").unlink()
    (root / "images/001.png").symlink_to("../.git/annex/objects/x")
    return "images/001.png: is a link to ../.git/annex/objects/x, which does not exist; fetch it with 'git annex get'"


def jpeg_pictures(root: Path) -> str:
    masks_of_0_and_255(root)
    for file in [*(root / "images").iterdir()][1:]:
        file.rename(file.with_suffix(".jpg"))
    return "2 of 3 label maps match no image by their name, such as masks/00"


def two_kinds_of_masks(root: Path) -> str:
    masks_of_0_and_255(root)
    for index in range(NUM_CASES):
        mask(root / f"1st_manual/{index:03d}_manual1.png", [255])
    return "3 of 6 label maps match no image by their name, such as 1st_manual/000_manual1.png; remove them, or say"


def a_numbered_second_mask(root: Path) -> str:
    spaces_brackets_and_accents(root)
    folder = root / "My Scans/F\u00e4lle"
    mask(folder / "benign (1)_mask_1.png", [255])
    return "benign (1)_mask.png: and My Scans/F\u00e4lle/benign (1)_mask_1.png are label maps of the same case"


def pictures_with_volumes(root: Path) -> str:
    for index in range(NUM_CASES):
        picture(root / f"images/{index}.png")
        label_volume(root / f"labels/{index}.nii.gz")
    return "labels/0.nii.gz: ends in .nii.gz, and 0.png in .png, which need different readers"


def dicom_files(root: Path) -> str:
    (root / "IM0001").write_bytes(bytes(128) + b"DICM")
    return "found 1 files with no ending; convert each DICOM series to one .nii.gz file, e.g. with dcm2niix"


UNDECIDED = [
    linked_to_nothing,
    jpeg_pictures,
    two_kinds_of_masks,
    a_numbered_second_mask,
    pictures_with_volumes,
    dicom_files,
    no_images,
    only_images,
    soft_masks,
    lossy_masks,
    classes_and_255,
    grey_values,
    coloured_masks,
    transparent_masks,
    no_background,
    some_transparent,
    a_channel_less,
    several_masks,
    other_grids,
    a_wrong_path_in_a_table,
]


@pytest.mark.parametrize("make", UNDECIDED, ids=lambda make: make.__name__)
def test_what_cannot_be_decided_is_said_and_nothing_is_written(root: Path, tmp_path: Path, make: Callable) -> None:
    message = make(root)
    before = hashes(root)
    for verb in (lambda: segwright.init(root), lambda: segwright.convert("folders", root, tmp_path / "new")):
        with pytest.raises(ProblemReport) as caught:
            verb()
        assert message in str(caught.value)
        assert all(len(line) < 500 for line in caught.value.lines())
    assert hashes(root) == before
    assert [*tmp_path.iterdir()] == [root]


def test_names_decide_the_meaning_of_values(root: Path) -> None:
    masks_of_0_and_255(root)
    mask(root / "masks/001.png", [1, 255])
    with pytest.raises(ProblemReport, match="has 3 names, the dataset has 2 labels \\(1, 255\\)"):
        segwright.init(root, label_names=["a", "b", "c"])
    with pytest.raises(ProblemReport, match="names 'a'; give each a name of its own"):
        segwright.init(root, label_names=["a", "a"])
    segwright.init(root, label_names=["background", "cell", "ignore"])
    document = json.loads((root / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "cell": 1, "ignore": 2}
    assert document["label_map"] == {"255": 2}


def test_an_ignore_label_below_others_is_refused(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"images/{index}.png")
        mask(root / f"masks/{index}.png", [1, 2, 3])
    with pytest.raises(ProblemReport, match="names value 1 'ignore', which must be above the values of all labels"):
        segwright.init(root, label_names=["ignore", "a", "b"])


def test_values_that_are_labels_stay_what_they_are(root: Path) -> None:
    for index in range(NUM_CASES):
        picture(root / f"images/{index}.png")
        mask(root / f"masks/{index}.png", [2, 3, 7])
    segwright.init(root, label_names=["two", "three", "seven"])
    document = json.loads((root / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "seven": 1, "two": 2, "three": 3}
    assert document["label_map"] == {"7": 1}
    assert segwright.check(root).errors == ()


def test_an_existing_description_is_kept(root: Path) -> None:
    nnunet_layout(root)
    segwright.init(root)
    with pytest.raises(SegwrightError, match="exists; check it with 'segwright check', or overwrite it with --force"):
        segwright.init(root)
    segwright.init(root, force=True, label_names=["a", "b"])
    assert '"a": 1' in (root / "dataset.json").read_text()


def test_files_of_other_endings_keep_values_and_geometry(root: Path, tmp_path: Path) -> None:
    mixed_in_one_folder(root)
    segwright.convert("folders", root, tmp_path / "new")
    for old, new in (
        ("images/c0.nrrd", "imagesTr/c0_0000.nii.gz"),
        ("images/c1.nii", "imagesTr/c1_0000.nii.gz"),
        ("labels/c0.mha", "labelsTr/c0.nii.gz"),
        ("labels/c2.nii", "labelsTr/c2.nii.gz"),
    ):
        before, after = (SimpleITK.ReadImage(str(file)) for file in (root / old, tmp_path / "new" / new))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(before), SimpleITK.GetArrayFromImage(after))
        assert before.GetPixelID() == after.GetPixelID()
        for grid in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(before, grid)(), getattr(after, grid)(), atol=1e-6)


def test_pictures_of_other_endings_keep_their_values(root: Path, tmp_path: Path) -> None:
    mixed_pictures(root)
    segwright.convert("folders", root, tmp_path / "new")
    for old, new in (("images/c1.bmp", "imagesTr/c1_0000.png"), ("masks/c2.tif", "labelsTr/c2.png")):
        before, after = (np.asarray(Image.open(file)) for file in (root / old, tmp_path / "new" / new))
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


def test_a_format_that_cannot_hold_a_file_is_refused(root: Path, tmp_path: Path) -> None:
    for index in range(NUM_CASES):
        for folder, make in (("images", volume), ("labels", label_volume)):
            make(root / f"{folder}/c{index}.nii.gz")
            if index:
                reencoded(root / f"{folder}/c{index}.nii.gz", ".gipl")  # which has no direction
    with pytest.raises(ProblemReport, match="c0.nii.gz: .gipl cannot hold its values or its geometry"):
        segwright.convert("folders", root, tmp_path / "new")
    assert [*tmp_path.iterdir()] == [root]


def test_options_of_folders_are_refused_for_tasks(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SegwrightError, match="labels: only for the format 'folders'; leave it out"):
        segwright.convert("msd", root, tmp_path / "new", labels="x")
