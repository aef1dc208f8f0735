"""Download a file over HTTP or HTTPS; an interrupted download continues where it stopped.

Beside the file lies `FILE.json` with its address, its length and what identifies its version on the server: a strong
ETag or the time of its last change. The rest is requested for that version only; otherwise the download starts anew.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from logging import getLogger
from pathlib import Path
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.errors import ConfigError, DiskError, DownloadError, SegwrightError, WorkspaceError
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.core.resources import format_bytes, resource_error
from segwright.core.text import printable

logger = getLogger(__name__)

TIMEOUT_S: Final = 30.0
"""Longest wait for a connection, or for the next bytes."""
ATTEMPTS: Final = 3
"""Attempts in a row that bring no new byte."""
MAX_ATTEMPTS: Final = 100
WAIT_S: Final = 1.0
"""Before another attempt; doubled after each one that brings no new byte."""
MAX_REDIRECTS: Final = 10
MAX_BYTES: Final = 64 * 2**30

_BLOCK: Final = 1 << 20
_LOG_S: Final = 15.0
_SCHEMES: Final = ("http", "https")
_BUSY: Final = frozenset({429, 500, 502, 503, 504})
"""Answers after which another attempt may succeed."""
_RANGE: Final = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_REASONS: Final[Mapping[int, str]] = {
    401: "needs a login; download it with a browser and give the file",
    403: "is not public; download it with a browser and give the file",
    404: "no such file on the server; check the address",
    410: "was removed from the server; look for a new address",
}


class _Version(BaseModel):
    """`FILE.json`: of which file the bytes downloaded so far are."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str
    validator: str = ""
    """A strong ETag, or the time of the last change as the server wrote it; empty if it named neither."""
    length: int | None = Field(default=None, ge=0)


class _StoppedError(Exception):
    """The connection ended early; another attempt may bring the rest."""


def require_url(url: str) -> str:
    """Return an address after checking that it can be downloaded.

    Raises:
        ConfigError: it is not of HTTP or HTTPS, names no host or holds a password or invalid characters.
    """
    shown = printable(url)
    if not url.isascii() or any(ord(char) <= 32 or ord(char) == 127 for char in url):
        raise ConfigError(f"'{shown}': holds spaces or letters that addresses cannot have; write them as %20 and so on")
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.username is not None
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError as error:
        raise ConfigError(f"'{shown}': not an address ({error}); expected https://host/path/file.zip") from error
    if parts.scheme not in _SCHEMES:
        raise ConfigError(
            f"'{shown}': only http:// and https:// addresses are downloaded; for a file on this machine give its path"
        )
    if secret:  # not shown
        raise ConfigError(f"an address at {host} holds a user name or password; download the file and give its path")
    if not host:
        raise ConfigError(f"'{shown}': names no host; expected https://host/path/file.zip")
    return url


def download(url: str, target: Path, *, magic: bytes = b"", proxies: Mapping[str, str] | None = None) -> None:
    """Download a file; bytes that an earlier call left in `target` are kept if the file on the server is the same.

    Args:
        url: checked by `require_url`.
        target: the file; after an error it holds what was downloaded so far. `FILE.json` lies beside it.
        magic: what the file must begin with; anything else, such as a web page, is refused after the first bytes.
        proxies: address of the proxy for each of `http` and `https`; none by default.

    Raises:
        DownloadError: the server or the network refused, or the file is of another kind.
        DiskError: there is too little space.
    """
    opener = _opener(proxies or {})
    failures = 0
    for attempt in range(1, MAX_ATTEMPTS + 1):
        before = _size(target)
        try:
            _fetch(opener, url, target, magic)
            return
        except (OSError, HTTPException, UnicodeError, _StoppedError) as error:  # a host's name may be no text
            if isinstance(error, HTTPError):
                error.close()
            _raise_final(error, url)
            failures = 0 if _size(target) > before else failures + 1
            if failures >= ATTEMPTS or attempt == MAX_ATTEMPTS:
                raise _interrupted(url, target, error) from error
            logger.info("%s: %s; trying again", url, _reason(error))
            time.sleep(WAIT_S * 2**failures)


