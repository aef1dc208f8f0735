"""Time the training steps of a planned configuration on this machine, on random patches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from segwright.data.crossval.splits import Split
from segwright.data.description import DatasetDescription
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.training.config import TrainConfig
from segwright.training.loading.batches import Batch
from segwright.training.loading.targets import encode_targets
from segwright.training.monitoring.thread_choice import thread_numbers
from segwright.training.trainer import Trainer

_WITHOUT = {"callbacks", "loggers", "pretrained"}
"""Settings that have effects beyond a step."""

WARM_UP_STEPS = 1
"""Steps before those that are timed: the first one allocates memory and chooses algorithms."""
TIMED_STEPS = 3


def step_seconds(
    plan: Plan,
    configuration: str,
    description: DatasetDescription,
    *,
    settings: Mapping[str, Any],
    device: str = "auto",
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds of a training step: the shortest of some, since other programs only add to it.

    On the CPU with the number of threads that is fastest (`thread_choice`).

    Args:
        plan: the plan.
        configuration: its name in the plan.
        description: of the dataset.
        settings: fields of `TrainConfig`; callbacks, loggers and pretrained weights are left out.
        device: auto, cpu, mps or a GPU.
        now: a monotonic clock in seconds.
    """
    with TemporaryDirectory(prefix="segwright-steps-") as folder:
        trainer = Trainer(
            plan,
            configuration,
            0,
            description,
            device,
            cases=CaseStore(Path(folder) / "cases"),
            split=Split(train=(), val=()),
            output_folder=Path(folder) / "fold_0",
            config=TrainConfig.from_mapping({key: settings[key] for key in settings.keys() - _WITHOUT}),
        )
        trainer.initialize()
        batch = random_batch(trainer)
        trainer.network.train()
        before = torch.get_num_threads()
        try:
            numbers = thread_numbers(before) if trainer.device.type == "cpu" else (before,)
            return min(_shortest_step(trainer, batch, threads, now) for threads in numbers)
        finally:
            torch.set_num_threads(before)


def random_batch(trainer: Trainer) -> Batch:
    """Return a batch of noise with targets, on the device of an initialized trainer."""
    generator = torch.Generator().manual_seed(0)
    size = (int(trainer.batch_size or 1), trainer.num_input_channels, *trainer.configuration.patch_size)
    maps = torch.randint(0, 2, (size[0], 1, *size[2:]), generator=generator, dtype=torch.int16)
    scales = trainer.scales if len(trainer.scales) > 1 else None
    target = encode_targets(maps, trainer.labels, scales)
    targets = [each.to(trainer.device) for each in target] if isinstance(target, list) else target.to(trainer.device)
    return {"data": torch.randn(size, generator=generator).to(trainer.device), "target": targets, "keys": []}


def _shortest_step(trainer: Trainer, batch: Batch, threads: int, now: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    seconds = []
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        start = now()
        float(trainer.train_step(batch)["loss"])  # waits for a GPU
        seconds.append(now() - start)
    return min(seconds[WARM_UP_STEPS:])
