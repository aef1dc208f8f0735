"""Why the plan is as it is: one entry per automatic decision, stored in the plan and printed by `--explain`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from segwright.core.errors import PlanError
from segwright.core.text import printable
from segwright.data.plan import Plan

EVERYWHERE = "all"
"""Configuration name of decisions that hold for the whole plan."""

_INDENT = "    "


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One automatic decision.

    Attributes:
        configuration: The configuration it belongs to, or `EVERYWHERE`.
        decision: What was decided about.
        value: The outcome, JSON-serialisable.
        because: The reason, one sentence with the numbers that led to it.
    """

    configuration: str
    decision: str
    value: Any
    because: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry as the plan stores it."""
        return {
            "configuration": self.configuration,
            "decision": self.decision,
            "value": self.value,
            "because": self.because,
        }


def decisions(plan: Plan) -> tuple[Decision, ...]:
    """Return the plan's recorded decisions; none for a plan that another program wrote.

    Raises:
        PlanError: the record was edited into something else.
    """
    entries = plan.segwright.get("rationale", ())
    try:
        return tuple(Decision(**entry) for entry in entries)
    except TypeError as error:
        raise PlanError(
            f"plans '{plan.plans_name}': segwright.rationale must be a list of entries with configuration, decision,"
            " value and because; make the plan again"
        ) from error


def explain(plan: Plan) -> str:
    """Return every decision with its reason as text, grouped by configuration."""
    recorded = decisions(plan)
    if not recorded:
        return f"plans '{plan.plans_name}' carry no reasons: they were not made by segwright"
    names = dict.fromkeys(entry.configuration for entry in recorded)
    blocks = [_block(name, [entry for entry in recorded if entry.configuration == name]) for name in names]
    return "\n\n".join([printable(f"{plan.plans_name} for {plan.dataset_name}"), *blocks])


def numbers(values: Iterable[float]) -> str:
    """Return sizes or spacings as text.

    >>> numbers((1.0, 0.76757812, 0.5))
    '1 x 0.767578 x 0.5'
    """
    return " x ".join(f"{value:.6g}" for value in values)


def shown(value: Any) -> str:
    """Return the value of a decision as text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {shown(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _block(name: str, entries: list[Decision]) -> str:
    title = "the whole plan" if name == EVERYWHERE else name
    lines = [f"{title}:"]
    for entry in entries:
        lines += [f"{_INDENT}{entry.decision}: {shown(entry.value)}", f"{_INDENT * 2}{entry.because}"]
    return "\n".join(map(printable, lines))
