"""Runs are submitted to a pretended SLURM: what is submitted, what is left alone, and what a refusal leaves."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from segwright import api
from segwright.api.cluster.sbatch import SlurmOptions
from segwright.api.cluster.slurm import SlurmError
from segwright.api.cluster.tasks import TaskGraph
from segwright.core.files.json_documents import write_checked_json
from segwright.data.cases import Case
from segwright.data.plan import Plan
from segwright.inference.folder.log_files import file_state, inputs_hash, log_name
from segwright.workspace import Workspace
from tests.unit.api.cluster.fake_slurm import NAME, FakeSlurm, planned_dataset

TRAIN = ["train 3d_fullres fold 0", "train 3d_fullres fold 1"]
PREDICT = [f"predict part {part} of 3" for part in range(3)]
EVERYTHING = {"preprocess": ["preprocess 3d_fullres"], "train": TRAIN, "select": ["select"], "predict": PREDICT}

STUB = """
import json, sys
from pathlib import Path
graph, task, here = json.loads(Path(sys.argv[2]).read_text()), sys.argv[3], Path(__file__).parent
with open(here / "ran", "a") as stream:
    stream.write(task + "\\n")
interrupted, failing = here / "interrupted", here / "failing"
if interrupted.is_file() and interrupted.read_text() == task:
    interrupted.unlink()
    sys.exit(75)
if failing.is_file() and failing.read_text() == task:
    sys.exit(1)
if task.startswith("train"):
    _, configuration, _, fold = task.split()
    model = f"Trainer__nnUNetPlans__{configuration}"
    folder = Path(graph["run"]["results"], Path(graph["run"]["dataset"]).name, model, f"fold_{fold}")
    (folder / "validation").mkdir(parents=True)
    for name in ("checkpoint_final.safetensors", "checkpoint_final.json", "validation/summary.json"):
        (folder / name).touch()
"""
"""Stands for `segwright`: a training makes the files by which it counts as finished."""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a planned dataset; tests copy it."""
    return planned_dataset(tmp_path_factory.mktemp("planned"))


