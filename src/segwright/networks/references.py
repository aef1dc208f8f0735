"""Import a user's own network by `module:attr`; model folders are untrusted input.

A reference in a model folder is only imported if the user gave the same reference or trusts the model, and must have
the signature of a network builder before it is called.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from segwright.core.errors import ConfigError
from segwright.core.extensions.given import GivenObject
from segwright.core.extensions.trust import CodeTrust
from segwright.core.extensions.user_code import source_location, user_call
from segwright.networks.architecture import resolve_op

IMPORTED: Final = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Arguments that nnU-Net plans contain as dotted paths of torch classes."""

ARGUMENTS: Final = ("patch_size", "deep_supervision")
"""Keyword arguments of every builder."""


def import_network(reference: str, trust: CodeTrust, *, source: str) -> Callable[..., Any]:
    """Return the function or class `module:attr` without calling it; for a made module, what returns copies of it.

    Args:
        reference: of the function or class.
        trust: the code that may be imported.
        source: the file or setting that names it.

    Raises:
        ModelError: it may not be imported.
        ConfigError: it does not exist, belongs to the standard library, is defined in another module, or has the wrong
            signature.
    """
    trust.require(reference, kind="network", source=source, option="--network ")
    module = reference.partition(":")[0]
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        raise ConfigError(
            f"network '{reference}' is refused: {top} belongs to Python's standard library, which defines no networks"
        )
    found = trust.load(reference, kind="network")
    if not callable(found):
        raise ConfigError(
            f"network '{reference}' cannot be called; give a function fn(num_input_channels, num_output_channels, *, "
            "patch_size, deep_supervision, **kwargs), a class, a module or, to load a model, its trainer class"
        )
    owner = getattr(found, "__func__", found)
    if isinstance(found, nn.Module):
        return MadeNetwork(found)
    is_elsewhere = not isinstance(reference, GivenObject) and getattr(owner, "__module__", None) != module
    if is_elsewhere and not _is_inherited(found):
        raise ConfigError(
            f"network '{reference}' is refused: it is defined in {getattr(owner, '__module__', 'another module')}; "
            "name it where it is defined, or wrap it in a function of your own"
        )
    try:
        inspect.signature(found).bind(1, 2, **dict.fromkeys(ARGUMENTS), **_required_kwargs(found))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{source_location(found)}: network '{reference}': {error}; it is called as "
            "fn(num_input_channels, num_output_channels, *, patch_size, deep_supervision, **kwargs)"
        ) from error
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class MadeNetwork:
    """A builder that returns copies of a network, so that each training starts from the same weights."""

    network: nn.Module

    def __call__(
        self, num_input_channels: int, num_output_channels: int, *, patch_size: Any, deep_supervision: bool
    ) -> nn.Module:
        """Return a copy."""
        return copy.deepcopy(self.network)


def build_by_class_path(
    path: str,
    kwargs: Mapping[str, Any],
    num_input_channels: int,
    num_output_channels: int,
    *,
    deep_supervision: bool,
    trust: CodeTrust,
) -> nn.Module:
    """Build the network of a plan's class path that is none of nnU-Net's U-Nets, for a trusted model.

    nnU-Net behaviour 7.1.

    Raises:
        ConfigError: the class is not installed or not a network, or a layer is not a torch class.
        UserCodeError: it cannot be built.
    """
    cls = _import_class(path, trust)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"network '{path}' is not a torch.nn.Module class; the plan is damaged")
    resolved = {
        key: _layer_class(key, value, trust) if key in IMPORTED and isinstance(value, str) else value
        for key, value in kwargs.items()
    }
    arguments = {"input_channels": num_input_channels, "num_classes": num_output_channels, **resolved}
    with user_call(cls, f"network '{path}'", contract="the plan's arch_kwargs do not fit it"):
        return cls(**arguments, deep_supervision=deep_supervision)


def packages_of(network: nn.Module) -> frozenset[str]:
    """Return the top-level packages, except torch and segwright, that define layers of a network."""
    packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
    return frozenset(packages - {"torch", "segwright"})


def _import_class(path: str, trust: CodeTrust) -> Any:
    module, _, name = path.rpartition(".")
    return trust.load(f"{module}:{name}", kind="network")


def _layer_class(key: str, path: str, trust: CodeTrust) -> Any:
    """Return the class of a layer: torch's from a table, any other only if all code is trusted."""
    if trust.everything:
        return _import_class(path, trust)
    return resolve_op(key, path)


def _required_kwargs(builder: Any) -> dict[str, None]:
    """Return the required arguments of a builder that only its kwargs can give; without them the call itself fails."""
    parameters = list(inspect.signature(builder).parameters.values())[2:]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = (each.name for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty)
    return {name: None for name in names if name not in ARGUMENTS}


def _is_inherited(found: Any) -> bool:
    """Return whether it is a network class, or the `rebuild_network` of a trainer class, which may be inherited."""
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    return inspect.ismethod(found) and isinstance(found.__self__, type) and found.__name__ == "rebuild_network"
