"""Choose the model, or pair of models, that predicts held-out cases best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from segwright.core.errors import ModelError
from segwright.evaluation.scores import Scores
from segwright.evaluation.statistics import dice_table, interval, margin_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model, or an ensemble.

    Attributes:
        name: as nnU-Net calls it.
        members: names of the models.
        scores: of the held-out cases of all folds, in one order of cases for all candidates.
    """

    name: str
    members: tuple[str, ...]
    scores: Scores

    @property
    def dice(self) -> float:
        """Mean foreground Dice over the classes that occur."""
        return self.scores.mean_dice


class CandidateSummary(BaseModel):
    """A candidate of a selection.

    Attributes:
        name: of the model, or of both models of an ensemble.
        members: names of its models.
        dice: mean foreground Dice of the held-out cases.
        interval: 95 % interval of `dice`; None with few cases.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    members: tuple[str, ...]
    dice: float
    interval: tuple[float, float] | None


class Summary(BaseModel):
    """A comparison as it is stored; see `Selection`.

    Attributes:
        folds: whose held-out cases were compared.
        cases: number of these cases.
        candidates: models, then ensembles.
        winner: name of the candidate with the highest mean foreground Dice.
        runner_up: name of the best of the others; None without others.
        margin: mean foreground Dice of the winner less that of the runner-up; None without others.
        margin_interval: its 95 % interval; None with few cases.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    folds: tuple[int, ...]
    cases: int
    candidates: tuple[CandidateSummary, ...]
    winner: str
    runner_up: str | None
    margin: float | None
    margin_interval: tuple[float, float] | None

    @property
    def dice(self) -> float:
        """Mean foreground Dice of the winner."""
        return next(candidate.dice for candidate in self.candidates if candidate.name == self.winner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The comparison of the candidates.

    Attributes:
        candidates: in the given order: single models before pairs.
        winner: highest mean foreground Dice; of equals the first.
        runner_up: the best of the others; None without others.
        folds: whose held-out cases were compared.
    """

    candidates: tuple[Candidate, ...]
    winner: Candidate
    runner_up: Candidate | None
    folds: tuple[int, ...]

    @property
    def margin(self) -> float | None:
        """Mean foreground Dice of the winner less that of the runner-up."""
        return None if self.runner_up is None else self.winner.dice - self.runner_up.dice

    @property
    def margin_interval(self) -> tuple[float, float] | None:
        """95 % interval of the margin, bootstrap over cases; None with few cases."""
        if self.runner_up is None:
            return None
        return margin_interval(dice_table(self.winner.scores), dice_table(self.runner_up.scores))

    def summary(self) -> Summary:
        """Return the comparison as it is stored."""
        return Summary(
            folds=self.folds,
            cases=len(self.winner.scores.metric_per_case),
            candidates=tuple(
                CandidateSummary(
                    name=candidate.name,
                    members=candidate.members,
                    dice=candidate.dice,
                    interval=interval(dice_table(candidate.scores)),
                )
                for candidate in self.candidates
            ),
            winner=self.winner.name,
            runner_up=None if self.runner_up is None else self.runner_up.name,
            margin=self.margin,
            margin_interval=self.margin_interval,
        )


def choose(candidates: Sequence[Candidate], folds: Sequence[int]) -> Selection:
    """Compare candidates, at least one (nnU-Net behaviour 12.3).

    A class that no case has is left out; in nnU-Net the mean would be NaN and the selection would fail.

    Raises:
        ModelError: no class is in any case.
    """
    for candidate in candidates:
        if math.isnan(candidate.dice):
            raise ModelError(f"{candidate.name}: no class is in any held-out case; nothing can be compared")
    ranked = sorted(candidates, key=lambda candidate: -candidate.dice)  # stable: of equals the first
    return Selection(
        candidates=tuple(candidates),
        winner=ranked[0],
        runner_up=ranked[1] if len(ranked) > 1 else None,
        folds=tuple(folds),
    )


def ensemble_name(first: str, second: str, folds: Sequence[int]) -> str:
    """Return nnU-Net's name of a pair.

    >>> ensemble_name("T__P__2d", "T__P__3d_fullres", (0, 2))
    'ensemble___T__P__2d___T__P__3d_fullres___0_2'
    """
    return f"ensemble___{first}___{second}___{'_'.join(map(str, folds))}"
