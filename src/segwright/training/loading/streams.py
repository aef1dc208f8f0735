"""Make batches on a stream of the GPU beside that of the training steps, so that copies and steps overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, cuda

from segwright.core.device import CUDA
from segwright.training.loading.batches import Batch

Staged = tuple[Batch, cuda.Event | None]
"""A batch, and the event of a GPU after which it is complete."""


class BatchStream(Protocol):
    """Where batches are made: `make` in any thread, `take` in the thread whose steps use them."""

    def make(self, make_batch: Callable[[], Batch]) -> Staged:
        """Make a batch."""
        ...

    def take(self, staged: Staged) -> Batch:
        """Return a batch that was made, for the steps that follow."""
        ...


class NoStream:
    """Makes batches for a device without streams."""

    def make(self, make_batch: Callable[[], Batch]) -> Staged:
        """Make a batch."""
        return make_batch(), None

    def take(self, staged: Staged) -> Batch:
        """Return it."""
        return staged[0]


class CudaStream:
    """Makes batches on a stream of a CUDA GPU; the host waits for it neither in `make` nor in `take`.

    The stream first waits for what the current one was given before, such as a loader's own tensors.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _side_stream(device)
        self._stream.wait_stream(cuda.current_stream(device))

    def make(self, make_batch: Callable[[], Batch]) -> Staged:
        """Make a batch on the stream."""
        with cuda.stream(self._stream):
            return make_batch(), self._stream.record_event()

    def take(self, staged: Staged) -> Batch:
        """Return a batch; the current stream waits until it is complete."""
        batch, is_complete = staged
        assert is_complete is not None, "recorded by make"
        current = cuda.current_stream(self._device)
        current.wait_event(is_complete)
        for tensor in _gpu_tensors(batch):
            tensor.record_stream(current)  # else its memory could be reused while the step still reads it
        return batch


def batch_stream(device: torch.device) -> BatchStream:
    """Return where the batches of an epoch are made."""
    return CudaStream(device) if device.type == CUDA else NoStream()


@lru_cache
def _side_stream(device: torch.device) -> cuda.Stream:
    """Return the same stream in every epoch, since torch keeps freed memory apart for each."""
    return cuda.Stream(device)  # type: ignore[no-untyped-call]


def _gpu_tensors(batch: Batch) -> Iterator[Tensor]:
    for value in batch.values():
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, Tensor) and part.device.type == CUDA:
                yield part
