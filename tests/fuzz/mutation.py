"""Damage files at random, in the same way for the same generator: bytes, numbers in text, JSON values, zip entries."""

from __future__ import annotations

import io
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[bytes, Random], bytes]

MAX_EDITS = 6
MAX_CHARACTERS = 1 << 24
"""Of a document after its values were repeated; more would take the memory that the reader is measured by."""
HEADER_BYTES = 512
"""Half of all edits fall into this much of a file's start, where formats keep sizes, types and offsets."""

_EXTREMES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NUMBERS = (
    *(b"0", b"-1", b"1", b"2", b"255", b"256", b"32767", b"65536", b"2147483647", b"2147483648", b"1e-300", b"1e308"),
    *(b"9223372036854775807", b"9223372036854775808", b"1e999", b"nan", b"-inf", b"0.5", b"100000000", b"9" * 400),
)
_TOKENS = (
    *(b"\0", b"\n", b"\r\n", b"\x1b[2J", b"..", b"/", b"../../escaped", b"%s%n", b"%d", b"LIST", b"$HOME", b"[", b"]"),
    *(
        b"{",
        b"}",
        b"(",
        b")",
        b'"',
        b"'",
        b",",
        b":",
        b" ",
        b"\t",
        b"\\u0000",
        b"\\ud800",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ),
)


def _nested(depth: int) -> str:
    return "[" * depth + '{"x": 1}' + "]" * depth


_PICKLE_STEPS = (
    *(b"]", b"}", b"(", b")", b"N", b"t", b"e", b"u", b"s", b"a", b"R", b"Q", b"b", b".", b"\x85", b"\x86", b"\x87"),
    *(b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"K\x00", b"\x8a\xff" + b"\x7f" * 255, b"h\x00", b"h\x01", b"h\x05"),
    *(b"q\x00", b"r\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"G\x7f\xf8" + bytes(6), b"cbuiltins\nset\n"),
    *(
        b"ctorch\nSize\n",
        b"cnumpy\ndtype\n",
        b"ccollections\nOrderedDict\n",
        b"cbuiltins\neval\n",
        b"c_codecs\nencode\n",
    ),
)
_RAW = {
    f"@raw{index}@": text
    for index, text in enumerate(
        (
            "1e999",
            "-1e999",
            "NaN",
            "-Infinity",
            "9" * 400,
            "9" * 5000,
            "-0",
            *(_nested(depth) for depth in (90, 900, 5000)),
        )
    )
}
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e-300, 1e300),
    *(
        "",
        "0",
        "x",
        "..",
        "../../escaped",
        "/etc/passwd",
        "a\0b",
        "\x1b[31m",
        "\ud800",
        "e\u0301",
        "l" * 300,
        "n" * 70_000,
    ),
    *([], {}, [[]], [None], [0], [1, 2, 3], [0] * 5000, {"": 0}, {"0": {}}, {"a": [1]}, *_RAW),
)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, cut, insert, copy and overwrite; fields of 1 to 8 bytes become extreme numbers."""
    for _ in range(rng.randint(1, MAX_EDITS)):
        data = rng.choice(_BYTE_EDITS)(data, rng)
    return data


def mutate_text(data: bytes, rng: Random) -> bytes:
    """Replace numbers by extreme ones, insert tokens that formats give a meaning to, and damage bytes."""
    for _ in range(rng.randint(1, MAX_EDITS)):
        data = rng.choice((_edit_number, _edit_number, _insert_token, *_BYTE_EDITS))(data, rng)
    return data


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Replace, drop, repeat and nest the values of a document, or damage its text."""
    if rng.random() < 0.25:
        return mutate_text(data, rng)
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = _edit_document(document, rng)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.9)
    if len(text) > MAX_CHARACTERS:
        return mutate_text(data, rng)
    for placeholder, raw in _RAW.items():
        text = text.replace(f'"{placeholder}"', raw)
    return text.encode("utf-8", "surrogatepass")


def mutate_json_lines(data: bytes, rng: Random) -> bytes:
    """Damage some lines of a file that has one JSON document a line."""
    lines, changed = data.splitlines(keepends=True), set[bytes]()
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(lines))
        if lines[index] not in changed:
            changed.add(line := mutate_json(lines[index], rng).replace(b"\n", b" ") + b"\n" * rng.randint(0, 1))
            lines[index] = line
    return b"".join(lines)


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Damage the header of a safetensors file, its length kept right, or any of its bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutate_json(data[8:end], rng)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """Drop, repeat, swap and insert instructions of a pickle, or damage its bytes."""
    if rng.random() < 0.25 or data[:2] != b"\x80\x02":
        return mutate_bytes(data, rng)
    try:
        starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except ValueError:  # damaged already
        return mutate_bytes(data, rng)
    steps = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.randint(1, MAX_EDITS)):
        at, other, action = rng.randrange(len(steps)), rng.randrange(len(steps)), rng.random()
        if action < 0.2:
            del steps[at]
        elif action < 0.4:
            steps.insert(at, rng.choice(_PICKLE_STEPS))
        elif action < 0.6:
            steps[at] = steps[other]
        elif action < 0.8:
            first, last = sorted((at, other))
            steps[last:last] = steps[first : min(last, first + 8)] * rng.choice((1, 2, 3000))
        else:
            steps[at] = steps[at][:1] + mutate_bytes(steps[at][1:], rng)
        if not steps:
            return b""
    return b"".join(steps)


