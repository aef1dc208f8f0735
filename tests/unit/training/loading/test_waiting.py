"""How long steps wait for their batches: by the host's clock, on a GPU by its own, and in the records of an epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from segwright.training.loading import prefetch, waiting
from segwright.training.loading.batches import Batch
from segwright.training.loading.waiting import MAX_STEPS_AHEAD, GpuStopwatch, HostStopwatch, TimedBatches
from tests.unit.training.tiny_task import make, settings

BATCH: Batch = {"data": torch.ones(1), "target": torch.ones(1), "keys": []}


def test_only_the_time_until_a_batch_comes_counts() -> None:
    time = [0.0]

    def batches() -> Iterator[Batch]:
        for wait in (2.0, 1.0, 0.0):
            time[0] += wait
            yield BATCH
        time[0] += 100.0  # no batch follows

    timed = TimedBatches(batches(), HostStopwatch(now=lambda: time[0]))
    for batch in timed:
        assert batch is BATCH
        time[0] += 10.0  # the step
    assert timed.mean_wait_s == pytest.approx(1.0)


def test_no_batch_is_no_wait() -> None:
    assert TimedBatches(iter([]), HostStopwatch()).mean_wait_s == 0.0


class FakeCuda:
    """A GPU whose clock advances with each event: by 5 ms in a wait."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.count = 0

    def current_stream(self, device: torch.device) -> str:
        return "steps"

    def Event(self, *, enable_timing: bool, blocking: bool) -> FakeEvent:  # noqa: N802
        assert (enable_timing, blocking) == (True, True)  # a host that waits in a loop would keep a core busy
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu, self.number = gpu, -1

    def record(self, stream: str) -> None:
        assert stream == "steps"
        self.number = self.gpu.count
        self.gpu.count += 1

    def synchronize(self) -> None:
        self.gpu.read.append(self.number)

    def elapsed_time(self, other: FakeEvent) -> float:
        assert other.number == self.number + 1
        assert other.number in self.gpu.read, "times are known when the GPU has reached the event"
        return 5.0


def test_a_gpu_is_timed_by_its_events_and_the_host_is_only_a_few_steps_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda()
    monkeypatch.setattr(waiting, "cuda", gpu)
    timed = TimedBatches(iter([BATCH] * 6), GpuStopwatch(torch.device("cuda", 0)))
    for step, _ in enumerate(timed):
        assert len(gpu.read) == max(0, step + 1 - MAX_STEPS_AHEAD)
    assert timed.mean_wait_s == pytest.approx(0.005)
    assert gpu.read == [1, 3, 5, 7, 9, 11]


class TwoSeconds:
    """A stopwatch that measured two seconds."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def total_s(self) -> float:
        return 2.0


def test_each_epoch_records_the_wait_of_its_training_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "stopwatch", lambda device: TwoSeconds())
    trainer = make(tmp_path, config=settings(num_epochs=2, num_iterations_per_epoch=4))
    trainer.run_training()
    lines = (trainer.output_folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loader_wait_s"] for line in lines] == [0.5, 0.5]
    assert (trainer.output_folder / "training.log").read_text().count("each waited 500.0 ms for its batch") == 2
