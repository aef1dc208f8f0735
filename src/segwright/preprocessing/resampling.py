"""Resample images, label maps and logits, by the functions that plans name (nnU-Net behaviour 6.4).

Three names are known, with nnU-Net 2.8.1's meaning and keyword arguments: `resample_data_or_seg_to_shape` (splines;
very anisotropic volumes are resized slice by slice and then along the coarse axis), `resample_torch_fornnunet` (linear)
and `no_resampling_hack`. Tensors are resampled in float32 on the device they are on, numpy arrays by torch too, which
is faster, or by numpy where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError, PlanError, did_you_mean
from segwright.preprocessing import numpy_operators
from segwright.preprocessing.label_resampling import (
    AxisSamples,
    Rule,
    linear_sampling,
    nearest_sampling,
    resize_axis_by_indicators,
    resize_labels,
    resize_labels_spline,
)
from segwright.preprocessing.operators import IndexArray, nearest_indices, needed_inputs, torch_nearest_indices

if TYPE_CHECKING:
    import torch

DEFAULT_FUNCTION = "resample_data_or_seg_to_shape"
TORCH_FUNCTION = "resample_torch_fornnunet"
NO_RESAMPLING = "no_resampling_hack"

ANISOTROPY_THRESHOLD = 3.0
"""Largest / smallest spacing above which the coarse axis is resampled separately (nnU-Net behaviour 6.4.1)."""

_FUNCTIONS = (DEFAULT_FUNCTION, TORCH_FUNCTION, NO_RESAMPLING)
_LABEL_RULES: tuple[Rule, ...] = ("majority", "classic")

Library = Literal["torch", "numpy"]
"""What resamples numpy arrays."""


class ArrayOperators(Protocol):
    """Resizing of float32 volumes (C, *S) along their axes, for the arrays of one library: one of the two modules.

    `rows` is the half-open range of output samples to compute, all by default. Along the resized axis the volume may be
    cut to the range of `needed_inputs`; `first` is then the input sample at which it starts.
    """

    def spline(
        self,
        volume: Any,
        axis: int,
        old: int,
        new: int,
        *,
        order: int,
        rows: tuple[int, int] | None = None,
        first: int = 0,
    ) -> Any:
        """Resize `axis` from `old` to `new` samples by a spline of `order` >= 2."""

    def linear_planes(
        self, volume: Any, old: int, new: int, *, rows: tuple[int, int] | None = None, first: int = 0
    ) -> Any:
        """Resize axis 1 of a volume (C, D, H, W) linearly."""

    def linear_in_plane(self, volume: Any, shape: Sequence[int]) -> Any:
        """Resize the last two axes of a volume (C, D, H, W) linearly."""

    def gather(self, volume: Any, axis: int, indices: IndexArray) -> Any:
        """Pick samples along one axis."""

    def clip_inplace(self, volume: Any, source: Any, axes: Sequence[int]) -> Any:
        """Clip a volume to the range of `source` over `axes`."""

    def to_float32(self, volume: Any) -> Any:
        """Return the volume in float32."""

    def concatenate(self, volumes: Sequence[Any], axis: int) -> Any:
        """Join volumes along an axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Resampling method, parsed from a plan's function name and keyword arguments."""

    kind: Literal["spline", "torch", "none"]
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = None
    threshold: float = ANISOTROPY_THRESHOLD
    rule: Rule = "majority"

    def indices(self, old: int, new: int) -> IndexArray:
        """Return the nearest input sample of each output sample, with the rounding of this method's function."""
        return torch_nearest_indices(old, new) if self.kind == "torch" else nearest_indices(old, new)


