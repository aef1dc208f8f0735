"""Distributed training: the process group, its collective operations, and how a global batch is split between ranks.

The samples of one global batch are split, so that losses and weights equal those of a single process with that batch.
The backend is nccl between GPUs and gloo otherwise. Nothing here starts a process or reads the environment: a
`RankInfo` is given. `heartbeat` detects that a process has ended.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any, Final, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from segwright.core.errors import ConfigError, ModelError
from segwright.core.interrupt import Interrupted
from segwright.training.distributed.batch_norm import has_batch_norm, share_statistics
from segwright.training.distributed.gradients import GradientMean, trained_parameters
from segwright.training.distributed.heartbeat import DONE, FAILED, STOPPED, HeartbeatMonitor, RankInfo, rendezvous
from segwright.training.losses.terms import Reduce, identity_reduce

T = TypeVar("T")

_MAX_WAIT: Final = timedelta(days=2)
_HOST_TYPES: Final = ("cpu", "mps")
"""Device types whose tensors gloo reduces; all others use nccl."""


def split_batch(batch_size: int, world_size: int) -> tuple[range, ...]:
    """Split the sample indices of the global batch between ranks; the first parts may be larger by one.

    A sample keeps its index in the global batch, so the same samples are forced to show foreground as in a single
    process; in nnU-Net 2.8.1 they depend on the rank (nnU-Net behaviour 8.9).

    >>> split_batch(5, 2), split_batch(4, 3)
    ((range(0, 3), range(3, 5)), (range(0, 2), range(2, 3), range(3, 4)))

    Raises:
        ConfigError: there are fewer samples than ranks.
    """
    if batch_size < world_size:
        raise ConfigError(
            f"batch size {batch_size} on {world_size} processes leaves some without a sample; use --gpus {batch_size} "
            f"or --batch-size {world_size}"
        )
    base, more = divmod(batch_size, world_size)
    starts = [rank * base + min(rank, more) for rank in range(world_size + 1)]
    return tuple(range(low, high) for low, high in pairwise(starts))


class DistributedContext:
    """Rank and collective operations of a training; this base class is for a single process."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the only one that writes files, logs and checks the time."""
        return self.rank == 0

    def local_indices(self, batch_size: int) -> range:
        """Return the indices of the samples in the global batch that this rank processes."""
        return split_batch(batch_size, self.world_size)[self.rank]

    def local_items(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `world_size`-th item from `rank` on; ranks may get different numbers of items."""
        return items[self.rank :: self.world_size]

    @property
    def reduce(self) -> Reduce:
        """Differentiable sum over ranks. Its gradient is the local one times the number of ranks, for `backward_of`."""
        return identity_reduce

    def all_reduce(self, part: Tensor) -> Tensor:
        """Return the sum over ranks, detached."""
        return part

    def mean(self, part: Tensor) -> Tensor:
        """Return the mean over ranks, detached."""
        return self.all_reduce(part) / self.world_size

    def prepare(self, network: nn.Module, optimizer: Optimizer) -> None:
        """Share a network that is on its device: copy rank 0's weights and buffers to every rank.

        From then on, batch norm normalises over the samples of all ranks, and a step of the optimizer with gradients
        of this rank alone is an error.
        """

    def backward_of(self, network: nn.Module) -> Callable[[Tensor], None]:
        """Return what computes the mean gradient of the ranks' losses; call it before the forward pass.

        A loss of this rank's samples thereby counts as the mean over ranks, and one made with `reduce` as itself.
        """
        return torch.autograd.backward

    def sync_buffers(self, module: nn.Module) -> None:
        """Copy the buffers of rank 0 to every rank, where a layer of one's own computes them from its samples."""

    def broadcast(self, value: T) -> T:
        """Return the value (JSON) of rank 0; all ranks must call this."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values (JSON) of all ranks, in their order; all ranks must call this."""
        return [value]

    def barrier(self) -> None:
        """Wait for all ranks."""


SINGLE: Final = DistributedContext()


class _ProcessGroup(DistributedContext):
    """Several processes connected by `torch.distributed`."""

    def __init__(self, info: RankInfo, monitor: HeartbeatMonitor) -> None:
        self.rank = info.rank
        self.world_size = info.world_size
        self._monitor = monitor
        self._gradient_mean: GradientMean | None = None
        self._has_averaged = False

    @property
    def reduce(self) -> Reduce:
        return self._reduce

    def _reduce(self, part: Tensor) -> Tensor:
        with self._monitor.explain_errors():
            return _LocalGradientSum.apply(part)  # type: ignore[no-any-return, no-untyped-call]

    def all_reduce(self, part: Tensor) -> Tensor:
        with self._monitor.explain_errors():
            return _all_reduced(part)

    def prepare(self, network: nn.Module, optimizer: Optimizer) -> None:
        self._broadcast_tensors([*network.parameters(), *network.buffers()])
        if has_batch_norm(network):
            # Its own group: DDP also reduces in the backward pass, in an order that may differ between ranks.
            group = dist.new_group(timeout=_MAX_WAIT)
            share_statistics(network, partial(self._gather_rows, group))
        optimizer.register_step_post_hook(self._require_averaged)

    def backward_of(self, network: nn.Module) -> Callable[[Tensor], None]:
        parameters = trained_parameters(network)
        if not parameters:
            return torch.autograd.backward
        if self._gradient_mean is None or not self._gradient_mean.fits(parameters):
            with self._monitor.explain_errors():
                self._gradient_mean = GradientMean(network, self.gather)
        return self._backward

    def _backward(self, loss: Tensor) -> None:
        assert self._gradient_mean is not None, "set by backward_of"
        with self._monitor.explain_errors():
            self._gradient_mean.backward(loss)
        self._has_averaged = True

    def _require_averaged(self, *_: Any) -> None:
        """Check that the gradients of an optimizer's step were averaged, else the ranks train different networks.

        Raises:
            ModelError: they were not.
        """
        if not self._has_averaged:
            raise ModelError(
                "this train_step uses the gradients of one process alone; in a train_step of your own, write 'backward "
                "= self.distributed.backward_of(self.network)' before the forward pass and 'backward(loss)' instead of "
                "loss.backward(). A trainer file of nnU-Net with a train_step of its own needs a single process"
            )
        self._has_averaged = False

    def _gather_rows(self, group: dist.ProcessGroup, row: Tensor) -> Tensor:
        """Return the tensors (K,) of all ranks as (ranks, K); the gradient is that of all ranks' losses."""
        none = torch.zeros_like(row)
        rows = torch.stack([row if rank == self.rank else none for rank in range(self.world_size)])
        with self._monitor.explain_errors():
            return _GlobalSum.apply(rows, group)  # type: ignore[no-any-return, no-untyped-call]

    def sync_buffers(self, module: nn.Module) -> None:
        self._broadcast_tensors([*module.buffers()])

    def _broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        with self._monitor.explain_errors(), torch.no_grad():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)

    def broadcast(self, value: T) -> T:
        with self._monitor.explain_errors():
            values: list[T] = _exchange_json(value, self.world_size, only_first=True)
            return values[0]

    def gather(self, value: T) -> list[T]:
        with self._monitor.explain_errors():
            return _exchange_json(value, self.world_size)

    def barrier(self) -> None:
        self.gather(None)


