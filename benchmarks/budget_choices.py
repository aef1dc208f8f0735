"""Try other choices for plans for a time budget: `python -m benchmarks budget_choices`.

Each candidate changes one thing of the smallest size of `planning.time_budget`, and trains fold 0 with as many
multiplications as the size itself has in `--steps` steps, so that a candidate whose step is twice as expensive makes
half the steps. Counting work instead of time makes the result independent of what else the machine does. Results are
added to a JSON file as they come; those that it holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

import segwright
from benchmarks import oracle
from benchmarks.accuracy import DATASETS, plan_in_groups, results_in
from segwright.api.budgeting import labels_kept
from segwright.api.session import open_session
from segwright.data.plan import Configuration, Plan
from segwright.planning.label_detail import coarsest_factor
from segwright.planning.time_budget import (
    LEAST_KEPT,
    SIZES,
    Size,
    multiply_adds,
    quick_configuration,
    resized,
    spacing_factor,
)
from segwright.training.defaults import BUDGET_OPTIMIZER, VALIDATION_SHARE
from segwright.workspace import Workspace

RESULTS = Path(__file__).parent / "budget_choices.json"
SCRATCH = Path.home() / ".cache" / "segwright-choices"
EPOCHS = 25


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One change of the smallest size and its settings.

    Attributes:
        size: changes of the smallest size.
        settings: training settings.
        spacing: factor on the spacing of the rule.
        dims: 2 or 3 axes instead of those of the rule.
        half_patch_first: train the first half of the work with patches of half the edge.
    """

    size: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    spacing: float = 1.0
    dims: int | None = None
    half_patch_first: bool = False


SMALLEST = SIZES[0]


def _edges(factor: float) -> dict[str, Any]:
    return {"patch_voxels": {dims: round(voxels * factor**dims) for dims, voxels in SMALLEST.patch_voxels.items()}}


def _batches(factor: float) -> dict[str, Any]:
    return {"batch_size": {dims: max(1, round(size * factor)) for dims, size in SMALLEST.batch_size.items()}}


CANDIDATES = {
    "rule": Candidate(),
    "sgd 0.01": Candidate(settings={"optimizer": "sgd", "initial_lr": 0.01, "momentum": 0.95, "schedule": "poly"}),
    "sgd 0.05, warm-up": Candidate(settings={"optimizer": "sgd", "initial_lr": 0.05, "momentum": 0.95}),
    "sgd 0.05, warm-up, momentum 0.9": Candidate(settings={"optimizer": "sgd", "initial_lr": 0.05, "momentum": 0.9}),
    "rate 0.001": Candidate(settings={"initial_lr": 1e-3}),
    "rate 0.006": Candidate(settings={"initial_lr": 6e-3}),
    "no warm-up": Candidate(settings={"schedule": "poly"}),
    "average of weights 0.99": Candidate(settings={"ema_weights": 0.99}),
    "foreground in 2 of 3": Candidate(settings={"oversample_foreground_percent": 0.67}),
    "half the batch": Candidate(size=_batches(0.5)),
    "twice the batch": Candidate(size=_batches(2)),
    "half the width": Candidate(size={"features": 8, "max_features": 64}),
    "twice the width": Candidate(size={"features": 32, "max_features": 256}),
    "smaller patch": Candidate(size=_edges(0.7)),
    "larger patch": Candidate(size=_edges(1.4)),
    "coarser spacing": Candidate(spacing=1.25),
    "finer spacing": Candidate(spacing=0.8),
    "half patches first": Candidate(half_patch_first=True),
    "2D": Candidate(dims=2),
    "3D": Candidate(dims=3),
}


