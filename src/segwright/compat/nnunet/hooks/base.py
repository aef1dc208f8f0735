"""What the hooks of the base class do in a training: our trainer's part, with nnU-Net's arguments and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from segwright.compat.nnunet.hooks import results
from segwright.compat.nnunet.hooks.attributes import SettingsInUse, replaced_lines, unused_lines
from segwright.compat.nnunet.hooks.checkpoint_files import checkpoint_kind, load_into, write_torch_file
from segwright.compat.nnunet.hooks.data import DataHooks
from segwright.compat.nnunet.hooks.model import ModelHooks, has_own_steps
from segwright.compat.nnunet.hooks.rates import FileRates
from segwright.compat.nnunet.trainer import Step, folders_of, nnUNetTrainer, overrides
from segwright.core.device import CPU, MPS
from segwright.networks.build import set_deep_supervision
from segwright.training.checkpointing import checkpoints
from segwright.training.config import TrainConfig
from segwright.training.distributed.context import DistributedContext
from segwright.training.monitoring.logbook import LOG_FILE
from segwright.training.trainer import Trainer

LOOP_HOOKS: Final = (
    "on_train_start",
    "on_epoch_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_epoch_end",
    "on_train_end",
)


class RunHost:
    """The base class's hooks in a training.

    Attributes:
        run: the training.
        user: the object of the trainer file.
        model: hooks that build network, optimizer and loss.
        data: hooks about cases, augmentation and batches.
        reached: hooks of the loop that were called since they were last removed from this set.
        replaced: what the class had set before the base's `__init__`, and what that set.
        settings: attributes in use.
        saving: whether the training is being saved by our loop, so that the base's hook has nothing to do.
    """

    def __init__(self, run: Trainer, user_class: type[nnUNetTrainer], preprocessed_folder: Path | None) -> None:
        self.run = run
        self.user_class = user_class
        self.preprocessed_folder = preprocessed_folder
        self.user: nnUNetTrainer
        self.reached: set[str] = set()
        self.replaced: dict[str, tuple[Any, Any]] = {}
        self.saving = False
        self.loading = False

    def connect(self, user: nnUNetTrainer) -> None:
        """Set the object that the hooks belong to."""
        self.user = user
        self.settings = SettingsInUse(user)
        self.model = ModelHooks(self.run, user, self.settings)
        self.data = DataHooks(self.run, user, self.preprocessed_folder, self.settings)
        self.run.notes += (*replaced_lines(user, self.replaced),)
        self.run.notes += (*unused_lines(user, self._own_values(), self.run.dataset_json.raw()),)

    def _own_values(self) -> dict[str, Any]:
        """Return our values of attributes that a file cannot change."""
        run = self.run
        return {
            "configuration_name": run.configuration_name,
            "fold": run.fold,
            "device": run.device,
            "is_ddp": run.distributed.world_size > 1,
            "local_rank": run.distributed.rank,
            "log_file": str(self.log_file),
            **folders_of(self, self.user.configuration_manager, run.configuration_name),
        }

    @property
    def config(self) -> TrainConfig:
        """Settings of the training."""
        return self.run.config

    @property
    def distributed(self) -> DistributedContext:
        """Processes that share the training."""
        return self.run.distributed

    @property
    def torch_device(self) -> torch.device:
        """Device of the network."""
        return self.run.device

    @property
    def output_folder(self) -> Path:
        """Of the fold."""
        return self.run.output_folder

    @property
    def log_file(self) -> Path:
        """The text log."""
        return self.run.output_folder / LOG_FILE

    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """Return the gradient scaler of a file with steps of its own, which on a GPU compute in float16.

        Elsewhere it is disabled, so that it changes nothing, also in steps that use it without asking for one.
        """
        if not has_own_steps(self.user_class):
            return None
        device = self.run.device.type
        return torch.amp.GradScaler(device, enabled=device not in (CPU, MPS))

    # The loop

    def run_training(self) -> None:
        """Run our loop."""
        Trainer.run_training(self.run)

    def on_train_start(self) -> None:
        """Open the data and write the first files."""
        self.reached.add("on_train_start")
        Trainer.on_train_start(self.run)

    def on_epoch_start(self) -> None:
        """Log the time."""
        self.reached.add("on_epoch_start")
        Trainer.on_epoch_start(self.run)

    def on_train_epoch_start(self) -> None:
        """Set training mode and the learning rate."""
        self.reached.add("on_train_epoch_start")
        self.model.require_current_rates()
        rates = self.run.rates
        if isinstance(rates, FileRates):
            rates.begin_epoch(self.user.current_epoch, self.run.logbook.value("val_losses"))
        Trainer.on_train_epoch_start(self.run)

    def log_rate(self) -> None:
        """Log the learning rate of the first group."""
        rate = float(self.user.optimizer.param_groups[0]["lr"])
        self.run.logbook.log("lrs", rate, self.user.current_epoch)

    def train_step(self, batch: Any) -> Step:
        """Update the weights with our step; the loss comes back as a numpy value."""
        return results.to_numpy(Trainer.train_step(self.run, batch))

    def on_train_epoch_end(self, steps: Sequence[Step]) -> None:
        """Log the mean loss."""
        self.reached.add("on_train_epoch_end")
        hook = self.user.train_step
        Trainer.on_train_epoch_end(self.run, [{"loss": results.loss_of(step, hook)} for step in steps])

    def on_validation_epoch_start(self) -> None:
        """Set evaluation mode."""
        self.reached.add("on_validation_epoch_start")
        self.user.network.eval()

    def validation_step(self, batch: Any) -> Step:
        """Return our step's result as numpy values."""
        return results.to_numpy(Trainer.validation_step(self.run, batch))

    def on_validation_epoch_end(self, steps: Sequence[Step]) -> None:
        """Log validation loss and pseudo Dice."""
        self.reached.add("on_validation_epoch_end")
        losses = [results.loss_of(step, self.user.validation_step) for step in steps]
        counts = [results.counts_of(step) for step in steps]
        tensors: list[Any] = [
            {"loss": loss, **dict(zip(results.COUNTS, each, strict=True))}
            for loss, each in zip(losses, counts, strict=True)
            if each is not None
        ]
        if len(tensors) == len(losses):
            Trainer.on_validation_epoch_end(self.run, tensors)
            return
        self.run.logbook.log("val_losses", float(torch.stack(losses).mean()), self.user.current_epoch)
        if self.user.current_epoch == 0:
            self.run.print_to_log_file(
                f"validation_step of {type(self.user).__name__} does not return {', '.join(results.COUNTS)}: there is "
                "no pseudo Dice, and no best checkpoint"
            )

    def on_epoch_end(self) -> None:
        """Log the epoch, save what is due, go to the next epoch."""
        self.reached.add("on_epoch_end")
        Trainer.on_epoch_end(self.run)
        self.user._best_ema = self.run.best_ema

    def on_train_end(self) -> None:
        """Write the final checkpoint."""
        self.reached.add("on_train_end")
        Trainer.on_train_end(self.run)

    def perform_actual_validation(self, *, save_probabilities: bool) -> None:
        """Predict and score the validation cases."""
        self.reached.add("perform_actual_validation")
        if save_probabilities:
            self.run.print_to_log_file("save_probabilities has no effect: 'segwright predict' writes probabilities")
        self.data.validate()

    # Checkpoints and output

    def save_checkpoint(self, path: Path) -> None:
        """Save our checkpoint of that name, or a torch file under another name."""
        if self.saving or self.user.disable_checkpointing:
            return
        kind = checkpoint_kind(path)
        if kind is None:
            write_torch_file(path, self.user)
        elif kind != "final" or self.run.is_finished:  # the final one marks the end of the training
            Trainer.save_checkpoint(self.run, kind)

    def load_checkpoint(self, source: str | Path | Mapping[str, Any]) -> None:
        """Load weights and what else a checkpoint has; nothing while our loop loads its own."""
        if self.loading:
            return
        if not self.user.was_initialized:
            self.run.initialize()
        load_into(self.run, self.user, source)

    def log_line(self, *parts: object, console: bool, timestamp: bool) -> None:
        """Write a line to the log."""
        Trainer.print_to_log_file(self.run, *parts, also_print_to_console=console, add_timestamp=timestamp)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch between several outputs and one, if the network has such a switch."""
        set_deep_supervision(self.user.network, enabled)

    def plot_network_architecture(self) -> None:
        """Draw the network."""
        Trainer.plot_network_architecture(self.run)

    def has_final(self) -> bool:
        """Return whether the final checkpoint exists."""
        return checkpoints.is_finished(self.run.output_folder)

    def overrides(self, *hooks: str) -> bool:
        """Return whether the file overrides one of these hooks."""
        return any(overrides(self.user_class, hook) for hook in hooks)
