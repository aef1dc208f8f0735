"""A server under 200 requests of four clients, killed and started again in between."""

from __future__ import annotations

import http.client
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from running_server import gzipped_nifti

from segwright import api
from segwright.deploy.serve.client import Client, ServerError
from tests.unit.inference.conftest import small_plan, write_images, write_model

TOKEN = "0123456789abcdef"
CLIENTS, REQUESTS = 4, 50
RETENTION_S = 30
MEBIBYTE = 2**20
WARM = 20
"""Requests before memory is measured."""
KINDS = (
    *("predict",) * 8,
    *("cancel",) * 4,
    *("broken zip", "zip bomb", "path in a zip", "huge image", "large header", "wrong token", "no job", "no image"),
)
REFUSALS = {
    "broken zip": 400,
    "zip bomb": 413,
    "path in a zip": 422,
    "huge image": 413,
    "large header": 431,
    "wrong token": 401,
    "no job": 404,
    "no image": 415,
}


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


class Load:
    """Four clients and what they saw.

    Attributes:
        port: of the server.
        images: by name, with the labels that `predict` gives.
        bad: files of each kind of refusal.
        results: folder for downloads.
        accepted: image of each job that was accepted and not cancelled.
        done: when the server said that a job was done.
    """

    def __init__(self, port: int, images: dict[str, tuple[Path, Any]], bad: dict[str, Path], results: Path) -> None:
        self.port, self.images, self.bad, self.results = port, images, bad, results
        self.accepted: dict[str, str] = {}
        self.done: dict[str, float] = {}
        self.count = 0
        self.errors: list[BaseException] = []
        self.lock = threading.Lock()

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", TOKEN, timeout_s=30)

    def retry(self, function: Callable[[], Any]) -> Any:
        """Call a function again while the server is down or its queue is full."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return function()
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < deadline
            except ServerError as error:
                if error.status != 429 or not error.retry_after_s:
                    raise
            time.sleep(0.2)

    def run(self, number: int) -> None:
        try:
            generator = random.Random(number)
            for _ in range(REQUESTS):
                self.request(generator.choice(KINDS), generator.choice(sorted(self.images)))
                with self.lock:
                    self.count += 1
        except BaseException as error:
            self.errors.append(error)

    def request(self, kind: str, image: str) -> None:
        if kind in REFUSALS:
            with pytest.raises(ServerError) as refused:
                self.retry(lambda: self.refused(kind))
            assert refused.value.status == REFUSALS[kind], (kind, refused.value)
            assert refused.value.error["what"]
            assert refused.value.error["expected"] or refused.value.error["remedy"]
            return
        job = self.retry(lambda: self.client.submit([self.images[image][0]]))
        if kind == "cancel":
            with suppress(ServerError):  # the answer to the first attempt was lost with the server
                self.retry(lambda: self.client.cancel(job))
            with pytest.raises(ServerError, match="no such job"):
                self.retry(lambda: self.client.status(job))
            return
        with self.lock:
            self.accepted[job] = image
        while self.retry(lambda: self.client.status(job))["state"] != "done":
            time.sleep(0.05)
        with self.lock:
            self.done[job] = time.monotonic()
        self.require_right(job)

    def refused(self, kind: str) -> None:
        client = self.client
        if kind == "no job":
            client.status("0" * 32)
        elif kind == "wrong token":
            Client(f"http://127.0.0.1:{self.port}", f"{TOKEN}x").submit([self.images["a"][0]])
        elif kind == "large header":
            Client(f"http://127.0.0.1:{self.port}", TOKEN * 2000).models()
        else:
            client.submit([self.bad[kind]])

    def require_right(self, job: str) -> None:
        """Check that the result of a job is what `predict` gives."""
        file = self.results / f"{job}.nii.gz"
        self.retry(lambda: self.client.download(job, file))
        np.testing.assert_array_equal(labels(file), self.images[self.accepted[job]][1])


def labels(file: Path) -> Any:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def resident_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(text.split("VmRSS:")[1].split()[0])


@contextmanager
def server(model: Path, jobs: Path, port: int, log: Path) -> Iterator[subprocess.Popen[str]]:
    options = ("--device", "cpu", "--port", port, "--jobs", jobs, "--retention", f"{RETENTION_S}s", "--queue", "32")
    command = [sys.executable, "-m", "segwright", "serve", model, *options, "--max-voxels", "5000"]
    with log.open("a") as errors:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "SEGWRIGHT_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening at"), log.read_text()
        yield process
    finally:
        process.kill()
        process.communicate()


def wait(condition: Callable[[], bool], load: Load, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert not load.errors, load.errors
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    model = write_model(tmp_path, small_plan(), 0, seed=6)
    images = write_images(tmp_path / "images")
    records = api.predict(model, images, tmp_path / "expected", device="cpu")
    known = {each.case: (images / f"{each.case}_0000.nii.gz", labels(each.output)) for each in records}
    assert {*np.unique(known["a"][1])} == {0, 1, 2}
    bad = {
        "broken zip": ("x.zip", b"PK\3\4 broken"),
        "zip bomb": ("x.zip", zipped("x.nii.gz", bytes(50 * MEBIBYTE))),
        "path in a zip": ("x.zip", zipped("../x.nii.gz", b"x")),
        "huge image": ("x.nii.gz", gzipped_nifti((100, 100, 100), bytes(10**6))),
        "no image": ("x.png", b"x"),
    }
    for kind, (name, content) in bad.items():
        (tmp_path / "bad" / kind).mkdir(parents=True)
        (tmp_path / "bad" / kind / name).write_bytes(content)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Load(port, known, {kind: tmp_path / "bad" / kind / name for kind, (name, _) in bad.items()}, tmp_path)


@pytest.mark.slow
def test_two_hundred_requests_with_a_kill_in_between(load: Load, tmp_path: Path) -> None:
    model, jobs, log = tmp_path / "Trainer__nnUNetPlans__3d_fullres", tmp_path / "jobs", tmp_path / "log"
    threads = [threading.Thread(target=load.run, args=(number,)) for number in range(CLIENTS)]
    memory = []
    with server(model, jobs, load.port, log) as process:
        for thread in threads:
            thread.start()
        wait(lambda: load.count >= WARM, load)
        memory.append(resident_bytes(process.pid))
        wait(lambda: load.count >= CLIENTS * REQUESTS // 3, load)
        memory.append(resident_bytes(process.pid))
        process.send_signal(signal.SIGKILL)
        process.wait()
        acknowledged = [job for job, when in load.done.items() if time.monotonic() - when < RETENTION_S / 3]
    assert acknowledged
    with server(model, jobs, load.port, log) as process:
        for job in acknowledged:
            load.require_right(job)
        first = load.count
        wait(lambda: load.count >= first + WARM, load)
        memory.append(resident_bytes(process.pid))
        for thread in threads:
            thread.join(120)
        assert load.errors == []
        memory.append(resident_bytes(process.pid))
        assert load.count == CLIENTS * REQUESTS
        assert {*load.accepted} == {*load.done}
        wait(lambda: not list((jobs / "jobs").iterdir()), load, RETENTION_S + 10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert [path for path in jobs.rglob("*") if path.is_file()] == []
    assert list((jobs / "incoming").iterdir()) == []
    growth = [(after - before) / MEBIBYTE for before, after in (memory[:2], memory[2:])]
    assert max(growth) < 100, growth
    text = log.read_text()
    assert "Traceback" not in text
    assert "unexpected" not in text
