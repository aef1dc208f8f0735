"""Find the model folder of a cascade's first stage."""

from __future__ import annotations

from pathlib import Path

from segwright.core.errors import ModelError

STORED = "previous_stage"
"""Folder in a model folder for the first stage's model; without it, that model is next to the model folder."""


def previous_stage_folder(model_folder: Path, configuration: str, previous: str) -> Path:
    """Find the model folder of the first stage: in the second stage's folder, or beside it.

    Raises:
        ModelError: there is none.
    """
    if Path(previous).name != previous or previous == configuration:
        raise ModelError(
            f"{model_folder}: configuration '{configuration}' names an invalid previous stage '{previous}'; "
            "the plan is damaged"
        )
    absolute = model_folder.absolute()
    beside = absolute.with_name(absolute.name.removesuffix(configuration) + previous)
    for folder in (model_folder / STORED, beside):
        if folder.is_dir():
            return folder
    raise ModelError(
        f"{model_folder}: configuration '{configuration}' needs the model of '{previous}', which is neither in "
        f"{model_folder / STORED} nor at {beside}; copy the first stage's model folder to one of them"
    )
