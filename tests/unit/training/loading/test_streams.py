"""Batches on a stream of their own: the steps' stream waits for each and keeps its memory; only on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_prefetch import Counting

from segwright.training.loading import streams
from segwright.training.loading.batches import Batch
from segwright.training.loading.prefetch import prefetch

GPU = torch.device("cuda", 0)


class FakeTensor(torch.Tensor):
    """A tensor that claims to be on a GPU, and logs which stream its memory is kept for."""

    name_: str
    log: list[str]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def record_stream(self, stream: Any) -> None:
        self.log.append(f"{self.name_} kept for {stream.name}")


class FakeCuda:
    """Streams and events that log in which order they are used."""

    Event = object

    def __init__(self) -> None:
        self.log: list[str] = []
        self._of_thread = threading.local()

    @property
    def names(self) -> list[str]:
        """Streams of the calling thread, the current one last."""
        if not hasattr(self._of_thread, "names"):
            self._of_thread.names = ["steps"]
        names: list[str] = self._of_thread.names
        return names

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        self.log.append("created")
        return FakeStream("batches", self.log)

    def current_stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self.names[-1], self.log)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.names.append(stream.name)
        yield
        self.names.pop()


class FakeStream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} wait for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} wait for {event}")

    def record_event(self) -> str:
        self.log.append(f"event on {self.name}")
        return "the event"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    made = FakeCuda()
    monkeypatch.setattr(streams, "cuda", made)
    streams._side_stream.cache_clear()
    yield made
    streams._side_stream.cache_clear()


def named(name: str, log: list[str]) -> FakeTensor:
    tensor = torch.ones(1).as_subclass(FakeTensor)
    tensor.name_, tensor.log = name, log
    return tensor


def test_a_batch_is_made_on_its_stream_and_waited_for_by_that_of_the_steps(fake: FakeCuda) -> None:
    def make() -> Batch:
        fake.log.append(f"made on {fake.names[-1]}")
        target = [named("coarse", fake.log), torch.ones(1)]
        return {"data": named("data", fake.log), "target": target, "keys": ["case"]}

    stream = streams.batch_stream(GPU)
    staged = stream.make(make)
    fake.log.append("next step")
    assert stream.take(staged)["keys"] == ["case"]
    assert fake.log == [
        "created",
        "batches wait for steps",
        "made on batches",
        "event on batches",
        "next step",
        "steps wait for the event",
        "data kept for steps",
        "coarse kept for steps",
    ]


def test_every_epoch_uses_the_same_stream(fake: FakeCuda) -> None:
    for _ in range(3):
        streams.batch_stream(GPU)
    assert fake.log.count("created") == 1


def test_prefetched_batches_of_a_gpu_go_through_the_stream(fake: FakeCuda) -> None:
    class OnGpu(Counting):
        device = GPU

    batches = prefetch(OnGpu(1000), 0, 5, threads=1, ahead=1)
    taken = [next(batches)["keys"][0] for _ in range(5)]
    assert taken == ["0", "1", "2", "3", "4"]
    assert fake.log.count("event on batches") == fake.log.count("steps wait for the event") == 5


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_other_devices_have_no_stream(fake: FakeCuda, device: str) -> None:
    batch: Batch = {"data": torch.ones(1), "target": torch.ones(1), "keys": []}
    stream = streams.batch_stream(torch.device(device))
    assert stream.take(stream.make(lambda: batch)) is batch
    assert fake.log == []
