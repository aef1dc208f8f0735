"""Decide by the Dice of predictions for which labels to keep only the largest component (nnU-Net behaviour 12.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from segwright.data.labels import ClassKey, Labels
from segwright.evaluation.scores import Scores, class_key_text, evaluate_files
from segwright.inference.export.postprocessing import Decision, KeepLargest, PostProcessing

logger = getLogger(__name__)

ALL_FOREGROUND = "all foreground"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumGain:
    """Smallest gain, and smallest number of cases, with which a step is accepted.

    Attributes:
        gain: of the mean Dice.
        cases: on which it was measured.
    """

    gain: float = 0.0
    cases: int = 1

    def __str__(self) -> str:
        return f"mean Dice +{self.gain:g} on {self.cases} cases"


ANY_GAIN = MinimumGain()
"""nnU-Net's rule: any gain."""
CLEAR_GAIN = MinimumGain(gain=0.001, cases=5)
"""For selected models: only three digits of the Dice are reproducible between trainings, and on fewer cases a single
stray component decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostProcessingResult:
    """The chosen post-processing.

    Attributes:
        processing: its steps, and the decision on every label.
        before: scores without it.
        after: scores with it.
    """

    processing: PostProcessing
    before: Scores
    after: Scores


def determine(
    pairs: Sequence[tuple[Path, Path]],
    *,
    labels: Labels,
    reader: str,
    workers: int | None = None,
    minimum: MinimumGain = ANY_GAIN,
) -> PostProcessingResult:
    """Choose post-processing on pairs of reference and prediction files.

    First all foreground labels together: accepted if the mean foreground Dice rises and that of no class falls. Then,
    with several classes, each class after the accepted steps: accepted if its own mean Dice rises. As in nnU-Net, the
    first step is never accepted if a class occurs in no case, because the mean foreground Dice is NaN then.

    Args:
        pairs: reference first; at least one. They are read again in each pass, so that at most `workers` cases are in
            memory: at most four passes for labels, and two for each region if regions overlap.
        labels: of the dataset.
        reader: of the files.
        workers: threads.
        minimum: gain from which a step is accepted; any gain by default, as in nnU-Net.
    """

    def is_clear_gain(before: float, after: float) -> bool:
        return after > before and after - before >= minimum.gain and len(pairs) >= minimum.cases

    def score(steps: Sequence[KeepLargest]) -> Scores:
        change = PostProcessing(steps=tuple(steps)) if steps else None
        title = "post-processing"
        return evaluate_files(pairs, labels=labels, reader=reader, workers=workers, change=change, title=title)

    before = current = score(())
    steps: list[KeepLargest] = []
    foreground = KeepLargest(labels=labels.foreground_labels)
    tried = score([foreground])
    dice = (current.foreground_mean.dice, tried.foreground_mean.dice)
    harmed = any(tried.mean[key].dice < current.mean[key].dice for key in current.mean)
    decisions = [
        Decision(
            name=ALL_FOREGROUND,
            labels=foreground.labels,
            before=dice[0],
            after=dice[1],
            accepted=is_clear_gain(*dice) and not harmed,
            is_unclear=dice[1] > dice[0] and not harmed and not is_clear_gain(*dice),
        )
    ]
    if decisions[0].accepted:
        steps, current = [foreground], tried
    keys = labels.evaluation_classes()
    for group in disjoint_groups(keys) if len(keys) > 1 else []:
        candidates = [KeepLargest.model_validate({"labels": key}) for key in group]
        tried = score([*steps, *candidates])
        accepted = []
        for key, candidate in zip(group, candidates, strict=True):
            without, with_step = (scores.mean[class_key_text(key)].dice for scores in (current, tried))
            is_accepted = is_clear_gain(without, with_step)
            accepted += [candidate] * is_accepted
            decisions.append(
                Decision(
                    name=labels.class_name(key),
                    labels=candidate.labels,
                    before=without,
                    after=with_step,
                    accepted=is_accepted,
                    is_unclear=with_step > without and not is_accepted,
                )
            )
        steps += accepted
        if accepted:
            current = tried if len(accepted) == len(group) else score(steps)
    processing = PostProcessing(
        steps=tuple(steps),
        decisions=tuple(decisions),
        dice_before=before.mean_dice,
        dice_after=current.mean_dice,
        cases=len(pairs),
    )
    _log(processing, minimum)
    return PostProcessingResult(processing=processing, before=before, after=current)


def disjoint_groups(keys: Sequence[ClassKey]) -> list[list[ClassKey]]:
    """Group neighbouring keys that share no label, in their order: their steps are independent.

    >>> disjoint_groups([1, 2, 3]), disjoint_groups([(1, 2), 2, 3])
    ([[1, 2, 3]], [[(1, 2)], [2, 3]])
    """
    groups: list[list[ClassKey]] = []
    seen: set[int] = set()
    for key in keys:
        values = {key} if isinstance(key, int) else set(key)
        if not groups or values & seen:
            groups.append([])
            seen = set()
        groups[-1].append(key)
        seen |= values
    return groups


def _log(processing: PostProcessing, minimum: MinimumGain) -> None:
    unclear = [decision.name for decision in processing.decisions if decision.is_unclear]
    accepted = [decision.name for decision in processing.decisions if decision.accepted]
    if accepted:
        logger.info(
            "post-processing keeps the largest component of %s: mean Dice %.4f -> %.4f on %d cases",
            *(", ".join(accepted), processing.dice_before, processing.dice_after, processing.cases),
        )
    elif unclear:
        logger.info(
            "post-processing: keeping the largest component of %s is not chosen, it helps by less than %s",
            *(", ".join(unclear), minimum),
        )
    else:
        logger.info("post-processing: keeping the largest component helps nowhere on %s cases", processing.cases)
