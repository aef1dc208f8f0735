"""Write what a time budget has room for into a plan, with its reasons."""

from __future__ import annotations

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
    documents = {
        name: _document(choice.chosen.configuration) | {"time_budget_s": budget_s} for name, choice in choices.items()
    }
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
        reason=f"{_room(choice.chosen, budget_s)} in {budget}; {_next(choice, budget_s)}",
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
        reason="on this machine; the shortest of some steps on random patches, rounded to half a power of two",
    )


def _document(configuration: Configuration) -> dict[str, Any]:
    return configuration.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _size(configuration: Configuration) -> dict[str, Any]:
    features = configuration.architecture.arch_kwargs["features_per_stage"]
    return {
        "patch size": list(configuration.patch_size),
        "batch size": configuration.batch_size,
        "features": list(features),
    }


def _room(candidate: Candidate, budget_s: float) -> str:
    how = "takes" if candidate.is_timed else "would take about"
    return f"a step {how} {candidate.step_s:.3g} s, which leaves room for {candidate.steps(budget_s):,} steps"


def _next(choice: Choice, budget_s: float) -> str:
    later = next_budget_s(choice)
    if later is None:
        return "that is enough for the plan without a budget"
    larger = choice.candidates[choice.index + 1]
    size = larger.configuration
    features = size.architecture.arch_kwargs["features_per_stage"][0]
    is_full = choice.index + 1 == len(choice.candidates) - 1
    what = "the plan without a budget" if is_full else f"patch {format_sizes(size.patch_size)}, {features} features"
    return f"{what}: {_room(larger, budget_s)}, too few; it is chosen from about {short_duration(later)} on"


def _spacing_reason(choice: Choice, factor: float) -> str:
    usual = "that of the plan without a budget"
    if choice.is_full:
        return usual
    limit = f"the labels keep {LEAST_KEPT:.0%} of their Dice up to {choice.allowed:g} times that spacing"
    if factor > 1:
        return f"{factor:.3g} times {usual}, so that a patch covers more of the image; {limit}"
    return f"{usual}; {limit}"
