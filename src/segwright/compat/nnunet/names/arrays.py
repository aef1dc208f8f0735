"""acvl_utils' helpers to crop and pad arrays and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segwright.core.errors import ConfigError

Array = Tensor | npt.NDArray[Any]


def bounding_box_to_slice(bounding_box: Sequence[Sequence[int]]) -> tuple[slice, ...]:
    """Return the slices of a box, the (start, stop) of each axis."""
    return tuple(slice(int(start), int(stop)) for start, stop in bounding_box)


def crop_and_pad_nd(
    image: Any, bbox: Sequence[Sequence[int]], pad_value: float = 0, pad_mode: str = "constant", **_others: Any
) -> Array:
    """Return a box of the last axes of an array, which may lie outside of it.

    Args:
        image: (..., *S).
        bbox: (start, stop) of each of the last axes.
        pad_value: where the box lies outside.
        pad_mode: `constant`.

    Raises:
        ConfigError: another mode.
    """
    if pad_mode != "constant":
        raise ConfigError(f"crop_and_pad_nd: pad_mode '{pad_mode}' is not offered; use 'constant'")
    lead = len(image.shape) - len(bbox)
    sizes = image.shape[lead:]
    shape = (*image.shape[:lead], *(int(stop) - int(start) for start, stop in bbox))
    inside = [(max(int(start), 0), min(int(stop), size)) for (start, stop), size in zip(bbox, sizes, strict=True)]
    result: Any = (
        torch.full(shape, pad_value, dtype=image.dtype, device=image.device)
        if isinstance(image, Tensor)
        else np.full(shape, pad_value, dtype=image.dtype)
    )
    if all(low < high for low, high in inside):
        keep = (slice(None),) * lead
        target = tuple(
            slice(low - int(box[0]), high - int(box[0])) for (low, high), box in zip(inside, bbox, strict=True)
        )
        result[(*keep, *target)] = image[(*keep, *bounding_box_to_slice(inside))]
    return result  # type: ignore[no-any-return]


def insert_crop_into_image(image: Any, crop: Any, bbox: Sequence[Sequence[int]]) -> Array:
    """Write a crop into a box of the last axes of an array, in place, and return it; what lies outside is left out."""
    lead = len(image.shape) - len(bbox)
    sizes = image.shape[lead:]
    inside = [(max(int(start), 0), min(int(stop), size)) for (start, stop), size in zip(bbox, sizes, strict=True)]
    keep = (slice(None),) * lead
    image[(*keep, *bounding_box_to_slice(inside))] = crop[(*keep, *_within(inside, bbox))]
    return image  # type: ignore[no-any-return]


def pad_nd_image(
    image: Any,
    new_shape: Sequence[int] | None = None,
    mode: str = "constant",
    kwargs: Mapping[str, Any] | None = None,
    return_slicer: bool = False,
    shape_must_be_divisible_by: int | Sequence[int] | None = None,
) -> Any:
    """Pad the last axes of an array to at least `new_shape`, centred; the smaller half lies before it.

    Args:
        image: (..., *S).
        new_shape: of the last axes; None: their own.
        mode: of `numpy.pad`, or of `torch.nn.functional.pad` for a tensor.
        kwargs: of that function.
        return_slicer: also return the slices that undo the padding.
        shape_must_be_divisible_by: of the result, for the last axes.
    """
    options = dict(kwargs or {})
    wanted = [*(image.shape if new_shape is None else new_shape)]
    if shape_must_be_divisible_by is not None:
        given = shape_must_be_divisible_by
        last = [given] * len(wanted) if isinstance(given, int) else [*given]
        factors = [1] * (len(wanted) - len(last)) + last
        wanted = [-(-size // factor) * factor for size, factor in zip(wanted, factors, strict=True)]
    lead = len(image.shape) - len(wanted)
    missing = [max(want - have, 0) for want, have in zip(wanted, image.shape[lead:], strict=True)]
    widths = [(0, 0)] * lead + [(size // 2, size - size // 2) for size in missing]
    slicer = tuple(slice(low, low + size) for (low, _), size in zip(widths, image.shape, strict=True))
    if isinstance(image, Tensor):
        value = options.pop("constant_values", options.pop("value", 0))
        flat = [width for pair in reversed(widths[lead:]) for width in pair]
        padded: Any = torch.nn.functional.pad(
            image, flat, mode, **({"value": value} if mode == "constant" else options)
        )
    else:
        padded = np.pad(image, widths, mode, **options)  # type: ignore[call-overload]
    return (padded, slicer) if return_slicer else padded


def _within(inside: Sequence[tuple[int, int]], box: Sequence[Sequence[int]]) -> tuple[slice, ...]:
    """Return the slices of a part of a box, counted from the start of the box."""
    starts = [int(start) for start, _ in box]
    return tuple(slice(low - start, high - start) for (low, high), start in zip(inside, starts, strict=True))
