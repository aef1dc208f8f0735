"""One measurement of the GPU benchmark, in a process of its own: `python -m benchmarks.gpu.measure JOB`.

JOB is that of `job.Job.to_json`. The last line of the output is a JSON object with the figures.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import segwright
from benchmarks.gpu.job import Job
from benchmarks.gpu.peaks import dense_peak
from benchmarks.gpu.tasks import FILE_ENDING, TASKS
from segwright.core.device import CPU, compute_dtype
from segwright.data.crossval.splits import Split
from segwright.data.preprocessed.store import CaseStore
from segwright.interop.export import export_model
from segwright.networks.shapes import copy_to_meta
from segwright.training.config import TrainConfig
from segwright.training.loading.batches import Batch
from segwright.training.monitoring.step_time import random_batch
from segwright.training.trainer import Trainer

Figures = dict[str, Any]

MANY_STEPS: Final = 100_000
_AIR, _TISSUE, _NOISE = -1000, 40, 30
"""Intensities of a phantom in HU."""


class FixedLoader:
    """Gives the same batch again and again."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.device = device
        self.batch_bytes = batch["data"].nbytes
        self._batch = batch

    def batch(self, epoch: int, step: int) -> Batch:
        """Return the batch."""
        return self._batch


class BenchmarkTrainer(Trainer):
    """A trainer without a drawing of the network; without cases it trains on one random batch on the device."""

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return the loaders of the cases, or of the batch."""
        if self.split.train:
            return super().get_dataloaders()
        loader = FixedLoader(random_batch(self), self.device)
        return loader, loader

    def plot_network_architecture(self) -> None:
        """Draw nothing."""


class StepTimer:
    """Callback that times steps, then ends the training.

    Args:
        job: how many steps, after how many others.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._start = 0.0
        self.num_steps = 0
        self.step_ms = 0.0
        """Mean time of a step in milliseconds."""

    def on_train_step_start(self, trainer: Trainer) -> None:
        """Start the clock after the warm-up."""
        if trainer.current_step == self._job.warm_up:
            if trainer.device.type != CPU:
                torch.cuda.synchronize(trainer.device)
                torch.cuda.reset_peak_memory_stats(trainer.device)
            self._start = time.perf_counter()

    def on_train_step_end(self, trainer: Trainer) -> None:
        """Stop the clock when enough steps are timed."""
        count = trainer.current_step + 1 - self._job.warm_up
        is_enough = count >= self._job.min_steps and time.perf_counter() - self._start >= self._job.min_s
        if self.num_steps or not is_enough:
            return
        if trainer.device.type != CPU:
            torch.cuda.synchronize(trainer.device)
        self.num_steps = count
        self.step_ms = 1000 * (time.perf_counter() - self._start) / count
        trainer.clock.end_training()


class LogLines(logging.Handler):
    """Keeps the lines that a training logs, but for those of its epochs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        text = record.getMessage()
        if not text.startswith("epoch "):
            self.lines.append(text)


def step(job: Job) -> Figures:
    """Return the time of a training step on one batch, with memory and rate of computation."""
    timer = StepTimer(job)
    trainer = _trainer(job, timer, num_epochs=1, num_iterations_per_epoch=MANY_STEPS)
    trainer.initialize()
    shape = (int(trainer.batch_size or 1), trainer.num_input_channels, *trainer.configuration.patch_size)
    flops = training_flops(trainer.network, shape)
    trainer.run_training()
    return {**_figures(trainer, timer), **_rate(flops, timer.step_ms, trainer)}


def loader(job: Job) -> Figures:
    """Return how long steps wait for batches from cases on disk, in the second of two epochs, and their time."""
    timer = StepTimer(job)
    store = CaseStore(Path(job.cases))
    trainer = _trainer(job, timer, store=store, num_epochs=2, num_iterations_per_epoch=job.warm_up)
    trainer.run_training()
    wait_s = trainer.logbook.column("loader_wait_s")[1]
    assert isinstance(wait_s, float)
    return {"loader_wait_ms": 1000 * wait_s, **_figures(trainer, timer)}


def make_model(job: Job) -> Figures:
    """Write a model after one training step, also for nnU-Net, and images to predict."""
    trainer = _trainer(job, StepTimer(job), num_epochs=1, num_iterations_per_epoch=1, disable_checkpointing=False)
    trainer.run_training()
    export_model(trainer.output_folder.parent, Path(job.nnunet_model))
    Path(job.images).mkdir()
    random = np.random.default_rng(0)
    for number in range(job.num_images):
        file = Path(job.images) / f"case_{number:02d}_0000{FILE_ENDING}"
        _write_phantom(file, job.image_shape, job.image_spacing, random)
    return {"model": str(trainer.output_folder.parent)}


def predict(job: Job) -> Figures:
    """Return the time to predict a folder, from files to files."""
    start = time.perf_counter()
    records = segwright.predict(job.model, job.images, job.output, device=job.device)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cases": len(records), "s_per_case": seconds / len(records), **_peak(job.device)}


def training_flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the operations of forward and backward pass for data (B, C, *S): those of convolutions and matrices."""
    plain = copy_to_meta(network).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        output = plain(torch.empty(shape, device="meta"))
        levels: list[Tensor] = [output] if isinstance(output, Tensor) else [*output]
        torch.autograd.backward([level.sum() for level in levels])
    return int(counter.get_total_flops())


