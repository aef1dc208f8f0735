"""Weights on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from segwright.core.errors import ModelError
from segwright.networks.checkpoint import load_state, load_weights, save_weights


def test_weights_round_trip_without_aliases(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state = {"encoder.a.conv.weight": tensor, "decoder.encoder.a.conv.weight": tensor, "tied": tensor}
    save_weights(tmp_path / "w.safetensors", state)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert sorted(loaded) == ["encoder.a.conv.weight", "tied"]
    assert torch.equal(loaded["tied"], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_shared_memory_is_stored_twice(tmp_path: Path) -> None:
    tensor = torch.randn(4)
    save_weights(tmp_path / "w.safetensors", {"a": tensor, "b": tensor, "c": tensor[:2]})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["c"], tensor[:2])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"w.safetensors: no such weights file"):
        load_weights(tmp_path / "w.safetensors")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"w.safetensors: damaged"):
        load_weights(path)


def test_weights_that_do_not_fit_are_listed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1))
    state = network.state_dict()
    state["0.weight"] = torch.zeros(3, 1, 1, 1)
    state["other"] = state.pop("1.bias")
    with pytest.raises(ModelError) as caught:
        load_state(network, state, source="model.safetensors")
    message = str(caught.value)
    assert message.startswith("model.safetensors do not fit the network: missing 1.bias; unexpected other; ")
    assert "of another shape 0.weight (3, 1, 1, 1) instead of (2, 1, 1, 1)" in message
