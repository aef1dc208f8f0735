"""Who may use a server: tokens, hosts, pages of other sites, sizes of headers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from segwright.deploy.serve.gate import MAX_HEADER_BYTES, Gate

TOKEN = "0123456789abcdef"
HOST = {"host": "127.0.0.1:8477"}


def ask(headers: dict[str, str], *, token: str | None = None, path: str = "/v1/jobs", body: int = 0) -> tuple[Any, int]:
    """Return the answer to a request (200 from the application behind the gate), and how many blocks were read."""
    sent: list[Any] = []
    read = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x", "more_body": read < body}

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": encoded}
    asyncio.run(Gate(app, token=token)(scope, receive, send))
    return (sent[0]["status"], json.loads(sent[1]["body"]), dict(sent[0]["headers"])), read


@pytest.mark.parametrize("header", [{}, {"authorization": f"Basic {TOKEN}"}, {"authorization": f"Bearer {TOKEN}x"},
                                    {"authorization": TOKEN}, {"authorization": "Bearer \xe4"}])  # fmt: skip
def test_requests_without_the_token_are_refused(header: dict[str, str]) -> None:
    (status, body, headers), _ = ask({**HOST, **header}, token=TOKEN)
    assert (status, headers[b"www-authenticate"]) == (401, b"Bearer")
    assert body["error"]["expected"] == "header Authorization: Bearer TOKEN"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_requests_with_the_token_pass(scheme: str) -> None:
    assert ask({**HOST, "authorization": f"{scheme} {TOKEN}"}, token=TOKEN)[0][0] == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/openapi.json"])
def test_what_shows_no_job_needs_no_token(path: str) -> None:
    assert ask(HOST, token=TOKEN, path=path)[0][0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8477", "127.0.0.1.evil.example", "", "[::1", "192.168.0.7"]
)
def test_without_a_token_a_name_of_another_site_is_refused(host: str) -> None:
    assert ask({"host": host})[0][0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8477", "localhost:8477", "[::1]:8477"])
def test_without_a_token_this_machine_passes(host: str) -> None:
    assert ask({"host": host})[0][0] == 200


@pytest.mark.parametrize(
    "header",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8477"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_without_a_token_pages_of_other_sites_are_refused(header: dict[str, str]) -> None:
    (status, body, _), _ = ask({**HOST, **header})
    assert status == 403
    assert body["error"]["remedy"] == "start the server with a token, and send it"


def test_without_a_token_its_own_page_passes() -> None:
    assert ask({**HOST, "origin": "http://127.0.0.1:8477", "sec-fetch-site": "same-origin"})[0][0] == 200


def test_a_link_of_another_site_may_open_the_page() -> None:
    assert ask({**HOST, "sec-fetch-site": "cross-site"}, path="/")[0][0] == 200


def test_large_headers_are_refused() -> None:
    assert ask({**HOST, "x-long": "x" * MAX_HEADER_BYTES})[0][0] == 431


def test_the_body_of_a_refused_request_is_read_before_the_answer() -> None:
    assert ask({"host": "evil.example"}, body=5)[1] == 5


def test_a_client_that_waits_for_permission_need_not_send_the_body() -> None:
    assert ask({"host": "evil.example", "expect": "100-continue"}, body=5)[1] == 0


def test_answers_may_not_be_stored_or_framed() -> None:
    headers = ask(HOST)[0][2]
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-frame-options"] == b"DENY"
    assert b"access-control-allow-origin" not in headers
