"""Fine-tuning from checkpoints of nnssl: what is taken, what starts anew, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segwright.core.errors import ModelError
from segwright.interop.nnssl import open_checkpoint, open_if_nnssl
from segwright.training.finetuning import load_pretrained
from tests.nnssl_checkpoints import adaptation_plan, residual_network, write_checkpoint

CHANNELS = ("CT", "PET", "MRI")


def load(path: Path, channels: int = 1, *, new_channels: Any = "auto", **options: Any) -> tuple[Any, list[str]]:
    network = residual_network(channels, 3, **options)
    larger = residual_network(channels + 1, 4, **options)
    names = CHANNELS[:channels]
    lines = load_pretrained(path, network, larger, channels=names, heads=("a", "b", "c"), new_channels=new_channels)
    return network.state_dict(), lines


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_encoder_is_taken_and_the_rest_starts_anew(tmp_path: Path, prefix: str) -> None:
    trained = write_checkpoint(tmp_path / "a.pth", prefix=prefix).state_dict()
    found, lines = load(tmp_path / "a.pth")
    fresh = residual_network(1, 3).state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, (trained if name.startswith("encoder.") else fresh)[name]), name
    encoder = sum(name.startswith("encoder.") for name in found)
    assert encoder > 20
    assert (
        f"ResEncL of nnssl: encoder with {encoder} tensors loaded, 0 adapted; decoder and heads with "
        f"{len(found) - encoder} tensors start anew"
    ) in lines[0]
    assert lines[1:] == [
        "its authors ask to cite: Isensee et al. (2024). nnU-Net revisited.",
        "its authors ask to cite: @article{wald2024}",
    ]


def test_the_stem_is_repeated_over_the_channels(tmp_path: Path) -> None:
    trained = write_checkpoint(tmp_path / "a.pth").state_dict()
    found, lines = load(tmp_path / "a.pth", 3)
    stem = "encoder.stem.convs.0.conv.weight"
    assert torch.allclose(found[stem], trained[stem].repeat(1, 3, 1, 1, 1) / 3)
    assert torch.equal(found["encoder.stem.convs.0.conv.bias"], trained["encoder.stem.convs.0.conv.bias"])
    assert f"adapted {stem}: input channels: CT mean, PET mean, MRI mean" in lines
    with pytest.raises(ModelError, match="pretrained_channels=zero would leave no weight"):
        load(tmp_path / "a.pth", 3, new_channels="zero")


def test_the_encoder_may_have_another_name_in_the_checkpoint(tmp_path: Path) -> None:
    plan = adaptation_plan(key_to_encoder="net.encoder.stages", key_to_stem="net.encoder.stem")
    trained = write_checkpoint(tmp_path / "a.pth", prefix="net.", plan=plan).state_dict()
    found, _ = load(tmp_path / "a.pth")
    assert torch.equal(
        found["encoder.stages.3.blocks.0.conv1.conv.weight"], trained["encoder.stages.3.blocks.0.conv1.conv.weight"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": (2, 4, 8)}, r"encoder.stages.3.*: \(8, 8, 3, 3, 3\) in the checkpoint and missing here"),
        ({"features": (2, 4, 8, 8, 8)}, "missing in the checkpoint and"),
        ({"features": (2, 4, 8, 16)}, r"tensors differ .*\(16, 8, .* here"),
        ({"kernel": 1}, r"encoder.stem.convs.0.conv.weight: \(2, 1, 3, 3, 3\) in the checkpoint and \(2, 1, 1, 3, 3\)"),
    ],
)
def test_another_encoder_is_refused_with_the_first_difference(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message) as refused:
        load(tmp_path / "a.pth", **options)
    assert f"plan with 'segwright plan DATASET --like {tmp_path / 'a.pth'}'" in str(refused.value)


def changed(*keys: str, value: object) -> dict[str, Any]:
    plan = adaptation_plan()
    place: Any = plan
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return plan


TRAINED = ("pretrain_plan", "configurations", "onemmiso")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            changed("architecture_plans", "arch_class_name", value="PrimusM"),
            "its network is PrimusM; .* those of ResEncL",
        ),
        (changed("architecture_plans", value=3), "architecture_plans.arch_class_name is None, expected a text"),
        (changed("pretrain_plan", value=None), "pretrain_plan.configurations is None"),
        (changed("pretrain_plan", "configurations", value={"a": 1}), "is 1, expected a dictionary"),
        (changed("key_to_encoder", value=["encoder"]), "key_to_encoder is a list, expected a text"),
        (changed(*TRAINED, "spacing", value=[1.0, 1.0]), "spacing is a list, expected three positive numbers"),
        (changed(*TRAINED, "spacing", value=[1.0, float("nan"), 1.0]), "spacing is nan, expected three positive"),
        (changed("recommended_downstream_patchsize", value=[160, 160, 1.5]), "patchsize is 1.5, expected three"),
        (changed("pretrain_num_input_channels", value=0), "is 0, expected a positive number"),
    ],
)
def test_what_nnssl_does_not_write_is_refused(tmp_path: Path, plan: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path / "a.pth", plan=plan, features=(2, 4))
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "a.pth")


def test_infinite_weights_and_other_checkpoints_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pth")
    document = torch.load(tmp_path / "a.pth", weights_only=True)
    document["network_weights"]["encoder.stages.0.blocks.0.conv1.conv.weight"][0] = torch.inf
    torch.save(document, tmp_path / "b.pth")
    with pytest.raises(ModelError, match=r"'encoder.stages.0.blocks.0.conv1.conv.weight' has NaN or infinite"):
        load(tmp_path / "b.pth")
    torch.save({"network_weights": {}}, tmp_path / "c.pth")
    assert open_if_nnssl(tmp_path / "c.pth") is None
    with pytest.raises(ModelError, match="not a checkpoint of nnssl"):
        open_checkpoint(tmp_path / "c.pth")


def test_a_folder_with_the_checkpoint_is_found_and_images_as_they_were_have_no_spacing(tmp_path: Path) -> None:
    plan = changed(*TRAINED, "spacing", value=None)
    del plan["recommended_downstream_patchsize"]
    write_checkpoint(tmp_path / "model" / "checkpoint_final.pth", plan=plan)
    checkpoint = open_checkpoint(tmp_path / "model" / "checkpoint_final.pth")
    assert (checkpoint.spacing, checkpoint.patch_size) == (None, (160, 160, 160))
    assert load(tmp_path / "model")[1][0].startswith(f"fine-tuning from {tmp_path / 'model' / 'checkpoint_final.pth'}")
