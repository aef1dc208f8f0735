"""Fine-tuning: initialise a network with the fitting tensors of a trained one; adapt input channels and heads.

nnU-Net 2.8.1 copies all but the heads or nothing (nnU-Net behaviour 8.11). Here tensors that depend on the input
channels or on the heads are found by building the network a second time with one more of each and comparing shapes, for
any architecture. Channels and classes are matched by name. Larger depthwise kernels start as the resized ones of the
source (UpKern: Roy et al., MedNeXt, MICCAI 2023, arXiv 2303.09975, section 2.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segwright.core.errors import ModelError
from segwright.core.files.hashing import file_hash
from segwright.data.description import load_description
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.interop.nnssl import ENCODER, NnsslCheckpoint, open_if_nnssl
from segwright.interop.nnunet import header_of, read_checkpoint
from segwright.networks.build import ArchitectureSpec, build_on_meta
from segwright.networks.checkpoint import drop_aliases, load_weights
from segwright.preprocessing.plan_validation import validate_components
from segwright.workspace import DATASET_JSON, PLANS_JSON

NewChannels = Literal["auto", "mean", "zero"]
"""Weights of an input channel that the source lacks: the mean of its channels, or zero; auto: zero if other channels
match by name, so that the network's output is unchanged at first, else the mean."""

TaskAxes = Mapping[str, tuple[bool, bool]]
"""For each tensor: whether its first axis is the heads, and whether its second axis is the input channels."""

CHECKPOINTS: Final = tuple(
    f"checkpoint_{kind}.{suffix}" for kind in ("final", "best", "latest") for suffix in ("safetensors", "pth")
)
_SUFFIXES: Final = (".safetensors", ".pth")
MAX_LINES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A trained network to start from: its weights and the names of its input channels and heads."""

    path: Path
    weights: Mapping[str, Tensor]
    channels: tuple[str, ...]
    heads: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Which tensors of the new network were loaded, adapted (and how) or skipped (and why), by name.

    Attributes:
        loaded: the same shape and meaning.
        adapted: matched by channels or classes.
        skipped: left as they were.
        enlarged: depthwise kernels that were resized: sizes before and after.
    """

    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    skipped: Mapping[str, str]
    enlarged: Mapping[str, str] = field(default_factory=dict)

    def lines(self, path: Path) -> list[str]:
        """Return lines for the log and for `train.json`."""
        adapted = len(self.adapted) + len(self.enlarged)
        count = f"{len(self.loaded)} tensors loaded, {adapted} adapted, {len(self.skipped)} skipped"
        details = [
            *(f"adapted {name}: {how}" for name, how in self.adapted.items()),
            *(f"skipped {name}: {why}" for name, why in self.skipped.items()),
        ]
        more = [f"and {len(details) - MAX_LINES} more"] if len(details) > MAX_LINES else []
        kernels = [
            f"UpKern: {number} depthwise kernels of the source resized from {sizes}"
            for sizes, number in Counter(self.enlarged.values()).items()
        ]
        return [f"fine-tuning from {path} ({file_hash(path)[:12]}): {count}", *kernels, *details[:MAX_LINES], *more]


