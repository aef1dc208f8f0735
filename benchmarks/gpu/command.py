"""The command `python -m benchmarks gpu`: measure within a time limit, print a table, write one JSON document."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import harness, oracle
from benchmarks.gpu.items import Bench
from benchmarks.gpu.peaks import dense_peak
from benchmarks.gpu.schedule import run_items
from segwright.core.device import CPU, CUDA, resolve_device
from segwright.core.errors import ConfigError

LIMIT_MINUTES: Final = 7.0
RESULTS: Final = Path(__file__).parents[1] / "results"
SCHEMA_VERSION: Final = 1


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; return the exit code: 1 without a GPU."""
    options = _options(arguments)
    try:
        device = resolve_device(options.device)
        if device.type not in (CPU, CUDA):
            raise ConfigError(f"device '{device}': only CUDA GPUs are measured, and with --small the CPU")
        if device.type == CPU and not options.small:
            raise ConfigError("device 'cpu': the shapes are for a GPU; add --small for tiny ones, to test the command")
    except ConfigError as error:
        print(f"python -m benchmarks gpu: {error}", file=sys.stderr)
        return 1
    output = options.output or RESULTS / f"gpu-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    nnunet = options.nnunet or (None if options.small else find_nnunet())
    start, limit_s = time.monotonic(), 60 * options.minutes
    document = {
        "schema_version": SCHEMA_VERSION,
        "machine": harness.machine(),
        "device": describe_device(device),
        "small": options.small,
        "limit_s": limit_s,
    }
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="segwright-gpu-bench-") as folder:
        bench = Bench(device=str(device), small=options.small, scratch=Path(folder), nnunet=nnunet)
        items = [item for item in bench.items() if any(fnmatchcase(item.name, pattern) for pattern in options.only)]
        for result in run_items(items, end=start + limit_s):
            print(line(result), flush=True)
            results.append(result)
            found = {"seconds": time.monotonic() - start, "items": results, "nnunet_to_ours": ratios(results)}
            # after each, for a command that is stopped
            output.write_text(json.dumps({**document, **found}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {output}")
    return 0


def find_nnunet() -> Path | None:
    """Return the interpreter of an environment with nnU-Net's packages: its own, or this one; None without one."""
    if (oracle.DEFAULT_FOLDER / "ready").exists():
        return oracle.DEFAULT_FOLDER / "bin" / "python"
    return Path(sys.executable) if find_spec("nnunetv2") else None


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return name, memory and dense peak of a GPU, with the versions of what runs on it."""
    if device.type == CPU:
        return {"name": CPU}
    properties = torch.cuda.get_device_properties(device)
    peak = dense_peak(properties.name)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "capability": [properties.major, properties.minor],
        "peak_tflops": None if peak is None else peak[0],
        "peak_source": None if peak is None else peak[1],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def ratios(results: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Return nnU-Net's time divided by ours, as a training or prediction does it by itself, where both are measured."""
    times = {str(result["name"]): result.get("step_ms", result.get("seconds")) for result in results}
    found = {}
    for name, theirs in times.items():
        kind, _, what = name.removeprefix("nnunet-").partition("/")
        ours = times.get(f"{kind}/{what}/default" if kind == "step" else f"{kind}/{what}")
        if name.startswith("nnunet-") and isinstance(theirs, float) and isinstance(ours, float):
            found[f"{kind}/{what}"] = theirs / ours
    return found


def line(result: Mapping[str, object]) -> str:
    """Format one result for the terminal."""
    if result["status"] != "measured":
        return f"{result['name']:<28} {result['status']}: {str(result['reason']).splitlines()[-1]}"
    parts = []
    for key, text in _SHOWN.items():
        value = result.get(key)
        if isinstance(value, float):
            parts.append(text.format(value))
    return f"{result['name']:<28} {', '.join(parts)}"


_SHOWN: Final = {
    "step_ms": "{:.2f} ms a step",
    "loader_wait_ms": "{:.2f} ms of wait for a batch",
    "seconds": "{:.2f} s",
    "peak_mib": "{:.0f} MiB",
    "tflops": "{:.1f} TFLOP/s",
    "share_of_peak": "{:.1%} of the peak",
}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --small (default cuda)")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to test the command")
    parser.add_argument(
        "--minutes", type=float, default=LIMIT_MINUTES, help="what does not fit is left out (default 7)"
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="e.g. 'step/*/compiled' 'predict/*'")
    parser.add_argument("--nnunet", type=Path, default=None, help="interpreter of an environment with nnU-Net 2.8.1")
    parser.add_argument("-o", "--output", type=Path, default=None, help="JSON file (default benchmarks/results/...)")
    return parser.parse_args(arguments)
