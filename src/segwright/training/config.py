"""All settings of a training as one frozen value, with nnU-Net's names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, field_validator, model_validator

from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.extensions.given import reference_to
from segwright.core.extensions.registry import is_reference
from segwright.core.files.json_documents import describe_validation

WARMUP_PREFIX = "warmup+"
"""Prefix that puts a warm-up before the schedule, e.g. `warmup+poly`."""

CHANGEABLE: Final = (
    "num_epochs",
    "budget_s",
    "num_val_iterations_per_epoch",
    "save_every",
    "save_interval_s",
    "save_probabilities",
    "disable_checkpointing",
    "callbacks",
    "loggers",
    "cache",
    "cache_gib",
    "compile",
    "fused_norm",
)
"""Settings that may change when a training is resumed; with any other it would be a different training."""

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
"""Knobs: hyperparameters that are settings and also attributes of the trainer, as in nnU-Net.

A subclass may set them until `initialize`.
"""

COMPONENTS: Final = ("network", "loss", "optimizer", "schedule", "sampler", "augmentation")
"""Settings that name a component, or are one: a name, `module:attr`, or from Python a function, class or object."""


LISTS: Final = ("callbacks", "loggers")
"""Settings that are lists of components."""

RENAMED: Final = {"sinks": "loggers"}
"""Earlier names of settings, which older checkpoints and records contain, and the current ones."""


def _component(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | dict | list | tuple | set):
        raise ValueError(f"expected a name, 'module:attr', or a function, class or object, not {value!r}")
    return reference_to(value)


Component = Annotated[str, PlainValidator(_component)]

CacheMode = Literal["auto", "none", "ram", "device"]


class TrainConfig(BaseModel):
    """How a network is trained; defaults as in nnU-Net 2.8.1 (nnU-Net behaviour 8.1).

    A field that was not set may depend on plan, device and budget (`training.defaults`).

    >>> changed(TrainConfig(), num_epochs=5).num_epochs
    5
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_epochs: int = Field(default=1000, ge=1)
    num_iterations_per_epoch: int = Field(default=250, ge=1)
    num_val_iterations_per_epoch: int = Field(default=50, ge=1)
    budget_s: float | None = Field(default=None, gt=0)
    """Seconds of training, including the last checkpoint; the schedule follows the time. `num_epochs` then counts only
    if it was set."""

    batch_size: int | None = Field(default=None, ge=1)
    """None: the plan's."""
    initial_lr: float = Field(default=1e-2, gt=0)
    schedule: Component = "poly"
    """Learning rate over epochs or budget: `poly`, `cosine`, a registered name or `module:attr`, each also with the
    prefix `warmup+`."""
    warmup_epochs: int | None = Field(default=None, ge=1)
    """Epochs of the warm-up in a `warmup+` schedule; None: `warmup_share` of the training."""
    warmup_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the epochs or of the budget for the warm-up; nnU-Net's 50 of 1000 epochs."""
    optimizer: Component = "sgd"
    """`sgd`, `adam`, `adamw`, a registered name or `module:attr`."""
    optimizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the optimizer, e.g. `betas`, `amsgrad`."""
    lr_groups: dict[str, float] = Field(default_factory=dict)
    """Factors of the learning rate by name of a module or parameter; the longest match decides; 0 freezes."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Used by `sgd` only."""
    nesterov: bool = True
    """Used by `sgd` only; no effect with momentum 0."""
    weight_decay: float = Field(default=3e-5, ge=0)
    clip_norm: float = Field(default=12.0, gt=0)
    """Largest norm of the gradient over all parameters."""
    ema_weights: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, e.g. 0.999, validated and saved; None: no average."""

    loss: Component | None = None
    """A registered name or `module:attr`; None: Dice + CE for labels, Dice + BCE for regions."""
    loss_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a loss of one's own, or options of a built-in one, see `training.losses.builtin`."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each label, background first, or of each region, in every term of a built-in loss; None: equal."""
    batch_dice: bool | None = None
    """Dice over the whole batch as if it were one image; None: the plan's choice."""
    enable_deep_supervision: bool = True

    network: Component | None = None
    """A registered name or `module:attr`; None: the plan's architecture."""
    network_kwargs: dict[str, Any] = Field(default_factory=dict)
    pretrained: str | None = None
    """Model folder, fold folder or checkpoint, also of nnU-Net, whose fitting tensors initialise the network."""
    pretrained_channels: Literal["auto", "mean", "zero"] = "auto"
    """Initial weights of input channels that the pretrained network lacks, see `training.finetuning`."""
    norm: Literal["instance", "batch"] | None = None
    """Normalisation layers of a built-in network; None: the plan's."""

    callbacks: tuple[Component, ...] = ()
    """Event hooks, each `module:attr`: a class, an object or a function, see `training.hooks.callbacks`."""
    loggers: tuple[Component, ...] = ()
    """Metric loggers in addition to `metrics.jsonl`: `tensorboard`, `mlflow`, `wandb` or `module:attr`."""

    oversample_foreground_percent: float = Field(default=0.33, ge=0, le=1)
    oversample_by_chance: bool = False
    """Force foreground for each sample with that probability, instead of for the last samples of a batch."""
    sampler: Component = "uniform"
    """Chooses the case of each sample: `uniform` or `module:attr`, `fn(identifiers, rng, **kwargs) -> identifier`."""
    sampler_kwargs: dict[str, Any] = Field(default_factory=dict)
    augmentation: Component = "default"
    """A registered recipe or `module:attr`."""
    augmentation_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the recipe's function."""
    mirror_axes: tuple[int, ...] | None = None
    """Spatial axes flipped in training and prediction; None: the recipe's."""

    cache: CacheMode = "auto"
    """Where preprocessed cases are cached, see `training.loading.caching`; batches do not depend on it."""
    cache_gib: float | None = Field(default=None, ge=0)
    """Memory for cached cases; None: half of the free memory, or a fifth of the GPU's."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile network and loss, if the result is the same and a step not slower (`training.execution`); auto: on CUDA
    GPUs with Triton."""
    fused_norm: bool = True
    """On CUDA, compute instance norm and LeakyReLU in one kernel and 3D images in channels-last, where Triton works."""
    seed: int = 12345
    deterministic: bool = False
    """Bit-identical results with the same number of threads: slower algorithms where the fast ones sum in any order.
    Not with a budget."""
    save_every: int = Field(default=50, ge=1)
    """Epochs between two saves of `checkpoint_latest`."""
    save_interval_s: float = Field(default=600.0, gt=0)
    """Longest time between two saves, in seconds; a killed run loses at most that much."""
    save_probabilities: bool = False
    """Also save the probabilities of held-out cases, as `validation/CASE.npz`."""
    disable_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_earlier_names(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            _require_current_names(values)
        return values

    @field_validator("class_weights")
    @classmethod
    def _validate_weights(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
            raise ValueError(
                f"invalid class_weights {list(weights)}: expected finite values >= 0, at least one above 0"
            )
        return weights

    @field_validator(*LISTS, mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [word.strip() for word in value.split(",") if word.strip()]
        return value if isinstance(value, list | tuple) else [value]

    @field_validator(*(f"{name}_kwargs" for name in COMPONENTS if name != "schedule"))
    @classmethod
    def _validate_json(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Convert values as a checkpoint does (tuples to lists), so that a resumed training has the same ones."""
        try:
            return dict(json.loads(json.dumps(kwargs)))
        except TypeError as error:
            raise ValueError(f"{error}; give JSON values, which a checkpoint can hold") from error

    @field_validator("lr_groups")
    @classmethod
    def _validate_factors(cls, groups: dict[str, float]) -> dict[str, float]:
        for name, factor in groups.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"the factor of '{name}' is {factor}; expected a finite number >= 0")
        return groups

    @model_validator(mode="after")
    def _validate_determinism(self) -> TrainConfig:
        if self.deterministic and self.budget_s is not None:
            raise ValueError("deterministic: under a budget the learning rate follows the clock; give num_epochs")
        if self.deterministic and self.compile == "on":
            raise ValueError("deterministic: the time of the steps decides which are compiled; leave out compile = on")
        return self

    def references(self) -> Iterator[tuple[str, str]]:
        """Yield setting and reference (`module:attr`) of every part that user code provides."""
        pairs: list[tuple[str, str | None]] = [(name, getattr(self, name)) for name in COMPONENTS]
        pairs = [(name, without_warmup(word) if name == "schedule" and word else word) for name, word in pairs]
        pairs += [(name, each) for name in LISTS for each in getattr(self, name)]
        yield from ((name, reference) for name, reference in pairs if reference is not None and is_reference(reference))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration with `values` set.

        Raises:
            ConfigError: a key is unknown or a value invalid.
        """
        _require_current_names(values)
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            raise ConfigError(f"unknown training setting '{unknown[0]}'{did_you_mean(unknown[0], cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(f"training settings: {describe_validation(error)}") from error


def with_current_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings with the current name of every setting that has been renamed.

    >>> with_current_names({"sinks": ["tensorboard"], "seed": 1})
    {'loggers': ['tensorboard'], 'seed': 1}
    """
    return {RENAMED.get(name, name): value for name, value in saved.items()}


def without_warmup(schedule: str) -> str:
    """Return what follows `warmup+`, or the same schedule."""
    return schedule.removeprefix(WARMUP_PREFIX) if schedule.startswith(WARMUP_PREFIX) else schedule


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """Return `config` with `values` set and validated; the set of fields that the user set is kept."""
    return TrainConfig.from_mapping({**config.model_dump(exclude_unset=True), **values})


def _require_current_names(values: Mapping[str, Any]) -> None:
    for name in values:
        if name in RENAMED:
            raise ConfigError(f"the training setting '{name}' is called '{RENAMED[name]}' now; set that instead")
