"""`submit`, `cancel`, `run-task` and `status` on the command line, with programs that pretend to be SLURM's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from segwright.api.checks.training_options import TrainOptions
from segwright.cli.main import app
from segwright.core.errors import ConfigError
from tests.unit.api.cluster.fake_slurm import NAME, planned_dataset, recorded, recorder

GOLDEN = Path(__file__).with_name("dry_run.txt")
RUN = ("--config", "2d", "3d_fullres", "--folds", "0,1", "--epochs", "2")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planned_dataset(tmp_path_factory.mktemp("planned"))


@pytest.fixture
def work(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with a planned dataset; no program of SLURM is found."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    shutil.copytree(planned, tmp_path / "work")
    return tmp_path / "work"


def install(work: Path, name: str, *, code: int = 0, output: str = "") -> Path:
    """Put a program into PATH, and return the file that records its arguments."""
    calls, program = work.parent / f"{name}.calls", work.parent / "bin" / name
    program.write_text(f"#!{sys.executable}\n{recorder(calls, code, output)}")
    program.chmod(0o755)
    return calls


def submit(work: Path, *more: object) -> Result:
    images = work / "raw" / NAME / "imagesTs"
    return call("--work", work, "submit", NAME, *RUN, "-i", images, "-o", work.parent / "out", "--parts", "3", *more)


def test_the_text_of_a_dry_run_is_stable(work: Path) -> None:
    options = ("--time", "12h", "--partition", "gpu 1", "--max-parallel", "3", "--workers", "4")
    shell = "--comment='it'\\''s \"a b\" $HOME;' --mem 32G"
    done = submit(work, "--dry-run", *options, "--sbatch", shell)
    assert done.exit_code == 0, done.output
    shown = done.stdout.replace(str(work.parent), "/shared").replace(sys.executable, "/opt/venv/bin/python")
    assert shown == GOLDEN.read_text()
    assert not (work / "results" / NAME).exists()


@pytest.mark.parametrize(
    ("options", "asks"), [(("--device", "cpu"), False), (("--device", "cpu", "--gpus", "1"), True)]
)
def test_runs_on_the_cpu_ask_for_no_gpu(work: Path, options: tuple[str, ...], asks: bool) -> None:
    assert ("--gres=gpu:1" in submit(work, "--dry-run", *options).stdout) == asks


def test_submit_calls_sbatch_with_each_file(work: Path) -> None:
    calls = install(work, "sbatch", output="21\n")
    done = submit(work, "--sbatch", "--mem 32G --account=x", "--sbatch", "--qos=long")
    assert done.exit_code == 0, done.output
    folder = work / "results" / NAME / "slurm" / "001"
    files = [str(folder / f"{stage}.sbatch") for stage in ("preprocess", "train", "select", "predict")]
    after = ("--parsable", "--dependency=afterok:21")
    made = [words for words in recorded(calls) if words != ["--version"]]
    assert made == [["--parsable", files[0]], *([*after, file] for file in files[1:])]
    assert all("#SBATCH --mem 32G --account=x --qos=long\n" in Path(file).read_text() for file in files)
    assert "job 21, train: train 2d fold 0, train 2d fold 1, train 3d_fullres fold 0, train 3d_fullres" in done.stdout


def test_the_queue_is_shown_and_cancelled(work: Path) -> None:
    install(work, "sbatch", output="21\n")
    submit(work)
    lines = [f"21|{index}|PENDING|Priority|{NAME}-train" for index in (1, 0)]
    install(work, "squeue", output="\n".join(lines) + "\n5|N/A|RUNNING|None|other\n")
    shown = call("--work", work, "status")
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:6] for line in shown.stdout.splitlines() if "21_" in line] == [
        ["train", "2d", "fold", str(fold), NAME, f"21_{fold}"] for fold in (0, 1)
    ]
    calls = install(work, "scancel")
    assert f"{NAME}, train 2d fold 0: cancelled job 21_0, was PENDING" in call("--work", work, "cancel", "7").stdout
    assert recorded(calls) == [["21"]]


def test_a_queue_that_cannot_be_read_is_an_error_of_submit_and_a_remark_of_status(work: Path) -> None:
    install(work, "sbatch", output="21\n")
    submit(work)
    install(work, "squeue", code=1)
    again = submit(work)
    assert again.exit_code == 1
    assert "squeue" in again.stderr
    assert "the queue is not shown: squeue" in call("--work", work, "status").stderr


def test_without_slurm_submit_says_so_before_it_plans(work: Path) -> None:
    shutil.rmtree(work / "preprocessed")
    done = submit(work)
    assert done.exit_code == 1
    assert "submit needs SLURM's sbatch on PATH" in done.stderr
    assert not (work / "preprocessed").exists()
    assert "nothing to cancel" in call("--work", work, "cancel", work).stdout
    assert "would be planned first, but --dry-run writes nothing" in submit(work, "--dry-run").stderr


def test_submit_plans_first(work: Path) -> None:
    shutil.rmtree(work / "preprocessed")
    install(work, "sbatch", output="21\n")
    assert submit(work, "--preset", "resenc").exit_code == 0
    assert [path.stem for path in (work / "preprocessed" / NAME).glob("*Plans*.json")] == ["nnUNetResEncUNetPlans"]
    graph = json.loads((work / "results" / NAME / "slurm" / "001" / "graph.json").read_text())
    assert graph["run"]["plans"] == "nnUNetResEncUNetPlans"


@pytest.mark.parametrize(
    ("option", "message"), [("--sbatch=--comment='a", "No closing"), ("--time=soon", "--time 'soon' is")]
)
def test_options_that_cannot_be_read_are_refused(work: Path, option: str, message: str) -> None:
    done = submit(work, "--dry-run", option)
    assert done.exit_code == 1
    assert message.lower() in done.stderr.lower()


@pytest.fixture
def graph(work: Path) -> Path:
    file = work.parent / "graph.json"
    file.write_text(call("--work", work, "tasks", NAME, *RUN, "--json").stdout)
    return file


def test_one_task_runs_by_its_name(graph: Path, work: Path) -> None:
    first, again = call("run-task", graph, "preprocess 2d"), call("run-task", graph, "preprocess 2d")
    assert (first.exit_code, first.stdout) == (0, "preprocess 2d: done\n")
    assert (again.exit_code, again.stdout) == (0, "preprocess 2d: was done before\n")
    assert "no task is named 'preprocess 3d'; did you mean" in call("run-task", graph, "preprocess 3d").stderr


@pytest.mark.parametrize("code", [1, 75])
def test_a_task_ends_with_the_exit_code_of_its_error(graph: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object, **__: object) -> bool:
        error = ConfigError("cannot")
        error.exit_code = code
        raise error

    monkeypatch.setattr("segwright.api.cluster.distributing.preprocess_if_needed", fail)
    ended = call("run-task", graph, "preprocess 2d")
    assert (ended.exit_code, ended.stderr) == (code, "error: preprocess 2d: cannot\n")


def test_a_task_gets_the_stop_request_of_a_signal(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, options: TrainOptions, **__: object) -> bool:
        assert options.stop is not None
        with options.stop.watched():
            os.kill(os.getpid(), 10)  # SIGUSR1
            raise ConfigError(options.stop.reason)

    monkeypatch.setattr("segwright.api.cluster.distributing.training_runs.complete_fold", train)
    assert "error: train 2d fold 1: SIGUSR1\n" in call("run-task", graph, "train 2d fold 1").stderr


def test_a_graph_that_names_code_needs_consent(graph: Path, tmp_path: Path) -> None:
    document = json.loads(graph.read_text())
    document["run"]["trusted"] = ["evil:build"]
    graph.write_text(json.dumps(document))
    refused = call("run-task", graph, "preprocess 2d")
    assert refused.exit_code == 1
    assert "trusts evil:build, which would be imported; if you do too, add --trust-code" in refused.stderr
    assert call("run-task", graph, "preprocess 2d", "--trust-code").exit_code == 0


def test_commands_of_slurm_are_run_without_torch() -> None:
    program = "import sys; from segwright.cli.launch import run_command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
