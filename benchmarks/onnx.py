"""Time prediction by onnxruntime against torch, in turns, and compare the labels: `python -m benchmarks onnx`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import harness
from benchmarks.our_side.predict import agreement
from benchmarks.stages import HIPPOCAMPUS, REFERENCE

NUM_CASES = 6
MODEL = REFERENCE / "nnUNetTrainerShort__nnUNetPlans__3d_fullres"


def main(arguments: list[str]) -> int:
    """Measure both sides from files to files, start-up included; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks onnx", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    rounds = parser.parse_args(arguments).rounds
    with tempfile.TemporaryDirectory(prefix="segwright-bench-") as folder:
        summary = measured(Path(folder), rounds)
    print(json.dumps(summary, indent=2))
    return 0


def measured(scratch: Path, rounds: int) -> dict[str, object]:
    """Return seconds for each case, peak memory and the share of equal labels."""
    images, bundle = scratch / "images", scratch / "bundle.zip"
    images.mkdir()
    for file in sorted((HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[:NUM_CASES]:
        (images / file.name).symlink_to(file)
    segwright = [sys.executable, "-P", "-m", "segwright"]
    harness.measure(
        harness.Command(arguments=[*segwright, "export-model", str(MODEL), "--format", "onnx", "-o", str(bundle)])
    )
    runtime = [sys.executable, "-P", "-m", "segwright.deploy.runtime", "predict", "--bundle", str(bundle)]
    torch = [*segwright, "predict", "--model", str(MODEL), "--device", "cpu", "--precision", "fp32"]
    samples: dict[str, list[harness.Sample]] = {"onnxruntime": [], "torch": []}
    for _ in range(rounds):
        for side, command in (("onnxruntime", runtime), ("torch", torch)):
            output = scratch / side
            made = harness.Command(
                arguments=[*command, "-i", str(images), "-o", str(output)], before=["rm", "-rf", str(output)]
            )
            samples[side].append(harness.measure(made))
            print(f"{side}: {samples[side][-1].seconds:.1f} s", file=sys.stderr)
    seconds = {side: median(sample.seconds for sample in each) for side, each in samples.items()}
    return {
        "machine": harness.machine(),
        "seconds_per_case": {side: each / NUM_CASES for side, each in seconds.items()},
        "peak_mib": {side: max(sample.peak_mib for sample in each) for side, each in samples.items()},
        "onnxruntime_to_torch": seconds["onnxruntime"] / seconds["torch"],
        **agreement(scratch / "onnxruntime", scratch / "torch"),
    }
