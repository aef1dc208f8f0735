"""Time `train_step` of our trainer on the batch that nnU-Net gets: `step.py PLANS DATASET_JSON OUTPUT_FOLDER`."""

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
from segwright.training.trainer import Trainer

torch.set_num_threads(available_cpus())
tune_process()  # as the command line does
plans, description = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
folder = Path(sys.argv[3])
trainer = Trainer(
    plans,
    "3d_fullres",
    0,
    description,
    device="cpu",
    cases=CaseStore(folder / "cases"),
    split=Split(train=(), val=()),
    output_folder=folder / "fold_0",
    config=TrainConfig(batch_size=9),
)
trainer.initialize()
generator = torch.Generator().manual_seed(0)
data = torch.randn(9, 1, 40, 56, 40, generator=generator)
target = [torch.randint(0, 3, (9, 1, 40 // f, 56 // f, 40 // f), generator=generator).short() for f in (1, 2, 4)]
trainer.network.train()
for _ in range(2):
    trainer.train_step({"data": data, "target": target, "keys": []})
times = []
for _ in range(5):
    start = time.perf_counter()
    trainer.train_step({"data": data, "target": target, "keys": []})
    times.append(time.perf_counter() - start)
print(json.dumps({"seconds": statistics.median(times)}))
