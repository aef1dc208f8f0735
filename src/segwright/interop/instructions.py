"""Interpret the pickles that torch writes, without running code: the result has plain values only.

Opcodes are interpreted one by one: numbers, strings, containers, and the few globals in `_KNOWN`; nothing is imported.
Tensors become descriptions (`StoredTensor`).
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
MAX_WORK: Final = 16_000_000
"""Limit for a pickle, in units of about 0.3 us and 40 bytes; the log of 1000 epochs of nnU-Net with 100 classes takes
7 million."""
MAX_AXES: Final = 16
"""Largest number of axes of a tensor; those of networks have five."""
MAX_ELEMENTS: Final = 2**62
"""Largest number of elements, whose bytes still fit 64 bits."""

_MAX_TEXT_CHARS: Final = 120
_OPCODE_WORK: Final = 2
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
    """A record (entry of the zip file) with `numel` elements of `dtype`."""

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
    """The function of a known global; `copies` if it copies the items of its argument."""

    function: Callable[..., Any]
    copies: bool = False


class PickleInterpreter:
    """Interprets a pickle of protocol 2, which torch writes; `MAX_WORK` limits its time and memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.work_left = MAX_WORK

    def run(self) -> Any:
        """Return the value that the pickle makes."""
        data, opcodes = self.data, _OPCODES
        while True:
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self.stack.pop()
            if code not in opcodes:
                raise RefusedError(f"pickle opcode {bytes([code])!r}")
            self.work_left -= _OPCODE_WORK
            if self.work_left < 0:
                self.count_work(0)  # raises
            opcodes[code](self)

    def count_work(self, amount: int) -> None:
        """Count work, the unit of time and memory.

        Raises:
            RefusedError: the sum is more than `MAX_WORK`.
        """
        self.work_left -= amount
        if self.work_left < 0:
            raise RefusedError("it takes more time and memory than the longest training needs")

    def read_bytes(self, count: int) -> bytes:
        """Return the next bytes of the pickle."""
        if count > len(self.data) - self.position:
            raise EOFError("it ends early")
        self.position += count
        self.count_work(count // _BYTES_PER_WORK)
        return self.data[self.position - count : self.position]

    def read_number(self, form: str, size: int) -> Any:
        """Return the next number of the pickle."""
        (value,) = unpack_from(form, self.data, self.position)
        self.position += size
        return value

    def read_line(self) -> str:
        """Return the next line of the pickle."""
        end = self.data.index(b"\n", self.position)
        line, self.position = self.data[self.position : end], end + 1
        return line.decode("ascii")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_container(self, value: Any) -> None:
        """Put a new list or dictionary on the stack."""
        self.count_work(_CONTAINER_WORK)
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Pop what was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push_mark(self) -> None:
        """Begin a group of items, up to `pop_mark`."""
        self.count_work(_CONTAINER_WORK)
        self.marks.append(self.stack)
        self.stack = []

    def push_global(self) -> None:
        """Push the value of a global, given by module and name."""
        path = f"{self.read_line()}.{self.read_line()}"
        if path not in _KNOWN:
            raise RefusedError(f"it asks for {path[:120]}")
        self.push(_KNOWN[path])

    def memoize(self, index: int) -> None:
        """Keep the top of the stack in the memo."""
        self.count_work(_MEMO_WORK)
        self.memo[index] = self.stack[-1]

    def make_tuple(self, count: int) -> None:
        """Replace the last values by a tuple of them."""
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
        self.count_work(len(items))
        _require_plain(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def pop_pair(self) -> list[Any]:
        """Pop the last two values, key and value."""
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def push_storage(self) -> None:
        """Push the storage that a tuple on the stack describes."""
        kind, dtype, key, _, numel = self.stack.pop()
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(numel) is not int:
            raise TypeError("a storage is described wrongly")
        if not 0 <= numel <= MAX_ELEMENTS:
            raise TypeError(f"a storage has {_shortened(numel)} elements")
        self.push(Storage(key, dtype, numel))

    def call(self) -> None:
        """Call a known global."""
        arguments, called = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple or not isinstance(called, _Call):
            raise RefusedError(f"it calls a {type(called).__name__}")
        self.count_work(_CALL_WORK + len(arguments))
        if called.copies and arguments:
            item = arguments[0]
            self.count_work(len(item) // _BYTES_PER_WORK if type(item) is str else _ITEM_WORK * len(item))
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
    if len(shape) > MAX_AXES:
        raise RefusedError(f"it has a tensor of {len(shape)} axes")
    for number in (offset, *shape, *stride):
        if type(number) is not int or not 0 <= number <= MAX_ELEMENTS:
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
    """Return a number, or the type of any other value, for a message; the text of a container could be endless."""
    return repr(value)[:40] if type(value) in (int, float, bool) else f"a {type(value).__name__}"


def _set(items: list[Any]) -> set[Any]:
    _require_plain(items)
    return set(items)


def _device(kind: str, index: int | None = None) -> str:
    return _text(kind) if index is None else f"{_text(kind)}:{index:d}"


def _text(value: object) -> str:
    """Return a short string after checking it; other values could be endless: tuples may contain each other often."""
    if type(value) is not str or len(value) > _MAX_TEXT_CHARS:
        raise TypeError(f"expected a short text, found a {type(value).__name__}")
    return value


def _require_plain(items: list[Any]) -> None:
    """Check that values can be hashed quickly, which nested tuples cannot."""
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
_OPCODES: Final[dict[int, Callable[[PickleInterpreter], object]]] = {
    ord("\x80"): lambda m: m.read_bytes(1),
    ord("("): PickleInterpreter.push_mark,
    ord("c"): PickleInterpreter.push_global,
    ord("q"): lambda m: m.memoize(m.read_number("<B", 1)),
    ord("r"): lambda m: m.memoize(m.read_number("<I", 4)),
    ord("h"): lambda m: m.push(m.memo[m.read_number("<B", 1)]),
    ord("j"): lambda m: m.push(m.memo[m.read_number("<I", 4)]),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord(")"): lambda m: m.push(()),
    ord("\x85"): lambda m: m.make_tuple(1),
    ord("\x86"): lambda m: m.make_tuple(2),
    ord("\x87"): lambda m: m.make_tuple(3),
    ord("]"): lambda m: m.push_container([]),
    ord("}"): lambda m: m.push_container({}),
    ord("N"): lambda m: m.push(None),
    ord("\x88"): lambda m: m.push(True),
    ord("\x89"): lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.read_number("<i", 4)),
    ord("K"): lambda m: m.push(m.read_number("<B", 1)),
    ord("M"): lambda m: m.push(m.read_number("<H", 2)),
    ord("G"): lambda m: m.push(m.read_number(">d", 8)),
    ord("X"): lambda m: m.push(m.read_bytes(m.read_number("<I", 4)).decode("utf-8", "surrogatepass")),
    ord("\x8a"): lambda m: m.push(int.from_bytes(m.read_bytes(m.read_number("<B", 1)), "little", signed=True)),
    ord("Q"): PickleInterpreter.push_storage,
    ord("R"): PickleInterpreter.call,
    ord("b"): PickleInterpreter.build,
    ord("a"): lambda m: m.extend([m.stack.pop()]),
    ord("e"): lambda m: m.extend(m.pop_mark()),
    ord("s"): lambda m: m.insert(m.pop_pair()),
    ord("u"): lambda m: m.insert(m.pop_mark()),
}
"""Functions by opcode: protocol 2 without the opcodes that make other objects."""
