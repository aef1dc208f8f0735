"""The candidates for plans for a time budget: each changes something, and the table compares them with the rule."""

from __future__ import annotations

from benchmarks.budget_choices import CANDIDATES, Candidate, table
from segwright.training.config import TrainConfig
from segwright.training.defaults import BUDGET_OPTIMIZER


def test_every_candidate_differs_from_the_rule_and_its_settings_exist() -> None:
    changed = [candidate for name, candidate in CANDIDATES.items() if name != "rule"]
    assert Candidate() not in changed
    for candidate in changed:
        TrainConfig.from_mapping({**BUDGET_OPTIMIZER, **candidate.settings})


def test_the_table_gives_means_over_seeds_and_the_mean_difference_to_the_rule() -> None:
    dice = {("acdc", "rule"): (0.80, 0.84), ("drive", "rule"): (0.7, 0.7), ("acdc", "wide"): (0.88, 0.90)}
    runs = {
        f"{name}; 500 steps; {candidate}; seed {seed}": {"dice": {"mean": value}}
        for (name, candidate), values in dice.items()
        for seed, value in enumerate(values)
    }
    rows = list(table({"runs": runs}))[2:]
    assert rows == ["| rule | 0.820 (2) | 0.700 (2) | +0.000 |", "| wide | 0.890 (2) |  | +0.070 |"]
