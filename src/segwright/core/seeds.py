"""Counted randomness: every draw comes from a generator keyed by what it is for, never from a running stream."""

from __future__ import annotations

import hashlib

import numpy as np


def key(seed: int, purpose: str, *counters: int) -> int:
    """Return a 128-bit key for (seed, purpose, counters...), equal on every machine and Python version."""
    text = ":".join([str(seed), purpose, *(str(counter) for counter in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return the generator of one purpose, e.g. `generator(seed, "sample", epoch, step, index)`.

    Two calls with the same arguments give the same draws, in any thread and in any order.
    """
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *counters)))
