"""Submit the tasks of a run to SLURM, look them up in its queue, and cancel them.

What was submitted is recorded in the results of the dataset: `slurm/jobs.json`, and for each submission a folder
`slurm/001` with the batch files and the graph of all tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from segwright.api.cluster.completion import unfinished_tasks
from segwright.api.cluster.sbatch import SlurmOptions, batch_script, stages_of
from segwright.api.cluster.tasks import RunSettings, Task, TaskGraph
from segwright.api.session import workspace_or_default
from segwright.api.watching import watched_folders
from segwright.core.errors import SegwrightError
from segwright.core.files.atomic_io import write_text
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_documents import parse_document, write_json
from segwright.core.files.locks import locked
from segwright.workspace import LOCK, SUBMISSIONS, Workspace

GRAPH_JSON: Final = "graph.json"
JOBS_JSON: Final = "jobs.json"
DEFAULT_OPTIONS: Final = SlurmOptions()

_DEPTH: Final = 3
"""Folders from the given one to the submissions of a dataset: of a work folder these are the given one, results and
the dataset."""
_QUEUE: Final = ("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r|%j")


class SlurmError(SegwrightError):
    """A command of SLURM is missing or failed."""


class SlurmMissingError(SlurmError):
    """A command of SLURM is not on PATH."""


class CommandResult(Protocol):
    """What a command of SLURM returned, such as `subprocess.CompletedProcess` of texts."""

    @property
    def returncode(self) -> int:
        """Its exit code."""

    @property
    def stdout(self) -> str:
        """What it wrote to its standard output."""

    @property
    def stderr(self) -> str:
        """What it wrote to its standard error."""


RunCommand = Callable[[Sequence[str]], CommandResult]
"""Runs a command and waits for it: `functools.partial(subprocess.run, capture_output=True, text=True)`.

It raises `FileNotFoundError` if there is no such program.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """A job array of one stage.

    Attributes:
        stage: preprocess, train, train_stage_2 (of a cascade), select or predict.
        name: Shown in the queue.
        tasks: Names of its tasks, in order of the array's indices.
        script: Path of the batch file.
        text: Its content.
        needs: Stages of the same submission that must end well before it.
        after: Array elements of earlier submissions, such as `12_0`, that must end well before it.
        id: Job id; empty if it was not submitted.
    """

    stage: str
    name: str
    tasks: tuple[str, ...]
    script: Path
    text: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    id: str = ""

    def command(self, ids: Mapping[str, str]) -> tuple[str, ...]:
        """Return the command that submits it; `ids` are the job ids of the stages in `needs`."""
        before = [*(ids[stage] for stage in self.needs), *self.after]
        dependency = (f"--dependency=afterok:{':'.join(before)}",) if before else ()
        return ("sbatch", "--parsable", *dependency, str(self.script))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedTask:
    """A task that was submitted and is in the queue.

    Attributes:
        dataset: Name of the dataset.
        name: Of the task.
        job: Its array element, such as `12_0`.
        state: PENDING, RUNNING and so on, as SLURM names it.
        reason: Why it does not run yet, as SLURM names it; `None` if it runs.
        log: File of its output; of a training in the folder of the fold.
    """

    dataset: str
    name: str
    job: str
    state: str
    reason: str
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was submitted, or would be.

    Attributes:
        folder: Folder of the batch files.
        jobs: One for each stage with missing tasks; empty if nothing is missing.
        queued: Missing tasks that an earlier submission has put into the queue; they are left alone.
    """

    folder: Path
    jobs: tuple[SlurmJob, ...]
    queued: tuple[QueuedTask, ...]


class _RecordedTask(BaseModel):
    """A task in `jobs.json`; `key` identifies what it makes, `log` is the file of its output."""

    model_config = ConfigDict(frozen=True)

    name: str
    key: str
    log: Path


class _RecordedJob(BaseModel):
    """A job in `jobs.json`; the tasks are in order of the array's indices."""

    model_config = ConfigDict(frozen=True)

    id: Annotated[str, Field(pattern=r"^\d+$")]
    name: str
    script: str
    tasks: tuple[_RecordedTask, ...]


