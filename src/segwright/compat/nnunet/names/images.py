"""nnU-Net's interface of an image reader and writer, over `data.images`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.data.images.image_io import Volume, read_images, read_label, write_labels
from segwright.data.label_maps import NO_LABEL_MAP


class ImageReaderWriter:
    """Reads images and label maps, and writes label maps.

    Args:
        reader: name of the reader in the plan.
        label_map: from values in label files of the dataset to labels. Predictions hold none of these values, so that
            they are read as they are.
    """

    def __init__(self, reader: str, label_map: Mapping[int, int] = NO_LABEL_MAP) -> None:
        self.reader = reader
        self.label_map = label_map

    def read_images(
        self, image_fnames: Sequence[str | PathLike[str]]
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return the channels of a case (C, *S), and what `write_seg` needs, with the `spacing`."""
        return _with_properties(read_images([Path(name) for name in image_fnames], self.reader))

    def read_seg(self, seg_fname: str | PathLike[str]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return a label map (1, *S), its values mapped to labels, and what `write_seg` needs, with the `spacing`."""
        return _with_properties(read_label(Path(seg_fname), self.reader, label_map=self.label_map))

    def write_seg(
        self, seg: npt.NDArray[Any], output_fname: str | PathLike[str], properties: Mapping[str, Any]
    ) -> None:
        """Write a label map (*S)."""
        write_labels(np.asarray(seg), Path(output_fname), properties, self.reader)


def _with_properties(volume: Volume) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    return volume.array, {**volume.properties, "spacing": volume.spacing}
