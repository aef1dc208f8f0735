"""Parse untrusted JSON text within limits; errors say what is wrong, at which line and column."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, Final

from segwright.core.errors import SegwrightError
from segwright.core.text import printable

MAX_BYTES: Final = 512 * 2**20
MAX_MEMORY_BYTES: Final = 2**30
"""Bytes that the parsed values may take, estimated from the text; 10,000 cases with 100 labels' scores take 0.7 GiB."""
MAX_LEVELS: Final = 100
"""Of nested lists and objects; the documents of nnU-Net and ours have eight."""
MAX_DIGITS: Final = 20
"""Of a whole number: 64 bits need no more."""

_ZEROS: Final = b"0" * (MAX_DIGITS + 1)
_AS_ZEROS: Final = bytes.maketrans(b"123456789", b"0" * 9)
_DICT_BYTES: Final = 232
_LIST_BYTES: Final = 64
_VALUE_BYTES: Final = 40
"""Python's memory for an object of one key, an empty list, and a number or short text with its place in a list."""

_WIDE: Final = (
    *((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32")),
    *((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16")),
)
"""Byte order marks; UTF-32 first, since that of UTF-16 is the start of it."""
_TOO_DEEP: Final = f"lists and objects are nested more than {MAX_LEVELS} deep; the file is damaged, copy it again"
_SAVE_AS: Final = "save it as UTF-8 (in the editor: Save as, encoding UTF-8)"
_LONE_SURROGATE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of characters; dc80 to dcff are excluded: they represent bytes of a file name that is not UTF-8."""
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_OTHER_FILES: Final = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with 'git lfs pull'"),
    (b"<", "HTML or XML, perhaps the error page of a download; download it again"),
    (b"\x1f\x8b", "compressed with gzip; unpack it"),
    (b"PK\x03\x04", "a zip file; unpack it"),
)
_OTHER_QUOTES: Final = "'`\u201c\u201d\u2018\u2019\u00ab\u201e"
_FOREIGN_WORDS: Final = {"True": "true", "False": "false", "None": "null", "nan": "NaN", "undefined": "null"}
_REASONS: Final = (
    ("Unterminated string", "a text without its closing double quote; add it"),
    ("Invalid control character", "a line break or control character inside a text; write \\n, or close the text"),
    ("Invalid \\", "a backslash that begins no character; write two, as in C:\\\\data"),
    ("Extra data", "more text after the end of the document; remove it"),
    ("Expecting ',' delimiter", "something other than a comma or a closing bracket; a comma or a quote is missing"),
    ("Expecting ':' delimiter", "something other than the colon between a key and its value; add it"),
    ("Expecting property name", 'something other than a key in double quotes; write it as "key": value'),
    ("Expecting value", "no value; write a number, a text in double quotes, true, false, null, a list or an object"),
)


def parse_json(data: bytes, *, where: str) -> Any:
    """Parse a JSON document; a byte order mark is skipped, NaN and Infinity are numbers.

    Args:
        data: its text as UTF-8.
        where: file, or file and line, for errors.

    Raises:
        SegwrightError: it is not UTF-8, not JSON, has a key twice in one object, or is too large, too deep, or has
            numbers beyond 64 bits; line and column are named.
    """
    text = _decode(data, where)
    _require_fits_memory(data, where)
    try:
        # Parsing with a hook for each number takes a third longer, so it is only used if one is too long.
        has_long_number = _ZEROS in data.translate(_AS_ZEROS)
        document = json.loads(text, object_pairs_hook=_object, parse_int=_integer if has_long_number else None)
    except json.JSONDecodeError as error:
        at, reason = _explain(text, error)
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise SegwrightError(f"{where}: not valid JSON at line {line}, column {column}: {reason}") from error
    except RecursionError as error:
        raise SegwrightError(f"{where}: {_TOO_DEEP}") from error
    except _RejectedValueError as error:
        raise SegwrightError(f"{where}: {error}") from error
    _require_shallow(document, where)
    if _SURROGATE_ESCAPE.search(text) and (half := _find_half_character(document)):
        raise SegwrightError(f"{where}: the text {half} has half of a character; write the whole character")
    return document


class _RejectedValueError(Exception):
    """A value that is valid JSON but not accepted."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise _RejectedValueError(f"the key {_quoted(twice)} appears twice in one object; remove or rename one of them")
    return document


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS and len(digits.lstrip("-")) > MAX_DIGITS:
        raise _RejectedValueError(
            f"the number {digits[:MAX_DIGITS]}... has {len(digits.lstrip('-'))} digits, at most {MAX_DIGITS} are "
            "read; write it as a text, or correct it"
        )
    return int(digits)


def _quoted(text: str) -> str:
    return f"'{printable(text if len(text) <= 80 else text[:80] + '...')}'"


def _decode(data: bytes, where: str) -> str:
    """Return the text, or name its encoding."""
    for start, name in _WIDE:
        if data.startswith(start):
            raise SegwrightError(f"{where}: is {name} text, expected UTF-8; {_SAVE_AS}")
    if b"\0" in data[:4]:
        raise SegwrightError(f"{where}: is UTF-16 text or binary, expected UTF-8; {_SAVE_AS}")
    if not data.strip(b" \t\r\n\xef\xbb\xbf"):
        raise SegwrightError(f"{where}: is empty, expected a JSON document; copy or make it again")
    for start, what in _OTHER_FILES:
        if data.startswith(start):
            raise SegwrightError(f"{where}: is not a JSON document but {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        byte = data[error.start]
        likely = bytes([byte]).decode("cp1252", "replace")
        guess = f", perhaps {likely!r} in cp1252 (Windows)" if likely.isalpha() else ""
        raise SegwrightError(
            f"{where}: is not UTF-8 text: byte 0x{byte:02x} at line {line}, column {column}{guess}; {_SAVE_AS}"
        ) from error


def _require_fits_memory(data: bytes, where: str) -> None:
    """Require that the parsed values fit into `MAX_MEMORY_BYTES`, before parsing."""
    memory = _DICT_BYTES * data.count(b"{") + _LIST_BYTES * data.count(b"[") + _VALUE_BYTES * data.count(b",")
    if len(data) > MAX_BYTES or memory > MAX_MEMORY_BYTES:
        raise SegwrightError(
            f"{where}: {len(data) / 2**20:.0f} MiB of JSON that take about {memory / 2**30:.1f} GiB of memory; at most "
            f"{MAX_BYTES / 2**20:.0f} MiB and {MAX_MEMORY_BYTES / 2**30:.0f} GiB are read"
        )


def _require_shallow(document: Any, where: str) -> None:
    level, depth = [document] if type(document) in (dict, list) else [], 0
    while level:
        depth += 1
        if depth > MAX_LEVELS:
            raise SegwrightError(f"{where}: {_TOO_DEEP}")
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) is dict or type(value) is list
        ]


def _find_half_character(document: Any) -> str | None:
    """Return a key or value that UTF-8 cannot encode, quoted; None if there is none."""
    level = [document]
    while level:
        texts = [value for value in level if type(value) is str]
        texts += [key for value in level if type(value) is dict for key in value]
        for text in texts:
            if _LONE_SURROGATE.search(text):
                return _quoted(text)
        level = [
            child
            for value in level
            if type(value) in (dict, list)
            for child in (value.values() if type(value) is dict else value)
        ]
    return None


def _explain(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Return the place of an error, which differs between versions of Python, and what is wrong there."""
    at = error.pos
    if error.msg.startswith(("Expecting", "Illegal")):  # the position is before the white space
        at += len(text[at:]) - len(text[at:].lstrip())
    rest = text[at : at + 80]
    comma = at if rest.startswith(",") else len(text[:at].rstrip()) - 1
    if text[comma : comma + 1] == "," and text[comma + 1 :].lstrip()[:1] in ("}", "]"):
        return comma, "a comma before a closing bracket; remove the comma"
    if not rest:
        return at, "the text ends before the document does; the file is cut off, copy it again"
    if rest.startswith(("//", "/*", "#")):
        return at, "a comment, which JSON does not have; remove it"
    if rest[0] in _OTHER_QUOTES:
        return at, f"the quote {rest[0]} where a double quote is expected; put texts and keys into double quotes"
    word = re.match(r"[A-Za-z]+", rest)
    if word and word[0] in _FOREIGN_WORDS:
        return at, f"{word[0]}, which is not a word of JSON; write {_FOREIGN_WORDS[word[0]]}"
    found = next((reason for start, reason in _REASONS if error.msg.startswith(start)), error.msg)
    return at, f"{found} (found {_quoted(rest[:20])})"
