"""What is told of full disks and missing memory, in the words of each library."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from segwright.core.errors import DiskError, OutOfMemoryError, SegwrightError, WorkspaceError
from segwright.core.files.atomic_io import atomic_path, write_text
from segwright.core.parallel import map_threads
from segwright.core.resources import resource_error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/w/a"), "/w/a: no space left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/w/a"), "/w/a: the disk quota is used up"),
        (OSError(errno.EFBIG, "File too large", "/w/a"), "/w/a: a file is larger than the system lets this process"),
        (OSError(errno.EROFS, "Read-only file system", "/w/a"), "/w/a: is on a read-only file system"),
        (OSError(errno.EACCES, "Permission denied", "/w/a"), "/w/a: cannot be opened or written (Permission denied)"),
        (OSError(errno.EIO, "Input/output error", "/w/a"), "/w/a: the disk failed"),
        (OSError(errno.EMFILE, "Too many open files", "/w/a"), "/w/a: too many files are open"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (Exception("Error while serializing: I/O error: File too large (os error 27)"), "larger than the system lets"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "no space left"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "no space left"),
        (RuntimeError("ITK ERROR: MetaImageIO: File cannot be written: a\nReason: File too large"), "larger than"),
        (RuntimeError("ITK ERROR: TIFFImageIO(0x1): TIFFImageIO: error out of disk space"), "no space left"),
    ],
)
def test_a_disk_that_takes_no_more_is_reported_as_such(error: Exception, said: str) -> None:
    found = resource_error(error)
    assert isinstance(found, DiskError)
    assert said in str(found)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory;"),
        (MemoryError("Unable to allocate 3.00 TiB for an array with shape (1,) and data type float32"), "(3.00 TiB"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                      "tried to allocate 4294967296 bytes."), "(4.0 GiB more were needed)"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 2048 bytes"), "(2.0 KiB more"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "on the GPU (2.00 GiB more"),
        (RuntimeError("CUDA error: out of memory"), "out of memory on the GPU;"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (RuntimeError("Failed to allocate memory for image."), "out of memory"),
        (RuntimeError("can't start new thread"), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "out of memory"),
    ],
)  # fmt: skip
def test_missing_memory_is_reported_with_what_was_needed(error: Exception, said: str) -> None:
    found = resource_error(error)
    assert isinstance(found, OutOfMemoryError)
    assert said in str(found)
    assert "--batch-size" in str(found)  # which every verb that trains knows
    assert "finished work is kept" in str(found)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), KeyError("no space left"), OSError(errno.ENOENT, "No such file", "a")]
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert resource_error(error) is None


def test_an_expected_refusal_before_another_fault_is_not_to_blame() -> None:
    error = RuntimeError("broken")
    error.__context__ = PermissionError(errno.EACCES, "Permission denied", "a")
    assert resource_error(error) is None


def test_the_reason_behind_an_error_counts() -> None:
    error = RuntimeError("case a: OSError")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(resource_error(error), DiskError)


def test_a_full_disk_names_the_file_and_what_it_needs(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"weights: no space left on the disk \(2.0 MiB are needed, .* are free\)"),
        atomic_path(tmp_path / "weights", size=2 * 2**20),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="/a.txt: no space left") as caught, atomic_path(tmp_path / "a.txt") as path:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    assert "tmp" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_zip_on_a_full_disk_is_reported_although_closing_it_fails_too() -> None:
    with (
        pytest.raises(Exception) as caught,  # noqa: PT011 -- of several kinds, by version of Python
        open("/dev/full", "wb") as stream,
        zipfile.ZipFile(stream, "w") as archive,
    ):
        archive.writestr("a", np.random.default_rng(0).bytes(1 << 20))
    assert isinstance(resource_error(caught.value), DiskError)


def test_a_case_in_a_thread_is_named(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="case 1: out of memory"):
        map_threads(fail, [1], describe=lambda item: f"case {item}")


def test_a_refused_folder_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "a"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WorkspaceError, match="choose a folder you may write to"):
        write_text(tmp_path / "a" / "b.json", "x")


def test_errors_of_our_own_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(SegwrightError, match="^out of memory in words$"), atomic_path(tmp_path / "a"):
        raise SegwrightError("out of memory in words")
