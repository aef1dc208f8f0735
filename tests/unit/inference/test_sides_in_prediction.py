"""Prediction where labels tell left from right: a mirrored view speaks for the other side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segwright.inference.models.model_folder import load_predictor
from segwright.inference.window.sliding import Window, window_planes

PATCH = (6, 6, 8)


class BySide(nn.Module):
    """Head 1 grows to one end of the last axis, head 2 to the other one."""

    def forward(self, x: Tensor) -> Tensor:  # (B, 1, *P) -> (B, 3, *P)
        place = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape) + 0 * x
        return torch.cat([0 * place, place, -place], 1)


@pytest.mark.parametrize("mirrored_heads", [(), (0, 2, 1)])
def test_views_agree_when_their_heads_are_swapped(mirrored_heads: tuple[int, ...]) -> None:
    def logits(axes: tuple[int, ...]) -> Tensor:
        window = Window(
            patch_size=PATCH,
            device=torch.device("cpu"),
            mirror_axes=axes,
            lateral_axes=(2,),
            mirrored_heads=mirrored_heads,
        )
        planes = [planes.logits for planes in window_planes([BySide()], image, 3, window=window)]
        return torch.cat(planes, 1)

    image = torch.rand(1, *PATCH)
    same = torch.allclose(logits((0, 2)), logits(()), atol=1e-6)
    assert same == bool(mirrored_heads)
    assert same or logits((0, 2)).abs().max() < 1e-6  # unswapped, the sides cancel out


def test_the_checkpoint_tells_whether_heads_are_swapped(make_model: Callable[..., Path]) -> None:
    folder = make_model(0)
    plans = json.loads((folder / "plans.json").read_text())
    plans["segwright"] = {"left_right": {"pairs": [["inner", "outer"]], "axes": [2], "swap": True}}
    (folder / "plans.json").write_text(json.dumps(plans))
    assert load_predictor(folder, device="cpu").window.mirrored_heads == ()
    header = next(folder.glob("fold_*/checkpoint_final.json"))
    header.write_text(json.dumps(json.loads(header.read_text()) | {"swap_sides": True}))
    window = load_predictor(folder, device="cpu").window
    assert window.lateral_axes == (2,)
    assert window.mirrored_heads == (0, 2, 1)
