"""Cache preprocessed cases in RAM or device memory, or read them from disk.

The placement is chosen once, by their size and the free memory, and logged. The batches do not depend on it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from segwright.core.device import CPU, free_bytes
from segwright.core.errors import DatasetError, SegwrightError
from segwright.core.memory import available_bytes
from segwright.core.resources import resource_error
from segwright.training.config import CacheMode
from segwright.training.loading.sampling import ClassLocations

RAM_SHARE = 0.5
"""Share of the free memory, at the start of a training, that cases may use; the rest is for batches and network."""

DEVICE_SHARE = 0.2
"""Share of the device's free memory that cases may use; the rest is for the network, up to the GPU memory
target of its plan."""

_GIB = 2**30


class CaseArray(Protocol):
    """An array on disk or in memory: a shape and slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *spatial)."""
        ...

    def __getitem__(self, key: Any) -> Any:
        """Return the slice, a numpy array or, of a case on a device, a tensor."""
        ...


class TrainingCase(Protocol):
    """The parts of a preprocessed case that a loader reads."""

    @property
    def image(self) -> CaseArray:
        """(C, *S) float32."""
        ...

    @property
    def label(self) -> CaseArray:
        """(1, *S) int16, -1 outside the nonzero mask; (2, *S) with the map of a cascade's previous stage."""
        ...

    @property
    def class_locations(self) -> ClassLocations:
        """Voxel indices (n, 3) of each class or region, in the image's axis order."""
        ...


class CaseSource(Protocol):
    """Opens cases; `data.preprocessed.store.CaseStore` is one."""

    def load(self, identifier: str) -> TrainingCase:
        """Open a case."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlacement:
    """Where cases are cached (`none`: on disk), how many bytes they may take, and the reason as a line for the log."""

    location: Literal["none", "ram", "device"] = "none"
    budget_bytes: int = 0
    needed_bytes: int = 0
    """Of all cases."""
    reason: str = ""


ON_DISK = CachePlacement()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCase:
    """An opened case: tensors if it is cached, else the store's arrays, which are read when sliced."""

    image: Any
    label: Any
    class_locations: ClassLocations


def choose_placement(
    mode: CacheMode, needed_bytes: int, device: torch.device, *, limit_gib: float | None = None, num_processes: int = 1
) -> CachePlacement:
    """Choose where to cache cases.

    Args:
        mode: `auto` chooses a GPU if all cases fit, else memory if they fit, else the disk. `ram` and `device` hold as
            many as fit; the others are read from disk.
        needed_bytes: of all decoded cases.
        device: where batches are made.
        limit_gib: the budget; by default a share of the free memory.
        num_processes: processes on this machine that hold the cases at the same time.
    """
    limit_bytes = None if limit_gib is None else int(limit_gib * _GIB)
    has_own_memory = device.type != CPU
    budgets = {"ram": available_bytes() * RAM_SHARE / num_processes, "device": free_bytes(device) * DEVICE_SHARE}
    locations: dict[CacheMode, tuple[Literal["ram", "device"], ...]] = {
        "auto": ("device", "ram") if has_own_memory else ("ram",),
        "none": (),
        "ram": ("ram",),
        "device": ("device",) if has_own_memory else ("ram",),
    }
    size = f"they take {_format_bytes(needed_bytes)}"
    tried = []
    for location in locations[mode]:
        budget = int(budgets[location]) if limit_bytes is None else limit_bytes
        where = "memory" if location == "ram" else f"the memory of {device}"
        tried.append(f"{_format_bytes(budget)} of {where}")
        if needed_bytes <= budget:
            reason = f"cases are kept in {where}: {size} of the {_format_bytes(budget)} allowed"
            return CachePlacement(location=location, budget_bytes=budget, needed_bytes=needed_bytes, reason=reason)
        if mode != "auto":
            limit = _format_bytes(budget)
            reason = f"cases are kept in {where} up to {limit}, the others are read from disk: {size} in total"
            return CachePlacement(location=location, budget_bytes=budget, needed_bytes=needed_bytes, reason=reason)
    reason = f"{size}, more than {' and '.join(tried)}" if tried else "as set by cache"
    return CachePlacement(reason=f"cases are read from disk patch by patch: {reason}")


