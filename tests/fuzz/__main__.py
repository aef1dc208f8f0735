"""Fuzz every reader for some minutes, or repeat one input: `python -m tests.fuzz run`, `python -m tests.fuzz show`."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.child import damaged, find_target, judge
from tests.fuzz.isolation import ROOT, fuzz


def all_targets() -> list[str]:
    """Return "module:name" of every target in the `test_*.py` files beside this one."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
    return [
        f"tests.fuzz.{module}:{name}"
        for module in modules
        for name in getattr(importlib.import_module(f"tests.fuzz.{module}"), "TARGETS", ())
    ]


def run(arguments: argparse.Namespace) -> int:
    """Give each target an equal share of the time, or its number of inputs."""
    targets = [name for name in all_targets() if arguments.only in name]
    seed = arguments.seed if arguments.seed is not None else time.time_ns() % 2**32
    count = arguments.count or 10**9
    print(f"seed {seed}, {len(targets)} readers")
    failed, start = 0, time.monotonic()
    for place, name in enumerate(targets):
        left = None
        if arguments.seconds is not None:
            left = (start + arguments.seconds - time.monotonic()) / (len(targets) - place)
        outcome = fuzz(name, count=count, seed=seed, first=arguments.first, seconds=left)
        found = f"{len(outcome.findings)} findings, repeated {outcome.repeats} times"
        print(f"{name}: {outcome.tried} inputs, {outcome.refused} refused, {found}", flush=True)
        for finding in outcome.findings:
            print(finding, flush=True)
        failed += bool(outcome.findings)
    return 1 if failed else 0


def show(arguments: argparse.Namespace) -> int:
    """Read one input again, here, and keep it as a file where asked to."""
    target = find_target(arguments.target)
    with tempfile.TemporaryDirectory() as folder:
        files = [(path, path.read_bytes()) for path in target.make(Path(folder))]
        path, content = damaged(target, files, arguments.target, arguments.seed, arguments.index)
        path.write_bytes(content)
        print(f"{path.relative_to(folder)}, {len(content)} bytes: {content[:300]!r}", flush=True)
        if arguments.keep:
            arguments.keep.write_bytes(content)
        end, text = judge(target, path)
    print(end, text)
    return 0


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--seconds", type=float, help="of all readers together")
    running.add_argument("--count", type=int, help="inputs per reader")
    running.add_argument("--seed", type=int, help="another one each time by default")
    running.add_argument("--first", type=int, default=0, help="number of the first input")
    running.add_argument("--only", default="", help="readers whose name has this in it")
    running.set_defaults(action=run)
    showing = commands.add_parser("show")
    showing.add_argument("target")
    showing.add_argument("--seed", type=int, required=True)
    showing.add_argument("--index", type=int, required=True)
    showing.add_argument("--keep", type=Path)
    showing.set_defaults(action=show)
    arguments = parser.parse_args()
    return int(arguments.action(arguments))


if __name__ == "__main__":
    assert ROOT.is_dir()
    sys.exit(main())
