"""The ways to compute training steps that are compared, as settings of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from segwright.core.errors import ConfigError
from segwright.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Settings of a training.

    Attributes:
        settings: which make the mode; a version without one of them does not have it.
        others: switched off to measure the mode alone; left out where a version does not have them.
        needs_cuda: whether it does nothing on the CPU.
        warm_up: steps before those that are timed: a training tries ways to compute its first steps.
        estimate_s: time that must be left for a measurement to begin, in seconds.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    others: Mapping[str, object] = field(default_factory=dict)
    needs_cuda: bool = True
    warm_up: int = 100
    estimate_s: float = 60.0


MODES: Final = {
    "eager": Mode(others={"compile": "off", "fused_norm": False}, needs_cuda=False, warm_up=8, estimate_s=20),
    "default": Mode(needs_cuda=False),
    "fused": Mode(settings={"fused_norm": True}, others={"compile": "off"}, warm_up=8, estimate_s=30),
    "compiled": Mode(settings={"compile": "on"}, others={"fused_norm": False}),
    "graphs": Mode(settings={"compile": "graphs"}, others={"fused_norm": False}),
}
"""`default` is what a training does by itself; with `compile` it may have chosen CUDA graphs, see its log lines."""


def settings_of(mode: Mode) -> dict[str, Any]:
    """Return the settings of a mode in this version.

    Raises:
        ConfigError: this version does not have one that makes the mode.
    """
    known = {name: value for name, value in mode.others.items() if name in TrainConfig.model_fields}
    settings = {**known, **mode.settings}
    TrainConfig.from_mapping(settings)
    return settings


def why_not_available(mode: Mode, device: str) -> str:
    """Return why a mode cannot be measured here; empty if it can."""
    if mode.needs_cuda and device == "cpu":
        return "needs a CUDA GPU"
    try:
        settings_of(mode)
    except ConfigError:
        return f"this version does not know {', '.join(f'{name} = {value}' for name, value in mode.settings.items())}"
    return ""
