"""A running server with a small model, in a thread of the test."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segwright import api
from segwright.core.interrupt import StopRequest
from segwright.deploy.serve.client import Client
from segwright.deploy.serve.limits import ServeLimits

LIMITS = ServeLimits(upload_bytes=200_000, voxels=5000, queue=8, retention_s=600, stall_s=2)


@dataclass(frozen=True)
class Served:
    """A server, its model and images, and its folder of jobs."""

    address: str
    model: Path
    images: Path
    jobs: Path

    @property
    def client(self) -> Client:
        return Client(self.address)

    @property
    def image(self) -> Path:
        return self.images / "a_0000.nii.gz"


@contextmanager
def serving(model: Path, jobs: Path, **options: Any) -> Iterator[str]:
    """Run a server in a thread and yield its address; it is stopped at the end."""
    stop, started, address, errors = StopRequest(), threading.Event(), [""], []

    def start(found: str) -> None:
        address[0] = found
        started.set()

    def run() -> None:
        try:
            api.serve(
                model, port=0, device="cpu", jobs=jobs, stop=stop, on_start=start, **{"limits": LIMITS, **options}
            )
        except BaseException as error:
            errors.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    try:
        if errors:
            raise errors[0]
        yield address[0]
    finally:
        stop.request("test")
        thread.join(30)
        assert not thread.is_alive()


def raw_request(address: str, text: bytes, *, ends: bool = False) -> bytes:
    """Send bytes to a server and return the answer; with `ends` nothing can follow them."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(text)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def gzipped_nifti(shape: tuple[int, int, int], voxels: bytes = b"") -> bytes:
    """Return a gzipped NIfTI file of one byte per voxel whose header says `shape`."""
    head = bytearray(348)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 2, 8)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", head, 108, 352)
    head[344:348] = b"n+1\0"
    return gzip.compress(bytes(head) + bytes(4) + voxels)
