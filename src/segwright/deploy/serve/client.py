"""Send cases to a server of `segwright serve`; needs nothing but Python's standard library, so it can be copied.

>>> client = Client("http://127.0.0.1:8477", token="...")
>>> client.predict(["case.nii.gz"], "labels.nii.gz")  # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BLOCK = 1 << 20


class ServerError(Exception):
    """The server refuses a request; `status` is the HTTP status, `error` says what, expected and remedy."""

    def __init__(self, status: int, error: dict[str, Any], retry_after_s: float | None = None) -> None:
        super().__init__("; ".join(str(error[key]) for key in ("what", "expected", "remedy") if error.get(key)))
        self.status = status
        self.error = error
        self.retry_after_s = retry_after_s


class Client:
    """A server of `segwright serve`.

    Args:
        address: such as `http://127.0.0.1:8477`.
        token: bearer token, where the server needs one.
        timeout_s: seconds without an answer until a request fails.
    """

    def __init__(self, address: str, token: str | None = None, *, timeout_s: float = 60.0) -> None:
        self._url = urlsplit(address)
        self._token = token
        self._timeout_s = timeout_s

    def models(self) -> list[dict[str, Any]]:
        """Return the models of the server: name, channels, labels and file endings."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/models")
        return found

    def submit(self, images: Sequence[str | os.PathLike[str]], **fields: str) -> str:
        """Upload the images of one case, one for each channel, and return the id of its job.

        Args:
            images: files in order of the model's channels, or one zip file.
            fields: `model` and `output`, see the server's /openapi.json.

        Raises:
            ServerError: the images are refused, or the queue is full (status 429).
        """
        boundary = secrets.token_hex(16)
        parts = [(_head(boundary, name), value.encode()) for name, value in fields.items()]
        heads = [_head(boundary, "image", Path(image).name) for image in images]
        end = f"--{boundary}--\r\n".encode()
        size = sum(len(head) + len(value) + 2 for head, value in parts) + len(end)
        size += sum(len(head) + Path(image).stat().st_size + 2 for head, image in zip(heads, images, strict=True))

        def body() -> Iterator[bytes]:
            for head, value in parts:
                yield head + value + b"\r\n"
            for head, image in zip(heads, images, strict=True):
                yield head
                with Path(image).open("rb") as stream:
                    while block := stream.read(BLOCK):
                        yield block
                yield b"\r\n"
            yield end

        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(size)}
        return str(self._json("POST", "/v1/jobs", body(), headers)["id"])

    def status(self, job: str) -> dict[str, Any]:
        """Return state, place in the queue, progress, warnings and expected Dice of a job."""
        found: dict[str, Any] = self._json("GET", f"/v1/jobs/{job}")
        return found

    def wait(self, job: str, *, poll_s: float = 1.0) -> dict[str, Any]:
        """Wait until a job is done, and return its status.

        Raises:
            ServerError: it failed.
        """
        while (found := self.status(job))["state"] in ("queued", "running"):
            time.sleep(poll_s)
        if found["state"] != "done":
            raise ServerError(422, found["error"] or {"what": f"the job is {found['state']}"})
        return found

    def download(self, job: str, target: str | os.PathLike[str]) -> None:
        """Write the result of a job to a file, which appears when it is complete."""
        temporary = Path(target).with_name(f".{Path(target).name}.part")
        try:
            with self._answer("GET", f"/v1/jobs/{job}/result") as answer, temporary.open("wb") as stream:
                shutil.copyfileobj(answer, stream, BLOCK)
                if answer.length:  # bytes that are missing
                    raise ConnectionError(
                        f"the result is cut off: {answer.length} bytes are missing; download it again"
                    )
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def cancel(self, job: str) -> None:
        """Cancel a job, or delete a finished one, with all its files on the server."""
        self._json("DELETE", f"/v1/jobs/{job}")

    def predict(
        self, images: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str], **fields: str
    ) -> dict[str, Any]:
        """Predict a case, write the result to a file, delete it on the server, and return the job's status."""
        job = self.submit(images, **fields)
        try:
            found = self.wait(job)
            self.download(job, target)
        finally:
            self.cancel(job)
        return found

    def _json(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        with self._answer(method, path, body, headers) as answer:
            return json.loads(answer.read())

    def _answer(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> HTTPResponse:
        """Send a request and return the answer; closing it closes the connection.

        Raises:
            ServerError: it is a refusal.
        """
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)
        sent = {**(headers or {}), "Connection": "close"}
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token}"
        with suppress(BrokenPipeError, ConnectionResetError):  # a server may refuse an upload early, and says why
            connection.request(method, self._url.path.rstrip("/") + path, body, sent)
        answer = connection.getresponse()
        if answer.status < 400:
            return answer
        text, retry = answer.read(), answer.headers.get("Retry-After", "")
        try:
            error = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):  # of a proxy in between
            error = {"what": f"the server answers with status {answer.status}"}
        raise ServerError(answer.status, error, float(retry) if retry.isdecimal() else None)


def _head(boundary: str, name: str, file: str | None = None) -> bytes:
    """Return the headers of a part of a form."""
    quoted = "" if file is None else file.translate({34: "%22", 13: "%0D", 10: "%0A"})
    more = "" if file is None else f'; filename="{quoted}"\r\nContent-Type: application/octet-stream'
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
