"""Detect divergence: count steps without a finite loss or gradient, name their cases, stop after too many in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from segwright.core.errors import ModelError, SegwrightError

LIMIT: Final = 20
"""Number of steps in a row without a finite loss and gradient that stops a training. In fp16 each of them halves the
gradient scale, which is small enough long before."""

CHECK_INTERVAL: Final = 10
"""Steps between two checks of the counter on an accelerator, since each check waits for the device."""


class DivergedError(SegwrightError):
    """Too many training steps in a row were skipped."""


class DivergenceMonitor:
    """Counts steps in a row whose loss is not finite (NaN where a step was skipped), without waiting for the device.

    Args:
        limit: number of such steps that stops the training.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._cases: dict[int, list[str]] = {}
        self._in_a_row: Tensor | None = None
        self._num_steps = 0

    def begin_epoch(self) -> None:
        """Forget the cases of the previous epoch."""
        self._cases = {}

    def add_step(self, step: int, loss: Tensor, cases: Sequence[str]) -> None:
        """Add a step of the epoch: its loss (scalar, on the device) and the cases of its batch.

        Raises:
            DivergedError: too many steps in a row were skipped.
        """
        self._cases[step] = list(cases)
        skipped = ~torch.isfinite(loss.detach())
        before = torch.zeros((), dtype=torch.int64, device=loss.device) if self._in_a_row is None else self._in_a_row
        self._in_a_row = torch.where(skipped, before + 1, 0)
        self._num_steps += 1
        if loss.device.type == "cpu" or self._num_steps % CHECK_INTERVAL == 0:
            self._require_finite(step)

    @property
    def last_step_is_finite(self) -> bool:
        """Whether the last step was not skipped, so that the weights may be saved. Waits for the device."""
        return self._in_a_row is None or int(self._in_a_row) == 0

    def cases_of(self, steps: Iterable[int]) -> list[str]:
        """Return the cases of these steps of the epoch, sorted, each once."""
        return sorted({case for step in steps for case in self._cases.get(step, ())})

    def _require_finite(self, step: int) -> None:
        count = 0 if self._in_a_row is None else int(self._in_a_row)
        if count >= self.limit:
            cases = ", ".join(self.cases_of(range(step - count + 1, step + 1)))
            raise DivergedError(
                f"{count} training steps in a row had no finite loss or gradient (cases {cases}); the last good "
                "checkpoint is kept. Check these cases ('segwright check'), or remove the fold folder and train again "
                "with a lower --set initial_lr=VALUE or with --set precision=fp32"
            )


def check_loss(loss: Tensor, output: Any, data: Tensor, cases: Sequence[str]) -> None:
    """Check the first loss of a training, which must be finite and depend on the network's weights.

    A batch whose images are not finite is not checked; its step is skipped and its cases are logged.

    Raises:
        ModelError: loss or output is not finite, or the loss does not depend on the weights.
    """
    if not loss.requires_grad:
        raise ModelError(
            "the first loss does not depend on the weights of the network, so that nothing can be learned; make sure "
            "that neither network nor loss detaches its result (detach, no_grad, argmax, numpy)"
        )
    if bool(torch.isfinite(loss)) or not bool(torch.isfinite(data).all()):
        return
    levels = output if isinstance(output, list | tuple) else [output]
    broken = [index for index, level in enumerate(levels) if not bool(torch.isfinite(level).all())]
    what = f"output {broken[0]} of the network is not finite" if broken else "the loss of its finite output is not"
    raise ModelError(
        f"the first batch (cases {', '.join(cases)}) gives the loss {float(loss.detach())}, expected a finite number: "
        f"{what}; the images are finite"
    )
