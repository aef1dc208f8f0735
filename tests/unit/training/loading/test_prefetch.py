"""Prefetching: its memory limit, its errors, and that it does not change torch's number of threads elsewhere."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from segwright.core.errors import DatasetError
from segwright.core.torch_threads import one_thread
from segwright.training.loading.batches import Batch
from segwright.training.loading.prefetch import AHEAD_BYTES, num_ahead, num_threads, prefetch


class Counting:
    """A loader that records the steps and the threads of its batches."""

    device = torch.device("cpu")

    def __init__(self, batch_bytes: int) -> None:
        self.batch_bytes = batch_bytes
        self.torch_threads: set[int] = set()
        self.requested: list[int] = []
        self.changed = threading.Condition()

    def wait_for(self, count: int) -> bool:
        """Wait until as many batches were requested."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.requested) >= count, timeout=60)

    def batch(self, epoch: int, step: int) -> Batch:
        torch.add(torch.ones(100_000), 1)  # the number of threads is settled at the first operation
        self.torch_threads.add(torch.get_num_threads())
        with self.changed:
            self.requested.append(step)
            self.changed.notify_all()
        return {"data": torch.full((1,), float(step)), "target": torch.zeros(1), "keys": [str(step)]}


@pytest.fixture
def four_torch_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield  # type: ignore[misc]
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_torch_threads")
@pytest.mark.parametrize("threads", [1, 3])
def test_loader_threads_use_one_torch_thread_and_others_as_before(threads: int) -> None:
    loader = Counting(1000)
    batches = prefetch(loader, 0, 20, threads=threads)
    next(batches)
    assert torch.get_num_threads() == 4
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 4
    assert [batch["keys"][0] for batch in batches] == [str(step) for step in range(1, 20)]
    assert loader.torch_threads == {1}


@pytest.mark.usefixtures("four_torch_threads")
def test_the_number_of_threads_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="inside"), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError("inside")
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("ahead_bytes", [1000, AHEAD_BYTES // 2, 10 * AHEAD_BYTES])
def test_no_more_batches_wait_than_the_bytes_allow(ahead_bytes: int) -> None:
    loader = Counting(ahead_bytes)
    allowed = num_ahead(ahead_bytes, 2)
    batches = prefetch(loader, 0, 30, threads=2)
    for taken in range(1, 6):
        next(batches)
        assert loader.wait_for(taken + allowed)
        assert len(loader.requested) == taken + allowed
    batches.close()
    assert allowed == max(1, min(allowed, AHEAD_BYTES // ahead_bytes))


def test_batches_for_a_network_on_the_cpu_are_made_in_one_thread() -> None:
    assert num_threads(torch.device("cpu")) == 1
    assert num_threads(torch.device("meta")) >= 1


def test_an_error_is_logged_while_the_step_runs_and_raised_after_it(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Counting):
        def batch(self, epoch: int, step: int) -> Batch:
            if step == 2:
                raise DatasetError("case x: gone")
            return super().batch(epoch, step)

    is_reported = threading.Event()
    batches = prefetch(Failing(1000), 0, 20, threads=1, ahead=3, on_error=lambda error: is_reported.set())
    next(batches)
    assert is_reported.wait(60)  # during the step
    assert caplog.messages == [
        "a prefetched batch cannot be made, so the epoch ends: case x: gone",
    ]
    with pytest.raises(DatasetError, match="case x"):
        next(batches)
    assert len(caplog.messages) == 1
