"""The way of one DICOM case: its series become image files, and the label map predicted from them DICOM objects."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.files.names import below
from segwright.data.images.formats import Header
from segwright.data.images.image_io import read_label
from segwright.deploy.dicom.choosing import DicomCase
from segwright.deploy.dicom.codes import Segment
from segwright.deploy.dicom.objects import SourceModel
from segwright.deploy.dicom.reading import write_nifti
from segwright.deploy.dicom.rtstruct import Holes, write_rtstruct
from segwright.deploy.dicom.seg import write_seg
from segwright.deploy.dicom.series import Series

logger = getLogger(__name__)

OutputType = Literal["nifti", "dicom-seg", "rtstruct"]
OUTPUT_TYPES: Final[tuple[OutputType, ...]] = ("nifti", "dicom-seg", "rtstruct")
_NAMES: Final = {"dicom-seg": "{case}_seg.dcm", "rtstruct": "{case}_rtstruct.dcm"}

_READER: Final = "SimpleITKIO"
"""Reads the label maps of every reader but those of pictures, on the grid on which they were written."""


def require_output_types(names: Sequence[str]) -> tuple[OutputType, ...]:
    """Return the output types after checking them.

    Raises:
        ConfigError: one is unknown.
    """
    for name in names:
        if name not in OUTPUT_TYPES:
            raise ConfigError(f"unknown output type '{name}'{did_you_mean(name, OUTPUT_TYPES)}")
    return tuple(known for known in OUTPUT_TYPES if known in names)


def stage_case(case: DicomCase, folder: Path) -> tuple[Path, ...]:
    """Write the series of a case as the image files of its channels, `CASE_0000.nii` and so on.

    Args:
        case: of `find_dicom_cases`.
        folder: an existing folder; each channel needs four bytes for each voxel there.

    Raises:
        ImageError: pixels cannot be decoded.
    """
    files = tuple(below(folder, f"{case.identifier}_{index:04d}.nii") for index in range(len(case.channels)))
    for file, series in zip(files, case.channels, strict=True):
        for note in series.notes:
            logger.warning("%s, %s: %s", case.identifier, series.info, note)
        write_nifti(series, file)
    return files


def read_labels(label_map: Path, series: Series) -> npt.NDArray[np.uint16]:
    """Return the labels (frames, rows, columns) of a file on the grid of a series, in the order of its frames.

    Raises:
        ImageError: the label map lies on another grid.
    """
    array = read_label(label_map, _READER, like=_grid_of(series), name=str(series.info)).array[0]
    labels: npt.NDArray[np.uint16] = np.rint(array).astype(np.uint16)
    return labels


def result_files(case: DicomCase, folder: Path, output_types: Sequence[OutputType]) -> dict[OutputType, Path]:
    """Return the DICOM files that a case gets in a folder; its label map is not one of them."""
    return {kind: below(folder, _NAMES[kind].format(case=case.identifier)) for kind in output_types if kind in _NAMES}


def write_results(
    label_map: Path,
    case: DicomCase,
    folder: Path,
    *,
    output_types: Sequence[OutputType],
    segments: Sequence[Segment],
    model: SourceModel,
    holes: Holes = "xor",
) -> tuple[Path, ...]:
    """Write the label map of a case as DICOM objects that refer to the series of its first channel.

    Args:
        label_map: file on the grid of the series, as predicted from `stage_case`'s files.
        case: whose source files are still there.
        folder: gets `CASE_seg.dcm` and `CASE_rtstruct.dcm`.
        output_types: which of them.
        segments: of the model; see `codes.guess_segments`.
        model: that predicted the label map; see `SourceModel.of_identity`.
        holes: see `write_rtstruct`.

    Returns:
        The files.

    Raises:
        ImageError: the label map lies on another grid.
        WorkspaceError: a file cannot be written.
    """
    series = case.channels[0]
    labels = read_labels(label_map, series)
    files = result_files(case, folder, output_types)
    for kind, file in files.items():
        if kind == "dicom-seg":
            write_seg(labels, series, segments, file, model=model)
        else:
            write_rtstruct(labels, series, segments, file, model=model, holes=holes)
    return tuple(files.values())


def _grid_of(series: Series) -> Header:
    geometry = {
        "spacing": list(series.spacing[::-1]),
        "origin": list(series.origin),
        "direction": [cosine for line in series.direction for cosine in line],
    }
    return Header(shape=series.shape, spacing=series.spacing, geometry=geometry)
