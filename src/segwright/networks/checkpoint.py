"""Weights on disk (safetensors) and their names: ours once each, nnU-Net's with aliases (spec A S-28)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segwright.core.documents import atomic_path
from segwright.core.errors import ModelError
from segwright.networks.blocks import ConvBlock

ENCODER_ALIAS: Final = "decoder.encoder."
BLOCK_ALIAS: Final = ".all_modules."
WRAPPERS: Final = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before each name
_NAMES_SHOWN: Final = 3


def save_weights(path: Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
        path: the file.
        state: names to tensors, on any device, in any layout; aliases are not stored twice.
        metadata: strings for the file's header.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in drop_aliases(state).items()}
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        # safetensors refuses tensors that share memory: a network's own weight tying has to be copied.
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen[tensor.untyped_storage().data_ptr()] = name
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what this user gives to new files; safetensors lets nobody else read them
        save_file(tensors, temporary, metadata=dict(metadata or {}))
        temporary.chmod(mode)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        ModelError: the file is missing, cut off or of another kind.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file; train first or name another checkpoint")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a readable safetensors file ({error}); it may be cut off, copy or train it again"
        ) from error


def drop_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with each tensor under its own name only; wrappers' prefixes are stripped too."""
    return {
        name: tensor
        for name, tensor in ((_unwrap(name), tensor) for name, tensor in state.items())
        if BLOCK_ALIAS not in name and not name.startswith(ENCODER_ALIAS)
    }


def add_aliases(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict as nnU-Net writes it for this network: every alias present, in its order.

    Args:
        state: our state dict of `network`.
        network: tells which names belong to convolution blocks.
    """
    indices = {
        name: module.alias_indices() for name, module in network.named_modules() if isinstance(module, ConvBlock)
    }
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    block: str | None = None
    pending: dict[str, Tensor] = {}

    def emit(name: str, tensor: Tensor) -> None:
        (encoder if name.startswith("encoder.") else decoder)[name] = tensor

    def flush() -> None:
        for name, tensor in pending.items():
            emit(name, tensor)
        pending.clear()

    for name, tensor in state.items():
        prefix, kind, leaf = _split(name)
        owner = prefix if prefix in indices else None
        if owner != block:
            flush()
            block = owner
        emit(name, tensor)
        if owner is not None:
            pending[f"{owner}{BLOCK_ALIAS}{indices[owner][kind]}.{leaf}"] = tensor
    flush()
    return {**encoder, **{f"decoder.{name}": tensor for name, tensor in encoder.items()}, **decoder}


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, source: str = "the weights") -> None:
    """Load weights, ours or nnU-Net's, into a network; every tensor has to fit.

    Args:
        network: takes the weights, in its own layout and on its own device.
        state: a state dict, with or without aliases.
        source: what to call it in an error, e.g. the file.

    Raises:
        ModelError: names missing, unexpected, or with another shape, the first few of each listed.
    """
    require_fitting(network, state, source=source)
    network.load_state_dict(drop_aliases(state))


def require_fitting(network: nn.Module, state: Mapping[str, Tensor], *, source: str = "the weights") -> None:
    """See that a state dict has the tensors of a network, which may both be on the meta device.

    Raises:
        ModelError: as `load_state`.
    """
    given, wanted = drop_aliases(state), drop_aliases(network.state_dict())
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    findings = [
        f"{title} {_listing(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if findings:
        raise ModelError(
            f"{source} do not fit the network: {'; '.join(findings)}; use the plans and dataset.json "
            "that they were trained with"
        )


def _unwrap(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _split(name: str) -> tuple[str, str, str]:
    """Split "a.b.conv.weight" into "a.b", "conv", "weight"."""
    owner, _, leaf = name.rpartition(".")
    prefix, _, kind = owner.rpartition(".")
    return prefix, kind, leaf


def _listing(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
