"""Several processes on one training: who is who, what they tell each other, and the end of all if one ends.

One global batch is shared out by its samples, so that losses and weights are those of a single process with that batch.
Tensors go by nccl between GPUs and by gloo otherwise. Nothing here starts a process or reads the environment: a `Place`
is given. `heartbeat` tells when a process has ended.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segwright.core.errors import ConfigError
from segwright.core.interrupt import Interrupted
from segwright.training.distributed.heartbeat import DONE, FAILED, STOPPED, Place, Watch, meet
from segwright.training.losses.terms import Reduce, identity_reduce

T = TypeVar("T")

_LONGEST_WAIT: Final = timedelta(days=2)
_BUCKET_BYTES: Final = 64 * 2**20
_HOST_TYPES: Final = ("cpu", "mps")


def shares(batch_size: int, world_size: int) -> tuple[range, ...]:
    """Return which samples of the global batch each rank takes: equal parts, the first ones larger by one.

    nnU-Net 2.8.1 leaves some ranks of an uneven split empty-handed of foreground or short of a sample
    (nnU-Net behaviour 8.9). Here a sample keeps its place in the global batch, so forced foreground is that of a single
    process.

    >>> shares(5, 2), shares(4, 3)
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


class Ranks:
    """What a training asks of its processes; this class is for one process and does nothing."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes, logs and decides about time."""
        return self.rank == 0

    def own(self, batch_size: int) -> range:
        """Return which samples of the global batch are this rank's."""
        return shares(batch_size, self.world_size)[self.rank]

    def own_items(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `world_size`-th item, beginning with `rank`; the numbers of items may be uneven."""
        return items[self.rank :: self.world_size]

    @property
    def pool(self) -> Reduce:
        """The sum over ranks; its gradient goes to the own part, so that gradients are summed over ranks."""
        return identity_reduce

    def total(self, part: Tensor) -> Tensor:
        """Return the sum over ranks, without gradient."""
        return part

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over ranks: the pooled loss is the same everywhere, its gradient shared."""

    def equalize(self, module: nn.Module) -> None:
        """Give every rank the weights and buffers of rank 0."""

    def equalize_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0, above all running statistics of batch norm: each saw other samples."""

    def first(self, value: T) -> T:
        """Return the value of rank 0, a plain one; all ranks have to call."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks; all have to call."""
        return [value]

    def barrier(self) -> None:
        """Wait until every rank is here."""


ALONE: Final = Ranks()


class _Group(Ranks):
    """Several processes that met."""

    def __init__(self, place: Place, watch: Watch) -> None:
        self.rank = place.rank
        self.world_size = place.world_size
        self._watch = watch

    @property
    def pool(self) -> Reduce:
        return self._pooled

    def _pooled(self, part: Tensor) -> Tensor:
        with self._watch.explaining():
            return _Pooled.apply(part)  # type: ignore[no-any-return, no-untyped-call]

    def total(self, part: Tensor) -> Tensor:
        with self._watch.explaining():
            whole = part.detach().clone()
            dist.all_reduce(whole)
            return whole

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            return
        # A parameter may have no gradient on some ranks, and all must exchange the same.
        missing = [index for index, parameter in enumerate(trained) if parameter.grad is None]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        present = gradients[0].new_ones(len(trained))
        for index in missing:
            present[index] = 0
        self._add_up([*gradients, present])
        for index in missing:
            if present[index] > 0:  # without a gradient anywhere the optimiser leaves a parameter alone
                trained[index].grad = gradients[index]

    def _add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over ranks."""
        with self._watch.explaining():
            for bucket in _buckets(tensors):
                flat = torch.cat([gradient.flatten() for gradient in bucket])
                dist.all_reduce(flat)
                parts = torch.split(flat, [gradient.numel() for gradient in bucket])
                for gradient, part in zip(bucket, parts, strict=True):
                    gradient.copy_(part.view(gradient.shape))

    def equalize(self, module: nn.Module) -> None:
        self._broadcast([*module.parameters(), *module.buffers()])

    def equalize_buffers(self, module: nn.Module) -> None:
        self._broadcast([*module.buffers()])

    def _broadcast(self, tensors: Sequence[Tensor]) -> None:
        with self._watch.explaining(), torch.no_grad():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)

    def first(self, value: T) -> T:
        with self._watch.explaining():
            values: list[T] = _documents(value, self.world_size, first_alone=True)
            return values[0]

    def gather(self, value: T) -> list[T]:
        with self._watch.explaining():
            return _documents(value, self.world_size)

    def barrier(self) -> None:
        self.gather(None)


def leave(code: int) -> NoReturn:
    """End this process without the interpreter's clean-up: gloo's threads outlive the group (torch 2.13).

    The interpreter that meets them on its way out aborts now and then, after a success as after an error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


@contextmanager
def joined(place: Place | None, device: str) -> Iterator[Ranks]:
    """Meet the other processes and part from them at the end; an error here ends all of them.

    Args:
        place: None for a training in one process.
        device: of this process; decides between nccl and gloo.

    Raises:
        RankError: the others did not come, or one of them ended.
    """
    if place is None or place.world_size == 1:
        yield ALONE
        return
    if torch.device(device).type not in _HOST_TYPES:
        torch.cuda.set_device(device)
    store = meet(place)
    watch = Watch(place)
    kind = torch.device(device).type
    backend = "gloo" if kind in _HOST_TYPES else f"cpu:gloo,{kind}:nccl"
    with watch.explaining():
        dist.init_process_group(
            backend, store=store, rank=place.rank, world_size=place.world_size, timeout=_LONGEST_WAIT
        )
    ranks = _Group(place, watch)
    try:
        yield ranks
        ranks.barrier()
    except Interrupted:
        watch.stop(STOPPED)
        raise
    except BaseException as error:
        watch.stop(f"{FAILED}: {type(error).__name__}: {error}")
        raise
    watch.stop(DONE)
    ranks.barrier()  # rank 0 keeps the store: it may go only when nobody looks any more
    dist.destroy_process_group()


class _Pooled(torch.autograd.Function):
    """The sum over ranks; each rank's gradient is that of its own part, which leaves the sum to the parameters'."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        """Return the sum."""
        whole = part.detach().clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient as it is."""
        return gradient


def _documents(value: Any, world_size: int, *, first_alone: bool = False) -> list[Any]:
    """Return the JSON values of all ranks, or only the first rank's."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor([len(text)])
    if first_alone:
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


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in order, as many at a time as fit a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
