"""Every setting of a training run as one frozen value, knobs named as in nnU-Net."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segwright.core.errors import ConfigError, nearest
from segwright.core.extensions.registry import is_reference
from segwright.core.files.atomic_io import describe_validation

WARMUP = "warmup+"
"""Before the name of the schedule that follows a warm-up."""

CHANGEABLE: Final = (
    "num_epochs",
    "budget_s",
    "num_val_iterations_per_epoch",
    "save_every",
    "save_interval_s",
    "disable_checkpointing",
    "callbacks",
    "sinks",
    "cache",
    "cache_gib",
)
"""Settings that may differ after a resume: how long, how often; all others would make it another training."""

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
"""Settings that are attributes of the trainer too, as in nnU-Net: a subclass may set them until `initialize`."""

CacheMode = Literal["auto", "none", "ram", "device"]


class TrainConfig(BaseModel):
    """How a network is trained; defaults as in nnU-Net 2.8.1 (nnU-Net behaviour 8.1).

    A field that was left alone may be decided by the regime (`training.regime`), one that was set never is.

    >>> changed(TrainConfig(), num_epochs=5).num_epochs
    5
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_epochs: int = Field(default=1000, ge=1)
    num_iterations_per_epoch: int = Field(default=250, ge=1)
    num_val_iterations_per_epoch: int = Field(default=50, ge=1)
    budget_s: float | None = Field(default=None, gt=0)
    """Seconds of training, the last checkpoint included; the schedule follows the time. `num_epochs` then is only a
    limit where it was set."""

    batch_size: int | None = Field(default=None, ge=1)
    """None: the plan's."""
    initial_lr: float = Field(default=1e-2, gt=0)
    schedule: str = "poly"
    """Of the learning rate over epochs or budget: `poly`, `cosine`, a registered name or `module:attr`, each also after
    `warmup+`."""
    warmup_epochs: int | None = Field(default=None, ge=1)
    """Epochs of a `warmup+` schedule's rise; None: `warmup_share` of them."""
    warmup_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the epochs or of the budget that the rise takes; nnU-Net's 50 of 1000 epochs."""
    optimizer: str = "sgd"
    """`sgd`, `adam`, `adamw`, a registered name or `module:attr`."""
    optimizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the optimizer, e.g. `betas`, `amsgrad`."""
    lr_groups: dict[str, float] = Field(default_factory=dict)
    """Factors of the learning rate by name of a module or parameter, the longest that fits; 0 freezes."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Of `sgd`."""
    nesterov: bool = True
    """Of `sgd`; without effect where the momentum is 0."""
    weight_decay: float = Field(default=3e-5, ge=0)
    clip_norm: float = Field(default=12.0, gt=0)
    """Largest norm of the gradient over all parameters."""
    ema_weights: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an average of the weights, which is then what is validated and kept, e.g. 0.999; None: no average."""

    loss: str | None = None
    """A registered name or `module:attr`; None: Dice + CE for labels, Dice + BCE for regions."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each label, background first, or of each region, in every term of a built-in loss; None: all alike."""
    batch_dice: bool | None = None
    """Dice over the whole batch as if it were one image; None: the plan's choice."""
    enable_deep_supervision: bool = True

    network: str | None = None
    """A registered name or `module:attr`; None: the plan's architecture."""
    network_kwargs: dict[str, Any] = Field(default_factory=dict)
    pretrained: str | None = None
    """Model folder, fold folder or checkpoint, ours or nnU-Net's, whose fitting tensors the network begins with."""
    pretrained_channels: Literal["auto", "mean", "zero"] = "auto"
    """What an input channel gets that the pretrained network has not, see `training.finetuning`."""
    norm: Literal["instance", "batch"] | None = None
    """Normalisation layers of a built-in network; None: the plan's."""

    callbacks: tuple[str, ...] = ()
    """Event hooks, each `module:attr`: a class, an object or a function, see `training.callbacks`."""
    sinks: tuple[str, ...] = ()
    """More places for metrics than `metrics.jsonl`: `tensorboard`, `mlflow`, `wandb` or `module:attr`."""

    oversample_foreground_percent: float = Field(default=0.33, ge=0, le=1)
    oversample_by_chance: bool = False
    """Toss for each sample instead of forcing the last ones of a batch."""
    sampler: str = "uniform"
    """Chooses the case of each sample: `uniform` or `module:attr`, `fn(identifiers, rng) -> identifier`."""
    augmentation: str = "default"
    """A registered recipe or `module:attr`."""
    mirror_axes: tuple[int, ...] | None = None
    """Spatial axes flipped in training and prediction; None: the recipe's."""

    cache: CacheMode = "auto"
    """Where preprocessed cases are kept while they are trained on, see `training.caching`; no batch depends on it."""
    cache_gib: float | None = Field(default=None, ge=0)
    """What they may take there; None: half of the free memory, or a fifth of the GPU's."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = 12345
    deterministic: bool = False
    """The same bits each time: slower algorithms where the fast ones add in any order. Not with a budget."""
    save_every: int = Field(default=50, ge=1)
    """Epochs between two saves of `checkpoint_latest`."""
    save_interval_s: float = Field(default=600.0, gt=0)
    """Longest time between two saves, in seconds: what a killed run may lose."""
    disable_checkpointing: bool = False

    @field_validator("class_weights")
    @classmethod
    def _are_weights(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
            raise ValueError(f"{list(weights)} are no weights; give finite numbers from 0, at least one above")
        return weights

    @field_validator("callbacks", "sinks", mode="before")
    @classmethod
    def _are_words(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("optimizer_kwargs", "network_kwargs")
    @classmethod
    def _are_json(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return them as a checkpoint will give them back, so that a resumed training finds the same values."""
        try:
            return dict(json.loads(json.dumps(kwargs)))
        except TypeError as error:
            raise ValueError(f"{error}; give JSON values, which a checkpoint can hold") from error

    @field_validator("lr_groups")
    @classmethod
    def _are_factors(cls, groups: dict[str, float]) -> dict[str, float]:
        for name, factor in groups.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"the factor of '{name}' is {factor}; give a finite number from 0")
        return groups

    @model_validator(mode="after")
    def _is_repeatable(self) -> TrainConfig:
        if self.deterministic and self.budget_s is not None:
            raise ValueError("deterministic: under a budget the learning rate follows the clock; give num_epochs")
        return self

    def references(self) -> Iterator[tuple[str, str]]:
        """Yield setting and reference of every part that is code outside the registries."""
        words = {name: getattr(self, name) for name in ("network", "optimizer", "loss", "sampler", "augmentation")}
        pairs = [*words.items(), ("schedule", self.schedule.rpartition(WARMUP)[2])]
        pairs += [(name, each) for name in ("callbacks", "sinks") for each in getattr(self, name)]
        yield from ((name, reference) for name, reference in pairs if reference is not None and is_reference(reference))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration with `values` set.

        Raises:
            ConfigError: an unknown key, the nearest one named, or a value that does not fit.
        """
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            raise ConfigError(f"unknown training setting '{unknown[0]}'{nearest(unknown[0], cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(f"training settings: {describe_validation(error)}") from error


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """Return `config` with `values` set and checked; which fields were set stays known."""
    return TrainConfig.from_mapping({**config.model_dump(exclude_unset=True), **values})
