"""Join a training of several processes, as the environment variables of torchrun or `launch` describe it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from segwright.core.errors import ConfigError

if TYPE_CHECKING:
    from segwright.training.distributed.context import DistributedContext
    from segwright.training.distributed.heartbeat import RankInfo

_DEVICES_WITHOUT_INDEX: Final = ("cpu", "mps")


def rank_info_from_env(variables: Mapping[str, str]) -> RankInfo | None:
    """Return rank, world size and rendezvous of this process from torchrun's variables; None without them.

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
            has_external_store=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=int(variables.get("TORCHELASTIC_RESTART_COUNT", 0)),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: {error}; start with torchrun, which "
            "sets all of them, or unset RANK and use --gpus N"
        ) from error


def device_of(device: str, rank_info: RankInfo | None) -> str:
    """Return the device of this process: the GPU of its local rank if there are several processes.

    Raises:
        ConfigError: several processes on one GPU.
    """
    if rank_info is None or device in _DEVICES_WITHOUT_INDEX:
        return device
    from segwright.core.device import resolve_device

    if ":" in device:
        raise ConfigError(f"device '{device}' is one GPU for {rank_info.world_size} processes; use --device auto")
    resolved = resolve_device(device)
    if resolved.type not in _DEVICES_WITHOUT_INDEX:
        resolved = resolve_device(f"{resolved.type}:{rank_info.local_rank}")
    return str(resolved)


def process_group(rank_info: RankInfo | None, device: str) -> AbstractContextManager[DistributedContext | None]:
    """Return a context manager that joins the other processes; for a single one it yields None and imports nothing."""
    if rank_info is None:
        return nullcontext()
    from segwright.core import log
    from segwright.training.distributed.context import joined

    if rank_info.rank > 0:
        log.configure(-1)
    return joined(rank_info, device_of(device, rank_info))


def hard_exit_if_distributed(variables: Mapping[str, str], code: int) -> None:
    """Exit immediately with `code` if this process belongs to a distributed training; otherwise return."""
    if "RANK" in variables:
        from segwright.training.distributed.context import hard_exit

        hard_exit(code)
