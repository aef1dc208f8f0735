"""Choose device, precision and memory layout of tensors, once per run; what only some devices can do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from logging import getLogger
from typing import Any

import torch

from segwright.core.errors import ConfigError, did_you_mean

logger = getLogger(__name__)

CPU = "cpu"
CUDA = "cuda"
MPS = "mps"

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_AMPERE = 8  # first compute capability with bf16 tensor cores
_VOLTA = 7  # first compute capability that Triton supports

MPS_TORCH = (2, 9)
"""First version of torch with all operations of a training on Apple GPUs: 3D transposed convolutions came with 2.8
(pull request 154696), 3D average pooling with 2.9 (158877, 159089)."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called `name`: auto, cpu, cuda, cuda:1 or mps.

    `auto` takes a CUDA GPU if there is one, else Apple's GPU if torch is recent enough (`MPS_TORCH`), else the CPU.

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device(CUDA)
        return torch.device(
            MPS if torch.backends.mps.is_available() and _is_complete_on_mps(torch.__version__) else CPU
        )
    kind, _, index = name.partition(":")
    if kind not in {CPU, CUDA, MPS} or (":" in name and not index.isdecimal()):
        raise ConfigError(f"unknown device '{name}'{did_you_mean(kind, ['auto', CPU, CUDA, f'{CUDA}:1', MPS])}")
    if kind == CPU:
        return torch.device(CPU)
    if kind == MPS:
        if not torch.backends.mps.is_available():
            raise ConfigError("device 'mps': this machine has no Apple GPU that torch can use; choose auto or cpu")
        return torch.device(MPS)
    count, reason = count_gpus()
    if count == 0:
        raise ConfigError(f"device '{name}': {reason}; choose auto or cpu, or install a CUDA build of torch")
    if index and int(index) >= count:
        raise ConfigError(f"device '{name}': this machine has {count} CUDA GPU(s), numbered from 0")
    return torch.device(name)


def count_gpus() -> tuple[int, str]:
    """Return the number of CUDA GPUs that torch can use, and why there are none; the reason is empty if there are."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return count, ""
    return 0, "torch was built without CUDA" if torch.version.cuda is None else "no CUDA GPU was found"


@lru_cache(maxsize=1)  # so that the line is logged once
def _is_complete_on_mps(version: str) -> bool:
    """Return whether this version of torch has all operations of a training on Apple GPUs, and log a line if not."""
    is_complete = torch_version(version) >= MPS_TORCH
    if not is_complete:
        needed = ".".join(map(str, MPS_TORCH))
        logger.info(
            "torch %s lacks 3D operations on Apple GPUs, so the CPU is used; torch %s has them", version, needed
        )
    return is_complete


def torch_version(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version of torch.

    >>> torch_version("2.13.0+cpu")
    (2, 13)
    """
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device; the host does not wait for a CUDA GPU.

    It waits for an Apple GPU, where an asynchronous copy may read memory that was freed meanwhile (torch issues 139550
    and 189690).
    """
    return tensor.to(device, non_blocking=device.type == CUDA)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a CUDA GPU; 0 for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == CUDA else 0


def peak_device_bytes(device: torch.device) -> int:
    """Return the largest memory that torch has taken of a CUDA GPU so far; 0 for other devices."""
    return torch.cuda.max_memory_reserved(device) if device.type == CUDA else 0


@lru_cache(maxsize=1)
def has_amx() -> bool:
    """Return whether this CPU multiplies matrices of bf16 in hardware (AMX) and torch's kernels use it."""
    # Private probes, here and below, absent from older torch: there bf16 stays off, which is slower but right.
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_kernels and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


@lru_cache(maxsize=1)
def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies bf16 faster than float32 (AMX or AVX512-BF16) and torch's kernels use it.

    A processor with AVX512-FP16 is made for AMX; where that is hidden, by a virtual machine for instance, its
    AVX512-BF16 takes twice as long as float32 (benchmarks/LOG.md).
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return has_amx() or (has_bf16 and not abilities.get("avx512_fp16", False))


def can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` makes faster code for a device: a CUDA GPU for which Triton has a compiler."""
    is_supported = device.type == CUDA and torch.cuda.get_device_capability(device)[0] >= _VOLTA
    return is_supported and find_spec("triton") is not None


def has_graphs(device: torch.device) -> bool:
    """Return whether a device replays CUDA graphs."""
    return device.type == CUDA


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all its work; nothing on the CPU, which has always done so."""
    if device.type == CUDA:
        torch.cuda.synchronize(device)
    elif device.type == MPS:
        torch.mps.synchronize()


def generator_devices(device: torch.device) -> list[torch.device]:
    """Return the devices whose random generators `torch.random.fork_rng` must restore, beside the CPU's."""
    return [device] if device.type == CUDA else []


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """Return the dtype in which convolutions run.

    Args:
        device: where the network lives.
        precision: "auto" (bf16 where the hardware multiplies it, fp16 on older GPUs, else fp32), "fp32", "bf16" or
            "fp16".

    Raises:
        ConfigError: unknown precision, or fp16 on the CPU.
    """
    if precision != "auto":
        if precision not in PRECISIONS:
            raise ConfigError(f"unknown precision '{precision}'{did_you_mean(precision, ['auto', *PRECISIONS])}")
        if precision == "fp16" and device.type == CPU:
            raise ConfigError("precision 'fp16' needs a GPU; choose auto, bf16 or fp32 on the CPU")
        return PRECISIONS[precision]
    if device.type == CPU:
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if device.type == CUDA:
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= _AMPERE else torch.float16
    return torch.float32


def available_precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions in which torch trains on a device, however fast: keys of `PRECISIONS`."""
    if device.type == CUDA:
        has_bf16 = torch.cuda.get_device_capability(device)[0] >= _AMPERE
        return ("fp32", "bf16", "fp16") if has_bf16 else ("fp32", "fp16")
    return ("fp32", "bf16") if device.type == CPU else ("fp32",)


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[object]:
    """Return the context in which forward passes run; it does nothing where `compute_dtype` is fp32."""
    dtype = compute_dtype(device, precision)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def memory_format(device: torch.device, dims: int, *, fused_norm: bool = False) -> torch.memory_format:
    """Return the layout in which networks are fastest for images with `dims` spatial axes.

    Channels-last on the CPU for 2D and 3D (no reordering around each convolution) and for 2D on CUDA (tensor
    cores); for 3D on CUDA only with the fused instance norm, because torch's own copies the image to contiguous and
    back; contiguous elsewhere.
    """
    if dims == 2 and device.type in {CPU, CUDA}:
        return torch.channels_last
    if dims == 3 and (device.type == CPU or (device.type == CUDA and fused_norm)):
        return torch.channels_last_3d
    return torch.contiguous_format
