"""Distributed training over gloo equals training in one process; an error in one process ends all of them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from segwright.core.errors import ConfigError
from segwright.training.distributed.context import SINGLE, DistributedContext, split_batch
from segwright.training.losses.builtin import build_loss
from tests.unit.training import gloo

pytestmark = pytest.mark.slow

KEPT = ("train_losses", "val_losses", "dice_per_class_or_region", "skipped_steps")


Trained: TypeAlias = tuple[dict[str, Any], list[dict[str, torch.Tensor]]]


def trained(folder: Path, world_size: int, *arguments: str) -> Trained:
    return trained_together({folder: world_size}, *arguments)[0]


def trained_together(folders: Mapping[Path, int], *arguments: str) -> list[Trained]:
    """Train in each folder with so many processes, all of them at the same time: most of it is their start."""
    processes = []
    for folder, world_size in folders.items():
        folder.mkdir()
        processes += gloo.start("train", world_size, folder, *arguments)
    for code, errors in gloo.finish(processes):
        assert code == 0, errors
    return [outcome(folder, world_size) for folder, world_size in folders.items()]


def outcome(folder: Path, world_size: int) -> Trained:
    row = json.loads((folder / "fold_0" / "metrics.jsonl").read_text().splitlines()[-1])
    weights = [torch.load(folder / f"weights_{rank}.pt", weights_only=True) for rank in range(world_size)]
    return {key: row[key] for key in KEPT}, weights


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("world_size", [1, 2])
def test_shares_are_even_and_cover_the_batch(batch_size: int, world_size: int) -> None:
    parts = split_batch(batch_size, world_size)
    assert [index for part in parts for index in part] == list(range(batch_size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_fewer_samples_than_ranks_is_an_error() -> None:
    with pytest.raises(ConfigError, match="batch size 2 on 3 processes.*--gpus 2"):
        split_batch(2, 3)


def test_a_single_process_reduces_to_its_own_values() -> None:
    part = torch.ones(2)
    assert SINGLE.reduce(part) is part
    assert SINGLE.all_reduce(part) is part
    assert (SINGLE.broadcast(3), SINGLE.gather("a"), list(SINGLE.local_indices(4))) == (3, ["a"], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("regime", "batch_dice"),
    [
        ("labels", "yes"),
        ("labels", "no"),
        ("regions", "yes"),
        ("batch-norm", "yes"),
        ("unfrozen", "yes"),
        ("added-term", "yes"),
        ("nnunet-file", "yes"),
    ],
)
def test_two_ranks_train_as_one(tmp_path: Path, regime: str, batch_dice: str) -> None:
    one, two = trained_together({tmp_path / "one": 1, tmp_path / "two": 2}, regime, batch_dice, "10")
    (expected, (alone,)), (found, (first, second)) = one, two
    assert found["train_losses"] == pytest.approx(expected["train_losses"], abs=1e-5)
    assert found["val_losses"] == pytest.approx(expected["val_losses"], abs=1e-5)
    assert found["dice_per_class_or_region"] == pytest.approx(expected["dice_per_class_or_region"], abs=1e-3)
    for name, weight in alone.items():
        rtol = 1e-5 if name.endswith("running_var") else 0  # its values are up to 4
        torch.testing.assert_close(first[name], weight, rtol=rtol, atol=1e-5)
        assert torch.equal(first[name], second[name])


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    row, (first, second) = trained(tmp_path / "run", 2, "poisoned", "no", "3")
    assert row["skipped_steps"] == 1
    for name, weight in first.items():
        assert torch.isfinite(weight).all()
        assert torch.equal(weight, second[name])


def test_ranks_share_a_validation_with_uneven_counts(tmp_path: Path) -> None:
    trained(tmp_path / "run", 2, "labels", "no", "1", "validate")
    folder = tmp_path / "run" / "fold_0" / "validation"
    record = json.loads((folder / "predictions.json").read_text())
    assert sorted(record["files"]) == [f"case_{number}.nii.gz" for number in (1, 2, 3)]
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 3
    assert (tmp_path / "run" / "dice_0.json").read_text() == (tmp_path / "run" / "dice_1.json").read_text()


def test_ranks_validate_with_the_same_batch_statistics(tmp_path: Path) -> None:
    _, (first, second) = trained(tmp_path / "run", 2, "batch-norm", "no", "2", "validate")
    assert any("running_mean" in name for name in first)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])


@pytest.mark.parametrize(
    ("program", "num_ranks"), [("sums", 3), ("gradients", 3), ("local_step", 2), ("batch_norm", 2)]
)
def test_ranks_together(program: str, num_ranks: int) -> None:
    for code, errors in gloo.finish(gloo.start(program, num_ranks)):
        assert code == 0, errors


def test_a_slow_rank_does_not_count_as_ended() -> None:
    for code, errors in gloo.finish(gloo.start("slow", 2)):
        assert code == 0, errors


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        pytest.param("killed", "rank 1 ended unexpectedly", marks=pytest.mark.slow),
        ("failing", "ValueError: no such voxel"),
    ],
)
def test_the_end_of_one_rank_ends_the_others_with_its_name(function: str, cause: str) -> None:
    processes = gloo.start(function, 2)
    processes[1].wait(60)
    start = time.monotonic()
    (code, errors), (other_code, other_errors) = gloo.finish(processes)
    assert time.monotonic() - start < 30
    assert code == 1
    assert cause in errors
    assert other_code == (-signal.SIGKILL if function == "killed" else 1)
    assert function == "killed" or "no such voxel" in other_errors


def test_losses_with_a_custom_reduce_are_averaged_over_samples() -> None:
    class Twice(DistributedContext):
        """Two ranks with the same samples."""

        @property
        def reduce(self) -> Any:
            return lambda part: 2 * part

    from segwright.data.labels import Labels
    from tests.unit.training.tiny_task import DATASET_JSON

    labels = Labels.from_dataset_json(DATASET_JSON)
    output, target = torch.randn(3, 3, 4, 4), torch.zeros(3, 1, 4, 4, dtype=torch.int16)
    for batch_dice in (False, True):
        one = build_loss(labels, batch_dice=batch_dice)(output, target)
        two = build_loss(labels, batch_dice=batch_dice, reduce=Twice().reduce)(output, target)
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
