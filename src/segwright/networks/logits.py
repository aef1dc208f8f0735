"""Find the logits in the outputs of a network that returns more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from segwright.core.extensions.given import GivenObject
from segwright.core.extensions.trust import REBUILD, CodeTrust
from segwright.core.extensions.user_code import user_call

LogitsOf = Callable[[Any], Any]
"""Returns logits (B, C, *S), or a list of them with the highest resolution first, from what a network returns."""


def load_logits_of(reference: str, trust: CodeTrust, *, source: str) -> LogitsOf:
    """Return the function behind a checkpoint's reference, or that of the trainer class which the user gave.

    Raises:
        ModelError: the reference may not be imported.
        ConfigError: it does not exist.
    """
    name = reference.rpartition(".")[2]
    given = getattr(trust.network, name, None)
    if given is not None:
        reference = GivenObject(reference, given)
    else:
        trust.require(reference.removesuffix(f".{name}") + REBUILD, kind="trainer", source=source)
    return trust.load(reference, kind=name)  # type: ignore[no-any-return]


@contextmanager
def logits_only(network: nn.Module, logits_of: LogitsOf | None) -> Iterator[None]:
    """Let a network return its logits alone during the block."""
    if logits_of is None:
        yield
        return
    handle = return_logits(network, logits_of)
    try:
        yield
    finally:
        handle.remove()


def return_logits(network: nn.Module, logits_of: LogitsOf) -> Any:
    """Let a network return its logits alone, and return the handle of the hook that does it.

    An error in `logits_of` is a `UserCodeError`, so that it is not taken for one of the network.
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        contract = f"it is called as logits_of(output) with what the network returned, here a {type(output).__name__}"
        with user_call(logits_of, "logits_of", contract=contract):
            return logits_of(output)

    return network.register_forward_hook(hook)
