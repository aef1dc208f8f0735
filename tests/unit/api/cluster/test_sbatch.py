"""Batch files: their text, and how bash and sbatch read what users give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segwright.api.cluster.sbatch import SlurmOptions, Stage, batch_script, stages_of
from segwright.api.cluster.tasks import Prediction
from segwright.core.errors import ConfigError
from tests.unit.api.cluster.fake_slurm import FakeSlurm, recorded, recorder
from tests.unit.api.cluster.test_task_graph import CASCADE, FULL, LOW, graph

EXAMPLE = Path(__file__).parents[4] / "examples" / "slurm" / "train.sbatch"
AWKWARD = 'a b\'c "d" $HOME `id` \\n #e;|&*'


def script(folder: Path, stage: Stage, *command: str, **options: Any) -> str:
    logs = {task.name: folder / f"fold_{task.fold}" / "log" for task in stage.tasks}
    return batch_script(
        stage,
        SlurmOptions(**options),
        job_name="Dataset004_Hippocampus-train",
        command=command,
        graph=folder / "graph.json",
        logs=logs,
    )


def training(folds: tuple[int, ...] = (0, 1)) -> Stage:
    return stages_of(graph(FULL, folds=folds).tasks)[1]


def test_the_example_is_what_is_written() -> None:
    results = Path("/data/segwright-work/results/Dataset004_Hippocampus")
    stage = training((0, 1, 2, 3, 4))
    model = results / "Trainer__nnUNetPlans__3d_fullres"
    written = batch_script(
        stage,
        SlurmOptions(time_s=36 * 3600, partition="gpu", max_parallel=4, workers=8, further=("--account=imaging",)),
        job_name="Dataset004_Hippocampus-train",
        command=("/opt/segwright/bin/python", "-m", "segwright"),
        graph=results / "slurm" / "001" / "graph.json",
        logs={
            task.name: model / f"fold_{task.fold}" / f"train_3d_fullres_fold_{task.fold}.log" for task in stage.tasks
        },
    )
    assert written == EXAMPLE.read_text()


def test_a_cascade_has_an_array_for_each_stage() -> None:
    made = graph(LOW, CASCADE, folds=(1,), prediction=Prediction(images=Path("/in"), output=Path("/out"), parts=2))
    assert {stage.name: [task.name for task in stage.tasks] for stage in stages_of(made.tasks)} == {
        "preprocess": ["preprocess 3d_lowres", "preprocess 3d_cascade_fullres"],
        "train": ["train 3d_lowres fold 1", "train 3d_lowres fold 0", "train 3d_lowres fold 2"],
        "train_stage_2": ["train 3d_cascade_fullres fold 1"],
        "select": ["select"],
        "predict": ["predict part 0 of 2", "predict part 1 of 2"],
    }


def test_words_of_the_user_reach_sbatch_and_bash_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "work 50%$x's"
    folder.mkdir()
    calls, program = tmp_path / "calls", tmp_path / "program.py"
    program.write_text(recorder(calls, output="trained\n"))
    further = (f"--comment={AWKWARD}",)
    text = script(folder, training(), sys.executable, str(program), AWKWARD, further=further, partition="a b")
    (folder / "train.sbatch").write_text(text)
    slurm = FakeSlurm(tmp_path)
    slurm(["sbatch", "--parsable", str(folder / "train.sbatch")])
    options = slurm.jobs[0].options
    assert (options["--comment"], options["--partition"]) == (AWKWARD, "a b")
    assert options["--output"] == f"{folder}/train.log".replace("%", "%%")
    slurm.run(dict(os.environ))
    shared = [AWKWARD, "run-task", str(folder / "graph.json")]
    assert recorded(calls) == [[*shared, f"train 3d_fullres fold {fold}"] for fold in (0, 1)]
    assert [(folder / f"fold_{fold}" / "log").read_text() for fold in (0, 1)] == ["trained\n"] * 2


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (1, ""), (75, "7_1")])
def test_only_an_interrupted_element_is_queued_again(tmp_path: Path, code: int, requeued: str) -> None:
    FakeSlurm(tmp_path)
    (tmp_path / "train.sbatch").write_text(script(tmp_path, training(), sys.executable, "-c", f"exit({code})"))
    variables = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "FAKE_SLURM": str(tmp_path)}
    environment = {**os.environ, **variables, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    ended = subprocess.run(["bash", tmp_path / "train.sbatch"], env=environment, check=False)
    assert ended.returncode == code
    file = tmp_path / "requeued"
    assert (file.read_text().strip() if file.exists() else "") == requeued


@pytest.mark.parametrize(
    ("seconds", "text"), [(300, "00:05:00"), (301, "00:06:00"), (12 * 3600, "12:00:00"), (36.5 * 3600, "1-12:30:00")]
)
def test_a_time_limit_is_written_as_slurm_reads_it(seconds: float, text: str) -> None:
    assert SlurmOptions(time_s=seconds).time == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 2}, "gpus 2: each task uses one GPU or, with 0, the CPU; expected 0 or 1"),
        ({"time_s": 90}, "time of 90 s: .*; expected at least 5 minutes"),
        ({"max_parallel": 0}, "max_parallel 0: expected a number from 1 on"),
        ({"further": ("--comment=a\nb",)}, r"option of sbatch '--comment=a\\nb': a control character cannot"),
        ({"further": ("--array=0-3",)}, "option of sbatch '--array=0-3': is set by submit"),
        ({"further": ("-d", "afterok:3")}, "option of sbatch '-d': is set by submit"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SlurmOptions(**options)


def test_preprocessing_runs_one_at_a_time_and_without_a_gpu(tmp_path: Path) -> None:
    preprocess, *_ = stages_of(graph(LOW, FULL).tasks)
    text = script(tmp_path, preprocess, "segwright", max_parallel=4)
    assert "--array=0-1%1\n" in text
    assert "--gres" not in text
