"""DICOM studies as cases of a server: one study, its size checked by its headers, and its images for the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from segwright.core.errors import ConfigError, SegwrightError
from segwright.deploy.dicom.cases import stage_case
from segwright.deploy.dicom.choosing import DicomCase, find_dicom_cases
from segwright.deploy.serve.models import ServedModel
from segwright.deploy.serve.refusals import Refusal, refusal_of


def require_one_study(folder: Path, model: ServedModel, *, max_voxels: int) -> DicomCase:
    """Return the study in a folder after checking that the model can predict it.

    Raises:
        Refusal: there are none or several, or its series do not fit the model (422), it is too large (413), or the
            server lacks the packages for DICOM (415).
    """
    try:
        cases, problems = find_dicom_cases(folder, channels=model.channels)
    except ConfigError as error:
        raise refusal_of(error, 415) from error
    except SegwrightError as error:
        raise refusal_of(error, 422, f"{folder}: ", f"{folder}", folder.name) from error
    if len(cases) != 1 or problems:
        raise Refusal(
            422,
            f"the zip file holds {len(cases) + len(problems)} DICOM studies",
            expected="one",
            remedy="send each study in a request of its own",
        )
    for series in cases[0].channels:
        if prod(series.shape) > max_voxels:
            raise Refusal(
                413,
                f"a series has {' x '.join(map(str, series.shape))} = {prod(series.shape)} voxels",
                expected=f"at most {max_voxels}",
                remedy="send a part of the series",
            )
    return cases[0]


@contextmanager
def staged_images(folder: Path, model: ServedModel, scratch: Path) -> Iterator[tuple[Path, ...]]:
    """Write the series of the study in a folder as image files, for the time of a block."""
    [case], _ = find_dicom_cases(folder, channels=model.channels)
    with TemporaryDirectory(dir=scratch) as staged:
        yield stage_case(case, Path(staged))
