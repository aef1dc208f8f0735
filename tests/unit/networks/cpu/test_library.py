"""Loading of the compiled libraries, what is said about missing ones, and the checks of arguments."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import pytest
import torch

from segwright.networks.cpu import kernels
from segwright.networks.cpu import library as compiled
from segwright.networks.cpu.library import KernelError, describe_kernels
from segwright.networks.cpu.sources import sources_hash

needs_kernels = pytest.mark.skipif(compiled.library() is None, reason="the kernels are not compiled for this processor")
needs_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}, reason="no kernels for this processor"
)


def test_the_hash_depends_on_names_and_contents(tmp_path: Path) -> None:
    found = set()
    for name, content in (("a.c", "1"), ("a.c", "2"), ("a.h", "2"), ("b.txt", "3")):
        (tmp_path / name).write_text(content)
        found.add(sources_hash(tmp_path))
    assert len(found) == 3
    assert sources_hash(tmp_path / "missing") == ""


@needs_kernels
def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "sources_hash", lambda folder: "0123456789abcdef")
    with pytest.raises(KernelError, match="compiled from other sources"):
        compiled.Library(compiled.FOLDER / "_kernels_avx2.so")


@needs_kernels
def test_without_sources_a_library_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "sources_hash", lambda folder: "")
    assert compiled.Library(compiled.FOLDER / "_kernels_avx2.so").lanes == 8


@needs_avx2
@pytest.mark.parametrize(("content", "reason"), [(None, "no such file"), (b"not a library", "_kernels_avx2.so")])
def test_a_missing_library_is_one_line_with_the_remedy(
    content: bytes | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if content is not None:
        (tmp_path / "_kernels_avx2.so").write_bytes(content)
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    with caplog.at_level(logging.WARNING, logger=compiled.__name__):
        assert compiled.libraries.__wrapped__() == ()
    (message,) = caplog.messages
    assert reason in message
    assert "install a C compiler and then Segwright again" in message


def test_the_description_says_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert describe_kernels() == "CPU kernels: none; torch reports DEFAULT, they need AVX2"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(compiled, "fp16_libraries", tuple)
    monkeypatch.setattr(compiled, "libraries", tuple)
    assert "none could be loaded; install a C compiler" in describe_kernels()


@needs_kernels
def test_the_description_names_the_vectors() -> None:
    assert "8 floats" in describe_kernels()


FLOATS = torch.zeros(4096)


@needs_kernels
@pytest.mark.parametrize(
    ("arguments", "work", "message"),
    [
        ((FLOATS, None, 1.0, 1, 32, 8, 2, FLOATS, None, 1024), 64, "number of arguments"),
        ((None, None, 1.0, 1, 32, 8, 2, FLOATS, None, 1024, FLOATS), 64, "an array is missing"),
        ((FLOATS, None, 1.0, 1, 32, 8, 0, FLOATS, None, 1024, FLOATS), 64, "a size is not positive"),
        ((FLOATS, None, 1.0, 1, 32, -8, 2, FLOATS, None, 1024, FLOATS), 64, "a size is not positive"),
        ((FLOATS, None, 1.0, 1, 32, 9, 2, FLOATS, None, 1024, FLOATS), 72, "channels are not a multiple"),
        ((FLOATS, None, 1.0, 1, 32, 8, 2, FLOATS, None, 1024, FLOATS), 63, "too little work memory"),
        ((torch.zeros(9, dtype=torch.uint8)[1:], None, 1.0, 1, 32, 8, 2, FLOATS, None, 1024, FLOATS), 64, "aligned"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[torch.Tensor | float | None, ...], work: int, message: str
) -> None:
    with pytest.raises(KernelError, match=f"segwright_head: .*{message}"):
        compiled.libraries()[-1].call("segwright_head", 1, *arguments, work=work)


def shape(**changes: int) -> kernels._Shape:
    sizes = {
        "n": 1, "d": 4, "h": 8, "w": 8, "first": 8, "second": 0, "out": 16, "out_d": 4, "out_h": 8, "out_w": 8,
        "deep": kernels._F4.code, "flat": kernels._F4.code, "units": 1, "length": 2, "strip": 1,
    }  # fmt: skip
    return kernels._Shape(**{**sizes, **changes})


@needs_kernels
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": 0}, "size"),
        ({"out_h": 7}, "size"),
        ({"strip": 0}, "size"),
        ({"first": 12}, "channels"),
        ({"second": -8}, "channels"),
        ({"out": 8}, "channels"),
        ({"deep": 3}, "filter"),
        ({"flat": kernels._IDENTITY.code}, "filter"),
    ],
)
def test_wrong_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    library = compiled.libraries()[-1]
    assert library.work_of("segwright_convolve_work", shape()) > 0
    with pytest.raises(KernelError, match=message):
        library.work_of("segwright_convolve_work", shape(**changes))
    arguments = [FLOATS, None, 1.0, FLOATS, None, 1.0, FLOATS, None, FLOATS, None]
    with pytest.raises(KernelError, match=message):
        library.call("segwright_convolve", 1, shape(**changes), *arguments)


@needs_kernels
def test_too_little_work_is_refused() -> None:
    library = compiled.libraries()[-1]
    work = library.work_of("segwright_convolve_work", shape())
    arguments = [FLOATS, None, 1.0, FLOATS, None, 1.0, FLOATS, None, FLOATS, None]
    with pytest.raises(KernelError, match="too little work"):
        library.call("segwright_convolve", 1, shape(), *arguments, work=work - 1)


@needs_kernels
def test_an_unknown_code_has_words() -> None:
    assert compiled.libraries()[0]._functions.segwright_message(ctypes.c_int64(99)) == b"unknown error"
