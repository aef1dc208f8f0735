"""Train with the class of a trainer file: our trainer's life cycle, which calls the file's hooks.

Where the file does not override a hook, our own runs unchanged. Where it replaces one, what our loop needs from it
(counts, checkpoints, records) is completed afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from segwright.compat.nnunet import code_copy
from segwright.compat.nnunet.hooks import results
from segwright.compat.nnunet.hooks.base import LOOP_HOOKS, RunHost
from segwright.compat.nnunet.hooks.checkpoint_files import write_torch_file
from segwright.compat.nnunet.hooks.data import ROTATION_HOOK
from segwright.compat.nnunet.hooks.hook_call import hook_call
from segwright.compat.nnunet.hooks.log import RunLogbook
from segwright.compat.nnunet.hooks.randomness import seed_arrays, seeded
from segwright.compat.nnunet.hooks.rules import require_settings_with_effect, with_variant_settings
from segwright.compat.nnunet.loading import LoadedTrainer
from segwright.compat.nnunet.network_hook import NetworkArguments, call_hook
from segwright.compat.nnunet.rebuild import NETWORK_REFERENCE, network_kwargs
from segwright.compat.nnunet.segmentation import segmentation_of
from segwright.compat.nnunet.trainer import accepts, make_user
from segwright.core.device import resolve_device
from segwright.core.errors import ConfigError, SegwrightError
from segwright.core.interrupt import HOW_TO_CONTINUE, Interrupted
from segwright.data.description import DatasetDescription
from segwright.data.laterality import LabelPairs
from segwright.data.plan import Plan
from segwright.evaluation.scores import Scores
from segwright.networks.build import ArchitectureSpec
from segwright.networks.logits import LogitsOf
from segwright.training import defaults, network_setup
from segwright.training.checkpointing import checkpoints
from segwright.training.checkpointing.determinism import reproducible, seed_step
from segwright.training.clock import Timer
from segwright.training.config import KNOBS, TrainConfig, changed
from segwright.training.hooks.callbacks import load_callbacks
from segwright.training.loading.batches import Batch, BatchLoader
from segwright.training.loading.loaders import training_recipe
from segwright.training.monitoring.divergence import DivergenceMonitor
from segwright.training.optim.schedule import build_schedule
from segwright.training.trainer import Trainer
from segwright.training.validation.online import ValidationStep
from segwright.workspace import SUMMARY_JSON

LENGTHS: Final = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
"""Settings that the loop reads in every epoch."""

CONTINUE: Final = "continue_training"
"""Key of the plans that nnU-Net adds since 2.7."""


class Shared:
    """An attribute of the training that is kept on the object of the trainer file, which reads and sets it too."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, run: NnunetRun | None, owner: type) -> Any:
        return self if run is None else getattr(run.user, self._name)

    def __set__(self, run: NnunetRun, value: Any) -> None:
        setattr(run.user, self._name, value)


