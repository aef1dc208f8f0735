"""Check what a trainer subclass declares before it trains: signatures of hooks, misspelt names, hyperparameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from segwright.core.extensions.user_code import UserCodeError, source_location
from segwright.training.config import KNOBS, TrainConfig, changed
from segwright.training.hooks.callbacks import EVENTS, STEP_EVENTS
from segwright.training.hooks.used_names import UsedNames

EVENT_HOOKS: Final = tuple(event for event in EVENTS if event not in STEP_EVENTS)

HOOKS: Final = (
    "initialize",
    "build_network_architecture",
    "logits_of",
    "configure_optimizers",
    "build_loss",
    "get_dataloaders",
    "set_deep_supervision_enabled",
    "run_training",
    "train_step",
    "validation_step",
    "save_checkpoint",
    "load_checkpoint",
    "perform_actual_validation",
    *EVENT_HOOKS,
)
"""Methods of the trainer that a subclass may override."""

NNUNET_HOOKS: Final[Mapping[str, str]] = {
    "_build_loss": "override build_loss",
    "_get_deep_supervision_scales": "the scales are those of the network's outputs",
    "_set_batch_size_and_oversample": "set batch_size and oversample_foreground_percent",
    "get_training_transforms": "give augmentation=",
    "get_validation_transforms": "validation batches are not augmented",
    "configure_rotation_dummyDA_mirroring_and_inital_patch_size": "give augmentation= or mirror_axes=",
    "do_split": "write splits_final.json",
    "get_tr_and_val_datasets": "give cases= and split=",
    "get_plain_dataloaders": "override get_dataloaders",
}
"""Hooks of nnU-Net's trainer that this one never calls, and what to do instead."""

_BUILT: Final[Mapping[str, str]] = {
    "network": "override build_network_architecture, or give network=",
    "optimizer": "override configure_optimizers, or give optimizer=",
    "loss": "override build_loss, or give loss=",
    "schedule": "return a scheduler from configure_optimizers, or give schedule=",
}
"""Attributes that `initialize` sets, and how to choose them."""

_NEAR: Final = 0.85
"""Similarity (difflib) from which on a name that no code reads is taken for a misspelt one."""

_NEAR_EVENT: Final = 0.6
"""The same for methods `on_...`."""


def require_sound(cls: type, base: type, attributes: Mapping[str, object]) -> None:
    """Check a trainer class before its network is built.

    Args:
        cls: the class.
        base: `Trainer`.
        attributes: of the trainer, as set so far.

    Raises:
        UserCodeError: a hook has the wrong signature or is not static, or a name is that of no hook or setting, but
            similar to one.
    """
    own = own_classes(cls, base)
    for hook in HOOKS:
        if any(hook in vars(each) for each in own):
            _require_static(cls, base, hook)
            _require_signature(cls, base, hook)
    for name, remedy in _BUILT.items():
        values = [attributes.get(name), *(vars(each).get(name) for each in own)]
        if any(value is not None for value in values):  # None only announces the attribute
            raise UserCodeError(
                f"{source_location(cls)}: {cls.__name__} sets {name} before initialize(), which replaces it; {remedy}"
            )
    used = UsedNames.of(own)
    known = {*dir(base), *base.__annotations__, *UsedNames.of([base]).stored}
    for owner in own:
        for name, value in vars(owner).items():
            if name not in known and not used.is_read(name):
                _require_no_misspelling(owner, name, value)
    for name in used.stored & attributes.keys() - known:
        if not used.is_read(name):
            _require_no_misspelling(cls, name, attributes[name])


def own_classes(cls: type, base: type) -> tuple[type, ...]:
    """Return a class and those that it inherits from, without the trainer's and Segwright's other ones."""
    return tuple(
        each
        for each in cls.__mro__
        if not issubclass(base, each) and each.__module__.partition(".")[0] != base.__module__.partition(".")[0]
    )


def with_class_values(config: TrainConfig, cls: type, base: type) -> TrainConfig:
    """Return the settings with the hyperparameters that a class body sets, where the settings do not set them.

    Raises:
        ConfigError: a value is invalid.
    """
    values: dict[str, object] = {}
    for owner in reversed(own_classes(cls, base)):
        values |= {name: vars(owner)[name] for name in KNOBS if name in vars(owner)}
    chosen = {
        name: value
        for name, value in values.items()
        if name not in config.model_fields_set and not hasattr(type(value), "__get__")
    }
    return changed(config, **chosen) if chosen else config


