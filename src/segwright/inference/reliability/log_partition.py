"""The logarithm of the summed exponentials of logits, by which `uncertainty` measures disagreement.

Legend: B samples, H heads, P spatial axes of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from segwright.data.labels import Labels
from segwright.inference.window.sliding import ConvexFunction

_HEADS_AT_ONCE = 8


def log_partition(labels: Labels) -> ConvexFunction:
    """Return G of the heads of `labels`, a few heads at a time: it needs no second array of logits."""

    def of_labels(logits: Tensor) -> Tensor:
        found: Tensor | None = None
        for part in torch.split(logits, _HEADS_AT_ONCE, dim=1):
            value = torch.logsumexp(part.float(), dim=1, keepdim=True)
            found = value if found is None else torch.logaddexp(found, value)
        assert found is not None, "there is at least one head"
        return found

    def of_regions(logits: Tensor) -> Tensor:
        parts = torch.split(logits, _HEADS_AT_ONCE, dim=1)
        found = softplus(parts[0].float()).sum(dim=1, keepdim=True)
        for part in parts[1:]:
            found += softplus(part.float()).sum(dim=1, keepdim=True)
        return found

    return of_regions if labels.has_regions else of_labels
