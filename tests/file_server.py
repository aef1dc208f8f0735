"""A web server on this machine whose answers can be cut off, delayed, redirected and falsified."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What the server answers for one path.

    `cuts` are the numbers of bytes after which the next answers end early; after them answers are whole. With `hangs`
    a cut answer waits for the end of the server instead.
    """

    content: bytes = b""
    etag: str | None = '"one"'
    kind: str = "application/zip"
    status: int = 200
    location: str | None = None
    encoding: str | None = None
    length: int | None = None
    knows_ranges: bool = True
    hangs: bool = False
    cuts: list[int] = field(default_factory=list)


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path, and keeps the `Range` of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.ranges: list[str | None] = []
        self.is_closing = threading.Event()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        served = self.server.files.get(self.path.partition("?")[0], Served(b"", status=404))
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start, total = 0, len(served.content)
        if wanted and served.status == 200 and served.knows_ranges and self.headers.get("If-Range") == served.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else served.status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        for name, value in (
            *(("ETag", served.etag), ("Location", served.location), ("Content-Encoding", served.encoding)),
            *(("Content-Type", served.kind), ("Content-Length", str(served.length or total - start))),
        ):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts else total
        self.wfile.write(served.content[start:][:cut])
        if cut < total - start and served.hangs:
            self.wfile.flush()
            self.server.is_closing.wait()

    def log_message(self, *args: object) -> None:
        """Write nothing to stderr."""


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Run a server for the time of the block."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.is_closing.set()
            server.shutdown()
            thread.join()
