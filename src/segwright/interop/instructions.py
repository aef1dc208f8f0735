"""Interpret the pickles that torch writes, without running code: the result has plain values only.

Instructions are interpreted one by one: numbers, strings, containers, and the few names in `_KNOWN`; nothing is
imported. Tensors become descriptions (`StoredTensor`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from struct import unpack_from
from types import NoneType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from segwright.core.errors import ModelError

_STORAGES: Final = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        *(("Float", torch.float32), ("Double", torch.float64), ("Half", torch.float16), ("BFloat16", torch.bfloat16)),
        *(("Long", torch.int64), ("Int", torch.int32), ("Short", torch.int16), ("Char", torch.int8)),
        *(("Byte", torch.uint8), ("Bool", torch.bool)),
    )
}
MOST_WORK: Final = 16_000_000
"""Limit for a pickle, in units of about 0.3 us and 40 bytes; the log of 1000 epochs of nnU-Net with 100 classes takes
7 million."""
MOST_AXES: Final = 16
"""Largest number of axes of a tensor; those of networks have five."""
LARGEST_SIZE: Final = 2**62
"""Largest number of elements, whose bytes still fit 64 bits."""

_LONGEST_TEXT: Final = 120
_STEP_WORK: Final = 2
_CONTAINER_WORK: Final = 2
_ITEM_WORK: Final = 2
_MEMO_WORK: Final = 4
_CALL_WORK: Final = 8
_BYTES_PER_WORK: Final = 8
"""Bytes of a string per unit of work; Python needs up to four bytes for each character."""
_NUMBERS: Final = ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


class RefusedError(Exception):
    """The pickle needs something that is not allowed; the message names it."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A record of the file, with `numel` elements of `dtype`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in the file: its record, and its offset, shape and stride there, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def outline(self) -> Tensor:
        """Return a meta tensor of this shape and dtype, without values.

        Raises:
            ModelError: the record is smaller than the tensor claims to be.
        """
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if math.prod(self.shape) > self.storage.numel or (0 not in self.shape and last >= self.storage.numel):
            raise ModelError(f"a tensor of shape {list(self.shape)} is backed by {self.storage.numel} numbers only")
        try:
            return torch.empty(self.shape, dtype=self.storage.dtype, device="meta")
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"a tensor of shape {list(self.shape)} is more than any memory holds") from error


class _NumpyType:
    """The dtype of a numpy number; the pickle sets its byte order afterwards."""

    def __init__(self, name: object, *_: object) -> None:
        if _text(name) not in _NUMBERS:
            raise RefusedError(f"it asks for numpy.dtype '{name}'")
        self.form = np.dtype(_text(name)).newbyteorder("<")

    def order(self, order: str) -> None:
        """Set the byte order: big-endian for `>`, else little-endian."""
        self.form = self.form.newbyteorder(">" if order == ">" else "<")

    def number(self, data: bytes) -> Any:
        """Return the number in `data` as Python's own."""
        return np.frombuffer(data, self.form, count=1)[0].item()


@dataclass(frozen=True, slots=True)
class _Call:
    """The function of a known name; `copies` if it copies the items of its argument."""

    function: Callable[..., Any]
    copies: bool = False