def nearest(name: str, known: Collection[str], *, event_cutoff: float = _NEAR) -> str | None:
    """Return the known name of which another is a misspelling, None if it is just another name.

    `event_cutoff` is the similarity of methods `on_...`.

    >>> nearest("on_epoch_begin", HOOKS), nearest("train_step_of_student", HOOKS), nearest("trainStep", HOOKS)
    ('on_epoch_start', None, 'train_step')
    """
    plain = name.lower().replace("begin", "start").strip("_")  # Keras' word
    words = plain.split("_")
    names = {each.strip("_"): each for each in known}
    candidates = [each for each in names if each == plain or not _contains(words, each.split("_"))]
    cutoff = event_cutoff if plain.startswith("on_") else _NEAR
    close = get_close_matches(plain, candidates, n=1, cutoff=cutoff)
    return names[close[0]] if close else None


def _require_static(cls: type, base: type, hook: str) -> None:
    """Refuse a hook that prediction calls without a trainer, but that expects one."""
    expected, found = (inspect.getattr_static(each, hook) for each in (base, cls))
    if not isinstance(expected, staticmethod) or not inspect.isfunction(found):
        return
    names = ", ".join(_with_defaults(expected.__func__))
    raise UserCodeError(
        f"{source_location(found)}: {hook} must be a static method, since prediction calls it without a trainer; "
        f"write @staticmethod above 'def {hook}({names})'"
    )


def _require_signature(cls: type, base: type, hook: str) -> None:
    """Refuse a hook that cannot be called as the loop calls it."""
    found: Any = inspect.getattr_static(cls, hook)
    bound = isinstance(found, staticmethod | classmethod)
    if not bound and not inspect.isfunction(found):
        return
    arguments = _arguments(inspect.getattr_static(base, hook))
    function = getattr(cls, hook)
    try:
        signature = inspect.signature(function)
    except ValueError:  # compiled functions have none
        return
    try:
        signature.bind(*[None] * (len(arguments) + (not bound)))
    except TypeError as error:
        raise UserCodeError(
            f"{source_location(function)}: {hook} takes {signature}, but is called as {hook}({', '.join(arguments)}): "
            f"{error}"
        ) from error


def _require_no_misspelling(owner: type, name: str, value: object) -> None:
    """Refuse a name that looks like that of a hook or a setting, but is none, so that it would be ignored."""
    is_method = inspect.isfunction(value) or isinstance(value, staticmethod | classmethod)
    where = f"{source_location(getattr(value, '__func__', value) if is_method else owner)}: {owner.__name__}"
    if is_method and name in NNUNET_HOOKS:
        raise UserCodeError(
            f"{where}.{name} is a hook of nnU-Net's trainer, which Segwright's does not call; {NNUNET_HOOKS[name]}, or "
            "train nnU-Net's class with --nnunet-trainer"
        )
    if name.startswith("_"):
        return
    if is_method and name in STEP_EVENTS:
        raise UserCodeError(
            f"{where}.{name} is never called: it is an event of callbacks; override train_step or validation_step, or "
            "write a callback"
        )
    if not is_method and name in TrainConfig.model_fields:
        raise UserCodeError(
            f"{where} sets {name}, which has no effect as an attribute; give it as a setting: {name}=... in the "
            f"config, --set {name}=..."
        )
    near = nearest(name, HOOKS if is_method else KNOBS, event_cutoff=_NEAR_EVENT)
    if near:
        what = "method" if is_method else "attribute"
        raise UserCodeError(
            f"{where}.{name} is never used; did you mean the {what} '{near}'? Otherwise give it a name that is less "
            "similar"
        )


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    """Return whether words contain those of a part, in their order."""
    rest = iter(words)
    return all(word in rest for word in part)


def _arguments(hook: Any) -> list[str]:
    """Return the names of the arguments with which the loop calls a hook of the trainer."""
    is_static = isinstance(hook, staticmethod)
    parameters = list(inspect.signature(hook.__func__ if is_static else hook).parameters.values())
    return [each.name for each in parameters[0 if is_static else 1 :] if each.kind is each.POSITIONAL_OR_KEYWORD]


def _with_defaults(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the parameters of a function as its definition has them, without annotations."""
    for parameter in inspect.signature(function).parameters.values():
        yield str(parameter.replace(annotation=parameter.empty))
