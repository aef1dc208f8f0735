"""Networks of other packages (MONAI, Primus) by name, available if the package is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from segwright.core.errors import ConfigError
from segwright.networks.architecture import kwargs_for_patch

SWIN_MULTIPLE: Final = 32
"""SwinUNETR downsamples its input five times."""

PRIMUS_SIZES: Final[Mapping[str, tuple[int, int, int]]] = {
    "S": (396, 12, 6),
    "B": (792, 12, 12),
    "M": (864, 16, 12),
    "L": (1056, 24, 16),
}
"""Embedding, depth and heads (nnU-Net behaviour 7.7)."""

PRIMUS_TOKEN: Final = 8
"""Voxels of a token along each axis."""


class Padded(nn.Module):
    """Pad inputs with zeros to a multiple of the network's stride, and crop its output."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, heads, *S) of images (B, C, *S)."""
        size = image.shape[2:]
        missing = [-extent % self.multiple for extent in size]
        if not any(missing):
            return self.network(image)  # type: ignore[no-any-return]
        before = [count // 2 for count in missing]
        pads = [part for low, count in reversed([*zip(before, missing, strict=True)]) for part in (low, count - low)]
        logits: Tensor = self.network(F.pad(image, pads))
        inside = tuple(slice(low, low + extent) for low, extent in zip(before, size, strict=True))
        return logits[(slice(None), slice(None), *inside)]


def build_segresnet(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    **kwargs: Any,
) -> nn.Module:
    """Build MONAI's SegResNet (Myronenko 2018), by default with 32 filters; returns one output."""
    cls = _imported("monai", "monai.networks.nets", "SegResNet")
    arguments = {"init_filters": 32, **kwargs}
    levels = len(arguments.get("blocks_down", (1, 2, 2, 4)))
    network = cls(
        spatial_dims=len(patch_size), in_channels=num_input_channels, out_channels=num_output_channels, **arguments
    )
    return Padded(network, 2 ** (levels - 1))


def build_swin_unetr(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    **kwargs: Any,
) -> nn.Module:
    """Build MONAI's SwinUNETR (Hatamizadeh et al. 2022), by default with 48 features; returns one output."""
    cls = _imported("monai", "monai.networks.nets", "SwinUNETR")
    arguments = {"feature_size": 48, **kwargs}
    network = cls(
        spatial_dims=len(patch_size), in_channels=num_input_channels, out_channels=num_output_channels, **arguments
    )
    return Padded(network, SWIN_MULTIPLE)


def build_dynunet(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    **kwargs: Any,
) -> nn.Module:
    """Build MONAI's DynUNet with kernels and strides derived from the patch; returns one output."""
    cls = _imported("monai", "monai.networks.nets", "DynUNet")
    topology = kwargs_for_patch(patch_size)
    arguments = {
        "kernel_size": topology["kernel_sizes"],
        "strides": topology["strides"],
        "filters": topology["features_per_stage"],
        **kwargs,
    }
    arguments.setdefault("upsample_kernel_size", arguments["strides"][1:])
    network: nn.Module = cls(
        spatial_dims=len(patch_size), in_channels=num_input_channels, out_channels=num_output_channels, **arguments
    )
    return network


def build_primus(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    size: str = "M",
    **kwargs: Any,
) -> nn.Module:
    """Build Primus (Wald et al. 2025) of size S, B, M or L with nnU-Net's settings; returns one output.

    nnU-Net behaviour 7.7.

    Raises:
        ConfigError: an unknown size, or a patch that is not 3D or not divisible by 8.
    """
    if size not in PRIMUS_SIZES:
        raise ConfigError(f"unknown size '{size}' of network 'primus'; choose from {', '.join(PRIMUS_SIZES)}")
    if len(patch_size) != 3 or any(extent % PRIMUS_TOKEN for extent in patch_size):
        raise ConfigError(
            f"network 'primus' needs a 3D patch divisible by {PRIMUS_TOKEN} along every axis, the plan's is "
            f"{tuple(patch_size)}; change patch_size in the plan, or choose another network"
        )
    embedding, depth, heads = PRIMUS_SIZES[size]
    package, module = "dynamic-network-architectures", "dynamic_network_architectures.architectures.primus"
    cls = _imported(package, module, "Primus")
    arguments = {
        "embed_dim": embedding,
        "patch_embed_size": (PRIMUS_TOKEN,) * len(patch_size),
        "eva_depth": depth,
        "eva_numheads": heads,
        "drop_path_rate": 0.2,
        "scale_attn_inner": True,
        "init_values": 0.1,
        **kwargs,
    }
    network: nn.Module = cls(
        input_channels=num_input_channels, num_classes=num_output_channels, input_shape=tuple(patch_size), **arguments
    )
    return network


def _imported(package: str, module: str, name: str) -> Any:
    """Import a class of another package.

    Raises:
        ConfigError: the package or one of its dependencies is not installed.
    """
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"network {name} needs the package {package} ({error}); install it, e.g. pip install {package}"
        ) from error
