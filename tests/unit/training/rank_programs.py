"""Functions that `gloo.start` runs in several processes: `python -m tests.unit.training.rank_programs FUNCTION ...`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segwright.compat.nnunet.loading import load_trainer_file
from segwright.compat.nnunet.run import NnunetRun
from segwright.core.errors import ModelError
from segwright.training.distributed.context import DistributedContext, hard_exit, joined
from segwright.training.distributed.heartbeat import RankInfo
from segwright.training.trainer import Trainer
from tests.unit.compat.trainer_files import NOTHING, write_trainer
from tests.unit.training.tiny_task import DATASET_JSON, REGIONS_JSON, make, settings, write_references

KEPT = ("train_losses", "val_losses", "dice_per_class_or_region", "skipped_steps")


class PoisonedTrainer(Trainer):
    """The second rank's gradient is not finite in the second step."""

    def train_step(self, batch: Any) -> Any:
        if self.distributed.rank == self.distributed.world_size - 1 and self.current_step == 1:
            batch["data"][0, 0, 0, 0, 0] = float("nan")
        return super().train_step(batch)


class UnfreezingTrainer(Trainer):
    """The first convolution is frozen for some steps, and the last one afterwards."""

    def train_step(self, batch: Any) -> Any:
        weights = [weight for weight in self.network.parameters() if weight.ndim == 5]
        weights[0].requires_grad_(self.current_step >= 4)
        weights[-1].requires_grad_(self.current_step < 4)
        return super().train_step(batch)


class AddedTermTrainer(Trainer):
    """A term of each rank's own samples is added to the loss over all ranks."""

    def build_loss(self) -> Any:
        segmentation = super().build_loss()
        return lambda output, target: segmentation(output, target) + 0.1 * output[0].square().mean()


TRAINERS = {"added-term": AddedTermTrainer, "poisoned": PoisonedTrainer, "unfrozen": UnfreezingTrainer}


def train(
    distributed: DistributedContext, folder: str, regime: str, batch_dice: str, steps: str, validate: str = ""
) -> None:
    """Train the tiny task; rank 0 leaves its checkpoint and `metrics.jsonl`, every rank the weights it ended with."""
    document = REGIONS_JSON if regime == "regions" else DATASET_JSON
    config = settings(
        num_epochs=1,
        num_iterations_per_epoch=int(steps),
        batch_dice=batch_dice == "yes",
        loss=None,
        seed=3,
        batch_size=4 if regime in ("added-term", "nnunet-file") else None,
        norm="batch" if regime == "batch-norm" else None,
    )
    own = Path(folder)
    options = {"references": write_references(own / "labelsTr", document)} if distributed.is_first and validate else {}
    distributed.barrier()
    if validate and not distributed.is_first:
        options = {"references": own / "labelsTr"}
    kind: Any = TRAINERS.get(regime, Trainer)
    if regime == "nnunet-file":
        file = write_trainer(own / f"code_{distributed.rank}", NOTHING)
        kind = partial(NnunetRun, loaded=load_trainer_file(file))
    trainer = make(own, kind, dataset_json=document, config=config, distributed=distributed, **options)
    if validate:
        trainer.split = type(trainer.split)(train=("case_0",), val=("case_1", "case_2", "case_3"))
    trainer.run_training()
    if validate:
        dice = trainer.perform_actual_validation().mean_dice
        (own / f"dice_{distributed.rank}.json").write_text(json.dumps(dice))
    torch.save(trainer.network.state_dict(), own / f"weights_{distributed.rank}.pt")


def sums(distributed: DistributedContext) -> None:
    """Check every exchange of three ranks against what it must give."""
    rank, size = distributed.rank, distributed.world_size
    assert distributed.broadcast([rank, "a", None]) == [0, "a", None]
    assert distributed.gather({"rank": rank, "text": "x" * rank}) == [{"rank": r, "text": "x" * r} for r in range(size)]
    assert distributed.all_reduce(torch.tensor([rank, 1])).tolist() == [sum(range(size)), size]
    assert list(distributed.local_items(range(7))) == list(range(7))[rank::size]
    part = torch.tensor(float(rank), requires_grad=True)
    torch.square(distributed.reduce(part)).backward()
    assert part.grad is not None
    assert part.grad.item() == size * 2 * sum(range(size))
    network = nn.BatchNorm1d(2)
    nn.init.constant_(network.running_mean, float(rank))
    nn.init.constant_(network.weight, float(rank + 1))
    distributed.prepare(network, torch.optim.SGD(network.parameters(), lr=1.0))
    assert network.running_mean.tolist() == [0.0, 0.0]
    assert network.weight.tolist() == [1.0, 1.0]
    nn.init.constant_(network.running_mean, float(rank + 1))
    nn.init.constant_(network.weight, float(rank))
    distributed.sync_buffers(network)
    assert network.running_mean.tolist() == [1.0, 1.0]
    assert network.weight.tolist() == [float(rank)] * 2


