"""The program `segwright-runtime`: predict with a bundle, without torch."""

from segwright.cli.search_path import remove_current_folder

remove_current_folder(is_module=__name__ == "__main__")

import argparse  # noqa: E402  what is imported must not be found in the current folder
import json  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from segwright.core import log  # noqa: E402
from segwright.core.errors import SegwrightError  # noqa: E402
from segwright.core.process_tuning import tune_process  # noqa: E402
from segwright.core.resources import resource_error  # noqa: E402
from segwright.core.text import printable  # noqa: E402

EXIT_USER, EXIT_BUG, EXIT_RESUMABLE, EXIT_INTERRUPTED = 1, 2, 75, 130
"""As of `segwright`: bad input, a bug, stopped and can be resumed, Ctrl-C."""


class _Parser(argparse.ArgumentParser):
    """Ends with the exit code of bad input."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments, and exit."""
        self.exit(EXIT_USER, f"error: {printable(message)}; see '{self.prog} --help'\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; exits with one of the exit codes above."""
    options = _parser().parse_args(arguments)
    log.configure(-1 if options.quiet else int(options.debug))
    tune_process()
    signal.signal(signal.SIGTERM, _stop)
    try:
        result: Any = options.function(options)
    except KeyboardInterrupt:
        _fail("stopped", EXIT_INTERRUPTED)
    except SegwrightError as error:
        _fail("\nerror: ".join(error.lines()), error.exit_code)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        if known := resource_error(error):
            _fail(str(known), EXIT_USER)
        if missing := _missing_package(error):
            _fail(f"{missing} is not installed, which these images or options need; pip install {missing}", EXIT_USER)
        _fail(f"unexpected {type(error).__name__}: {error}; this is a bug in segwright, please report it", EXIT_BUG)
    sys.stdout.write(json.dumps(result, indent=2, default=str) + "\n" if options.json else _text(result))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="segwright-runtime", description="Predict with an ONNX bundle of Segwright, without torch.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    predict = commands.add_parser("predict", help="predict a folder of images, or one image")
    predict.add_argument("--bundle", "-b", type=Path, required=True, metavar="B", help="zip file or folder")
    predict.add_argument(
        *("-i", "--input"),
        type=Path,
        required=True,
        action="append",
        metavar="IN",
        help="folder of images, CASE_0000.ENDING; or one file, repeat per channel",
    )
    predict.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the label maps")
    predict.add_argument("--no-mirroring", action="store_true", help="faster, a little less accurate")
    predict.add_argument("--probabilities", choices=("npz", "b2nd", "nifti"), help="also write them")
    predict.add_argument("--classes", metavar="A,B", help="classes to write with nifti (default: foreground)")
    predict.add_argument("--uncertainty", action="store_true", help="also write maps of entropy and of disagreement")
    predict.add_argument("--calibrated", action="store_true", help="scale probabilities with the model's temperature")
    predict.add_argument("--overwrite", action="store_true", help="replace existing predictions")
    predict.add_argument("--exact", action="store_true", help="run the network on constant tiles too")
    predict.add_argument("--threads", type=int, metavar="N", help="of onnxruntime (default: all CPUs)")
    predict.add_argument("--provider", default="CPUExecutionProvider", metavar="P", help="of onnxruntime")
    predict.set_defaults(function=_predict)
    check = commands.add_parser("check", help="compare the networks with the logits of torch in the bundle")
    check.add_argument("--bundle", "-b", type=Path, required=True, metavar="B", help="zip file or folder")
    check.set_defaults(function=_check)
    for command in (predict, check):
        command.add_argument("--json", action="store_true", help="print one JSON document only")
        command.add_argument("--quiet", "-q", action="store_true", help="only warnings and errors on stderr")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _predict(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Predict and return the record of each case."""
    from segwright.deploy.runtime.loading import load_bundle
    from segwright.inference.export.writers import ProbabilityFormat
    from segwright.inference.folder.inputs import require_other_folder

    given = options.input[0] if len(options.input) == 1 else options.input
    require_other_folder(given, options.output)
    classes = [name.strip() for name in options.classes.split(",")] if options.classes else None
    kind = options.probabilities or ("nifti" if classes else None)
    model = load_bundle(
        options.bundle,
        mirroring=not options.no_mirroring,
        provider=options.provider,
        threads=options.threads,
        exact=options.exact,
    )
    records = model.predict_files(
        given,
        options.output,
        probabilities=ProbabilityFormat(kind=kind, classes=classes) if kind else False,
        uncertainty=options.uncertainty,
        calibrated=options.calibrated,
        overwrite=options.overwrite,
    )
    return [asdict(record) for record in records]


def _check(options: argparse.Namespace) -> dict[str, float]:
    """Compute the test vectors and return the largest difference of each network."""
    from segwright.deploy.runtime.loading import check_bundle

    return check_bundle(options.bundle)


def _text(result: Any) -> str:
    """Return the result as lines of text."""
    if isinstance(result, dict):
        lines = [f"{file}: at most {difference:.2g} from torch" for file, difference in result.items()]
    else:
        lines = [_line(record) for record in result]
    return "".join(f"{printable(line)}\n" for line in lines)


def _line(record: dict[str, Any]) -> str:
    dice = "" if record["expected_dice"] is None else f", expected Dice {record['expected_dice']:.2f}"
    more = "".join(f"; {warning}" for warning in record["warnings"])
    return f"{record['case']}: {record['output']}{' (kept)' if record['kept'] else ''}{dice}{more}"


def _missing_package(error: BaseException | None) -> str | None:
    """Return the package that an import in the chain of an error did not find."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            return "pillow" if package == "PIL" else package
        error = error.__cause__
    return None


def _stop(number: int, frame: object) -> NoReturn:
    _fail("stopped by SIGTERM; finished cases are kept, run the same command again to continue", EXIT_RESUMABLE)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write("\n".join(map(printable, f"error: {message}".splitlines())) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
