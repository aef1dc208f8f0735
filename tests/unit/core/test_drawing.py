"""Figures look the same whatever settings of matplotlib lie around."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from segwright.core.drawing import figure_file


def draw(path: Path) -> bytes:
    with figure_file(path, size_inches=(2, 2), dpi=50) as figure:
        figure.suptitle("a title")
    return path.read_bytes()


def test_settings_of_a_matplotlibrc_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = draw(tmp_path / "plain.png")
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 3.0)
    assert draw(tmp_path / "other.png") == plain
    assert matplotlib.rcParams["text.usetex"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.png", "plain.png"]
