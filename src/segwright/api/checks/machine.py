"""Describe the machine, test its speed and results, and warn of combinations that are known to be slow or wrong."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

import segwright
from segwright.api.session import workspace_or_default
from segwright.core.device import (
    CPU,
    CUDA,
    MPS,
    MPS_TORCH,
    PRECISIONS,
    can_compile,
    compute_dtype,
    free_bytes,
    memory_format,
    resolve_device,
    torch_version,
)
from segwright.core.memory import available_bytes
from segwright.core.parallel import available_cpus
from segwright.core.resources import format_bytes
from segwright.inference.precision import used_precision
from segwright.networks.cpu.library import describe_kernels, libraries
from segwright.networks.self_test import LayerTest, run_layers
from segwright.training.loading import prefetch
from segwright.workspace import Workspace

SLOW_TORCH: Final = (2, 9)
"""Its convolutions of 3D images in mixed precision take four times as long on CUDA GPUs (pytorch issue 166122)."""

WRONG_CUDNN: Final = (90800, 91500)
"""First version whose bf16 convolutions of 3D images take 17 times the memory and may be wrong, and the first after
them (pytorch issue 163539)."""

LITTLE_MEMORY: Final = 4 * 2**30
LITTLE_DISK: Final = 10 * 2**30

MARGIN: Final = 1.2
"""Another precision is recommended if it is faster by this factor."""

_NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
_CPU_INFO: Final = Path("/proc/cpuinfo")
_COMPILERS: Final = ("c++", "g++", "clang++", "cl")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineReport:
    """What Segwright would use on this machine, and what is wrong with it.

    Attributes:
        versions: of Segwright, Python, torch and others; None for what is not installed.
        system: operating system and processor architecture.
        device: that trains and predicts.
        hardware: the device's name.
        training_precision: of convolutions in training; `auto`'s choice.
        prediction_precision: the same in prediction.
        layouts: memory format of networks, for "2d" and "3d".
        cpu_kernels: a line about the compiled kernels.
        torch_compile: empty if `torch.compile` has what it needs, else what is missing.
        memory_bytes: that this process may still take.
        device_memory_bytes: the same on a CUDA GPU; 0 for others.
        cpus: that this process may use.
        torch_threads: of an operation on the CPU.
        batch_threads: that make batches in a training.
        disks: free bytes where the workspace is written, and where temporary files are.
        layers: speed and errors; empty if they were not tested.
        warnings: one sentence each.
    """

    versions: Mapping[str, str | None]
    system: str
    device: str
    hardware: str
    training_precision: str
    prediction_precision: str
    layouts: Mapping[str, str]
    cpu_kernels: str
    torch_compile: str
    memory_bytes: int
    device_memory_bytes: int
    cpus: int
    torch_threads: int
    batch_threads: int
    disks: Mapping[str, int]
    layers: tuple[LayerTest, ...]
    warnings: tuple[str, ...]


def doctor(device: str = "auto", *, workspace: Workspace | None = None, test_layers: bool = True) -> MachineReport:
    """Describe this machine, and compute a convolution and a norm in each precision, for five seconds at most.

    Args:
        device: auto, cpu, mps or a GPU.
        workspace: whose disks are checked; `./segwright-work` by default.
        test_layers: False leaves out the computations.

    Raises:
        ConfigError: there is no such device.

    Examples:
        >>> report = doctor()  # doctest: +SKIP
        >>> report.device  # doctest: +SKIP
    """
    chosen = resolve_device(device)
    layers = run_layers(chosen) if test_layers else ()
    training = next(name for name, dtype in PRECISIONS.items() if dtype == compute_dtype(chosen))
    place = workspace_or_default(workspace)
    folders = (place.preprocessed, place.results, Path(tempfile.gettempdir()))
    disks = {str(folder): _free_disk(folder) for folder in folders}
    kernels = describe_kernels().partition(": ")[2]
    memory, cpus, threads = available_bytes(), available_cpus(), torch.get_num_threads()
    warnings = [
        *known_problems(chosen, torch.__version__, _cudnn_version(chosen)),
        *_missing_parts(chosen, kernels),
        *_shortages(memory, disks, cpus, threads),
        *_wrong_or_slow(layers, training),
    ]
    return MachineReport(
        versions=_versions(chosen),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        device=str(chosen),
        hardware=_hardware(chosen),
        training_precision=training,
        prediction_precision=used_precision(chosen),
        layouts={f"{dims}d": str(memory_format(chosen, dims)).removeprefix("torch.") for dims in (2, 3)},
        cpu_kernels=kernels,
        torch_compile=_missing_for_compile(chosen),
        memory_bytes=memory,
        device_memory_bytes=free_bytes(chosen),
        cpus=cpus,
        torch_threads=threads,
        batch_threads=prefetch.num_threads(chosen),
        disks=disks,
        layers=layers,
        warnings=tuple(warnings),
    )


def known_problems(device: torch.device, version: str, cudnn: int | None) -> list[str]:
    """Return a sentence for each combination of device and versions that is known to be slow or wrong.

    Args:
        device: that computes.
        version: of torch.
        cudnn: version of cuDNN as torch counts it, such as 91002 for 9.10.2; None if it is not used.
    """
    problems = []
    if device.type == MPS and torch_version(version) < MPS_TORCH:
        problems.append(f"torch {version} lacks 3D operations on Apple GPUs; install torch 2.9 or later")
    if device.type in (CPU, MPS):
        return problems
    if torch_version(version) == SLOW_TORCH:
        problems.append(
            f"torch {version} computes 3D convolutions in mixed precision four times slower than other versions "
            "(pytorch issue 166122); install torch 2.10 or later"
        )
    if cudnn is not None and WRONG_CUDNN[0] <= cudnn < WRONG_CUDNN[1]:
        name = f"{cudnn // 10000}.{cudnn // 100 % 100}"
        problems.append(
            f"cuDNN {name} may compute 3D convolutions in bf16 wrongly and with 17 times the memory (pytorch issue "
            "163539); install cuDNN 9.15 or later, or train with --set precision=fp16"
        )
    return problems


def _missing_parts(device: torch.device, kernels: str) -> Iterator[str]:
    if device.type == CPU:
        if torch.version.cuda is None and _NVIDIA_DRIVER.exists():
            yield "this machine has an NVIDIA driver, but torch was built without CUDA; install a CUDA build of torch"
        if not libraries():
            yield f"prediction on the CPU is slower without compiled kernels: {kernels}"


def _shortages(memory: int, disks: Mapping[str, int], cpus: int, threads: int) -> Iterator[str]:
    if memory < LITTLE_MEMORY:
        yield f"only {format_bytes(memory)} of memory are free; end other programs"
    for folder, size in disks.items():
        if size < LITTLE_DISK:
            yield f"only {format_bytes(size)} are free on the disk of {folder}"
    if threads > cpus:
        yield f"torch computes with {threads} threads on {cpus} CPUs; set OMP_NUM_THREADS={cpus}"
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) + 1:
        yield "other programs use the CPUs, so that trainings and the speeds below are slower; see 'top'"


def _wrong_or_slow(layers: Sequence[LayerTest], training: str) -> Iterator[str]:
    for layer in layers:
        if not layer.is_right:
            error = max(layer.conv_error, layer.norm_error)
            yield (
                f"{layer.precision} ({layer.kernels} kernels) gives wrong results: an error of {error:.2g} of the "
                "deviation; choose another one (--set precision=NAME, predict --precision NAME)"
            )
    speeds = {layer.precision: layer.conv_gflops for layer in layers if layer.kernels == "torch" and layer.is_right}
    fastest = max(speeds, key=speeds.__getitem__, default=training)
    if speeds.get(training, 0.0) * MARGIN < speeds.get(fastest, 0.0):
        yield f"{fastest} convolutions are faster here than in {training}, the default; try --set precision={fastest}"


def _missing_for_compile(device: torch.device) -> str:
    """Return what `torch.compile` lacks for a device; empty if nothing."""
    if device.type == CUDA:
        return "" if can_compile(device) else "Triton is not installed, or does not support this GPU"
    return "" if any(map(shutil.which, _COMPILERS)) else "no C++ compiler was found"


def _hardware(device: torch.device) -> str:
    """Return the name of a device."""
    if device.type == MPS:
        return "Apple GPU"
    if device.type != CPU:
        return torch.cuda.get_device_name(device)
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _versions(device: torch.device) -> dict[str, str | None]:
    cudnn = _cudnn_version(device)
    return {
        "segwright": segwright.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        CUDA: torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def _cudnn_version(device: torch.device) -> int | None:
    found: int | None = None if device.type in (CPU, MPS) else torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def _free_disk(folder: Path) -> int:
    """Return the free bytes where a folder is, or will be made."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free