def parse_method(name: str, kwargs: Mapping[str, Any]) -> Method:
    """Parse a plan's resampling function and its keyword arguments.

    Raises:
        PlanError: the function is unknown.
        ConfigError: a keyword argument has a value that is not supported.
    """
    threshold = float(kwargs.get("separate_z_anisotropy_threshold", ANISOTROPY_THRESHOLD))
    if name == NO_RESAMPLING:
        return Method(kind="none")
    if name == TORCH_FUNCTION:
        modes = kwargs.get("mode", "linear"), kwargs.get("aniso_axis_mode", "nearest-exact")
        if modes != ("linear", "nearest-exact"):
            raise ConfigError(
                f"{name}: mode and aniso_axis_mode must be 'linear' and 'nearest-exact', not {modes[0]!r} and "
                f"{modes[1]!r}; change the plan"
            )
        force = kwargs.get("force_separate_z")
        rule: Rule = "torch-memefficient" if kwargs.get("memefficient_seg_resampling") else "torch"
        return Method(kind="torch", order=1, force_separate_z=force, threshold=threshold, rule=rule)
    if name != DEFAULT_FUNCTION:
        raise PlanError(f"unknown resampling function '{name}' in the plan{did_you_mean(name, _FUNCTIONS)}")
    order, order_z = int(kwargs.get("order", 3)), int(kwargs.get("order_z", 0))
    rule = kwargs.get("label_rule", "majority")
    if not (0 <= order <= 5 and 0 <= order_z <= 5) or rule not in _LABEL_RULES:
        raise ConfigError(
            f"{name}: order and order_z must be 0 to 5 and label_rule one of {', '.join(_LABEL_RULES)}, not "
            f"{order}, {order_z} and {rule!r}; change the plan"
        )
    force = kwargs.get("force_separate_z", False)
    return Method(kind="spline", order=order, order_z=order_z, force_separate_z=force, threshold=threshold, rule=rule)


def separate_axis(
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    force_separate_z: bool | None = None,
    threshold: float = ANISOTROPY_THRESHOLD,
) -> int | None:
    """Return the axis that is resampled separately from the others, or None (nnU-Net behaviour 6.4.1)."""
    if force_separate_z is False:
        return None
    reference = current_spacing
    if force_separate_z is None:
        if max(current_spacing) / min(current_spacing) <= threshold:
            reference = new_spacing
        if max(reference) / min(reference) <= threshold:
            return None
    coarse = [axis for axis, extent in enumerate(reference) if extent == max(reference)]
    return coarse[0] if len(coarse) == 1 else None


def resample_image(
    array: npt.NDArray[Any] | torch.Tensor,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    function: str,
    kwargs: Mapping[str, Any],
    *,
    library: Library = "torch",
) -> Any:
    """Resample (C, *S) to `new_shape`; results are clipped to the channel's or slice's range (nnU-Net behaviour 6.4.2).

    Returns:
        float32, an array for an array and a tensor for a tensor.
    """
    if isinstance(array, np.ndarray) and library == "torch":
        tensor = _tensor(array if array.dtype.kind == "f" else array.astype(np.float32))
        return resample_image(tensor, new_shape, current_spacing, new_spacing, function, kwargs).numpy()
    resampler = VolumeResampler(array.shape[1:], new_shape, current_spacing, new_spacing, function, kwargs)
    if resampler.shape == tuple(array.shape[1:]):
        return operators_of(array).to_float32(array)
    result: Any = None
    for index in range(len(array)):  # channel by channel, to bound the intermediate volumes
        channel = resampler.slab(array[index : index + 1], 0, resampler.shape[0])
        result = _empty_like(channel, len(array)) if result is None else result
        result[index] = channel[0]
    return result


def resample_label(
    array: npt.NDArray[Any] | torch.Tensor,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    function: str,
    kwargs: Mapping[str, Any],
) -> Any:
    """Resample label maps (1, *S) of any integer type to `new_shape`; -1 is a label like any other.

    Returns:
        The input's type, an array for an array and a tensor for a tensor.
    """
    if not isinstance(array, np.ndarray):
        resampled = resample_label(array.numpy(force=True), new_shape, current_spacing, new_spacing, function, kwargs)
        return _tensor(resampled).to(array.device)
    method = parse_method(function, kwargs)
    shape = tuple(int(extent) for extent in new_shape)
    if method.kind == "none" or array.shape[1:] == shape:
        return array
    separate = separate_axis(current_spacing, new_spacing, method.force_separate_z, method.threshold)
    return np.stack([_resize_map(channel, shape, method, separate) for channel in array])


