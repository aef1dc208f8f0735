"""Time our loader and augmentation per sample: `loader.py FOLDER PATCH BATCH_SIZE NUM_SAMPLES`."""

import json
import math
import sys
import time
from pathlib import Path

import torch

from segwright.augmentation.recipe import build_recipe
from segwright.core.parallel import available_cpus
from segwright.core.process_tuning import tune_process
from segwright.data.labels import Labels
from segwright.data.preprocessed.store import CaseStore
from segwright.training.loading.batches import BatchLoader
from segwright.training.loading.caching import CaseCache, choose_placement, total_bytes
from segwright.training.loading.prefetch import prefetch

folder = Path(sys.argv[1])
patch = tuple(map(int, sys.argv[2].split("x")))
batch_size, num_samples = int(sys.argv[3]), int(sys.argv[4])
tune_process()  # as the command line does
store = CaseStore(folder / "ours")
labels = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
scales = [[1.0 / 2**level] * 3 for level in range(3 if min(patch) < 64 else 5)]
needed = total_bytes(store, store.identifiers())


def seconds_per_sample(mode: str) -> tuple[float, str]:
    """Return seconds per sample after a warm-up, and where the cases are cached."""
    placement = choose_placement(mode, needed, torch.device("cpu"))
    loader = BatchLoader(
        CaseCache(store, placement),
        store.identifiers(),
        patch_size=patch,
        batch_size=batch_size,
        labels=labels,
        recipe=build_recipe("default", patch),
        scales=scales,
    )
    warm = max(4, math.ceil(12 / batch_size))
    steps = warm + math.ceil(num_samples / batch_size)
    start = 0.0
    for step, _ in enumerate(prefetch(loader, 0, steps, threads=available_cpus())):
        if step + 1 == warm:
            start = time.perf_counter()
    return (time.perf_counter() - start) / ((steps - warm) * batch_size), placement.location


default, place = seconds_per_sample("auto")
from_disk, _ = seconds_per_sample("none")
rates = {"place": place, "samples_per_s": round(1 / default, 1), "from_disk_samples_per_s": round(1 / from_disk, 1)}
print(json.dumps({"seconds": default, **rates, "from_disk_seconds": from_disk}))
