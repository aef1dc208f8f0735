"""Time the training steps of a planned configuration on this machine, on random patches or some cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from segwright.core.memory import reset_peak
from segwright.data.crossval.splits import Split
from segwright.data.description import DatasetDescription
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.training.checkpointing.determinism import reproducible
from segwright.training.config import TrainConfig
from segwright.training.loading.batches import Batch, BatchLoader
from segwright.training.loading.prefetch import prefetched_batches
from segwright.training.loading.targets import encode_targets
from segwright.training.losses.builtin import target_channel
from segwright.training.monitoring.cost import StepTimer, TrainingCost, training_cost
from segwright.training.monitoring.thread_choice import thread_numbers
from segwright.training.trainer import Trainer

_WITHOUT = {"callbacks", "loggers", "pretrained"}
"""Settings that have effects beyond a step."""

WARM_UP_STEPS = 1
"""Steps before those that are timed: the first one allocates memory and chooses algorithms."""
TIMED_STEPS = 3

_MAX_STEPS = 10**6
_NO_CASES = Split(train=(), val=())


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
    with _trainer(plan, configuration, description, settings=settings, device=device) as trainer:
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
    compute = target_channel(trainer.config.loss)
    channel = None if compute is None else compute(maps, trainer.labels)
    target = encode_targets(maps, trainer.labels, scales, channel=channel)
    targets = [each.to(trainer.device) for each in target] if isinstance(target, list) else target.to(trainer.device)
    return {"data": torch.randn(size, generator=generator).to(trainer.device), "target": targets, "keys": []}


def measure_cost(
    plan: Plan,
    configuration: str,
    description: DatasetDescription,
    *,
    cases: CaseStore,
    settings: Mapping[str, Any],
    device: str = "auto",
    now: Callable[[], float] = time.perf_counter,
) -> TrainingCost:
    """Return the cost of a training on a few cases, from steps with batches that are made of them as in a training.

    Arguments as of `step_seconds`, but for `cases`: some preprocessed cases of the dataset.
    """
    reset_peak()
    names = cases.identifiers()
    split = Split(train=names, val=names)
    options: Any = {"settings": settings, "device": device, "cases": cases, "split": split}
    with _trainer(plan, configuration, description, **options) as trainer:
        loader, _ = trainer.get_dataloaders()
        trainer.network.train()
        with reproducible(trainer.device, deterministic=trainer.config.deterministic):
            step_s = _mean_step(trainer, loader, StepTimer(now))
        return training_cost(
            *(step_s, trainer.config, trainer.network, trainer.optimizer),
            average=trainer.weight_ema,
            loader=loader,
            device=trainer.device,
        )


@contextmanager
def _trainer(
    plan: Plan,
    configuration: str,
    description: DatasetDescription,
    *,
    settings: Mapping[str, Any],
    device: str,
    cases: CaseStore | None = None,
    split: Split = _NO_CASES,
) -> Iterator[Trainer]:
    """Yield an initialized trainer whose folder is removed after the block."""
    with TemporaryDirectory(prefix="segwright-steps-") as folder:
        trainer = Trainer(
            plan,
            configuration,
            0,
            description,
            device,
            cases=cases or CaseStore(Path(folder) / "cases"),
            split=split,
            output_folder=Path(folder) / "fold_0",
            config=TrainConfig.from_mapping({key: settings[key] for key in settings.keys() - _WITHOUT}),
        )
        trainer.initialize()
        yield trainer


def _mean_step(trainer: Trainer, loader: BatchLoader, timer: StepTimer) -> float:
    with prefetched_batches(loader, trainer.network, 0, _MAX_STEPS) as batches:
        times = (timer.add_step(trainer.train_step(batch)["loss"]) for batch in batches)
        return next(step_s for step_s in times if step_s is not None)


def _shortest_step(trainer: Trainer, batch: Batch, threads: int, now: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    seconds = []
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        start = now()
        float(trainer.train_step(batch)["loss"])  # waits for a GPU
        seconds.append(now() - start)
    return min(seconds[WARM_UP_STEPS:])