def _trainer(job: Job, timer: StepTimer, *, store: CaseStore | None = None, **settings: object) -> BenchmarkTrainer:
    task, folder = TASKS[job.task], Path(job.folder)
    names = () if store is None else store.identifiers()
    few = {"num_val_iterations_per_epoch": 1, "disable_checkpointing": True}
    return BenchmarkTrainer(
        task.plan(small=job.small),
        task.configuration,
        0,
        task.description(small=job.small),
        job.device,
        cases=store or CaseStore(folder / "cases"),
        split=Split(train=names, val=names[:1]),
        output_folder=folder / "model" / "fold_0",
        config=TrainConfig.from_mapping({**few, **settings, **job.settings}),
        callbacks=[timer],
    )


def _figures(trainer: Trainer, timer: StepTimer) -> Figures:
    return {
        "step_ms": timer.step_ms,
        "timed_steps": timer.num_steps,
        "batch_size": trainer.batch_size,
        "patch_size": trainer.configuration.patch_size,
        "dtype": str(compute_dtype(trainer.device, trainer.config.precision)).removeprefix("torch."),
        **_peak(str(trainer.device)),
    }


def _rate(flops: int, step_ms: float, trainer: Trainer) -> Figures:
    """Return the rate of computation; as a share of the peak in the dtypes for which that is known."""
    tflops, peak = flops / step_ms / 1e9, None
    dtype = compute_dtype(trainer.device, trainer.config.precision)
    if trainer.device.type != CPU and dtype in (torch.bfloat16, torch.float16):
        peak = dense_peak(torch.cuda.get_device_name(trainer.device))
    return {
        "counted_tflop": flops / 1e12,
        "tflops": tflops,
        "share_of_peak": None if peak is None else tflops / peak[0],
    }


def _peak(device: str) -> Figures:
    return {"peak_mib": None if device == CPU else torch.cuda.max_memory_allocated(device) / 2**20}


def _write_phantom(file: Path, shape: tuple[int, ...], spacing: tuple[float, ...], random: np.random.Generator) -> None:
    """Write an image in HU: a cylinder of noisy tissue in air."""
    across = [np.linspace(-1, 1, size) for size in shape[1:]]
    is_inside = (across[0][:, None] / 0.7) ** 2 + (across[1] / 0.9) ** 2 < 1
    tissue = random.integers(_TISSUE - _NOISE, _TISSUE + _NOISE, size=shape, dtype=np.int16)
    image = SimpleITK.GetImageFromArray(np.where(is_inside, tissue, np.int16(_AIR)))
    image.SetSpacing(spacing[::-1])
    SimpleITK.WriteImage(image, str(file), True, 1)


MEASUREMENTS: Final[dict[str, Callable[[Job], Figures]]] = {
    "step": step,
    "loader": loader,
    "make_model": make_model,
    "predict": predict,
}


def main(text: str) -> None:
    """Do one job and print its figures."""
    job = Job.from_json(text)
    segwright.tune_process()  # as the command line does
    log = LogLines()
    logging.getLogger("segwright").addHandler(log)
    logging.getLogger("segwright").setLevel(logging.INFO)
    figures = MEASUREMENTS[job.what](job)
    print(json.dumps({**figures, "log": log.lines}))


if __name__ == "__main__":
    main(sys.argv[1])
