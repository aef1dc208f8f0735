"""The command `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from segwright.cli import options
from segwright.cli.tables import print_json, print_line, print_table

if TYPE_CHECKING:
    from segwright.api import MachineReport

SCHEMA_VERSION = 1


def doctor(context: typer.Context, device: options.Device = "auto", as_json: options.AsJson = False) -> None:
    """Describe this machine, test its speed for some seconds, and warn of what is slow or wrong."""
    from segwright import api

    found = api.doctor(device, workspace=options.workspace_of(context))
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, **asdict(found)})
        return
    print_table("This machine", ["", "value"], _facts(found))
    rows = [
        [
            layer.precision,
            layer.kernels,
            f"{layer.conv_gflops:.0f}",
            f"{layer.conv_error:.1g}",
            f"{layer.norm_gb_per_s:.1f}",
            f"{layer.norm_error:.1g}",
        ]
        for layer in found.layers
    ]
    columns = ["precision", "kernels", "convolution GFLOP/s", "error", "norm GB/s", "error"]
    print_table("3x3x3 convolution and instance norm of 32 channels", columns, rows)
    for warning in found.warnings:
        print_line(f"warning: {warning}")
    print_line("no problems found" if not found.warnings else f"{len(found.warnings)} warning(s)")


def _facts(found: MachineReport) -> list[list[str]]:
    from segwright.core.resources import format_bytes

    rows = [[name, version or "-"] for name, version in found.versions.items()]
    rows += [
        ["system", found.system],
        ["device", f"{found.device}: {found.hardware}"],
        ["precision in training", found.training_precision],
        ["precision in prediction", found.prediction_precision],
        ["layout of 2D and 3D networks", ", ".join(found.layouts.values())],
        ["compiled CPU kernels", found.cpu_kernels],
        ["torch.compile", found.torch_compile or "available"],
        ["free memory", format_bytes(found.memory_bytes)],
    ]
    if found.device_memory_bytes:
        rows.append(["free memory of the GPU", format_bytes(found.device_memory_bytes)])
    threads = f"{found.torch_threads} for computing, {found.batch_threads} for batches"
    rows.append(["threads", f"{threads}, on {found.cpus} CPUs"])
    return rows + [[f"free disk, {folder}", format_bytes(size)] for folder, size in found.disks.items()]