class VolumeResampler:
    """Resample one volume to a grid, a slab of output planes at a time.

    >>> resampler = VolumeResampler((4, 4, 4), (8, 4, 4), (2, 1, 1), (1, 1, 1), "resample_torch_fornnunet", {})
    >>> resampler.slab(np.zeros((3, 4, 4, 4)), 2, 5).shape
    (3, 3, 4, 4)
    """

    def __init__(
        self,
        old_shape: Sequence[int],
        new_shape: Sequence[int],
        current_spacing: Sequence[float],
        new_spacing: Sequence[float],
        function: str,
        kwargs: Mapping[str, Any],
    ) -> None:
        self._method = parse_method(function, kwargs)
        self._old = tuple(int(extent) for extent in old_shape)
        self.shape = self._old if self._method.kind == "none" else tuple(int(extent) for extent in new_shape)
        """Spatial shape of the whole output."""
        self._separate = separate_axis(
            current_spacing, new_spacing, self._method.force_separate_z, self._method.threshold
        )
        changed = [axis for axis in range(3) if self._old[axis] != self.shape[axis]]
        # Axes that shrink first, so that the others process fewer voxels.
        changed.sort(key=lambda axis: (self.shape[axis] / self._old[axis], -axis))
        self._selects_planes = 0 in changed and self._order(0) == 0
        self._interpolates_planes = 0 in changed and not self._selects_planes
        if self._selects_planes:
            changed.remove(0)
        self._within = self._steps([axis for axis in changed if axis != self._separate])
        self._along = self._steps([axis for axis in changed if axis == self._separate])

    @property
    def needs_all_planes(self) -> bool:
        """Whether every slab needs the whole input, because orders above 1 are clipped to its range."""
        return bool(self._within) and self._method.order > 1 and self._separate != 0

    def inputs(self, start: int, stop: int) -> tuple[int, int]:
        """Return the half-open range of input planes from which output planes [start, stop) are interpolated."""
        if self._selects_planes:
            indices = self._method.indices(self._old[0], self.shape[0])[start:stop]
            return int(indices[0]), int(indices[-1]) + 1
        if self._interpolates_planes:
            return needed_inputs(self._old[0], self.shape[0], self._order(0), (start, stop))
        return start, stop

    def slab(self, logits: Any, start: int, stop: int, *, offset: int = 0) -> Any:
        """Return output planes [start, stop) along spatial axis 0.

        Args:
            logits: the input (heads, *S), array or tensor of any float type; whole, or the planes of `inputs`.
            start: first output plane.
            stop: one past the last output plane.
            offset: index of the first input plane in `logits`.

        Returns:
            (heads, stop - start, Y, X) float32; concatenated slabs equal the whole result up to the last bit.
        """
        assert tuple(logits.shape[2:]) == self._old[1:], f"expected {self._old}, got {tuple(logits.shape[1:])}"
        operators = operators_of(logits)
        rows, first, low, high = (start, stop), 0, start, stop
        if self._selects_planes:
            indices = self._method.indices(self._old[0], self.shape[0])[start:stop]
            used, back = np.unique(indices, return_inverse=True)
            planes = operators.to_float32(operators.gather(logits, 1, used - offset))
        else:
            if self._interpolates_planes:
                low, high = self.inputs(start, stop)
                first = low
            planes = operators.to_float32(logits[:, low - offset : high - offset])
        result = self._resize(operators, planes, self._within, rows, first)
        if self._within and self._method.order > 1:
            # Before the coarse axis, each slice to its own range (nnU-Net behaviour 6.4.2).
            source = planes if self._separate == 0 else logits
            result = operators.clip_inplace(result, source, [axis + 1 for axis in range(3) if axis != self._separate])
        result = self._resize(operators, result, self._along, rows, first)
        return operators.gather(result, 1, back) if self._selects_planes and len(used) < len(back) else result

    def _order(self, axis: int) -> int:
        return self._method.order_z if axis == self._separate else self._method.order

    def _steps(self, axes: list[int]) -> list[tuple[int, ...]]:
        """Return the axes of each resizing pass; torch resizes the two in-plane axes in one pass."""
        if {1, 2} <= set(axes) and self._method.order == 1:
            axes.remove(2)
            return [(1, 2) if axis == 1 else (axis,) for axis in axes]
        return [(axis,) for axis in axes]

    def _resize(
        self, operators: ArrayOperators, volume: Any, steps: list[tuple[int, ...]], rows: tuple[int, int], first: int
    ) -> Any:
        for axes in steps:
            axis = axes[0]
            order, old, new = self._order(axis), self._old[axis], self.shape[axis]
            if order == 0:
                volume = operators.gather(volume, axis + 1, self._method.indices(old, new))
            elif order > 1:
                part: dict[str, Any] = {"rows": rows, "first": first} if axis == 0 else {}
                volume = operators.spline(volume, axis + 1, old, new, order=order, **part)
            elif axis == 0:
                volume = operators.linear_planes(volume, old, new, rows=rows, first=first)
            else:
                plane = [self.shape[index] if index in axes else volume.shape[index + 1] for index in (1, 2)]
                volume = operators.linear_in_plane(volume, plane)
        return volume


