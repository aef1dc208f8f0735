"""What SEG and RTSTRUCT objects share: the masks of segments, the model that made them, and the source's attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from logging import getLogger
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError
from segwright.core.extensions.extras import imports_of
from segwright.core.files.hashing import content_hash
from segwright.deploy.dicom.codes import Segment
from segwright.deploy.dicom.reading import headers_of
from segwright.deploy.dicom.series import Series

logger = getLogger(__name__)

SOFTWARE: Final = "Segwright"
NOTICE: Final = "Not a medical device; not for diagnosis"
"""In every object; at most 64 characters, the length of Content Description."""
CHARACTER_SET: Final = "ISO_IR 192"
"""UTF-8: names of labels may have characters that the source's character set lacks."""
LONG_STRING: Final = 64
"""Characters of a value with representation LO; counted in bytes, as dciodvfy does."""

_REQUIRED_OF_PATIENT_AND_STUDY: Final = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that every object has, empty if unknown; programs that anonymise remove them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """The model that an object says it was made by.

    Attributes:
        name: of the model.
        digest: SHA-256 (hex) of its weights and plan.
    """

    name: str
    digest: str

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> SourceModel:
        """Return the model of a `Predictor.identity`; members of an ensemble are joined."""
        members = identity.get("ensemble", [identity])
        names = [str(member.get("model", "unnamed model")) for member in members]
        digests = [str(member.get("model_hash") or content_hash(member)) for member in members]
        return cls(name=" + ".join(names), digest=digests[0] if len(digests) == 1 else content_hash(digests))

    @property
    def software_versions(self) -> list[str]:
        """Values of Software Versions: of this program, and of the model."""
        return [f"segwright {version('segwright')}", f"model {self.digest[:16]}"]


def mask_of(labels: npt.NDArray[Any], segment: Segment) -> npt.NDArray[np.bool_]:
    """Return the mask of a segment in a label map, of the same shape."""
    return np.isin(labels, segment.values)


def require_same_grid(labels: npt.NDArray[Any], series: Series) -> None:
    """Check that a label map has the size of a series.

    Raises:
        ImageError: it has not.
    """
    if labels.shape != series.shape:
        raise ImageError(
            f"label map of shape {labels.shape}: the series has {series.shape} (frames, rows, columns); write results "
            "for the series that was predicted"
        )


def complete_headers(series: Series) -> list[Any]:
    """Return the data sets of a series without pixels; attributes that an object needs are there, empty if unknown.

    Missing UIDs become those of `series`, a missing frame of reference a new one.
    """
    with imports_of("dicom"):
        from pydicom.uid import generate_uid
    headers = headers_of(series)
    missing = [name for name in _REQUIRED_OF_PATIENT_AND_STUDY if name not in headers[0]]
    frame_of_reference = series.frame_of_reference_uid or generate_uid(entropy_srcs=[series.info.uid])
    if not series.frame_of_reference_uid:
        missing.append("FrameOfReferenceUID")
    own = {"StudyInstanceUID": series.info.study_uid, "SeriesInstanceUID": series.info.uid}
    missing += [name for name in own if not headers[0].get(name)]
    images = {frame.file: frame.uid for frame in series.frames}
    for file, header in zip(series.files, headers, strict=True):
        for name in _REQUIRED_OF_PATIENT_AND_STUDY:
            if name not in header:
                setattr(header, name, None)
        for name, value in own.items():
            setattr(header, name, value)
        header.SOPClassUID, header.SOPInstanceUID = series.sop_class, images[file]
        header.FrameOfReferenceUID = frame_of_reference
    if missing:
        logger.warning(
            "series %s: %s missing in the source, left empty or new in the results; a PACS may not find their patient",
            series.info.uid,
            ", ".join(missing),
        )
    return headers


def shortened(text: str, length: int = LONG_STRING) -> str:
    """Return a text that fits a DICOM string of `length` bytes; backslashes separate values there."""
    return text.replace("\\", "/").encode()[:length].decode(errors="ignore").strip()


def dicom_time(moment: datetime) -> tuple[str, str]:
    """Return date and time as DICOM writes them.

    >>> dicom_time(datetime(2026, 1, 2, 3, 4, 5))
    ('20260102', '030405')
    """
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
