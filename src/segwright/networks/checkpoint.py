"""Save and load weights as safetensors; add and drop nnU-Net's aliases of tensor names (nnU-Net behaviour 7.8)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segwright.core.errors import ModelError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.hashing import file_crc
from segwright.core.resources import resource_error
from segwright.networks.blocks import ConvBlock

ENCODER_ALIAS: Final = "decoder.encoder."
BLOCK_ALIAS: Final = ".all_modules."
WRAPPERS: Final = ("module.", "_orig_mod.")  # name prefixes of DistributedDataParallel and torch.compile
_NAMES_SHOWN: Final = 3
_CHECKSUM_KEY: Final = "segwright_crc32"
_CHECKSUM_ENTRY: Final = rb'"segwright_crc32"\s*:\s*"'
_NO_CHECKSUM: Final = b"00000000"
"""Placeholder in the header while the checksum of the file is computed."""
_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100 << 20
"""Largest header that safetensors reads, in bytes."""
_BLOCK: Final = 1 << 20


class DamagedWeightsError(ModelError):
    """A weights file does not match its checksum."""


def save_weights(path: Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
        path: the file.
        state: names to tensors, on any device, in any layout; aliases are not stored twice.
        metadata: strings for the file's header.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with atomic_path(path, size=size) as temporary:
        write_weights(temporary, state, metadata=metadata)


def write_weights(path: Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a new safetensors file like `save_weights`, with a CRC-32 of the whole file in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in drop_aliases(state).items()}
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        # safetensors refuses tensors that share memory, as those of tied layers do.
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen[tensor.untyped_storage().data_ptr()] = name
    path.touch()
    mode = path.stat().st_mode  # the user's default permissions; safetensors makes files private
    save_file(tensors, path, metadata={**(metadata or {}), _CHECKSUM_KEY: _NO_CHECKSUM.decode()})
    path.chmod(mode)
    offset = _checksum_offset(path)
    assert offset is not None, "safetensors writes its metadata as compact JSON"
    with path.open("r+b") as stream:
        checksum = f"{file_crc(path):08x}".encode()
        stream.seek(offset)
        stream.write(checksum)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        ModelError: the file is missing.
        DamagedWeightsError: it is damaged, cut off or of another kind.
    """
    require_undamaged(path)
    with _explain_read_errors(path):
        return dict(load_file(path))


def load_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of the tensors in a safetensors file.

    Raises:
        DamagedWeightsError: it is damaged or missing.
    """
    with _explain_read_errors(path), safe_open(path, framework="pt") as stream:
        return {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118


def require_undamaged(path: Path) -> None:
    """Check a weights file against the checksum in its header, if it has one (older versions wrote none).

    Raises:
        ModelError: the file is missing.
        DamagedWeightsError: the checksum does not match.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file; train first or choose another checkpoint")
    offset = _checksum_offset(path)
    if offset is None:
        _require_readable(path)
        return
    with path.open("rb") as stream:
        head = stream.read(offset)
        stored = stream.read(len(_NO_CHECKSUM))
        found = zlib.crc32(_NO_CHECKSUM, zlib.crc32(head))
        while block := stream.read(_BLOCK):
            found = zlib.crc32(block, found)
    if stored != f"{found:08x}".encode():
        raise DamagedWeightsError(
            f"{path}: damaged (its checksum does not match); copy it again, use another "
            "checkpoint, or delete it and train again"
        )


def drop_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with each tensor under its own name only; wrappers' prefixes are stripped too."""
    return {
        name: tensor
        for name, tensor in ((strip_wrappers(name), tensor) for name, tensor in state.items())
        if BLOCK_ALIAS not in name and not name.startswith(ENCODER_ALIAS)
    }


def strip_wrappers(name: str) -> str:
    """Return a tensor's name without the prefixes of DistributedDataParallel and torch.compile."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def add_aliases(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict as nnU-Net writes it for this network, with every alias and in its order.

    Args:
        state: our state dict of `network`.
        network: defines which names belong to convolution blocks.
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
    """Load weights, ours or nnU-Net's, into a network; every tensor must match.

    Args:
        network: receives the weights, keeping its memory layout and device.
        state: a state dict, with or without aliases.
        source: name for error messages, e.g. the file.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape; it lists the first few of each.
    """
    require_fitting(network, state, source=source)
    network.load_state_dict(drop_aliases(state))


def require_fitting(network: nn.Module, state: Mapping[str, Tensor], *, source: str = "the weights") -> None:
    """Check that a state dict has the tensors of a network; both may be on the meta device.

    Raises:
        ModelError: see `load_state`.
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
            f"{source} do not fit the network: {'; '.join(findings)}; use the network, plans and "
            "dataset.json that they were trained with"
        )


def _require_readable(path: Path) -> None:
    with _explain_read_errors(path), safe_open(path, framework="pt") as stream:
        stream.metadata()


@contextmanager
def _explain_read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, MemoryError) as error:
        if found := resource_error(error, path):
            raise found from error
        raise DamagedWeightsError(
            f"{path}: not a readable safetensors file ({error}); it may be cut off, copy or train it again"
        ) from error


def _checksum_offset(path: Path) -> int | None:
    """Return the byte offset of the checksum in a file; None without one."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        header = stream.read(min(size, _MAX_HEADER_BYTES))
    found = re.search(_CHECKSUM_ENTRY, header)
    return None if found is None else _LENGTH_BYTES + found.end()


def _split(name: str) -> tuple[str, str, str]:
    """Split "a.b.conv.weight" into "a.b", "conv", "weight"."""
    owner, _, leaf = name.rpartition(".")
    prefix, _, kind = owner.rpartition(".")
    return prefix, kind, leaf


def _listing(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
