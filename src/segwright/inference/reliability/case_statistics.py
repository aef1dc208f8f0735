"""Statistics of one case, collected during its prediction; torch is not needed to read them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydantic import BaseModel, ConfigDict


class Observation(BaseModel):
    """Statistics of one case from its prediction on the network's grid.

    Attributes:
        volumes: predicted volume of each foreground class, mm^3.
        overlaps: soft Dice of each foreground class between its label map and its probabilities: the expected Dice if
            the probabilities are right. None where the class is neither predicted nor probable.
        entropy: from 0 to 1: H / (H + n), with the summed entropy H of the voxels, in nats, and n foreground voxels.
        disagreement: the same of the disagreement of folds and mirrored views; None where it was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    volumes: tuple[float, ...]
    overlaps: tuple[float | None, ...]
    entropy: float
    disagreement: float | None = None

    @property
    def confidence(self) -> float | None:
        """Mean expected overlap over the classes that are predicted or probable; None without any."""
        known = [overlap for overlap in self.overlaps if overlap is not None]
        return float(np.mean(known)) if known else None

    @classmethod
    def mean(cls, observations: Iterable[Observation]) -> Observation:
        """Return the mean statistics of several models for one case."""
        several = list(observations)
        columns = zip(*(each.overlaps for each in several), strict=True)
        overlaps = [[value for value in values if value is not None] for values in columns]
        measured = [each.disagreement for each in several if each.disagreement is not None]
        return cls(
            volumes=tuple(np.mean([each.volumes for each in several], axis=0).tolist()),
            overlaps=tuple(float(np.mean(values)) if values else None for values in overlaps),
            entropy=float(np.mean([each.entropy for each in several])),
            disagreement=float(np.mean(measured)) if len(measured) == len(several) else None,
        )
