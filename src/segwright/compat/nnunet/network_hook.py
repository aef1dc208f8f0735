"""Call `build_network_architecture` of a trainer file, of any of nnU-Net's interfaces.

The forms differ by the names of their parameters, so each parameter gets the value of its name. The hook may be a
static method, a class method or a method of the object.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.trust import TRUST_NONE
from segwright.core.extensions.user_code import source_location
from segwright.networks.build import ArchitectureSpec, build_from_spec

SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "plans_manager": ("plans",),
    "configuration_manager": ("configuration", "config_manager"),
    "num_input_channels": ("input_channels", "in_channels", "num_channels"),
    "num_output_channels": ("output_channels", "out_channels", "num_classes", "num_segmentation_heads"),
    "enable_deep_supervision": ("deep_supervision",),
    "architecture_class_name": ("arch_class_name", "network_class_name"),
    "arch_init_kwargs": ("arch_kwargs", "network_arch_init_kwargs"),
    "arch_init_kwargs_req_import": ("arch_kwargs_req_import", "network_arch_init_kwargs_req_import"),
}
"""Other names that files give to the parameters."""

ARCHITECTURE_FORM: Final = (
    "architecture_class_name",
    "arch_init_kwargs",
    "arch_init_kwargs_req_import",
    "num_input_channels",
    "num_output_channels",
    "enable_deep_supervision",
)
"""Parameters of 2.3 to 2.6; a hook with `*args` gets these."""

_VARIABLE: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkArguments:
    """The values that a network hook may take.

    Attributes:
        plans_manager: of the plans.
        configuration_manager: of the configuration.
        dataset_json: the document.
        num_input_channels: of the network.
        num_output_channels: heads.
        enable_deep_supervision: whether to return several resolutions.
    """

    plans_manager: Any
    configuration_manager: Any
    dataset_json: Mapping[str, Any]
    num_input_channels: int
    num_output_channels: int
    enable_deep_supervision: bool

    def by_name(self) -> dict[str, Any]:
        """Return the values by every name of a parameter."""
        manager = self.configuration_manager
        values = {
            "plans_manager": self.plans_manager,
            "configuration_manager": manager,
            "dataset_json": self.dataset_json,
            "num_input_channels": self.num_input_channels,
            "num_output_channels": self.num_output_channels,
            "enable_deep_supervision": self.enable_deep_supervision,
            "architecture_class_name": manager.network_arch_class_name,
            "arch_init_kwargs": manager.network_arch_init_kwargs,
            "arch_init_kwargs_req_import": manager.network_arch_init_kwargs_req_import,
        }
        return {**{other: values[name] for name, others in SYNONYMS.items() for other in others}, **values}


def call_hook(hook: Callable[..., Any], arguments: NetworkArguments, *, where: str) -> nn.Module:
    """Call a network hook with what its parameters name, and return the network.

    Args:
        hook: as found on the object, so that it is bound if it needs that.
        arguments: the values.
        where: the class, for messages.

    Raises:
        ConfigError: a parameter is unknown.
        ModelError: it did not return a network.
    """
    positional, named = match_parameters(hook, arguments, where=where)
    network: object = hook(*positional, **named)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{source_location(hook)}: build_network_architecture of {where} returned {type(network).__name__}; it "
            "must return a torch.nn.Module"
        )
    return network


def match_parameters(
    hook: Callable[..., Any], arguments: NetworkArguments, *, where: str
) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and named arguments for a hook.

    Raises:
        ConfigError: a parameter without default is unknown.
    """
    values = arguments.by_name()
    parameters = inspect.signature(hook).parameters.values()
    known = [each for each in parameters if each.kind not in _VARIABLE]
    if len(known) < len(parameters) and not any(each.name in values for each in known):
        return [values[name] for name in ARCHITECTURE_FORM], {}
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for each in known:
        if each.name in values:
            if each.kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(values[each.name])
            else:
                named[each.name] = values[each.name]
        elif each.default is inspect.Parameter.empty:
            raise ConfigError(
                f"{source_location(hook)}: build_network_architecture of {where} has the parameter '{each.name}', "
                f"which no version of nnU-Net passes; known are {', '.join(sorted(values))}"
            )
    return positional, named


def build_planned(args: Sequence[Any], kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the plan's network from the arguments of any version's hook; weights are drawn from torch's seed.

    Raises:
        ConfigError: the arguments are of no version.
    """
    reference, arch_kwargs, inputs, heads, deep = _parse(list(args), dict(kwargs))
    generator = torch.Generator().manual_seed(torch.initial_seed())
    spec = ArchitectureSpec(reference=reference, kwargs=_as_json(arch_kwargs))
    return build_from_spec(spec, {}, inputs, heads, (), deep, generator=generator, trust=TRUST_NONE)


def _parse(args: list[Any], kwargs: dict[str, Any]) -> tuple[str, Mapping[str, Any], int, int, bool]:
    """Return class path, its arguments, input channels, heads and deep supervision."""
    canonical = {other: name for name, others in SYNONYMS.items() for other in others}
    named = {canonical.get(name, name): value for name, value in kwargs.items()}
    if (args and isinstance(args[0], str)) or "architecture_class_name" in named:
        values = {**dict(zip(ARCHITECTURE_FORM, args, strict=False)), **named}
        _require(values, ARCHITECTURE_FORM[:2] + ARCHITECTURE_FORM[3:5])
        deep = bool(values.get("enable_deep_supervision", True))
        inputs, heads = values["num_input_channels"], values["num_output_channels"]
        return values["architecture_class_name"], values["arch_init_kwargs"], inputs, heads, deep
    has_description = "dataset_json" in named or (len(args) > 1 and isinstance(args[1], Mapping))
    old = ("plans_manager", "dataset_json", "configuration_manager", "num_input_channels", "enable_deep_supervision")
    new = ("plans_manager", "configuration_manager", *ARCHITECTURE_FORM[3:])
    values = {**dict(zip(old if has_description else new, args, strict=False)), **named}
    _require(values, (old if has_description else new)[:4])
    manager = values["configuration_manager"]
    heads = values.get("num_output_channels")
    if heads is None:
        label_manager = values["plans_manager"].get_label_manager(values["dataset_json"])
        heads = label_manager.num_segmentation_heads
    deep = bool(values.get("enable_deep_supervision", True))
    inputs = values["num_input_channels"]
    return manager.network_arch_class_name, manager.network_arch_init_kwargs, inputs, heads, deep


def _require(values: Mapping[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(
            f"build_network_architecture of nnUNetTrainer was called without {', '.join(missing)}; pass the arguments "
            "of one of nnU-Net's versions"
        )


def _as_json(value: Any) -> Any:
    """Return architecture arguments as a plan holds them: classes as import paths, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return value
