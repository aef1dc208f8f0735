"""Fine-tuning: which tensors are loaded, adapted by name or skipped, and what is logged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import ModelError
from segwright.data.plan import Plan
from segwright.networks.build import ArchitectureSpec, build_from_spec
from segwright.networks.checkpoint import load_state, load_weights
from segwright.networks.mednext.sizes import SIZES, architecture_block
from segwright.training.checkpointing.checkpoints import checkpoint_file, find_resumable
from segwright.training.finetuning import Source, Transfer, find_checkpoint, find_task_axes, transfer
from segwright.training.trainer import Trainer
from tests.unit.training import tiny_task
from tests.unit.training.tiny_task import DATASET_JSON, TinyStore, make, settings, write_references

TWO_CHANNELS = {**DATASET_JSON, "channel_names": {"0": "PET", "1": "mri"}}
THREE_CLASSES = {**DATASET_JSON, "labels": {"background": 0, "dark": 1, "new": 2, "bright": 3}}


class TwoChannelStore(TinyStore):
    """The image, and the same once more behind it."""

    def load(self, identifier: str) -> Any:
        case = super().load(identifier)
        case.image = np.concatenate([np.zeros_like(case.image), case.image])
        return case


class ThreeClassStore(TinyStore):
    """Other numbers for the same structures, and one more in a corner."""

    def load(self, identifier: str) -> Any:
        case = TinyStore().load(identifier)
        label = np.choose(case.label, [0, 3, 1]).astype(np.int16)
        label[0, :2, :2, :2] = 2
        case.label = label
        case.class_locations = {key: np.argwhere(label[0] == key) for key in (1, 2, 3)}
        return case


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("source") / "model"
    references = write_references(folder.parent / "labelsTr", DATASET_JSON)
    config = settings(num_epochs=2, num_iterations_per_epoch=10, momentum=0.9)
    trainer = make(folder, config=config, references=references)
    trainer.run_training()
    trainer.perform_actual_validation()
    return trainer


def fine_tuned(trained: Trainer, folder: Path, **options: Any) -> Trainer:
    config = settings(pretrained=str(trained.output_folder.parent), **options.pop("settings", {}))
    trainer = make(folder, config=config, **options)
    trainer.initialize()
    return trainer


def state(trainer: Trainer) -> dict[str, Tensor]:
    return trainer.network.state_dict()


def test_an_unchanged_task_starts_with_the_score_of_the_source(trained: Trainer, tmp_path: Path) -> None:
    references = trained.references
    trainer = fine_tuned(trained, tmp_path, references=references)
    assert all(torch.equal(tensor, state(trained)[name]) for name, tensor in state(trainer).items())
    expected = trained.perform_actual_validation().mean_dice
    assert trainer.perform_actual_validation().mean_dice == pytest.approx(expected, abs=1e-9)
    assert expected > 0.2
    [line] = trainer.notes
    assert f"{len(state(trainer))} tensors loaded, 0 adapted, 0 skipped" in line


def test_channels_are_matched_by_name(trained: Trainer, tmp_path: Path) -> None:
    plan = tiny_task.plans()
    for configuration in plan["configurations"].values():
        configuration |= {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [False] * 2}
    options = {"plans": Plan.from_json(plan), "dataset_json": TWO_CHANNELS, "cases": TwoChannelStore()}
    trainer = fine_tuned(trained, tmp_path, **options)
    notes = "\n".join(trainer.notes)
    assert "1 adapted, 0 skipped" in notes
    assert "input channels: PET zero, mri from the source" in notes
    image = torch.randn(1, 1, 16, 16, 16)
    trained.set_deep_supervision_enabled(False)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        found = trainer.network.eval()(torch.cat([torch.randn_like(image), image], dim=1))
        torch.testing.assert_close(found, trained.network.eval()(image))
    trainer.set_deep_supervision_enabled(True)
    trainer.run_training()


def test_classes_are_matched_by_name(trained: Trainer, tmp_path: Path) -> None:
    trainer = fine_tuned(trained, tmp_path, dataset_json=THREE_CLASSES, cases=ThreeClassStore())
    assert "heads: background from the source, dark from the source, new new, bright from the source" in "\n".join(
        trainer.notes
    )
    for name, before in state(trained).items():
        after = state(trainer)[name]
        if "seg_layers" in name:
            assert torch.equal(after[[0, 3, 1]], before)
        else:
            assert torch.equal(after, before)
    trainer.run_training()
    assert "heads: background from the source" in (trainer.output_folder / "train.json").read_text()


def network(inputs: int, heads: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, heads, 1))


def moved(
    before: nn.Module, names: tuple[str, ...], after: nn.Module, wanted: tuple[str, ...], rule: Any = "auto"
) -> Any:
    source = Source(path=Path("source"), weights=before.state_dict(), channels=names, heads=("background", "a"))
    axes = find_task_axes(after, network(len(wanted) + 1, 3))
    return transfer(after, source, axes, channels=wanted, heads=("background", "a"), new_channels=rule)


@pytest.mark.parametrize(
    ("names", "wanted", "rule", "expected"),
    [
        (("T1", "T2"), ("T2", "T1"), "auto", [[0, 1], [1, 0]]),
        (("T1", "T2"), ("flair", "dwi"), "auto", [[1, 0], [0, 1]]),
        (("T1", "T2"), ("dwi",), "auto", [[1.0], [1.0]]),
        (("T1",), ("a", "b"), "auto", [[0.5, 0.5]]),
        (("T1",), ("T1", "b"), "auto", [[1, 0]]),
        (("T1",), ("T1", "b"), "mean", [[0.5, 0.5]]),
        (("T1",), ("a", "b"), "zero", [[0, 0]]),
    ],
)
def test_input_channels_follow_the_rule(
    names: tuple[str, ...], wanted: tuple[str, ...], rule: Any, expected: list[list[float]]
) -> None:
    before, after = network(len(names), 2), network(len(wanted), 2)
    moved(before, names, after, wanted, rule)
    mix = torch.tensor(expected, dtype=torch.float32)  # (source channels, new channels)
    found = after[0].weight[:, :, 0, 0]  # type: ignore[index,union-attr]
    torch.testing.assert_close(found, before[0].weight[:, :, 0, 0] @ mix)  # type: ignore[index,union-attr]


def same_task(before: nn.Module, after: nn.Module) -> Transfer:
    """Copy what fits from one layer of a network to another, neither of them at its ends."""
    source = Source(path=Path("source"), weights=before.state_dict(), channels=("T1",), heads=("background", "a"))
    axes = dict.fromkeys(after.state_dict(), (False, False))
    return transfer(after, source, axes, channels=source.channels, heads=source.heads)


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        ((3, 3), (5, 5), "UpKern: 1 depthwise kernels of the source resized from 3x3 to 5x5"),
        ((3, 3, 3), (5, 5, 5), "from 3x3x3 to 5x5x5"),
        ((1, 3, 3), (1, 5, 5), "from 1x3x3 to 1x5x5"),
    ],
)
def test_larger_depthwise_kernels_start_as_the_resized_ones(
    before: tuple[int, ...], after: tuple[int, ...], note: str, tmp_path: Path
) -> None:
    conv: Any = nn.Conv2d if len(before) == 2 else nn.Conv3d
    source, target = conv(4, 4, before, groups=4), conv(4, 4, after, groups=4)
    done = same_task(source, target)
    assert done.loaded == ("bias",)
    (tmp_path / "weights").touch()
    assert note in "\n".join(done.lines(tmp_path / "weights"))
    expected = source.weight.detach().numpy()
    mix = np.array([[1, 0, 0], [0.6, 0.4, 0], [0, 1, 0], [0, 0.4, 0.6], [0, 0, 1]])  # at -0.2 (edge), 0.4, 1, 1.6, 2.2
    for axis, size in enumerate(before):
        if size == 3:
            expected = np.moveaxis(np.tensordot(mix, expected, (1, axis + 2)), 0, axis + 2)
    np.testing.assert_allclose(target.weight.detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [((5, 5), (3, 3)), ((1, 3), (3, 3))])
def test_other_kernels_are_not_resized(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    source, target = nn.Conv2d(4, 4, before, groups=4), nn.Conv2d(4, 4, after, groups=4)
    fresh = target.weight.detach().clone()
    assert "in the source" in same_task(source, target).skipped["weight"]
    assert torch.equal(target.weight, fresh)


def mednext_plan(kernel_size: int, num_stages: int = 3) -> Plan:
    document = tiny_task.plans()
    block = architecture_block(
        SIZES["S"].at(num_stages),
        dims=3,
        kernel_sizes=[(kernel_size,) * 3] * num_stages,
        strides=[(1,) * 3, *[(2,) * 3] * (num_stages - 1)],
    )
    block["arch_kwargs"]["features_per_stage"] = [4, 8, 8][:num_stages]
    document["configurations"]["3d"]["architecture"] = block
    return Plan.from_json(document)


def test_upkern_takes_a_trained_network_to_larger_kernels(tmp_path: Path) -> None:
    small = make(tmp_path / "k3", plans=mednext_plan(3), config=settings(loss="skeleton_recall"))
    small.run_training()
    config = settings(pretrained=str(tmp_path / "k3"), loss="dice_focal", num_epochs=1)
    large = make(tmp_path / "k5", plans=mednext_plan(5), config=config)
    large.initialize()
    log = "\n".join(large.notes)
    assert "0 skipped" in log
    assert "UpKern: 14 depthwise kernels of the source resized from 3x3x3 to 5x5x5" in log
    assert "optimizer adamw instead of sgd, initial_lr 0.001 instead of 0.01" in log
    before, after = state(small), state(large)
    resized = "encoder_stages.0.0.depthwise.weight"
    torch.testing.assert_close(after[resized][..., 2, 2, 2], before[resized][..., 1, 1, 1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items() if "depthwise.weight" not in name)
    large.run_training()
    assert sorted(path.suffix for path in large.output_folder.glob("checkpoint_final*")) == [".json", ".safetensors"]
    network = load_predicting_network(large)
    assert all(torch.equal(tensor, state(large)[name]) for name, tensor in network.state_dict().items())


def load_predicting_network(trainer: Trainer) -> nn.Module:
    """Return the network that prediction builds from the checkpoint."""
    path = checkpoint_file(trainer.output_folder, "final")
    spec = ArchitectureSpec.from_json(json.loads(path.with_suffix(".json").read_text())["network"])
    network = build_from_spec(spec, {}, 1, 3, (16, 16, 16), True)
    load_state(network, load_weights(path))
    return network


def test_axes_are_found_in_any_network() -> None:
    axes = find_task_axes(network(2, 3), network(3, 4))
    assert axes["0.weight"] == (False, True)
    assert axes["2.weight"] == axes["2.bias"] == (True, False)
    assert axes["1.running_mean"] == axes["0.bias"] == (False, False)


def test_tensors_of_another_shape_are_skipped_with_both() -> None:
    before = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    after = network(1, 2)
    done = moved(before, ("T1",), after, ("T1",))
    assert done.skipped == {"0.weight": "shape (5, 1, 3, 3) in the source, (5, 1, 1, 1) here"}
    assert "1.running_var" in done.loaded


def test_a_network_that_shares_nothing_is_refused(trained: Trainer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tensor fits this network; .* 'segwright move-plans"):
        fine_tuned(trained, tmp_path, settings={"network": f"{__name__}:other"})


def other(num_input_channels: int, num_output_channels: int, *, patch_size: Any, deep_supervision: bool) -> nn.Module:
    return nn.Sequential(nn.Conv3d(num_input_channels, 3, 1), nn.Conv3d(3, num_output_channels, 1))


def test_a_resumed_training_does_not_need_the_source(trained: Trainer, tmp_path: Path) -> None:
    shutil.copytree(trained.output_folder.parent, tmp_path / "source")
    config = settings(pretrained=str(tmp_path / "source"), num_epochs=2)
    trainer = make(tmp_path / "new", config=config)
    trainer.initialize()
    trainer.save_checkpoint("latest")
    shutil.rmtree(tmp_path / "source")
    again = make(tmp_path / "new", config=config)
    path = find_resumable(again.output_folder)
    assert path is not None
    again.load_checkpoint(path)
    assert all(torch.equal(tensor, state(trainer)[name]) for name, tensor in state(again).items())


def test_models_folds_and_files_are_found(trained: Trainer, tmp_path: Path) -> None:
    final = checkpoint_file(trained.output_folder, "final")
    for place in (trained.output_folder.parent, trained.output_folder, final):
        assert find_checkpoint(place) == final
    with pytest.raises(ModelError, match="no trained model; give a model folder"):
        find_checkpoint(tmp_path)


def test_a_checkpoint_without_its_folder_is_refused(trained: Trainer, tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "checkpoint_final.safetensors"
    file.parent.mkdir(parents=True)
    shutil.copy(checkpoint_file(trained.output_folder, "final"), file)
    with pytest.raises(ModelError, match=r"dataset\.json is missing, which names the channels"):
        make(tmp_path / "new", config=settings(pretrained=str(file))).initialize()
