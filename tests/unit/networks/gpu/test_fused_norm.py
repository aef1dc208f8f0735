"""The fused instance norm: its kernels in Triton's interpreter, on a GPU, and where it is not used."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from segwright.networks.build import input_format, move_to_device
from segwright.networks.gpu import fused_norm, self_check
from segwright.networks.norm import InstanceNorm3d, fuse_norms, has_fused_norms

ROOT = Path(__file__).parents[4]
KERNEL_TESTS = Path(__file__).with_name("interpreted_kernels.py")

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton's interpreter: pip install triton")


def run_interpreted(marker: str) -> None:
    """Run the tests of `interpreted_kernels.py` in a process where Triton interprets kernels, which it reads once."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marker, str(KERNEL_TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_triton
def test_kernels_equal_torch_and_failures_fall_back() -> None:
    run_interpreted("not slow")


@needs_triton
@pytest.mark.slow
def test_kernels_compile() -> None:
    run_interpreted("slow")


class Compiled:
    """A kernel that is compiled when it is launched, but not run."""

    def __init__(self, kernel: Any, sizes: list[int]) -> None:
        self.kernel, self.sizes = kernel, sizes

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.sizes.append(len(self.kernel.warmup(*arguments, grid=grid, **options).asm["cubin"]))

        return launch


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 32, 16, 16, 20), (1, 48, 5, 7), (2, 1, 4, 4)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("capability", "dtype"), [(75, torch.float16), (80, torch.float32), (90, torch.bfloat16)])
def test_kernels_compile_for_gpus_without_one(
    capability: int,
    dtype: torch.dtype,
    full: bool,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The interpreter accepts code that Triton's compiler refuses."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from segwright.networks.gpu import kernels

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    sizes: list[int] = []
    for name in ("moments", "normalize", "gradient_sums", "input_gradient"):
        monkeypatch.setattr(kernels, name, Compiled(getattr(kernels, name), sizes))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    weight = torch.zeros(shape[1]) if full else None
    monkeypatch.setattr(driver, "_active", Driver())
    fused_norm.fused_norm(x, weight, weight, x if full else None, 1e-5, 0.01).sum().backward()
    assert len(sizes) == 4
    assert min(sizes) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", self_check.TOLERANCE)
def test_the_kernels_work_on_this_gpu(dtype: torch.dtype) -> None:
    assert self_check._failure(torch.device("cuda", 0), dtype) is None


@pytest.fixture
def _no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "find_spec", lambda name: None)
    self_check.works_on.cache_clear()


@pytest.mark.usefixtures("_no_triton")
def test_without_triton_torch_computes_the_norm_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    norm = InstanceNorm3d(4, affine=True)
    with caplog.at_level(logging.INFO):
        assert [fuse_norms(norm, torch.float32) for _ in range(2)] == [False, False]
    assert caplog.messages == [
        "torch's own instance norm is used on cpu, not the fused one: Triton is not installed (pip install triton)"
    ]
    assert not has_fused_norms(norm)


def test_on_the_cpu_and_without_instance_norm_it_is_not_used() -> None:
    norm = move_to_device(InstanceNorm3d(4, affine=True), torch.device("cpu"))
    assert not has_fused_norms(norm)
    assert not fuse_norms(torch.nn.Conv3d(1, 1, 1), torch.float32)


def test_images_are_channels_last_on_cuda_where_the_norm_is_fused() -> None:
    norm, cuda = InstanceNorm3d(4, affine=True), torch.device("cuda")
    assert input_format(norm, cuda, 3) == torch.contiguous_format
    norm.fused_for = (cuda, torch.bfloat16)
    assert input_format(norm, cuda, 3) == torch.channels_last_3d
    assert input_format(norm, torch.device("mps"), 3) == torch.contiguous_format