def operators_of(array: Any) -> ArrayOperators:
    """Return the operators of numpy for an array, else those of torch."""
    if isinstance(array, np.ndarray):
        return numpy_operators
    from segwright.preprocessing import torch_operators  # where arrays are resampled by numpy, torch may be missing

    return torch_operators


def _resize_map(
    labels: npt.NDArray[Any], shape: tuple[int, ...], method: Method, separate: int | None
) -> npt.NDArray[Any]:
    """Resize one label map (*S)."""
    if method.kind == "spline" and separate is not None and method.order_z > 0:
        within = tuple(labels.shape[axis] if axis == separate else shape[axis] for axis in range(3))
        slices = _resize_map(labels, within, method, None)
        same = slices.shape[separate] == shape[separate]
        return slices if same else resize_axis_by_indicators(slices, separate, shape[separate], method.order_z)
    orders = [method.order_z if axis == separate else method.order for axis in range(3)]
    nearest_axes = [nearest_sampling(method.indices(old, new)) for old, new in zip(labels.shape, shape, strict=True)]
    if all(order <= 1 for order, old, new in zip(orders, labels.shape, shape, strict=True) if old != new):
        axes: list[AxisSamples] = [
            linear_sampling(old, new, picks.nearest) if order == 1 else picks
            for order, old, new, picks in zip(orders, labels.shape, shape, nearest_axes, strict=True)
        ]
        return resize_labels(labels, axes, method.rule)
    nearest_map = resize_labels(labels, nearest_axes)
    if separate is None:
        return resize_labels_spline(labels, shape, method.order, nearest_map)
    index = nearest_axes[separate].nearest
    within = tuple(len(index) if axis == separate else shape[axis] for axis in range(3))
    return resize_labels_spline(labels.take(index, axis=separate), within, method.order, nearest_map)


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    import torch  # as above

    values = np.ascontiguousarray(array)
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _empty_like(channel: Any, num_channels: int) -> Any:
    """Return an array or tensor for `num_channels` of the volume (1, *S)."""
    shape = (num_channels, *channel.shape[1:])
    return np.empty(shape, np.float32) if isinstance(channel, np.ndarray) else channel.new_empty(shape)
