"""Write a label map as a DICOM segmentation (SEG) on the grid of its source series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.extensions.extras import imports_of
from segwright.core.files.atomic_io import atomic_path
from segwright.deploy.dicom.codes import Segment, Term
from segwright.deploy.dicom.objects import (
    CHARACTER_SET,
    NOTICE,
    SOFTWARE,
    SourceModel,
    complete_headers,
    mask_of,
    require_same_grid,
    shortened,
)
from segwright.deploy.dicom.series import Series

SERIES_NUMBER: Final = 900
"""Above those of scanners, so that viewers list it last."""


def write_seg(
    labels: npt.NDArray[Any], series: Series, segments: Sequence[Segment], file: Path, *, model: SourceModel
) -> None:
    """Write a label map as a binary SEG; regions that overlap are segments of their own, empty ones stay described.

    Args:
        labels: (frames, rows, columns) in the order of the series' frames, as in the NIfTI file of its prediction.
        series: that was predicted.
        segments: of the model.
        file: new file, replaced if it exists.
        model: that made the label map.

    Raises:
        ImageError: the label map is not of the series.
        ConfigError: highdicom is not installed.
        WorkspaceError: the file cannot be written.
    """
    require_same_grid(labels, series)
    dataset = _segmentation(labels, series, segments, model)
    with atomic_path(file) as temporary:
        dataset.save_as(temporary)


def _segmentation(labels: npt.NDArray[Any], series: Series, segments: Sequence[Segment], model: SourceModel) -> Any:
    with imports_of("dicom"):
        import highdicom as hd
        from pydicom.sr.codedict import codes
    headers = complete_headers(series)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=SOFTWARE, version=model.software_versions[0], family=codes.CID7162.ArtificialIntelligence
    )
    volume = hd.Volume(
        _segment_numbers(labels, segments),
        affine=series.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=headers[0].FrameOfReferenceUID,
        channels={"SegmentNumber": [segment.number for segment in segments]} if _overlap(segments) else None,
    )
    return hd.seg.Segmentation(
        source_images=headers,
        pixel_array=volume,
        segmentation_type="BINARY",
        segment_descriptions=[_description(segment, algorithm) for segment in segments],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=SOFTWARE,
        manufacturer_model_name=shortened(model.name),
        software_versions=model.software_versions,
        device_serial_number=model.digest,
        content_label="SEGMENTATION",
        content_description=NOTICE,
        content_creator_name=f"{SOFTWARE}^Software",
        specific_character_set=CHARACTER_SET,
        series_description=shortened(f"{model.name} ({SOFTWARE})"),
    )


def _overlap(segments: Sequence[Segment]) -> bool:
    values = [value for segment in segments for value in segment.values]
    return len(values) > len({*values})


def _segment_numbers(labels: npt.NDArray[Any], segments: Sequence[Segment]) -> npt.NDArray[Any]:
    """Return the number of each voxel's segment, or masks with segments as the last axis if they overlap."""
    if _overlap(segments):
        return np.stack([mask_of(labels, segment) for segment in segments], axis=-1).astype(np.uint8)
    numbers = np.zeros(labels.shape, dtype=np.uint16)
    for segment in segments:
        numbers[mask_of(labels, segment)] = segment.number
    return numbers


def _description(segment: Segment, algorithm: Any) -> Any:
    import highdicom as hd

    described = hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=shortened(segment.name),
        segmented_property_category=_concept(segment.category),
        segmented_property_type=_concept(segment.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=None if segment.region is None else [_concept(segment.region)],
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )
    if segment.modifier is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(segment.modifier)]
    return described


def _concept(term: Term) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(term.value, term.scheme, shortened(term.meaning))
