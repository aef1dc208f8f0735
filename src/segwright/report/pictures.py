"""Overlay pictures: image, ground truth and prediction in the slice that shows the rarest label best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.patches import Patch

from segwright.core.drawing import figure_file
from segwright.report.colours import label_colour, rgb

_PANEL_INCHES = 3.2
_DPI = 110
_FILL = 0.35
_GREY_PERCENTILES = (0.5, 99.9)


def save_overlay(
    path: Path,
    image: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    *,
    names: Sequence[str],
    title: str = "",
) -> None:
    """Write a PNG with three panels: image, image with the reference, image with the prediction.

    Args:
        path: output file, written atomically.
        image: one channel (Z, Y, X).
        reference: label map (Z, Y, X).
        prediction: label map (Z, Y, X).
        names: names of the labels 1, 2, ... for the legend.
        title: title above the panels.
    """
    index = best_slice(reference, prediction)
    grey = image[index].astype(np.float32)
    low, high = np.percentile(image, _GREY_PERCENTILES)
    with figure_file(path, size_inches=(3 * _PANEL_INCHES, _PANEL_INCHES + 0.7), dpi=_DPI) as figure:
        panels = figure.subplots(1, 3)
        content = (("image", None), ("ground truth", reference[index]), ("prediction", prediction[index]))
        for panel, (heading, labels) in zip(panels, content, strict=True):
            panel.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
            panel.set_title(heading, fontsize=10)
            panel.set_axis_off()
            if labels is not None:
                _draw_labels(panel, labels)
        handles = [_swatch(value) for value in range(1, len(names) + 1)]
        figure.legend(
            handles, names, loc="outside lower center", ncols=max(1, min(6, len(names))), frameon=False, fontsize=9
        )
        figure.suptitle(f"{title}  (slice {index})" if title else f"slice {index}", fontsize=11)


def best_slice(reference: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> int:
    """Return the slice along axis 0 where the rarest label has most voxels, else the middle one.

    A large structure is visible in many slices, a small one only in a few.
    """
    values, counts = np.unique(reference[reference > 0], return_counts=True)
    if len(values):
        area = (reference == values[np.argmin(counts)]).sum(axis=(1, 2))
    else:
        area = (prediction > 0).sum(axis=(1, 2))
    return int(area.argmax()) if area.any() else len(reference) // 2


def _draw_labels(panel: Any, labels: npt.NDArray[Any]) -> None:
    for value in np.unique(labels[labels > 0]).astype(int):
        mask = labels == value
        filled = np.zeros((*mask.shape, 4), dtype=np.float32)
        filled[mask] = _rgba(int(value), _FILL)
        panel.imshow(filled, origin="lower")
        panel.contour(mask, levels=[0.5], colors=[label_colour(int(value))], linewidths=1.2)


def _swatch(value: int) -> Patch:
    return Patch(color=label_colour(value))


def _rgba(value: int, opacity: float) -> tuple[float, float, float, float]:
    red, green, blue = rgb(label_colour(value))
    return red / 255, green / 255, blue / 255, opacity
