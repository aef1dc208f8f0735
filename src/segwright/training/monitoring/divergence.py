"""Steps without a finite loss or gradient: which cases they had, and the end of a training that makes no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from segwright.core.errors import ModelError, SegwrightError

LIMIT: Final = 20
"""So many steps in a row without a finite loss and gradient end a training. Half precision, whose scale is halved at
each of them, has found one that fits long before."""

LOOK_EVERY: Final = 10
"""Steps between two looks at an accelerator's counter: each look waits for the device."""


class DivergedError(SegwrightError):
    """A training that makes no step any more."""


class DivergenceMonitor:
    """Follows the losses of a training, NaN where a step was skipped; counts on the device, so that none waits for it.

    Args:
        limit: steps in a row that are too many.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._cases: dict[int, list[str]] = {}
        self._in_a_row: Tensor | None = None
        self._seen = 0

    def begin_epoch(self) -> None:
        """Forget the cases of the epoch before."""
        self._cases = {}

    def see(self, step: int, loss: Tensor, cases: Sequence[str]) -> None:
        """Take note of a step of the epoch: its loss (scalar, on the device) and the cases of its batch.

        Raises:
            DivergedError: too many in a row were skipped.
        """
        self._cases[step] = list(cases)
        skipped = ~torch.isfinite(loss.detach())
        before = torch.zeros((), dtype=torch.int64, device=loss.device) if self._in_a_row is None else self._in_a_row
        self._in_a_row = torch.where(skipped, before + 1, 0)
        self._seen += 1
        if loss.device.type == "cpu" or self._seen % LOOK_EVERY == 0:
            self._require_steps(step)

    @property
    def is_well(self) -> bool:
        """Whether the last step was made: only then are the weights worth keeping. Waits for the device."""
        return self._in_a_row is None or int(self._in_a_row) == 0

    def cases_of(self, steps: Iterable[int]) -> list[str]:
        """Return the cases of some steps of this epoch, each once."""
        return sorted({case for step in steps for case in self._cases.get(step, ())})

    def _require_steps(self, step: int) -> None:
        count = 0 if self._in_a_row is None else int(self._in_a_row)
        if count >= self.limit:
            cases = ", ".join(self.cases_of(range(step - count + 1, step + 1)))
            raise DivergedError(
                f"{count} training steps in a row had no finite loss or gradient (cases {cases}); the last good "
                "checkpoint is kept. Look at these cases ('segwright check'), lower initial_lr, or train with "
                "--set precision=fp32, and continue with --resume"
            )


def check_loss(loss: Tensor, output: Any, data: Tensor, cases: Sequence[str]) -> None:
    """Look at the first loss of a training: a fresh network has to give a finite one, which depends on its weights.

    A batch that is itself not finite says nothing about the network; its step will be skipped and its cases named.

    Raises:
        ModelError: loss or output is not finite, and which of them.
    """
    if not loss.requires_grad:
        raise ModelError(
            "the first loss does not depend on the weights of the network, so that nothing can be learned; see that "
            "neither network nor loss detaches its result (detach, no_grad, argmax, numpy)"
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
