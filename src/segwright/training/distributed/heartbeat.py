"""Where processes of one training meet, and how each learns that another has ended: heartbeats in the store they share.

An exchange with an ended process may hang (nccl) or fail with a message of sockets (gloo), and one may rightly take
long while another prepares or validates. So it is not the time limit of an exchange that tells.
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

logger = getLogger(__name__)

BEAT_S: Final = 1.0
SILENCE_S: Final = 10.0
"""After so many seconds without a heartbeat a process counts as ended."""
GRACE_S: Final = 5.0
"""A process that learns of another's end and hangs in an exchange with it is ended after this time, in seconds."""
EXIT_OTHER_ENDED: Final = 3
"""Exit code of a process that ends because another did, which tells the cause from its consequences."""

_MEETING_S: Final = 300.0
DONE: Final = "done"
FAILED: Final = "failed"
STOPPED: Final = "stopped"
"""The word of a process that was asked to stop; the others were asked too and end within `STOPPING_S`."""
STOPPING_S: Final = 5.0


class RankError(SegwrightError):
    """Another process of the training ended."""

    exit_code = EXIT_OTHER_ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which of how many processes this is, and where they meet.

    `store_is_there` is true where another program (torchrun) keeps the store; else rank 0 does. `attempt` tells
    restarts apart.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    store_is_there: bool = False
    attempt: int = 0


class Watch:
    """Tells the other processes that this one lives, and ends this one when another does not.

    An exchange with an ended process may hang (nccl) or fail with a message of sockets (gloo). So a thread looks at
    everybody's heartbeat; what it finds is the message of the error, and where the main thread hangs the process is
    ended from here.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._store = _connect(place, is_master=False)
        self._last_word = ""
        self._verdict = ""
        self._decided = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="segwright-ranks", daemon=True)
        self._thread.start()

    def stop(self, word: str) -> None:
        """Leave `word`, done or failed, for the others and stop looking at them."""
        self._last_word = word
        self._stopping.set()
        if word == DONE:
            self._thread.join()
        elif not self._decided.is_set():
            self._decided.wait(2 * BEAT_S)  # until the word is left

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn the error of an exchange into one that says who ended."""
        try:
            yield
        except RuntimeError as error:
            self._decided.wait(SILENCE_S + 3 * BEAT_S)
            if not self._verdict:
                raise
            raise RankError(
                f"rank {self._place.rank}: stopped because {self._verdict}; mend its cause and continue with --resume"
            ) from error

    def _run(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        count = 0
        while not self._stopping.is_set() and not self._verdict:
            count += 1
            self._verdict = self._look(str(count), seen)
            if not self._verdict:
                self._stopping.wait(BEAT_S)
        if self._verdict:
            self._decided.set()
            logger.error("rank %d: %s; ending", self._place.rank, self._verdict)
        else:
            self._leave_word()
            self._decided.set()
            if self._last_word in (DONE, STOPPED):
                return
        time.sleep(GRACE_S)
        os._exit(EXIT_OTHER_ENDED)  # the main thread hangs in an exchange or its clean-up: no exception reaches it

    def _look(self, beat: str, seen: dict[int, tuple[str, float]]) -> str:
        """Give one heartbeat, look at the others', and return who ended, or nothing."""
        now = time.monotonic()
        try:
            self._store.set(_key(self._place.rank), beat)
            for rank in range(self._place.world_size):
                if rank == self._place.rank or not self._store.check([_key(rank)]):
                    continue
                word = self._store.get(_key(rank)).decode()
                before, since = seen.get(rank, ("", now))
                seen[rank] = (word, since if word == before else now)
                if word.startswith(FAILED):
                    return f"rank {rank} {word}"
                silence_s = now - seen[rank][1]
                if word == STOPPED and silence_s > STOPPING_S:
                    return f"rank {rank} was asked to stop and this one was not"
                if word not in (DONE, STOPPED) and silence_s > SILENCE_S:
                    return f"rank {rank} ended without a word (no heartbeat for {SILENCE_S:.0f} s)"
        except RuntimeError:
            keeper = "torchrun" if self._place.store_is_there else "rank 0"
            return f"{keeper} ended: its store does not answer"
        return ""

    def _leave_word(self) -> None:
        try:
            self._store.set(_key(self._place.rank), self._last_word)
        except RuntimeError as error:
            logger.debug("nobody left to tell: %s", error)


def _key(rank: int) -> str:
    return f"alive/{rank}"


def meet(place: Place) -> Any:
    return _connect(place, is_master=place.rank == 0 and not place.store_is_there)


def _connect(place: Place, *, is_master: bool) -> Any:
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            place.address,
            place.port,
            is_master=is_master,
            timeout=timedelta(seconds=_MEETING_S),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise RankError(
            f"rank {place.rank}: no meeting with the other processes at {place.address}:{place.port} "
            f"({str(error).splitlines()[0]}); see that the port is free and rank 0 runs"
        ) from error
    return dist.PrefixStore(f"segwright/{place.attempt}", store)  # type: ignore[attr-defined]
