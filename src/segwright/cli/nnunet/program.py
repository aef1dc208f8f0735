"""Run one of nnU-Net's commands; see `docs/how-to/nnunet-commands.md`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from segwright.cli import startup
from segwright.cli.app import EXIT_USER, exit_code_of
from segwright.cli.dist_env import hard_exit_if_distributed
from segwright.cli.nnunet.options import Command, parse
from segwright.core import log
from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.process_tuning import tune_process

PREFIX: Final = "nnUNetv2_"

MODULES: Final = {
    "preparing": (
        "extract_fingerprint",
        "plan_experiment",
        "preprocess",
        "plan_and_preprocess",
        "move_plans_between_datasets",
    ),
    "training": ("train",),
    "predicting": ("predict", "predict_from_modelfolder", "ensemble"),
    "evaluating": (
        "evaluate_folder",
        "evaluate_simple",
        "accumulate_crossval_results",
        "determine_postprocessing",
        "apply_postprocessing",
    ),
    "selecting": ("find_best_configuration",),
    "sharing": ("export_model_to_zip", "install_pretrained_model_from_zip", "download_pretrained_model_by_url"),
    "converting": ("convert_MSD_dataset", "convert_old_nnUNet_dataset"),
    "drawing": ("plot_overlay_pngs",),
    "pretraining": ("preprocess_like_nnssl", "plan_like_dynamic", "train_pretrained"),
}
"""The commands, without their prefix, by the module that has them; only that one is imported."""

NAMES: Final = tuple(f"{PREFIX}{name}" for names in MODULES.values() for name in names)


def main() -> None:
    """Run the command that the script is called after, else the one that the first argument names; exit."""
    script = Path(sys.argv[0]).stem
    run(sys.argv[1:] if script not in NAMES else [script, *sys.argv[1:]])


def run(words: Sequence[str]) -> None:
    """Run a command and exit as `segwright` does.

    Args:
        words: the command, with or without its prefix, and its arguments.
    """
    startup.leave_deleted_folder()
    startup.shorten_openmp_spinning()
    startup.escape_unencodable_output()
    tune_process()
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m segwright.compat.nnunet COMMAND ...\n\ncommands: {', '.join(NAMES)}")
        sys.exit(0 if words else EXIT_USER)
    code = exit_code_of(lambda: execute(words), words)
    hard_exit_if_distributed(os.environ, code)
    sys.exit(code)


def execute(words: Sequence[str]) -> None:
    """Run a command.

    Args:
        words: as of `run`; at least one.

    Raises:
        SegwrightError: the command is unknown, an argument is wrong, or the command failed.
        SystemExit: the help was printed.
    """
    log.configure(int("--verbose" in words or "--debug" in words))
    name = words[0].removeprefix(PREFIX)
    found = command(name)
    found.function(parse(f"{PREFIX}{name}", found, [word for word in words[1:] if word != "--debug"]))


def command(name: str) -> Command:
    """Return a command by its name without prefix.

    Raises:
        ConfigError: there is none.
    """
    for module, names in MODULES.items():
        if name in names:
            found: Command = import_module(f"segwright.cli.nnunet.{module}").COMMANDS[name]
            return found
    raise ConfigError(f"nnU-Net has no command '{PREFIX}{name}'{did_you_mean(f'{PREFIX}{name}', NAMES)}")
