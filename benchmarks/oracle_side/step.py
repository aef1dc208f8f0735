"""Time `train_step` of nnU-Net's trainer on one fixed batch. Run with nnU-Net's interpreter."""

import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

torch.set_num_threads(len(os.sched_getaffinity(0)))
plans, description = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
with contextlib.redirect_stdout(sys.stderr):
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, description, device=torch.device("cpu"))
    trainer.initialize()
generator = torch.Generator().manual_seed(0)
data = torch.randn(9, 1, 40, 56, 40, generator=generator)
target = [torch.randint(0, 3, (9, 1, 40 // f, 56 // f, 40 // f), generator=generator).short() for f in (1, 2, 4)]
batch = {"data": data, "target": target}
trainer.network.train()
trainer.train_step(batch)
times = []
for _ in range(3):
    start = time.perf_counter()
    trainer.train_step(batch)
    times.append(time.perf_counter() - start)
print(json.dumps({"seconds": statistics.median(times)}))