class Machine:
    """Interprets a pickle of protocol 2, which torch writes; `MOST_WORK` limits its time and memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.left = MOST_WORK

    def run(self) -> Any:
        """Return the value that the pickle makes."""
        data, steps = self.data, _STEPS
        while True:
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            if code not in steps:
                raise RefusedError(f"pickle instruction {bytes([code])!r}")
            self.left -= _STEP_WORK
            if self.left < 0:
                self.work(0)
            steps[code](self)

    def work(self, amount: int) -> None:
        """Count work, the unit of time and memory.

        Raises:
            RefusedError: the sum is more than `MOST_WORK`.
        """
        self.left -= amount
        if self.left < 0:
            raise RefusedError("it takes more time and memory than the longest training needs")

    def take(self, count: int) -> bytes:
        """Return the next bytes of the pickle."""
        if count > len(self.data) - self.at:
            raise EOFError("it ends early")
        self.at += count
        self.work(count // _BYTES_PER_WORK)
        return self.data[self.at - count : self.at]

    def number(self, form: str, size: int) -> Any:
        """Return the next number of the pickle."""
        (value,) = unpack_from(form, self.data, self.at)
        self.at += size
        return value

    def line(self) -> str:
        """Return the next line of the pickle."""
        end = self.data.index(b"\n", self.at)
        line, self.at = self.data[self.at : end], end + 1
        return line.decode("ascii")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_container(self, value: Any) -> None:
        """Put a new list or dictionary on the stack."""
        self.work(_CONTAINER_WORK)
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        """Begin a list of items."""
        self.work(_CONTAINER_WORK)
        self.marks.append(self.stack)
        self.stack = []

    def name(self) -> None:
        """Push the value of a name."""
        path = f"{self.line()}.{self.line()}"
        if path not in _KNOWN:
            raise RefusedError(f"it asks for {path[:120]}")
        self.push(_KNOWN[path])

    def store(self, index: int) -> None:
        """Remember the top of the stack."""
        self.work(_MEMO_WORK)
        self.memo[index] = self.stack[-1]

    def last(self, count: int) -> None:
        """Make a tuple of the last values."""
        if len(self.stack) < count:
            raise IndexError("too few values for a tuple")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise TypeError("only lists are appended to")
        self.stack[-1].extend(items)

    def insert(self, items: list[Any]) -> None:
        """Put keys and values into the dictionary on top of the stack."""
        if type(self.stack[-1]) not in (dict, OrderedDict):
            raise TypeError("only dictionaries take keys")
        self.work(len(items))
        _require_plain(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def pair(self) -> list[Any]:
        """Take the last two values."""
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def record(self) -> None:
        """Push the storage that a tuple on the stack describes."""
        kind, dtype, key, _, numel = self.stack.pop()
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(numel) is not int:
            raise TypeError("a storage is described wrongly")
        if not 0 <= numel <= LARGEST_SIZE:
            raise TypeError(f"a storage has {_shortened(numel)} elements")
        self.push(Storage(key, dtype, numel))

    def call(self) -> None:
        """Call a known name."""
        arguments, called = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple or not isinstance(called, _Call):
            raise RefusedError(f"it calls a {type(called).__name__}")
        self.work(_CALL_WORK + len(arguments))
        if called.copies and arguments:
            item = arguments[0]
            self.work(len(item) // _BYTES_PER_WORK if type(item) is str else _ITEM_WORK * len(item))
        self.stack[-1] = called.function(*arguments)

    def build(self) -> None:
        """Set the state of a value; only the byte order of numbers is used."""
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _NumpyType):
            value.order(_text(state[1]))
        elif type(value) is not OrderedDict:
            raise RefusedError(f"it sets the state of a {type(value).__name__}")


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> StoredTensor:
    if not (isinstance(storage, Storage) and type(shape) is type(stride) is tuple and len(shape) == len(stride)):
        raise TypeError("a tensor is described wrongly")
    if len(shape) > MOST_AXES:
        raise RefusedError(f"it has a tensor of {len(shape)} axes")
    for number in (offset, *shape, *stride):
        if type(number) is not int or not 0 <= number <= LARGEST_SIZE:
            raise TypeError(f"a tensor has the size, step or offset {_shortened(number)}")
    return StoredTensor(storage, offset, shape, stride)


def _parameter(tensor: StoredTensor, *_: object) -> StoredTensor:
    return tensor


def _scalar(kind: _NumpyType, data: bytes) -> Any:
    return kind.number(data)


def _encode(text: str, encoding: str) -> bytes:
    if _text(encoding) not in ("latin1", "latin-1"):
        raise RefusedError(f"it asks for the encoding '{encoding}'")
    if type(text) is not str:
        raise TypeError(f"expected a text, found a {type(text).__name__}")
    return text.encode("latin-1")


def _shortened(value: object) -> str:
    """Return a value for a message; the text of a container could be endless."""
    return repr(value)[:40] if type(value) in (int, float, bool) else f"a {type(value).__name__}"


def _set(items: list[Any]) -> set[Any]:
    _require_plain(items)
    return set(items)


def _device(kind: str, index: int | None = None) -> str:
    return _text(kind) if index is None else f"{_text(kind)}:{index:d}"


def _text(value: object) -> str:
    """Check a short string; the text of other values could be endless: tuples may contain each other many times."""
    if type(value) is not str or len(value) > _LONGEST_TEXT:
        raise TypeError(f"expected a short text, found a {type(value).__name__}")
    return value


def _require_plain(items: list[Any]) -> None:
    """Check that values can be hashed quickly, for the same reason."""
    if not all(type(item) in (str, int, float, bool, bytes, NoneType) for item in items):
        raise TypeError("keys must be texts or numbers")


_KNOWN: Final[dict[str, Any]] = {
    **_STORAGES,
    **{str(dtype): dtype for dtype in _STORAGES.values()},
    "collections.OrderedDict": _Call(lambda: OrderedDict()),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_parameter": _Call(_parameter),
    "torch.Size": _Call(tuple, copies=True),
    "torch.device": _Call(_device),
    "numpy.dtype": _Call(_NumpyType),
    "numpy.core.multiarray.scalar": _Call(_scalar),  # numpy 1
    "numpy._core.multiarray.scalar": _Call(_scalar),
    "_codecs.encode": _Call(_encode, copies=True),
    "__builtin__.set": _Call(_set, copies=True),
    "builtins.set": _Call(_set, copies=True),
    "__builtin__.bytes": _Call(lambda: b""),  # how protocol 2 writes no bytes
}

_STOP: Final = ord(".")
_STEPS: Final[dict[int, Callable[[Machine], object]]] = {
    ord("\x80"): lambda m: m.take(1),
    ord("("): Machine.mark,
    ord("c"): Machine.name,
    ord("q"): lambda m: m.store(m.number("<B", 1)),
    ord("r"): lambda m: m.store(m.number("<I", 4)),
    ord("h"): lambda m: m.push(m.memo[m.number("<B", 1)]),
    ord("j"): lambda m: m.push(m.memo[m.number("<I", 4)]),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    ord(")"): lambda m: m.push(()),
    ord("\x85"): lambda m: m.last(1),
    ord("\x86"): lambda m: m.last(2),
    ord("\x87"): lambda m: m.last(3),
    ord("]"): lambda m: m.push_container([]),
    ord("}"): lambda m: m.push_container({}),
    ord("N"): lambda m: m.push(None),
    ord("\x88"): lambda m: m.push(True),
    ord("\x89"): lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i", 4)),
    ord("K"): lambda m: m.push(m.number("<B", 1)),
    ord("M"): lambda m: m.push(m.number("<H", 2)),
    ord("G"): lambda m: m.push(m.number(">d", 8)),
    ord("X"): lambda m: m.push(m.take(m.number("<I", 4)).decode("utf-8", "surrogatepass")),
    ord("\x8a"): lambda m: m.push(int.from_bytes(m.take(m.number("<B", 1)), "little", signed=True)),
    ord("Q"): Machine.record,
    ord("R"): Machine.call,
    ord("b"): Machine.build,
    ord("a"): lambda m: m.extend([m.stack.pop()]),
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord("s"): lambda m: m.insert(m.pair()),
    ord("u"): lambda m: m.insert(m.since_mark()),
}
"""Instructions by their codes: protocol 2 without those that make other objects."""
