"""The trainer: the loop, its hooks under nnU-Net's names, and the parts it puts together."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segwright.core.device import autocast, compute_dtype, memory_format, resolve_device
from segwright.core.errors import ConfigError, ModelError
from segwright.core.files.atomic_io import file_hash, sweep_leftovers
from segwright.core.files.names import below
from segwright.core.interrupt import Interrupted
from segwright.data.laterality import LabelPairs
from segwright.evaluation.scores import Scores
from segwright.inference.predictor import Predictor
from segwright.networks.build import prepare, set_deep_supervision
from segwright.training import defaults as regime
from segwright.training.callbacks import load_callbacks, run_hook
from segwright.training.checkpointing import checkpoints
from segwright.training.checkpointing.determinism import reproducible
from segwright.training.checkpointing.resume import require_same_training, restore, resumed_config, snapshot
from segwright.training.finetuning import start_from
from segwright.training.hook_results import VALIDATED, required_loaders, required_optimizer, required_step
from segwright.training.loading.batches import Batch, BatchLoader
from segwright.training.loading.loaders import build_loaders, training_recipe
from segwright.training.loop import training_batches, validation_batches
from segwright.training.losses.builtin import TrainingLoss, build_loss
from segwright.training.monitoring.divergence import StepWatch, check_loss
from segwright.training.monitoring.logbook import Logbook, row_text
from segwright.training.monitoring.loggers import JsonlSink
from segwright.training.monitoring.network_plot import plot_network
from segwright.training.monitoring.progress_plot import plot
from segwright.training.monitoring.run_record import opening_lines, write_documents
from segwright.training.monitoring.stagnation import unlearned_lines
from segwright.training.monitoring.status import State, StatusFile
from segwright.training.monitoring.trackers import open_sinks, require_sinks
from segwright.training.network_setup import NetworkBuilding, check_outputs, checked_scales
from segwright.training.optim import ema as averaging
from segwright.training.optim.optimizers import (
    build_optimizer,
    optimizer_tensors,
    set_learning_rate,
    update,
)
from segwright.training.optim.schedule import Clock, Schedule, Timer, build_schedule
from segwright.training.validation import final as final_validation
from segwright.training.validation.online import ValidationStep, confusion, pseudo_dice

PLOT_INTERVAL_S: Final = 30.0
"""Least time between two drawings of `progress.png`; one takes about as long as a training step on a CPU."""


class Trainer(NetworkBuilding):
    """Trains one configuration on one fold; a subclass changes a knob or a hook.

    `initialize` builds network, optimiser and loss, `on_train_start` opens the data. Arguments as in `Assignment`.
    """

    network: nn.Module
    optimizer: Optimizer
    loss: TrainingLoss
    device: torch.device
    dataloader_train: BatchLoader
    dataloader_val: BatchLoader
    grad_scaler: torch.amp.GradScaler | None = None
    logbook: Logbook
    clock: Clock
    schedule: Schedule
    status: StatusFile
    step_watch: StepWatch
    save_timer: Timer
    average: averaging.WeightAverage | None
    is_finished = False
    is_resumed = False
    best_ema: float | None = None
    current_epoch = 0
    current_step = 0
    epoch_step = 0
    _is_checked = False

    def initialize(self) -> None:
        """Settle the settings and build network, optimiser and loss.

        Raises:
            ConfigError: it was called before, or settings contradict each other.
        """
        if self.was_initialized:
            raise ConfigError("the trainer is initialized already; make a new one")
        with self.stop.wait_at_exit():
            self._build()
        self.was_initialized = True

    def _build(self) -> None:
        self.device = resolve_device(self._device_name)
        decided = regime.decide(self._with_knobs(), self.configuration, self.device)
        self.config, self.notes = decided.config, decided.notes
        self._show_knobs()
        self.clock = Clock(num_epochs=regime.counted_epochs(self.config), budget_s=self.config.budget_s)
        self.schedule = build_schedule(self.config, self.clock.num_epochs)
        self.logbook = Logbook()
        self.epoch_outputs: list[dict[str, Tensor]] = []
        self.save_timer = Timer(regime.save_interval_s(self.config))
        self._plot_timer = Timer(PLOT_INTERVAL_S)
        network = self._build_network()
        heads, patch_size = self.labels.num_heads, self.configuration.patch_size
        self.scales = checked_scales(network, self.num_input_channels, patch_size, heads)
        if self.config.pretrained is not None and not self.is_resumed:
            self.notes += (*start_from(self, network, self._build_network(more=1)),)
        self.network = prepare(network, self.device)
        self.ranks.equalize(self.network)
        self.optimizer = required_optimizer(
            self.configure_optimizers(), self.configure_optimizers, "configure_optimizers"
        )
        self.average = averaging.follow(self.network, self.optimizer, self.config.ema_weights)
        if compute_dtype(self.device, self.config.precision) == torch.float16:
            self.grad_scaler = torch.amp.GradScaler(self.device.type)
        self.loss = self._build_loss()
        self.recipe = training_recipe(self.config, self.configuration, self.labels, LabelPairs.of_plan(self.plans))
        self.callbacks += load_callbacks(self.config.callbacks)
        require_sinks(self.config.sinks)
        self.step_watch = StepWatch()
        self.status = StatusFile(self.output_folder)

    def configure_optimizers(self) -> Optimizer:
        """Return the optimiser; its learning rate is set by the schedule."""
        return build_optimizer(self.network, self.config)

    def get_dataloaders(self) -> tuple[BatchLoader, BatchLoader]:
        """Return what makes training and validation batches."""
        training, validation, residence = build_loaders(
            self.cases,
            self.split,
            config=self.config,
            configuration=self.configuration,
            labels=self.labels,
            recipe=self.recipe,
            scales=self.scales if len(self.scales) > 1 else None,
            device=self.device,
            ranks=self.ranks,
        )
        self.notes += (residence.because,)
        return training, validation

    def run_training(self) -> None:
        """Train from where this trainer stands to the end, or do nothing if the training is finished."""
        if self.is_finished:
            self.print_to_log_file(f"fold {self.fold} is trained already ({self.current_epoch} epochs)")
            return
        run = partial(run_hook, self)
        device = resolve_device(self._device_name)
        with self.stop.watched(), reproducible(device, deterministic=self.config.deterministic):
            run("on_train_start")
            while not self.ranks.first(self.clock.is_over(self.current_epoch)):
                run("on_epoch_start")
                run("on_train_epoch_start")
                for batch in training_batches(self):
                    self.epoch_outputs.append(required_step(self.train_step(batch), self.train_step, ("loss",)))
                run("on_train_epoch_end", self.epoch_outputs)
                with torch.no_grad(), self.clock.costing("validation"), averaging.applied(self.average):
                    self.ranks.equalize_buffers(self.network)
                    run("on_validation_epoch_start")
                    steps = [
                        required_step(self.validation_step(batch), self.validation_step, VALIDATED)
                        for batch in validation_batches(self)
                    ]
                    run("on_validation_epoch_end", steps)
                run("on_epoch_end")
            run("on_train_end")
        if self.stop.reason:
            raise Interrupted(f"{self.stop.reason}: the training is finished; --resume goes on with its validation")

    def on_train_start(self) -> None:
        """Open data, write down what is run, start the clock."""
        if not self.was_initialized:
            self.initialize()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.dataloader_train, self.dataloader_val = required_loaders(self.get_dataloaders(), self.get_dataloaders)
        self.output_folder.mkdir(parents=True, exist_ok=True)
        if self.ranks.is_first:
            sweep_leftovers(self.output_folder)
            write_documents(self)
            self.sinks += open_sinks(self.config.sinks, self.output_folder)
            self.plot_network_architecture()
        for sink in self.sinks:
            sink.rewind(self.current_epoch)
            if isinstance(sink, JsonlSink):
                sink.complete(self.logbook.rows[: self.current_epoch])
        for line in opening_lines(self):
            self.print_to_log_file(line)
        self.clock.start()
        if self.current_step == 0:
            self.save_checkpoint("latest")  # from here on a killed run can be resumed, with its settings
        self.save_timer.reset()

    def on_epoch_start(self) -> None:
        """Begin an epoch's row of metrics."""
        self.clock.begin_epoch()
        self.logbook.log("epoch_start_timestamps", time.time(), self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Set training mode and the learning rate."""
        self.network.train()
        set_learning_rate(self.optimizer, self.ranks.first(self.learning_rate))
        self.logbook.log("lrs", self.learning_rate, self.current_epoch)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights with one batch; `loss` stays on the device and is NaN if the step was skipped."""
        data, target = self._on_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.precision):
            output = self.network(data)
        if not self._is_checked:
            check_outputs(output, target, data, self.labels.num_heads)
        loss = self.loss(output, target)
        if not self._is_checked:
            check_loss(loss, output, data, batch["keys"])
            self._is_checked = True
        torch.autograd.backward(loss if self.grad_scaler is None else self.grad_scaler.scale(loss))
        self.ranks.sum_gradients(self.network.parameters())
        norm = update(self.optimizer, self.network, clip_norm=self.config.clip_norm, scaler=self.grad_scaler)
        return {"loss": torch.where(torch.isfinite(norm), loss.detach(), torch.nan)}

    def on_train_epoch_end(self, steps: list[dict[str, Tensor]]) -> None:
        """Log the mean loss of the steps that were made and count the others."""
        values = torch.stack([step["loss"].float() for step in steps]).cpu()
        finite = torch.isfinite(values)
        self.logbook.log("train_losses", float(values[finite].mean()), self.current_epoch)
        self.logbook.log("steps", len(values), self.current_epoch)
        self.logbook.log("skipped_steps", int((~finite).sum()), self.current_epoch)
        skipped = torch.nonzero(~finite).flatten().tolist()
        if skipped:
            cases = ", ".join(self.step_watch.cases_of(skipped))
            self.print_to_log_file(f"{len(skipped)} steps skipped, loss or gradient not finite; cases: {cases}")

    def on_validation_epoch_start(self) -> None:
        """Set evaluation mode."""
        self.network.eval()

    def validation_step(self, batch: Batch) -> ValidationStep:
        """Return loss and counts of one batch, on the device."""
        data, target = self._on_device(batch)
        with autocast(self.device, self.config.precision):
            output = self.network(data)
        full, truth = (level if isinstance(level, Tensor) else level[0] for level in (output, target))
        tp, fp, fn = confusion(full, truth, self.labels)
        return {"loss": self.loss(output, target), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def on_validation_epoch_end(self, steps: list[ValidationStep]) -> None:
        """Log validation loss and pseudo Dice."""
        loss, per_class, true_voxels = pseudo_dice(steps, self.ranks)
        present = [value for value in per_class if value == value]
        self.logbook.log("val_losses", loss, self.current_epoch)
        self.logbook.log("dice_per_class_or_region", per_class, self.current_epoch)
        self.logbook.log("true_voxels_per_class", true_voxels, self.current_epoch)
        mean = sum(present) / len(present) if present else float("nan")
        self.logbook.log("mean_fg_dice", mean, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Write the epoch down, save what is due, go to the next."""
        epoch = self.current_epoch
        self.logbook.log("elapsed_s", self.clock.elapsed_s, epoch)
        self.logbook.log("epoch_end_timestamps", time.time(), epoch)
        row = self.logbook.rows[epoch]
        self.print_to_log_file(row_text(row, names=self.class_names, left_s=self.clock.left_s(epoch + 1)))
        for sink in self.sinks:
            sink.log(row, epoch)
        for line in unlearned_lines(self):
            self.print_to_log_file(line)
        self.current_epoch += 1
        self.epoch_outputs, self.epoch_step = [], 0
        self.step_watch.begin_epoch()
        ema = self.logbook.value("ema_fg_dice")
        if isinstance(ema, float) and (self.best_ema is None or ema > self.best_ema):
            self.best_ema = ema
            self.save_checkpoint("best")
        is_due = self.current_epoch % self.save_every == 0 or self.save_timer.is_due
        if is_due and not self.clock.is_over(self.current_epoch):
            self.save_checkpoint("latest")
        if self._plot_timer.is_due:
            self._plot()

    def on_train_end(self) -> None:
        """Write the final checkpoint, which takes the latest one's place."""
        self.clock.stop()
        self.is_finished = True
        if self.average is not None:
            self.average.install()
        self.save_checkpoint("final")
        if self.ranks.is_first and not self.disable_checkpointing:
            checkpoints.delete(self.output_folder, "latest")
        self._plot()
        for sink in self.sinks:
            sink.close()
        self.tell("finished")
        self.print_to_log_file(f"training done: {self.current_step} steps in {self.clock.elapsed_s:.1f} s")

    def perform_actual_validation(self) -> Scores:
        """Predict and score the validation cases in full; `validation/summary.json` holds the scores."""
        final = checkpoints.checkpoint_file(self.output_folder, "final")
        self.tell("validating")
        self.ranks.equalize_buffers(self.network)
        self.set_deep_supervision_enabled(False)
        try:
            predictor = Predictor(
                [self.network],
                self.plans,
                self.configuration,
                self.labels,
                device=self.device,
                mirror_axes=self.recipe.mirror_axes,
                swap_sides=self.recipe.swaps_sides,
                precision=self.config.precision,
            )
            with self.stop.wait_at_exit():
                return final_validation.validate(
                    predictor,
                    self.cases,
                    self.split.val,
                    self.reference_files(),
                    below(self.output_folder, "validation"),
                    file_ending=self.dataset_json.file_ending,
                    weights_hash=file_hash(final) if final.is_file() else f"unsaved at {time.time()}",
                    say=self.print_to_log_file,
                    ranks=self.ranks,
                )
        finally:
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
            self.tell("finished")

    def save_checkpoint(self, kind: checkpoints.Kind) -> None:
        """Write a checkpoint; only `latest` can be resumed and has the optimiser's state."""
        if self.disable_checkpointing or not self.ranks.is_first:
            return
        tensors, values = optimizer_tensors(self.optimizer, self.network)
        state = snapshot(self, values)
        averages = {} if self.average is None else self.average.tensors()
        resumable = {**tensors, **averages} if kind == "latest" else None
        with self.clock.costing("save"), averaging.applied(None if kind == "latest" else self.average):
            checkpoints.save(self.output_folder, kind, state, self.network.state_dict(), optimizer=resumable)
        if resumable is not None:
            self.save_timer.reset()

    def load_checkpoint(self, path: Path) -> None:
        """Continue where a checkpoint stands; settings that were left alone are taken from it.

        Raises:
            ModelError: it is damaged or belongs to another training.
            ConfigError: a setting was changed that may not change during a training.
        """
        checkpoint = checkpoints.load(path)
        state = checkpoint.state
        require_same_training(state, self.identity(), path)
        if not self.was_initialized:
            self.config = resumed_config(self._with_knobs(), state, path, self.trust)
            self.trust = self.trust.with_references(*(reference for _, reference in self.config.references()))
            self._show_knobs()
            self.is_resumed = True
            self.initialize()
        restore(self, checkpoint, path)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the network between several outputs and one; a network that has no such switch stays as it is."""
        set_deep_supervision(self.network, enabled)

    @property
    def learning_rate(self) -> float:
        """The rate at this moment: the schedule over the epochs, or over the time of a budget, whichever is further."""
        return self.initial_lr * self.schedule(self.clock.progress(self.current_epoch))

    def _build_loss(self) -> TrainingLoss:
        return build_loss(
            self.labels,
            batch_dice=bool(self.config.batch_dice),
            num_outputs=len(self.scales) if len(self.scales) > 1 else None,
            reference=self.config.loss,
            class_weights=self.config.class_weights,
            pool=self.ranks.pool,
        )

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor | list[Tensor]]:
        layout = memory_format(self.device, self.configuration.dims)
        data = batch["data"].to(self.device, non_blocking=True).contiguous(memory_format=layout)
        target = batch["target"]
        if isinstance(target, Tensor):
            return data, target.to(self.device, non_blocking=True)
        return data, [level.to(self.device, non_blocking=True) for level in target]

    def plot_network_architecture(self) -> None:
        """Draw the network into `network_architecture.png`; one that cannot be drawn is trained all the same."""
        path = self.output_folder / "network_architecture.png"
        try:
            plot_network(self.network, self.num_input_channels, self.configuration.patch_size, path)
        except ModelError as error:
            self.print_to_log_file(f"no picture of the network: {error}")

    def tell(self, state: State) -> None:
        """Write into `status.json` how far this is."""
        if self.ranks.is_first:
            self.status.write(self, state)

    def _plot(self) -> None:
        if self.ranks.is_first:
            plot(self.logbook, self.output_folder / "progress.png")
        self._plot_timer.reset()
