"""Plans of the MedNeXt presets: patch and batch for the memory, at most five resolutions, kernels, the network."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from segwright.api.budgeting import plan_for_budget
from segwright.data.plan import Plan
from segwright.networks.mednext.arguments import parse_arguments
from segwright.networks.mednext.network import MedNeXt
from segwright.networks.mednext.sizes import SIZES, architecture_block
from segwright.planning.memory import mednext_elements
from segwright.planning.presets import PRESETS
from segwright.planning.rationale import explain
from segwright.planning.time_budget import can_be_resized
from segwright.planning.topology import derive_topology
from tests.unit.planning.test_planning_rules import fingerprint_of, planned, sized

THICK = fingerprint_of([[5, 1.5625, 1.5625]] * 3, [[18, 237, 208]] * 3)
NAMES = [name for name in PRESETS if name.startswith("mednext")]


@pytest.mark.parametrize(
    ("name", "case", "patch", "batch"),
    [
        ("mednext-s", "L", (112, 128, 128), 2),
        ("mednext-m", "L", (128, 128, 128), 2),
        ("mednext-l", "L", (112, 112, 112), 2),
        ("mednext-s", "H", (40, 56, 40), 9),
        ("mednext-l", "A", (20, 240, 208), 2),
        ("mednext-s", "L", (512, 512), 10),
        ("mednext-b", "R", (1040, 1024), 2),
    ],
)
def test_patch_and_batch_size(name: str, case: str, patch: tuple[int, ...], batch: int) -> None:
    sizing = sized(name, case, len(patch))
    assert (sizing.topology.patch_size, sizing.batch_size) == (patch, batch)
    assert sizing.topology.num_stages <= 5
    assert sized(f"{name}-k5", case, len(patch)).topology.patch_size == patch


def test_presets_have_the_sizes_and_kernels_of_the_paper() -> None:
    expected = [f"mednext-{size}{kernel}" for size in "sbml" for kernel in ("", "-k5")]
    assert expected == NAMES
    assert len({PRESETS[name].plans_name for name in NAMES}) == len(NAMES)
    assert PRESETS["mednext-m-k5"].kernel_size == 5


@pytest.mark.parametrize(
    ("size", "spacing", "patch"),
    [("S", (1, 1, 1), (32, 48, 32)), ("B", (5, 1, 1), (8, 64, 64)), ("M", (1, 1), (16, 24)), ("L", (1, 1), (64, 96))],
)
def test_memory_estimate_counts_the_outputs_of_all_convolutions(
    size: str, spacing: tuple[float, ...], patch: tuple[int, ...]
) -> None:
    topology = derive_topology(spacing, patch, max_stages=5)
    counts = SIZES[size].at(topology.num_stages)
    block = architecture_block(counts, dims=len(patch), kernel_sizes=topology.kernel_sizes, strides=topology.strides)
    with torch.device("meta"):
        network = MedNeXt(2, 3, parse_arguments(block["arch_kwargs"], len(patch)), deep_supervision=False)
        found = 0

        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal found
            found += output.numel()

        for module in network.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                module.register_forward_hook(count)
        network(torch.zeros(1, 2, *patch))
    assert mednext_elements(topology, counts, num_classes=3) == found


def test_a_plan_builds_its_network_and_says_why() -> None:
    plan = planned(THICK, "mednext-s-k5")
    plan = Plan.from_json(plan.to_json())
    full = plan.configuration("3d_fullres")
    arguments = full.architecture.arch_kwargs
    assert full.architecture.network_class_name == "mednext"
    assert arguments["kernel_sizes"][:2] == [[1, 5, 5], [5, 5, 5]]
    assert arguments["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    assert arguments["features_per_stage"] == [32, 64, 128, 256, 512]
    assert not can_be_resized(full)
    text = explain(plan)
    assert "network: mednext\n        preset 'mednext-s-k5'" in text
    assert parse_arguments(plan.configuration("2d").architecture.arch_kwargs, 2).kernels == ((5, 5),) * 5


def test_a_time_budget_leaves_the_plan_as_it_is_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    plan, no_session = planned(THICK, "mednext-s"), cast(Any, None)
    with caplog.at_level("INFO"):
        assert plan_for_budget(no_session, plan, ["2d"], {"budget_s": 600.0}) == (plan, ("2d",), False)
    assert "2d stays as it is without a budget: only nnU-Net's networks" in caplog.text


def test_kernel_five_changes_nothing_else_in_the_plan() -> None:
    small, large = (
        planned(THICK, name).configuration("3d_fullres").model_dump() for name in ("mednext-b", "mednext-b-k5")
    )
    kernels = large["architecture"]["arch_kwargs"]["kernel_sizes"]
    large["architecture"]["arch_kwargs"]["kernel_sizes"] = [[min(size, 3) for size in kernel] for kernel in kernels]
    assert small == large
