"""Training losses by name, or a user's own; deep supervision and ignored voxels.

Array letters: B samples, C channels (heads), S spatial axes. A loss of one resolution is any
`fn(output (B, C, *S), target, *, labels) -> scalar`; targets are as `training.loading.targets` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import UserCodeError, require_arguments, source_location, user_call
from segwright.data.labels import Labels
from segwright.training.losses.combined import (
    LabelLoss,
    LabelOrRegionLoss,
    RegionLoss,
    ResolutionLoss,
    SkeletonRecallLoss,
)
from segwright.training.losses.skeletons import tubes
from segwright.training.losses.terms import (
    BinaryCrossEntropy,
    CrossEntropy,
    Overlap,
    Reduce,
    binary_cross_entropy,
    cross_entropy,
    dice,
    focal_binary_cross_entropy,
    focal_cross_entropy,
    identity_reduce,
    reduce_mean,
    topk_cross_entropy,
    tversky,
)

MASKED_LOGIT = 30.0
"""Logit given to the correct class of an ignored voxel, for a loss without an ignore mask."""

FOCAL_GAMMA: Final = 2.0
"""Exponent of the focal loss: the best one in its paper (arXiv 1708.02002, table 1b)."""

TVERSKY_ALPHA: Final = 0.3
TVERSKY_BETA: Final = 0.7
"""Weights of false positives and false negatives: the best ones in the paper (arXiv 1706.05721, table 1)."""

SKELETON_WEIGHT: Final = 1.0
"""Weight of the recall beside Dice and cross entropy, as in the paper's experiments (arXiv 2404.03010)."""

Outputs = Tensor | Sequence[Tensor]
"""Logits, or logits of several resolutions, the highest first."""

TrainingLoss = Callable[[Outputs, Outputs], Tensor]
"""Called by the trainer: (outputs, targets) to a scalar."""


LossFactory = Callable[..., ResolutionLoss]
"""Builds the loss behind a registered name, over the batches of all processes: called with `batch_dice`, `reduce`, its
options and, if they are set, `class_weights` (heads,) of mean 1."""

TargetChannel = Callable[[Tensor, Labels], Tensor]
"""Computes a further channel of the target, bool (B, 1, *S), from label maps (B, 1, *S)."""


def build_loss(
    labels: Labels,
    *,
    batch_dice: bool,
    num_outputs: int | None = None,
    reference: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    class_weights: Sequence[float] | None = None,
    reduce: Reduce = identity_reduce,
    device: torch.device | None = None,
    logits_of: Callable[[Any], Outputs] | None = None,
) -> TrainingLoss:
    """Return the loss of a training.

    Args:
        labels: of the dataset; with regions the loss is binary per head.
        batch_dice: sum over the batch before the Dice is taken.
        num_outputs: number of resolutions of the network; None: one tensor.
        reference: a registered name or `module:attr`; None: `dice_bce` for regions, else `dice_ce`. Code of one's own
            is called as `fn(output, target, *, labels, **kwargs)`; a class is made with `kwargs` first, and then
            called without them.
        kwargs: keyword arguments of a loss of one's own, or the options of a built-in one (`OPTIONS`).
        class_weights: of each head, background first for labels; None: equal weights.
        reduce: sums over processes; a custom loss is averaged over the samples of all processes.
        device: where a loss that is an `nn.Module` is put.
        logits_of: finds the logits in what the network returns; None: it returns logits.

    Raises:
        ConfigError: the loss is unknown or does not support labels or regions, or the class weights are invalid.
    """
    name = reference or ("dice_bce" if labels.has_regions else "dice_ce")
    loss: ResolutionLoss
    if ":" in name:
        if class_weights is not None:
            raise ConfigError(f"class_weights are for the built-in losses; write them into '{name}' or drop them")
        loss = _own_loss(name, dict(kwargs or {}), device)
        loss = CustomLoss(loss=loss, name=name, reduce=reduce)
    else:
        factory = LOSSES.get(name)
        options: dict[str, Any] = {"batch_dice": batch_dice, "reduce": reduce, **_checked_options(name, kwargs or {})}
        _require_fit(name, labels)
        if class_weights is not None:
            options["class_weights"] = _checked_weights(class_weights, labels, name)
        loss = factory(**options)
    level_weights = None if num_outputs is None else deep_supervision_weights(num_outputs)
    whole = DeepSupervisionLoss(loss=loss, labels=labels, weights=level_weights)
    return whole if logits_of is None else LogitsLoss(loss=whole, logits_of=logits_of)


