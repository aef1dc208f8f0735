"""Choice of device, precision and layout."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from segwright.core import device as devices
from segwright.core.device import (
    autocast,
    compute_dtype,
    has_fast_bf16,
    memory_format,
    resolve_device,
)
from segwright.core.errors import ConfigError
from segwright.core.torch_threads import TorchThreads, single_threaded_pool

CPU = torch.device("cpu")


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("_no_gpu")
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert resolve_device("auto") == CPU
    assert resolve_device("cpu") == CPU


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "choose auto or cpu"),
        ("cuda:1", "device 'cuda:1'"),
        ("mps", "no Apple GPU"),
        ("cdua", "did you mean 'cuda'"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cpu:", "unknown device"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize(("version", "kind"), [("2.8.0", "cpu"), ("2.9.0", "mps"), ("2.10.0+git1", "mps")])
def test_auto_takes_an_apple_gpu_if_torch_has_its_operations(
    version: str, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", version)
    devices._is_complete_on_mps.cache_clear()
    with caplog.at_level("INFO", "segwright"):
        assert [resolve_device("auto").type for _ in range(2)] == [kind, kind]
    assert [record.message for record in caplog.records] == (
        ["torch 2.8.0 lacks 3D operations on Apple GPUs, so the CPU is used; torch 2.9 has them"] * (kind == "cpu")
    )
    assert resolve_device("mps").type == "mps"


def test_a_gpu_is_taken_by_auto_and_its_number_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1").index == 1
    with pytest.raises(ConfigError, match=r"has 2 CUDA GPU"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_is_used_on_the_cpu_only_where_it_is_fast(
    fast: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda: fast)
    assert compute_dtype(CPU) == dtype
    conv = torch.nn.Conv2d(1, 1, 1)
    with autocast(CPU):
        assert conv(torch.zeros(1, 1, 2, 2)).dtype == dtype


def test_older_gpus_get_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert compute_dtype(gpu) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert compute_dtype(gpu) == torch.bfloat16


def test_precision_can_be_asked_for() -> None:
    assert compute_dtype(CPU, "fp32") == torch.float32
    assert compute_dtype(CPU, "bf16") == torch.bfloat16
    with pytest.raises(ConfigError, match="needs a GPU"):
        compute_dtype(CPU, "fp16")
    with pytest.raises(ConfigError, match="did you mean 'fp32'"):
        compute_dtype(CPU, "fp23")


@pytest.mark.parametrize(
    ("amx", "bf16", "abilities", "fast"),
    [
        (True, True, {"avx512_fp16": True}, True),
        (False, True, {"avx512_fp16": True}, False),  # made for AMX, which is hidden: slower than float32
        (False, True, {"avx512_fp16": False}, True),
        (False, True, {}, True),
        (False, False, {}, False),
    ],
)
def test_bf16_is_fast_where_the_processor_is_made_for_it(
    amx: bool, bf16: bool, abilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    monkeypatch.setattr(devices, "has_amx", lambda: amx)
    assert has_fast_bf16.__wrapped__() == fast


def test_layouts() -> None:
    assert memory_format(CPU, 2) == torch.channels_last
    assert memory_format(CPU, 3) == torch.channels_last_3d
    assert memory_format(torch.device("mps"), 3) == torch.contiguous_format
    assert memory_format(torch.device("cuda"), 2) == torch.channels_last
    assert memory_format(torch.device("cuda"), 3) == torch.contiguous_format
    assert memory_format(torch.device("cuda"), 3, fused_norm=True) == torch.channels_last_3d


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("_two_threads")
def test_only_the_threads_of_a_single_threaded_pool_compute_alone() -> None:
    with single_threaded_pool(2, "few") as pool:
        assert [pool.submit(torch.get_num_threads).result() for _ in range(2)] == [1, 1]
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)


@pytest.mark.usefixtures("_two_threads")
def test_preprocessing_gives_back_the_number_of_threads_of_its_caller() -> None:
    with TorchThreads(1) as threads:
        with ThreadPoolExecutor(1) as others:
            others.submit(torch.set_num_threads, 1).result()  # torch gives it to threads that begin later, too
        with ThreadPoolExecutor(1) as pool:
            pool.submit(threads.limit).result()
            assert pool.submit(torch.get_num_threads).result() == 1
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
