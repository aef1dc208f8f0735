"""Ending a training step from another thread: the pass of a network that is running raises at its next layer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class StepAlarm:
    """Raises an error in the forward or backward pass of a network that runs in another thread, at its next layer.

    A step of large patches takes minutes on a CPU, too long to wait for when it is known that the run cannot go on.
    Hooks are set when the alarm is given, so a network without one runs, and compiles, as if there were none; they are
    gone once they have raised, and after the block.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._handles: list[RemovableHandle] = []

    def give(self, error: BaseException) -> None:
        """Have `error` raised; from any thread."""

        def end_step(*_: Any) -> None:
            self.withdraw()
            raise error

        for module in self.network.modules():
            self._handles.append(module.register_forward_pre_hook(end_step))
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(end_step))  # type: ignore[no-untyped-call]

    def withdraw(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> StepAlarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.withdraw()
