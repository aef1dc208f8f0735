"""A run whose tasks are run by an executor gives what a run in one process gives."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from journeys import call, states
from safetensors.torch import load_file

from segwright import api
from segwright.api.cluster.completion import unfinished_tasks
from segwright.api.cluster.execution import TaskError, run_graph
from segwright.api.cluster.parts import predict_in_parts
from segwright.api.cluster.tasks import TaskGraph
from segwright.core.errors import ConfigError, ProblemReport, WorkspaceError
from segwright.report.results import RunReport
from segwright.workspace import Workspace

CONFIGURATION = "3d_fullres"
FOLDS = (0, 1)
SETTINGS = {
    "num_epochs": 1,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "batch_size": 2,
    "precision": "fp32",
}
OPTIONS: dict[str, Any] = {"configurations": [CONFIGURATION], "folds": FOLDS, "device": "cpu", "workers": 1}


def run(tiny: Path, work: Path, executor: Executor | None = None) -> RunReport:
    predicted = {"images": tiny / "imagesTs", "output": work / "out", "parts": 2}
    return api.run(tiny, workspace=Workspace.under(work), settings=SETTINGS, executor=executor, **OPTIONS, **predicted)


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))  # a fork would copy torch's threads in any state


def results(work: Path) -> dict[str, object]:
    """Return weights and scores of all folds, what was selected, and what it predicted."""
    dataset = work / "results" / "Dataset007_Tiny"
    found: dict[str, object] = predictions(work / "out")
    for fold in sorted(dataset.glob("Trainer__*/fold_*")):
        weights = load_file(fold / "checkpoint_final.safetensors")
        found |= {f"{fold.name}/{name}": tensor.numpy().tobytes() for name, tensor in weights.items()}
        found[f"{fold.name} scores"] = json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]
    found["selection"] = json.loads((dataset / "model" / "summary.json").read_text())["foreground_mean"]
    return found


def predictions(folder: Path) -> dict[str, object]:
    """Return the label maps of a folder, and of its log what the machine does not decide."""
    log = json.loads((folder / "prediction.json").read_text())
    maps = {file.name: file.read_bytes() for file in folder.glob("*.nii.gz")}
    return {**maps, "options": log["options"], "cases": [*log["cases"]]}


@pytest.fixture(scope="module")
def sequential(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("sequential")
    run(tiny, work)
    return work


def test_threads_give_the_results_of_one_process(tiny: Path, sequential: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        report = run(tiny, tmp_path, pool)
        assert sorted(report.executed_stages) == [
            *("fingerprint", "plan", "predict part 0 of 2", "predict part 1 of 2", "preprocess 3d_fullres", "select"),
            *(f"train 3d_fullres fold {fold}" for fold in FOLDS),
        ]
        assert results(tmp_path) == results(sequential)
        assert run(tiny, tmp_path, pool).executed_stages == ()
    assert not [*tmp_path.rglob("*.lock"), *tmp_path.rglob("*.tmp.*")]


def test_a_folder_is_predicted_in_parts_by_threads(tiny: Path, sequential: Path, tmp_path: Path) -> None:
    model, images, out = sequential / "results" / tiny.name, tiny / "imagesTs", tmp_path / "out"
    with ThreadPoolExecutor(2) as pool:
        in_parts = partial(predict_in_parts, model, images, executor=pool, parts=2, device="cpu")
        records = in_parts(out)
        assert predictions(out) == predictions(sequential / "out")
        assert [(each.case, each.output.parent, each.kept) for each in records] == [
            (file.name.removesuffix("_0000.nii.gz"), out, False) for file in sorted(images.iterdir())
        ]
        assert all(record.kept for record in in_parts(out))
        with pytest.raises(TaskError, match="predict part 1 of 2: .*precision 'fp8'"):
            in_parts(tmp_path / "wrong", precision="fp8")


@pytest.mark.slow
def test_a_folder_is_predicted_in_parts_by_one_command(tiny: Path, sequential: Path, tmp_path: Path) -> None:
    places = ("--work", sequential, "predict", "-m", tiny.name, "-i", tiny / "imagesTs", "-o", tmp_path)
    command = [sys.executable, "-m", "segwright", *map(str, places), "--local-cpus", "3", "--folds", "0,1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "predict part 1 of 3: done in" in done.stderr
    assert predictions(tmp_path) == predictions(sequential / "out")


def test_what_to_predict_is_checked_before_work_starts(tiny: Path, tmp_path: Path) -> None:
    place = Workspace.under(tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"give images \(-i\) and output \(-o\) together"):
        api.run(tiny, workspace=place, images=tiny / "imagesTs")
    with pytest.raises(WorkspaceError, match="imagesTs/out"):
        api.run(tiny, workspace=place, images=tiny / "imagesTs", output=tiny / "imagesTs" / "out")
    with pytest.raises(ProblemReport, match="empty"):
        api.run(tiny, workspace=place, images=tmp_path / "empty", output=tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_tasks_on_the_command_line_run_in_processes(tiny: Path, sequential: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert call("--work", work, "plan", tiny).exit_code == 0
    before = states(work)
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    command = ("--work", work, "tasks", tiny, "--config", CONFIGURATION, "--folds", "0,1", "--device", "cpu", *settings)
    done = call(*command, "-i", tiny / "imagesTs", "-o", work / "out", "--parts", "2", "--workers", "1", "--json")
    assert done.exit_code == 0, done.output
    assert states(work) == before
    graph = TaskGraph.model_validate_json(done.stdout)
    assert len(graph.tasks) == 6
    with processes() as pool:
        ended = run_graph(graph, api.run_task, pool)
        assert all(result.is_new for result in ended)
        assert not any(result.is_new for result in run_graph(graph, api.run_task, pool))
    assert results(work) == results(sequential)
    assert unfinished_tasks(graph) == ()
    description = work / "results" / tiny.name / "model" / "members" / f"Trainer__nnUNetPlans__{CONFIGURATION}"
    description /= "dataset.json"
    description.write_text(description.read_text().replace("organ", "liver"))  # as if it were another model
    assert [task.verb for task in unfinished_tasks(graph)] == ["predict", "predict"]
    assert "train 3d_fullres fold 1, needs preprocess 3d_fullres" in call(*command).stdout


def test_what_does_not_reach_other_processes_is_refused_before_work_starts(tiny: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ConfigError, match="network python-object:.*: other processes cannot import it"):
            api.run(tiny, workspace=Workspace.under(tmp_path), network=lambda: None, executor=pool)
        with pytest.raises(ConfigError, match="deterministic: trainings in threads of one process share"):
            api.run(tiny, workspace=Workspace.under(tmp_path), settings={"deterministic": True}, executor=pool)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_tasks_hold_the_variables_of_the_file_lists_and_no_others(tiny: Path, tmp_path: Path) -> None:
    raw = tmp_path / "Dataset008_Listed"
    raw.mkdir()
    document = json.loads((tiny / "dataset.json").read_text())
    cases = [path.name.removesuffix(".nii.gz") for path in sorted((tiny / "labelsTr").glob("*.nii.gz"))]
    document["dataset"] = {
        case: {"images": [f"$TINY/imagesTr/{case}_0000.nii.gz"], "label": f"${{TINY}}/labelsTr/{case}.nii.gz"}
        for case in cases
    }
    (raw / "dataset.json").write_text(json.dumps(document))
    environment = {"TINY": str(tiny), "TOKEN": "secret"}
    place = Workspace.under(tmp_path / "work")
    api.plan(raw, workspace=place, environment=environment)
    graph = api.tasks(raw, workspace=place, environment=environment)
    assert graph.run.environment == {"TINY": str(tiny)}


PLAN_TASKS = r"""
import re, sys, time
from pathlib import Path
from segwright import api
from segwright.workspace import Workspace

