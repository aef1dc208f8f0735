"""Detect that another process of a distributed training has ended, by heartbeats in their shared store.

A collective operation with an ended process may hang (nccl) or fail with a socket error (gloo). A timeout does not
show this, because an operation may also wait long for a process that prepares or validates. torchrun (2.13) does not
either: it watches the processes of its own machine, and gives the others 30 s before it kills them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from logging import getLogger
from typing import Any, Final

import torch.distributed as dist

from segwright.core.errors import SegwrightError
from segwright.core.interrupt import HOW_TO_CONTINUE

logger = getLogger(__name__)

BEAT_S: Final = 1.0
"""Interval of heartbeats, in seconds."""
SILENCE_S: Final = 10.0
"""A process without a heartbeat for this time, in seconds, counts as ended."""
GRACE_S: Final = 5.0
"""A process that hangs in a collective operation with an ended one is ended after this time, in seconds."""
EXIT_OTHER_ENDED: Final = 3
"""Exit code of a process that ends because another did; the other one's exit code has the cause."""

_RENDEZVOUS_S: Final = 300.0
DONE: Final = "done"
FAILED: Final = "failed"
STOPPED: Final = "stopped"
"""Status of a process that was asked to stop; the others were asked too and end within `STOPPING_S`."""
STOPPING_S: Final = 5.0


class RankError(SegwrightError):
    """Another process of the training ended."""

    exit_code = EXIT_OTHER_ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Rank of this process, number of processes, and address of their store.

    With `has_external_store` another program (torchrun) hosts the store, otherwise rank 0 does. `attempt` counts
    restarts.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    has_external_store: bool = False
    attempt: int = 0


class HeartbeatMonitor:
    """Writes this process's heartbeat, and ends this process when that of another one stops.

    A thread reads the heartbeats of all ranks. It explains the error of a failed collective operation, and ends the
    process if the main thread hangs in one.
    """

    def __init__(self, info: RankInfo) -> None:
        self._info = info
        self._store = _connect(info, is_master=False)
        self._last_status = ""
        self._failure = ""
        self._decided = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="segwright-ranks", daemon=True)
        self._thread.start()

    def stop(self, status: str) -> None:
        """Write a last status, such as `DONE`, for the other ranks and stop monitoring them."""
        self._last_status = status
        self._stopping.set()
        if status == DONE:
            self._thread.join()
        elif not self._decided.is_set():
            self._decided.wait(2 * BEAT_S)  # until the status is written

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Turn the error of a collective operation into one that says which rank ended."""
        try:
            yield
        except RuntimeError as error:
            self._decided.wait(SILENCE_S + 3 * BEAT_S)
            if not self._failure:
                raise
            raise RankError(
                f"rank {self._info.rank}: stopped because {self._failure}; fix the cause, then {HOW_TO_CONTINUE}"
            ) from error

    def _run(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        count = 0
        while not self._stopping.is_set() and not self._failure:
            count += 1
            self._failure = self._check(str(count), seen)
            if not self._failure:
                self._stopping.wait(BEAT_S)
        if self._failure:
            self._decided.set()
            logger.error("rank %d: %s; ending", self._info.rank, self._failure)
        else:
            self._write_last_status()
            self._decided.set()
            if self._last_status in (DONE, STOPPED):
                return
        time.sleep(GRACE_S)
        os._exit(EXIT_OTHER_ENDED)  # the main thread hangs in a collective operation: no exception reaches it

    def _check(self, beat: str, seen: dict[int, tuple[str, float]]) -> str:
        """Write a heartbeat, read those of the other ranks, and return which rank ended, or an empty text."""
        now = time.monotonic()
        try:
            self._store.set(_key(self._info.rank), beat)
            for rank in range(self._info.world_size):
                if rank == self._info.rank or not self._store.check([_key(rank)]):
                    continue
                status = self._store.get(_key(rank)).decode()
                before, since = seen.get(rank, ("", now))
                seen[rank] = (status, since if status == before else now)
                if status.startswith(FAILED):
                    return f"rank {rank} {status}"
                silence_s = now - seen[rank][1]
                if status == STOPPED and silence_s > STOPPING_S:
                    return f"rank {rank} was asked to stop and this one was not"
                if status not in (DONE, STOPPED) and silence_s > SILENCE_S:
                    return f"rank {rank} ended unexpectedly (no heartbeat for {SILENCE_S:.0f} s)"
        except RuntimeError:
            host = "torchrun" if self._info.has_external_store else "rank 0"
            return f"{host} ended: its store does not answer"
        return ""

    def _write_last_status(self) -> None:
        try:
            self._store.set(_key(self._info.rank), self._last_status)
        except RuntimeError as error:
            logger.debug("the store is gone, no rank is left to inform: %s", error)


def rendezvous(info: RankInfo) -> Any:
    """Connect to the store of the process group; rank 0 starts it unless another program hosts it.

    Raises:
        RankError: it cannot be reached.
    """
    return _connect(info, is_master=info.rank == 0 and not info.has_external_store)


def _connect(info: RankInfo, *, is_master: bool) -> Any:
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            info.address,
            info.port,
            is_master=is_master,
            timeout=timedelta(seconds=_RENDEZVOUS_S),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise RankError(
            f"rank {info.rank}: cannot connect to the other processes at {info.address}:{info.port} "
            f"({str(error).splitlines()[0]}); check that the port is free and rank 0 runs"
        ) from error
    return dist.PrefixStore(f"segwright/{info.attempt}", store)  # type: ignore[attr-defined]


def _key(rank: int) -> str:
    return f"alive/{rank}"
