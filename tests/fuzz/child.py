"""The process in which damaged files are read: `python -m tests.fuzz.child TARGET SEED FIRST LAST PIPE`."""

from __future__ import annotations

import faulthandler
import importlib
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path

from segwright.core.errors import SegwrightError
from tests.fuzz.isolation import MEMORY_LIMIT, Target, generator, several

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "Unable to allocate",
    "bad_alloc",
    "bad allocation",
    "Cannot allocate memory",
)


def find_target(name: str) -> Target:
    """Return the target of "module:name", or all of "module:*" as one."""
    module, _, key = name.partition(":")
    loaded = importlib.import_module(module)
    targets: dict[str, Target] = getattr(loaded, "TARGETS", None) or loaded.FAULTS
    return several(targets) if key == "*" else targets[key]


def damaged(target: Target, files: list[tuple[Path, bytes]], name: str, seed: int, index: int) -> tuple[Path, bytes]:
    """Return which file input number `index` replaces, and by what."""
    rng = generator(name, seed, index)
    path, content = rng.choice(files)
    return path, target.damage(path, content, rng)


def judge(target: Target, path: Path) -> tuple[str, str]:
    """Read a file and return how that ended: read, refused, foreign or memory, with the traceback where it matters."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, text = "read", ""
    try:
        target.read(path)
    except SegwrightError as error:
        end = "refused"
        if not str(error).strip():
            end, text = "foreign", "an error without a message"
        elif _ran_out_of_memory(error):
            end, text = "memory", traceback.format_exc()
    except BaseException as error:
        end = "memory" if _ran_out_of_memory(error) else "foreign"
        text = traceback.format_exc()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY_LIMIT and end != "memory":
        end, text = "memory", f"{grown / 2**30:.1f} GiB more at its peak"
    return end, text


def main() -> None:
    """Try all inputs and write what came of each into the pipe."""
    name, seed, first, last, pipe = sys.argv[1], *map(int, sys.argv[2:])
    faulthandler.enable()

    def send(message: str) -> None:
        os.write(pipe, message.replace("\n", "\\n").encode(errors="replace") + b"\n")

    with tempfile.TemporaryDirectory() as folder:
        target = find_target(name)
        files = [(path, path.read_bytes()) for path in target.make(Path(folder))]
        for path, _ in files:
            target.read(path)  # a good file that is refused would make the run worthless
        limit_memory()
        for index in range(first, last):
            path, content = damaged(target, files, name, seed, index)
            path.write_bytes(content)
            send(f"begin {index}")
            end, text = judge(target, path)
            if end in {"foreign", "memory"}:
                send(f"finding {end} {text[-3000:]}")
            send(f"end {end}")
            for good, original in files:
                if good == path or not good.is_file():
                    good.write_bytes(original)
    send("finished")


def limit_memory() -> None:
    """Let the process take `MEMORY_LIMIT` and what threads reserve above what it has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error comes from a failed allocation, which another machine might have granted."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
