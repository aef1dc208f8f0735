"""Checkpoint files that ask for more time and memory than they have bytes."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from segwright.core.errors import ModelError, SegwrightError
from segwright.core.files.zip_files import MAX_DIRECTORY_BYTES
from segwright.interop import instructions
from segwright.interop.archive import extract
from segwright.interop.torchfile import MAX_PICKLE_BYTES, read_document, read_tensors

HEADER, STOP = b"\x80\x02", b"."


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def pack(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(*, numel: int, offset: int, shape: Iterable[int], stride: Iterable[int]) -> bytes:
    storage = (
        b"(" + text(b"storage") + name("torch", "FloatStorage") + text(b"0") + text(b"cpu") + number(numel) + b"tQ"
    )
    rest = number(offset) + pack(shape) + pack(stride) + b"\x89" + name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + rest + b"tR"


def saved(path: Path, pickled: bytes, *, data: bytes = b"\0" * 64, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/data/0", data)
        for record, content in records.items():
            archive.writestr(f"m/{record}", content)
    return path


TEXTS = b"".join(text(b"%d" % index) for index in range(30_000))
LIST = b"](" + b"N" * 30_000 + b"eq\x00"
FEW = 10
"""The bound is as many times smaller in these tests, and so are the pickles."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (LIST + name("torch", "Size") + b"q\x01" + b"h\x01h\x00\x85R" * 3_000, "more time and memory"),
        (b"](" + TEXTS + b"eq\x00" + name("builtins", "set") + b"q\x01" + b"h\x01h\x00\x85R" * 300, "more time and"),
        (
            text(b"x" * 10**6) + b"q\x00" + text(b"latin1") + b"q\x02" + name("_codecs", "encode") + b"q\x01"
            + b"h\x01h\x00h\x02\x86R" * 100,
            "more time and memory",
        ),
        (b"]" * (12_000_000 // FEW), "more time and memory"),
        (b"N" + b"".join(b"r" + struct.pack("<I", index) for index in range(5_000_000 // FEW)), "more time and memory"),
        (b"\x80\x02" * (25_000_000 // FEW), "more time and memory"),
        (b"X\xff\xff\xff\xff", "it ends early"),
        (b"\x8b\xff\xff\xff\x7f", "pickle opcode b'\\\\x8b'"),
        (tensor(numel=16, offset=0, shape=[1] * 100_000, stride=[1] * 100_000), "a tensor of 100000 axes"),
        (tensor(numel=16, offset=0, shape=[1], stride=[1, 2]), "a tensor is described wrongly"),
        (tensor(numel=16, offset=0, shape=[-1], stride=[1]), "the size, step or offset -1"),
        (tensor(numel=16, offset=-8, shape=[4], stride=[1]), "the size, step or offset -8"),
        (tensor(numel=16, offset=0, shape=[4], stride=[-1]), "the size, step or offset -1"),
        (tensor(numel=16, offset=0, shape=[4], stride=[2**200]), "the size, step or offset 160693"),
        (tensor(numel=-(10**12), offset=0, shape=[4], stride=[1]), "a storage has -1000000000000 elements"),
        (tensor(numel=2**80, offset=0, shape=[4], stride=[1]), "a storage has 1208925819614629174706176 elements"),
    ],
)  # fmt: skip
def test_work_beyond_the_longest_training_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes, message: str
) -> None:
    monkeypatch.setattr(instructions, "MAX_WORK", instructions.MAX_WORK // FEW)
    path = saved(tmp_path / "a.pth", HEADER + pickled + STOP)
    with pytest.raises(ModelError, match=message):
        read_document(path)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (tensor(numel=16, offset=0, shape=[10**6, 10**6], stride=[0, 0]), "backed by 16 numbers only"),
        (tensor(numel=16, offset=0, shape=[4, 4], stride=[10**9, 1]), "backed by 16 numbers only"),
        (tensor(numel=16, offset=10, shape=[8], stride=[1]), "backed by 16 numbers only"),
        (tensor(numel=10**12, offset=0, shape=[1], stride=[1]), "of more bytes than the file has"),
        (tensor(numel=32, offset=0, shape=[32], stride=[1]), "it needs 128 bytes, but its record has 64"),
    ],
)
def test_tensors_beyond_their_records_are_refused(tmp_path: Path, stored: bytes, message: str) -> None:
    path = saved(tmp_path / "a.pth", HEADER + stored + STOP)
    with pytest.raises(ModelError, match=message):
        read_tensors(path, {"w": read_document(path)})


def test_many_views_of_one_record_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", HEADER + tensor(numel=16, offset=0, shape=[4, 4], stride=[4, 1]) + STOP)
    stored = read_document(path)
    four = read_tensors(path, {str(index): stored for index in range(4)})
    assert len({values.data_ptr() for values in four.values()}) == 1
    with pytest.raises(ModelError, match="share memory more than 16 times over"):
        read_tensors(path, {str(index): stored for index in range(1000)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "pickled",
    [
        b"K\x01\x85" + b"q\x00h\x00\x86" * 60,
        b"]q\x00h\x00a",
        b"]" * 200 + b"a" * 199,
        LIST + b"](" + b"h\x00" * 1000 + b"e",
    ],
    ids=["twice as many at each level", "itself", "deep", "wide"],
)
def test_values_that_hold_each_other_without_end_are_refused(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(ModelError, match="its values hold each other too many times"):
        read_document(saved(tmp_path / "a.pth", HEADER + pickled + STOP))


def test_long_bytes_come_back_whole(tmp_path: Path) -> None:
    torch.save({"state": bytes(range(256)) * 4}, tmp_path / "a.pth")
    assert read_document(tmp_path / "a.pth") == {"state": bytes(range(256)) * 4}


def test_records_that_are_no_part_of_the_format_are_not_read_whole(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="big-endian"):
        read_document(saved(tmp_path / "a.pth", HEADER + b"N" + STOP, byteorder=b"little" * 100))
    with pytest.raises(ModelError, match="64 MiB beside its tensors"):
        read_document(saved(tmp_path / "b.pth", bytes(MAX_PICKLE_BYTES + 1)))


@pytest.mark.parametrize("ending", ["pth", "zip"])
def test_a_list_of_entries_longer_than_any_models_is_not_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    with path.open("wb") as stream:
        stream.truncate(MAX_DIRECTORY_BYTES + 1)
        stream.seek(0, os.SEEK_END)
        stream.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, MAX_DIRECTORY_BYTES + 1, 0, 0))
    with pytest.raises(SegwrightError, match="refused, its list of entries has 8 MiB"):
        read_document(path) if ending == "pth" else extract(path, tmp_path / "out")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(ModelError, match="not a regular file"):
        read_document(tmp_path / "a.pth")
    with pytest.raises(ModelError, match="not a regular file"):
        extract(tmp_path / "a.pth", tmp_path / "out")
