"""Read the ResEnc-L encoders that nnssl pre-trained without labels, such as those of OpenMind (nnU-Net behaviour 8.12).

Their `.pth` file is a dictionary of `network_weights`, `citations` and `nnssl_adaptation_plan`. The last names the
network, spacing and patch of the pre-training, and where the encoder's tensors are. `interop.torchfile` reads the file
and runs nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from segwright.core.errors import ModelError
from segwright.core.text import printable
from segwright.interop.instructions import StoredTensor
from segwright.interop.torchfile import read_document, read_tensors
from segwright.networks.checkpoint import BLOCK_ALIAS, strip_wrappers

RESENC_L: Final = "ResEncL"
"""The only network of nnssl whose encoder is one of ours."""
ENCODER: Final = "encoder."
"""Prefix of the encoder's tensors in our networks, as in nnU-Net's."""

_PLAN: Final = "nnssl_adaptation_plan"
_STAGES: Final = "encoder.stages"
_STEM: Final = "encoder.stem"
_MAX_SPACING: Final = 1e3
_MAX_PATCH: Final = 4096
_MAX_CHANNELS: Final = 4096
_AXES: Final = 3
_MAX_SHOWN: Final = 10**12
_PATCH: Final = "recommended_downstream_patchsize"
_MAX_CITATIONS: Final = 20
_MAX_CITATION_CHARS: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class NnsslCheckpoint:
    """A checkpoint of nnssl; its weights are read by `encoder`.

    Attributes:
        path: The file.
        network: Name of the network, such as `ResEncL` or `PrimusM`.
        spacing: Spacing of the pre-training in mm, in the axis order of its arrays; None: images as they were.
        patch_size: Recommended patch, in voxels.
        num_channels: Input channels.
        citations: Papers to cite, one line each.
    """

    path: Path
    network: str
    spacing: tuple[float, ...] | None
    patch_size: tuple[int, ...]
    num_channels: int
    citations: tuple[str, ...]
    stored: Mapping[str, StoredTensor]
    """The encoder's tensors, by their names in our networks."""

    def require_known_network(self) -> None:
        """Check that the network is one of ours.

        Raises:
            ModelError: it is not.
        """
        if self.network != RESENC_L:
            raise ModelError(
                f"{self.path}: its network is {self.network}; of nnssl's checkpoints those of {RESENC_L} can be used"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the encoder's tensors, by their names in our networks."""
        return {name: tensor.shape for name, tensor in self.stored.items()}

    def encoder(self) -> dict[str, Tensor]:
        """Read the encoder's tensors, by their names in our networks.

        Raises:
            ModelError: one is damaged, NaN or infinite.
        """
        weights = read_tensors(self.path, self.stored)
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise ModelError(f"{self.path}: '{name}' has NaN or infinite weights; use another checkpoint")
        return weights


def open_if_nnssl(path: Path) -> NnsslCheckpoint | None:
    """Read what a checkpoint of nnssl says about itself, without its weights; None for any other `.pth` file.

    Raises:
        ModelError: it is damaged, holds more than weights and plain values, or its adaptation plan is incomplete.
    """
    document = read_document(path)
    return _describe(path, document) if isinstance(document, Mapping) and _PLAN in document else None


def open_checkpoint(path: Path) -> NnsslCheckpoint:
    """Read what a checkpoint of nnssl says about itself, without its weights.

    Raises:
        ModelError: as `open_if_nnssl`, or it was not written by nnssl.
    """
    checkpoint = open_if_nnssl(path)
    if checkpoint is None:
        raise ModelError(f"{path}: not a checkpoint of nnssl, which has '{_PLAN}' beside its weights")
    return checkpoint


def _describe(path: Path, document: Mapping[Any, Any]) -> NnsslCheckpoint:
    plan = _Values(path, document[_PLAN])
    configurations = plan.get("pretrain_plan", "configurations")
    if not isinstance(configurations, Mapping) or not configurations:
        raise plan.error("pretrain_plan.configurations", configurations, "the configuration of the pre-training")
    trained = _Values(path, next(iter(configurations.values())))
    advised = plan if plan.get(_PATCH) is not None else trained
    prefixes = {plan.text("key_to_encoder"): _STAGES, plan.text("key_to_stem"): _STEM}
    return NnsslCheckpoint(
        path=path,
        network=printable(plan.text("architecture_plans", "arch_class_name"))[:80],
        spacing=None if trained.get("spacing") is None else trained.numbers("spacing", (int, float), _MAX_SPACING),
        patch_size=tuple(map(int, advised.numbers(_PATCH if advised is plan else "patch_size", (int,), _MAX_PATCH))),
        num_channels=plan.count("pretrain_num_input_channels"),
        citations=_citations(document.get("citations")),
        stored=_encoder(path, document.get("network_weights"), prefixes),
    )


@dataclass(frozen=True, slots=True)
class _Values:
    """Values of the adaptation plan, checked."""

    path: Path
    plan: Any

    def __post_init__(self) -> None:
        if not isinstance(self.plan, Mapping):
            raise self.error("", self.plan, "a dictionary")

    def get(self, *keys: str) -> Any:
        value = self.plan
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def text(self, *keys: str) -> str:
        value = self.get(*keys)
        if not isinstance(value, str) or not value:
            raise self.error(".".join(keys), value, "a text")
        return value

    def count(self, key: str) -> int:
        value = self.get(key)
        if type(value) is not int or not 0 < value <= _MAX_CHANNELS:
            raise self.error(key, value, "a positive number")
        return value

    def numbers(self, key: str, kinds: tuple[type, ...], largest: float) -> tuple[float, ...]:
        """Return three positive numbers."""
        values = self.get(key)
        if not isinstance(values, list | tuple) or len(values) != _AXES:
            raise self.error(key, values, "three positive numbers")
        for value in values:
            if type(value) not in kinds or not 0 < value <= largest:  # nor NaN
                raise self.error(key, value, "three positive numbers")
        return tuple(values)

    def error(self, key: str, value: object, expected: str) -> ModelError:
        is_short = (
            value is None or type(value) in (str, float, bool) or (type(value) is int and abs(value) < _MAX_SHOWN)
        )
        shown = repr(value)[:80] if is_short else f"a {type(value).__name__}"
        place = f"{_PLAN}.{key}" if key else _PLAN
        return ModelError(
            f"{self.path}: {place} is {printable(shown)}, expected {expected}; it was not written by nnssl"
        )


def _encoder(path: Path, weights: object, prefixes: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Return the encoder's tensors by their names in our networks.

    Args:
        path: the checkpoint.
        weights: all tensors, by their names there.
        prefixes: names of encoder and stem there, and in our networks.
    """
    if not isinstance(weights, Mapping):
        raise ModelError(f"{path}: network_weights is a {type(weights).__name__}, expected tensors by name")
    found: dict[str, StoredTensor] = {}
    for key, tensor in weights.items():
        name = strip_wrappers(key) if isinstance(key, str) else key
        if not (isinstance(name, str) and isinstance(tensor, StoredTensor)):
            raise ModelError(f"{path}: network_weights has '{printable(name)[:80]}', which is no tensor")
        for prefix, ours in prefixes.items():
            if name.startswith(f"{prefix}.") and BLOCK_ALIAS not in name:
                found[ours + name.removeprefix(prefix)] = tensor
    return found


def _citations(entries: object) -> tuple[str, ...]:
    """Return the papers of all entries `{type, name, apa_citations or bibtex_citations}`, one line each."""
    lines: list[str] = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        if not isinstance(entry, Mapping):
            continue
        papers = entry.get("apa_citations") or entry.get("bibtex_citations") or ()
        for paper in (papers,) if isinstance(papers, str) else papers if isinstance(papers, list | tuple) else ():
            if isinstance(paper, str):
                lines.append(printable(" ".join(paper.split()))[:_MAX_CITATION_CHARS])
    return tuple(dict.fromkeys(lines))[:_MAX_CITATIONS]
