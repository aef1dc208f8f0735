"""The program `segwright`: global options and commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import startup
from segwright.cli.app import CommandGroup, by_name
from segwright.cli.commands import (
    cluster,
    combining,
    datasets,
    doctor,
    drawing,
    evaluating,
    exchange,
    move_plans,
    predicting,
    run,
    selecting,
    serving,
    show,
    stages,
    status,
    train,
)
from segwright.core.process_tuning import tune_process


class Program(CommandGroup):
    """All commands, in the order of the help."""

    functions = by_name(
        run.run,
        cluster.tasks,
        cluster.run_task,
        cluster.submit,
        cluster.cancel,
        datasets.init,
        datasets.convert,
        stages.check,
        stages.fingerprint,
        stages.plan,
        stages.preprocess,
        move_plans.move_plans,
        drawing.preview_augmentation,
        train.train,
        selecting.select,
        predicting.predict,
        serving.serve,
        exchange.pack,
        exchange.install,
        exchange.models,
        exchange.info,
        exchange.import_model,
        exchange.export_model,
        exchange.segments,
        evaluating.evaluate,
        evaluating.compare,
        drawing.overlay,
        combining.accumulate_crossval,
        combining.ensemble,
        combining.determine_postprocessing,
        combining.apply_postprocessing,
        status.status,
        run.demo,
        doctor.doctor,
        show.report,
        show.show,
    )


app = typer.Typer(
    name="segwright",
    cls=Program,
    help="From a folder of medical images with labels to a trained, evaluated, deployable segmentation model.",
    epilog="Global options may stand before or after the command. See 'segwright COMMAND --help'.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        import segwright

        print(f"segwright {segwright.__version__}")
        if context.params.get("verbose"):
            import torch

            from segwright.networks.cpu.library import describe_kernels

            print(f"torch {torch.__version__}\n{describe_kernels()}")
        raise typer.Exit


@app.callback()
def settings(
    context: typer.Context,
    work: Annotated[
        Path | None, typer.Option("--work", metavar="DIR", help="Folder for all results (default ./segwright-work).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", is_eager=True, help="More messages on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set up logging and remember the work folder."""
    from segwright.core import log

    log.configure(-1 if quiet else int(verbose or debug))
    context.obj = work


def main() -> None:
    """Run the program; exits with one of the exit codes of `app`."""
    startup.leave_deleted_folder()
    startup.shorten_openmp_spinning()
    startup.escape_unencodable_output()
    tune_process()
    app()
