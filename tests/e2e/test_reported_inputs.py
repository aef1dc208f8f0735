"""Inputs from public bug reports, with the expected result; skipped if the files are not available.

The scripts that write the inputs lie beside the project, in `../shared/cases`, one folder each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from journeys import call
from typer.testing import Result

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
REFERENCE = CASES.parent / "data" / "reference" / "nnUNetTrainerShort__nnUNetPlans__3d_fullres"
SOURCE = Path(__file__).resolve().parents[2] / "src"
STEP = ("--epochs", 1, "--set", "num_iterations_per_epoch=1", "--set", "num_val_iterations_per_epoch=1")
QUICK = (*STEP, "--set", "batch_size=2", "--device", "cpu")
FULL = ("--config", "3d_fullres")

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"needs the reported inputs in {CASES}")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model, imported."""
    if not REFERENCE.is_dir():
        pytest.skip(f"needs the reference model in {REFERENCE}")
    model = tmp_path_factory.mktemp("reference") / "model"
    assert call("import-model", REFERENCE, model).exit_code == 0
    return model


def make(number: str, *kind: str, folder: str = "in") -> Path:
    """Write the input of a case, or of one of its kinds, below the current folder."""
    (script,) = CASES.glob(f"{number}-*/make.py")
    place = Path(folder).absolute()
    subprocess.run([sys.executable, script, place, *kind], check=True, capture_output=True)
    return place


def only(folder: Path) -> Path:
    (dataset,) = folder.glob("Dataset*")
    return dataset


def refused(result: Result, *words: str) -> None:
    """Check that a command ended with exit code 1 and named the problem."""
    assert result.exit_code == 1, result.output
    for word in words:
        assert word in result.output, f"{word!r} is missing in: {result.output}"


def accepted(result: Result, *words: str) -> None:
    """Check that a command succeeded and printed a message."""
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.output, f"{word!r} is missing in: {result.output}"


def run(dataset: Path, *more: object, work: str = "w") -> Result:
    return call("--work", work, "run", dataset, *FULL, *more, *QUICK)


def train(dataset: Path, fold: int, *more: object) -> Result:
    return call("--work", "w", "train", dataset, *FULL, "--fold", fold, *more, *QUICK)


def test_labels_within_rounding_of_whole_numbers_are_those_numbers() -> None:
    accepted(call("check", make("01") / "Dataset301_FloatLabels"))


def test_labels_that_changed_after_planning_are_refused_by_name() -> None:
    dataset = make("03") / "Dataset303_Changed"
    accepted(call("--work", "w", "plan", dataset))
    make("03", "later")
    refused(call("--work", "w", "preprocess", dataset, "-c", "3d_fullres"), "labelsTr", "1.9")
    refused(train(dataset, 0), "labelsTr", "1.9")


def test_a_prediction_stored_in_another_orientation_scores_as_what_it_is() -> None:
    make("04")
    accepted(call("evaluate", "in/ref", "in/pred", "--labels", "1,2", "-o", "s.json"))
    assert json.loads(Path("s.json").read_text())["foreground_mean"]["Dice"] == 1.0


@pytest.mark.slow
def test_cases_that_are_in_no_fold_are_told() -> None:
    dataset = make("05") / "Dataset305_Growing"
    accepted(run(dataset, "--folds", 0))
    make("05", "more")
    result = run(dataset, "--folds", 1)
    assert "no fold" in result.output


@pytest.mark.parametrize("more", [(), ("--reorient",)], ids=["plain", "reoriented"])
def test_flat_nifti_with_sides_plans_or_is_refused(more: tuple[str, ...]) -> None:
    result = call("--work", "w", "plan", only(make("06")), *more)
    assert result.exit_code in (0, 1), result.output
    assert "reshape" not in result.output


def test_colour_nifti_is_refused_in_words() -> None:
    refused(call("check", make("10") / "Dataset310_Colour"), "3 values per voxel", "one file per channel")


def test_complex_images_are_refused() -> None:
    refused(call("check", make("11") / "Dataset311_Complex"), "complex")


def test_units_of_the_header_are_obeyed() -> None:
    make("14")
    spacings = []
    for name in ("Dataset314_Gz", "Dataset315_Plain"):
        accepted(call("--work", "w", "plan", f"in/{name}"))
        fingerprint = json.loads(Path(f"w/preprocessed/{name}/dataset_fingerprint.json").read_text())
        spacings.append(fingerprint["spacings"][0])
    assert spacings[0] == pytest.approx([0.035] * 3)
    assert spacings[1] == pytest.approx([0.035] * 3)


