"""A scheduler that pretends to be SLURM: runs the batch files of job arrays under bash, one element after the other."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from segwright import api
from segwright.data.phantom import write_dataset
from segwright.workspace import Workspace

NAME = "Dataset007_Tiny"

SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/bash\n[ "$1" = requeue ] && echo "$2" >> "$FAKE_SLURM/requeued"\n'
WAITING = "PENDING"


def planned_dataset(work: Path) -> Path:
    """Write a small dataset below a work folder and plan it; return the work folder."""
    write_dataset(work / "raw" / NAME, num_training=6, num_test=3, edge=16)
    api.plan(NAME, workspace=Workspace.under(work), workers=1)
    return work


@dataclass
class Job:
    """A job array; `states` are those of its elements."""

    id: str
    script: Path
    options: dict[str, str]
    before: list[str]
    states: dict[int, str] = field(default_factory=dict)


class FakeSlurm:
    """What `run_command` does in place of the commands of SLURM; `commands` are all that were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[Job] = []
        self.commands: list[list[str]] = []
        self.refused = ""
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def __call__(self, words: Sequence[str]) -> CompletedProcess[str]:
        self.commands.append([*words])
        if words[0] == "sbatch" and self.refused and self.refused in words[-1]:
            return CompletedProcess(words, 1, "", "sbatch: error: Batch job submission failed: Invalid account\n")
        output = {"sbatch": self._sbatch, "squeue": self._squeue, "scancel": self._scancel}[words[0]](words)
        return CompletedProcess(words, 0, output, "")

    def run(self, environment: dict[str, str]) -> None:
        """Run all elements whose dependencies have ended well, until none is left."""
        while ready := [job for job in self.jobs if WAITING in job.states.values() and self._is_ready(job)]:
            for job in ready:
                for index in [index for index, state in job.states.items() if state == WAITING]:
                    job.states[index] = self._run(job, index, environment)

    def states(self) -> dict[str, str]:
        """Return the state of every element."""
        return {f"{job.id}_{index}": state for job in self.jobs for index, state in job.states.items()}

    def _sbatch(self, words: Sequence[str]) -> str:
        if words[1] == "--version":
            return "slurm 22.05\n"
        assert words[1] == "--parsable"
        script = Path(words[-1])
        lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
        parsed = [word for line in lines for word in shlex.split(line.removeprefix("#SBATCH "))]
        options = dict(word.replace("\\\\", "\\").partition("=")[::2] for word in parsed)
        before = [word for each in words[2:-1] for word in each.removeprefix("--dependency=afterok:").split(":")]
        job = Job(str(len(self.jobs) + 11), script, options, before)
        last = int(options["--array"].partition("%")[0].rpartition("-")[2])
        job.states = dict.fromkeys(range(last + 1), WAITING)
        self.jobs.append(job)
        return f"{job.id};cluster\n"

    def _squeue(self, words: Sequence[str]) -> str:
        assert words[-1] == "--format=%F|%K|%T|%r|%j"
        return "".join(
            f"{job.id}|{index}|{state}|Priority|{job.options['--job-name']}\n"
            for job in self.jobs
            for index, state in job.states.items()
            if state == WAITING
        )

    def _scancel(self, words: Sequence[str]) -> str:
        for job in self.jobs:
            if job.id in words[1:]:
                job.states.update((index, "CANCELLED") for index, state in job.states.items() if state == WAITING)
        return ""

    def _is_ready(self, job: Job) -> bool:
        """Whether what a job waits for has ended well; it is cancelled if that can never be."""
        states = self.states()
        found = [state for each in job.before for name, state in states.items() if each in (name, name.split("_")[0])]
        assert len(found) >= len(job.before), f"job {job.id} waits for a job that does not exist"
        if {*found} & {"FAILED", "CANCELLED"}:
            assert job.options["--kill-on-invalid-dep"] == "yes"
            job.states = dict.fromkeys(job.states, "CANCELLED")
            return False
        return all(state == "COMPLETED" for state in found)

    def _run(self, job: Job, index: int, environment: dict[str, str]) -> str:
        element = f"{job.id}_{index}"
        variables = {"SLURM_ARRAY_JOB_ID": job.id, "SLURM_ARRAY_TASK_ID": str(index), "FAKE_SLURM": str(self.folder)}
        path = f"{self.bin}:{environment['PATH']}"
        ended = subprocess.run(["bash", job.script], env={**environment, **variables, "PATH": path}, check=False)
        requeued = self.folder / "requeued"
        if requeued.is_file():
            assert requeued.read_text().split() == [element]
            requeued.unlink()
            return WAITING
        return "FAILED" if ended.returncode else "COMPLETED"


def recorder(file: Path, code: int = 0, output: str = "") -> str:
    """Return a Python program that appends its arguments to a file as JSON, prints, and ends with an exit code."""
    return (
        f"import json, sys\nwith open({str(file)!r}, 'a') as stream:\n"
        f"    stream.write(json.dumps(sys.argv[1:]) + '\\n')\nprint({output!r}, end='')\nsys.exit({code})\n"
    )


def recorded(file: Path) -> list[list[str]]:
    """Return the arguments of each call of a `recorder`."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
