"""This process's place among the several of one training, as torchrun or `launch` tell it in variables."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from segwright.core.errors import ConfigError

if TYPE_CHECKING:
    from segwright.training.distributed.context import DistributedContext
    from segwright.training.distributed.heartbeat import RankInfo

_HOST_DEVICES: Final = ("cpu", "mps")


def place_here(variables: Mapping[str, str]) -> RankInfo | None:
    """Return this process's place among several, from torchrun's variables; None where there are none.

    Raises:
        ConfigError: a variable is missing or not a number.
    """
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return None
    from segwright.training.distributed.heartbeat import RankInfo

    try:
        return RankInfo(
            rank=int(variables["RANK"]),
            world_size=int(variables["WORLD_SIZE"]),
            local_rank=int(variables["LOCAL_RANK"]),
            address=variables["MASTER_ADDR"],
            port=int(variables["MASTER_PORT"]),
            store_is_there=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=int(variables.get("TORCHELASTIC_RESTART_COUNT", 0)),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: {error}; torchrun sets all of them, "
            "without it unset RANK and use --gpus N"
        ) from error


def device_of(device: str, place: RankInfo | None) -> str:
    """Return the device of this process: its own GPU where there are several processes.

    Raises:
        ConfigError: several processes on one GPU.
    """
    if place is None or device in _HOST_DEVICES:
        return device
    from segwright.core.device import resolve_device

    if ":" in device:
        raise ConfigError(f"device '{device}' is one GPU for {place.world_size} processes; leave --device to auto")
    resolved = resolve_device(device)
    return str(resolved if resolved.type in _HOST_DEVICES else resolve_device(f"{resolved.type}:{place.local_rank}"))


def joined(place: RankInfo | None, device: str) -> AbstractContextManager[DistributedContext | None]:
    """Return the context in which this process works with the others; None and no import where it is alone."""
    if place is None:
        return nullcontext()
    from segwright.core import log
    from segwright.training.distributed.context import joined

    if place.rank > 0:
        log.configure(-1)
    return joined(place, device_of(device, place))


def leave_if_one_of_several(variables: Mapping[str, str], code: int) -> None:
    """End a process that worked with others, well or not."""
    if "RANK" in variables:
        from segwright.training.distributed.context import hard_exit

        hard_exit(code)
