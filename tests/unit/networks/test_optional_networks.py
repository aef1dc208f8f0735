"""Networks of other packages: their names, their padding, and what is said where a package is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import ConfigError
from segwright.networks.build import ArchitectureSpec, build_from_spec
from segwright.networks.optional import Padded
from segwright.networks.shapes import output_shapes

MONAI = ("segresnet", "swin-unetr", "dynunet")


def build(name: str, patch_size: tuple[int, ...], **kwargs: Any) -> nn.Module:
    return build_from_spec(ArchitectureSpec(reference=name, kwargs=kwargs), {}, 2, 3, patch_size, True)


class Picky(nn.Module):
    """Gives its input back, if it is divisible by 8."""

    def forward(self, image: Tensor) -> Tensor:
        assert all(size % 8 == 0 for size in image.shape[2:])
        return image


@pytest.mark.parametrize("size", [(8, 16), (9, 13), (1, 8, 23), (16, 16, 16)])
def test_padding_is_cut_off_again(size: tuple[int, ...]) -> None:
    image = torch.randn(2, 1, *size)
    torch.testing.assert_close(Padded(Picky(), 8)(image), image)


@pytest.mark.parametrize("name", [*MONAI, "primus"])
def test_a_missing_package_is_named(name: str) -> None:
    package = "monai" if name in MONAI else "dynamic_network_architectures"
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=f"needs the package {package.replace('_', '-')} .* install it"):
        build(name, (16, 16, 16))


@pytest.mark.parametrize(
    ("patch_size", "kwargs", "message"),
    [
        ((16, 20, 16), {}, "divisible by 8"),
        ((16, 16), {}, "needs a 3D patch"),
        ((16, 16, 16), {"size": "XL"}, "choose from S, B, M, L"),
    ],
)
def test_primus_says_what_it_needs(patch_size: tuple[int, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("primus", patch_size, **kwargs)


@pytest.mark.parametrize("patch_size", [(40, 56, 40), (48, 40)])
def test_dynunet_is_laid_out_for_the_patch(monkeypatch: pytest.MonkeyPatch, patch_size: tuple[int, ...]) -> None:
    seen: dict[str, Any] = {}

    class DynUNet(nn.Conv3d):
        def __init__(self, **options: Any) -> None:
            seen.update(options)
            super().__init__(2, 3, 1)

    module = ModuleType("monai.networks.nets")
    vars(module)["DynUNet"] = DynUNet
    for name in ("monai", "monai.networks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "monai.networks.nets", module)
    build("dynunet", patch_size, deep_supr_num=2)
    stages = len(seen["strides"])
    assert len(seen["kernel_size"]) == len(seen["filters"]) == stages
    assert seen["upsample_kernel_size"] == seen["strides"][1:]
    assert (seen["spatial_dims"], seen["in_channels"], seen["out_channels"]) == (len(patch_size), 2, 3)
    assert seen["deep_supr_num"] == 2


@pytest.mark.parametrize("name", MONAI)
@pytest.mark.parametrize("patch_size", [(40, 56, 40), (48, 40)])
def test_monai_networks_suit_any_patch(name: str, patch_size: tuple[int, ...]) -> None:
    pytest.importorskip("monai", reason="optional network, needs monai")
    network = build(name, patch_size, **({"feature_size": 12} if name == "swin-unetr" else {}))
    assert output_shapes(network, 2, patch_size) == [(3, *patch_size)]


class Shared(nn.Module):
    """Keeps one layer under two names, as some networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1)
        self.again = nn.ModuleList([self.first])

    def forward(self, image: Tensor) -> Tensor:
        return self.again[0](self.first(image))  # type: ignore[no-any-return]


def test_tracing_leaves_shared_layers_as_they_were() -> None:
    network = Shared()
    assert output_shapes(network, 1, (4, 4)) == [(1, 4, 4)]
    assert {weight.device.type for weight in network.parameters()} == {"cpu"}
    assert network(torch.ones(1, 1, 4, 4)).shape == (1, 1, 4, 4)
