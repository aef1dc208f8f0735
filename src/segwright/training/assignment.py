"""What a trainer is given: plan, data, settings, folders; with the knobs that a subclass may set as attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch

from segwright.core.errors import ConfigError
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.core.files.atomic_io import content_hash
from segwright.core.interrupt import StopRequest
from segwright.data.dataset import DatasetDescription
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.data.splits import Split
from segwright.training.config import TrainConfig, changed
from segwright.training.distributed.context import ALONE, Ranks
from segwright.training.monitoring.logbook import write_line
from segwright.training.monitoring.loggers import ForgivingSink, JsonlSink, MetricSink
from segwright.training.validation.final import ValidationSource

KNOBS: Final = (
    "initial_lr",
    "weight_decay",
    "oversample_foreground_percent",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "num_epochs",
    "batch_size",
    "enable_deep_supervision",
    "save_every",
    "disable_checkpointing",
)
"""Settings that are attributes too, as in nnU-Net: a subclass may set them until `initialize`."""

SEGWRIGHT: Final = "segwright"
"""Key of a plan's rationale and versions, which do not change a training."""

LOG_FILE: Final = "training.log"
METRICS_FILE: Final = "metrics.jsonl"


class Assignment:
    """The part of a trainer that only holds values. Nothing happens on construction: no file, no device, no thread.

    Args:
        plans: a `Plan` or the plain document.
        configuration: its name in the plan.
        fold: for the record; `split` says which cases it means.
        dataset_json: the description or the plain document.
        device: auto, cpu, cuda, cuda:1, mps or a torch device.
        cases: opens preprocessed cases by identifier.
        split: cases to train on and to validate with.
        output_folder: of the fold; its parent is the model folder.
        config: the settings; nnU-Net's where none are given.
        references: folder of the original labels, or the file of each case; for the final validation.
        sinks: more places for metrics than `metrics.jsonl`, beside those of the settings.
        callbacks: objects or functions to be called at events (`training.callbacks`), beside those of the settings.
        stop: asks the training to save and end after its step.
        ranks: the processes that share this training; the first one alone writes and logs.
        trust_code: whether a checkpoint that is resumed may name code that the settings do not name.
    """

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

    def __init__(
        self,
        plans: Plan | Mapping[str, Any],
        configuration: str,
        fold: int | Literal["all"],
        dataset_json: DatasetDescription | Mapping[str, Any],
        device: str | torch.device = "auto",
        *,
        cases: ValidationSource,
        split: Split,
        output_folder: Path,
        config: TrainConfig | None = None,
        references: Mapping[str, Path] | Path | None = None,
        sinks: Sequence[MetricSink] = (),
        callbacks: Sequence[object] = (),
        stop: StopRequest | None = None,
        ranks: Ranks = ALONE,
        trust_code: TrustCode = False,
    ) -> None:
        self.was_initialized = False
        self.plans = plans if isinstance(plans, Plan) else Plan.from_json(plans)
        self.configuration_name = configuration
        self.configuration: Configuration = self.plans.configuration(configuration)
        self.fold = fold
        self.dataset_json = (
            dataset_json
            if isinstance(dataset_json, DatasetDescription)
            else DatasetDescription.model_validate(dict(dataset_json))
        )
        self.labels = Labels.from_description(self.dataset_json)
        self.config = config or TrainConfig()
        self.trust = CodeTrust.of(trust_code).with_references(*(reference for _, reference in self.config.references()))
        self.cases = cases
        self.split = split
        self.output_folder = output_folder
        self.references = references
        self.ranks = ranks
        self.sinks: list[MetricSink] = []
        if ranks.is_first:
            given = (ForgivingSink(sink, type(sink).__name__) for sink in sinks)
            self.sinks = [JsonlSink(output_folder / METRICS_FILE), *given]
        self.callbacks = [*callbacks]
        self.stop = stop or StopRequest()
        self.notes: tuple[str, ...] = ()
        self._device_name = str(device)
        self._show_knobs()

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse knobs after `initialize`: they would have no effect."""
        if name in KNOBS and self.__dict__.get("was_initialized", False):
            raise ConfigError(
                f"{name} = {value} comes after initialize() and would have no effect; set it in __init__ or the config"
            )
        super().__setattr__(name, value)

    @property
    def num_input_channels(self) -> int:
        """Channels of the network's input; in a second stage one more for each foreground label."""
        previous = self.labels.foreground_labels if self.configuration.previous_stage is not None else ()
        return len(self.dataset_json.channel_names) + len(previous)

    @property
    def class_names(self) -> list[str]:
        """Names of the foreground classes or regions, in the order of the pseudo Dice."""
        return [self.labels.class_name(key) for key in self.labels.evaluation_classes()]

    @property
    def plans_hash(self) -> str:
        """Tells what this plan says about the configuration from what others say; other configurations don't count."""
        document = {key: value for key, value in self.plans.to_json().items() if key != SEGWRIGHT}
        resolved = self.configuration.model_dump(mode="json", by_alias=True)
        return content_hash({**document, "configurations": {self.configuration_name: resolved}})

    @property
    def dataset_hash(self) -> str:
        """Tells this set of channels and labels from others; the rest of dataset.json doesn't count."""
        return content_hash(self.dataset_json.meaning())

    def print_to_log_file(self, *parts: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write a line to `training.log` and, unless told otherwise, to the log of the program."""
        if self.ranks.is_first:
            write_line(self.output_folder / LOG_FILE, *parts, console=also_print_to_console, timestamp=add_timestamp)

    def identity(self) -> dict[str, Any]:
        """Return what is trained, for the record."""
        return {
            "trainer": self.trainer_name,
            "dataset": self.plans.dataset_name,
            "plans": self.plans.plans_name,
            "plans_hash": self.plans_hash,
            "dataset_hash": self.dataset_hash,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "cases": {"train": len(self.split.train), "val": len(self.split.val)},
        }

    @property
    def trainer_name(self) -> str:
        """The class's name, as in the model folder's."""
        return type(self).__name__

    def reference_files(self) -> dict[str, Path]:
        """Return the original label file of each validation case.

        Raises:
            ConfigError: the trainer was not told where they are.
        """
        if self.references is None:
            raise ConfigError("the final validation needs the original labels; give the trainer references=")
        if isinstance(self.references, Path):
            ending = self.dataset_json.file_ending
            return {name: self.references / f"{name}{ending}" for name in self.split.val}
        return dict(self.references)

    def _with_knobs(self) -> TrainConfig:
        """Return the settings with the knobs that a subclass set; they count as set by the user."""
        knobs = {name: vars(self)[name] for name in KNOBS}
        before = self.config.model_dump()
        return changed(self.config, **{name: value for name, value in knobs.items() if value != before[name]})

    def _show_knobs(self) -> None:
        """Set every knob to its value in the settings."""
        values = self.config.model_dump()
        for name in KNOBS:
            setattr(self, name, values[name])
