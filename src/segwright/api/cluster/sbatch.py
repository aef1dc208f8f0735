"""The batch scripts of a run for SLURM: one job array for each stage, one element for each task."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segwright.api.budgeting import parse_duration
from segwright.api.cluster.tasks import WITHOUT_GPU, Task
from segwright.core.errors import ConfigError
from segwright.core.interrupt import EXIT_RESUMABLE

SIGNAL: Final = "USR1@120"
"""The signal that each task gets 120 seconds before its time limit; a training step with its checkpoint takes less."""
MIN_TIME_S: Final = 300.0
"""SLURM may send the signal a minute earlier, and a shorter limit would leave little time to train."""

_OWN_OPTION: Final = re.compile(r"--(array|dependency|wrap)\b|-[ad]")
_SLURM_TIME: Final = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """What each task of a run asks of SLURM.

    Attributes:
        time_s: Time limit in seconds, rounded up to minutes; a training that reaches it continues in a new job. None
            for that of the partition.
        gpus: GPUs of each task that uses one, 0 or 1.
        partition: Name of the partition; None for the cluster's default.
        max_parallel: Tasks of a stage that run at the same time; None for no limit.
        workers: Processors of each task; None for what the cluster gives by default.
        further: Further options of `sbatch`, as words, such as `--account=x`. They win over all others.

    Raises:
        ConfigError: a value is out of range, or a further option would break the dependencies between tasks.
    """

    time_s: float | None = None
    gpus: int = 1
    partition: str | None = None
    max_parallel: int | None = None
    workers: int | None = None
    further: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.gpus not in (0, 1):
            raise ConfigError(f"gpus {self.gpus}: each task uses one GPU or, with 0, the CPU; expected 0 or 1")
        if self.time_s is not None and self.time_s < MIN_TIME_S:
            raise ConfigError(
                f"time of {self.time_s:g} s: tasks save and end about two minutes before their limit; expected at "
                f"least {MIN_TIME_S / 60:.0f} minutes"
            )
        for name, number in (("max_parallel", self.max_parallel), ("workers", self.workers)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} {number}: expected a number from 1 on")
        for word in (*self.further, self.partition or ""):
            if not word.isprintable():
                raise ConfigError(f"option of sbatch {word!r}: a control character cannot be written to a batch file")
        for word in self.further:
            if _OWN_OPTION.match(word):
                raise ConfigError(f"option of sbatch '{word}': is set by submit, which needs its own; leave it out")

    @property
    def time(self) -> str | None:
        """The time limit as SLURM reads it, such as `1-12:00:00`."""
        if self.time_s is None:
            return None
        days, minutes = divmod(math.ceil(self.time_s / 60), 24 * 60)
        return f"{f'{days}-' if days else ''}{minutes // 60:02d}:{minutes % 60:02d}:00"


def parse_time_limit(text: str | None) -> float | None:
    """Return the seconds of a time limit such as `12h`, or as SLURM writes it, `12:00:00` or `1-12:00:00`.

    Raises:
        ConfigError: it is neither.

    >>> parse_time_limit("12h"), parse_time_limit("1-12:00:00")
    (43200.0, 129600.0)
    """
    match = _SLURM_TIME.fullmatch((text or "").strip())
    if match is None:
        return parse_duration(text, "--time")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Tasks that do not need each other, and become one job array.

    Attributes:
        name: preprocess, train, train_stage_2 (of a cascade), select or predict.
        tasks: in order of the array's indices.
    """

    name: str
    tasks: tuple[Task, ...]


def stages_of(tasks: Sequence[Task]) -> tuple[Stage, ...]:
    """Return the stages of tasks, each after those that it needs.

    Preprocessing tasks, which follow one another, are one stage too: its elements run one at a time.
    """
    depths: dict[str, int] = {}
    by_stage: dict[str, list[Task]] = {}
    for task in tasks:
        name: str = task.verb
        if task.verb == "train":
            depths[task.name] = 1 + max((depths[before] for before in task.needs if before in depths), default=0)
            name = "train" if depths[task.name] == 1 else f"train_stage_{depths[task.name]}"
        by_stage.setdefault(name, []).append(task)
    order = ["preprocess", *sorted(name for name in by_stage if name.startswith("train")), "select", "predict"]
    return tuple(Stage(name=name, tasks=tuple(by_stage[name])) for name in order if name in by_stage)


def batch_script(
    stage: Stage,
    options: SlurmOptions,
    *,
    job_name: str,
    command: Sequence[str],
    graph: Path,
    logs: Mapping[str, Path],
) -> str:
    """Return the batch file of a stage.

    Args:
        stage: its tasks.
        options: of all stages.
        job_name: shown in the queue.
        command: that starts the program `segwright` on a node.
        graph: file of all tasks.
        logs: the file for the output of each task, by its name.
    """
    folder = graph.parent
    lines = [
        "#!/bin/bash",
        f"# {len(stage.tasks)} task{'s' * (len(stage.tasks) > 1)} of a run, written by 'segwright submit'",
        *(f"#SBATCH {_directive(word)}" for word in _options(stage, options, job_name, folder)),
        *([f"#SBATCH {' '.join(map(_directive, options.further))}"] if options.further else ()),
        "",
        *_bash_array("tasks", (task.name for task in stage.tasks)),
        *_bash_array("logs", (str(logs[task.name]) for task in stage.tasks)),
        "task=${tasks[$SLURM_ARRAY_TASK_ID]}",
        "log=${logs[$SLURM_ARRAY_TASK_ID]}",
        "",
        'mkdir -p "$(dirname "$log")"',
        'srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \\',
        f'  {shlex.join(command)} run-task {shlex.quote(str(graph))} "$task" >> "$log" 2>&1',
        "code=$?",
        f"if [ $code -eq {EXIT_RESUMABLE} ]; then  # stopped by a signal: continue in the same element of the array",
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        "fi",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def _options(stage: Stage, options: SlurmOptions, job_name: str, folder: Path) -> list[str]:
    """Return the options of a batch file that are ours."""
    count = len(stage.tasks)
    limit = 1 if stage.name == "preprocess" else options.max_parallel or count
    array = ("0" if count == 1 else f"0-{count - 1}") + ("" if limit >= count else f"%{limit}")
    words = [f"--job-name={job_name}", f"--array={array}"]
    if options.time is not None:
        words.append(f"--time={options.time}")
    if options.gpus and stage.name not in WITHOUT_GPU:
        words.append(f"--gres=gpu:{options.gpus}")
    if options.workers is not None:
        words.append(f"--cpus-per-task={options.workers}")
    if options.partition is not None:
        words.append(f"--partition={options.partition}")
    output = str(folder / f"{stage.name}.log").replace("%", "%%")
    return [
        *words,
        f"--signal={SIGNAL}",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        "--open-mode=append",
        f"--output={output}",
    ]


def _directive(word: str) -> str:
    r"""Quote a word of a `#SBATCH` line; unlike a shell, sbatch reads backslashes inside of single quotes too.

    >>> print(_directive("--comment=it's a \\ b"))
    '--comment=it'"'"'s a \\ b'
    """
    return shlex.quote(word.replace("\\", "\\\\"))


def _bash_array(name: str, words: Iterable[str]) -> list[str]:
    return [f"{name}=(", *(f"  {shlex.quote(word)}" for word in words), ")"]
