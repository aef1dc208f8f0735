"""Write the sizes chosen for a time budget into a plan, with the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from segwright.core.text import short_duration
from segwright.data.plan import Configuration, Plan
from segwright.planning.rationale import EVERYWHERE, RATIONALE, Decision, format_sizes
from segwright.planning.time_budget import LEAST_KEPT, Candidate, Choice, next_budget_s


def with_choices(base: Plan, plans_name: str, choices: Mapping[str, Choice], budget_s: float) -> Plan:
    """Return a plan with the chosen configurations, and why they were chosen.

    Args:
        base: the full plan, or an earlier one of the name `plans_name`, whose configurations are kept.
        plans_name: name of the plan.
        choices: what was chosen for each configuration.
        budget_s: training time of a fold in seconds.
    """
    kept = base.configurations if base.plans_name == plans_name else {}
    documents = {name: _document(choice, budget_s) for name, choice in choices.items()}
    known = {EVERYWHERE, *kept} - {*documents}
    recorded = [entry for entry in base.segwright.get(RATIONALE, ()) if entry["configuration"] in known]
    added = [line.to_json() for name, choice in choices.items() for line in explain_choice(choice, name, budget_s)]
    return base.model_copy(
        update={
            "plans_name": plans_name,
            "configurations": {**kept, **documents},
            "segwright": {**base.segwright, RATIONALE: [*recorded, *added]},
        }
    )


def explain_choice(choice: Choice, name: str, budget_s: float) -> Iterator[Decision]:
    """Yield the decisions behind one configuration of a plan for a time budget."""
    chosen, full = choice.chosen.configuration, choice.candidates[-1].configuration
    budget = short_duration(budget_s)
    yield Decision(
        configuration=name,
        decision=f"size for {budget}",
        value=_size(chosen),
        reason=f"{_steps(choice.chosen, budget_s)} in {budget}; {_next(choice, budget_s)}",
    )
    yield Decision(
        configuration=name,
        decision="spacing",
        value=list(chosen.spacing),
        reason=_spacing_reason(choice, chosen.spacing[-1] / full.spacing[-1]),
    )
    yield Decision(
        configuration=name,
        decision="timed steps",
        value=[{**_size(each.configuration), "seconds": each.step_s} for each in choice.candidates if each.is_timed],
        reason="seconds of a training step on this machine: the shortest of several, rounded to half a power of two",
    )


def _document(choice: Choice, budget_s: float) -> dict[str, Any]:
    document = choice.chosen.configuration.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return document if choice.is_full else {**document, "time_budget_s": budget_s}


def _size(configuration: Configuration) -> dict[str, Any]:
    features = configuration.architecture.arch_kwargs["features_per_stage"]
    return {
        "patch size": list(configuration.patch_size),
        "batch size": configuration.batch_size,
        "features": list(features),
    }


def _steps(candidate: Candidate, budget_s: float) -> str:
    how = "takes" if candidate.is_timed else "would take about"
    return f"a step {how} {candidate.step_s:.3g} s, which allows {candidate.steps(budget_s):,} steps"


def _next(choice: Choice, budget_s: float) -> str:
    larger, later = choice.larger, next_budget_s(choice)
    if larger is None or later is None:
        return "enough for the plan without a budget"
    size = larger.configuration
    features = size.architecture.arch_kwargs["features_per_stage"][0]
    is_full = larger is choice.candidates[-1]
    what = "the plan without a budget" if is_full else f"patch {format_sizes(size.patch_size)}, {features} features"
    least = short_duration(60 * math.ceil(later / 60))
    return f"{what}: {_steps(larger, budget_s)}, too few; it needs a budget of about {least}"


def _spacing_reason(choice: Choice, factor: float) -> str:
    usual = "that of the plan without a budget"
    if choice.is_full:
        return usual
    limit = f"the labels keep {LEAST_KEPT:.0%} of their Dice up to {choice.allowed:g} times that spacing"
    if factor > 1:
        return f"{factor:.3g} times {usual}, so that a patch covers more of the image; {limit}"
    return f"{usual}; {limit}"