def find_checkpoint(location: Path) -> Path:
    """Return the checkpoint of a model folder, of a fold folder, or `location` itself if it is a checkpoint.

    In a model folder, fold `all` comes before the numbered folds; in a fold, the final checkpoint before the best and
    the latest. Models of nnU-Net are found too.

    Raises:
        ModelError: there is none.
    """
    if location.is_file():
        if location.suffix not in _SUFFIXES:
            raise ModelError(
                f"{location}: not a checkpoint file ({' or '.join(_SUFFIXES)}); import a zip file first with "
                "'segwright import-model'"
            )
        return location
    folders = [location, location / "fold_all", *sorted(location.glob("fold_[0-9]*"))]
    found = next((folder / name for folder in folders for name in CHECKPOINTS if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"{location}: no trained model; give a model folder, a fold's folder or a checkpoint file")
    return found


def read_source(location: Path) -> Source:
    """Read a trained network.

    Raises:
        ModelError: there is none, it cannot be read, or its model folder has no dataset.json.
        SegwrightError: the plan of an nnU-Net model names an unknown network or component.
    """
    path = find_checkpoint(location)
    description_file = path.parent.parent / DATASET_JSON
    if not description_file.is_file():
        raise ModelError(
            f"{path}: {description_file} is missing, which names the channels and labels it was trained with; "
            "keep a checkpoint in its model folder"
        )
    if path.suffix == ".pth":
        checkpoint = read_checkpoint(path)
        weights = checkpoint["network_weights"]
        if (path.parent.parent / PLANS_JSON).is_file():
            _validate_plan(Plan.load(path.parent.parent / PLANS_JSON), checkpoint, path)
    else:
        weights = load_weights(path)
    description = load_description(description_file)
    labels = Labels.from_description(description)
    return Source(
        path=path,
        weights=drop_aliases(weights),
        channels=tuple(description.channel_names.values()),
        heads=tuple(labels.names.values()),
    )


def load_pretrained(
    location: Path,
    network: nn.Module,
    larger: nn.Module,
    *,
    channels: Sequence[str],
    heads: Sequence[str],
    new_channels: NewChannels,
) -> list[str]:
    """Copy the fitting tensors of a trained network into a new one, and return lines for the log.

    Args:
        location: model folder, fold folder or checkpoint of the trained network.
        network: changed in place.
        larger: the same architecture with one more input channel and one more head.
        channels: names of the network's input channels.
        heads: names of its heads.
        new_channels: weights of an input channel that the trained network lacks.

    Raises:
        ModelError: the trained network cannot be read, nothing but heads fits, or the encoder of a checkpoint of nnssl
            is another one.
    """
    path, axes = find_checkpoint(location), find_task_axes(network, larger)
    if path.suffix == ".pth" and (checkpoint := open_if_nnssl(path)) is not None:
        return _load_encoder(checkpoint, network, axes, channels=channels, new_channels=new_channels)
    source = read_source(path)
    done = transfer(network, source, axes, channels=channels, heads=heads, new_channels=new_channels)
    return done.lines(source.path)


def find_task_axes(network: nn.Module, larger: nn.Module) -> TaskAxes:
    """Find the axes of heads and input channels by comparing shapes with a network that has one more of each."""
    shapes = {name: tensor.shape for name, tensor in drop_aliases(network.state_dict()).items()}
    others = {name: tensor.shape for name, tensor in drop_aliases(larger.state_dict()).items()}
    axes = {}
    for name, shape in shapes.items():
        other = others.get(name, shape)
        grown = [index for index, (size, more) in enumerate(zip(shape, other, strict=False)) if more == size + 1]
        axes[name] = (0 in grown, 1 in grown)
    return axes


@torch.no_grad()
def transfer(
    network: nn.Module,
    source: Source,
    axes: TaskAxes,
    *,
    channels: Sequence[str],
    heads: Sequence[str],
    new_channels: NewChannels = "auto",
) -> Transfer:
    """Copy fitting tensors into a network in place.

    Args:
        network: freshly initialised; keeps its tensors that the source lacks.
        source: the trained network.
        axes: which tensors depend on heads and input channels.
        channels: names of the network's input channels.
        heads: names of its heads, background first, or its regions.
        new_channels: weights of an input channel that the source lacks.

    Raises:
        ModelError: no tensor but heads fits.
    """
    loaded: list[str] = []
    adapted: dict[str, str] = {}
    skipped: dict[str, str] = {}
    enlarged: dict[str, str] = {}
    for name, target in drop_aliases(network.state_dict()).items():
        tensor = source.weights.get(name)
        is_head, is_input = axes[name]
        if tensor is None:
            skipped[name] = "the source has no such tensor"
            continue
        how = []
        if is_input:
            tensor, text = _by_channel(tensor, source.channels, channels, new_channels)
            how += [text] if text else []
        if is_head:
            tensor, text = _by_head(tensor, target, source.heads, heads)
            how += [text] if text else []
        if not (is_head or is_input) and _can_be_enlarged(tensor, target):
            enlarged[name] = f"{_edges(tensor)} to {_edges(target)}"
            tensor = enlarge_kernel(tensor, target.shape[2:])
        if tensor.shape != target.shape:
            skipped[name] = f"shape {tuple(source.weights[name].shape)} in the source, {tuple(target.shape)} here"
            continue
        target.copy_(tensor)
        if how:
            adapted[name] = "; ".join(how)
        elif name not in enlarged:
            loaded.append(name)
    if not any(not axes[name][0] for name in (*loaded, *adapted, *enlarged)):
        raise ModelError(
            f"{source.path}: no tensor fits this network; plan for the source's architecture with "
            "'segwright move-plans SOURCE_DATASET TARGET_DATASET' and train with these plans"
        )
    return Transfer(loaded=tuple(loaded), adapted=adapted, skipped=skipped, enlarged=enlarged)


def enlarge_kernel(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Return depthwise kernels (C, 1, *S) resized to `size` by linear interpolation along each axis.

    They are not rescaled, as in the paper: the norm that follows cancels it.
    """
    return F.interpolate(kernel, size=tuple(size), mode="trilinear" if kernel.ndim == 5 else "bilinear")


def _can_be_enlarged(kernel: Tensor, target: Tensor) -> bool:
    """Return whether both are depthwise kernels and the target is larger, but along axes of size 1 the same."""
    if kernel.ndim not in (4, 5) or kernel.ndim != target.ndim or kernel.shape == target.shape:
        return False
    pairs = list(zip(kernel.shape[2:], target.shape[2:], strict=True))
    is_depthwise = kernel.shape[:2] == target.shape[:2] and kernel.shape[1] == 1
    return is_depthwise and all(1 < old <= new or old == new for old, new in pairs)


def _edges(kernel: Tensor) -> str:
    return "x".join(map(str, kernel.shape[2:]))


def require_same_encoder(checkpoint: NnsslCheckpoint, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that a network has the encoder of a checkpoint of nnssl.

    Args:
        checkpoint: whose encoder is wanted.
        shapes: of the network's tensors, by name; those of its input for the checkpoint's number of channels.

    Raises:
        ModelError: it has another encoder; the first difference is named.
    """
    theirs = checkpoint.shapes()
    ours = {name: tuple(shape) for name, shape in shapes.items() if name.startswith(ENCODER)}
    different = [name for name in dict.fromkeys((*ours, *theirs)) if ours.get(name) != theirs.get(name)]
    if not different and ours:
        return
    checkpoint.require_known_network()
    first = different[0] if different else f"{ENCODER}stem"
    pair = " and ".join(
        f"{found.get(first, 'missing')} {where}" for found, where in ((theirs, "in the checkpoint"), (ours, "here"))
    )
    raise ModelError(
        f"{checkpoint.path}: its encoder is not that of this network, {len(different)} tensors differ "
        f"({first}: {pair}); plan with 'segwright plan DATASET --like {checkpoint.path}' and train with these plans"
    )


def _load_encoder(
    checkpoint: NnsslCheckpoint,
    network: nn.Module,
    axes: TaskAxes,
    *,
    channels: Sequence[str],
    new_channels: NewChannels,
) -> list[str]:
    """Copy the encoder of a checkpoint of nnssl into a network (nnU-Net behaviour 8.12).

    Decoder and heads stay as they are. The checkpoint's input channels have no names: their weights are repeated,
    divided by the number of copies.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in drop_aliases(network.state_dict()).items():
        size = tuple(tensor.shape)
        shapes[name] = (size[0], checkpoint.num_channels, *size[2:]) if axes[name][1] else size
    require_same_encoder(checkpoint, shapes)
    if new_channels == "zero" and checkpoint.num_channels != len(channels):
        raise ModelError(
            f"{checkpoint.path}: pretrained_channels=zero would leave no weight of its {checkpoint.num_channels} "
            f"input channels for the {len(channels)} here; set mean"
        )
    source = Source(
        path=checkpoint.path,
        weights=checkpoint.encoder(),
        channels=tuple(f"channel {index} of the pre-training" for index in range(checkpoint.num_channels)),
        heads=(),
    )
    done = transfer(network, source, axes, channels=channels, heads=(), new_channels=new_channels)
    return [
        f"fine-tuning from {checkpoint.path} ({file_hash(checkpoint.path)[:12]}), {checkpoint.network} of nnssl: "
        f"encoder with {len(done.loaded)} tensors loaded, {len(done.adapted)} adapted; decoder and heads with "
        f"{len(done.skipped)} tensors start anew",
        *(f"adapted {name}: {how}" for name, how in done.adapted.items()),
        *(f"its authors ask to cite: {paper}" for paper in checkpoint.citations),
    ]


def _validate_plan(plan: Plan, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Check that the plan of an nnU-Net model names only known components."""
    configuration = plan.configuration(header_of(checkpoint, plan, path)["configuration"])
    validate_components(plan, configuration)
    build_on_meta(ArchitectureSpec.from_plan(configuration.architecture.model_dump(by_alias=True)), 1, 1)


def _by_channel(tensor: Tensor, before: Sequence[str], after: Sequence[str], rule: NewChannels) -> tuple[Tensor, str]:
    """Return input weights (out, C, ...) for the new channels, and a description, empty if they are the same."""
    found = _matches(before, after)
    if tensor.shape[1] != len(before) or found == [*range(len(before))]:
        return tensor, ""
    if len(before) == len(after) and not any(match is not None for match in found):
        return tensor, ""  # as many channels with other names: matched by position, as nnU-Net does
    known = sum(match is not None for match in found)
    fill = "zero" if rule == "zero" or (rule == "auto" and known) else "mean"
    mean = tensor.mean(dim=1)
    parts = [
        tensor[:, match] if match is not None else torch.zeros_like(mean) if fill == "zero" else mean for match in found
    ]
    # Scaled so that the new channels together have the same weight as those of the source.
    scale = len(before) / len(after) if fill == "mean" else 1.0
    return torch.stack(parts, dim=1) * scale, f"input channels: {_origins(after, found, fill)}"


def _by_head(tensor: Tensor, fresh: Tensor, before: Sequence[str], after: Sequence[str]) -> tuple[Tensor, str]:
    """Return head weights (heads, ...) for the new classes, and a description; unmatched classes keep fresh weights."""
    found = _matches(before, after)
    if len(tensor) != len(before) or tensor.shape[1:] != fresh.shape[1:] or found == [*range(len(before))]:
        return tensor, ""
    result = fresh.clone()
    for index, match in enumerate(found):
        if match is not None:
            result[index] = tensor[match]
    return result, f"heads: {_origins(after, found, 'new')}"


def _matches(before: Sequence[str], after: Sequence[str]) -> list[int | None]:
    """Return for each name its index among the earlier ones, ignoring case."""
    indices = {name.casefold(): index for index, name in enumerate(before)}
    return [indices.get(name.casefold()) for name in after]


def _origins(names: Sequence[str], found: Sequence[int | None], otherwise: str) -> str:
    pairs = zip(names, found, strict=True)
    return ", ".join(f"{name} {otherwise if match is None else 'from the source'}" for name, match in pairs)