def hard_exit(code: int) -> NoReturn:
    """End this process without the interpreter's clean-up.

    gloo's threads outlive the process group (torch 2.13), and sometimes abort the interpreter when it shuts down.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


@contextmanager
def joined(info: RankInfo | None, device: str) -> Iterator[DistributedContext]:
    """Join the process group during the block; an error in the block ends all processes of the group.

    Args:
        info: None for a training in one process.
        device: of this process; decides between nccl and gloo.

    Raises:
        RankError: another process did not connect, or ended.
    """
    if info is None or info.world_size == 1:
        yield SINGLE
        return
    if torch.device(device).type not in _HOST_TYPES:
        torch.cuda.set_device(device)
    store = rendezvous(info)
    monitor = HeartbeatMonitor(info)
    kind = torch.device(device).type
    backend = "gloo" if kind in _HOST_TYPES else f"cpu:gloo,{kind}:nccl"
    with monitor.explain_errors():
        dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.world_size, timeout=_MAX_WAIT)
    distributed = _ProcessGroup(info, monitor)
    try:
        yield distributed
        distributed.barrier()
    except Interrupted:
        monitor.stop(STOPPED)
        raise
    except BaseException as error:
        monitor.stop(f"{FAILED}: {type(error).__name__}: {error}")
        raise
    monitor.stop(DONE)
    distributed.barrier()  # rank 0 hosts the store: it must exit after the last access
    dist.destroy_process_group()


class _GlobalSum(torch.autograd.Function):
    """The sum over ranks, with the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Return the sum."""
        ctx.group = group
        return _all_reduced(part, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the sum of the gradients."""
        return _all_reduced(gradient, ctx.group), None


class _LocalGradientSum(torch.autograd.Function):
    """The sum over ranks, without communication in the backward pass, see `DistributedContext.reduce`."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        """Return the sum."""
        return _all_reduced(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient times the number of ranks."""
        return gradient * dist.get_world_size()


def _exchange_json(value: Any, world_size: int, *, only_first: bool = False) -> list[Any]:
    """Return the JSON values of all ranks, or only that of rank 0."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor([len(text)])
    if only_first:
        dist.broadcast(size, src=0)
        text = text if dist.get_rank() == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(text, src=0)
        return [json.loads(bytes(text.tolist()))]
    sizes = [torch.zeros_like(size) for _ in range(world_size)]
    dist.all_gather(sizes, size)
    longest = max(int(size) for size in sizes)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world_size)]
    dist.all_gather(texts, torch.cat([text, text.new_zeros(longest - len(text))]))
    return [json.loads(bytes(text[: int(size)].tolist())) for text, size in zip(texts, sizes, strict=True)]


def _all_reduced(part: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the sum over ranks, detached."""
    whole = part.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, group=group)
    return whole
