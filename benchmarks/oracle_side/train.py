"""Train and validate fold 0 with nnU-Net: `train.py JOB.json`. Run with nnU-Net's interpreter.

A job holds plans, description, configuration, batch_size, seed, epochs, and either steps or seconds. By time, the
learning rate follows its schedule over the share of the time that has passed. The validation folder is printed.
"""

import contextlib
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

VALIDATION_SHARE = 0.1


class Limits:
    """Progress from 0 to 1 by steps or by seconds, and the end of each epoch."""

    def __init__(self, job: dict) -> None:
        self.steps, self.seconds, self.epochs = job.get("steps"), job.get("seconds"), job["epochs"]
        self.done, self.start = 0, time.monotonic()

    @property
    def progress(self) -> float:
        if self.steps is not None:
            return self.done / self.steps
        return (time.monotonic() - self.start) / self.seconds


def train(trainer: nnUNetTrainer, limits: Limits) -> None:
    trainer.on_train_start()
    limits.start = time.monotonic()
    for epoch in range(limits.epochs):
        if limits.progress >= 1:
            break
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        outputs = []
        while limits.progress < (epoch + 1) / limits.epochs:
            rate = trainer.initial_lr * (1 - min(limits.progress, 1)) ** 0.9
            for group in trainer.optimizer.param_groups:
                group["lr"] = rate
            outputs.append(trainer.train_step(next(trainer.dataloader_train)))
            limits.done += 1
        if not outputs:
            continue
        trainer.on_train_epoch_end(outputs)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            count = max(1, round(VALIDATION_SHARE * len(outputs)))
            trainer.on_validation_epoch_end(
                [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(count)]
            )
        trainer.on_epoch_end()
    trainer.on_train_end()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(job["seed"])
    plans, description = (json.loads(Path(job[key]).read_text()) for key in ("plans", "description"))
    plans["continue_training"] = False
    if job.get("batch_size"):
        plans["configurations"][job["configuration"]]["batch_size"] = job["batch_size"]
    with contextlib.redirect_stdout(sys.stderr):
        trainer = nnUNetTrainer(plans, job["configuration"], 0, description, device=torch.device("cpu"))
        trainer.initialize()
        limits = Limits(job)
        train(trainer, limits)
        seconds = time.monotonic() - limits.start
        trainer.perform_actual_validation()
    folder = str(Path(trainer.output_folder) / "validation")
    print(json.dumps({"validation": folder, "steps": limits.done, "seconds": seconds}))


if __name__ == "__main__":
    main()
