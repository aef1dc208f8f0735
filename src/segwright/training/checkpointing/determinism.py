"""What torch itself draws or computes in any order it likes, made repeatable for the time of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segwright.core import seeds


@contextmanager
def reproducible(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Keep torch's global generators and switches as they were outside of the block.

    Args:
        device: of the training.
        deterministic: use algorithms alone that give the same bits each time; on a GPU, where some have no such twin,
            torch warns of those that don't.
    """
    devices = [] if device.type in ("cpu", "mps") else [device]
    algorithms, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=devices):
        if deterministic:
            torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
        torch.backends.cudnn.benchmark = not deterministic
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(algorithms, warn_only=warns)
            torch.backends.cudnn.benchmark = benchmark


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Key torch's generators by the step, so that dropout draws after a resume what it would have drawn."""
    torch.manual_seed(seeds.key(seed, "network", epoch, step, rank) % 2**63)