class _Record(BaseModel):
    """`jobs.json`: the jobs that were submitted for a dataset."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    jobs: tuple[_RecordedJob, ...] = ()


def submit(
    graph: TaskGraph,
    *,
    run_command: RunCommand,
    options: SlurmOptions = DEFAULT_OPTIONS,
    command: Sequence[str] = (sys.executable, "-m", "segwright"),
    dry_run: bool = False,
) -> Submission:
    """Submit the missing tasks of a run to SLURM: one job array for each stage, which waits for those it needs.

    Finished tasks, and tasks that an earlier call has put into the queue, are left out. So the same call continues a
    run of which a part has failed. Batch files, graph and `jobs.json` are written below the results of the dataset.

    Args:
        graph: All tasks of the run, from `tasks`.
        run_command: Runs commands of SLURM: `functools.partial(subprocess.run, capture_output=True, text=True)`.
        options: What each task asks of SLURM.
        command: Starts the program `segwright` on the nodes of the cluster.
        dry_run: Submit and write nothing.

    Raises:
        SlurmError: `sbatch` is missing or refused a job; earlier jobs are recorded, and the same call submits the rest.
        SegwrightError: the dataset, plans or images cannot be read, or the folder cannot be written.

    Examples:
        >>> run_command = functools.partial(subprocess.run, capture_output=True, text=True)  # doctest: +SKIP
        >>> submit(tasks("4", folds="all"), run_command=run_command)  # doctest: +SKIP
    """
    folder = graph.run.workspace.submissions(graph.run.dataset.name)
    if dry_run:
        try:
            in_queue = _queue(folder, run_command)
        except SlurmMissingError:
            in_queue = {}
        return _planned(graph, folder, options, command, in_queue)
    require_sbatch(run_command)
    with locked(folder / LOCK, f"submitting tasks of {graph.run.dataset.name}"):
        planned = _planned(graph, folder, options, command, _queue(folder, run_command))
        if not planned.jobs:
            return planned
        write_json(planned.folder / GRAPH_JSON, graph.model_dump(mode="json"))
        for job in planned.jobs:
            write_text(job.script, job.text)
        return replace(planned, jobs=tuple(_submitted(graph, folder, planned.jobs, run_command)))


def queued_tasks(
    target: Path | str | None = None, *, workspace: Workspace | None = None, run_command: RunCommand
) -> list[QueuedTask]:
    """Return the submitted tasks that are in SLURM's queue; none where there is no `squeue`.

    Args:
        target: A dataset, as its folder, name or id; or a results or work folder; by default all of the workspace.
        workspace: Where the results of a dataset are; `./segwright-work` by default.
        run_command: As for `submit`.

    Raises:
        SlurmError: `squeue` failed.
        SegwrightError: there is no such folder or dataset, or a record is damaged.
    """
    try:
        return _queued_below(target, workspace, run_command)
    except SlurmMissingError:
        return []


def cancel(target: Path | str, *, workspace: Workspace | None = None, run_command: RunCommand) -> list[QueuedTask]:
    """Cancel all submitted tasks that are in SLURM's queue; trainings that run are saved first.

    Args:
        target: A dataset, as its folder, name or id; or a results or work folder, for all datasets in it.
        workspace: Where the results of a dataset are; `./segwright-work` by default.
        run_command: As for `submit`.

    Returns:
        What was cancelled, in its state before.

    Raises:
        SlurmError: a command of SLURM is missing or failed.
        SegwrightError: there is no such folder or dataset, or a record is damaged.
    """
    found = _queued_below(target, workspace, run_command)
    jobs = dict.fromkeys(task.job.partition("_")[0] for task in found)
    if jobs:
        _output(run_command, ("scancel", *jobs))
    return found


def require_sbatch(run_command: RunCommand) -> None:
    """Check that SLURM is installed here, before any work starts.

    Raises:
        SlurmError: it is not.
    """
    try:
        _output(run_command, ("sbatch", "--version"))
    except SlurmMissingError as error:
        raise SlurmMissingError(
            "submit needs SLURM's sbatch on PATH, as on a login node of the cluster; --dry-run prints the files"
        ) from error


def _planned(
    graph: TaskGraph,
    folder: Path,
    options: SlurmOptions,
    command: Sequence[str],
    in_queue: Mapping[str, QueuedTask],
) -> Submission:
    """Return the jobs of all tasks that are neither finished nor in the queue."""
    run = graph.run
    unfinished = unfinished_tasks(graph)
    queued = {task.name: in_queue[key] for task in unfinished if (key := _key(run, task)) in in_queue}
    stages = stages_of([task for task in unfinished if task.name not in queued])
    stage_of = {task.name: stage.name for stage in stages for task in stage.tasks}
    place = folder / f"{1 + max((int(path.name) for path in folder.glob('[0-9]*')), default=0):03d}"
    if run.names_code:
        command = (*command, "--trust-code")
    jobs = []
    for stage in stages:
        needs = {name for task in stage.tasks for name in task.needs}
        name = f"{run.dataset.name}-{stage.name}"
        text = batch_script(
            stage,
            options,
            job_name=name,
            command=command,
            graph=place / GRAPH_JSON,
            logs={task.name: _log(run, task, place) for task in stage.tasks},
        )
        before = {stage_of[each] for each in needs if each in stage_of} - {stage.name}
        jobs.append(
            SlurmJob(
                stage=stage.name,
                name=name,
                tasks=tuple(task.name for task in stage.tasks),
                script=place / f"{stage.name}.sbatch",
                text=text,
                needs=tuple(each.name for each in stages if each.name in before),
                after=tuple(sorted(queued[each].job for each in needs if each in queued)),
            )
        )
    return Submission(folder=place, jobs=tuple(jobs), queued=tuple(queued.values()))


def _submitted(graph: TaskGraph, folder: Path, jobs: Sequence[SlurmJob], run_command: RunCommand) -> Iterator[SlurmJob]:
    """Submit jobs, record each at once, and yield it with its id.

    Raises:
        SlurmError: a job was refused.
    """
    run, tasks = graph.run, {task.name: task for task in graph.tasks}
    ids: dict[str, str] = {}
    for job in jobs:
        try:
            words = _output(run_command, job.command(ids)).split(";")[0].split()
        except SlurmError as error:
            before = ", ".join(f"{stage} as {number}" for stage, number in ids.items()) or "nothing"
            raise SlurmError(
                f"{error}; submitted before it, and recorded in {folder / JOBS_JSON}: {before}; the same "
                "command submits the rest, with another option if sbatch refused one"
            ) from error
        if not words or not words[-1].isdecimal():
            raise SlurmError(f"sbatch {job.script}: printed {' '.join(words)!r}, expected the id of the job")
        ids[job.stage] = words[-1]
        recorded = _RecordedJob(
            id=words[-1],
            name=job.name,
            script=job.script.relative_to(folder).as_posix(),
            tasks=tuple(
                _RecordedTask(name=name, key=_key(run, tasks[name]), log=_log(run, tasks[name], job.script.parent))
                for name in job.tasks
            ),
        )
        record = _read(folder)
        record = record.model_copy(update={"jobs": (*record.jobs, recorded)})
        write_json(folder / JOBS_JSON, record.model_dump(mode="json"))
        yield replace(job, id=words[-1])


def _queued_below(target: Path | str | None, workspace: Workspace | None, run_command: RunCommand) -> list[QueuedTask]:
    """Return the tasks in the queue; see `queued_tasks`."""
    places = [place.absolute() for place in watched_folders(target, workspace)]
    if target is not None:  # perhaps the folder of the raw dataset
        places.append(workspace_or_default(workspace).results.absolute() / Path(target).absolute().name)
    names = [f"{'*/' * depth}{SUBMISSIONS}/{JOBS_JSON}" for depth in range(_DEPTH)]
    files = sorted({file for place in places for name in names for file in place.glob(name)})
    return [task for file in files for task in _queue(file.parent, run_command).values()]


def _queue(folder: Path, run_command: RunCommand) -> dict[str, QueuedTask]:
    """Return the tasks of a dataset that are in the queue, by their keys."""
    recorded = {(job.id, job.name): job for job in _read(folder).jobs}
    if not recorded:
        return {}
    lines = _output(run_command, _QUEUE).splitlines()
    found = {}
    for line in sorted(lines, key=lambda line: [int(word) for word in line.split("|")[:2] if word.isdecimal()]):
        identifier, index, state, reason, name = line.strip().split("|", 4)
        job = recorded.get((identifier, name))  # ids start again when a cluster is set up again
        if job is None or not index.isdecimal() or int(index) >= len(job.tasks):
            continue
        task = job.tasks[int(index)]
        found[task.key] = QueuedTask(
            dataset=folder.parent.name,
            name=task.name,
            job=f"{identifier}_{index}",
            state=state,
            reason=reason,
            log=task.log,
        )
    return found


def _read(folder: Path) -> _Record:
    file = folder / JOBS_JSON
    return parse_document(_Record, file) if file.is_file() else _Record()


def _output(run_command: RunCommand, command: Sequence[str]) -> str:
    """Run a command of SLURM and return what it printed.

    Raises:
        SlurmError: it failed; its message is shown.
    """
    try:
        result = run_command(command)
    except FileNotFoundError as error:
        raise SlurmMissingError(
            f"{command[0]}: is not on PATH; use a login node of the cluster, or install SLURM's commands"
        ) from error
    if result.returncode:
        reason = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise SlurmError(f"{command[0]} {command[-1]}: {reason}")
    return result.stdout


def _log(run: RunSettings, task: Task, submission: Path) -> Path:
    """Return the file for the output of a task: in the folder of the fold, else in that of the submission."""
    return run.log_of(task) if task.verb == "train" else submission / run.log_of(task).name


def _key(run: RunSettings, task: Task) -> str:
    """Return what identifies the work of a task among all submissions of a dataset."""
    values = task.model_dump(mode="json", include={"verb", "configuration", "fold", "part"})
    shared = {"plans", "model_name", *(() if task.configuration else ("configurations", "folds", "prediction"))}
    return content_hash([values, run.model_dump(mode="json", include=shared)])
