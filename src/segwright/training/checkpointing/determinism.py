"""Make torch's random numbers and kernels deterministic during a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segwright.core import seeds
from segwright.core.device import generator_devices


@contextmanager
def reproducible(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Restore torch's global random generators and determinism settings after the block.

    Args:
        device: of the training.
        deterministic: use deterministic algorithms only; on a GPU torch warns about operations that have none.
    """
    was_deterministic, warned_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    onednn: Any = torch.backends.mkldnn
    was_onednn = getattr(onednn, "deterministic", None)  # not in every version of torch
    with torch.random.fork_rng(devices=generator_devices(device)):
        if deterministic:
            torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
            if was_onednn is not None:  # the CPU's convolutions have a setting of their own
                onednn.deterministic = True
        torch.backends.cudnn.benchmark = not deterministic
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
            torch.backends.cudnn.benchmark = benchmark
            if was_onednn is not None:
                onednn.deterministic = was_onednn


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch's generators for a step, so that dropout draws the same values after a resume."""
    torch.manual_seed(seeds.key(seed, "network", epoch, step, rank) % 2**63)
