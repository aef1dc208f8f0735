"""Fit the expected Dice and the temperature of a selected model on its held-out cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segwright.api.preparing import cases_are_fresh, cases_folder, preprocess_cases
from segwright.api.selection.trained_models import TrainedModel
from segwright.api.session import Session
from segwright.data.preprocessed.previous_stage import FOLDER, StageMaps
from segwright.data.preprocessed.store import CaseStore
from segwright.evaluation import calibration, dice_estimator
from segwright.evaluation.scores import Scores
from segwright.inference.reliability.calibration import Calibration
from segwright.inference.reliability.expected_dice import DiceEstimator

if TYPE_CHECKING:
    from segwright.training.validation.out_of_fold import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Dice estimator and calibration, fitted to held-out cases; None where no held-out case can be used."""

    dice_estimator: DiceEstimator | None
    calibration: Calibration | None


def fit_estimates(
    session: Session,
    members: Sequence[TrainedModel],
    predictions: Mapping[str, Path],
    scores: Scores,
    *,
    device: str = "auto",
    workers: int | None = None,
) -> Estimates:
    """Return the estimates of a model, or of a pair, from its predictions of held-out cases.

    Args:
        session: of the dataset.
        members: the one or two models.
        predictions: label map of each case, with its statistics in the same folder.
        scores: of the cases, in their order.
        device: auto, cpu, mps or a GPU, where cases must be predicted again.
        workers: threads.
    """
    from segwright.training.validation.out_of_fold import collect_stats
    from segwright.training.validation.reliability import CaseStats, stats_file

    if len(members) == 1:  # those of a pair were recorded when it was predicted
        for fold, files in members[0].crossval.files.items():
            missing = [case for case, file in files.items() if not stats_file(file.parent, case).is_file()]
            if missing:
                member = make_member(session, members[0], workers=workers)
                collect_stats(member, files[missing[0]].parent, fold, missing, device=device, trust=session.trust)
    stats = {case: CaseStats.load(file.parent, case) for case, file in predictions.items()}
    held_out = [
        dice_estimator.HeldOut(
            observation=stats[case].observation,
            dice=score.mean_dice,
            present=tuple(measures.n_ref > 0 for measures in score.metrics.values()),
        )
        for case, score in zip(predictions, scores.metric_per_case, strict=True)
        if not math.isnan(score.mean_dice)
    ]
    mirror_axes = next(iter(stats.values())).mirror_axes
    calibrations = [each.calibration for each in stats.values() if each.calibration is not None]
    return Estimates(
        dice_estimator=dice_estimator.fit(held_out, mirror_axes), calibration=calibration.fit(calibrations)
    )


def make_member(session: Session, model: TrainedModel, *, workers: int | None) -> Member:
    """Pair a model with its preprocessed cases, for a cascade with the previous stage's predictions.

    Cases that are missing or outdated are preprocessed first.
    """
    from segwright.training.validation.out_of_fold import Member

    plan, name = model.plan, model.configuration
    if not cases_are_fresh(session, plan, name):
        preprocess_cases(session, plan, name, workers=workers)
    store = CaseStore(cases_folder(session, plan, name))
    previous = plan.configuration(name).previous_stage
    if previous is None:
        return Member(folder=model.folder, cases=store)
    from segwright.inference.cascade import previous_stage_folder
    from segwright.training.cascade import CascadeStore

    maps = StageMaps(previous_stage_folder(model.folder, name, previous) / FOLDER / name)
    return Member(folder=model.folder, cases=CascadeStore(store, maps))
