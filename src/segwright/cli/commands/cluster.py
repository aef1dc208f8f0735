"""The commands for tasks of a run on several machines: `tasks`, `run-task`, `submit` and `cancel`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segwright.cli import options
from segwright.cli.parameters import with_parameters_of
from segwright.cli.signals import stop_on_signals
from segwright.cli.tables import print_json, print_line

if TYPE_CHECKING:
    from segwright.api.cluster.slurm import Submission
    from segwright.api.cluster.tasks import TaskGraph


def tasks_of_run(
    context: typer.Context,
    dataset: options.Dataset,
    config: options.Configurations = None,
    folds: options.FoldsToTrain = None,
    budget: options.Budget = None,
    epochs: options.Epochs = None,
    iterations: options.Iterations = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    deterministic: options.Deterministic = False,
    cache: options.Cache = None,
    network: options.Network = None,
    network_arg: options.NetworkArg = None,
    pretrained: options.Pretrained = None,
    set_values: options.SetValues = None,
    trainer: options.Trainer = None,
    nnunet_trainer: options.NnunetTrainer = None,
    name: options.Name = None,
    trust_code: options.TrustCode = False,
    preset: options.Preset = "default",
    plans: options.PlansOfRun = None,
    images: options.ImagesOfRun = None,
    output: options.OutputOfRun = None,
    parts: Annotated[int, typer.Option("--parts", metavar="N", min=1, help="Tasks that predict --input.")] = 1,
    device: options.Device = "auto",
    workers: options.Workers = None,
) -> Callable[[], Any]:
    """Return a function that makes the `TaskGraph` of a run, once its plans exist."""
    from segwright import api
    from segwright.planning import presets

    return partial(
        api.tasks,
        dataset,
        workspace=options.workspace_of(context),
        environment=options.environment(),
        configurations=options.split_list(config) or None,
        folds=options.fold_numbers(folds),
        budget=budget,
        plans=plans or presets.preset(preset).plans_name,
        settings=options.train_settings(
            set_values=set_values,
            epochs=epochs,
            iterations=iterations,
            batch_size=batch_size,
            seed=seed,
            deterministic=deterministic,
            cache=cache,
        ),
        network=network,
        network_kwargs=api.keyword_values(network_arg or ()),
        pretrained=pretrained,
        trainer=trainer,
        nnunet_trainer=nnunet_trainer,
        name=name,
        images=images,
        output=output,
        parts=parts,
        device=device,
        workers=workers,
        trust_code=options.code_trust(trust_code),
    )


@with_parameters_of(tasks_of_run)
def tasks(list_tasks: Callable[[], Any], as_json: options.AsJson = False) -> None:
    """List the tasks of a run with existing plans, and which of them need which; nothing is run."""
    graph: TaskGraph = list_tasks()
    if as_json:
        print_json(graph.model_dump(mode="json"))
        return
    for task in graph.tasks:
        print_line(f"{task.name}, needs {', '.join(task.needs)}" if task.needs else task.name)


def run_task(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH.json", help="What 'segwright tasks --json' printed.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of a task, such as 'train 2d fold 0'.")],
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Import the code that the graph names.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Run one task of a run as far as it is not finished; exit code 75 means: start it again to continue."""
    from segwright import api
    from segwright.api.cluster.execution import TaskError
    from segwright.api.cluster.tasks import AnyGraph, RunSettings
    from segwright.core.errors import ConfigError
    from segwright.core.files.json_documents import parse_document

    document = parse_document(AnyGraph, graph)
    run, chosen = document.run, document.task(task)
    if run.names_code and not trust_code:
        named = [*run.trusted, *([run.nnunet_trainer] if isinstance(run, RunSettings) and run.nnunet_trainer else ())]
        code = ", ".join(named) or "any code"
        raise ConfigError(f"{graph}: trusts {code}, which would be imported; if you do too, add --trust-code")
    with stop_on_signals() as stop:
        result = api.run_task(run, chosen, stop=stop)
    if as_json:
        print_json(result.model_dump(mode="json"))
        raise typer.Exit(result.exit_code)
    if result.error:
        raise TaskError([result], [])
    print_line(f"{task}: {'done' if result.is_new else 'was done before'}")


