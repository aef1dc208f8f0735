"""Endless iterators over batches, as trainer files expect them, and loaders over iterators, as our loop does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from typing import Any, Final, cast

import torch

from segwright.compat.nnunet.hooks.randomness import seeded
from segwright.core.device import CPU
from segwright.core.extensions.user_code import UserCodeError
from segwright.training.loading.batches import Batch
from segwright.training.loading.prefetch import InlineLoader, Loader, prefetch

UNKNOWN_BYTES: Final = 64 * 2**20
"""Assumed size of a batch of a file's own iterator."""


class BatchIterator:
    """Yields the batches of the current epoch, from its first step, without end.

    Args:
        loader: makes the batches.
        position: returns the current epoch and the number of its finished steps.
        on_step: called with each batch before it is handed out.
    """

    def __init__(
        self,
        loader: Loader,
        position: Callable[[], tuple[int, int]],
        on_step: Callable[[Batch], None] | None = None,
    ) -> None:
        self.loader = loader
        self._position = position
        self._on_step = on_step
        self._epoch: int | None = None
        self._batches: Generator[Batch, None, None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch; data and target are on the loader's device."""
        epoch, step = self._position()
        if epoch != self._epoch or self._batches is None:
            self.close()
            self._epoch = epoch
            self._batches = prefetch(self.loader, epoch, sys.maxsize, first_step=step)
        batch = next(self._batches)
        if self._on_step is not None:
            self._on_step(batch)
        return batch

    def close(self) -> None:
        """End the threads that prefetch."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


class IteratorLoader:
    """A loader over an iterator of a trainer file; batches come in its order, whatever epoch and step are asked for.

    Args:
        iterator: gives the batches.
        seed: of the run; the global random generators are seeded for each batch, and restored after it.
        purpose: keeps training and validation apart.
    """

    def __init__(self, iterator: Any, *, seed: int, purpose: str) -> None:
        self.iterator = iterator
        self.device = torch.device(CPU)
        self._seed = seed
        self._purpose = purpose

    @property
    def batch_bytes(self) -> int:
        """Bytes of one batch, assumed."""
        return UNKNOWN_BYTES

    def batch(self, epoch: int, step: int) -> Batch:
        """Return the next batch, with its cases under `keys`.

        Raises:
            UserCodeError: there is none, or it is not a dict.
        """
        with seeded(self._seed, self._purpose, epoch, step):
            try:
                batch: Any = next(self.iterator)
            except StopIteration as error:
                raise UserCodeError(
                    f"the iterator of the trainer file's {self._purpose} ended before step {step} of epoch {epoch}; "
                    "get_dataloaders must return iterators without end"
                ) from error
        if not isinstance(batch, MutableMapping):
            raise UserCodeError(
                f"the iterator of the trainer file's {self._purpose} gave a {type(batch).__name__}; expected a dict "
                "with 'data' and 'target'"
            )
        batch.setdefault("keys", [])
        batch["keys"] = [str(name) for name in batch["keys"]]
        return cast(Batch, batch)


def loaders_over(
    iterators: Sequence[Any], *, seed: int, purpose: str, device: torch.device, deterministic: bool
) -> tuple[Loader, Loader]:
    """Return loaders over the iterators of training and validation batches.

    On a GPU a thread makes the batches during the steps; random numbers that a step draws on the host then depend on
    the time. Not so with `deterministic`, nor on a CPU, where steps draw from the same generators.

    Args:
        iterators: of training and validation.
        seed: of the run.
        purpose: what the iterators do, e.g. `transforms`.
        device: of the training.
        deterministic: whether every random number must be the same in another run.
    """
    training, validation = (
        IteratorLoader(each, seed=seed, purpose=f"{use} {purpose}")
        for each, use in zip(iterators, ("training", "validation"), strict=True)
    )
    if deterministic or device.type == CPU:
        return InlineLoader(training), InlineLoader(validation)
    return training, validation
