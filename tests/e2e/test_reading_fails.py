"""A case that becomes unreadable during training is named and ends the run soon with exit code 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from journeys import Journey, call, small_work

from segwright.networks.checkpoint import load_weights

SOURCE = Path(__file__).parents[2] / "src"

QUICK = "num_val_iterations_per_epoch=1"
WRECKER = """
import os, time
from pathlib import Path

class Wreck:
    \"\"\"Cuts off half of a case's image after the data was found whole, in the second epoch.\"\"\"

    def on_epoch_start(self, trainer):
        if trainer.current_epoch == 1:
            file = next(Path("work").rglob(f"{trainer.split.train[0]}.b2nd"))
            os.truncate(file, file.stat().st_size // 2)
            Path("wrecked.txt").write_text(f"{trainer.split.train[0]} {time.time()}")
"""


def children_of(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(child) for child in task.read_text().split()}
        except OSError:  # the thread has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_a_damaged_case_ends_the_run_within_ten_seconds_and_no_process_was_started(
    journey: Journey, tmp_path: Path
) -> None:
    assert journey.result.exit_code == 0, journey.result.output
    shutil.copytree(journey.work / "preprocessed", tmp_path / "work" / "preprocessed")
    (tmp_path / "wrecker.py").write_text(WRECKER)
    short = ("--epochs", "10", "--iterations", "3", "--batch-size", "2", "--device", "cpu", "--cache", "none")
    command = [sys.executable, "-m", "segwright", "--work", "work", "train", str(journey.dataset), "--fold", "0"]
    command += ["--config", "3d_fullres", *short, "--set", "callbacks=wrecker:Wreck", "--set", QUICK]
    seen: set[int] = set()
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCE)}, stdout=said, stderr=said
        )
        while process.poll() is None:
            seen |= children_of(process.pid)
            time.sleep(0.02)
        ended = time.time()
    case, wrecked = (tmp_path / "wrecked.txt").read_text().split()
    text = (tmp_path / "said.txt").read_text()
    assert process.returncode == 1, text
    assert f"{case}.b2nd: missing or damaged" in text
    assert "preprocess the dataset again" in text
    assert "Traceback" not in text
    assert ended - float(wrecked) < 10
    assert not seen
    records = list((tmp_path / "work").rglob("train.json"))
    assert json.loads(records[0].read_text())["config"]["cache"] == "none"


def test_a_case_damaged_on_the_disk_is_made_again_and_the_model_is_the_same(journey: Journey, tmp_path: Path) -> None:
    weights = {}
    for name in ("whole", "damaged"):
        work = small_work(journey, tmp_path / name)
        assert call("--work", work, "preprocess", journey.dataset, "--config", "3d_fullres").exit_code == 0
        if name == "damaged":
            file = sorted(work.rglob("*_seg.b2nd"))[0]
            seen, content = file.stat(), bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        short = ("--epochs", "2", "--iterations", "2", "--batch-size", "2", "--device", "cpu", "--deterministic")
        result = call("--work", work, "train", journey.dataset, "--config", "3d_fullres", "--fold", "0", *short)
        assert result.exit_code == 0, result.output
        assert ("preprocessing damaged cases of 3d_fullres again" in result.output) == (name == "damaged")
        weights[name] = load_weights(next(work.rglob("checkpoint_final.safetensors")))
    torch.testing.assert_close(weights["damaged"], weights["whole"], rtol=0, atol=0)
