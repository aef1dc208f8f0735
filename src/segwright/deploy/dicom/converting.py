"""Find DICOM series with SEG or RTSTRUCT objects, and their conversion into a raw dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Final

import numpy as np

from segwright.core.errors import ConfigError, Problem, ProblemReport
from segwright.core.text import listed
from segwright.data.cases import Case
from segwright.data.labels import BACKGROUND
from segwright.deploy.dicom.annotations import ANNOTATION_CLASSES, Annotation, read_annotation, voxels_on
from segwright.deploy.dicom.choosing import case_names, channels_of_study, parse_pairs, top_folders
from segwright.deploy.dicom.reading import write_label_map, write_nifti
from segwright.deploy.dicom.series import FoundSeries, RefusedSeries, Series, find_series
from segwright.interop.datasets.conversion import Conversion, Rewrite

logger = getLogger(__name__)

FILE_ENDING: Final = ".nii.gz"
_PART: Final = "Tr"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNames:
    """Which names in SEG and RTSTRUCT objects become which labels.

    Attributes:
        of_patterns: label by name or pattern (`*` stands for any text), the first that matches counts; none to take
            every name as it is.
    """

    of_patterns: Mapping[str, str]

    def label_of(self, name: str) -> str | None:
        """Return the label of a name in an object; None for one that is left out."""
        if not self.of_patterns:
            return name.strip()
        text = name.strip().casefold()
        return next(
            (label for pattern, label in self.of_patterns.items() if fnmatchcase(text, pattern.strip().casefold())),
            None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Annotated:
    """A case of the new dataset.

    Attributes:
        case: its name, the first file of each series and the first object.
        channels: its series.
        of_labels: numbers in each object, with the label that each becomes.
    """

    case: Case
    channels: tuple[Series, ...]
    of_labels: tuple[tuple[Annotation, Mapping[int, str]], ...]


def find_dicom(
    source: Path, *, names: Sequence[str] = (), channel_names: Sequence[str] | None = None, series: Sequence[str] = ()
) -> Conversion:
    """Return the conversion of the series below a folder that SEG or RTSTRUCT objects refer to; pixels stay unread.

    Args:
        source: folder, searched with all folders below it.
        names: `NAME=LABEL` pairs, or a JSON file of them: which names in the objects become which labels. Names with
            several objects or patterns may become one label. Others are left out. By default every name is a label.
        channel_names: of the new dataset; by default one channel, named after the modality. Several are chosen among
            the series of the study, as `choosing.find_dicom_cases` does.
        series: which series the channels are; see there.

    Raises:
        ProblemReport: everything that prevents the conversion.
        ConfigError: pydicom is not installed, or an option is wrong.
    """
    chosen_names = LabelNames(of_patterns=parse_pairs(names, "--names"))
    found = find_series(source)
    annotations = [read_annotation(header.file) for header in found.others if header.sop_class in ANNOTATION_CLASSES]
    if not annotations:
        what = "holds no DICOM SEG or RTSTRUCT object, from which labels are made"
        raise ProblemReport(
            [Problem(where=str(source), what=what, remedy="give a folder with series and their objects")]
        )
    problems: list[Problem] = []
    notes: list[Problem] = []
    by_series = _by_series(found, annotations, problems)
    identifiers = case_names(source, [*by_series])
    patients = dict(zip(identifiers, top_folders(source, [*by_series]), strict=True))
    cases = []
    for (each, objects), identifier in zip(by_series.items(), identifiers, strict=True):
        if case := _annotated(identifier, each, objects, chosen_names, problems, notes):
            try:
                channels = channels_of_study(found, each, channel_names or (), series)
            except ProblemReport as report:
                problems += report.problems
            else:
                files = tuple(channel.files[0] for channel in channels)
                cases.append(replace(case, channels=channels, case=replace(case.case, images=files)))
    unused = len(found.series) - len({channel.info.uid for case in cases for channel in case.channels})
    if unused:
        notes.append(Problem(where=str(source), what=f"{unused} series have no SEG or RTSTRUCT and are left out"))
    if not cases and not problems:
        there = sorted({name for annotation in annotations for name in annotation.names.values()})
        what = f"no object has a name of --names, found: {listed(there)}"
        problems.append(Problem(where=str(source), what=what, remedy="correct the names"))
    if problems:
        raise ProblemReport(problems)
    return _conversion(source, cases, chosen_names, channel_names, patients, notes)


def _by_series(
    found: FoundSeries, annotations: Sequence[Annotation], problems: list[Problem]
) -> dict[Series, list[Annotation]]:
    """Return the objects of each series; those whose series is missing or no volume are problems."""
    volumes = {series.info.uid: series for series in found.series}
    refused = {each.info.uid: each for each in found.refused}
    groups: dict[Series, list[Annotation]] = {}
    for annotation in annotations:
        known = [uid for uid in sorted(annotation.series_uids) if uid in volumes]
        if len(known) == 1:
            groups.setdefault(volumes[known[0]], []).append(annotation)
            continue
        bad: RefusedSeries | None = next((refused[uid] for uid in annotation.series_uids if uid in refused), None)
        what = (
            f"refers to {bad.info}, which {bad.reason}" if bad else "the series that it refers to is not in the folder"
        )
        if len(known) > 1:
            what = f"refers to {len(known)} series: {', '.join(known)}"
        remedy = "add the series, or remove the object"
        problems.append(Problem(where=str(annotation.file), what=what, remedy=remedy))
    return groups


def _annotated(
    identifier: str,
    series: Series,
    objects: Sequence[Annotation],
    names: LabelNames,
    problems: list[Problem],
    notes: list[Problem],
) -> _Annotated | None:
    """Return a case without its channels; None if no name of its objects is wanted."""
    of_labels = []
    for annotation in objects:
        labels = {number: label for number, name in annotation.names.items() if (label := names.label_of(name))}
        if left_out := [name for number, name in annotation.names.items() if number not in labels]:
            notes.append(Problem(where=str(annotation.file), what=f"left out: {listed(left_out)}"))
        if labels:
            of_labels.append((annotation, labels))
    counts = Counter(label for _, labels in of_labels for label in {*labels.values()})
    twice = sorted(label for label, count in counts.items() if count > 1)
    if twice:
        files = ", ".join(annotation.file.name for annotation, labels in of_labels if twice[0] in labels.values())
        what = f"{files}: several objects outline '{twice[0]}' in {series.info}"
        problems.append(Problem(where=identifier, what=what, remedy="keep the one to learn from"))
        return None
    if not of_labels:
        return None
    case = Case(identifier=identifier, images=(), label=of_labels[0][0].file)
    return _Annotated(case=case, channels=(series,), of_labels=tuple(of_labels))


def _conversion(
    source: Path,
    cases: Sequence[_Annotated],
    names: LabelNames,
    channel_names: Sequence[str] | None,
    patients: Mapping[str, str],
    notes: Sequence[Problem],
) -> Conversion:
    """Return what will be written; `patients` has the folder of each case, which all cases of a patient share."""
    used = {label for case in cases for _, labels in case.of_labels for label in labels.values()}
    order = [label for label in dict.fromkeys(names.of_patterns.values()) if label in used] or sorted(used)
    values = {BACKGROUND: 0, **{label: value for value, label in enumerate(order, start=1)}}
    if BACKGROUND in used:
        raise ConfigError(f"'{BACKGROUND}' is the label of everything else; give that name another label")
    rewrites = {}
    for each in cases:
        name = each.case.identifier
        for index, channel in enumerate(each.channels):
            rewrites[f"images{_PART}/{name}_{index:04d}{FILE_ENDING}"] = Rewrite(
                change="DICOM series", write=partial(_write_image, channel)
            )
        rewrites[f"labels{_PART}/{name}{FILE_ENDING}"] = Rewrite(
            change="SEG or RTSTRUCT", write=partial(_write_label_map, each, values)
        )
    modalities = Counter(case.channels[0].info.modality for case in cases)
    channels = channel_names or ["PET" if modality == "PT" else modality for modality, _ in modalities.most_common(1)]
    groups = {each.case.identifier: patients[each.case.identifier] for each in cases}
    return Conversion(
        kind="dicom",
        source=source,
        cases={_PART: tuple(each.case for each in cases)},
        file_ending=FILE_ENDING,
        document={
            "channel_names": {str(index): name for index, name in enumerate(channels)},
            "labels": values,
            "numTraining": len(cases),
            "file_ending": FILE_ENDING,
            **({"groups": groups} if len({*groups.values()}) < len(groups) else {}),
        },
        rewrites=rewrites,
        notes=tuple(notes),
    )


def _write_image(series: Series, source: Path, target: Path) -> None:
    write_nifti(series, target)


def _write_label_map(case: _Annotated, values: Mapping[str, int], source: Path, target: Path) -> None:
    """Write the label map of a case; where segments overlap, the label with the larger value is kept."""
    series = case.channels[0]
    label_map = np.zeros(series.shape, dtype=np.uint16)
    overlap = 0
    for annotation, labels in case.of_labels:
        for number, voxels in voxels_on(annotation, series, [*labels]):
            value, before = values[labels[number]], label_map[voxels]
            overlap += np.count_nonzero((before != 0) & (before != value))
            label_map[voxels] = np.maximum(before, value)
    if overlap:
        logger.warning("%s: %d voxels belong to several labels; they get the last one", case.case.identifier, overlap)
    write_label_map(label_map, series, target)
