"""Predict as a user's own program would, without a `__main__` guard: `live_long.py WAY MODEL`; prints findings."""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segwright

REPEATS, SETTLED = 100, 5
ANSWER_S = 60


def resident_mib() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024


def children() -> int:
    return sum(len(file.read_text().split()) for file in Path("/proc/self/task").glob("*/children"))


def predicted() -> Any:
    return model.predict(image, spacing=(1, 1, 1))


def send_loaded() -> None:
    fresh = segwright.load_model(sys.argv[2], device="cpu")
    answers.put([predicted(), fresh.predict(image, spacing=(1, 1, 1))])


if sys.argv[1] == "repeat":
    torch.set_num_threads(1)  # OpenMP's threads wait for each other by turns where the processor is shared
model = segwright.load_model(sys.argv[2], device="cpu")
image = np.random.default_rng(0).normal(size=(28, 30, 24)).astype(np.float32)
expected = predicted()
findings: dict[str, Any] = {"labels": np.unique(expected).tolist()}
if sys.argv[1] == "repeat":
    sizes = []
    for _ in range(REPEATS):
        assert np.array_equal(predicted(), expected)
        sizes.append(resident_mib())
    findings |= {"settled_mib": max(sizes[:SETTLED]), "last_mib": sizes[-1], "children": children()}
else:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=send_loaded, daemon=True)
    child.start()
    findings["same"] = [bool(np.array_equal(found, expected)) for found in answers.get(timeout=ANSWER_S)]
    child.join()
sys.stdout.write(json.dumps(findings))
