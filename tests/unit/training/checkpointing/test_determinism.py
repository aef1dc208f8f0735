"""Determinism settings hold during a training and are as before afterwards."""

from __future__ import annotations

import pytest
import torch

from segwright.core.device import CPU
from segwright.training.checkpointing.determinism import reproducible


def found() -> list[bool]:
    onednn = getattr(torch.backends.mkldnn, "deterministic", True)
    return [torch.are_deterministic_algorithms_enabled(), onednn, not torch.backends.cudnn.benchmark]


@pytest.mark.parametrize("deterministic", [True, False])
def test_every_setting_is_made_and_undone(deterministic: bool) -> None:
    before = found()
    with pytest.raises(ZeroDivisionError), reproducible(torch.device(CPU), deterministic=deterministic):
        inside = found()
        raise ZeroDivisionError
    assert inside[2] is deterministic
    assert inside == ([True] * 3 if deterministic else [*before[:2], False])
    assert found() == before
