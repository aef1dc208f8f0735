"""Networks of a user's own, found by `module:attr`; with care, because models come from other people.

A model folder names a function, it does not bring one. It is imported only where the user named it too or trusts the
model, and it must look like a network's builder before it is called.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from segwright.core.errors import ConfigError
from segwright.core.extensions.trust import CodeTrust
from segwright.core.extensions.user_code import source_location, user_call
from segwright.networks.architecture import resolve_op

IMPORTED: Final = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Arguments that nnU-Net plans give as dotted paths of torch's classes."""

ARGUMENTS: Final = ("patch_size", "deep_supervision")
"""Keywords that every builder takes."""


def import_network(reference: str, trust: CodeTrust, *, source: str) -> Callable[..., Any]:
    """Return the function or class behind `module:attr`; nothing of it is called.

    Args:
        reference: of the function or class.
        trust: what may be imported.
        source: the file or setting that names it.

    Raises:
        ModelError: it may not be imported.
        ConfigError: it is not there, belongs to Python's own library, was only imported into that module, or does not
            take a network's arguments.
    """
    trust.require(reference, kind="network", source=source, option="--network ")
    module = reference.partition(":")[0]
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        raise ConfigError(
            f"network '{reference}' is refused: {top} is Python's own library, no network is defined there"
        )
    found = trust.load(reference, kind="network")
    if not callable(found):
        raise ConfigError(f"network '{reference}' is not callable; name a function or a class")
    owner = getattr(found, "__func__", found)
    if getattr(owner, "__module__", None) != module and not _is_inherited(found):
        raise ConfigError(
            f"network '{reference}' is refused: it is defined in {getattr(owner, '__module__', 'another module')}; "
            "name it where it is defined, or wrap it in a function of your own"
        )
    try:
        inspect.signature(found).bind(1, 2, **dict.fromkeys(ARGUMENTS), **_more(found))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{source_location(found)}: network '{reference}': {error}; it is called as "
            "fn(num_input_channels, num_output_channels, *, patch_size, deep_supervision, **kwargs)"
        ) from error
    return found  # type: ignore[no-any-return]


def foreign_network(
    path: str,
    kwargs: Mapping[str, Any],
    num_input_channels: int,
    num_output_channels: int,
    *,
    deep_supervision: bool,
    trust: CodeTrust,
) -> nn.Module:
    """Build a network that nnU-Net plans name by another class path, for a model whose maker is trusted.

    nnU-Net behaviour 7.1.

    Raises:
        ConfigError: the class is not installed or not a network, or a layer is none of torch's.
        UserCodeError: it cannot be built.
    """
    cls = _by_path(path, trust)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"network '{path}' is no torch.nn.Module class; the plan is damaged")
    resolved = {
        key: _layer(key, value, trust) if key in IMPORTED and isinstance(value, str) else value
        for key, value in kwargs.items()
    }
    arguments = {"input_channels": num_input_channels, "num_classes": num_output_channels, **resolved}
    with user_call(cls, f"network '{path}'", contract="the plan's arch_kwargs do not suit it"):
        return cls(**arguments, deep_supervision=deep_supervision)


def packages_of(network: nn.Module) -> frozenset[str]:
    """Return the top-level packages, other than torch and ours, in which layers of a network are defined."""
    packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
    return frozenset(packages - {"torch", "segwright"})


def _by_path(path: str, trust: CodeTrust) -> Any:
    module, _, name = path.rpartition(".")
    return trust.load(f"{module}:{name}", kind="network")


def _layer(key: str, path: str, trust: CodeTrust) -> Any:
    """Return the class of a layer: torch's own by a table, another one where everything is trusted."""
    if trust.everything:
        return _by_path(path, trust)
    return resolve_op(key, path)


def _more(builder: Any) -> dict[str, None]:
    """Return further keywords that a builder insists on; its kwargs will give them, or a TypeError tells."""
    parameters = list(inspect.signature(builder).parameters.values())[2:]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = (each.name for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty)
    return {name: None for name in names if name not in ARGUMENTS}


def _is_inherited(found: Any) -> bool:
    """Whether it is the method of a trainer, which its subclass inherits, or a network's class."""
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    return inspect.ismethod(found) and isinstance(found.__self__, type) and found.__name__ == "rebuild_network"
