"""Small helpers and constants of nnU-Net: non-linearities, caches, workers, folds, initial weights, class look-up."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from segwright.compat.nnunet.module_table import VARIANT_NAMES
from segwright.core.errors import ConfigError
from segwright.core.parallel import available_cpus
from segwright.networks.blocks import BasicBlockD, BottleneckD
from segwright.networks.build import KAIMING_SLOPE

ANISO_THRESHOLD: Final = 3
"""Ratio of the spacings above which an axis is treated on its own (nnU-Net behaviour 5.6)."""

default_num_processes: Final = 8

MAX_AUGMENTATION_WORKERS: Final = 12
"""nnU-Net's default."""

_CONVOLUTIONS: Final = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def softmax_helper_dim0(x: Tensor) -> Tensor:
    """Return the softmax over the first axis."""
    return torch.softmax(x, 0)


def softmax_helper_dim1(x: Tensor) -> Tensor:
    """Return the softmax over the channels of (B, C, *S)."""
    return torch.softmax(x, 1)


def empty_cache(device: torch.device) -> None:
    """Free the unused memory that torch keeps of an accelerator."""
    backend: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "empty_cache"):
        backend.empty_cache()


class dummy_context(AbstractContextManager[None]):
    """A context that does nothing."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, *_error: object) -> None:
        """Do nothing."""


def collate_outputs(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of all steps by key: scalars in a list, arrays stacked along a new first axis, lists joined.

    Args:
        outputs: one dict for each step, all with the same keys.

    Raises:
        ConfigError: a value has another type.
    """
    return {key: _collate(key, [output[key] for output in outputs]) for key in outputs[0]}


def _collate(key: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        values = [value.detach().cpu().numpy() for value in values]
        first = values[0]
    if np.isscalar(first) or (isinstance(first, np.ndarray) and first.ndim == 0):
        return values
    if isinstance(first, np.ndarray):
        return np.stack(values)
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    raise ConfigError(
        f"a step returned '{key}' as {type(first).__name__}; expected a number, a numpy array or a list in every step"
    )


def get_allowed_n_proc_DA() -> int:
    """Return the number of workers for augmentation: nnU-Net's default, at most the cores of this process."""
    return min(MAX_AUGMENTATION_WORKERS, available_cpus())


def check_workers_alive_and_busy(
    export_pool: object, worker_list: Iterable[Any], results_list: Iterable[Any], allowed_num_queued: int = 0
) -> bool:
    """Return whether at least `allowed_num_queued` more results than there are workers are unfinished.

    Raises:
        RuntimeError: a worker has ended.
    """
    del export_pool
    workers = [*worker_list]
    if not all(worker.is_alive() for worker in workers):
        raise RuntimeError("a worker process has ended; its memory may have run out")
    return sum(not result.ready() for result in results_list) >= len(workers) + allowed_num_queued


def check_workers_busy(export_pool: Any, results_list: Iterable[Any], allowed_num_queued: int = 0) -> bool:
    """Return the same, without looking at the workers; the name of 2.0.

    Args:
        export_pool: of `multiprocessing`.
        results_list: asynchronous results.
        allowed_num_queued: how many may wait.
    """
    return sum(not result.ready() for result in results_list) >= len(export_pool._pool) + allowed_num_queued


def generate_crossval_split(
    train_identifiers: Sequence[str], seed: int = 12345, n_splits: int = 5
) -> list[dict[str, list[str]]]:
    """Return the folds `{"train": [...], "val": [...]}` of a shuffled k-fold split, as scikit-learn's `KFold` makes it.

    Raises:
        ConfigError: fewer cases than folds.
    """
    names = [str(name) for name in train_identifiers]
    if not 2 <= n_splits <= len(names):
        raise ConfigError(f"{n_splits} folds of {len(names)} cases: expected 2 to {len(names)} folds; add cases")
    shuffled = np.arange(len(names))
    np.random.RandomState(seed).shuffle(shuffled)
    folds = []
    for chunk in np.array_split(shuffled, n_splits):
        held_out = {*chunk.tolist()}
        folds.append(
            {
                "train": [name for index, name in enumerate(names) if index not in held_out],
                "val": [name for index, name in enumerate(names) if index in held_out],
            }
        )
    return folds


class InitWeights_He:
    """Sets a convolution's weights to Kaiming normal values and its bias to 0; for `module.apply`."""

    def __init__(self, neg_slope: float = KAIMING_SLOPE) -> None:
        self.neg_slope = neg_slope

    def __call__(self, module: nn.Module) -> None:
        """Initialise a module, if it is a convolution."""
        if isinstance(module, _CONVOLUTIONS):
            nn.init.kaiming_normal_(module.weight, a=self.neg_slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_last_bn_before_add_to_0(module: nn.Module) -> None:
    """Set weight and bias of the last norm of a residual block to 0; for `module.apply`."""
    if isinstance(module, BasicBlockD | BottleneckD):
        for parameter in (getattr(module.last_norm, "weight", None), getattr(module.last_norm, "bias", None)):
            if isinstance(parameter, Tensor):
                nn.init.zeros_(parameter)


def recursive_find_python_class(folder: str, class_name: str, current_module: str, **_others: Any) -> type[Any] | None:
    """Return a published trainer by its name, None for any other class.

    Args:
        folder: where nnU-Net would search; the stand-ins have no files.
        class_name: of the trainer.
        current_module: module of that folder.
    """
    del folder, current_module
    if class_name == "nnUNetTrainer":
        found: Any = getattr(importlib.import_module("segwright.compat.nnunet.trainer"), class_name)
    elif class_name in VARIANT_NAMES:
        found = getattr(importlib.import_module("segwright.compat.nnunet.variants"), class_name)
    else:
        return None
    return found if isinstance(found, type) else None


def recursive_fix_for_json_export(my_dict: dict[Any, Any]) -> None:
    """Replace numpy and torch values of a document, in place, by those that JSON knows."""
    for key in [*my_dict]:
        value = my_dict.pop(key)
        my_dict[key.item() if isinstance(key, np.generic) else key] = to_json_value(value)


def to_json_value(value: Any) -> Any:
    """Return a value with its numpy and torch parts as numbers, strings, lists and dicts."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {key.item() if isinstance(key, np.generic) else key: to_json_value(each) for key, each in value.items()}
    return [to_json_value(each) for each in value] if isinstance(value, list | tuple) else value
