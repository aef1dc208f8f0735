"""Damaged models, ours and nnU-Net's, are read or refused, never more."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import save_file

from segwright.api.models.exchange import find_models, unpacked
from segwright.inference.models.model_folder import load_predictor
from segwright.interop.nnssl import open_checkpoint
from segwright.interop.nnunet import import_model, read_checkpoint
from segwright.networks.checkpoint import load_weights
from segwright.report.sources import read_model, score_sets
from segwright.training.checkpointing import checkpoints
from tests.fuzz.isolation import Target, fuzz
from tests.fuzz.made_models import DATASET, PLANS, make_model, write
from tests.fuzz.mutation import mutate_bytes, mutate_json, mutate_pickle, mutate_safetensors, zip_mutator
from tests.nnssl_checkpoints import write_checkpoint


def _make_ours(folder: Path) -> list[Path]:
    fold = make_model(folder)
    documents = [folder / "plans.json", folder / "dataset.json", folder / "dataset_fingerprint.json"]
    return [*documents, fold / "checkpoint_final.json", fold / "checkpoint_final.safetensors"]


def _read_ours(path: Path) -> None:
    folder = path.parent.parent if path.parent.name == "fold_0" else path.parent
    load_predictor(folder, device="cpu").predict_preprocessed(np.zeros((1, 8, 8, 8), np.float32))


def _read_report(path: Path) -> None:
    folder = path.parent.parent if path.parent.name == "fold_0" else path.parent
    score_sets(read_model(folder))


def _make_checkpoint(folder: Path) -> list[Path]:
    fold = make_model(folder)
    plain = fold / "plain.safetensors"  # without checksums, as other programs write it
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)}, plain, metadata={"x": "y"})
    return [plain, fold / "checkpoint_final.safetensors", *fold.glob("*_optimizer_*.safetensors")]


def _read_checkpoint(path: Path) -> None:
    load_weights(path)
    checkpoints.load(path.parent / "checkpoint_final.safetensors")


def _make_nnunet(folder: Path) -> list[Path]:
    fold = make_model(folder)
    weights = load_weights(fold / "checkpoint_final.safetensors")
    shutil.rmtree(fold)
    fold.mkdir()
    content = {
        "network_weights": weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        "logging": {"mean_fg_dice": [np.float64(0.5), 0.1], "epoch_start_timestamps": [1.5e9]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 2,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu"), "plans": PLANS},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, fold / "checkpoint_final.pth")
    return [fold / "checkpoint_final.pth"]


def _read_pth(path: Path) -> None:
    read_checkpoint(path)


def _make_nnssl(folder: Path) -> list[Path]:
    write_checkpoint(folder / "checkpoint_final.pth", features=(2, 4))
    return [folder / "checkpoint_final.pth"]


def _read_nnssl(path: Path) -> None:
    open_checkpoint(path).encoder()


def _make_nnunet_folder(folder: Path) -> list[Path]:
    (file,) = _make_nnunet(folder)
    return [file, folder / "plans.json", folder / "dataset.json"]


def _import(path: Path) -> None:
    folder = path.parent.parent if path.parent.name == "fold_0" else path.parent
    target = folder.parent / "imported"
    try:
        import_model(folder, target)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _make_zip(folder: Path) -> list[Path]:
    write(folder / "m" / "plans.json", PLANS)
    write(folder / "m" / "dataset.json", DATASET)
    (folder / "m" / "fold_0").mkdir()
    (folder / "m" / "fold_0" / "checkpoint_final.pth").write_bytes(bytes(1000))
    shutil.make_archive(str(folder / "model"), "zip", folder, "m")
    with zipfile.ZipFile(folder / "stored.zip", "w") as archive:
        archive.write(folder / "m" / "plans.json", "m/plans.json")
        archive.writestr("m/fold_0/checkpoint_final.pth", bytes(100))
    return [folder / "model.zip", folder / "stored.zip"]


def _unpack(path: Path) -> None:
    before = sorted(path.parent.rglob("*"))
    try:
        with unpacked(path) as root:
            find_models(root)
    finally:
        assert sorted(path.parent.rglob("*")) == before


def _mutate_part(path: Path, content: bytes, rng: Random) -> bytes:
    kinds = {".json": mutate_json, ".safetensors": mutate_safetensors, ".pth": zip_mutator(mutate_pickle)}
    return kinds[path.suffix](content, rng)


TARGETS = {
    "ours": Target(make=_make_ours, read=_read_ours, mutate_at=_mutate_part),
    "report": Target(make=_make_ours, read=_read_report, mutate_at=_mutate_part),
    "safetensors": Target(make=_make_checkpoint, read=_read_checkpoint, mutate=mutate_safetensors),
    "pth": Target(make=_make_nnunet, read=_read_pth, mutate=zip_mutator(mutate_pickle)),
    "nnssl": Target(make=_make_nnssl, read=_read_nnssl, mutate=zip_mutator(mutate_pickle)),
    "nnunet": Target(make=_make_nnunet_folder, read=_import, mutate_at=_mutate_part),
    "zip": Target(make=_make_zip, read=_unpack, mutate=zip_mutator(mutate_bytes)),
}


def test_damaged_models_are_read_or_refused(fuzz_count: int, fuzz_seed: int) -> None:
    outcome = fuzz("tests.fuzz.test_fuzzed_models:*", count=fuzz_count * len(TARGETS), seed=fuzz_seed)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert outcome.tried == fuzz_count * len(TARGETS)
