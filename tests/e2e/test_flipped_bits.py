"""A flipped bit in a stored file: the same content, an error, or the file counts as missing.

`SEGWRIGHT_TRIALS=50` flips 300 bits of each kind, half of them in digits where it is a text; 12 by default.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from pydantic import BaseModel

from segwright import api
from segwright.api.checks.one_model import recorded_settings
from segwright.core.errors import SegwrightError
from segwright.core.files.json_documents import read_json
from segwright.data.crossval import splits
from segwright.data.fingerprint import Fingerprint
from segwright.data.images.image_io import read_label
from segwright.data.phantom import write_dataset
from segwright.data.plan import Plan
from segwright.data.preprocessed.previous_stage import StageMaps
from segwright.data.preprocessed.store import CaseStore
from segwright.data.stage_cache import StageCache
from segwright.data.training_data import TrainingData
from segwright.evaluation.scores import Scores
from segwright.inference.export.postprocessing import PostProcessing
from segwright.inference.folder.log import PredictionLog
from segwright.inference.folder.log_files import matches
from segwright.inference.models.selected import read_selected
from segwright.inference.reliability.calibration import Calibration
from segwright.inference.reliability.expected_dice import DiceEstimator
from segwright.training.checkpointing import checkpoints
from segwright.training.validation.final import PredictionRecord
from segwright.training.validation.reliability import CaseStats
from segwright.workspace import Workspace

pytestmark = pytest.mark.slow

FLIPS: Final = 6 * int(os.environ.get("SEGWRIGHT_TRIALS", "2"))
NAME: Final = "Dataset007_Tiny"
MODEL: Final = f"results/{NAME}/Trainer__nnUNetPlans__3d_fullres"
FOLD: Final = f"{MODEL}/fold_0"
VALIDATION: Final = f"{FOLD}/validation"
SELECTED: Final = f"results/{NAME}/model"
DERIVED: Final = f"preprocessed/{NAME}"
STORE: Final = f"{DERIVED}/segwright_nnUNetPlans_3d_fullres"
PREDICTED: Final = "predicted"
MAPS: Final = "maps"
IMAGE: Final = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
SETTINGS: Final = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "batch_size": 2,
    "save_every": 1,
    "network": "unet",
    "network_kwargs": {"n_stages": 2, "features_per_stage": [4, 8], "strides": [1, 2], "kernel_sizes": 3,
                       "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1},
}  # fmt: skip
"""A network of 40 kB, so that flips hit its header as well."""

Read = Callable[[Path], Any]


def content_of(value: object) -> object:
    """Return a document without unknown keys: a flip in the word "checksum" makes one, and changes nothing else."""
    return {key: getattr(value, key) for key in type(value).model_fields} if isinstance(value, BaseModel) else value


def predicted(root: Path) -> bytes:
    return np.asarray(api.load_model(root / MODEL, device="cpu").predict(IMAGE, spacing=(1.3, 1, 1))).tobytes()


def resumed(root: Path) -> object:
    found = checkpoints.find_resumable(root / "unfinished")
    assert found is not None
    read = checkpoints.load(found)
    if read.state.epoch < 2:
        return None  # the checkpoint before, which a line tells
    return [read.state, *(tensor.numpy().tobytes() for tensor in (*read.weights.values(), *read.optimizer.values()))]


def case(root: Path) -> object:
    name = held_out(root)
    found = CaseStore(root / STORE).load(name)
    locations = {key: np.asarray(rows).tobytes() for key, rows in found.class_locations.items()}
    return np.asarray(found.image).tobytes(), np.asarray(found.label).tobytes(), locations, found.provenance


def stages(root: Path) -> object:
    journal = StageCache(root / DERIVED)
    return (journal.raw, journal._stages()) if journal.is_begun else None


def journal(root: Path) -> object:
    document = read_json(root / "kept_prediction.json")
    return PredictionLog.open(root / PREDICTED / "prediction.json", document["model"], {}).cases


def is_kept(root: Path) -> object:
    """Whether a resumed run accepts the label map as its own."""
    document = read_json(root / PREDICTED / "prediction.json")
    found = PredictionLog.open(root / PREDICTED / "prediction.json", document["model"], {})
    file = next((root / PREDICTED).glob("*.nii.gz"))
    entry = found.cases[file.name.removesuffix(".nii.gz")]["files"][file.name]
    return True if matches(file, entry) else None


def averaged(root: Path) -> object:
    api.ensemble(
        [root / PREDICTED, root / "also_predicted"],
        root / "averaged",
        dataset_json=root / MODEL / "dataset.json",
        overwrite=True,
    )
    file = next((root / "averaged").glob("*.nii.gz"))
    return np.asarray(read_label(file, "SimpleITKIO").array).tobytes()


def record(root: Path) -> object:
    document = read_json(root / "kept_predictions.json")
    return PredictionRecord.open(root / VALIDATION, document["weights_hash"]).done or None


def recorded(root: Path) -> object:
    """Whether a resumed validation accepts the label map as its own."""
    document = read_json(root / VALIDATION / "predictions.json")
    name = f"{held_out(root)}.nii.gz"
    return PredictionRecord(None, "", document["files"]).has(root / VALIDATION / name) or None


def label_map(root: Path) -> object:
    volume = read_label(root / VALIDATION / f"{held_out(root)}.nii.gz", "SimpleITKIO")
    return volume.array.tobytes(), volume.properties


def fine_plan(root: Path) -> object:
    """Read the plan as the trained fold needs it: training with another one is refused (`require_same_plan`)."""
    now = Plan.load(root / DERIVED / "nnUNetPlans.json").setup("3d_fullres")
    then = Plan.load(root / MODEL / "plans.json").setup("3d_fullres")
    return now if now == then else None


def folds(root: Path) -> object:
    """Read the splits if they are the default ones; others are logged, and refused for a trained fold."""
    found = splits.load(root / DERIVED / "splits_final.json")
    return found if splits.are_default(found, [f"phantom_{number:03}" for number in range(1, 7)]) else None


def stage_map(root: Path) -> object:
    return np.asarray(StageMaps(root / MAPS).load("a")[...]).tobytes()


def held_out(root: Path) -> str:
    return str(read_json(root / "held_out.json"))


KINDS: Final[dict[str, tuple[str, Read]]] = {
    "weights": (f"{FOLD}/checkpoint_final.safetensors", predicted),
    "checkpoint document": (f"{FOLD}/checkpoint_final.json", predicted),
    "plans of a model": (f"{MODEL}/plans.json", predicted),
    "dataset.json of a model": (f"{MODEL}/dataset.json", predicted),
    "weights to resume": ("unfinished/checkpoint_latest.safetensors", resumed),
    "optimizer": ("unfinished/optimizer", resumed),
    "selection": (f"{SELECTED}/selection.json", lambda root: read_selected(root / SELECTED)),
    "postprocessing": (
        f"{SELECTED}/postprocessing.json",
        lambda root: PostProcessing.load(root / SELECTED / "postprocessing.json"),
    ),
    "quality": (f"{SELECTED}/quality.json", lambda root: DiceEstimator.load(root / SELECTED / "quality.json")),
    "calibration": (
        f"{SELECTED}/calibration.json",
        lambda root: Calibration.load(root / SELECTED / "calibration.json"),
    ),
    "scores": (f"{VALIDATION}/summary.json", lambda root: Scores.load(root / VALIDATION / "summary.json")),
    "observations": (
        f"{VALIDATION}/observed/CASE.json",
        lambda root: CaseStats.load(root / VALIDATION, held_out(root)),
    ),
    "record of the validation": (f"{VALIDATION}/predictions.json", record),
    "held-out label map, read": (f"{VALIDATION}/CASE.nii.gz", label_map),
    "held-out label map, kept": (f"{VALIDATION}/CASE.nii.gz", recorded),
    "training data": (f"{FOLD}/training_data.json", lambda root: TrainingData.read(root / FOLD)),
    "settings": (f"{FOLD}/train.json", lambda root: recorded_settings(root / FOLD) or None),
    "fingerprint": (
        f"{DERIVED}/dataset_fingerprint.json",
        lambda root: Fingerprint.load(root / DERIVED / "dataset_fingerprint.json"),
    ),
    "plans": (f"{DERIVED}/nnUNetPlans.json", fine_plan),
    "splits": (f"{DERIVED}/splits_final.json", folds),
    "stages": (f"{DERIVED}/segwright_state.json", stages),
    "case document": (f"{STORE}/CASE.json", case),
    "case image": (f"{STORE}/CASE.b2nd", case),
    "case label": (f"{STORE}/CASE_seg.b2nd", case),
    "case locations": (f"{STORE}/CASE_locations.b2nd", case),
    "map of a previous stage": (f"{MAPS}/a.b2nd", stage_map),
    "document of such a map": (f"{MAPS}/a.json", stage_map),
    "journal of predictions": (f"{PREDICTED}/prediction.json", journal),
    "predicted label map": (f"{PREDICTED}/CASE.nii.gz", is_kept),
    "probabilities": (f"{PREDICTED}/CASE.b2nd", averaged),
    "document of probabilities": (f"{PREDICTED}/CASE.provenance.json", averaged),
}
"""Files to damage, with functions that return their content, or None if they count as missing."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with every kind of stored file."""
    root = tmp_path_factory.mktemp("kept")
    raw = root / "raw" / NAME
    write_dataset(raw, num_training=6, num_test=0, edge=16)
    place = Workspace.under(root)
    options = {"workspace": place, "device": "cpu", "configurations": ["3d_fullres"], "folds": [0]}
    api.run(raw, settings=SETTINGS, **options)  # type: ignore[arg-type]
    fold = root / FOLD
    (root / "held_out.json").write_text(f'"{next((root / VALIDATION).glob("*.nii.gz")).name[:-7]}"')
    images = root / "images"
    images.mkdir()
    shutil.copy(raw / "imagesTr" / f"{held_out(root)}_0000.nii.gz", images)
    for folder in (PREDICTED, "also_predicted"):
        api.predict(root / MODEL, images, root / folder, device="cpu", probabilities="b2nd")
    shutil.copy(root / PREDICTED / "prediction.json", root / "kept_prediction.json")
    shutil.copy(root / VALIDATION / "predictions.json", root / "kept_predictions.json")
    StageMaps(root / MAPS).save(
        "a", np.random.default_rng(0).integers(0, 3, (9, 8, 7)).astype(np.uint8), (4, 4, 4), "w"
    )
    final = checkpoints.load(fold / "checkpoint_final.safetensors")
    moments = {f"momentum_buffer/{name}": tensor for name, tensor in final.weights.items()}
    for epoch in (1, 2):
        state = final.state.model_copy(update={"epoch": epoch, "step": epoch})
        checkpoints.save(root / "unfinished", "latest", state, final.weights, optimizer=moments)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_gives_the_same_or_nothing(kept: Path, kind: str) -> None:
    name, read = KINDS[kind]
    file = kept / name.replace("CASE", held_out(kept))
    if kind == "optimizer":
        file = kept / "unfinished" / "checkpoint_latest_optimizer_2.safetensors"
    whole, random, times = file.read_bytes(), np.random.default_rng(0), file.stat()
    right = content_of(read(kept))
    assert right is not None
    everything = {path: path.read_bytes() for path in (*file.parent.glob("*.json"),)}
    digits = [place for place, byte in enumerate(whole) if chr(byte).isdigit()] if file.suffix == ".json" else []
    places = random.integers(0, len(whole), FLIPS).tolist()
    if digits:
        places[::2] = random.choice(digits, len(places[::2])).tolist()
    counts = {"same": 0, "refused": 0, "missing": 0}
    for place in places:
        bit = int(random.integers(0, 8))
        content = bytearray(whole)
        content[place] ^= 1 << bit
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            found = content_of(read(kept))
        except SegwrightError:
            counts["refused"] += 1
        else:
            assert found is None or found == right, (place, bit, whole[max(0, place - 40) : place + 10])
            counts["missing" if found is None else "same"] += 1
        finally:
            for path, before in everything.items():
                path.write_bytes(before)
            file.write_bytes(whole)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    logging.getLogger(__name__).warning("%s: %s", kind, counts)
    assert counts["same"] < FLIPS or name.endswith("dataset.json")
