"""Pipes, sockets, folders and links in place of files end every verb within seconds, with a message or a result."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from journeys import call
from traps import CONFIGURATION, World, predict

SECONDS = 10

KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def calls(world: World) -> list[tuple[Path, list[tuple[object, ...]]]]:
    """Return files with the verbs that read them."""
    work, model, fold = ("--work", world.work), world.model, world.model / "fold_0"
    prepared = world.work / "preprocessed" / world.data.name
    [cases] = {path.parent for path in prepared.rglob("*_seg.b2nd")}
    case = sorted(cases.glob("*_seg.b2nd"))[0].name.removesuffix("_seg.b2nd")
    image = sorted((world.data / "imagesTr").iterdir())[0]
    label = sorted((world.data / "labelsTr").iterdir())[0]
    to_predict = sorted((world.data / "imagesTs").iterdir())[0]
    show, export = ("show", "plan", model), ("export-model", model, world.out / "exported")
    report, status = ("report", model, "-o", world.out / "report.html"), ("status", world.work)
    check, plan = ("check", world.data), (*work, "plan", world.data)
    preprocess = (*work, "preprocess", world.data, "--config", CONFIGURATION)
    train = (*work, "train", world.data, "--config", CONFIGURATION, "--device", "cpu", "--fold", "0", "--resume")
    evaluate = ("evaluate", world.data / "labelsTr", fold / "validation", "-o", world.out / "scores.json")
    return [
        (model / "plans.json", [predict(world), show, export, report]),
        (model / "dataset.json", [predict(world), export, report]),
        (fold / "checkpoint_final.json", [predict(world), export, report]),
        (fold / "checkpoint_final.safetensors", [predict(world), export]),
        (fold / "validation" / "summary.json", [report]),
        (world.fold / "metrics.jsonl", [status]),
        (world.data / "dataset.json", [check, plan, preprocess]),
        (image, [check, preprocess]),
        (label, [check, preprocess, evaluate]),
        (to_predict, [predict(world)]),
        (prepared / "nnUNetPlans.json", [preprocess, train]),
        (prepared / "dataset_fingerprint.json", [plan]),
        (prepared / "splits_final.json", [train]),
        (cases / f"{case}.json", [preprocess]),
        (cases / f"{case}.b2nd", [preprocess]),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_special_file_ends_a_verb_in_time(world: World, kind: str) -> None:
    wrong = []
    for path, verbs in calls(world):
        assert path.is_file(), path
        kept = world.root / "kept"
        for arguments in verbs:
            shutil.move(path, kept)
            KINDS[kind](path)
            start = time.monotonic()
            signal.alarm(SECONDS)
            result = call(*arguments)
            signal.alarm(0)
            is_clear = result.exit_code == 0 or (result.exit_code == 1 and "error" in result.output)
            if not is_clear or time.monotonic() - start > SECONDS:
                wrong.append((path.name, arguments[:3], result.exit_code, result.output))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            shutil.move(kept, path)
    assert not wrong, "\n".join(map(str, wrong))