def zip_mutator(inside: Mutator) -> Mutator:
    """Return a mutator of zip files that changes entries with `inside`, or damages names, or the file itself."""

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.3:
            return mutate_bytes(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry), entry.compress_type) for entry in archive.infolist()]
        for _ in range(rng.randint(1, 2)):
            index = rng.choice((0, rng.randrange(len(entries))))  # the pickle of torch's files is the first
            name, content, kind = entries[index]
            action = rng.random()
            if action < 0.7:
                entries[index] = (name, inside(content, rng), kind)
            elif action < 0.8:
                entries[index] = (_edit_name(name, rng), content, kind)
            elif action < 0.9:
                entries.append((name, inside(content, rng), kind))
            elif len(entries) > 2:
                del entries[index]
        packed = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(packed, "w") as archive:
            warnings.simplefilter("ignore")  # of a name given twice
            for name, content, kind in entries:
                archive.writestr(zipfile.ZipInfo(name), content, kind)
        return packed.getvalue() if rng.random() < 0.9 else mutate_bytes(packed.getvalue(), rng)

    return mutate


def _edit_name(name: str, rng: Random) -> str:
    edited = rng.choice(
        ("../" + name, "/" + name, name + "/", name[: rng.randrange(len(name) + 1)], name * 60, "a\\..\\b")
    )
    return edited[:10_000]  # zip files have 65,535 bytes for a name


def _place(data: bytes, rng: Random) -> int:
    """Return a position, often in the header."""
    return rng.randrange(min(len(data), HEADER_BYTES) if rng.random() < 0.5 else len(data)) if data else 0


def _flip_bit(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else data


def _set_byte(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.randbytes(1) + data[at + 1 :]


def _truncate(data: bytes, rng: Random) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]


def _copy_block(data: bytes, rng: Random) -> bytes:
    start, at = _place(data, rng), _place(data, rng)
    return data[:at] + data[start : start + rng.choice((1, 4, 16, 256, 4096))] + data[at:]


def _drop_block(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 256)) :]


def _fill_block(data: bytes, rng: Random) -> bytes:
    at, size = _place(data, rng), rng.choice((1, 4, 16, 256))
    return data[:at] + bytes([rng.choice((0, 0xFF, 0x20))]) * min(size, len(data) - at) + data[at + size :]


def _edit_length(data: bytes, rng: Random) -> bytes:
    """Write an extreme number, or one near what is there, over a field of 1, 2, 4 or 8 bytes."""
    at, size = _place(data, rng), rng.choice((1, 2, 4, 8))
    order = rng.choice(("little", "big"))
    number = rng.choice(_EXTREMES)
    if rng.random() < 0.3:
        number = int.from_bytes(data[at : at + size], order) + rng.randint(-2, 2)
    if rng.random() < 0.2:
        number = -number
    return data[:at] + (number % 256**size).to_bytes(size, order) + data[at + size :]


def _edit_number(data: bytes, rng: Random) -> bytes:
    found = list(_NUMBER.finditer(data[:65536]))
    if not found:
        return _insert_token(data, rng)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(_NUMBERS) + data[match.end() :]


def _insert_token(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice(_TOKENS) * rng.choice((1, 1, 1, 2, 3000)) + data[at:]


_BYTE_EDITS = (
    *(_flip_bit, _set_byte, _truncate, _insert, _copy_block, _drop_block, _fill_block, _edit_length, _edit_length),
)


def _kind_of(value: Any) -> type | tuple[type, ...]:
    return (int, float) if isinstance(value, int | float) else type(value)


def _edit_document(document: Any, rng: Random) -> Any:
    """Return a document with one value, somewhere, replaced, dropped, renamed, repeated or nested."""
    if isinstance(document, dict | list) and document and rng.random() < 0.85:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = rng.choice(keys)
        changed = document.copy()
        changed[key] = _edit_document(document[key], rng)
        return changed
    action = rng.random()
    if action < 0.3 or document is None:
        return rng.choice(_VALUES)
    if action < 0.5:
        alike = [value for value in _VALUES if isinstance(value, _kind_of(document))]
        return rng.choice(alike) if alike else rng.choice(_VALUES)
    if action < 0.6 and isinstance(document, dict) and document:
        return {
            (rng.choice(("", "x", "..", "\ud800", "0", key)) if rng.random() < 0.5 else key): document[key]
            for key in document
        }
    if action < 0.7 and isinstance(document, dict | list) and document:
        kept = list(document)
        del kept[rng.randrange(len(kept))]
        return {key: document[key] for key in kept} if isinstance(document, dict) else kept
    if action < 0.8:
        return [document] * rng.choice((0, 1, 2, 3, 300))
    if action < 0.9 and isinstance(document, int | float) and not isinstance(document, bool):
        return rng.choice((-document, document + 1, document * 1000, str(document), float(document), [document]))
    return [document] if rng.random() < 0.5 else {"x": document}
