"""An Apple GPU that is not there: tensors that say they are on `mps`, compute on the CPU, and refuse what MPS lacks.

Each rule names where it was read. Operations are also recorded, to be compared with those that MPS has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

MPS = torch.device("mps:0")
_COPIES = {"aten::copy_", "aten::_to_copy"}
_TO_HOST = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist}
_NAMES = {torch.device, torch._C._nn._parse_to}  # type: ignore[attr-defined]
"""Functions that take the name of a device and return one."""
_operations: set[str] = set()


class MissingOnMpsError(Exception):
    """What the real device would refuse, or compute wrongly."""


class FakeMpsTensor(torch.Tensor):
    """A tensor whose `device` is `mps` in Python; in C++, which has no such device here, it is on the CPU."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> FakeMpsTensor:
        if values.dtype in (torch.float64, torch.complex128):
            raise MissingOnMpsError("float64 (torch issue 122602)")
        made: FakeMpsTensor = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype
        )
        made.values = values
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            return function.decompose(*args, **kwargs or {})  # without gradients it arrives whole
        _require_supported(function, args, kwargs or {})
        given = {id(_values(each)): each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        found = function(*tree_map(_values, args), **tree_map(_values, kwargs or {}))
        # what was changed in place is returned as it was given, for autograd
        return tree_map(lambda each: given.get(id(each)) if id(each) in given else _on_mps(each), found)


class _Moves(TorchFunctionMode):
    """Takes calls that name the device `mps`, which torch cannot reach here, and those that copy from it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in (*args, *kwargs.values()) if not isinstance(each, torch.Tensor)]
        if function in _NAMES:
            return function(*args, **kwargs)
        moves = function is torch.Tensor.to and kwargs.get("non_blocking", False)
        if args and isinstance(args[0], FakeMpsTensor) and (function in _TO_HOST or any(map(_is_cpu, given))):
            if moves:
                raise MissingOnMpsError("an asynchronous copy to the CPU may be read before it is done")
            return function(args[0].values.clone(), *args[1:], **kwargs)
        if not any(map(_is_mps, given)):
            return function(*args, **kwargs)
        if moves and not isinstance(args[0], FakeMpsTensor):
            raise MissingOnMpsError("an asynchronous copy may read freed memory (torch issues 139550, 189690)")
        here = [torch.device("cpu") if _is_mps(each) else each for each in args]
        found = function(*here, **{key: torch.device("cpu") if _is_mps(each) else each for key, each in kwargs.items()})
        if isinstance(found, FakeMpsTensor):
            return found
        return FakeMpsTensor(found.detach().clone()).requires_grad_(found.requires_grad)


@contextmanager
def fake_mps() -> Iterator[set[str]]:
    """Let `torch.device("mps")` be there for a block, in this thread; yield the operations that ran on it."""
    _operations.clear()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, _Moves():
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot change its class
        try:
            yield _operations
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _require_supported(function: Any, args: Any, kwargs: Any) -> None:
    """Record an operation on the device, and raise if MPS lacks it for these arguments."""
    name = function._schema.name
    _operations.add(function.name().removeprefix("aten::"))
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    if any(each.dtype in (torch.float64, torch.complex128) for each in tensors):
        raise MissingOnMpsError(f"{name}: float64 (torch issue 122602)")
    if name not in _COPIES and any(not isinstance(each, FakeMpsTensor) and each.ndim for each in tensors):
        raise MissingOnMpsError(f"{name}: tensors are on two devices")
    if name == "aten::convolution" and args[6] and args[0].ndim == 5 and args[0].dtype != torch.float32:
        raise MissingOnMpsError(f"{name}: 3D transposed in {args[0].dtype} (torch issue 160739)")
    if name in ("aten::index_add", "aten::index_add_") and args[3].dtype == torch.int64:
        raise MissingOnMpsError(f"{name}: int64 (aten/src/ATen/native/mps/operations/Indexing.mm)")
    if name.startswith("aten::_fused_") and any(kwargs.get(key) is not None for key in ("grad_scale", "found_inf")):
        raise MissingOnMpsError(f"{name}: grad_scale and found_inf (torch pull request 186360)")


def _values(each: Any) -> Any:
    return each.values if isinstance(each, FakeMpsTensor) else each


def _on_mps(each: Any) -> Any:
    return FakeMpsTensor(each) if isinstance(each, torch.Tensor) else each


def _is_mps(each: object) -> bool:
    return (isinstance(each, torch.device) and each.type == "mps") or (isinstance(each, str) and each == "mps")


def _is_cpu(each: object) -> bool:
    return (isinstance(each, torch.device) and each.type == "cpu") or (isinstance(each, str) and each == "cpu")
