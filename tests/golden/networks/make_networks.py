"""Make the network goldens with nnU-Net's own networks; run with a python that has nnunetv2 2.8.1 installed.

    python tests/golden/networks/make_networks.py

Each file holds a tiny network's architecture block, all weights under the reference's names (aliases left out, their
names kept), an input, and the logits: black-box behaviour, nothing of its code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dynamic_network_architectures.architectures.unet as reference
import numpy as np
import torch
from dynamic_network_architectures.building_blocks.residual import BottleneckD
from torch import nn

HERE = Path(__file__).parent
PREFIX = "dynamic_network_architectures.architectures.unet."


def block(dims: int, **changes: Any) -> dict[str, Any]:
    """Return arch_kwargs of a three-stage network, as a plan would write them."""
    return {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[1, 3, 3][-dims:], [3] * dims, [3] * dims],
        "strides": [[1] * dims, [1, 2, 2][-dims:], [2] * dims],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain_2d": ("PlainConvUNet", block(2, n_conv_per_stage=[2, 1, 2])),
    "plain_3d": ("PlainConvUNet", block(3, n_conv_per_stage=[1, 2, 1])),
    "plain_nonlin_first": ("PlainConvUNet", block(2, n_conv_per_stage=1, nonlin_first=True)),
    "plain_batch_norm_dropout": (
        "PlainConvUNet",
        block(
            2,
            n_conv_per_stage=1,
            norm_op="torch.nn.modules.batchnorm.BatchNorm2d",
            norm_op_kwargs={},
            dropout_op="torch.nn.Dropout2d",
            dropout_op_kwargs={"p": 0.2},
            nonlin="torch.nn.ReLU",
        ),
    ),
    "plain_bare": ("PlainConvUNet", block(3, n_conv_per_stage=1, conv_bias=False, norm_op=None, norm_op_kwargs=None)),
    "residual_2d": ("ResidualEncoderUNet", block(2, n_blocks_per_stage=[1, 2, 1])),
    "residual_3d": ("ResidualEncoderUNet", block(3, n_blocks_per_stage=[1, 2, 2])),
    "residual_bottleneck": (
        "ResidualEncoderUNet",
        block(2, n_blocks_per_stage=1, bottleneck_channels=[2, 3, 4], stem_channels=5, block="BottleneckD"),
    ),
    "residual_decoder": ("ResidualUNet", block(2, n_blocks_per_stage=1)),
}


def build(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build the reference network."""
    ops = {"conv_op", "norm_op", "dropout_op", "nonlin"}
    resolved = {
        key: getattr(nn, value.rpartition(".")[2]) if key in ops and value else value for key, value in kwargs.items()
    }
    if resolved.get("block") == "BottleneckD":
        resolved["block"] = BottleneckD
    network: nn.Module = getattr(reference, name)(input_channels=2, num_classes=3, deep_supervision=True, **resolved)
    return network.eval()


def main() -> None:
    """Write one npz per case."""
    torch.manual_seed(0)
    for case, (name, kwargs) in CASES.items():
        network = build(name, kwargs)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                if tensor.dtype == torch.float32:
                    tensor.copy_(torch.rand_like(tensor) * 0.6 + (0.2 if tensor.ndim == 1 else -0.3))
        dims = 3 if "Conv3d" in kwargs["conv_op"] else 2
        image = torch.randn(2, 2, *(16,) * dims) if dims == 2 else torch.randn(2, 2, 6, 8, 8)
        with torch.no_grad():
            outputs = network(image)
        state = network.state_dict()
        arrays = {f"weight/{key}": value.numpy() for key, value in state.items() if _own(key)}
        arrays |= {f"output/{index}": value.numpy() for index, value in enumerate(outputs)}
        document = {"network_class_name": PREFIX + name, "arch_kwargs": kwargs, "names": list(state)}
        np.savez_compressed(HERE / f"{case}.npz", image=image.numpy(), document=json.dumps(document), **arrays)


def _own(key: str) -> bool:
    return ".all_modules." not in key and not key.startswith("decoder.encoder.")


if __name__ == "__main__":
    main()