class CaseCache:
    """Opens each case once, and keeps decoded cases until the budget is used; safe to use from several threads.

    Args:
        store: opens cases by identifier.
        placement: where cases are cached.
        device: used if the placement is `device`.
    """

    def __init__(
        self, store: CaseSource, placement: CachePlacement = ON_DISK, device: torch.device | None = None
    ) -> None:
        self._store = store
        self._location = placement.location
        self._left_bytes = placement.budget_bytes if placement.location != "none" else 0
        self._not_needed_bytes = max(0, self._left_bytes - placement.needed_bytes)
        self._device = device or torch.device(CPU)
        self._cases: dict[str, OpenCase] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def pending_bytes(self, location: str) -> int:
        """Return the bytes that cases still to be opened will take, in `ram` or on the `device`."""
        return max(0, self._left_bytes - self._not_needed_bytes) if location == self._location else 0

    def load(self, identifier: str) -> OpenCase:
        """Return the case.

        Raises:
            DatasetError: it cannot be read.
        """
        case = self._cases.get(identifier)
        if case is not None:
            return case
        with self._lock:
            lock = self._locks.setdefault(identifier, threading.Lock())
        with lock:  # other threads may open other cases meanwhile
            if identifier not in self._cases:
                with name_case_in_errors(identifier):
                    self._cases[identifier] = self._open(identifier)
            return self._cases[identifier]

    def _open(self, identifier: str) -> OpenCase:
        case = self._store.load(identifier)
        image, label, locations = case.image, case.label, case.class_locations
        if tuple(image.shape[1:]) != tuple(label.shape[1:]):
            raise DatasetError(
                f"case {identifier}: image {tuple(image.shape[1:])}, label {tuple(label.shape[1:])}: shapes differ; "
                "preprocess the dataset again"
            )
        size = decoded_bytes(case)
        with self._lock:
            if size > self._left_bytes:
                return OpenCase(image=image, label=label, class_locations=locations)
            self._left_bytes -= size
        arrays = np.ascontiguousarray(image[...], np.float32), np.ascontiguousarray(label[...], np.int16)
        held = [torch.from_numpy(array).to(self._device if self._location == "device" else CPU) for array in arrays]
        return OpenCase(
            image=held[0],
            label=held[1],
            class_locations={key: np.asarray(voxels, dtype=np.int32) for key, voxels in locations.items()},
        )


def decoded_bytes(case: TrainingCase) -> int:
    """Return the bytes of a decoded case: float32 image, int16 label maps, int32 class locations."""
    rows = sum(len(voxels) for voxels in case.class_locations.values())
    return math.prod(case.image.shape) * 4 + math.prod(case.label.shape) * 2 + rows * 3 * 4


def total_bytes(store: CaseSource, identifiers: Sequence[str]) -> int:
    """Return the bytes of decoded cases, without reading their arrays."""
    total = 0
    for identifier in identifiers:
        with name_case_in_errors(identifier):
            total += decoded_bytes(store.load(identifier))
    return total


@contextmanager
def name_case_in_errors(identifier: str) -> Iterator[None]:
    """Add the case to the message of any error while it is read."""
    try:
        yield
    except SegwrightError as error:
        if not _mentions_case(str(error), identifier):
            error.args = (f"case {identifier}: {error}",)  # keeps the class, hence the exit code
        raise
    except Exception as error:
        if found := resource_error(error):
            raise type(found)(f"case {identifier}: {found}") from error
        raise DatasetError(
            f"case {identifier}: cannot be read from the preprocessed data ({type(error).__name__}: {error}); "
            "delete its files and preprocess again"
        ) from error


def _mentions_case(message: str, identifier: str) -> bool:
    """Return whether a message names the case; a path that contains its name does not count."""
    return f"case {identifier}:" in message or f"case '{identifier}'" in message


def _format_bytes(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"
