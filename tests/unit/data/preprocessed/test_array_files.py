"""Array files of unknown origin: plain numbers are read, anything else is refused before blosc2 sees it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from segwright.core.errors import DatasetError
from segwright.data.preprocessed.array_files import open_array, read_layout


def plain(path: Path, values: Any = None, **more: Any) -> Any:
    given = np.arange(120, dtype=np.float32).reshape(4, 5, 6) if values is None else values
    return blosc2.asarray(given, urlpath=str(path), mode="w", **more)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i2", "i4", "i8", "?"])
@pytest.mark.parametrize("codec", [blosc2.Codec.ZSTD, blosc2.Codec.LZ4, blosc2.Codec.LZ4HC, blosc2.Codec.ZLIB])
@pytest.mark.parametrize("chunks", [(4, 5, 6), (1, 5, 6), (3, 4, 4)])
def test_plain_arrays_come_back(tmp_path: Path, dtype: str, codec: blosc2.Codec, chunks: tuple[int, ...]) -> None:
    values = np.arange(120).reshape(4, 5, 6).astype(dtype)
    plain(tmp_path / "a.b2nd", values, chunks=chunks, blocks=(1, 2, 3), cparams=blosc2.CParams(codec=codec))
    assert np.array_equal(open_array(tmp_path / "a.b2nd")[...], values)


@pytest.mark.parametrize("values", [np.zeros((4, 5)), np.full((4, 5), 7.0), np.full((4, 5), np.nan)])
def test_arrays_of_one_value_come_back(tmp_path: Path, values: Any) -> None:
    plain(tmp_path / "a.b2nd", values)
    assert np.array_equal(open_array(tmp_path / "a.b2nd")[...], values, equal_nan=True)


def _expression(path: Path) -> None:
    (plain(path.with_name("x.b2nd")) + plain(path.with_name("y.b2nd"))).save(str(path))


def _code(inputs: Any, output: Any, offset: Any) -> None:
    output[:] = inputs[0]


def _attribute(path: Path) -> None:
    array = plain(path)
    array.schunk.vlmeta["x"] = 1


def _patched(position: int, value: int, *, in_chunk: bool = False) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        plain(path)
        content = bytearray(path.read_bytes())
        start = int.from_bytes(content[11:15], "big") if in_chunk else 0
        content[start + position] = value
        path.write_bytes(content)

    return make


PLUGIN = 160
"""Number of a codec or filter for which blosc2 starts a Python that imports its plugin."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_expression, "holds more than an array"),
        (lambda path: blosc2.lazyudf(_code, (plain(path.with_name("x.b2nd")),), np.float32).save(urlpath=str(path)),
         "holds more than an array"),
        (lambda path: plain(path, np.array([1, "a"], dtype=object)), "another type than numbers"),
        (lambda path: blosc2.zeros((3,), dtype=[("a", "i4")], urlpath=str(path), mode="w"), "type than numbers"),
        (lambda path: plain(path, np.array(["a"])), "another type than numbers"),
        (lambda path: plain(path, meta={"proxy-source": {"urlpath": "x.b2nd"}}), "holds more than an array"),
        (lambda path: blosc2.SChunk(data=np.ones(9), urlpath=str(path), mode="w", contiguous=True), "holds more than"),
        (_attribute, "has attributes"),
        (lambda path: plain(path, contiguous=False), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.write_bytes(b""), "is not a blosc2 array"),
        (lambda path: path.write_bytes(b"x" * 500), "is not a blosc2 array"),
        (_patched(27, 0x16), "built-in codecs"),
        (_patched(71, PLUGIN), "built-in codecs"),
        (_patched(77, PLUGIN), "built-in codecs"),
        (_patched(2, 0xC5, in_chunk=True), "not built in"),
        (_patched(16, PLUGIN, in_chunk=True), "not built in"),
        (_patched(22, PLUGIN, in_chunk=True), "not built in"),
        (lambda path: plain(path, np.zeros((0, 3))), "expected at least one value"),
        (lambda path: None, "No such file"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    make(tmp_path / "a.b2nd")
    with pytest.raises(DatasetError, match=rf"a\.b2nd: .*{reason}"):
        open_array(tmp_path / "a.b2nd")


def test_what_claims_to_be_large_takes_no_memory(tmp_path: Path) -> None:
    blosc2.zeros((2**16, 2**16), dtype=np.float64, urlpath=str(tmp_path / "a.b2nd"), mode="w", chunks=(2**13, 2**13))
    with pytest.raises(DatasetError, match="chunks of"):
        open_array(tmp_path / "a.b2nd")


def test_the_layout_is_read_without_the_values(tmp_path: Path) -> None:
    plain(tmp_path / "a.b2nd", chunks=(2, 5, 6), blocks=(1, 5, 6))
    layout = read_layout(tmp_path / "a.b2nd")
    assert (layout.shape, layout.chunks, layout.blocks, layout.dtype) == ((4, 5, 6), (2, 5, 6), (1, 5, 6), np.float32)


def test_changed_bytes_end_in_an_error_or_an_array(tmp_path: Path) -> None:
    path = tmp_path / "a.b2nd"
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    plain(path, values, chunks=(2, 5, 6), blocks=(1, 5, 6))
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        for position in random.integers(0, len(content), random.integers(1, 4)).tolist():
            content[position] = int(random.choice([0, 1, 127, 128, 255, random.integers(256)]))
        path.write_bytes(content)
        try:
            array = open_array(path)
        except DatasetError:
            continue
        try:
            assert array[...].shape == values.shape
        except RuntimeError:  # in the values; who reads them says so
            continue
