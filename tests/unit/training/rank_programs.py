"""Functions run by the processes of `test_context`: `python -m tests.unit.training.rank_programs FUNCTION RANK ...`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segwright.training.distributed.context import DistributedContext, hard_exit, joined
from segwright.training.distributed.heartbeat import RankInfo
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import DATASET_JSON, REGIONS_JSON, make, settings, write_references

KEPT = ("train_losses", "val_losses", "dice_per_class_or_region", "skipped_steps")


class PoisonedTrainer(Trainer):
    """The second rank's gradient is not finite in the second step."""

    def train_step(self, batch: Any) -> Any:
        if self.distributed.rank == self.distributed.world_size - 1 and self.current_step == 1:
            batch["data"][0, 0, 0, 0, 0] = float("nan")
        return super().train_step(batch)


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
        norm="batch" if regime == "batch-norm" else None,
    )
    own = Path(folder)
    options = {"references": write_references(own / "labelsTr", document)} if distributed.is_first and validate else {}
    distributed.barrier()
    if validate and not distributed.is_first:
        options = {"references": own / "labelsTr"}
    trainer = make(
        own,
        PoisonedTrainer if regime == "poisoned" else Trainer,
        dataset_json=document,
        config=config,
        distributed=distributed,
        **options,
    )
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
    assert part.grad.item() == 2 * sum(range(size))
    layer = nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, float(rank + 1))
    distributed.sync_parameters(layer)
    assert layer.weight.detach().unique().tolist() == [1.0]
    layer.weight.grad = torch.full((2, 2), float(rank))
    distributed.sum_gradients(layer.parameters())
    assert layer.weight.grad.unique().tolist() == [float(sum(range(size)))]
    assert layer.bias.grad is None
    layer.weight.grad = torch.full((2, 2), float(rank))
    layer.bias.grad = None if rank == 0 else torch.ones(2)
    distributed.sum_gradients(layer.parameters())
    assert layer.weight.grad.unique().tolist() == [float(sum(range(size)))]
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [size - 1, size - 1]
    norm = nn.BatchNorm1d(2)
    nn.init.constant_(norm.running_mean, float(rank))
    nn.init.constant_(norm.weight, float(rank))
    distributed.sync_buffers(norm)
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert norm.weight.detach().tolist() == [float(rank)] * 2


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
        {"train": train, "sums": sums, "killed": killed, "failing": failing, "slow": slow}[function](
            distributed, *arguments
        )
    hard_exit(0)


if __name__ == "__main__":
    main()
