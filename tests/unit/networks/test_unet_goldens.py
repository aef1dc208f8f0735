"""Our networks against nnU-Net's: same weights, same input, same logits, same names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segwright.networks.build import build_network
from segwright.networks.checkpoint import add_aliases, drop_aliases, load_state

GOLDEN = Path(__file__).parents[2] / "golden" / "networks"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def read(case: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    """Return document, weights, image and outputs of a golden."""
    with np.load(GOLDEN / f"{case}.npz") as file:
        document = json.loads(str(file["document"]))
        weights = {key[7:]: torch.from_numpy(file[key]) for key in file.files if key.startswith("weight/")}
        outputs = [torch.from_numpy(file[key]) for key in sorted(file.files) if key.startswith("output/")]
        return document, weights, torch.from_numpy(file["image"]), outputs


def network_of(case: str) -> tuple[nn.Module, torch.Tensor, list[torch.Tensor], dict[str, Any]]:
    document, weights, image, outputs = read(case)
    network = build_network(document, 2, 3, deep_supervision=True)
    load_state(network, weights)
    return network.eval(), image, outputs, document


def test_there_are_goldens() -> None:
    assert len(CASES) == 9


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case: str, channels_last: bool) -> None:
    network, image, expected, _ = network_of(case)
    if channels_last:
        layout = torch.channels_last if image.ndim == 4 else torch.channels_last_3d
        network, image = network.to(memory_format=layout), image.contiguous(memory_format=layout)
    with torch.no_grad():
        outputs = network(image)
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        assert float((output - wanted).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("case", CASES)
def test_state_dict_with_aliases_has_the_references_names_in_order(case: str) -> None:
    network, _, _, document = network_of(case)
    state = add_aliases(network.state_dict(), network)
    assert list(state) == document["names"]
    assert list(drop_aliases(state)) == list(network.state_dict())


@pytest.mark.parametrize("case", CASES)
def test_aliased_weights_load_strictly(case: str) -> None:
    network, image, _, document = network_of(case)
    other = build_network(document, 2, 3, deep_supervision=True).eval()
    load_state(other, {f"module.{key}": value for key, value in add_aliases(network.state_dict(), network).items()})
    with torch.no_grad():
        assert torch.equal(other(image)[0], network(image)[0])
