"""The rationale of a plan: each automatic decision with its reason, stored in the plan, printed by `--explain`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from segwright.core.errors import PlanError
from segwright.core.text import printable
from segwright.data.plan import Plan

EVERYWHERE = "all"
"""Configuration name of decisions that apply to the whole plan."""

RATIONALE = "rationale"
"""Key of the decisions in a plan, under its key `segwright`."""

_INDENT = "    "


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One automatic decision.

    Attributes:
        configuration: Name of a configuration, or `EVERYWHERE`.
        decision: Name of the planned value.
        value: The planned value, JSON-serialisable.
        reason: One sentence with the numbers that led to it.
    """

    configuration: str
    decision: str
    value: Any
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry in the format of the plan, where the reason is called `because`."""
        return {
            "configuration": self.configuration,
            "decision": self.decision,
            "value": self.value,
            "because": self.reason,
        }


def decisions(plan: Plan) -> tuple[Decision, ...]:
    """Return the decisions recorded in a plan; empty for a plan of another program.

    Raises:
        PlanError: the entries are malformed.
    """
    entries = plan.segwright.get(RATIONALE, ())
    try:
        return tuple(_decision(**entry) for entry in entries)
    except TypeError as error:
        raise PlanError(
            f"plans '{plan.plans_name}': segwright.rationale must be a list of entries with configuration, decision,"
            " value and because; make the plan again"
        ) from error


def explain(plan: Plan) -> str:
    """Format all decisions with their reasons, grouped by configuration."""
    recorded = decisions(plan)
    if not recorded:
        return f"plans '{plan.plans_name}' contain no reasons: they were not made by segwright"
    names = dict.fromkeys(entry.configuration for entry in recorded)
    blocks = [_block(name, [entry for entry in recorded if entry.configuration == name]) for name in names]
    return "\n\n".join([printable(f"{plan.plans_name} for {plan.dataset_name}"), *blocks])


def format_sizes(values: Iterable[float]) -> str:
    """Format sizes or spacings.

    >>> format_sizes((1.0, 0.76757812, 0.5))
    '1 x 0.767578 x 0.5'
    """
    return " x ".join(f"{value:.6g}" for value in values)


def format_value(value: Any) -> str:
    """Format the value of a decision."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {format_value(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _decision(configuration: str, decision: str, value: Any, because: str) -> Decision:
    return Decision(configuration=configuration, decision=decision, value=value, reason=because)


def _block(name: str, entries: list[Decision]) -> str:
    title = "whole plan" if name == EVERYWHERE else name
    lines = [f"{title}:"]
    for entry in entries:
        lines += [f"{_INDENT}{entry.decision}: {format_value(entry.value)}", f"{_INDENT * 2}{entry.reason}"]
    return "\n".join(map(printable, lines))
