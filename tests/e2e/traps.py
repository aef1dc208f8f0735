"""Create traps: modules of common names that write a file when they are imported.

A test compares the whole tree before and after: nothing but the places that a verb may write to has changed.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGURATION = "3d_fullres"

OPTIONAL = ("indexed_gzip", "pydicom", "imagecodecs", "dill", "click", "cc3d", "h5py", "yaml", "pandas", "tensorboard")
"""Optional modules that libraries try to import; an installed one is found before the trap."""
INNOCENT = ("numpy", "torch", "typing", "json", "random", "statistics", "queue", "calendar", "utils", "config")
"""Names that a user's file may have by chance."""

EVIL = """
from pathlib import Path
Path({marker!r}).touch()

def build(*arguments, **named):
    raise RuntimeError("called")

loss = optimizer = schedule = sampler = recipe = scheme = build

class Callback:
    def on_epoch_end(self, trainer):
        pass
"""


@dataclass(frozen=True)
class World:
    """Folders of a test below `root`; `here` is the current folder, `out` the only output folder."""

    root: Path
    marker: Path

    @property
    def here(self) -> Path:
        return self.root / "here"

    @property
    def data(self) -> Path:
        return self.root / "Dataset007_Tiny"

    @property
    def model(self) -> Path:
        return self.root / "model" / f"Trainer__nnUNetPlans__{CONFIGURATION}"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def fold(self) -> Path:
        return self.work / "results" / self.data.name / self.model.name / "fold_0"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def tree(self, *writable: Path) -> dict[str, str]:
        """Return the state of every file outside some folders, by path."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if any(path == place or place in path.parents for place in writable):
                continue
            if path.is_symlink():
                found[str(path)] = f"link to {os.readlink(path)}"
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(path)] = "folder"
        return found


def set_traps(world: World) -> None:
    """Put modules of many names into every folder that a verb gets or is started in."""
    for place in (world.here, world.model, world.model / "fold_0", world.data, world.work, world.fold, world.out):
        for name in (*OPTIONAL, *INNOCENT):
            (place / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(world.marker)!r}).touch()\n")
        (place / "evil.py").write_text(EVIL.format(marker=str(world.marker)))
        (place / "matplotlibrc").write_text("backend: module://evil\ntext.usetex: True\n")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    document.pop("checksum", None)  # anybody can leave it out
    change(document)
    path.write_text(json.dumps(document))


def predict(world: World) -> tuple[object, ...]:
    return ("predict", "-m", world.model, "-i", world.data / "imagesTs", "-o", world.out / "labels", "--device", "cpu")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_server_at(port: int) -> None:
    """Send SIGTERM to this process as soon as a server answers; from another thread."""

    def stop() -> None:
        for _ in range(600):
            with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            time.sleep(0.1)

    threading.Thread(target=stop, daemon=True).start()


def every_verb(world: World) -> dict[str, tuple[object, ...]]:
    """Return a call of every verb; all of them succeed on a harmless dataset and model."""
    labels, held_out = world.data / "labelsTr", world.model / "fold_0" / "validation"
    description = ("--dataset-json", world.data / "dataset.json")
    fast = ("--config", CONFIGURATION, "--device", "cpu")
    work = ("--work", world.work)
    scores = held_out / "summary.json"
    made, parts = world.out / "Dataset008_Made", ("--images", "imagesTr", "--labels", "labelsTr")
    return {
        "run": (*work, "run", world.data, *fast, "--budget", "3s"),
        "tasks": (*work, "tasks", world.data, *fast, "-i", world.data / "imagesTs", "-o", world.out / "parts"),
        "run-task": ("run-task", world.out / "graph.json", "select"),
        "submit": (*work, "submit", world.data, *fast, "--dry-run"),
        "cancel": ("cancel", world.work),
        "check": ("check", world.data),
        "fingerprint": (*work, "fingerprint", world.data),
        "plan": (*work, "plan", world.data),
        "preprocess": (*work, "preprocess", world.data, "--config", CONFIGURATION),
        "move-plans": (*work, "move-plans", world.model, world.data, "--name", "moved"),
        "preview-augmentation": (
            *work,
            "preview-augmentation",
            world.data,
            "--samples",
            "1",
            "-o",
            world.out / "p.html",
        ),
        "train": (*work, "train", world.data, *fast, "--fold", "0", "--resume"),
        "select": (*work, "select", world.data, "-o", world.out / "selected", "--device", "cpu"),
        "predict": (*predict(world), "--probabilities", "npz"),
        "serve": ("serve", world.model, "--device", "cpu", "--jobs", world.out / "jobs", "--port", free_port()),
        "export-model": ("export-model", world.model, world.out / "exported"),
        "import-model": ("import-model", world.out / "exported", world.out / "imported"),
        "pack": ("pack", world.model, "-o", world.out / "shared.zip", "--license", "CC-BY-4.0"),
        "segments": ("segments", world.model, "-o", world.out / "segments.json"),
        "install": (*work, "install", world.out / "model.zip"),
        "models": (*work, "models"),
        "info": ("info", world.out / "shared.zip"),
        "evaluate": ("evaluate", labels, held_out, *description, "-o", world.out / "scores.json"),
        "overlay": ("overlay", held_out, "--reference", labels, "-o", world.out / "sheets"),
        "compare": ("compare", scores, world.out / "scores.json"),
        "accumulate-crossval": ("accumulate-crossval", world.model, "-o", world.out / "crossval"),
        "ensemble": ("ensemble", world.out / "labels", world.out / "again", "-o", world.out / "ensemble", *description),
        "determine-postprocessing": (
            *("determine-postprocessing", labels, held_out, *description, "-o", world.out / "postprocessing.json"),
        ),
        "apply-postprocessing": (
            *("apply-postprocessing", "-i", held_out, "-o", world.out / "post", *description),
            *("--postprocessing", world.out / "postprocessing.json"),
        ),
        "demo": ("demo", "-o", world.out / "demo", "--budget", "2s", "--device", "cpu"),
        "status": ("status", world.work),
        "doctor": ("doctor", "--device", "cpu"),
        "convert": ("convert", "folders", world.data, made, *parts, "--yes"),
        "init": ("init", made, "--force", "--yes"),
        "report": ("report", world.model, "-o", world.out / "report.html"),
        "show": ("show", "plan", world.model),
    }
