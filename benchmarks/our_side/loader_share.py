"""Measure the loader's share of a training step: `loader_share.py FOLDER PLANS DATASET_JSON`.

Steps with the loader and steps on one repeated batch alternate in one process; the share is the difference.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from segwright.core.parallel import available_cpus
from segwright.core.process_tuning import tune_process
from segwright.data.crossval.splits import Split
from segwright.data.preprocessed.store import CaseStore
from segwright.training.config import TrainConfig
from segwright.training.loading.prefetch import prefetch
from segwright.training.trainer import Trainer

ROUNDS, STEPS = 5, 4

torch.set_num_threads(available_cpus())
tune_process()  # as the command line does
folder = Path(sys.argv[1])
plans, description = (json.loads(Path(path).read_text()) for path in sys.argv[2:4])
store = CaseStore(folder / "ours")
trainer = Trainer(
    plans,
    "3d_fullres",
    0,
    description,
    device="cpu",
    cases=store,
    split=Split(train=store.identifiers(), val=store.identifiers()[:1]),
    output_folder=folder / "fold_0",
    config=TrainConfig(),
)
trainer.initialize()
loader, _ = trainer.get_dataloaders()
trainer.network.train()
same = loader.batch(0, 0)
trainer.train_step(same)
with_loader, without = [], []
for turn in range(ROUNDS):
    batches = prefetch(loader, turn, STEPS + 4)  # more than are used, so that it is busy during all steps
    for step in range(STEPS + 1):
        start = time.perf_counter()
        trainer.train_step(next(batches))
        if step:  # the first step waits for the first batch
            with_loader.append(time.perf_counter() - start)
    batches.close()
    for _ in range(STEPS):
        start = time.perf_counter()
        trainer.train_step(same)
        without.append(time.perf_counter() - start)
alone = []
for step in range(6):
    start = time.perf_counter()
    loader.batch(9, step)
    alone.append(time.perf_counter() - start)
with_s, without_s, alone_s = (statistics.median(times) for times in (with_loader, without, alone))
print(
    json.dumps(
        {
            "seconds": with_s,
            "step_without_loader_s": without_s,
            "share_of_step": round(1 - without_s / with_s, 4),
            "batch_alone_s": alone_s,
            "work_of_loader_to_step": round(alone_s / (without_s * available_cpus()), 4),
        }
    )
)
