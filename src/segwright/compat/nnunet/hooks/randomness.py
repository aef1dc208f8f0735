"""Repeat the random numbers that a trainer file draws from Python's, numpy's and torch's global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from segwright.core.seeds import key


@contextmanager
def seeded(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Seed the three global generators for a block, and restore them after it.

    Args:
        seed: of the run.
        purpose: what is drawn, e.g. `training batches`.
        counters: e.g. epoch and step.
    """
    before = torch.get_rng_state()
    with arrays_seeded(seed, purpose, *counters):
        torch.default_generator.manual_seed(key(seed, purpose, *counters) % 2**63)
        try:
            yield
        finally:
            torch.set_rng_state(before)


@contextmanager
def arrays_seeded(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Do the same with Python's and numpy's generators; torch's are left as they are."""
    before, arrays_before = random.getstate(), np.random.get_state()
    seed_arrays(seed, purpose, *counters)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays_before)


def seed_arrays(seed: int, purpose: str, *counters: int) -> None:
    """Seed Python's and numpy's generators."""
    number = key(seed, purpose, *counters)
    random.seed(number)
    np.random.seed(number % 2**32)
