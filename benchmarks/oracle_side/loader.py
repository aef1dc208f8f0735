"""Time nnU-Net's training loader: `loader.py FOLDER PLANS DATASET_JSON PATCH BATCH N`. Run with nnU-Net's interpreter.

Its worker processes read, augment and queue batches as in a training, one per CPU. The cases are in `FOLDER/arrays`.
"""

import contextlib
import json
import math
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CONFIGURATION = "3d_fullres"


def write_cases(arrays: Path, target: Path, patch: tuple) -> None:
    """Store the cases in the format of nnU-Net's preprocessing."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(arrays.glob("*.npz")):
        if (target / f"{file.stem}.pkl").is_file():
            continue
        with np.load(file) as case:
            image, label = case["image"], case["label"]
        random = np.random.default_rng(0)
        locations = {}
        for key in (1, 2):
            found = random.permutation(np.argwhere(label[0] == key))[:10000]
            locations[key] = np.concatenate([np.zeros((len(found), 1), found.dtype), found], axis=1)
        layout = []
        for array in (image, label):
            block, chunk = comp_blosc2_params(array.shape, patch, array.itemsize)
            layout += [chunk, block]
        nnUNetDatasetBlosc2.save_case(image, label, {"class_locations": locations}, str(target / file.stem), *layout)


def main() -> None:
    folder, plans_file, description_file = map(Path, sys.argv[1:4])
    patch = tuple(map(int, sys.argv[4].split("x")))
    batch_size, num_samples = int(sys.argv[5]), int(sys.argv[6])
    plans, description = (json.loads(file.read_text()) for file in (plans_file, description_file))
    plans["configurations"][CONFIGURATION] |= {"patch_size": list(patch), "batch_size": batch_size}
    if min(patch) >= 64:
        kwargs = plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
        kwargs |= {"strides": [[1] * 3] + [[2] * 3] * 5}
    base = Path(os.environ["nnUNet_preprocessed"], plans["dataset_name"])  # noqa: SIM112
    data = base / plans["configurations"][CONFIGURATION]["data_identifier"]
    with contextlib.redirect_stdout(sys.stderr):
        write_cases(folder / "arrays", data, patch)
        names = [file.stem for file in sorted((folder / "arrays").glob("*.npz"))]
        (base / "splits_final.json").write_text(json.dumps([{"train": names, "val": names[:1]}]))
        trainer = nnUNetTrainer(
            plans | {"continue_training": False}, CONFIGURATION, 0, description, torch.device("cpu")
        )
        trainer.batch_size = batch_size
        training, _ = trainer.get_dataloaders()
        warm = math.ceil(16 / batch_size) + 8  # the queues are full by then
        steps = warm + math.ceil(num_samples / batch_size)
        start = 0.0
        for step in range(steps):
            batch = next(training)
            if step + 1 == warm:
                start = time.perf_counter()
        seconds = (time.perf_counter() - start) / ((steps - warm) * batch_size)
    assert tuple(batch["data"].shape[2:]) == patch
    print(json.dumps({"seconds": seconds, "samples_per_s": round(1 / seconds, 1), "targets": len(batch["target"])}))
    sys.stdout.flush()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(0)  # otherwise its threads would wait for the workers


if __name__ == "__main__":
    main()
