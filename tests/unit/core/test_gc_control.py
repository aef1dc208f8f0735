from __future__ import annotations

import gc

import pytest

from segwright.core.gc_control import at_rest


def test_the_collector_rests_within_and_is_as_before_afterwards() -> None:
    with pytest.raises(ImportError), at_rest():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