def gradients(distributed: DistributedContext) -> None:
    """Check the gradients of three ranks, for parameters that all, one or none of them use, while others are frozen."""
    rank, size = distributed.rank, distributed.world_size
    network = nn.ParameterDict({name: torch.zeros(2) for name in ("by_all", "by_last", "by_none", "frozen")})
    network["frozen"].requires_grad_(False)
    assert gradients_of_step(distributed, network) == {"by_all": 2.0, "by_last": 5.0, "by_none": None, "frozen": None}
    assert gradients_of_step(distributed, network) == {"by_all": 2.0, "by_last": 5.0, "by_none": None, "frozen": None}
    network["frozen"].requires_grad_(True)
    network["by_all"].requires_grad_(False)
    assert gradients_of_step(distributed, network) == {"by_all": None, "by_last": 5.0, "by_none": None, "frozen": 7.0}
    other = nn.ParameterDict(
        {name: nn.Parameter(torch.zeros(2), requires_grad=name != f"only_{rank}") for name in ("by_all", "only_1")}
    )
    with pytest.raises(ModelError, match="rank 0 trains the parameter 'only_1' and rank 1 does not have or freezes it"):
        distributed.backward_of(other)
    assert size == 3


def gradients_of_step(distributed: DistributedContext, network: nn.ParameterDict) -> dict[str, float | None]:
    """Return the gradient of each parameter after a step in which the last rank uses one more."""
    network.zero_grad()
    backward = distributed.backward_of(network)
    loss = (distributed.rank + 1) * network["by_all"].sum() + 7 * network["frozen"].sum()
    if distributed.rank == distributed.world_size - 1:
        loss = loss + 15 * network["by_last"].sum()
    backward(loss)
    return {name: None if each.grad is None else round(float(each.grad.unique()), 5) for name, each in network.items()}


def local_step(distributed: DistributedContext) -> None:
    """Check that an optimizer refuses gradients of one rank."""
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    distributed.prepare(network, optimizer)
    backward = distributed.backward_of(network)
    backward(network(torch.ones(1, 2)).sum())
    optimizer.step()
    network(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ModelError, match="gradients of one process alone.*backward_of"):
        optimizer.step()


def batch_norm(distributed: DistributedContext) -> None:
    """Check a batch norm over the samples of all ranks against torch's layer with all samples in one process."""
    for layer in (nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, affine=False)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(2, 3, 1), layer).double()
        expected = deepcopy(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        distributed.prepare(network, optimizer)
        own = list(distributed.local_indices(5))
        for _ in range(2):
            x, weight = 1000 + torch.randn(5, 2, 4, 4).double(), torch.rand(5, 3, 4, 4).double()
            network.zero_grad()
            backward = distributed.backward_of(network)
            loss = distributed.reduce((network(x[own]).sin() * weight[own]).sum())
            backward(loss)
            expected.zero_grad()
            whole = (expected(x).sin() * weight).sum()
            whole.backward()
            torch.testing.assert_close(loss, whole, rtol=1e-9, atol=1e-9)
            for one, other in zip(network.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)
        for name, buffer in expected.named_buffers():
            torch.testing.assert_close(network.get_buffer(name), buffer, rtol=1e-9, atol=1e-9)
        if distributed.is_first:  # one rank alone may plot or evaluate the network
            with torch.no_grad():
                torch.testing.assert_close(deepcopy(network)(x), deepcopy(expected)(x))
            torch.testing.assert_close(network.eval()(x), expected.eval()(x))


def killed(distributed: DistributedContext) -> None:
    """Rank 1 is killed in the middle of an exchange."""
    distributed.barrier()
    if distributed.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def failing(distributed: DistributedContext) -> None:
    """Rank 1 fails; the others wait for it in an exchange."""
    distributed.barrier()
    if distributed.rank == 1:
        raise ValueError("no such voxel")
    distributed.barrier()


def slow(distributed: DistributedContext) -> None:
    """Rank 1 needs longer than a silence may last, but lives."""
    from segwright.training.distributed import heartbeat

    heartbeat.SILENCE_S = 2.0  # type: ignore[misc]
    distributed.barrier()
    if distributed.rank == 1:
        time.sleep(4)
    distributed.barrier()


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    function, rank, size, port, *arguments = sys.argv[1:]
    place = RankInfo(rank=int(rank), world_size=int(size), local_rank=int(rank), address="127.0.0.1", port=int(port))
    with joined(place if int(size) > 1 else None, "cpu") as distributed:
        programs = (train, sums, gradients, local_step, batch_norm, killed, failing, slow)
        {program.__name__: program for program in programs}[function](distributed, *arguments)
    hard_exit(0)


if __name__ == "__main__":
    main()
