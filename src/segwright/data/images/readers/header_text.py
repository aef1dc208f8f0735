"""Parts of text headers (NRRD, MetaImage) that their checks share."""

from __future__ import annotations

import re

from segwright.data.images.formats import Refusal

USUAL_HEADER_BYTES = 1 << 16
MAX_HEADER_BYTES = 4 << 20
"""3D Slicer describes each segment in the header of its label maps."""
MAX_AXES = 5

_LONE_RETURN = re.compile(rb"\r(?!\n)")
_NON_NEGATIVE = re.compile(r"[0-9]{1,15}")


def header_text(head: bytes) -> str:
    """Decode the text of a header, each byte as one character, with Unix line ends.

    Raises:
        Refusal: it holds control characters, at which ITK might end a line or the text.
    """
    if _LONE_RETURN.search(head) or b"\0" in head:
        raise Refusal("its header holds control characters; it is damaged")
    return head.decode("latin-1").replace("\r\n", "\n")


def parse_extent(text: str) -> int:
    """Return a non-negative integer; -1 for anything else."""
    return int(text) if _NON_NEGATIVE.fullmatch(text) else -1


def damaged_header(kind: str, what: str) -> Refusal:
    """Return the refusal of a file whose header has something invalid."""
    return Refusal(f"its {kind} header has {what}; it is damaged")
