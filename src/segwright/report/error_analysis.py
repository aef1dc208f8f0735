"""Say which classes and which kind of cases lose most Dice: size, contrast, and position of the slices.

A relation is stated only if enough cases show it, and if it is significant after correction for all that were tested.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy import stats

from segwright.data.labels import Labels
from segwright.evaluation.scores import Scores, class_key
from segwright.evaluation.statistics import dice_table, few_cases_note, holm, margin_interval, measure_table
from segwright.report.case_errors import UNKNOWN_ENDS, CaseErrors, Floats

MIN_CASES: Final = 10
"""Cases from which on a relation is tested: of fewer, only rank correlations above 0.65 could be significant."""
MIN_CORRELATION: Final = 0.3
MIN_DIFFERENCE: Final = 0.02
"""Smaller differences of Dice between thirds are not worth annotating for."""
_SIGNIFICANT = 0.05
_MAX_NAMED = 3
"""Classes whose missed and invented structures are counted in words."""
_MAX_RELATIONS = 8
"""Relations in words, those of the classes that lose most; the table has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A relation of the Dice of a class in `cases` cases; `value` is a rank correlation, or a difference of Dice."""

    value: float
    cases: int
    p: float
    smallest: float

    @property
    def is_clear(self) -> bool:
        """Whether it is significant and large enough to act on."""
        return self.p < _SIGNIFICANT and abs(self.value) >= self.smallest


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoss:
    """What one class loses.

    Attributes:
        name: of the class.
        lost: 1 - mean Dice.
        share: of what all classes lose, 0 to 1.
        cases: scored cases with the class in true or predicted labels.
        worst_in: those in which no other class has a lower Dice.
        missed: cases that have the class, of which nothing is found.
        invented: cases without the class in which it is predicted.
        without: cases that do not have the class.
        relations: by `size`, `contrast`, `first` and `last` (third less the middle one); untested ones are missing.
        thirds: Dice of each measured case by thirds of its slices; (cases, 3).
    """

    name: str
    lost: float
    share: float
    cases: int
    worst_in: int
    missed: int
    invented: int
    without: int
    relations: Mapping[str, Relation]
    thirds: Floats

    @property
    def mean_thirds(self) -> tuple[float, ...]:
        """Mean Dice by thirds; empty if not measured."""
        return tuple(self.thirds.mean(axis=0).tolist()) if len(self.thirds) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnalysis:
    """What loses most.

    Attributes:
        classes: those that lose most first.
        ends: names of the first and the last third of the slices.
        measured: number of cases whose images were measured.
        sentences: the findings in words.
    """

    classes: tuple[ClassLoss, ...]
    ends: tuple[str, str]
    measured: int
    sentences: tuple[str, ...]


def analyse_errors(scores: Scores, labels: Labels, measured: Mapping[str, CaseErrors]) -> ErrorAnalysis | None:
    """Return what loses most in scored cases; None if nothing is lost, or no case has any class.

    Args:
        scores: of all cases.
        labels: of the model.
        measured: some of the cases, by the name of the prediction's file.
    """
    dice = dice_table(scores)
    names = [labels.class_name(class_key(key)) for key in scores.mean]
    present = np.isfinite(dice)
    if not present.any():
        return None
    lost = np.array([1 - dice[found, column].mean() if found.any() else 0 for column, found in enumerate(present.T)])
    if lost.sum() <= 0:
        return None
    sizes = measure_table(scores, "n_ref")
    lowest = np.where(present, dice, np.inf).min(axis=1, keepdims=True)
    ends, thirds, contrast = _tables(scores, measured)
    raw = [
        _relations(dice[:, column], sizes[:, column], contrast[:, column], thirds[:, column])
        for column in range(len(names))
    ]
    relations = _corrected(raw)
    classes = [
        ClassLoss(
            name=name,
            lost=float(lost[column]),
            share=float(lost[column] / lost.sum()),
            cases=int(present[:, column].sum()),
            worst_in=int((present[:, column] & (dice[:, column] <= lowest[:, 0])).sum()),
            missed=int(((sizes[:, column] > 0) & (dice[:, column] == 0)).sum()),
            invented=int(((sizes[:, column] == 0) & present[:, column]).sum()),
            without=int((sizes[:, column] == 0).sum()),
            relations=relations[column],
            thirds=thirds[np.isfinite(thirds[:, column]).all(axis=1), column],
        )
        for column, name in enumerate(names)
        if present[:, column].any()
    ]
    ranked = sorted(classes, key=lambda each: -each.lost)  # stable: equal ones in the order of the labels
    lost_most = [1 - dice[:, [names.index(each.name)]] for each in ranked[:2]]
    order = margin_interval(*lost_most) if len(lost_most) > 1 else None
    sentences = (*_rank_sentences(ranked, len(dice), order), *_relation_sentences(ranked, ends, len(dice)))
    return ErrorAnalysis(classes=tuple(ranked), ends=ends, measured=len(measured), sentences=sentences)


def _tables(scores: Scores, measured: Mapping[str, CaseErrors]) -> tuple[tuple[str, str], Floats, Floats]:
    """Return the names of the ends, Dice by thirds (cases, classes, 3) and contrasts (cases, classes); NaN if unknown.

    Cases whose slices run along another axis of the body than those of most cases have no thirds.
    """
    counted = Counter(each.ends for each in measured.values())
    ends = counted.most_common(1)[0][0] if counted else UNKNOWN_ENDS
    thirds = np.full((len(scores.metric_per_case), len(scores.mean), 3), np.nan)
    contrast = np.full(thirds.shape[:2], np.nan)
    for row, case in enumerate(scores.metric_per_case):
        found = measured.get(case.case)
        for column, key in enumerate(scores.mean):
            if found is not None and found.ends == ends:
                thirds[row, column] = found.thirds.get(key, (math.nan,) * 3)
            if found is not None:
                contrast[row, column] = found.contrast.get(key, math.nan)
    return ends, thirds, contrast


def _relations(dice: Floats, size: Floats, contrast: Floats, thirds: Floats) -> dict[str, Relation]:
    """Return the relations of one class that can be tested, with uncorrected p.

    Args:
        dice: of each case, NaN without the class; (cases,).
        size: true voxels; (cases,).
        contrast: of the class; (cases,).
        thirds: Dice by thirds; (cases, 3).
    """
    relations = {}
    for name, values in (("size", size), ("contrast", contrast)):
        usable = np.isfinite(dice) & np.isfinite(values) & (size > 0)
        if usable.sum() >= MIN_CASES and len(set(values[usable])) > 2 and len(set(dice[usable])) > 2:
            found = stats.spearmanr(values[usable], dice[usable])
            relations[name] = Relation(
                value=float(found.statistic), cases=int(usable.sum()), p=float(found.pvalue), smallest=MIN_CORRELATION
            )
    known = thirds[np.isfinite(thirds).all(axis=1)]
    for name, column in (("first", 0), ("last", 2)):
        differences = known[:, column] - known[:, 1]
        if len(known) >= MIN_CASES and differences.any():
            p = float(stats.wilcoxon(differences).pvalue)
            value = float(differences.mean())
            relations[name] = Relation(value=value, cases=len(known), p=p, smallest=MIN_DIFFERENCE)
    return relations


def _corrected(relations: Sequence[Mapping[str, Relation]]) -> list[dict[str, Relation]]:
    """Return relations with p corrected for all that were tested."""
    corrected = iter(holm([relation.p for each in relations for relation in each.values()]))
    return [{name: replace(relation, p=next(corrected)) for name, relation in each.items()} for each in relations]


def _rank_sentences(ranked: Sequence[ClassLoss], num_cases: int, order: tuple[float, float] | None) -> Iterator[str]:
    """Yield which classes lose most; `order` is the interval of how much more the first one loses than the second."""
    first = ranked[0]
    if len(ranked) == 1:
        yield f"{first.name} loses {first.lost:.3f} Dice on average"
    else:
        yield (
            f"{first.name} loses most: {first.lost:.3f} Dice on average, {first.share:.0%} of what all {len(ranked)} "
            f"classes lose; no class has a lower Dice in {first.worst_in} of {num_cases} cases"
        )
        if note := few_cases_note(num_cases):
            yield f"{note}, so the order may be due to chance"
        elif order is not None and order[0] <= 0:
            yield f"whether {first.name} or {ranked[1].name} loses more is not certain: the interval includes both"
    for each in ranked[:_MAX_NAMED]:
        if each.missed:
            yield f"nothing of {each.name} is found in {each.missed} of {num_cases - each.without} cases that have it"
        if each.invented:
            yield f"{each.name} is predicted in {each.invented} of {each.without} cases that do not have it"


def _relation_sentences(ranked: Sequence[ClassLoss], ends: tuple[str, str], num_cases: int) -> Iterator[str]:
    """Yield the clear relations and what to annotate next, or that there are none."""
    found = list(_clear_relations(ranked, ends))
    if found:
        yield from found[:_MAX_RELATIONS]
        if len(found) > _MAX_RELATIONS:
            yield f"{len(found) - _MAX_RELATIONS} more relations of other classes are in the table"
    elif any(each.relations for each in ranked):
        yield "no clear relation of Dice with size, contrast or position of the slices"
    else:
        yield (
            f"{num_cases} case{'s' * (num_cases != 1)} cannot show whether Dice depends on size, contrast or position "
            f"of the slices: that takes {MIN_CASES} cases with a class"
        )


def _clear_relations(ranked: Sequence[ClassLoss], ends: tuple[str, str]) -> Iterator[str]:
    for each in ranked:
        for name, rare in (("size", ("small", "large")), ("contrast", ("low in contrast", "high in contrast"))):
            relation = each.relations.get(name)
            if relation is not None and relation.is_clear:
                verb, kind = ("rises", rare[0]) if relation.value > 0 else ("falls", rare[1])
                yield (
                    f"Dice of {each.name} {verb} with its {name} (rank correlation {relation.value:.2f} in "
                    f"{relation.cases} cases): annotate more cases in which it is {kind}"
                )
        worse = [
            f"{each.mean_thirds[position]:.2f} in the {end} third"
            for name, end, position in (("first", ends[0], 0), ("last", ends[1], 2))
            if (relation := each.relations.get(name)) is not None and relation.is_clear and relation.value < 0
        ]
        if worse:
            yield (
                f"Dice of {each.name} is {' and '.join(worse)} of its slices, {each.mean_thirds[1]:.2f} in the middle "
                f"({len(each.thirds)} cases): check where its labels end there, and annotate more of these slices"
            )
