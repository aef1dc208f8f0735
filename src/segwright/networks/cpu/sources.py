"""Hash the C sources of the CPU kernels, to detect a compiled library that is out of date."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path


def sources_hash(folder: Path) -> str:
    """Return a hash of the C files in `folder`; an empty string if there are none."""
    files = sorted(path for path in folder.glob("*") if path.suffix in {".c", ".h"})
    content = sha256()
    for path in files:
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:16] if files else ""
