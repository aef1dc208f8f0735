"""The batches of an epoch, and what happens between two steps: count, save, look whether somebody wants an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from segwright.core.interrupt import Interrupted
from segwright.training import defaults as regime
from segwright.training.abort import StepAlarm
from segwright.training.checkpointing.determinism import seed_step
from segwright.training.loading.batches import Batch, BatchLoader
from segwright.training.loading.prefetch import prefetch
from segwright.training.optim.optimizers import set_learning_rate

if TYPE_CHECKING:
    from segwright.training.trainer import Trainer


def training_batches(trainer: Trainer) -> Iterator[Batch]:
    """Yield the rest of the epoch's batches; between them the learning rate follows a budget, and `end_step` is called.

    Raises:
        Interrupted, DivergedError: see `end_step`.
    """
    steps = trainer.num_iterations_per_epoch
    loader = trainer.dataloader_train
    with _read_ahead(trainer, loader, steps, first_step=trainer.epoch_step) as batches:
        for batch in batches:
            if trainer.config.budget_s is not None:
                set_learning_rate(trainer.optimizer, trainer.ranks.first(trainer.learning_rate))
            seed_step(trainer.config.seed, trainer.current_epoch, trainer.epoch_step, trainer.ranks.rank)
            yield batch
            if end_step(trainer, batch):
                return


def validation_batches(trainer: Trainer) -> Iterator[Batch]:
    """Yield the batches of the online validation."""
    steps = regime.num_validation_steps(trainer.config, trainer.epoch_step)
    with _read_ahead(trainer, trainer.dataloader_val, steps) as batches:
        yield from batches


def end_step(trainer: Trainer, batch: Batch) -> bool:
    """Count a step, save what is due, and return whether the epoch is over.

    Raises:
        DivergedError: too many steps in a row were skipped.
        Interrupted: the training was asked to stop; it is saved.
    """
    trainer.step_watch.see(trainer.epoch_step, trainer.epoch_outputs[-1]["loss"], batch["keys"])
    trainer.current_step += 1
    trainer.epoch_step += 1
    trainer.clock.end_step()
    if trainer.ranks.is_first:
        trainer.status.beat(trainer)
        if trainer.status.asks_to_end:
            trainer.clock.end_training()
    epoch_is_over, reason = trainer.ranks.first([trainer.clock.epoch_is_over, trainer.stop.reason])
    if (trainer.save_timer.is_due or reason) and trainer.step_watch.is_well:
        trainer.save_checkpoint("latest")
    if reason:
        trainer.tell("interrupted")
        raise Interrupted(f"{reason}: saved after {trainer.current_step} steps; continue with --resume")
    return bool(epoch_is_over)


@contextmanager
def _read_ahead(trainer: Trainer, loader: BatchLoader, steps: int, *, first_step: int = 0) -> Iterator[Iterator[Batch]]:
    """Give the batches of the epoch's steps; an error in making one ends the step that is running."""
    epoch = trainer.current_epoch
    with (
        StepAlarm(trainer.network) as alarm,
        closing(prefetch(loader, epoch, steps, first_step=first_step, on_error=alarm.give)) as batches,
    ):
        yield batches