raw, work, images, output = map(Path, sys.argv[1:])
start = time.process_time()
graph = api.tasks(raw, workspace=Workspace.under(work), folds="all", images=images, output=output, parts=16)
seconds = time.process_time() - start  # of this process, whatever else the machine does
peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # getrusage has the parent's
print(len(graph.tasks), seconds, int(peak[1]) * 1024)
"""
MAX_PLANNING_S = 10
MAX_PLANNING_BYTES = 2**30


def test_the_graph_of_50_000_cases_is_made_in_seconds(tiny: Path, tmp_path: Path) -> None:
    raw, place = tmp_path / tiny.name, Workspace.under(tmp_path / "work")
    plan = api.plan(tiny, workspace=Workspace.under(tmp_path / "small"))
    plan.save(place.plans_file(tiny.name, plan.plans_name))
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / folder).mkdir(parents=True)
        source = next((tiny / folder).glob(f"*{ending}"))
        for number in range(50_000):
            (raw / folder / f"case_{number:05d}{ending}").hardlink_to(source)
    document = json.loads((tiny / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**document, "numTraining": 50_000}))
    command = [sys.executable, "-c", PLAN_TASKS, raw, place.work, raw / "imagesTr", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tasks, seconds, size = map(float, done.stdout.split())
    assert tasks == 1 + 5 + 1 + 16
    assert seconds < MAX_PLANNING_S
    assert size < MAX_PLANNING_BYTES
