"""Whether keeping only the largest component helps, decided on scored predictions as nnU-Net does (spec B 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from segwright.data.labels import ClassKey, Labels
from segwright.evaluation.scores import Scores, class_key_text, evaluate_files
from segwright.inference.postprocessing import Decision, KeepLargest, PostProcessing

logger = getLogger(__name__)

ALL_FOREGROUND = "all foreground"


@dataclass(frozen=True, slots=True, kw_only=True)
class Determined:
    """Post-processing, and the scores without and with it."""

    processing: PostProcessing
    before: Scores
    after: Scores


def determine(
    pairs: Sequence[tuple[Path, Path]], *, labels: Labels, reader: str, workers: int | None = None
) -> Determined:
    """Decide about post-processing on pairs of a reference and a prediction file.

    First all foreground labels together: accepted where the mean foreground Dice rises and that of no class falls.
    Then, with several classes, each one on top of what was accepted: where its own mean Dice rises. As with nnU-Net
    the first step is never accepted where a class is in no case: the mean foreground Dice is NaN then.

    Args:
        pairs: reference first; at least one. Read anew in each of at most four passes for labels, and two for each
            region where regions overlap, so that no more than `workers` cases are in memory.
        labels: say which classes there are.
        reader: of the files.
        workers: threads.
    """

    def score(steps: Sequence[KeepLargest]) -> Scores:
        change = PostProcessing(steps=tuple(steps)) if steps else None
        title = "post-processing"
        return evaluate_files(pairs, labels=labels, reader=reader, workers=workers, change=change, title=title)

    before = current = score(())
    steps: list[KeepLargest] = []
    foreground = KeepLargest(labels=labels.foreground_labels)
    tried = score([foreground])
    better = tried.foreground_mean.dice > current.foreground_mean.dice
    harmed = any(tried.mean[key].dice < current.mean[key].dice for key in current.mean)
    decisions = [
        Decision(
            name=ALL_FOREGROUND,
            labels=foreground.labels,
            before=current.foreground_mean.dice,
            after=tried.foreground_mean.dice,
            accepted=better and not harmed,
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
            dice = [scores.mean[class_key_text(key)].dice for scores in (current, tried)]
            rises = dice[1] > dice[0]
            accepted += [candidate] * rises
            decisions.append(
                Decision(
                    name=labels.class_name(key), labels=candidate.labels, before=dice[0], after=dice[1], accepted=rises
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
    _say(processing)
    return Determined(processing=processing, before=before, after=current)


def disjoint_groups(keys: Sequence[ClassKey]) -> list[list[ClassKey]]:
    """Return the keys in their order, neighbours together that share no label: their steps do not touch each other.

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


def _say(processing: PostProcessing) -> None:
    accepted = [decision.name for decision in processing.decisions if decision.accepted]
    if accepted:
        logger.info(
            "post-processing keeps the largest component of %s: mean Dice %.4f -> %.4f on %d cases",
            *(", ".join(accepted), processing.dice_before, processing.dice_after, processing.cases),
        )
    else:
        logger.info("post-processing: keeping the largest component helps nowhere on %s cases", processing.cases)
