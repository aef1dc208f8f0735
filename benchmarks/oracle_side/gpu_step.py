"""Time `train_step` of nnU-Net's trainer on one random batch: `gpu_step.py JOB CONFIGURATION`.

Run with nnU-Net's interpreter. The job, a JSON object, has the keys model (the folder of plans.json and dataset.json),
device, warm_up, min_steps and min_s. The network is compiled if nnU-Net does so by itself.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    job = json.loads(sys.argv[1])
    plans, description = (json.loads(Path(job["model"], name).read_text()) for name in ("plans.json", "dataset.json"))
    plans["continue_training"] = False
    device = torch.device(job["device"])
    with contextlib.redirect_stdout(sys.stderr):
        trainer = nnUNetTrainer(plans, sys.argv[2], 0, description, device=device)
        trainer.initialize()
        patch, size = trainer.configuration_manager.patch_size, trainer.configuration_manager.batch_size
        scales = trainer._get_deep_supervision_scales()
    data = torch.randn(size, 1, *patch)
    levels = [[round(edge * factor) for edge, factor in zip(patch, scale, strict=True)] for scale in scales]
    target = [torch.randint(0, 3, (size, 1, *level)).short() for level in levels]
    batch = {"data": data.to(device), "target": [level.to(device) for level in target]}
    trainer.network.train()
    for _ in range(job["warm_up"]):
        trainer.train_step(batch)
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start, count = time.perf_counter(), 0
    while count < job["min_steps"] or time.perf_counter() - start < job["min_s"]:
        trainer.train_step(batch)
        count += 1
    synchronize(device)
    milliseconds = 1000 * (time.perf_counter() - start) / count
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    result = {"step_ms": milliseconds, "timed_steps": count, "batch_size": size, "patch_size": patch, "peak_mib": peak}
    print(json.dumps({**result, "compiled": trainer._do_i_compile()}))


if __name__ == "__main__":
    main()
