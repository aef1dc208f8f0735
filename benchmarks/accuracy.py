"""Compare accuracy with nnU-Net 2.8.1 on real datasets: `python -m benchmarks accuracy`.

Both sides train fold 0 of the same splits in turns, with cases of one patient in one fold: for the same number of steps
of the same plan and batch, and for the same minutes, where each side plans as it would by itself. Both are scored by
Segwright's `evaluate`. Results are added to a JSON file as they come; runs that it holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import segwright
from benchmarks import harness, oracle
from segwright.workspace import Workspace

RESULTS = Path(__file__).parent / "accuracy.json"
SCRATCH = Path.home() / ".cache" / "segwright-accuracy"
BATCH_SIZE = 2
"""At equal steps; that of a plan for a GPU takes hours on a CPU."""

EPOCHS = 20
"""Number of parts of a training by steps; each ends with validation steps, a tenth of its training steps."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A dataset, and how it is trained and scored.

    Attributes:
        folder: in the folder of test data.
        configuration: of nnU-Net's plan, for both sides at equal steps and for nnU-Net at equal minutes; 2d where a
            step of 3d_fullres takes half a minute on two cores.
        group: what a case's identifier must match for cases that stay in one fold, such as a patient.
        has_spacing: whether distances in mm mean something.
    """

    folder: str
    configuration: str
    group: str | None = None
    has_spacing: bool = True


DATASETS = {
    "hippocampus": Data(folder="Dataset004_Hippocampus", configuration="3d_fullres"),
    "drive": Data(folder="Dataset301_Drive", configuration="2d", has_spacing=False),
    "acdc": Data(folder="Dataset303_Acdc", configuration="2d", group=r"patient\d+", has_spacing=False),
    "mousebrain": Data(folder="Dataset306_MouseBrain", configuration="2d"),
    "spinalcord": Data(folder="Dataset307_SpinalCord", configuration="2d", group=r"cord_\d+"),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: which dataset, which side, how long, which seed."""

    data: str
    side: str
    length: str
    """`400 steps` or `8 minutes`."""
    seed: int

    @property
    def key(self) -> str:
        """The name of the run in the results."""
        return f"{self.data}, {self.length}, {self.side}, seed {self.seed}"

    @property
    def amount(self) -> int:
        """The number of steps or minutes."""
        return int(self.length.split()[0])

    @property
    def is_by_time(self) -> bool:
        """Whether the length is given in minutes."""
        return self.length.endswith("minutes")


