from __future__ import annotations

import pytest

from segwright.core.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lesion [left]", "lesion [left]"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("Gr\udcfcn", r"Gr\udcfcn"),
        ("abc\u202egnp.exe\u2066", r"abc\u202egnp.exe\u2066"),
        ("one\u2028two\u2029\u0085", r"one\u2028two\u2029\x85"),
        ("\U000e0041tag\ufeff", r"\U000e0041tag\ufeff"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["", "liver", "Gru\u0308n", "\U0001f9e0 \u6d77\u99ac", "\U0001f468\u200d\U0001f4bb", "C:\\x"]
)
def test_plain_text_stays(text: str) -> None:
    assert printable(text) == text
