"""Predict one DICOM study from Python, with the label map as an array."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError, ProblemReport
from segwright.deploy.dicom.cases import read_labels, require_output_types, result_files
from segwright.deploy.dicom.choosing import find_dicom_cases
from segwright.deploy.dicom.predicting import description_of, predict_inputs
from segwright.deploy.dicom.series import SeriesInfo
from segwright.deploy.dicom.sources import opened
from segwright.inference.ensemble import Ensemble
from segwright.inference.prediction import CaseRecord
from segwright.inference.predictor import Predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomPrediction:
    """What was predicted for a study.

    Attributes:
        labels: (frames, rows, columns), frames in order of their position.
        affine: matrix (4, 4) from indices (frame, row, column) to positions in mm, in the patient's axes (L, P, S).
        series: of each channel.
        record: confidence, expected Dice, warnings and times.
        files: that were written: the label map, and DICOM objects.
    """

    labels: npt.NDArray[np.uint16]
    affine: npt.NDArray[np.float64]
    series: tuple[SeriesInfo, ...]
    record: CaseRecord
    files: tuple[Path, ...]


def predict_dicom(
    model: Predictor | Ensemble,
    source: Path,
    output: Path | None = None,
    *,
    series: Sequence[str] = (),
    output_types: Sequence[str] = ("dicom-seg",),
    **options: Any,
) -> DicomPrediction:
    """Predict the one study in a folder, zip file or file of DICOM.

    Args:
        model: made by `segwright.load_model`.
        source: what to predict; several studies are predicted by `predict_files`.
        output: folder for the files; None: nothing is written.
        series: which series to use; see `choosing.find_dicom_cases`.
        output_types: `dicom-seg` and `rtstruct`, written to `output` as well as the label map.
        options: of `predicting.predict_inputs`.

    Raises:
        ProblemReport: no series is a volume, or it cannot be predicted.
        ConfigError: there are several studies, or a package of the extra `dicom` is missing.
    """
    kinds = require_output_types(output_types) if output else ()
    channels = [*description_of(model).channel_names.values()]
    with opened(source) as place, nullcontext(output) if output else TemporaryDirectory() as folder:
        cases, problems = find_dicom_cases(place, channels=channels, series=series)
        if problems:
            raise ProblemReport(problems)
        if len(cases) != 1:
            raise ConfigError(f"{source}: holds {len(cases)} studies; predict_files predicts several")
        [record] = predict_inputs(model, place, Path(folder), series=series, output_types=kinds, **options)
        first = cases[0].channels[0]
        return DicomPrediction(
            labels=read_labels(record.output, first),
            affine=first.affine,
            series=tuple(each.info for each in cases[0].channels),
            record=record,
            files=(record.output, *result_files(cases[0], Path(folder), kinds).values()) if output else (),
        )
