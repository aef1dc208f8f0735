"""Make the goldens of nnU-Net's commands with nnU-Net 2.8.1, which is run as programs:

    ~/.cache/segwright-oracle/bin/python make_commands.py

`documents.json.gz` has the documents that the commands write, and the names of all files, by the command; `arrays.npz`
the label maps, and every fourth voxel of the preprocessed cases. `make_models.py` made `models.zip`.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import SimpleITK as sitk  # noqa: N813
import subset

HERE = Path(__file__).parent
PROGRAMS = Path(sys.executable).parent
HIPPOCAMPUS = HERE.resolve().parents[3] / "shared" / "data" / subset.DATASET
MODEL = ("-tr", subset.TRAINER, "-p", subset.PLANS)
LENGTH = {"ORACLE_EPOCHS": "1", "ORACLE_ITERS": "1", "ORACLE_VAL_ITERS": "1"}


class Recorder:
    """Runs commands in a work folder and keeps what they write."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.documents: dict[str, Any] = {}
        self.files: dict[str, list[str]] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.variables = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}

    def run(self, name: str, *arguments: object) -> None:
        command = [str(PROGRAMS / f"nnUNetv2_{name}"), *map(str, arguments)]
        more = {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", **LENGTH}
        done = subprocess.run(
            command, env={**os.environ, **self.variables, **more}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(name, *arguments, flush=True)

    def keep_document(self, key: str, file: Path) -> None:
        text = file.read_text().replace(str(self.work), "WORK")
        self.documents[key] = json.loads(text) if file.suffix == ".json" else text

    def keep_names(self, key: str, folder: Path) -> None:
        self.files[key] = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    def keep_labels(self, key: str, folder: Path) -> None:
        for file in sorted(folder.glob(f"*{subset.ENDING}")):
            self.arrays[f"{key}/{file.name}"] = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.uint8)


def prepare(recorder: Recorder) -> None:
    raw, preprocessed = recorder.work / "raw" / subset.DATASET, recorder.work / "preprocessed" / subset.DATASET
    subset.write_dataset(HIPPOCAMPUS, raw)
    subset.write_dataset(HIPPOCAMPUS, raw.with_name(subset.OTHER))
    recorder.run("extract_fingerprint", "-d", 4, 5, "-np", 1, "--verify_dataset_integrity")
    recorder.keep_document("extract_fingerprint", preprocessed / "dataset_fingerprint.json")
    recorder.run("plan_experiment", "-d", 4)
    recorder.keep_document("plan_experiment", preprocessed / "nnUNetPlans.json")
    recorder.run("move_plans_between_datasets", "-s", 4, "-t", 5, "-sp", "nnUNetPlans", "-tp", "moved")
    recorder.keep_document("move_plans_between_datasets", preprocessed.with_name(subset.OTHER) / "moved.json")
    recorder.run("preprocess", "-d", 4, "-c", *subset.CONFIGURATIONS, "-np", 1)
    recorder.keep_names("preprocess", preprocessed)
    for configuration in subset.CONFIGURATIONS:
        file = preprocessed / f"nnUNetPlans_{configuration}" / subset.TRAINING[0]
        for ending in (".b2nd", "_seg.b2nd"):
            array = blosc2.open(f"{file}{ending}")[:]
            recorder.arrays[f"preprocess/{configuration}{ending}"] = array[..., ::4, ::4, ::4]


def train(recorder: Recorder) -> None:
    """Record the names of the files that a training writes; it is too short to learn anything."""
    preprocessed = recorder.work / "preprocessed" / subset.DATASET
    subset.shrink(preprocessed / "nnUNetPlans.json", preprocessed / f"{subset.PLANS}.json")
    recorder.run("train", 4, "2d", 0, "-tr", "nnUNetTrainerShort", "-p", subset.PLANS, "--npz", "-device", "cpu")
    recorder.keep_document("splits", preprocessed / "splits_final.json")
    recorder.keep_names("train", recorder.work / "results" / subset.DATASET / f"nnUNetTrainerShort__{subset.PLANS}__2d")


def select(recorder: Recorder) -> None:
    results = recorder.work / "results" / subset.DATASET
    recorder.run("install_pretrained_model_from_zip", HERE / "models.zip")
    recorder.run(
        *("find_best_configuration", 4, "-c", *subset.CONFIGURATIONS, "-f", 0, "-np", 1, "--disable_ensembling"),
        *MODEL,
    )
    recorder.keep_document("find_best_configuration", results / "inference_information.json")
    recorder.keep_document("instructions", results / "inference_instructions.txt")
    pooled = recorder.work / "pooled"
    recorder.run("accumulate_crossval_results", 4, "-c", "3d_fullres", "-f", 0, *MODEL, "-o", pooled)
    recorder.keep_document("accumulate_crossval_results", pooled / "summary.json")
    recorder.keep_names("accumulate_crossval_results", pooled)
    for fold in results.glob(f"{subset.TRAINER}__*/fold_0"):  # without it nnU-Net packs nothing
        (fold / "progress.png").touch()
    archive = recorder.work / "models.zip"
    recorder.run(
        *("export_model_to_zip", "-d", 4, "-o", archive, "-c", *subset.CONFIGURATIONS, "-f", 0, "--exp_cv_preds"),
        *MODEL,
    )
    shutil.unpack_archive(archive, recorder.work / "unpacked")
    recorder.keep_names("export_model_to_zip", recorder.work / "unpacked")


def predict(recorder: Recorder) -> None:
    images, results = recorder.work / "raw" / subset.DATASET / "imagesTs", recorder.work / "results" / subset.DATASET
    outputs = {name: recorder.work / f"predicted_{name}" for name in subset.CONFIGURATIONS}
    common = ("-f", 0, "-npp", 1, "-nps", 1, "-device", "cpu", "--save_probabilities")
    recorder.run(*("predict", "-i", images, "-o", outputs["2d"], "-d", 4, "-c", "2d", *MODEL, *common))
    recorder.run(
        *("predict_from_modelfolder", "-i", images, "-o", outputs["3d_fullres"], *common),
        *("-m", results / f"{subset.TRAINER}__{subset.PLANS}__3d_fullres", "--disable_tta"),
    )
    for name, key in (("2d", "predict"), ("3d_fullres", "predict_from_modelfolder")):
        recorder.keep_names(key, outputs[name])
        recorder.keep_labels(key, outputs[name])
    recorder.run("ensemble", "-i", *outputs.values(), "-o", recorder.work / "mean", "-np", 1)
    recorder.keep_names("ensemble", recorder.work / "mean")
    recorder.keep_labels("ensemble", recorder.work / "mean")


def evaluate(recorder: Recorder) -> None:
    """Score and post-process the held-out predictions of the 2D model, which have stray components."""
    predictions, references = recorder.work / "scored", recorder.work / "raw" / subset.DATASET / "labelsTr"
    model = recorder.work / "results" / subset.DATASET / f"{subset.TRAINER}__{subset.PLANS}__2d"
    predictions.mkdir()
    for file in [*(model / "fold_0" / "validation").glob(f"*{subset.ENDING}"), *model.glob("*.json")]:
        shutil.copyfile(file, predictions / file.name)
    documents = ("-djfile", predictions / "dataset.json", "-pfile", predictions / "plans.json")
    for name, how in (("evaluate_folder", documents), ("evaluate_simple", ("-l", 1, 2))):
        file = recorder.work / f"{name}.json"
        recorder.run(name, references, predictions, *how, "-np", 1, "-o", file, "--chill")
        recorder.keep_document(name, file)
    recorder.run("determine_postprocessing", "-i", predictions, "-ref", references, "-np", 1)
    recorder.keep_names("determine_postprocessing", predictions)
    recorder.keep_document("determine_postprocessing", predictions / "postprocessing.json")
    output = recorder.work / "processed"
    recorder.run(
        *("apply_postprocessing", "-i", predictions, "-o", output, "-np", 1),
        *("-pp_pkl_file", predictions / "postprocessing.pkl"),
    )
    recorder.keep_names("apply_postprocessing", output)
    recorder.keep_labels("apply_postprocessing", output)


def convert(recorder: Recorder) -> None:
    task, old = recorder.work / subset.TASK, recorder.work / "old" / "Task007_Old"
    subset.write_task(HIPPOCAMPUS, task)
    recorder.run("convert_MSD_dataset", "-i", task, "-overwrite_id", 6, "-np", 1)
    subset.write_old_dataset(HIPPOCAMPUS, old)
    recorder.run("convert_old_nnUNet_dataset", old, "Dataset007_Old")
    for key, name in (
        ("convert_MSD_dataset", "Dataset006_Hippocampus"),
        ("convert_old_nnUNet_dataset", "Dataset007_Old"),
    ):
        recorder.keep_names(key, recorder.work / "raw" / name)
        recorder.keep_document(key, recorder.work / "raw" / name / "dataset.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        recorder = Recorder(Path(work))
        for step in (prepare, train, select, predict, evaluate, convert):
            step(recorder)
    write(recorder)


def write(recorder: Recorder) -> None:
    document = {"documents": recorder.documents, "files": recorder.files}
    with gzip.GzipFile(HERE / "documents.json.gz", "wb", mtime=0) as stream:
        stream.write(json.dumps(document, indent=1).encode())
    np.savez_compressed(HERE / "arrays.npz", **recorder.arrays)


if __name__ == "__main__":
    main()