def discard(target: Path) -> None:
    """Remove a download, complete or not."""
    for path in (target, _version_file(target)):
        with suppress(OSError):
            path.unlink(missing_ok=True)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to HTTP and HTTPS only, and never from HTTPS to HTTP."""

    max_redirections = MAX_REDIRECTS

    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        address = str(headers.get("location", headers.get("uri", "")))
        try:
            scheme = urlsplit(urljoin(req.full_url, address)).scheme
        except ValueError:
            scheme = ""
        if scheme not in _SCHEMES or (req.type == "https" and scheme != "https"):
            fp.close()
            raise DownloadError(f"{req.full_url}: leads to {printable(address)[:200]}, which is not followed")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(proxies: Mapping[str, str]) -> OpenerDirector:
    """Return an opener for HTTP and HTTPS only: none of files, FTP or data addresses."""
    opener = OpenerDirector()
    for handler in (
        *(ProxyHandler(dict(proxies)), HTTPHandler(), HTTPSHandler(), _Redirects()),
        *(HTTPDefaultErrorHandler(), HTTPErrorProcessor()),
    ):
        opener.add_handler(handler)
    return opener


def _fetch(opener: OpenerDirector, url: str, target: Path, magic: bytes) -> None:
    """Make one attempt to download the file, or its rest."""
    known = _known_version(url, target)
    start = _size(target) if known is not None else 0
    headers = {"User-Agent": "segwright", "Accept-Encoding": "identity"}
    if known is not None and start:
        headers |= {"Range": f"bytes={start}-", "If-Range": known.validator}
    try:
        response = opener.open(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        with error:
            if _total(error.headers) == start:  # it was complete
                return
            discard(target)
            raise _StoppedError("the server has another version of the file by now") from error
    with response:
        _receive(response, url, target, known=known, start=start, magic=magic)


def _receive(response: Any, url: str, target: Path, *, known: _Version | None, start: int, magic: bytes) -> None:
    """Write the body of an answer to the file."""
    headers: Message = response.headers
    found = _Version(url=url, validator=_validator(headers), length=_number(headers.get("Content-Length")))
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        found = found.model_copy(update={"length": _total(headers)})
        is_same = known is not None and found.length == known.length and found.validator in ("", known.validator)
        if not is_same or _first(headers) != start:
            discard(target)
            raise _StoppedError("the server sent a part of another file than requested")
    else:
        start = 0
        _require_file(headers, url)
    _require_space(url, target, found.length, start)
    if start == 0:
        discard(target)
        write_checked_json(_version_file(target), found.model_dump())
    try:
        with target.open("ab") as stream:
            for block in _blocks(response, url, found.length, start):
                if stream.tell() == 0 and not block.startswith(magic[: len(block)]):
                    raise _content_error(url, block)
                _write(stream, block)
    except DownloadError:
        discard(target)
        raise
    if found.length is not None and _size(target) < found.length:
        raise _StoppedError(f"the connection ended after {_progress(_size(target), found.length)}")


def _blocks(response: Any, url: str, length: int | None, done: int) -> Iterator[bytes]:
    """Yield the body of an answer, at most the declared length, and log how far it is."""
    logged = time.monotonic()
    while length is None or done < length:
        block: bytes = response.read1(_BLOCK if length is None else min(_BLOCK, length - done))
        if not block:
            return
        done += len(block)
        if done > MAX_BYTES:
            raise DownloadError(f"{url}: sends more than {format_bytes(MAX_BYTES)}, the most that is downloaded")
        yield block
        if time.monotonic() - logged > _LOG_S:
            logged = time.monotonic()
            logger.info("%s: %s", url, _progress(done, length))


def _write(stream: IO[bytes], block: bytes) -> None:
    try:
        stream.write(block)
        stream.flush()  # a killed process keeps what it has, and a full disk is noticed here
    except OSError as error:
        path = Path(stream.name)
        raise resource_error(error, path) or WorkspaceError(f"{path}: cannot be written ({error.strerror})") from error


def _progress(done: int, length: int | None) -> str:
    return format_bytes(done) + ("" if length is None else f" of {format_bytes(length)}")


def _known_version(url: str, target: Path) -> _Version | None:
    """Return which version of the file the bytes in `target` are of; None if that is unknown or another address."""
    try:
        found = parse_document(_Version, _version_file(target))
    except SegwrightError:
        return None
    return found if found.url == url and found.validator and _size(target) else None


def _validator(headers: Message) -> str:
    """Return what identifies this version of the file for a later request of its rest."""
    tag = str(headers.get("ETag", ""))
    if tag.startswith('"'):  # a weak one, W/"...", does not promise equal bytes
        return tag
    return str(headers.get("Last-Modified", ""))


def _require_file(headers: Message, url: str) -> None:
    """Check that the answer is the file itself: not a web page, not compressed."""
    kind = headers.get_content_type() if headers.get("Content-Type") else ""
    if kind in ("text/html", "application/xhtml+xml"):
        raise DownloadError(
            f"{url}: is a web page, not a file; copy the address of its download button (on Hugging Face "
            "'/resolve/main/' instead of '/blob/main/')"
        )
    packed = str(headers.get("Content-Encoding", "identity"))
    if packed.strip().lower() not in ("", "identity"):
        raise DownloadError(
            f"{url}: the server sends it compressed ({printable(packed)[:40]}); download it with a browser"
        )


def _require_space(url: str, target: Path, length: int | None, start: int) -> None:
    """Check the declared length against the limit and the free space."""
    if length is None:
        return
    if length > MAX_BYTES:
        raise DownloadError(f"{url}: has {format_bytes(length)}; at most {format_bytes(MAX_BYTES)} are downloaded")
    free = shutil.disk_usage(target.parent).free
    if length - start > free:
        raise DiskError(
            f"{target.parent}: the download needs {format_bytes(length - start)}, {format_bytes(free)} are free; free "
            "some space, or choose another folder with --work DIR"
        )


def _content_error(url: str, block: bytes) -> DownloadError:
    start = block.lstrip()[:40]
    is_page = start.lower().startswith((b"<!doctype", b"<html"))
    what = "a web page" if is_page else f"a file that begins with {start[:8]!r}"
    return DownloadError(f"{url}: is {what}, not a model; check the address")


def _raise_final(error: Exception, url: str) -> None:
    """Raise the error to show if another attempt cannot succeed."""
    if isinstance(error, HTTPError) and error.code not in _BUSY:
        if 300 <= error.code < 400:
            raise DownloadError(f"{url}: leads from one address to the next without end; check the address") from error
        reason = _REASONS.get(error.code, f"the server refused it ({error.code} {printable(str(error.reason))[:80]})")
        raise DownloadError(f"{url}: {reason}") from error


def _interrupted(url: str, target: Path, error: Exception) -> DownloadError:
    size = _size(target)
    if not size:
        return DownloadError(f"{url}: cannot be downloaded ({_reason(error)}); check the address and the network")
    return DownloadError(
        f"{url}: stopped after {format_bytes(size)} ({_reason(error)}); the same command continues the download"
    )


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return printable((str(cause).splitlines() or [""])[0])[:200] or type(cause).__name__


def _total(headers: Message) -> int | None:
    """Return the length of the whole file in `Content-Range`."""
    match = _RANGE.fullmatch(str(headers.get("Content-Range", "")).strip())
    return _number(match[2]) if match else None


def _first(headers: Message) -> int | None:
    """Return the position of the first byte in `Content-Range`."""
    match = _RANGE.fullmatch(str(headers.get("Content-Range", "")).strip())
    return _number(match[1]) if match else None


def _number(text: object) -> int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 19 else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _version_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")
