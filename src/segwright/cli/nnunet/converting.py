"""nnU-Net's commands that convert raw datasets of other layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from segwright import api
from segwright.cli.nnunet import folders
from segwright.cli.nnunet.options import Command, Values, value
from segwright.core.errors import ConfigError


def convert_msd_dataset(arguments: Values) -> None:
    """Convert a task of the Medical Segmentation Decathlon into nnUNet_raw."""
    source, number = arguments.path("-i"), arguments.optional_number("-overwrite_id")
    target = folders.folder_of(folders.RAW)
    target.mkdir(parents=True, exist_ok=True)
    if number is not None:
        target = target / f"Dataset{number:03d}_{_task_name(source)}"
    api.convert("msd", source, target, workers=arguments.optional_number("-np"))


def convert_old_nnunet_dataset(arguments: Values) -> None:
    """Convert a dataset of nnU-Net v1 into nnUNet_raw."""
    api.convert(
        "nnunet-v1",
        arguments.path("input_folder"),
        folders.folder_of(folders.RAW) / arguments.text("output_dataset_name"),
    )


COMMANDS: Final = {
    "convert_MSD_dataset": Command(
        function=convert_msd_dataset,
        options=(
            value("-i", about="Folder of the task, Task04_Hippocampus.", is_required=True),
            value("-overwrite_id", about="Id of the new dataset (default: the task's).", kind=int),
            value("-np", about="Number of threads (default: all CPUs).", kind=int),
        ),
    ),
    "convert_old_nnUNet_dataset": Command(
        function=convert_old_nnunet_dataset,
        options=(
            value("input_folder", about="Folder of the dataset, Task004_Hippocampus."),
            value("output_dataset_name", about="Name of the new dataset, Dataset004_Hippocampus."),
        ),
    ),
}


def _task_name(source: Path) -> str:
    """Return what follows the number in the name of a task's folder.

    Raises:
        ConfigError: the folder is not named like a task.
    """
    number, _, name = source.absolute().name.partition("_")
    if not (name and number.startswith("Task")):
        raise ConfigError(f"-i {source}: expected a folder named like Task04_Hippocampus")
    return name
