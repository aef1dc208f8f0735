"""What a server accepts: addresses, sizes, how many jobs wait, how long results are kept, and the bearer token."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from segwright.core.errors import ConfigError
from segwright.core.files.json_documents import read_bytes

MIN_TOKEN_LENGTH: Final = 16
"""Shorter ones can be guessed. `openssl rand -hex 32` makes one of 64."""
MAX_RETENTION_S: Final = 24 * 3600.0
_MAX_TOKEN_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLimits:
    """Limits of a server.

    Attributes:
        upload_bytes: of the body of one request, and of all files in a zip file.
        voxels: of one channel of a case, as its header says.
        queue: jobs that wait or are being uploaded; one more is refused with status 429.
        retention_s: seconds until a finished job and its files are deleted.
        stall_s: seconds without a byte after which an upload is ended.

    Raises:
        ConfigError: a limit is not positive, or results would be kept for more than a day.
    """

    upload_bytes: int = 2 * 2**30
    voxels: int = 2**29
    queue: int = 16
    retention_s: float = 3600.0
    stall_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("upload_bytes", "voxels", "queue", "retention_s", "stall_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)}: expected more than 0")
        if self.retention_s > MAX_RETENTION_S:
            raise ConfigError(
                f"retention of {self.retention_s:.0f} s: expected at most {MAX_RETENTION_S:.0f}; results hold patient "
                "data, download them sooner"
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address to listen at.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "server")]
    [True, True, True, False, False]
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(file: Path) -> str:
    """Read the bearer token from the first line of a file that only its owner may read.

    Raises:
        ConfigError: others may read the file, or it holds no token.
        SegwrightError: it is missing or unreadable.
    """
    text = read_bytes(file, max_bytes=_MAX_TOKEN_BYTES).decode("utf-8", "replace")
    mode = stat.S_IMODE(file.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{file}: its mode is {mode:04o}, so that others may use the token; chmod 600 {file}")
    return checked_token((text.splitlines() or [""])[0].strip(), str(file))


def checked_token(token: str, source: str) -> str:
    """Return a token after checking it; `source` is where it is from, for the message.

    Raises:
        ConfigError: it is short, or has characters that a header cannot have.
    """
    if len(token) < MIN_TOKEN_LENGTH or not all("!" <= char <= "~" for char in token):
        raise ConfigError(
            f"{source}: expected a token of at least {MIN_TOKEN_LENGTH} visible ASCII characters without spaces; "
            "make one with openssl rand -hex 32"
        )
    return token


def require_token(host: str, token: str | None) -> None:
    """Check that a server which other machines can reach has a token.

    Raises:
        ConfigError: it has none.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"host {host}: other machines could send jobs to this server; give --token-file FILE or set "
            "SEGWRIGHT_TOKEN, or listen at 127.0.0.1"
        )