def main(arguments: Sequence[str]) -> int:
    """Run what the results lack, print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks budget_choices", description=__doc__)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=["acdc", "drive", "spinalcord"])
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of the results so far, run nothing")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not options.table:
        segwright.tune_process()
        torch.set_num_threads(options.threads)
        for seed, candidate, name in product(range(options.seeds), options.candidates, options.datasets):
            measure(name, candidate, options.steps, seed, options.output)
    print("\n".join(table(results_in(options.output))))
    return 0


def measure(name: str, candidate: str, steps: int, seed: int, output: Path) -> None:
    """Train one candidate unless its result is there, and add the mean Dice of fold 0 to the file."""
    key = f"{name}; {steps} steps; {candidate}; seed {seed}"
    if key in results_in(output)["runs"]:
        return
    result = Trial(name).train(CANDIDATES[candidate], steps, seed)
    if result is None:
        return
    results = results_in(output)
    results["runs"][key] = result
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Trial:
    """A dataset with its plan, its folds and the coarsest spacing that its labels allow.

    Args:
        name: of the dataset.
    """

    def __init__(self, name: str) -> None:
        data = DATASETS[name]
        self.raw = oracle.SHARED / "data" / data.folder
        self.workspace = Workspace.under(SCRATCH)
        plan_in_groups(self.raw, self.workspace, data)
        self.session = open_session(self.raw, self.workspace)
        self.plan = Plan.load(self.workspace.plans_file(self.raw.name, "nnUNetPlans"))

    def train(self, candidate: Candidate, steps: int, seed: int) -> dict[str, Any] | None:
        """Train a candidate with the work of `steps` steps of the rule; return its Dice and what was trained.

        None if the number of axes is the rule's, or the dataset has only that.
        """
        name = quick_configuration(self.plan)
        work = steps * multiply_adds(self._configuration(name, SMALLEST))
        if candidate.dims is not None:
            other = "2d" if candidate.dims == 2 else "3d_fullres"
            if other == name or other not in self.plan.configurations:
                return None
            name = other
        size = replace(SMALLEST, **candidate.size)
        configuration = self._configuration(name, size, candidate.spacing)
        settings = {**BUDGET_OPTIMIZER, **candidate.settings}
        if not candidate.half_patch_first:
            return self._fit("choice", name, configuration, work, {**settings, "seed": seed})
        halved = {"patch_size": [edge // 2 for edge in configuration.patch_size]}
        small = configuration.model_copy(update={key: tuple(value) for key, value in halved.items()})
        first = self._fit("first", name, small, work / 2, {**settings, "seed": seed})
        settings["pretrained"] = str(Path(first["folder"]) / "checkpoint_final.safetensors")
        return self._fit("choice", name, configuration, work / 2, {**settings, "seed": seed})

    def _configuration(self, name: str, size: Size, spacing: float = 1.0) -> Configuration:
        full = self.plan.configuration(name)
        allowed = coarsest_factor(labels_kept(self.session, self.plan, full), LEAST_KEPT)
        made = resized(full, size, spacing * spacing_factor(full, size, allowed), "choice")
        identifier = f"{name}_{'x'.join(f'{value:.4g}' for value in made.spacing)}"
        return made.model_copy(update={"data_identifier": identifier})

    def _fit(
        self, plans_name: str, name: str, configuration: Configuration, work: float, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        per_epoch = max(1, round(work / multiply_adds(configuration) / EPOCHS))
        document = configuration.model_dump(mode="json", by_alias=True, exclude_unset=True)
        plan = self.plan.model_copy(update={"plans_name": plans_name, "configurations": {name: document}})
        plan.save(self.workspace.plans_file(self.raw.name, plans_name))
        shutil.rmtree(self.workspace.model_folder(self.raw.name, "Trainer", plans_name, name), ignore_errors=True)
        trained = segwright.train(
            self.raw,
            configuration=name,
            fold=0,
            plans=plans_name,
            workspace=self.workspace,
            device="cpu",
            settings={
                "num_epochs": EPOCHS,
                "num_iterations_per_epoch": per_epoch,
                "num_val_iterations_per_epoch": max(1, round(VALIDATION_SHARE * per_epoch)),
                "batch_size": configuration.batch_size,
                **settings,
            },
        )
        found = trained.to_json()
        return {
            "dice": found["dice"],
            "folder": str(found["folder"]),
            "steps": per_epoch * EPOCHS,
            "patch_size": list(configuration.patch_size),
            "spacing": list(configuration.spacing),
        }


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a Markdown table: mean Dice of each candidate, and its difference to the rule's."""
    found: dict[str, dict[str, list[float]]] = {}
    for key, result in results["runs"].items():
        name, _, candidate, _ = key.split("; ")
        found.setdefault(candidate, {}).setdefault(name, []).append(result["dice"]["mean"])
    names = sorted({name for each in found.values() for name in each})
    yield f"| candidate | {' | '.join(names)} | mean difference |"
    yield "|---" * (len(names) + 2) + "|"
    rule = {name: statistics.mean(values) for name, values in found.get("rule", {}).items()}
    for candidate, by_name in found.items():
        means = {name: statistics.mean(values) for name, values in by_name.items()}
        shared = [means[name] - rule[name] for name in means if name in rule]
        cells = [f"{means[name]:.3f} ({len(by_name[name])})" if name in means else "" for name in names]
        yield f"| {candidate} | {' | '.join(cells)} | {f'{statistics.mean(shared):+.3f}' if shared else ''} |"
