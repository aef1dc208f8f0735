"""Run benchmark stages, print the comparison and save it as JSON: `python -m benchmarks STAGE`.

`python -m benchmarks accuracy` and `python -m benchmarks budget_choices` train for hours; see the modules of that name.
`python -m benchmarks onnx` times ONNX bundles against torch. `python -m benchmarks gpu` measures a GPU for at most
7 minutes; see `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import harness, oracle
from benchmarks.stages import STAGES

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the stages named on the command line; return the exit code."""
    if sys.argv[1:2] == ["accuracy"]:
        from benchmarks import accuracy

        return accuracy.main(sys.argv[2:])
    if sys.argv[1:2] == ["budget_choices"]:
        from benchmarks import budget_choices

        return budget_choices.main(sys.argv[2:])
    if sys.argv[1:2] == ["gpu"]:
        from benchmarks.gpu import command

        return command.main(sys.argv[2:])
    if sys.argv[1:2] == ["onnx"]:
        from benchmarks import onnx

        return onnx.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "stages", nargs="+", choices=[*STAGES, "all"], metavar="STAGE", help=", ".join([*STAGES, "all"])
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument("-o", "--output", type=Path, default=None, help="JSON file (default benchmarks/results/...)")
    arguments = parser.parse_args()
    names = list(STAGES) if "all" in arguments.stages else arguments.stages
    programs = oracle.set_up()
    if programs is None:
        print("nnU-Net is not installed and its set-up script is missing: only Segwright is measured", file=sys.stderr)
    comparisons: list[harness.Comparison] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="segwright-bench-") as folder:
            made = STAGES[name](Path(folder), programs, arguments.rounds)
            comparisons += made if isinstance(made, tuple) else (made,)
    document = {"schema_version": 1, "machine": harness.machine(), "stages": [item.to_json() for item in comparisons]}
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    output = arguments.output or RESULTS / f"{'-'.join(names)}-{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for comparison in comparisons:
        print(line(comparison))
    print(f"written to {output}")
    return 0


def line(comparison: harness.Comparison) -> str:
    """Format one comparison as a line of the table."""
    summary = comparison.to_json()
    parts = [f"{comparison.stage:<18}"]
    for side in ("ours", "nnunet"):
        samples = summary.get(side)
        if isinstance(samples, dict):
            parts.append(f"{side} {samples['median_s']:.3f} s, {samples['peak_mib']:.0f} MiB")
    if comparison.ratio is not None:
        parts.append(f"{comparison.ratio:.2f}x")
    parts += [f"{name} {value}" for name, value in comparison.ours[-1].extra.items() if isinstance(value, float)]
    return "  ".join([*parts, f"(target: {comparison.target})"])


if __name__ == "__main__":
    sys.exit(main())