class Cluster:
    """A work folder, the pretended SLURM that runs its tasks, and the program that it starts."""

    def __init__(self, planned: Path, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        shutil.copytree(planned, self.work)
        self.stub = folder / "stub.py"
        self.stub.write_text(STUB)
        (folder / "slurm").mkdir()
        self.slurm = FakeSlurm(folder / "slurm")

    def graph(self, **options: Any) -> TaskGraph:
        raw = self.work / "raw" / NAME
        chosen = {"configurations": ["3d_fullres"], "folds": [0, 1], "images": raw / "imagesTs", "parts": 3, **options}
        return api.tasks(raw, workspace=Workspace.under(self.work), output=self.folder / "predicted", **chosen)

    def submit(self, *, dry_run: bool = False, **options: Any) -> dict[str, list[str]]:
        """Submit, and return the tasks of each job."""
        self.last = api.submit(
            self.graph(**options),
            run_command=self.slurm,
            options=SlurmOptions(gpus=0),
            command=(sys.executable, str(self.stub)),
            dry_run=dry_run,
        )
        return {job.stage: [*job.tasks] for job in self.last.jobs}

    def run(self) -> list[str]:
        """Run what is in the queue, and return the tasks in the order in which they ran."""
        self.slurm.run(dict(os.environ))
        file = self.folder / "ran"
        ran = file.read_text().splitlines() if file.is_file() else []
        file.unlink(missing_ok=True)
        return ran

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def cluster(planned: Path, tmp_path: Path) -> Cluster:
    return Cluster(planned, tmp_path)


def test_each_stage_waits_for_those_it_needs_and_runs_after_them(cluster: Cluster) -> None:
    before = cluster.files()
    assert cluster.submit() == EVERYTHING
    folder = f"work/results/{NAME}/slurm"
    names = [f"001/{name}" for name in ("graph.json", *(f"{stage}.sbatch" for stage in EVERYTHING))]
    assert cluster.files() - before == {f"{folder}/{name}" for name in ("jobs.json", *names)}
    submitted = [words[2:-1] for words in cluster.slurm.commands if words[1] == "--parsable"]
    assert submitted == [[], *([f"--dependency=afterok:{number}"] for number in (11, 12, 13))]
    assert cluster.run() == ["preprocess 3d_fullres", *TRAIN, "select", *PREDICT]
    assert {*cluster.slurm.states().values()} == {"COMPLETED"}
    model = cluster.work / "results" / NAME / "Trainer__nnUNetPlans__3d_fullres"
    assert (model / "fold_1" / "train_3d_fullres_fold_1.log").is_file()


def test_an_interrupted_task_runs_again_before_those_that_need_it(cluster: Cluster) -> None:
    cluster.submit()
    (cluster.folder / "interrupted").write_text(TRAIN[0])
    assert cluster.run() == ["preprocess 3d_fullres", *TRAIN, TRAIN[0], "select", *PREDICT]
    assert {*cluster.slurm.states().values()} == {"COMPLETED"}


def test_what_is_in_the_queue_is_left_alone_and_waited_for(cluster: Cluster) -> None:
    cluster.submit(folds=[0])
    assert cluster.submit(folds=[0]) == {}
    assert [task.name for task in cluster.last.queued] == ["preprocess 3d_fullres", TRAIN[0], "select", *PREDICT]
    more = cluster.submit(folds=[0, 1])  # the selection among two folds is another one
    assert more == {"train": [TRAIN[1]], "select": ["select"], "predict": PREDICT}
    train, select, _ = cluster.last.jobs
    assert (train.needs, train.after) == ((), ("11_0",))
    assert (select.needs, select.after) == (("train",), ("12_0",))
    assert cluster.run().count(TRAIN[0]) == 1


def test_after_a_failure_only_what_is_missing_is_submitted(cluster: Cluster) -> None:
    api.preprocess(NAME, workspace=Workspace.under(cluster.work), configurations=["3d_fullres"], workers=1)
    cluster.submit()
    (cluster.folder / "failing").write_text(TRAIN[1])
    assert cluster.run() == TRAIN
    assert [*cluster.slurm.states().values()] == ["COMPLETED", "FAILED", *["CANCELLED"] * 4]
    assert cluster.submit() == {"train": [TRAIN[1]], "select": ["select"], "predict": PREDICT}
    assert cluster.last.folder.name == "002"


def test_parts_that_the_selected_model_predicted_are_left_out(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = "segwright.api.cluster.completion"
    monkeypatch.setattr(f"{completion}.selecting.is_selected_after_run", lambda *_: True)
    monkeypatch.setattr(f"{completion}.has_predicted", lambda _, identity: identity == "selected")
    cluster.submit()
    cluster.run()
    predicted = cluster.folder / "predicted"
    predicted.mkdir()
    images = sorted((cluster.work / "raw" / NAME / "imagesTs").iterdir())
    for part, (image, model) in enumerate(zip(images, ("selected", "another", "selected"), strict=True)):
        case = image.name.removesuffix("_0000.nii.gz")
        file = predicted / f"{case}.nii.gz"
        file.touch()
        inputs = inputs_hash(Case(identifier=case, images=(image,)))
        entry = {"inputs": inputs, "output": file.name, "files": {file.name: file_state(file)}}
        write_checked_json(predicted / log_name(part, 3), {"model": model, "cases": {case: entry}})
    assert cluster.submit() == {"predict": [PREDICT[1]]}
    (predicted / images[0].name.replace("_0000", "")).write_text("is of another size")
    os.utime(images[2])
    assert cluster.submit() == {"predict": [PREDICT[0], PREDICT[2]]}


def test_plans_that_were_made_for_a_budget_are_used(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    full = Plan.load(Workspace.under(cluster.work).plans_file(NAME, "nnUNetPlans"))
    small = {"3d_fullres": {**full.to_json()["configurations"]["3d_fullres"], "batch_size": 3}}
    name = "nnUNetPlans_10m"
    made = Plan.from_json({**full.to_json(), "plans_name": name, "configurations": small})
    made.save(Workspace.under(cluster.work).plans_file(NAME, name))
    caplog.set_level("WARNING", "segwright")
    found = cluster.graph(budget="10m", configurations=None).run
    assert (found.plans, found.configurations, caplog.text) == (name, ("3d_fullres",), "")
    for options in ({"budget": "20m"}, {"budget": "10m", "configurations": ["2d", "3d_fullres"]}):
        assert cluster.graph(**options).run.plans == "nnUNetPlans"
    assert f"call first, on a machine like those that train: segwright plan {NAME} --budget 20m" in caplog.text
    assert f"no plans {name} were made for this budget, so nnUNetPlans are used" in caplog.text


def test_a_refusal_names_what_was_submitted_and_the_same_call_submits_the_rest(cluster: Cluster) -> None:
    cluster.slurm.refused = "select"
    message = r"select\.sbatch: sbatch: error: .*Invalid account; .*jobs\.json: preprocess as 11, train as 12; the same"
    with pytest.raises(SlurmError, match=message):
        cluster.submit()
    cluster.slurm.refused = ""
    assert cluster.submit() == {"select": ["select"], "predict": PREDICT}
    assert cluster.last.jobs[0].after == ("12_0", "12_1")


def test_the_queue_is_read_and_cancelled(cluster: Cluster) -> None:
    workspace = Workspace.under(cluster.work)
    cluster.submit()
    for target in (cluster.work, "7", cluster.work / "raw" / NAME, None):
        found = api.queued_tasks(target, workspace=workspace, run_command=cluster.slurm)
        assert [(task.name, task.job, task.state) for task in found][1:3] == [
            (name, f"12_{index}", "PENDING") for index, name in enumerate(TRAIN)
        ]
        assert len(found) == 7
    assert len(api.cancel("7", workspace=workspace, run_command=cluster.slurm)) == 7
    assert cluster.slurm.commands[-1] == ["scancel", "11", "12", "13", "14"]
    assert api.queued_tasks(workspace=workspace, run_command=cluster.slurm) == []
    assert cluster.run() == []


def test_jobs_of_others_with_an_id_of_ours_are_not_ours(cluster: Cluster) -> None:
    cluster.submit()
    for job in cluster.slurm.jobs:
        job.options["--job-name"] = "another"
    assert api.cancel("7", workspace=Workspace.under(cluster.work), run_command=cluster.slurm) == []
    assert "scancel" not in [words[0] for words in cluster.slurm.commands]


def test_a_dry_run_writes_nothing(cluster: Cluster) -> None:
    graph, before = cluster.graph(), cluster.files()
    assert cluster.submit(dry_run=True) == EVERYTHING
    assert cluster.files() == before
    assert cluster.slurm.commands == []
    assert graph.run.dataset.name == NAME


def test_without_slurm_nothing_is_written(cluster: Cluster) -> None:
    def missing(words: object) -> Any:
        raise FileNotFoundError(words)

    graph, before = cluster.graph(), cluster.files()
    with pytest.raises(SlurmError, match="submit needs SLURM's sbatch on PATH.*--dry-run prints the files"):
        api.submit(graph, run_command=missing)
    assert cluster.files() == before
    cluster.submit()
    assert api.queued_tasks(cluster.work, run_command=missing) == []
    with pytest.raises(SlurmError, match="squeue: is not on PATH; use a login node"):
        api.cancel(cluster.work, run_command=missing)