def _own_loss(name: str, kwargs: dict[str, Any], device: torch.device | None) -> ResolutionLoss:
    """Return the loss behind a reference, with its keyword arguments."""
    found: Any = import_reference(name, kind="loss")
    if isinstance(found, type):
        contract = f"a loss's class is made with loss_kwargs, {kwargs}"
        with user_call(found, f"loss '{name}'", contract=contract):
            found, kwargs = found(**kwargs), {}
    if not callable(found):
        raise ConfigError(f"loss '{name}' is not callable; name a function fn(output, target, *, labels)")
    called = found.forward if isinstance(found, nn.Module) else found
    contract = "fn(output, target, *, labels, **loss_kwargs) -> scalar"
    require_arguments(called, f"loss '{name}'", ("labels",), 2, kwargs, contract=contract)
    if isinstance(found, nn.Module):
        found = found.to(device)
    return partial(found, **kwargs) if kwargs else found


def deep_supervision_weights(num_outputs: int) -> tuple[float, ...]:
    """Return the weight of each output, highest resolution first: halved each time, the last 0, sum 1.

    nnU-Net behaviour 8.6.1.

    >>> [round(weight, 4) for weight in deep_supervision_weights(5)]
    [0.5333, 0.2667, 0.1333, 0.0667, 0.0]
    """
    if num_outputs == 1:
        return (1.0,)
    weights = [0.5**index for index in range(num_outputs - 1)] + [0.0]
    return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSupervisionLoss:
    """The weighted sum of a loss over the resolutions of a network.

    Attributes:
        loss: of one resolution.
        labels: of the dataset.
        weights: of each resolution, highest first; None: the highest alone.
    """

    loss: ResolutionLoss
    labels: Labels
    weights: tuple[float, ...] | None

    def __call__(self, outputs: Outputs, targets: Outputs) -> Tensor:
        """Return a scalar; a network may give one tensor outside of training."""
        if self.weights is None or isinstance(outputs, Tensor):
            return self.loss(_highest(outputs), _highest(targets), labels=self.labels)
        terms = [
            weight * self.loss(output, target, labels=self.labels)
            for weight, output, target in zip(self.weights, outputs, targets, strict=True)
            if weight != 0
        ]
        return torch.stack(terms).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsLoss:
    """A loss of the logits alone, for a network that returns more."""

    loss: TrainingLoss
    logits_of: Callable[[Any], Outputs]

    def __call__(self, output: Any, target: Outputs) -> Tensor:
        """Return a scalar."""
        return self.loss(self.logits_of(output), target)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomLoss:
    """A user's loss, with ignored voxels masked and its result checked and averaged over processes.

    Attributes:
        loss: the user's function.
        name: its reference, for messages.
        reduce: sums over processes.
    """

    loss: ResolutionLoss
    name: str
    reduce: Reduce

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return the user's loss.

        Raises:
            UserCodeError: it is not a scalar tensor.
        """
        if labels.ignore_label is not None:
            output, target = _mask_ignored(output, target, labels)
        value = _required_scalar(self.loss(output, target, labels=labels), self.loss, self.name)
        return value if self.reduce is identity_reduce else reduce_mean(value, len(output), self.reduce)


def build_either(
    *,
    ce: CrossEntropy | None,
    bce: BinaryCrossEntropy | None,
    overlap: Overlap | None,
    batch_dice: bool,
    reduce: Reduce = identity_reduce,
    class_weights: Tensor | None = None,
) -> LabelOrRegionLoss:
    """Return a loss for labels and regions with the given terms; those that are None are left out."""
    usual: Any = {"overlap": overlap, "batch_dice": batch_dice, "reduce": reduce, "class_weights": class_weights}
    return LabelOrRegionLoss(of_labels=LabelLoss(ce=ce, **usual), of_regions=RegionLoss(bce=bce, **usual))


def build_focal(*, overlap: Overlap | None = None, gamma: float = FOCAL_GAMMA, **usual: Any) -> LabelOrRegionLoss:
    """Return the focal loss, plus an overlap term if any."""
    ce, bce = partial(focal_cross_entropy, gamma=gamma), partial(focal_binary_cross_entropy, gamma=gamma)
    return build_either(ce=ce, bce=bce, overlap=overlap, **usual)


def build_tversky(*, alpha: float = TVERSKY_ALPHA, beta: float = TVERSKY_BETA, **usual: Any) -> LabelOrRegionLoss:
    """Return the Tversky loss.

    Raises:
        ConfigError: both weights are 0.
    """
    if alpha == beta == 0:
        raise ConfigError("loss 'tversky': alpha and beta are 0, so no error counts; give one of them a weight")
    return build_either(ce=None, bce=None, overlap=partial(tversky, alpha=alpha, beta=beta), **usual)


def build_skeleton_recall(*, weight: float = SKELETON_WEIGHT, **usual: Any) -> SkeletonRecallLoss:
    """Return the default loss plus the recall of skeletons."""
    default = build_either(ce=cross_entropy, bce=binary_cross_entropy, overlap=dice, **usual)
    return SkeletonRecallLoss(loss=default, weight=weight, **usual)


SKELETON_RECALL: Final = "skeleton_recall"

LOSSES: Registry[LossFactory] = Registry("loss")
LOSSES.register("dice_ce", LabelLoss)
LOSSES.register("dice_bce", RegionLoss)
LOSSES.register("dice", partial(build_either, ce=None, bce=None, overlap=dice))
LOSSES.register("ce", partial(LabelLoss, overlap=None))
LOSSES.register("topk10", partial(LabelLoss, ce=topk_cross_entropy, overlap=None))
LOSSES.register("dice_topk10", partial(LabelLoss, ce=topk_cross_entropy))
LOSSES.register("focal", build_focal)
LOSSES.register("dice_focal", partial(build_focal, overlap=dice))
LOSSES.register("tversky", build_tversky)
LOSSES.register(SKELETON_RECALL, build_skeleton_recall)

_OF_BOTH: Final = ("focal", "dice_focal", "tversky", SKELETON_RECALL)
LABEL_LOSSES: Final = ("dice_ce", "dice", "ce", "topk10", "dice_topk10", *_OF_BOTH)
REGION_LOSSES: Final = ("dice_bce", "dice", *_OF_BOTH)
"""Built-in losses for labels and for regions, which may overlap, so that a softmax cross entropy is undefined."""

DICE_LOSSES: Final = ("dice_ce", "dice_bce", "dice", "dice_topk10", "dice_focal", "tversky", SKELETON_RECALL)
"""Built-in losses with an overlap of the foreground."""

OPTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"focal": ("gamma",), "dice_focal": ("gamma",), "tversky": ("alpha", "beta"), SKELETON_RECALL: ("weight",)}
)
"""Options of built-in losses: numbers from 0."""


def target_channel(reference: str | None) -> TargetChannel | None:
    """Return what computes the further channel of the target that a loss needs; None if it needs none."""
    return tubes if reference == SKELETON_RECALL else None


def _checked_options(name: str, kwargs: Mapping[str, Any]) -> dict[str, float]:
    """Return the options of a built-in loss.

    Raises:
        ConfigError: it has no such option, or the value is not a number from 0.
    """
    known = OPTIONS.get(name, ())
    if kwargs and not known:
        raise ConfigError(f"loss_kwargs {dict(kwargs)} are for a loss of one's own; '{name}' takes none")
    for key, value in kwargs.items():
        if key not in known:
            raise ConfigError(f"loss '{name}': unknown option '{key}' in loss_kwargs{did_you_mean(key, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"loss '{name}': {key} is {value!r}; expected a finite number >= 0")
    return dict(kwargs)


def _require_fit(name: str, labels: Labels) -> None:
    """Refuse a built-in loss for the other kind of labels; losses that a user registered are not checked."""
    fitting = REGION_LOSSES if labels.has_regions else LABEL_LOSSES
    if name not in fitting and name in (*LABEL_LOSSES, *REGION_LOSSES):
        kind = "regions" if labels.has_regions else "labels"
        raise ConfigError(
            f"loss '{name}' does not support {kind}; choose from {', '.join(fitting)}, or omit it for the default"
        )


def _checked_weights(values: Sequence[float], labels: Labels, name: str) -> Tensor:
    """Return class weights (heads,) scaled to mean 1, so that equal weights have no effect."""
    names = ", ".join(labels.names[index] for index in range(labels.num_heads))
    if len(values) != labels.num_heads:
        raise ConfigError(f"class_weights has {len(values)} entries, expected {labels.num_heads}, in the order {names}")
    weights = torch.tensor(values, dtype=torch.float32)
    if name in DICE_LOSSES and not labels.has_regions and not bool(weights[1:].any()):
        raise ConfigError(
            f"class_weights {list(values)}: all foreground labels ({names}) weigh 0, so loss '{name}' has no Dice; "
            "give one of them a weight, or choose loss 'ce'"
        )
    return weights / weights.mean()


def _highest(levels: Outputs) -> Tensor:
    return levels if isinstance(levels, Tensor) else levels[0]


def _required_scalar(value: object, loss: ResolutionLoss, name: str) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise UserCodeError(f"{source_location(loss)}: loss '{name}' returned {shown}; it must return a scalar tensor")


def _mask_ignored(output: Tensor, target: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """Return logits and target in which ignored voxels are predicted correctly, for a loss without an ignore mask.

    The loss depends neither on their logits nor on their label, so their gradient is exactly 0. But they count as
    correct voxels: a loss that averages over annotated voxels only has to be registered and mask them itself.
    """
    if labels.has_regions:
        ignored, known = target[:, -1:].bool(), target[:, :-1]
        correct = torch.where(known.bool(), MASKED_LOGIT, -MASKED_LOGIT).to(output.dtype)
    else:
        ignored = torch.eq(target, labels.ignore_label or 0)
        known = target.masked_fill(ignored, 0)
        correct = torch.zeros_like(output)
        correct[:, 0] = MASKED_LOGIT
    return torch.where(ignored, correct, output), known