def main(arguments: Sequence[str]) -> int:
    """Run what the results lack, print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy", description=__doc__)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=400, help="0: none at equal steps (default 400)")
    parser.add_argument("--minutes", type=int, default=8, help="0: none at equal minutes (default 8)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=("ours", "nnunet"), default=("nnunet", "ours"))
    parser.add_argument("--table", action="store_true", help="print the table of the results so far, run nothing")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not options.table:
        lengths = [f"{options.steps} steps"] * (options.steps > 0) + [f"{options.minutes} minutes"] * (
            options.minutes > 0
        )
        for name, length, seed, side in product(options.datasets, lengths, range(options.seeds), options.sides):
            measure(Run(data=name, side=side, length=length, seed=seed), options.output)
    print("\n".join(table(results_in(options.output))))
    return 0


def measure(run: Run, output: Path) -> None:
    """Do a run unless its result is there, and add the result to the file."""
    results = results_in(output)
    if run.key in results["runs"]:
        return
    programs = oracle.set_up()
    if programs is None and run.side == "nnunet":
        print(f"{run.key}: nnU-Net cannot be set up, left out", file=sys.stderr)
        return
    print(run.key, file=sys.stderr)
    sides = Sides(run.data, programs)
    sides.prepare()
    start = time.monotonic()
    predictions, training = sides.ours(run) if run.side == "ours" else sides.nnunet(run)
    result = {**training, "total_s": round(time.monotonic() - start), **sides.score(predictions)}
    results = results_in(output)
    results["runs"][run.key] = {**result, "load": round(os.getloadavg()[2], 1), "machine": harness.machine()["cpu"]}
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Sides:
    """Both systems on one dataset, each with folders of its own under `SCRATCH`.

    Args:
        name: of the dataset.
        programs: folder of nnU-Net's programs, None without them.
    """

    def __init__(self, name: str, programs: Path | None) -> None:
        self.data = DATASETS[name]
        self.raw = oracle.SHARED / "data" / self.data.folder
        self.workspace = Workspace.under(SCRATCH / "ours")
        self.theirs = {part: SCRATCH / "nnunet" / part for part in ("raw", "preprocessed", "results")}
        self.programs = programs

    def prepare(self) -> None:
        """Write the splits, plan and preprocess on both sides, unless that was done."""
        plan_in_groups(self.raw, self.workspace, self.data)
        folder = self.theirs["preprocessed"] / self.raw.name
        if self.programs is None or (folder / "ready").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.workspace.splits_file(self.raw.name), folder)
        self.theirs["raw"].mkdir(parents=True, exist_ok=True)
        link = self.theirs["raw"] / self.raw.name
        link.unlink(missing_ok=True)
        link.symlink_to(self.raw)
        number = re.findall(r"\d+", self.raw.name)[0]
        command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", self.data.configuration, "-np", "2", "--no_pbar"]
        self._run([str(self.programs / command[0]), *command[1:]])
        (folder / "ready").touch()

    def ours(self, run: Run) -> tuple[Path, dict[str, Any]]:
        """Train with Segwright; return the folder of predictions, and steps and seconds."""
        command = [sys.executable, "-m", "segwright", "--work", str(SCRATCH / "ours")]
        name = run.key.replace(", ", "-").replace(" ", "")
        shutil.rmtree(self.workspace.results / self.raw.name, ignore_errors=True)
        common = [str(self.raw), "--name", name, "--set", f"seed={run.seed}", "--json"]
        if run.is_by_time:
            output = self._run([*command, "run", *common, "--folds", "0", "--budget", f"{run.amount}m"])
        else:
            batch = ["--batch-size", str(BATCH_SIZE)]
            steps = run.amount // EPOCHS
            length = ["--epochs", str(EPOCHS), "--iterations", str(steps)]
            validation = ["--set", f"num_val_iterations_per_epoch={max(1, round(steps / 10))}"]
            chosen = ["--config", self.data.configuration, "--fold", "0", *batch, *length, *validation]
            output = self._run([*command, "train", *common, *chosen])
        document = json.loads(output)
        fold = Path(document["folds"][0]["folder"] if run.is_by_time else document["folder"])
        status = json.loads((fold / "status.json").read_text())
        return fold / "validation", {"steps": status["step"], "seconds": round(status["elapsed_s"])}

    def nnunet(self, run: Run) -> tuple[Path, dict[str, Any]]:
        """Train with nnU-Net; return the folder of predictions, and steps and seconds."""
        assert self.programs is not None
        shutil.rmtree(self.theirs["results"] / self.raw.name, ignore_errors=True)
        job = {
            "plans": str(self.theirs["preprocessed"] / self.raw.name / "nnUNetPlans.json"),
            "description": str(self.raw / "dataset.json"),
            "configuration": self.data.configuration,
            "batch_size": None if run.is_by_time else BATCH_SIZE,
            "seed": run.seed,
            "epochs": EPOCHS,
            **({"seconds": 60 * run.amount} if run.is_by_time else {"steps": run.amount}),
        }
        file = SCRATCH / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        output = self._run([str(self.programs / "python"), str(oracle.HERE / "train.py"), str(file)])
        result = json.loads(output.strip().splitlines()[-1])
        return Path(result["validation"]), {"steps": result["steps"], "seconds": round(result["seconds"])}

    def score(self, predictions: Path) -> dict[str, Any]:
        """Return the Dice of each class and their mean, with NSD at 1 mm where distances mean something."""
        report = segwright.evaluate(
            self.raw / "labelsTr",
            predictions,
            dataset_json=self.raw / "dataset.json",
            surface=self.data.has_spacing,
            output=SCRATCH / "scores.json",
        )
        means = report.scores.to_json()["mean"]
        values = {"dice": {key: entry["Dice"] for key, entry in means.items()}}
        if self.data.has_spacing:
            values["nsd_1mm"] = {key: entry["NSD_1mm"] for key, entry in means.items()}
        return {name: {**each, "mean": float(np.nanmean(list(each.values())))} for name, each in values.items()}

    def _run(self, command: list[str]) -> str:
        folders = {f"nnUNet_{part}": str(folder) for part, folder in self.theirs.items()}
        workers = {"nnUNet_n_proc_DA": str(len(os.sched_getaffinity(0))), "nnUNet_compile": "f"}
        done = subprocess.run(
            command, env={**os.environ, **folders, **workers}, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout


def plan_in_groups(raw: Path, workspace: Workspace, data: Data) -> None:
    """Plan a dataset, with folds that keep the cases of a group together; folds that exist are kept."""
    has_folds = workspace.splits_file(raw.name).is_file()
    groups = None if data.group is None or has_folds else f"regex:{data.group}"
    segwright.plan(raw, workspace=workspace, groups=groups)


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a Markdown table: Dice of both sides per dataset and length, mean and range over seeds."""
    grouped: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for key, result in results["runs"].items():
        name, length, side, _ = key.split(", ")
        grouped.setdefault((name, length), {}).setdefault(side, []).append(result)
    yield "| Dataset | Length | nnU-Net: Dice, steps, seconds | Segwright: Dice, steps, seconds |"
    yield "|---|---|---|---|"
    for (name, length), sides in sorted(grouped.items(), key=lambda item: (item[0][1], item[0][0])):
        yield f"| {name} | {length} | {_cell(sides.get('nnunet', []))} | {_cell(sides.get('ours', []))} |"


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "not measured"
    dice = [run["dice"]["mean"] for run in runs]
    spread = f" ({min(dice):.3f} to {max(dice):.3f})" if len(dice) > 1 else ""
    steps, seconds = (round(statistics.mean(run[name] for run in runs)) for name in ("steps", "total_s"))
    return f"{statistics.mean(dice):.3f}{spread}, {steps}, {seconds}"


def results_in(file: Path) -> dict[str, Any]:
    """Return the results that a file holds so far; none without a file."""
    if not file.is_file():
        return {"schema_version": 1, "runs": {}}
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document