class NnunetRun(Trainer):
    """Trains with the class of a trainer file.

    Args:
        plans: as of `Trainer`, like the four that follow.
        configuration: its name.
        fold: number or `all`.
        dataset_json: the description.
        device: of the network.
        loaded: the trainer file.
        preprocessed_folder: of the dataset, with its splits; None where there is none.
        **options: as of `Trainer`.
    """

    network = Shared()
    optimizer = Shared()
    loss = Shared()
    grad_scaler = Shared()
    current_epoch = Shared()
    was_initialized = Shared()
    initial_lr = Shared()
    weight_decay = Shared()
    oversample_foreground_percent = Shared()
    num_iterations_per_epoch = Shared()
    num_val_iterations_per_epoch = Shared()
    num_epochs = Shared()
    batch_size = Shared()
    enable_deep_supervision = Shared()
    save_every = Shared()
    disable_checkpointing = Shared()

    def __init__(
        self,
        plans: Plan | Mapping[str, Any],
        configuration: str,
        fold: int | Literal["all"],
        dataset_json: DatasetDescription | Mapping[str, Any],
        device: str | torch.device = "auto",
        *,
        loaded: LoadedTrainer,
        preprocessed_folder: Path | None = None,
        **options: Any,
    ) -> None:
        self.loaded = loaded
        self.host = RunHost(self, loaded.cls, preprocessed_folder)
        self.user = make_user(loaded.cls, self.host)
        self._raw_steps: list[dict[str, Any]] = []
        super().__init__(plans, configuration, fold, dataset_json, device, **options)
        self.device = resolve_device(self._device_name)
        require_settings_with_effect(self.config, loaded.cls)
        self._explicit = frozenset(self.config.model_fields_set)
        self.config = with_variant_settings(self.config, loaded.cls, self.configuration.dims)
        self._construct_user()
        self.host.connect(self.user)
        if self._builds_custom_network:
            self.logits_of = partial(segmentation_of, self.labels.num_heads)  # type: ignore[method-assign]
        self._take_changed_plan()
        if self.host.overrides("do_split"):
            with self._user_code("do_split"), seeded(self.config.seed, "split"):
                self.host.data.apply_split()

    def _construct_user(self) -> None:
        """Call the file's `__init__`; settings that were given explicitly replace what it sets."""
        arguments = {
            "plans": {**self.plans.to_json(), CONTINUE: False},
            "configuration": self.configuration_name,
            "fold": self.fold,
            "dataset_json": copy.deepcopy(self.dataset_json.raw()),
            "device": self.device,
        }
        if accepts(self.loaded.cls, "unpack_dataset"):
            arguments["unpack_dataset"] = True
        self.user = make_user(self.loaded.cls, self.host)  # without the settings that `Trainer.__init__` set
        with self._user_code("__init__"), seeded(self.config.seed, "trainer"):
            self.user.__init__(**arguments)  # type: ignore[misc]
            if self.host.overrides("_set_batch_size_and_oversample"):
                self.user._set_batch_size_and_oversample()
        self._keep_explicit(KNOBS)

    def _keep_explicit(self, names: Sequence[str]) -> None:
        """Set attributes that were given explicitly to these values again, where the file's code changed them."""
        for name in names:
            given = getattr(self.config, name)
            if name in self._explicit and given is not None and getattr(self.user, name) != given:
                self.notes += (f"{name} = {given} as set, instead of {getattr(self.user, name)} of the trainer file",)
                setattr(self.user, name, given)

    def _take_changed_plan(self) -> None:
        """Use the plan as the file's `__init__` left it, e.g. with another patch size."""
        name = self.configuration_name
        document = {key: value for key, value in self.user.plans_manager.plans.items() if key != CONTINUE}
        resolved = dict(self.user.configuration_manager.configuration)
        before = Plan.from_json(document).configuration(name).model_dump(mode="json", by_alias=True)
        where = f"the plan as {self.trainer_name} changes it"
        changed_plan = Plan.from_json({**document, "configurations": {**document["configurations"], name: resolved}})
        after = changed_plan.configuration(name).model_dump(mode="json", by_alias=True)
        if after == before and document == self.plans.to_json():
            return
        self.plans = changed_plan if after != before else Plan.from_json(document, where=where)
        self.configuration = self.plans.configuration(name)
        self.notes += (f"{where}: patch {self.configuration.patch_size}, batch size {self.configuration.batch_size}",)

    # Building

    def _build(self) -> None:
        self._prepare()
        with self._user_code("initialize"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.user.initialize()
            self._keep_explicit(LENGTHS)
            self.host.model.complete()
            self._apply_compile_hook()

    def _apply_compile_hook(self) -> None:
        """Compile nothing if the file says so; say so if it wants what is not done."""
        compiles = self.user._do_i_compile()
        if self.host.overrides("_do_i_compile") and not compiles and self.config.compile == "auto":
            self.config = changed(self.config, compile="off")
        if compiles and (self.execution.is_decided or self.host.overrides("train_step")):
            self.notes += ("the network is not compiled, though _do_i_compile returns True",)

    def _prepare(self) -> None:
        """Resolve the settings and make what does not depend on the network."""
        knobs = self._with_knobs()
        decided = defaults.resolve_config(knobs, self.configuration, self.device, has_own_optimizer=True)
        self.config = decided.config
        self.notes += decided.notes
        self._set_knobs()
        if self.config.budget_s is not None and self.host.overrides("configure_optimizers", "run_training"):
            raise ConfigError(
                f"budget: {self.trainer_name} decides the learning rate by epochs; give their number with --epochs"
            )
        self.clock = defaults.make_clock(self.config, now=self._now)
        self.schedule = build_schedule(self.config, self.clock.num_epochs)
        self.logbook = RunLogbook(self.user)
        self.epoch_outputs: list[dict[str, Tensor]] = []
        self.save_timer = Timer(defaults.save_interval_s(self.config), now=self._now)
        self.recipe = training_recipe(self.config, self.configuration, self.labels, LabelPairs.of_plan(self.plans))
        self.callbacks = load_callbacks([*self.callbacks, *self.config.callbacks])
        self._output.prepare(self.config.loggers, now=self._now)
        self.status = self._output.status
        self.divergence_monitor = DivergenceMonitor()
        with self._user_code(ROTATION_HOOK):
            self.host.data.apply_augmentation()
        self._is_first_batch_checked = self.host.overrides("_build_loss", "initialize")

    def _with_knobs(self) -> TrainConfig:
        """Return the settings with the knobs of the file; the plan's batch size counts as not set."""
        given = self._explicit & {*LENGTHS}  # a file may set others in `initialize`
        knobs = {name: getattr(self.user, name) for name in KNOBS if name not in given}
        if self.config.batch_size is None and knobs["batch_size"] == self.configuration.batch_size:
            knobs["batch_size"] = None
        knobs["oversample_by_chance"] = bool(getattr(self.user, "probabilistic_oversampling", False))
        return changed(self.config, **{key: knob for key, knob in knobs.items() if knob != getattr(self.config, key)})

    def _build_network(self, *, extra: int = 0) -> nn.Module:
        """Return the network of the file's hook, or the plan's; `extra` adds input channels and heads."""
        if not self._builds_custom_network:
            return super()._build_network(extra=extra)
        network_setup.require_no_network_settings(self.config, self.trainer_name)
        arguments = NetworkArguments(
            plans_manager=self.user.plans_manager,
            configuration_manager=self.user.configuration_manager,
            dataset_json=self.user.dataset_json,
            num_input_channels=self.num_input_channels + extra,
            num_output_channels=self.labels.num_heads + extra,
            enable_deep_supervision=self.enable_deep_supervision,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return call_hook(self.user.build_network_architecture, arguments, where=self.trainer_name)

    @property
    def _own_logits_of(self) -> LogitsOf | None:
        return self.logits_of if self._builds_custom_network else None

    @property
    def _builds_custom_network(self) -> bool:
        return self.host.overrides("build_network_architecture", "initialize")

    def network_spec(self) -> ArchitectureSpec:
        """Return the plan's network, or for a file with its own one a reference to its copy in the model folder."""
        if not self._builds_custom_network:
            return network_setup.architecture_spec(self.config, self.configuration)
        kwargs = network_kwargs(self.loaded, self.plans, self.configuration_name, self.dataset_json.raw())
        return ArchitectureSpec(reference=NETWORK_REFERENCE, kwargs=kwargs)

    def get_dataloaders(self) -> tuple[BatchLoader, BatchLoader]:
        """Return the loaders of the file's data hooks, and set its iterators."""
        self.config = self._with_knobs()  # a file may set them in `initialize`
        self.host.data.step_hook = self._count_step if self._has_own_loop else None
        with self._user_code("get_dataloaders"):
            pair: tuple[BatchLoader, BatchLoader] = self.host.data.loaders()
            return pair

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Call the file's hook."""
        self.user.set_deep_supervision_enabled(enabled)

    # The loop

    @property
    def _has_own_loop(self) -> bool:
        return self.host.overrides("run_training")

    def run_training(self) -> None:
        """Train with our loop, or with that of the file."""
        if self.is_finished:
            super().run_training()
            return
        with self.loaded.modules:
            if not self._has_own_loop:
                super().run_training()
                return
            if not self.was_initialized:
                self.initialize()
            for event in LOOP_HOOKS:  # so that what our loop needs happens in the file's loop too
                vars(self.user)[event] = partial(self._run_hook, event)
            with self.stop.watched(), reproducible(self.device, deterministic=self.config.deterministic):
                with self._user_code("run_training"):
                    self.user.run_training()
                if not self.is_finished:
                    self._run_hook("on_train_end")

    def _before_hook(self, event: str) -> None:
        """Leave network and rates to the file's hooks, which replace those of nnU-Net."""
        if event == "on_epoch_start":
            super()._before_hook(event)

    def _count_step(self, batch: Batch) -> None:
        """Count a step of the file's own loop, when it takes the batch.

        Raises:
            Interrupted: a stop was requested; the last finished epoch is saved.
        """
        if self.stop.reason:
            self.write_status("interrupted")
            raise Interrupted(f"{self.stop.reason}: saved after {self.current_epoch} epochs; {HOW_TO_CONTINUE}")
        step = (self.current_epoch, self.epoch_step)
        seed_arrays(self.config.seed, "own loop", *step)  # `run_training` restores them
        seed_step(self.config.seed, *step, self.distributed.rank)
        self.current_step += 1
        self.epoch_step += 1
        if self.status.is_due:
            self.write_status("training")

    def _dispatch(self, hook: str, ours: Callable[[], None], *arguments: Any) -> None:
        """Call the file's hook, or ours; if the file's does not call the base's, complete it with ours."""
        if not self.host.overrides(hook):
            ours()
            return
        self.host.reached.discard(hook)
        epoch = self.current_epoch
        with self._user_code(hook):
            getattr(type(self.user), hook)(self.user, *arguments)
        book = self.logbook
        assert isinstance(book, RunLogbook), "made by _prepare"
        book.pull(epoch)
        if hook in self.host.reached or hook not in _COMPLETED:
            return
        if hook == "on_epoch_end":
            self.current_epoch = epoch  # ours raises it
        with book.keeping(epoch):
            ours()

    def on_train_start(self) -> None:
        """Start the training; copy the trainer file into the model folder."""
        if not self.was_initialized:
            self.initialize()
        if self.distributed.is_first:
            code_copy.copy_code(self.loaded, self.output_folder.parent)
        self._dispatch("on_train_start", super().on_train_start)
        self._keep_explicit(LENGTHS)
        self._apply_changed_settings()
        with self._user_code("print_plans"):
            self.user.print_plans()
            self.user._save_debug_information()

    def on_epoch_start(self) -> None:
        """Start an epoch."""
        self._raw_steps = []
        self._apply_changed_settings()
        self._dispatch("on_epoch_start", super().on_epoch_start)

    def _apply_changed_settings(self) -> None:
        """Use what hooks of the file have changed; name what is changed too late."""
        for line in self.host.settings.late_lines():
            self.print_to_log_file(line)
        self.clock.num_epochs = None if self.clock.num_epochs is None else self.num_epochs
        if self.config.num_val_iterations_per_epoch != self.num_val_iterations_per_epoch:
            self.config = changed(self.config, num_val_iterations_per_epoch=self.num_val_iterations_per_epoch)

    def on_train_epoch_start(self) -> None:
        """Start the training steps of an epoch."""
        self._dispatch("on_train_epoch_start", self.host.on_train_epoch_start)
        self.host.log_rate()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the file's step, or of ours."""
        if not self.host.overrides("train_step"):
            return super().train_step(batch)
        with self._user_code("train_step"):
            step: Any = self.user.train_step(dict(batch))
        loss = results.loss_of(step, self.user.train_step)
        self._raw_steps.append(dict(step))
        return {"loss": loss}

    def on_train_epoch_end(self, steps: list[dict[str, Tensor]]) -> None:
        """Log the training loss."""
        if self._has_own_loop:
            tensors = [{"loss": results.loss_of(step, self.user.train_step)} for step in steps]
            self._dispatch("on_train_epoch_end", partial(super().on_train_epoch_end, tensors), steps)
            return
        raw: Sequence[dict[str, Any]] = []
        if self.host.overrides("on_train_epoch_end"):
            restored = [results.to_numpy(step) for step in steps[: len(steps) - len(self._raw_steps)]]
            raw = results.with_all_keys([*restored, *self._raw_steps])
        self._dispatch("on_train_epoch_end", partial(super().on_train_epoch_end, steps), raw)

    def on_validation_epoch_start(self) -> None:
        """Start the validation steps of an epoch."""
        self._raw_steps = []
        self._dispatch("on_validation_epoch_start", super().on_validation_epoch_start)

    def validation_step(self, batch: Batch) -> ValidationStep:
        """Return loss and counts of the file's step, or of ours."""
        if not self.host.overrides("validation_step"):
            return super().validation_step(batch)
        with self._user_code("validation_step"):
            step: Any = self.user.validation_step(dict(batch))
        loss = results.loss_of(step, self.user.validation_step)
        self._raw_steps.append(dict(step))
        tp, fp, fn = results.counts_of(step) or [torch.zeros(1, dtype=torch.int64)] * 3
        return {"loss": loss, "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def on_validation_epoch_end(self, steps: list[ValidationStep]) -> None:
        """Log the validation loss and the pseudo Dice."""
        hook = "on_validation_epoch_end"
        if self._has_own_loop or self.host.overrides("validation_step"):
            raw: list[Any] = [*steps] if self._has_own_loop else self._raw_steps
            self._dispatch(hook, partial(self.host.on_validation_epoch_end, raw), raw)
        else:
            raw = [results.to_numpy(step) for step in steps] if self.host.overrides(hook) else []
            self._dispatch(hook, partial(super().on_validation_epoch_end, steps), raw)

    def on_epoch_end(self) -> None:
        """End the epoch; with a loop of the file, save it, since its steps cannot be resumed one by one."""
        self._dispatch("on_epoch_end", self.host.on_epoch_end)
        self._apply_changed_settings()
        if self._has_own_loop:
            self.save_checkpoint("latest")

    def on_train_end(self) -> None:
        """End the training."""
        self._dispatch("on_train_end", super().on_train_end)
        for iterator in (self.user.dataloader_train, self.user.dataloader_val):
            if hasattr(iterator, "close"):
                iterator.close()

    def perform_actual_validation(self) -> Scores:
        """Predict and score the validation cases, with the file's own code if it has some."""
        if not self.host.overrides("perform_actual_validation"):
            with self.loaded.modules:
                return self.host.data.validate()
        self.host.reached.discard("perform_actual_validation")
        self.output_folder.mkdir(parents=True, exist_ok=True)
        with self._user_code("perform_actual_validation"):
            self.user.perform_actual_validation()
        summary = self.output_folder / "validation" / SUMMARY_JSON
        try:
            return Scores.load(summary)
        except SegwrightError:
            with self.loaded.modules:
                return self.host.data.validate()

    # Checkpoints and output

    def save_checkpoint(self, kind: checkpoints.Kind) -> None:
        """Write our checkpoint, and with the file's own code its files too."""
        super().save_checkpoint(kind)
        if self.disable_checkpointing or not self.host.overrides("save_checkpoint", "load_checkpoint"):
            return
        path = self.output_folder / f"checkpoint_{kind}.pth"
        before = path.stat().st_mtime_ns if path.is_file() else None
        epoch, self.host.saving = self.current_epoch, True
        self.current_epoch = epoch - (1 if self.epoch_step == 0 and epoch > 0 else 0)  # nnU-Net saves before it raises
        try:
            with self._user_code("save_checkpoint"):
                self.user.save_checkpoint(str(path))
            if self.host.overrides("load_checkpoint") and (not path.is_file() or path.stat().st_mtime_ns == before):
                write_torch_file(path, self.user)
        finally:
            self.current_epoch, self.host.saving = epoch, False

    def _checkpoint_state(self, optimizer_values: Mapping[str, Any]) -> checkpoints.CheckpointState:
        self.host.model.require_current_rates()
        state = super()._checkpoint_state(optimizer_values)
        return state.model_copy(update={"mirror_axes": self.host.data.mirror_axes()})

    def load_checkpoint(self, path: Path) -> None:
        """Continue from our checkpoint; what the file's own code saved beside it is loaded by that code."""
        self._explicit |= {*LENGTHS}  # the checkpoint's count, not the file's
        super().load_checkpoint(path)
        own = path.with_suffix(".pth")
        if self.host.overrides("load_checkpoint") and own.is_file():
            self.host.loading = True
            try:
                with self._user_code("load_checkpoint"):
                    self.user.load_checkpoint(str(own))
            finally:
                self.host.loading = False
            super().load_checkpoint(path)  # our state counts; the file's code may have set the epoch
        book = RunLogbook(self.user, self.logbook.rows)
        book.replay()
        self.logbook = book
        self.user._best_ema = self.best_ema

    def print_to_log_file(self, *parts: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write a line to the log, with the file's hook if it has one."""
        self.user.print_to_log_file(*parts, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    def plot_network_architecture(self) -> None:
        """Draw the network, with the file's hook if it has one."""
        with self._user_code("plot_network_architecture"):
            self.user.plot_network_architecture()

    def identity(self) -> dict[str, Any]:
        """Return what identifies the training in its records, with the file's code."""
        return {**super().identity(), code_copy.CODE: code_copy.code_record(self.loaded).model_dump()}

    @property
    def trainer_name(self) -> str:
        """Name of the file's class."""
        return self.loaded.class_name

    def _user_code(self, hook: str) -> AbstractContextManager[None]:
        step = (int(vars(self.user).get("current_epoch", 0)), self.epoch_step)
        return hook_call(self.loaded, hook, seed=self.config.seed, step=step)


_COMPLETED: Final = (
    "on_train_start",
    "on_epoch_start",
    "on_train_epoch_end",
    "on_epoch_end",
    "on_train_end",
)
"""Hooks whose part in our loop is done even if the file's replaces it."""
