"""What was seen of a case while it was predicted, as a few numbers; torch is not needed to read them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydantic import BaseModel, ConfigDict


class Observation(BaseModel):
    """What was seen of one case while it was predicted, on the network's grid.

    Attributes:
        volumes: predicted volume of each foreground class, mm^3.
        overlaps: soft Dice of each foreground class between its label map and its probabilities: what Dice is to be
            expected if the probabilities are right. None where the class is neither predicted nor thought possible.
        entropy: from 0 to 1: summed entropy of the voxels, in nats, against the number of foreground voxels.
        disagreement: the same of the disagreement of folds and mirrored views; None where it was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    volumes: tuple[float, ...]
    overlaps: tuple[float | None, ...]
    entropy: float
    disagreement: float | None = None

    @property
    def confidence(self) -> float | None:
        """Mean expected overlap over the classes that are predicted or possible; None where there is none."""
        known = [overlap for overlap in self.overlaps if overlap is not None]
        return float(np.mean(known)) if known else None

    @classmethod
    def mean(cls, observations: Iterable[Observation]) -> Observation:
        """Return what several models saw of one case, averaged."""
        several = list(observations)
        columns = zip(*(each.overlaps for each in several), strict=True)
        overlaps = [[value for value in values if value is not None] for values in columns]
        spread = [each.disagreement for each in several if each.disagreement is not None]
        return cls(
            volumes=tuple(np.mean([each.volumes for each in several], axis=0).tolist()),
            overlaps=tuple(float(np.mean(values)) if values else None for values in overlaps),
            entropy=float(np.mean([each.entropy for each in several])),
            disagreement=float(np.mean(spread)) if len(spread) == len(several) else None,
        )