def test_masks_lie_on_their_images_in_every_viewer(reference: Path) -> None:
    make("15")
    accepted(call("predict", "--model", reference, "-i", "in", "-o", "out", "--no-mirroring", "--device", "cpu"))
    images = sorted(Path("in").glob("*_0000.nii.gz"))
    assert images
    for file in images:
        image, mask = nib.load(file), nib.load(Path("out") / file.name.replace("_0000", ""))
        for code in ("qform_code", "sform_code", "xyzt_units"):
            assert image.header[code] == mask.header[code], f"{file.name}: {code}"
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
        np.testing.assert_allclose(mask.get_qform(), image.get_qform(), atol=1e-4)


def test_links_to_nothing_are_named_in_prediction(reference: Path) -> None:
    make("17")
    for folder, name in (("images", "sub-02_0000.nii.gz"), ("none", "sub-03_0000.nii.gz")):
        refused(call("predict", "--model", reference, "-i", f"in/{folder}", "-o", folder, "--device", "cpu"), name)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("nosuffix", "case.nii.gz"),
        ("nii", ".nii"),
        ("nii/case_0000.nii", "gzip"),
        ("upper", "case_0000.NII.GZ"),
        ("nested", "case"),
        ("empty", "empty"),
    ],
)
def test_what_is_there_instead_of_images_is_named(reference: Path, name: str, word: str) -> None:
    make("18")
    refused(call("predict", "--model", reference, "-i", f"in/{name}", "-o", "out", "--device", "cpu"), word)


PREDICT = """
import runpy, sys
model, *folders = sys.argv[1:]
for folder in folders:
    sys.argv[1:] = ["predict", "--model", model, "-i", f"in/{folder}", "-o", f"out-{folder}", "--device", "cpu"]
    sys.argv += ["--no-mirroring", "--probabilities", "nifti"]
    try:
        runpy.run_module("segwright", run_name="__main__")
    except SystemExit as end:
        print(f"ended: {folder} {end.code or 0}", flush=True)
"""


@pytest.mark.parametrize("variables", [{}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_any_name_is_predicted_or_refused(reference: Path, variables: dict[str, str]) -> None:
    """Run in a separate process, because a library may abort it."""
    make("19")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **variables}
    folders = ("latin1", "long", "newline", "brackets", "emoji")
    command = [sys.executable, "-P", "-c", PREDICT, str(reference), *folders]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    said = (ended.stdout + ended.stderr).decode(errors="replace")
    codes = dict(line.split()[1:] for line in ended.stdout.decode().splitlines() if line.startswith("ended: "))
    assert [*codes] == [*folders], said
    assert {*codes.values()} <= {"0", "1"}, said
    if codes["brackets"] == "0":
        assert "case [left] [red] (1)" in said


def test_encodings_and_slips_of_editors_have_a_remedy() -> None:
    folder = make("21")
    for dataset in sorted(folder.iterdir()):
        result = call("check", dataset)
        if dataset.name.endswith(("Bom", "Crlf", "Base")):
            accepted(result)
        else:
            refused(result, "dataset.json")
            assert "codec" not in result.output
            assert "Expecting property name" not in result.output


def test_regions_that_cannot_be_decoded_are_refused() -> None:
    refused(call("check", make("23") / "Dataset423_Regions"), "regions_class_order")


@pytest.mark.slow
def test_training_and_prediction_have_one_rule_for_nan() -> None:
    dataset = make("24") / "Dataset424_NanBackground"
    trained = run(dataset, "--folds", 0)
    if trained.exit_code == 0:
        model = "w/results/Dataset424_NanBackground/Trainer__nnUNetPlans__3d_fullres"
        images = dataset / "imagesTr"
        accepted(call("predict", "--model", model, "-i", images, "-o", "out", "--no-mirroring", "--device", "cpu"))
    else:
        refused(trained, "NaN")


def test_labels_outside_of_the_image_s_content_are_told() -> None:
    accepted(call("check", make("25") / "Dataset425_Outside"), "59 %", "cropped away")


def test_overlapping_segments_are_named() -> None:
    refused(call("check", make("27") / "Dataset427_Layers"), "overlapping segments")


def test_markup_in_label_names_is_printed() -> None:
    dataset = make("28") / "Dataset428_Markup"
    labels = dataset / "labelsTr"
    described = ("--dataset-json", dataset / "dataset.json")
    accepted(call("evaluate", labels, labels, *described), "GTV [primary]", "node [/]")


@pytest.mark.parametrize("kind", ["mixed", "rgba"])
def test_the_odd_picture_is_named(kind: str) -> None:
    result = call("check", make("35", kind) / "Dataset435_Png")
    refused(result)
    assert "no such file" not in result.output
    if kind == "mixed":
        assert "c0_0000.png" in result.output


@pytest.mark.parametrize("kind", ["labelrgb", "labelLA"])
def test_label_maps_whose_colours_are_all_grey_are_read(kind: str) -> None:
    assert call("check", make("35", kind) / "Dataset435_Png").exit_code == 0


@pytest.mark.parametrize("kind", ["bids", "escape"])
def test_case_ids_that_are_paths_are_refused(kind: str) -> None:
    dataset = make("38", kind) / "Dataset438_Ids"
    before = sorted(Path.cwd().parent.rglob("*"))
    for verb in ("check", "plan", "preprocess"):
        more = ("-c", "3d_fullres") if verb == "preprocess" else ()
        refused(call("--work", "a/b/w", verb, dataset, *more), "sub-00/ses-1" if kind == "bids" else "escaped0")
    written = set(Path.cwd().parent.rglob("*")) - set(before)
    assert not [path for path in written if "escaped" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["39", "41"])
def test_explicit_lists_run_whatever_their_labels_are_called(number: str) -> None:
    dataset = only(make(number))
    accepted(run(dataset, "--folds", 0))
    accepted(run(dataset, "--folds", 1))
    accepted(call("--work", "w", "select", dataset, *FULL))


@pytest.mark.slow
def test_a_model_folder_keeps_one_set_of_labels() -> None:
    dataset = make("40") / "Dataset440_Resume"
    accepted(call("--work", "w", "plan", dataset))
    accepted(train(dataset, 0))
    resumed = call(
        *("--work", "w", "train", dataset, *FULL, "--fold", 0, "--resume", "--network", "residual-unet", *QUICK)
    )
    assert "network" in resumed.output
    make("40", "swapped")
    refused(train(dataset, 1), "label")


def test_labels_stored_in_another_orientation_are_turned_or_refused() -> None:
    result = call("check", make("43") / "Dataset443_Flip")
    assert result.exit_code == 0 or "--reorient" in result.output


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("slope", "0.996"),
        ("prob", "0.7"),
        ("shape", "shape"),
        ("origin", "origin"),
        ("nan", "NaN"),
        ("huge", "1099511"),
        ("suffix", "c0_0000.nii.gz"),
        ("extra", "d0.nii.gz"),
    ],
)
def test_predictions_that_do_not_fit_their_reference_are_refused(kind: str, word: str) -> None:
    make("48", kind)
    refused(call("evaluate", "in/ref", "in/pred", "--labels", "1,2"), word)


