"""Choose where the tasks of a run are run: the options --dask, --local-gpus and --local-cpus."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from segwright.cli.options import split_list

if TYPE_CHECKING:
    from segwright.api.cluster.dask_engine import DaskExecutor
    from segwright.cli.launch import ChildExecutor

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def require_one_engine(
    *, dask: str | None, local_gpus: str | None, local_cpus: int | None, gpus: int = 1, part: int | None = None
) -> None:
    """Check that at most one of the options is given that decide which processes work.

    Args:
        dask: see `task_executor`.
        local_gpus: see `task_executor`.
        local_cpus: see `task_executor`.
        gpus: GPUs that share each batch of a training.
        part: the only part that is predicted.

    Raises:
        BadParameter: there are several.
    """
    options = {"--dask": dask, "--local-gpus": local_gpus, "--local-cpus": local_cpus, "--gpus": gpus > 1 or None}
    options["--part"] = part
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other; give one of them")


@contextmanager
def task_executor(
    device: str, *, dask: str | None, local_gpus: str | None, local_cpus: int | None
) -> Iterator[ChildExecutor | DaskExecutor | None]:
    """Yield where tasks are run, and None for this process.

    Args:
        device: of the tasks.
        dask: address or file of a Dask scheduler.
        local_gpus: GPUs of this machine, one task on each.
        local_cpus: number of tasks that share the CPUs.

    Raises:
        ConfigError: the device does not fit, there are no such GPUs, or no scheduler answers.
    """
    if dask is not None:
        from segwright.api.cluster.dask_engine import dask_executor

        with dask_executor(dask, device=device) as executor:
            yield executor
        return
    if local_gpus is None and local_cpus is None:
        yield None
        return
    from segwright.cli import launch

    slots = [{}] * local_cpus if local_cpus is not None else gpu_slots(local_gpus or "", device, os.environ)
    with launch.ChildExecutor(slots) as children:
        yield children


def gpu_slots(gpus: str, device: str, variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the variables that show one GPU to a process, for each GPU.

    Args:
        gpus: numbers such as `0,1`, or `all`.
        device: of the tasks.
        variables: of this process; GPUs are counted among those that it sees.

    Raises:
        ConfigError: there are no such GPUs, or the device is not one of them.
    """
    from segwright.core.device import CUDA, count_gpus
    from segwright.core.errors import ConfigError

    if device not in ("auto", CUDA):
        raise ConfigError(f"--local-gpus {gpus}: chooses the GPU of each task; leave out --device {device}")
    count, reason = count_gpus()
    if not count:
        raise ConfigError(f"--local-gpus {gpus}: {reason}; on the CPU use --local-cpus N")
    numbers = [str(number) for number in range(count)] if gpus == "all" else list(split_list([gpus]))
    wrong = [word for word in numbers if not word.isdecimal() or int(word) >= count]
    if wrong or not numbers:
        raise ConfigError(
            f"--local-gpus {gpus}: '{wrong[0] if wrong else ''}' is not a GPU; this machine has {count}, numbered from "
            "0; write for instance 0,1 or all"
        )
    visible = split_list([variables.get(_VISIBLE, "")])
    return [{_VISIBLE: visible[int(number)] if visible else number} for number in dict.fromkeys(numbers)]


def task_device(device: str, local_cpus: int | None) -> str:
    """Return the device of the tasks: the CPU for those that share the CPUs.

    Raises:
        BadParameter: another device was given.
    """
    if local_cpus is None:
        return device
    if device not in ("auto", "cpu"):
        raise typer.BadParameter(f"--local-cpus runs tasks on the CPU; leave out --device {device}")
    return "cpu"
