"""Random generators keyed by what a draw is for (seed, purpose, counters), never a running stream."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence


def key(seed: int, purpose: str, *counters: int) -> int:
    """Return a 128-bit key for (seed, purpose, counters...), equal on every machine and Python version."""
    return int.from_bytes(_digest(seed, purpose, counters), "little")


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return the generator of one purpose, e.g. `generator(seed, "sample", epoch, step, index)`.

    Two calls with the same arguments give the same draws, in any thread and in any order: those of a Philox generator
    with `key(...)` as its key.
    """
    sequence = _KeySequence(_digest(seed, purpose, counters))
    return np.random.Generator(np.random.Philox(sequence))  # type: ignore[arg-type]  # the stubs know no ISeedSequence


@dataclass(frozen=True, slots=True)
class _KeySequence(ISeedSequence):
    """A given key as a seed sequence; Philox's own argument `key` also works, but reads entropy it does not use."""

    digest: bytes

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[Any]:
        return np.frombuffer(self.digest, np.dtype(dtype).newbyteorder("<"), n_words)


def _digest(seed: int, purpose: str, counters: tuple[int, ...]) -> bytes:
    text = ":".join([str(seed), purpose, *(str(counter) for counter in counters)])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