def test_predictions_of_another_ending_are_scored_and_told() -> None:
    make("48", "nii")
    accepted(call("evaluate", "in/ref", "in/pred", "--labels", "1,2"), "end in .nii are scored")


@pytest.mark.parametrize(("kind", "word"), [("negative", "-5"), ("255", "127")])
def test_values_that_are_no_labels_are_told(kind: str, word: str) -> None:
    make("48", kind)
    accepted(call("evaluate", "in/ref", "in/pred", "--labels", "1,2"), word)


@pytest.mark.parametrize("kind", ["trail", "onlyone", "transposed", "missing"])
def test_predictions_that_fit_are_scored(kind: str) -> None:
    make("48", kind)
    accepted(call("evaluate", "in/ref", "in/pred", "--labels", "1,2", "-o", "s.json"))
    if kind != "onlyone":
        assert json.loads(Path("s.json").read_text())["foreground_mean"]["Dice"] == 1.0


@pytest.mark.slow
def test_stacks_are_read_by_every_verb() -> None:
    dataset = make("49") / "Dataset450_Stacks"
    accepted(call("evaluate", dataset / "labelsTr", dataset / "labelsTr", "-o", "s.json"))
    accepted(run(dataset, "--folds", 0))
    measured = "w/preprocessed/Dataset450_Stacks/dataset_fingerprint.json"
    description = ("--dataset-json", dataset / "dataset.json")
    accepted(call("plan", "--from-fingerprint", measured, *description, "-o", "plans.json"))
    assert json.loads(Path("plans.json").read_text())["image_reader_writer"] == "Tiff3DIO"


@pytest.mark.parametrize("kind", ["vector", "short", "html", "lfs", "zero", "dir", "niigz"])
def test_files_that_are_no_images_are_named_in_our_words(kind: str) -> None:
    result = call("check", only(make("50", kind)))
    refused(result, "c3" if kind == "niigz" else "c2" if kind != "vector" else "c0")
    assert "ImageIO" not in result.output


@pytest.mark.parametrize("kind", ["twoD", "trailing", "trailinglabel", "mha", "bool"])
def test_honest_mixtures_are_judged_without_a_fault(kind: str) -> None:
    result = call("check", only(make("50", kind)))
    assert result.exit_code in (0, 1), result.output


@pytest.mark.slow
def test_corrected_labels_are_told() -> None:
    dataset = make("53") / "Dataset453_Corrected"
    accepted(run(dataset, "--folds", 0))
    make("53", "later")
    result = run(dataset, "--folds", 0)
    assert "labels" in result.output
    assert "changed" in result.output


def test_links_to_nothing_are_named_in_training_data() -> None:
    dataset = make("58").resolve()
    result = call("check", only(dataset))
    refused(result)
    dangling = [path.name for path in only(dataset).rglob("*") if path.is_symlink() and not path.exists()]
    assert dangling
    for name in dangling:
        assert name in result.output
