"""Export a case in a thread while the network predicts the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Final, TypeVar

from segwright.inference.window.stitching import Planes

Decided = TypeVar("Decided")
Written = TypeVar("Written")

MAX_EXPORTS: Final = 2
"""Cases that may wait for or be in export; with the one being read and the one in the network, four are in memory."""


def submit_export(
    pool: Executor,
    planes: Iterable[Planes],
    decide: Callable[[Iterable[Planes]], Decided],
    write: Callable[[Decided], Written],
    *,
    hold: bool,
) -> Future[Written]:
    """Predict a case, decide its labels and write them; return the future of what `write` returns.

    Args:
        pool: writes, and decides with `hold`.
        planes: logits of the case, predicted as they are iterated.
        decide: makes the labels of the planes.
        write: writes the labels.
        hold: keep all logits until `pool` decides; otherwise labels are decided during the prediction in the caller's
            thread, where the network is fastest, and only a few planes are in memory.
    """
    if hold:
        return pool.submit(_decide_and_write, list(planes), decide, write)
    return pool.submit(write, decide(planes))


def _decide_and_write(
    planes: Iterable[Planes],
    decide: Callable[[Iterable[Planes]], Decided],
    write: Callable[[Decided], Written],
) -> Written:
    return write(decide(planes))
