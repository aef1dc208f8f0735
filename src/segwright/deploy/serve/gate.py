"""What every request passes: size of headers, who may ask (token, host, origin), and headers of every answer.

Without a token only programs and pages of this machine may use a server: a page of another site that a browser shows
is refused by its Origin and Sec-Fetch-Site headers, and a name of another site that leads to this machine (DNS
rebinding) by the Host header.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from segwright.deploy.serve.limits import is_loopback
from segwright.deploy.serve.refusals import Refusal

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS: Final = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
"""Need no token: they show nothing of jobs and models."""
MAX_HEADER_BYTES: Final = 16 * 1024
DRAIN_BYTES: Final = 64 * 2**20
DRAIN_S: Final = 10.0
"""Of the body of a refused request. A client that still sends would otherwise lose the connection, and the reason."""

_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Gate:
    """Wraps an application.

    Args:
        app: the application.
        token: bearer token; None if none is needed.
    """

    def __init__(self, app: App, *, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = _Answer(receive, send, drains=headers.get("expect", "").lower() != "100-continue")
        try:
            self._check(scope, headers)
        except Refusal as refusal:
            await send_refusal(refusal, answer.send)
            return
        await self._app(scope, answer.receive, answer.send)

    def _check(self, scope: Message, headers: Mapping[str, str]) -> None:
        """Check the headers of a request.

        Raises:
            Refusal: the request is not allowed.
        """
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > MAX_HEADER_BYTES:
            raise Refusal(
                431, f"the headers have {size} bytes", expected=f"at most {MAX_HEADER_BYTES}", remedy="send fewer"
            )
        if self._token is None:
            _require_this_machine(headers, is_page=scope["path"] == "/")
        elif scope["path"] not in OPEN_PATHS:
            _require_token(headers.get("authorization", ""), self._token)


def _require_this_machine(headers: Mapping[str, str], *, is_page: bool) -> None:
    """Refuse requests that a page of another site makes, and those by another name than this machine's.

    Raises:
        Refusal: it is one of them (403).
    """
    host = headers.get("host", "")
    if not is_loopback(_name_in(f"//{host}")):
        raise Refusal(
            403,
            f"the request names the host '{host[:100]}'",
            expected="localhost or 127.0.0.1, since this server has no token",
            remedy="use that name, or start the server with a token",
        )
    origin = headers.get("origin")
    is_foreign = origin is not None and origin != f"http://{host}"
    site = headers.get("sec-fetch-site", "none")
    if is_foreign or (site not in ("same-origin", "none") and not is_page):
        raise Refusal(
            403,
            f"a page of another site asks ({(origin or site)[:100]})",
            expected="a request from this server's own page, or from a program",
            remedy="start the server with a token, and send it",
        )


def _name_in(address: str) -> str:
    """Return the host of an address without its port; empty if it is damaged."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _require_token(header: str, token: str) -> None:
    """Check the Authorization header, in a time that does not depend on it.

    Raises:
        Refusal: it does not hold the token (401).
    """
    scheme, _, given = header.partition(" ")
    is_right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode("ascii"))
    if scheme.lower() != "bearer" or not is_right:
        raise Refusal(
            401,
            "the token is wrong" if header else "the request has no token",
            expected="header Authorization: Bearer TOKEN",
            remedy="ask who runs this server for the token",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def send_refusal(refusal: Refusal, send: Send) -> None:
    """Answer with a refusal as JSON."""
    body = json.dumps(refusal.to_json()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Answer:
    """Adds headers to an answer, and reads the rest of a body before an error is sent.

    Args:
        receive: of the request.
        send: of the request.
        drains: whether to read the rest; not where the client waits for permission to send it.
    """

    def __init__(self, receive: Receive, send: Send, *, drains: bool) -> None:
        self._receive = receive
        self._send = send
        self._drains = drains
        self._is_read = False

    async def receive(self) -> Message:
        """Return the next part of the body."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
            if message["status"] >= 400 and not self._is_read:
                await self._drain()
        await self._send(message)

    async def _drain(self) -> None:
        deadline, left = time.monotonic() + DRAIN_S, DRAIN_BYTES
        while self._drains and not self._is_read and left > 0 and time.monotonic() < deadline:
            try:
                message = await asyncio.wait_for(self.receive(), DRAIN_S)
            except asyncio.TimeoutError:
                return
            left -= len(message.get("body", b""))
