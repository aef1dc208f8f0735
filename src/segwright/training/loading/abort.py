"""Abort the running training step when the next batch cannot be made."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class StepAborter:
    """Raises an error in the forward or backward pass of a network that runs in another thread, at its next layer.

    A step of large patches takes minutes on a CPU, too long to wait for when the run cannot continue.
    Hooks are registered only when there is an error, so that the network otherwise runs and compiles as if there were
    none. They are removed once they have raised, and at the end of the block.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._handles: list[RemovableHandle] = []

    def abort(self, error: BaseException) -> None:
        """Raise `error` in the running pass; may be called from any thread."""

        def end_step(*_: Any) -> None:
            self.remove_hooks()
            raise error

        for module in self.network.modules():
            self._handles.append(module.register_forward_pre_hook(end_step))
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(end_step))  # type: ignore[no-untyped-call]

    def remove_hooks(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> StepAborter:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_hooks()
