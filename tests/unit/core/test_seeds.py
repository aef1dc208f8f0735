"""Draws are those of Philox with the key as its key, on every machine."""

from __future__ import annotations

import numpy as np

from segwright.core.seeds import generator, key

PURPOSE = (7, "training:noise", 3, 17, 4)


def test_a_generator_is_philox_with_its_key() -> None:
    plain = np.random.Generator(np.random.Philox(key=key(*PURPOSE)))
    ours = generator(*PURPOSE)
    assert np.array_equal(ours.random(1000), plain.random(1000))
    assert np.array_equal(ours.integers(5, size=99), plain.integers(5, size=99))