@with_parameters_of(tasks_of_run)
def submit(
    list_tasks: Callable[[], Any],
    context: typer.Context,
    dataset: options.Dataset,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Limit of each task, e.g. 12h (default: partition's).")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, max=1, help="GPUs of each task, 0 or 1 (default: 1; 0 for cpu).")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="P", help="Partition of the cluster.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTIONS", help="Further options of sbatch, e.g. '--account=x'; repeatable."),
    ] = None,
    max_parallel: Annotated[
        int | None, typer.Option("--max-parallel", metavar="N", min=1, help="Tasks of a stage at the same time.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch files; write and submit nothing.")
    ] = False,
    preset: options.Preset = "default",
    plans: options.PlansOfRun = None,
    gpu_memory: options.GpuMemory = None,
    groups: options.Groups = None,
    stratify: options.Stratify = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Submit a run to SLURM: a job for each task that is missing. Submit again to continue.

    Plans are made first if there are none. The batch files lie in the results of the dataset, in slurm.
    """
    from segwright import api
    from segwright.api.cluster.sbatch import parse_time_limit
    from segwright.api.cluster.slurm import require_sbatch
    from segwright.cli.launch import run_command
    from segwright.core.device import CPU
    from segwright.core.errors import ConfigError
    from segwright.planning import presets

    chosen = api.SlurmOptions(
        time_s=parse_time_limit(time),
        gpus=int(device != CPU) if gpus is None else gpus,
        partition=partition,
        max_parallel=max_parallel,
        workers=workers,
        further=tuple(word for text in sbatch or () for word in _words(text)),
    )
    if not dry_run:
        require_sbatch(run_command)
    workspace = options.workspace_of(context)
    file = workspace.plans_file(workspace.dataset_name(dataset), plans or presets.preset(preset).plans_name)
    if not file.is_file() or any(value is not None for value in (gpu_memory, groups, stratify)):
        if dry_run:
            raise ConfigError(
                f"{file}: would be planned first, but --dry-run writes nothing; run 'segwright plan {dataset}' first, "
                "with the options of planning among these if there are any, or submit without --dry-run"
            )
        api.plan(
            dataset,
            workspace=workspace,
            options=api.PlanOptions(preset=preset, name=plans, gpu_memory_gb=gpu_memory),
            workers=workers,
            groups=groups,
            stratify=stratify,
            environment=options.environment(),
        )
    submission = api.submit(list_tasks(), options=chosen, run_command=run_command, dry_run=dry_run)
    if as_json:
        print_json(_document(submission))
    elif dry_run:
        _print_files(submission)
    else:
        for job in submission.jobs:
            print_line(f"job {job.id}, {job.stage}: {', '.join(job.tasks)}")
        if submission.jobs:
            print_line(f"batch files: {submission.folder}")
    if not as_json:
        _print_rest(submission)


def cancel(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="DATASET|WORK", help="A dataset, or a results or work folder for all of them.")
    ],
) -> None:
    """Cancel the tasks that were submitted to SLURM and are in its queue; trainings that run are saved first."""
    from segwright import api
    from segwright.cli.launch import run_command

    cancelled = api.cancel(target, workspace=options.workspace_of(context), run_command=run_command)
    for task in cancelled:
        print_line(f"{task.dataset}, {task.name}: cancelled job {task.job}, was {task.state}")
    if not cancelled:
        print_line("nothing to cancel: no submitted task is in the queue")


def _words(text: str) -> list[str]:
    """Split options of `sbatch` as a shell would."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint="--sbatch") from error


def _document(submission: Submission) -> dict[str, Any]:
    names = ("id", "stage", "name", "tasks", "script", "needs", "after")
    return {
        "folder": submission.folder,
        "jobs": [{name: getattr(job, name) for name in names} for job in submission.jobs],
        "queued": [{"task": each.name, "job": each.job, "state": each.state} for each in submission.queued],
    }


def _print_files(submission: Submission) -> None:
    """Print the batch files, and the commands that submit them, as a shell would run them."""
    for job in submission.jobs:
        print_line(f"# {job.script}")
        for line in job.text.splitlines():
            print_line(line)
        print_line("")
    for job in submission.jobs:
        words = [shlex.quote(word) for word in job.command({stage: f"@{stage}@" for stage in job.needs})]
        command = " ".join(words)
        for stage in job.needs:
            command = command.replace(f"@{stage}@", f"${stage}")
        print_line(f"{job.stage}=$({command})")


def _print_rest(submission: Submission) -> None:
    for task in submission.queued:
        print_line(f"{task.name}: in the queue as {task.job}, {task.state}")
    if not submission.jobs:
        print_line("nothing to submit: everything is finished or in the queue")
