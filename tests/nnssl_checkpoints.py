"""Checkpoints in the layout of nnssl, with a small network in place of its ResEnc-L."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segwright.data.plan import architecture_block
from segwright.networks.build import ArchitectureSpec, build_network
from segwright.networks.checkpoint import add_aliases

FEATURES = (2, 4, 8, 8)
BLOCKS = (1, 2, 1, 1)
CITATIONS = [
    {"type": "Architecture", "name": "ResEnc-L", "apa_citations": ["Isensee et al. (2024). nnU-Net\n  revisited."]},
    {"type": "Pre-training", "name": "MAE", "bibtex_citations": ["@article{wald2024}"]},
]


def architecture(features: Sequence[int] = FEATURES, kernel: int = 3, blocks: Sequence[int] = BLOCKS) -> dict[str, Any]:
    """Return the block of a small residual U-Net; `kernel` is the first axis' kernel size in the first stage."""
    stages = len(features)
    return architecture_block(
        "ResidualEncoderUNet",
        dims=3,
        features=tuple(features),
        kernel_sizes=((kernel, 3, 3), *((3, 3, 3),) * (stages - 1)),
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        encoder_blocks=(*blocks, *(1,) * stages)[:stages],
        decoder_convs=(1,) * (stages - 1),
    )


def residual_network(inputs: int, heads: int, *, seed: int = 0, **options: Any) -> nn.Module:
    """Build the network of `architecture`."""
    spec = ArchitectureSpec.from_plan(architecture(**options))
    generator = torch.Generator().manual_seed(seed)
    return build_network(spec, inputs, heads, deep_supervision=True, generator=generator)


def adaptation_plan(**changes: Any) -> dict[str, Any]:
    """Return what nnssl writes for a ResEnc-L that was pre-trained at 1 mm."""
    trained = {
        "data_identifier": "nnsslPlans_onemmiso",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "onemmiso",
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": (160, 160, 160),
    }
    return {
        "pretrain_plan": {"plans_name": "nnsslPlans", "configurations": {"onemmiso": trained}},
        "architecture_plans": {
            "arch_class_name": "ResEncL",
            "arch_kwargs": None,
            "arch_kwargs_requiring_import": None,
        },
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"),
        "key_to_lpe": None,
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        **changes,
    }


def write_checkpoint(path: Path, *, prefix: str = "", plan: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """Write a checkpoint with the weights of a new network, which is returned.

    Args:
        path: the file.
        prefix: of the names of all tensors.
        plan: `adaptation_plan` by default.
        options: of the architecture.
    """
    network = residual_network(1, 1, seed=7, **options)
    weights = {prefix + name: tensor for name, tensor in add_aliases(network.state_dict(), network).items()}
    document = {"network_weights": weights, "nnssl_adaptation_plan": plan or adaptation_plan(), "citations": CITATIONS}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**document, "trainer_name": "BaseMAETrainer"}, path)
    return network
