"""The trainer: one training of one configuration on one fold, with nnU-Net's names for its hooks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segwright.core.device import autocast, resolve_device
from segwright.core.errors import ConfigError
from segwright.core.extensions.given import method_reference
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.core.interrupt import HOW_TO_CONTINUE, Interrupted, StopRequest
from segwright.data.crossval.splits import Split
from segwright.data.description import DatasetDescription
from segwright.data.labels import Labels
from segwright.data.laterality import LabelPairs
from segwright.data.plan import Configuration, Plan
from segwright.evaluation.scores import Scores
from segwright.networks.build import ArchitectureSpec, input_format, move_to_device, set_deep_supervision
from segwright.networks.folds import require_same_network
from segwright.networks.logits import LogitsOf, logits_only
from segwright.training import defaults, network_setup
from segwright.training.checkpointing import checkpoints, resume
from segwright.training.checkpointing.determinism import reproducible, seed_step
from segwright.training.clock import Clock, Timer
from segwright.training.config import KNOBS, TrainConfig, changed
from segwright.training.distributed.context import SINGLE, DistributedContext
from segwright.training.execution.choice import Execution, make_execution
from segwright.training.execution.step import FirstBatchCheck, StepParts
from segwright.training.finetuning import load_pretrained
from segwright.training.hooks import declarations, results
from segwright.training.hooks.callbacks import call_callbacks, load_callbacks
from segwright.training.loading.batches import Batch, BatchLoader, to_device
from segwright.training.loading.from_dataset import make_trainer
from segwright.training.loading.loaders import build_loaders, training_recipe
from segwright.training.loading.prefetch import prefetched_batches
from segwright.training.losses.builtin import TrainingLoss, build_loss
from segwright.training.monitoring import epoch_metrics
from segwright.training.monitoring.divergence import DivergenceMonitor
from segwright.training.monitoring.logbook import Logbook
from segwright.training.monitoring.loggers import MetricLogger
from segwright.training.monitoring.run_output import RunOutput
from segwright.training.monitoring.run_record import train_record
from segwright.training.monitoring.status import State
from segwright.training.optim import ema
from segwright.training.optim.optimizers import build_optimizer, optimizer_tensors, untrained_notes
from segwright.training.optim.rates import LearningRates, make_rates, rate_notes
from segwright.training.optim.schedule import Schedule, build_schedule
from segwright.training.validation import final as final_validation
from segwright.training.validation.online import ValidationStep, confusion, pseudo_dice

T = TypeVar("T", bound="Trainer")


class Trainer:
    """Trains one configuration on one fold; a subclass overrides a hyperparameter attribute or a hook.

    The constructor only stores values. `initialize` builds network, optimiser and loss; `on_train_start` opens the
    data and writes the first files. `run_training` calls the hooks in nnU-Net's order.

    Args:
        plans: a `Plan` or the plain document.
        configuration: its name in the plan.
        fold: number or `all`, for the records; `split` holds the cases.
        dataset_json: the description or the plain document.
        device: auto, cpu, cuda, cuda:1, mps or a torch device.
        cases: opens preprocessed cases by identifier.
        split: cases to train on and to validate with.
        output_folder: of the fold; its parent is the model folder.
        config: the settings; nnU-Net's by default.
        references: folder of the original labels, or the file of each case; for the final validation.
        loggers: receive the metrics, in addition to `metrics.jsonl` and the loggers of the settings.
        callbacks: objects or functions to be called at events (`training.hooks.callbacks`); the settings' too.
        stop: checked after each step; if it requests a stop, the training is saved and ended.
        distributed: the processes that share this training; only the first one writes files and logs.
        trust_code: whether a resumed checkpoint may import code that the settings do not name.
    """

    # Hyperparameters, see `config.KNOBS`
    initial_lr: float
    weight_decay: float
    oversample_foreground_percent: float
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    num_epochs: int
    batch_size: int | None
    enable_deep_supervision: bool
    save_every: int
    disable_checkpointing: bool

    # Built by `initialize` and `on_train_start`
    device: torch.device
    network: nn.Module
    optimizer: Optimizer
    loss: TrainingLoss
    dataloader_train: BatchLoader
    dataloader_val: BatchLoader
    grad_scaler: torch.amp.GradScaler | None = None
    logbook: Logbook
    clock: Clock
    schedule: Schedule
    rates: LearningRates
    divergence_monitor: DivergenceMonitor
    save_timer: Timer
    weight_ema: ema.WeightAverage | None
    scheduler_steps: Literal["epoch", "step"] = "epoch"
    """When `step` of a scheduler that `configure_optimizers` returned is called: after each epoch or training step."""
    is_finished = False
    is_resumed = False
    best_ema: float | None = None
    validated: Literal["final", "best"] = "final"
    """The checkpoint whose weights `perform_actual_validation` finds in the network."""
    current_epoch = current_step = epoch_step = 0
    _is_first_batch_checked = False
    _now = staticmethod(time.monotonic)

    def __init__(
        self,
        plans: Plan | Mapping[str, Any],
        configuration: str,
        fold: int | Literal["all"],
        dataset_json: DatasetDescription | Mapping[str, Any],
        device: str | torch.device = "auto",
        *,
        cases: final_validation.ValidationSource,
        split: Split,
        output_folder: Path,
        config: TrainConfig | None = None,
        references: Mapping[str, Path] | Path | None = None,
        loggers: Sequence[MetricLogger] = (),
        callbacks: Sequence[object] = (),
        stop: StopRequest | None = None,
        distributed: DistributedContext = SINGLE,
        trust_code: TrustCode = False,
    ) -> None:
        self.was_initialized = False
        self.plans = plans if isinstance(plans, Plan) else Plan.from_json(plans)
        self.configuration_name = configuration
        self.configuration: Configuration = self.plans.configuration(configuration)
        self.fold = fold
        self.dataset_json = DatasetDescription.model_validate(dataset_json)
        self.labels = Labels.from_description(self.dataset_json)
        self.config = declarations.with_class_values(config or TrainConfig(), type(self), Trainer)
        self._class_values = self.config.model_fields_set - (config or TrainConfig()).model_fields_set
        self.trust = CodeTrust.of(trust_code).with_references(*(reference for _, reference in self.config.references()))
        self.cases = cases
        self.split = split
        self.output_folder = output_folder
        self.references = references
        self.distributed = distributed
        self._output = RunOutput(output_folder, is_first=distributed.is_first, loggers=loggers)
        self.callbacks = [*callbacks]
        self.stop = stop or StopRequest()
        self.notes: tuple[str, ...] = ()
        self._device_name = str(device)
        self._set_knobs()

    @classmethod
    def for_dataset(
        cls: type[T], dataset: str | Path | int, configuration: str, fold: int | Literal["all"] = 0, **options: Any
    ) -> T:
        """Return the trainer of one fold of a preprocessed dataset; it writes where `segwright.train` does.

        `options` are those of `loading.from_dataset.make_trainer`: `workspace`, `plans`, `name`, `config`, `device`,
        `stop`, `resume`, and fields of `TrainConfig`, such as `network`, `loss`, `callbacks` or `num_epochs`.

        Raises:
            SegwrightError: an option is invalid, the dataset is not preprocessed, or the fold has a training.
        """
        return make_trainer(cls, dataset, configuration, fold, **options)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to set a knob after `initialize`, where it would have no effect."""
        if name in KNOBS and self.__dict__.get("was_initialized", False):
            raise ConfigError(
                f"{name} = {value} is set after initialize(), where it has no effect; set it in __init__ or the config"
            )
        super().__setattr__(name, value)
        if name == "output_folder" and "_output" in vars(self):
            self._output.move_to(self.output_folder)

    # Building

    def initialize(self) -> None:
        """Resolve the settings and build network, optimiser and loss.

        Raises:
            ConfigError: it was called before, or settings contradict each other.
        """
        if self.was_initialized:
            raise ConfigError("the trainer is already initialized; create a new one")
        declarations.require_sound(type(self), Trainer, vars(self))
        with self.stop.wait_at_exit():
            self._build()
        self.was_initialized = True

    def _build(self) -> None:
        self.device = resolve_device(self._device_name)
        own = self._overrides("configure_optimizers")
        decided = defaults.resolve_config(self._with_knobs(), self.configuration, self.device, has_own_optimizer=own)
        self.config, self.notes = decided.config, decided.notes
        self._set_knobs()
        self.clock = defaults.make_clock(self.config, now=self._now)
        self.schedule = build_schedule(self.config, self.clock.num_epochs)
        self.logbook = Logbook()
        self.epoch_outputs: list[dict[str, Tensor]] = []
        self.save_timer = Timer(defaults.save_interval_s(self.config), now=self._now)
        network = self._build_network()
        shapes = (self.num_input_channels, self.configuration.patch_size, self.labels.num_heads)
        with logits_only(network, self._own_logits_of):
            self.scales = network_setup.output_scales(network, *shapes)
        require_same_network(self.output_folder, network)  # after the first pass, which makes lazy layers
        if self.config.pretrained is not None and not self.is_resumed:
            self.notes += (*self._load_pretrained(network, self.config.pretrained),)
        self.network = move_to_device(network, self.device, self.config.precision, fused_norm=self.config.fused_norm)
        self.optimizer, scheduler = results.required_optimizers(self.configure_optimizers)
        self.distributed.prepare(self.network, self.optimizer)
        self.rates = make_rates(self.optimizer, scheduler, self.scheduler_steps, self.config)
        self.notes += (*rate_notes(self.config, self.rates, is_own=own), *untrained_notes(self.optimizer, self.network))
        self.notes += network_setup.object_notes(self.config, type(self), self.network_spec())
        self.weight_ema = ema.attach(self.network, self.optimizer, self.config.ema_weights)
        num_processes = self.distributed.world_size
        self.grad_scaler = defaults.make_grad_scaler(self.config, self.device, num_processes=num_processes)
        self.loss = results.required_loss(self.build_loss)
        self.recipe = training_recipe(self.config, self.configuration, self.labels, LabelPairs.of_plan(self.plans))
        self.callbacks = load_callbacks([*self.callbacks, *self.config.callbacks])
        self._output.prepare(self.config.loggers, now=self._now)
        self.status = self._output.status
        self.divergence_monitor = DivergenceMonitor()

    @staticmethod
    def build_network_architecture(
        plans: Plan,
        configuration: Configuration,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the plan's network; a subclass may return any with logits (B, heads, *S) or a list of them."""
        shapes = (num_input_channels, num_output_channels)
        return network_setup.build_planned_network(configuration, *shapes, enable_deep_supervision)

    @classmethod
    def rebuild_network(
        cls,
        num_input_channels: int,
        num_output_channels: int,
        *,
        patch_size: tuple[int, ...],
        deep_supervision: bool,
        plans: Mapping[str, Any],
        configuration: str,
    ) -> nn.Module:
        """Build the network of a trainer class for prediction; checkpoints refer to this method, see `network_spec`."""
        plan = Plan.from_json(plans)
        return cls.build_network_architecture(
            plan, plan.configuration(configuration), num_input_channels, num_output_channels, deep_supervision
        )

    def network_spec(self) -> ArchitectureSpec:
        """Return the definition that a checkpoint stores, from which prediction builds the network again.

        For a subclass with its own network, that is a reference to its `rebuild_network`, with the plan as argument.

        Raises:
            ConfigError: settings contradict each other.
        """
        if self._overrides("build_network_architecture"):
            spec = network_setup.trainer_spec(self.config, type(self), self.plans, self.configuration_name)
        else:
            spec = network_setup.architecture_spec(self.config, self.configuration)
        return replace(spec, logits_of=method_reference(type(self), "logits_of") if self._own_logits_of else None)

    def _overrides(self, hook: str) -> bool:
        return getattr(type(self), hook) is not getattr(Trainer, hook)

    @property
    def _own_logits_of(self) -> LogitsOf | None:
        return self.logits_of if self._overrides("logits_of") else None

    def _build_network(self, *, extra: int = 0) -> nn.Module:
        """Return the network with the run's initial weights; `extra` adds as many input channels and heads."""
        spec, seed, name = self.network_spec(), self.config.seed, self.trainer_name
        inputs, heads = self.num_input_channels + extra, self.labels.num_heads + extra
        arguments = (self.configuration, inputs, heads, self.enable_deep_supervision)
        if self._overrides("build_network_architecture"):
            build = type(self).build_network_architecture
            return network_setup.build_custom_network(build, self.plans, *arguments, seed=seed, trainer_name=name)
        return network_setup.build_named_network(spec, *arguments, seed=seed, trust=self.trust)

    def _load_pretrained(self, network: nn.Module, source: str) -> list[str]:
        channels = network_setup.input_channel_names(self.dataset_json, self.labels, self.configuration)
        heads, new = tuple(self.labels.names.values()), self.config.pretrained_channels
        larger = self._build_network(extra=1)
        return load_pretrained(Path(source), network, larger, channels=channels, heads=heads, new_channels=new)

    @staticmethod
    def logits_of(output: Any) -> Any:
        """Return the logits in what the network returned: a tensor (B, heads, *S), or a list, highest resolution first.

        A subclass whose network returns more overrides it, as a static method, since prediction calls it too; its
        `build_loss` gets the whole output.
        """
        return output

    def build_loss(self) -> TrainingLoss:
        """Return what computes the loss of a batch: `fn(output, target) -> scalar`, called at every step.

        `output` is what the network returned. `target` is (B, 1, *S) with label values, or (B, regions, *S) of bool,
        and if the network has several outputs a list with one for each resolution, highest first.
        """
        return build_loss(
            self.labels,
            batch_dice=bool(self.config.batch_dice),
            num_outputs=len(self.scales) if len(self.scales) > 1 else None,
            reference=self.config.loss,
            kwargs=self.config.loss_kwargs,
            class_weights=self.config.class_weights,
            reduce=self.distributed.reduce,
            device=self.device,
            logits_of=self._own_logits_of,
        )

    def configure_optimizers(self) -> Optimizer | tuple[Optimizer, results.Scheduler | None]:
        """Return the optimizer of `self.network`, alone or with a scheduler.

        Alone, the rate of each of its groups is multiplied by the factor of the schedule (`config.schedule`). A
        scheduler decides instead: it is stepped after every epoch, or every training step if `scheduler_steps` is
        `step`, and `ReduceLROnPlateau` gets the validation loss. Both are saved and resumed.
        """
        return build_optimizer(self.network, self.config)

    def get_dataloaders(self) -> tuple[BatchLoader, BatchLoader]:
        """Return the loaders of training and online validation batches."""
        training, validation, placement = build_loaders(
            *(self.cases, self.split),
            config=self.config,
            configuration=self.configuration,
            labels=self.labels,
            recipe=self.recipe,
            scales=self.scales if len(self.scales) > 1 else None,
            device=self.device,
            distributed=self.distributed,
        )
        self.notes += (placement.reason,)
        return training, validation

    # The loop

    def run_training(self) -> None:
        """Train to the end from the current epoch and step; do nothing if the training is finished."""
        if self.is_finished:
            self.print_to_log_file(f"fold {self.fold} is already trained ({self.current_epoch} epochs)")
            return
        device = resolve_device(self._device_name)
        with self.stop.watched(), reproducible(device, deterministic=self.config.deterministic):
            self._run_hook("on_train_start")
            while not self.distributed.broadcast(self.clock.is_over(self.current_epoch)):
                self._run_hook("on_epoch_start")
                self._run_hook("on_train_epoch_start")
                self._run_training_steps()
                self._run_hook("on_train_epoch_end", self.epoch_outputs)
                with torch.no_grad(), self.clock.timing("validation"), ema.applied(self.weight_ema):
                    self.distributed.sync_buffers(self.network)
                    self._run_hook("on_validation_epoch_start")
                    self._run_hook("on_validation_epoch_end", self._run_validation_steps())
                self._run_hook("on_epoch_end")
            self._run_hook("on_train_end")
        if self.stop.reason:
            raise Interrupted(f"{self.stop.reason}: the training is finished, not its validation; {HOW_TO_CONTINUE}")

    def _run_hook(self, event: str, *arguments: object) -> None:
        """Call the hook of an event, the trainer's part that it left out, and the callbacks."""
        epoch = self.current_epoch
        self._before_hook(event)
        getattr(self, event)(*arguments)
        if self._is_left_out(event, epoch):
            getattr(Trainer, event)(self)
        self._call_callbacks(event)

    def _before_hook(self, event: str) -> None:
        """Prepare the steps that follow an event; its hook may change that, and may leave out `super()`."""
        if event == "on_epoch_start":
            self.clock.begin_epoch()
        elif event == "on_train_epoch_start":
            self.network.train()
            self._set_learning_rates()
        elif event == "on_validation_epoch_start":
            self.network.eval()

    def _is_left_out(self, event: str, epoch: int) -> bool:
        """Return whether a hook left out what no training can do without, since it does not call `super()`."""
        if event == "on_train_start":
            return not (self.was_initialized and self.clock.is_running)
        return (event == "on_epoch_end" and self.current_epoch == epoch) or (
            event == "on_train_end" and not self.is_finished
        )

    def _call_callbacks(self, event: str) -> None:
        call_callbacks(self.callbacks, event, self, self.trust.packages)

    def _set_learning_rates(self) -> None:
        self.rates.set(self.distributed.broadcast(self.schedule(self.clock.progress(self.current_epoch))))

    def _run_training_steps(self) -> None:
        """Train the remaining steps of the epoch; under a budget the learning rate changes with each."""
        loader, steps, first = self.dataloader_train, self.num_iterations_per_epoch, self.epoch_step
        with prefetched_batches(loader, self.network, self.current_epoch, steps, first_step=first) as batches:
            for batch in batches:
                if self.config.budget_s is not None:
                    self._set_learning_rates()
                seed_step(self.config.seed, self.current_epoch, self.epoch_step, self.distributed.rank)
                self._call_callbacks("on_train_step_start")
                self.epoch_outputs.append(results.required_step(self.train_step(batch), self.train_step, ("loss",)))
                self.rates.end_step()
                self._call_callbacks("on_train_step_end")
                if self._end_step(self.epoch_outputs[-1]["loss"], batch["keys"]):
                    break
            self.logbook.log("loader_wait_s", batches.mean_wait_s, self.current_epoch)

    def _end_step(self, loss: Tensor, cases: Sequence[str]) -> bool:
        """Count a step with its loss, NaN if it was skipped; save what is due; return whether the epoch is over.

        Raises:
            DivergedError: too many steps in a row were skipped.
            Interrupted: a stop was requested; the training is saved.
        """
        self.divergence_monitor.add_step(self.epoch_step, loss, cases)
        self.current_step += 1
        self.epoch_step += 1
        self.clock.end_step()
        if self.distributed.is_first and self.status.is_due:
            self.write_status("training")
        if self.distributed.is_first and self.status.stop_is_requested:
            self.clock.end_training()
        epoch_is_over, reason = self.distributed.broadcast([self.clock.epoch_is_over, self.stop.reason])
        if (self.save_timer.is_due or reason) and self.divergence_monitor.last_step_is_finite:
            self.save_checkpoint("latest")
        if reason:
            self.write_status("interrupted")
            raise Interrupted(f"{reason}: saved after {self.current_step} steps; {HOW_TO_CONTINUE}")
        return bool(epoch_is_over)

    def _run_validation_steps(self) -> list[ValidationStep]:
        steps = defaults.num_validation_steps(self.config, self.epoch_step)
        with prefetched_batches(self.dataloader_val, self.network, self.current_epoch, steps) as batches:
            hook, made = self.validation_step, []
            for batch in batches:
                self._call_callbacks("on_validation_step_start")
                made.append(results.required_step(hook(batch), hook, results.VALIDATION_KEYS))
                self._call_callbacks("on_validation_step_end")
            return made

    def on_train_start(self) -> None:
        """Open the data, write the files that describe the run, start the clock."""
        if not self.was_initialized:
            self.initialize()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.dataloader_train, self.dataloader_val = results.required_loaders(self.get_dataloaders)
        self.output_folder.mkdir(parents=True, exist_ok=True)
        if self.distributed.is_first:
            record = train_record(self.config, self.device, notes=self.notes, identity=self.identity())
            self._output.write_records(self.plans, self.dataset_json, record, vars(self), self.device)
            self._output.open_loggers(self.config.loggers)
            self.plot_network_architecture()
        self._output.rewind_loggers(self.current_epoch, self.logbook.rows)
        begin = "training" if self.current_step == 0 else f"resuming at epoch {self.current_epoch}:"
        what = defaults.describe_run(self.config, self.configuration, len(self.split.train), self.device)
        for line in (f"{begin} {self.configuration_name}, fold {self.fold}, {what}", *self.notes):
            self.print_to_log_file(line)
        self.clock.start()
        if self.current_step == 0:
            self.save_checkpoint("latest")  # from here on a killed run can be resumed, with its settings
        self.save_timer.reset()

    def on_epoch_start(self) -> None:
        """Start the epoch's row of metrics."""
        self.logbook.log("epoch_start_timestamps", time.time(), self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Set training mode and the learning rate."""
        self.network.train()
        self._set_learning_rates()
        epoch_metrics.log_learning_rates(self.logbook, self.rates.now(), self.current_epoch)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights with one batch; `loss` stays on the device and is NaN if the step was skipped."""
        data, target = to_device(batch, self.device, input_format(self.network, self.device, self.configuration.dims))
        parts = StepParts(network=self.network, loss=self.loss, optimizer=self.optimizer, scaler=self.grad_scaler)
        check = FirstBatchCheck(cases=batch["keys"], logits_of=self.logits_of, num_heads=self.labels.num_heads)
        loss = self.execution.run(parts, data, target, None if self._is_first_batch_checked else check)
        self._is_first_batch_checked = True
        return {"loss": loss}

    @cached_property
    def execution(self) -> Execution:
        """How the steps are computed: plain, or compiled."""
        return make_execution(self.config, self.device, self.distributed, log=self.print_to_log_file)

    def on_train_epoch_end(self, steps: list[dict[str, Tensor]]) -> None:
        """Log the mean loss of the epoch's steps, and the number of those that were skipped."""
        losses, cases_of = [step["loss"] for step in steps], self.divergence_monitor.cases_of
        for line in epoch_metrics.log_losses(self.logbook, losses, self.current_epoch, cases_of, self.distributed):
            self.print_to_log_file(line)

    def on_validation_epoch_start(self) -> None:
        """Set evaluation mode."""
        self.network.eval()

    def validation_step(self, batch: Batch) -> ValidationStep:
        """Return loss and counts of one batch, on the device."""
        data, target = to_device(batch, self.device, input_format(self.network, self.device, self.configuration.dims))
        with autocast(self.device, self.config.precision):
            output = self.network(data)
        logits = self.logits_of(output)
        full, truth = (level if isinstance(level, Tensor) else level[0] for level in (logits, target))
        tp, fp, fn = confusion(full, truth, self.labels)
        return {"loss": results.loss_of(self.loss, output, target), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def on_validation_epoch_end(self, steps: list[ValidationStep]) -> None:
        """Log validation loss and pseudo Dice."""
        epoch_metrics.log_pseudo_dice(self.logbook, pseudo_dice(steps, self.distributed), self.current_epoch)

    def on_epoch_end(self) -> None:
        """Log the epoch, save checkpoints that are due, go to the next epoch."""
        epoch, labels = self.current_epoch, self.labels
        self.rates.end_epoch(self.logbook.value("val_losses"))
        self.logbook.log("elapsed_s", self.clock.elapsed_s, epoch)
        self.logbook.log("epoch_end_timestamps", time.time(), epoch)
        classes = {key: labels.class_name(key) for key in labels.evaluation_classes()}
        self._output.log_epoch(
            *(self.logbook.rows, epoch, classes, self.clock),
            forced=self.oversample_foreground_percent,
            load_locations=lambda: [self.cases.load(name).class_locations for name in self.split.train],
            log=self.print_to_log_file,
        )
        self.current_epoch += 1
        self.epoch_outputs, self.epoch_step = [], 0
        self.divergence_monitor.begin_epoch()
        dice = self.logbook.value("ema_fg_dice")
        if isinstance(dice, float) and (self.best_ema is None or dice > self.best_ema):
            self.best_ema = dice
            self.save_checkpoint("best")
        is_due = self.current_epoch % self.save_every == 0 or self.save_timer.is_due
        if is_due and not self.clock.is_over(self.current_epoch):
            self.save_checkpoint("latest")
        self._output.plot_progress_if_due(self.logbook)

    def on_train_end(self) -> None:
        """Replace the latest checkpoint by the final one."""
        self.clock.stop()
        self.is_finished = True
        if self.weight_ema is not None:
            self.weight_ema.copy_to_network()
        self.save_checkpoint("final")
        if self.distributed.is_first and not self.disable_checkpointing:
            checkpoints.delete(self.output_folder, "latest")
        self._output.plot_progress(self.logbook)
        self._output.close_loggers()
        self.write_status("finished")
        self.print_to_log_file(f"training done: {self.current_step} steps in {self.clock.elapsed_s:.1f} s")

    def perform_actual_validation(self) -> Scores:
        """Predict and score the validation cases in full; `validation/summary.json` holds the scores."""
        if not self.was_initialized:
            raise ConfigError(f"fold {self.fold} is not trained yet; call run_training() or load_checkpoint() first")
        self.write_status("validating")
        self.distributed.sync_buffers(self.network)
        self.set_deep_supervision_enabled(False)
        try:
            task = (self.plans, self.configuration, self.labels)
            how: Any = {"recipe": self.recipe, "precision": self.config.precision, "device": self.device}
            predictor = final_validation.build_predictor(self.network, *task, **how)
            cases = (self.cases, self.split.val, self.references, self.output_folder)
            how = {"file_ending": self.dataset_json.file_ending, "probabilities": self.config.save_probabilities}
            how |= {"log": self.print_to_log_file, "distributed": self.distributed, "checkpoint": self.validated}
            with self.stop.wait_at_exit(), logits_only(self.network, self._own_logits_of):
                return final_validation.validate(predictor, *cases, **how)
        finally:
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
            self.write_status("finished")

    # Checkpoints

    def save_checkpoint(self, kind: checkpoints.Kind) -> None:
        """Write a checkpoint; only `latest` can be resumed and has the optimiser's state."""
        if self.disable_checkpointing or not self.distributed.is_first:
            return
        tensors, values = optimizer_tensors(self.optimizer, self.network)
        state = self._checkpoint_state(values)
        averages = {} if self.weight_ema is None else self.weight_ema.tensors()
        resume_tensors = {**tensors, **averages} if kind == "latest" else None
        with self.clock.timing("save"), ema.applied(None if kind == "latest" else self.weight_ema):
            checkpoints.save(self.output_folder, kind, state, self.network.state_dict(), optimizer=resume_tensors)
        if resume_tensors is not None:
            self.save_timer.reset()

    def _checkpoint_state(self, optimizer_values: Mapping[str, Any]) -> checkpoints.CheckpointState:
        return checkpoints.CheckpointState(
            **{key: value for key, value in self.identity().items() if key in resume.IDENTITY_KEYS},
            network=self.network_spec().to_json(),
            epoch=self.current_epoch,
            epoch_step=self.epoch_step,
            epoch_losses=checkpoints.losses_to_json([step["loss"] for step in self.epoch_outputs]),
            step=self.current_step,
            elapsed_s=self.clock.elapsed_s,
            mirror_axes=self.recipe.mirror_axes,
            swap_sides=self.recipe.swaps_sides,
            logging=self.logbook.rows,
            best_ema=self.best_ema,
            config=self.config.model_dump(mode="json"),
            config_set=sorted(self.config.model_fields_set),
            setup_hash=self.plans.setup_hash(self.configuration_name),
            optimizer_values=dict(optimizer_values),
            learning_rates=self.rates.state(),
            scaler=None if self.grad_scaler is None else self.grad_scaler.state_dict(),
        )

    def load_checkpoint(self, path: Path) -> None:
        """Continue from a checkpoint; settings that the user did not set are taken from it.

        Raises:
            ModelError: it is damaged or belongs to another training.
            ConfigError: a setting was changed that may not change during a training.
        """
        checkpoint = checkpoints.load(path)
        state = checkpoint.state
        resume.require_same_training(state, self.identity(), path)
        if not self.was_initialized:
            self.config = resume.resumed_config(self._with_knobs(), state, path, self.trust, self._class_values)
            self.trust = self.trust.with_references(*(reference for _, reference in self.config.references()))
            self._set_knobs()
            self.is_resumed = True
            self.initialize()
        parts = (self.network, self.optimizer, self.weight_ema, self.grad_scaler, self.rates)
        resume.restore_tensors(checkpoint, path, *parts)
        self.current_epoch, self.current_step, self.epoch_step = state.epoch, state.step, state.epoch_step
        self.epoch_outputs = [{"loss": loss.to(self.device)} for loss in state.losses]
        self.logbook = Logbook(state.logging)
        self.best_ema = state.best_ema
        self.clock.before_s = state.elapsed_s
        self.is_finished = path == checkpoints.checkpoint_file(path.parent, "final")

    # Settings, identity and output

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch between several outputs and one, if the network has such a switch."""
        set_deep_supervision(self.network, enabled)

    @property
    def num_input_channels(self) -> int:
        """Channels of the network's input; the second stage of a cascade has one more for each foreground label."""
        return len(network_setup.input_channel_names(self.dataset_json, self.labels, self.configuration))

    def print_to_log_file(self, *parts: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write a line to `training.log` and, by default, to the log of the program."""
        self._output.print_line(*parts, console=also_print_to_console, timestamp=add_timestamp)

    def identity(self) -> dict[str, Any]:
        """Return trainer, dataset, plan, configuration, fold and number of cases, for records."""
        task = (self.trainer_name, self.plans, self.configuration_name, self.dataset_json)
        return resume.training_identity(*task, fold=self.fold, split=self.split)

    @property
    def trainer_name(self) -> str:
        """Name of the class, which is part of the model folder's name."""
        return type(self).__name__

    def _with_knobs(self) -> TrainConfig:
        """Return the settings with the knobs that were set as attributes; they count as set by the user."""
        knobs = {name: vars(self)[name] for name in KNOBS}
        return changed(self.config, **{key: knob for key, knob in knobs.items() if knob != getattr(self.config, key)})

    def _set_knobs(self) -> None:
        """Set every knob to its value in the settings."""
        for name in KNOBS:
            setattr(self, name, getattr(self.config, name))

    def plot_network_architecture(self) -> None:
        """Draw the network into `network_architecture.png`, if it can be traced."""
        shape = (self.num_input_channels, self.configuration.patch_size)
        self._output.plot_network(self.network, *shape, log=self.print_to_log_file)

    def write_status(self, state: State) -> None:
        """Write `status.json`."""
        counts = {"epoch": self.current_epoch, "epoch_step": self.epoch_step, "step": self.current_step}
        self._output.write_status(state, self.clock, self.logbook, self.num_iterations_per_epoch, **counts)

    @property
    def loggers(self) -> list[MetricLogger]:
        """What receives the metrics of each epoch; `metrics.jsonl` is the first."""
        return self._output.loggers
