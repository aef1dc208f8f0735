"""Read one case for an overlay: one channel or the colours of its image, its labels, and a reference.

Legend: S the three spatial axes of the files, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError
from segwright.core.text import listed
from segwright.data.description import DatasetDescription
from segwright.data.images.formats import Header
from segwright.data.images.image_io import Volume, read_images, read_label
from segwright.data.label_maps import distinct_values
from segwright.data.labels import Labels
from segwright.report.case_images import directions_of
from segwright.report.colours import label_positions, legend
from segwright.report.volumes import foreground_window, intensity_window

logger = getLogger(__name__)

Positions = npt.NDArray[np.uint16]

_COLOUR_READER: Final = "NaturalImage2DIO"
_COLOURS: Final = 3
_COLOUR_WINDOW: Final = (0.0, 255.0)

_CT: Final = "ct"
_CT_PERCENTILES: Final = (0.5, 99.5)
_SOFT_TISSUE: Final = (-160.0, 240.0)
"""Usual window of an abdominal CT, in HU; percentiles would depend on how much air is around the patient."""
_MAX_SAMPLE: Final = 500_000
"""Voxels of which percentiles are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSource:
    """The files of a case: its images, its label map or prediction, and a reference, the last two if there are any."""

    identifier: str
    images: tuple[Path, ...]
    labels: Path | None = None
    reference: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How cases are read.

    Attributes:
        description: dataset.json.
        labels: what values mean.
        reader: nnU-Net's name of the image reader.
        channel: index of the channel; None: the colours of an RGB picture, else the first channel.
        label_map: from values in label files to labels.
        reference_map: the same for references.
    """

    description: DatasetDescription
    labels: Labels
    reader: str
    channel: int | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    reference_map: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCase:
    """A case to draw; labels are positions among those of the legend, see `colours.label_positions`.

    Attributes:
        identifier: name of the case.
        image: (C, *S), C is 1, or 3 for colours.
        window: intensities of black and white.
        labels: (*S), None without a label map.
        reference: (*S), None without a reference.
        spacing: of the axes.
        directions: that the axes lead to, see `case_images.directions_of`.
    """

    identifier: str
    image: npt.NDArray[np.float32]
    window: tuple[float, float]
    labels: Positions | None
    reference: Positions | None
    spacing: tuple[float, ...]
    directions: str


def read_case(source: CaseSource, options: ReadOptions) -> ShownCase:
    """Read a case.

    Raises:
        ConfigError: it lacks the channel.
        ImageError: a file cannot be read, or files are on different grids.
    """
    volume, image = _read_image(source, options)
    labels = _read_labels(source.labels, volume.header, options, options.label_map)
    reference = _read_labels(source.reference, volume.header, options, options.reference_map)
    return ShownCase(
        identifier=source.identifier,
        image=image,
        window=_window(image, [each for each in (labels, reference) if each is not None], options),
        labels=labels,
        reference=reference,
        spacing=volume.spacing,
        directions=directions_of(volume.properties),
    )


def shows_colours(source: CaseSource, options: ReadOptions) -> bool:
    """Return whether a case is shown in colours: an RGB(A) picture, unless one channel is chosen."""
    num_channels = len(options.description.channel_names)
    is_one_file = len(source.images) == 1 and num_channels >= _COLOURS
    return options.channel is None and options.reader == _COLOUR_READER and is_one_file


def _read_image(source: CaseSource, options: ReadOptions) -> tuple[Volume, npt.NDArray[np.float32]]:
    """Read the channels to show, and no other files if each holds one channel."""
    channel, files = options.channel or 0, source.images
    are_separate = len(files) == len(options.description.channel_names)
    volume = read_images(files[channel : channel + 1] if are_separate else files, options.reader)
    if shows_colours(source, options) and len(volume.array) >= _COLOURS:
        return volume, volume.array[:_COLOURS]
    index = 0 if are_separate else channel
    if index >= len(volume.array):
        raise ConfigError(
            f"case {source.identifier}: has no channel {channel}; its {len(files)} image file(s) hold "
            f"{len(volume.array)}, counted from 0"
        )
    return volume, volume.array[index : index + 1]


def _read_labels(
    file: Path | None, header: Header, options: ReadOptions, label_map: Mapping[int, int]
) -> Positions | None:
    if file is None:
        return None
    array = read_label(file, options.reader, like=header, label_map=label_map).array[0]
    values = list(legend(options.labels))
    positions = label_positions(array, values, mark_others=True)
    if (positions > len(values)).any():
        unknown = options.labels.undeclared(distinct_values(array))
        logger.warning("%s: label values %s are not in dataset.json, drawn in one more colour", file, listed(unknown))
    return positions


def _window(image: npt.NDArray[np.float32], labels: Sequence[Positions], options: ReadOptions) -> tuple[float, float]:
    """Return the intensities of black and white."""
    if len(image) == _COLOURS:
        return _COLOUR_WINDOW if image.min() >= 0 and image.max() <= _COLOUR_WINDOW[1] else intensity_window(image)
    name = list(options.description.channel_names.values())[options.channel or 0]
    return _ct_window(image[0], labels) if name.casefold() == _CT else intensity_window(image)


def _ct_window(image: npt.NDArray[np.float32], labels: Sequence[Positions]) -> tuple[float, float]:
    """Return the window of soft tissue, or one around the labelled intensities if most of them are outside."""
    inside = [image[each > 0] for each in labels]
    found = np.concatenate(inside) if inside else image[:0]
    if not found.size or np.mean((found >= _SOFT_TISSUE[0]) & (found <= _SOFT_TISSUE[1])) >= 0.5:
        return _SOFT_TISSUE
    low, high = np.percentile(found.ravel()[:: max(1, found.size // _MAX_SAMPLE)], _CT_PERCENTILES)
    return foreground_window(float(low), float(high))
