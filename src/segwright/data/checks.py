"""Check a raw dataset for everything that could go wrong later, and report it all at once (nnU-Net behaviour 1.7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import crop
from segwright.core.errors import Problem, SegwrightError, problem_of
from segwright.core.parallel import map_threads
from segwright.core.text import listed
from segwright.data import splits
from segwright.data.cases import Case, surplus_labels
from segwright.data.cropping import content_box
from segwright.data.dataset import LABELS_FOLDER, NO_ENVIRONMENT, ScanResult, scan
from segwright.data.description import DATASET_JSON, DatasetDescription
from segwright.data.images.formats import Header
from segwright.data.images.geometry import find_reorientation, grid_problem
from segwright.data.images.image_io import (
    Volume,
    read_header,
    read_images,
    read_label,
)
from segwright.data.images.orientation import orientation_code
from segwright.data.label_maps import distinct_values
from segwright.data.labels import Labels, gap_problem
from segwright.data.preprocessed.store import CaseStore

SPLITS_JSON = "splits_final.json"

Visitor = Callable[[Case, Volume, Volume], None]
"""Takes a case, its images (C, *S) and its label (1, *S)."""

MAX_VOXEL_RATIO = 64
"""A file with as many times the voxels of its image is reported but not read: it may unpack to gigabytes."""
_UNIT = 100
"""Factor to the usual spacing: mm and micrometres differ by 1000, images that one network can learn by far less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that `check` found.

    Attributes:
        errors: must be fixed before the dataset can be used.
        warnings: worth checking.
        num_cases: number of cases checked.
    """

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    num_cases: int

    @property
    def is_clean(self) -> bool:
        """Whether the dataset can be used."""
        return not self.errors


@dataclass(slots=True)
class _Log:
    """Findings while they are collected.

    Of the first image of each case, `flat` lists those in 2D and `spacings` has the finest spacing in mm; `present` are
    the label values that occur, `apart` files on another grid, `reoriented` files stored along other axes.
    """

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)
    present: set[int] = field(default_factory=set)
    apart: set[Path] = field(default_factory=set)
    reoriented: list[Path] = field(default_factory=list)
    orientations: dict[str, list[str]] = field(default_factory=dict)
    flat: set[Path] = field(default_factory=set)
    spacings: dict[Path, float] = field(default_factory=dict)

    def error(self, where: object, what: str, remedy: str = "") -> None:
        self.errors.append(Problem(where=str(where), what=what, remedy=remedy))

    def warn(self, where: object, what: str, remedy: str = "") -> None:
        self.warnings.append(Problem(where=str(where), what=what, remedy=remedy))

    def absorb(self, others: Sequence[_Log]) -> None:
        for other in others:
            # A broken file is found by the scan as well as in its case; report it once.
            known = {problem.where for problem in self.errors}
            self.errors += [p for p in other.errors if not (p.where in known and Path(p.where) in other.unreadable)]
            self.warnings += other.warnings
            self.unreadable |= other.unreadable
            self.present |= other.present
            self.apart |= other.apart
            self.reoriented += other.reoriented
            for code, cases in other.orientations.items():
                self.orientations.setdefault(code, []).extend(cases)
            self.flat |= other.flat
            self.spacings |= other.spacings


def check(
    folder: Path,
    *,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    workers: int | None = None,
    visit: Visitor | None = None,
) -> Findings:
    """Check a raw dataset folder in one pass; bad data is reported, never raised, and nothing is written.

    Headers of all cases are read before any voxel, so that cheap findings do not wait for expensive ones.

    Args:
        environment: variables that explicit file lists may name as `$NAME`.
        workers: threads; all CPUs by default.
        visit: called with every case, in any thread, unless errors were found; saves the caller reading the voxels
            again.
    """
    scanned = scan(folder, environment=environment)
    log = _Log(errors=list(scanned.problems))
    description = scanned.description
    if description is None:
        return Findings(errors=tuple(log.errors), warnings=(), num_cases=0)
    _check_description(folder / DATASET_JSON, description, scanned, log)
    _check_surroundings(folder, description, scanned, log)
    cases = scanned.cases if scanned.reader else ()
    num_channels = len(description.channel_names)
    counted = {problem.case for problem in scanned.problems}
    log.absorb(
        map_threads(
            lambda case: _check_headers(case, scanned.reader, None if case.identifier in counted else num_channels),
            cases,
            workers=workers,
            describe=lambda case: case.identifier,
            title="headers",
        )
    )
    _report_axes(folder, log)
    _report_flat(log, len(cases))
    _report_units(log)
    labels = Labels.from_description(description)
    unreadable, apart = frozenset(log.unreadable), frozenset(log.apart)
    visit = None if log.errors else visit
    log.absorb(
        map_threads(
            lambda case: _check_voxels(case, scanned.reader, labels, unreadable, apart, visit),
            cases,
            workers=workers,
            describe=lambda case: case.identifier,
            title="voxels",
        )
    )
    absent = sorted(set(labels.foreground_labels) - log.present)
    if absent and cases:
        names = ", ".join(f"{value} ({labels.class_name(value)})" for value in absent)
        log.warn(folder / DATASET_JSON, f"label {names} occurs in no case", "remove it or check the label files")
    return Findings(errors=tuple(log.errors), warnings=tuple(log.warnings), num_cases=len(scanned.cases))


def _check_description(path: Path, description: DatasetDescription, scanned: ScanResult, log: _Log) -> None:
    if description.num_training != scanned.num_found:
        what = f"numTraining is {description.num_training}, found {scanned.num_found} cases"
        log.error(path, what, "correct the number or add the missing files")
    gap = gap_problem(description.labels)
    if gap is not None and Labels.from_description(description).has_regions:
        log.error(f"{path}, labels", gap)  # without regions the scan has reported it
    expected = [str(index) for index in range(len(description.channel_names))]
    if list(description.channel_names) != expected:
        what = f"channel_names are numbered {', '.join(description.channel_names)}, expected {', '.join(expected)}"
        log.warn(path, what, "the order of the entries is what counts, not their numbers")


def _check_surroundings(folder: Path, description: DatasetDescription, scanned: ScanResult, log: _Log) -> None:
    """Check what else the dataset holds: stray files, surplus labels, its own splits."""
    log.warnings += scanned.stray
    log.errors += CaseStore.clash_problems(folder.name, [case.identifier for case in scanned.cases])
    if description.dataset is None and (folder / LABELS_FOLDER).is_dir():
        for file in surplus_labels(folder / LABELS_FOLDER, scanned.cases, description.file_ending):
            log.warn(file, "label without an image", "add the images or remove the label")
    path = folder / SPLITS_JSON
    if path.is_file():
        _check_splits(path, [case.identifier for case in scanned.cases], log)


def _check_splits(path: Path, identifiers: Sequence[str], log: _Log) -> None:
    try:
        folds = splits.load(path)
    except SegwrightError as error:
        log.errors.append(problem_of(error))
        return
    for index, fold in enumerate(folds):
        where = f"{path}, fold {index}"
        unknown = splits.unknown_identifiers(fold, identifiers)
        if unknown:
            log.error(where, f"the dataset has no case {splits.shorten(unknown)}", "correct the names or add the cases")
        if not fold.train or not fold.val:
            log.error(
                where,
                f"{len(fold.train)} training and {len(fold.val)} validation cases",
                "put at least one case into both",
            )
        shared = splits.overlap(fold)
        if shared:
            log.warn(where, f"{splits.shorten(shared)} in both train and val", "scores of this fold are too good")


def _check_headers(case: Case, reader: str, num_channels: int | None) -> _Log:
    """Compare the grids of all files of a case, and its channels if `num_channels` is given, without reading voxels."""
    log = _Log()
    headers: dict[Path, Header] = {}
    for file in (*case.images, *([case.label] if case.label is not None else [])):
        if not file.is_file():
            log.unreadable.add(file)  # reported by the scan
            continue
        try:
            headers[file] = read_header(file, reader, is_label=file == case.label)
        except SegwrightError as error:
            log.unreadable.add(file)
            log.error(file, str(error).removeprefix(f"{file}: "), "replace the file or remove its case")
    images = [file for file in case.images if file in headers]
    log.flat |= {file for file in images[:1] if headers[file].is_flat}
    log.spacings |= {file: min(headers[file].spacing) for file in images[:1]}
    found = sum(headers[file].num_channels for file in images)
    if num_channels is not None and len(images) == len(case.images) and found != num_channels:
        what = f"case '{case.identifier}' has {found} channels, dataset.json names {num_channels}"
        log.error(case.images[0], what, "make channel_names and files agree")
    if case.label is not None and case.label in headers and headers[case.label].num_channels != 1:
        log.unreadable.add(case.label)
        what = f"has {headers[case.label].num_channels} channels, a label map has one whole number per voxel"
        log.error(case.label, what, "save it as a single-channel image")
    for file in headers:
        _compare_grids(file, headers, images, log)
    code = orientation_code({"geometry": headers[images[0]].geometry}) if images else None
    if code is not None:
        log.orientations[code] = [case.identifier]
    return log


def _compare_grids(file: Path, headers: Mapping[Path, Header], images: Sequence[Path], log: _Log) -> None:
    """Compare a file with the first readable image of its case."""
    if not images or file == images[0]:
        return
    reorientation = find_reorientation(headers[file], headers[images[0]])
    if reorientation is None:
        log.apart.add(file)
        if prod(headers[file].shape) > MAX_VOXEL_RATIO * prod(headers[images[0]].shape):
            log.unreadable.add(file)
        log.errors.append(grid_problem(headers[file], headers[images[0]], file=file, name=images[0].name))
    elif not reorientation.is_identity:
        log.reoriented.append(file)


def _report_axes(folder: Path, log: _Log) -> None:
    """Report once which files are stored along other axes, within cases and among them."""
    if log.reoriented:
        what = f"{len(log.reoriented)} files are stored along other axes than the first image of their case"
        log.warn(folder, f"{what}, first {log.reoriented[0].name}", "their voxels are re-oriented when read")
    if len(log.orientations) > 1:
        found = sorted(log.orientations.items(), key=lambda item: -len(item[1]))
        counts = ", ".join(f"{code} in {len(cases)} (first {cases[0]})" for code, cases in found)
        remedy = "'segwright plan --reorient' turns all of them to one orientation"
        log.warn(folder, f"the axes of images run differently among cases: {counts}", remedy)


def _report_units(log: _Log) -> None:
    """Report images whose voxels are so much larger or smaller than those of others that a unit must be wrong."""
    usual = float(np.median([*log.spacings.values()])) if log.spacings else 0.0
    for file, spacing in log.spacings.items():
        if not usual / _UNIT <= spacing <= usual * _UNIT:
            what = f"voxels of {spacing:g} mm, most other images have {usual:g} mm"
            log.warn(file, what, "check the spacing and its unit in the header (micrometres written as mm?)")


def _report_flat(log: _Log, num_cases: int) -> None:
    """Report 2D images among 3D ones; resampling would turn each into a stack of hundreds of slices."""
    if len(log.flat) <= num_cases // 2:
        for file in sorted(log.flat):
            log.error(file, "is a 2D image, most cases are 3D", "remove the case, or make a dataset of 2D images alone")


def _check_voxels(
    case: Case,
    reader: str,
    labels: Labels,
    unreadable: frozenset[Path],
    apart: frozenset[Path],
    visit: Visitor | None,
) -> _Log:
    """Check for NaN and infinite values, and for labels that dataset.json does not declare."""
    log = _Log()
    volumes: list[Volume] = []
    for file in case.images:
        if file in unreadable:
            continue
        try:
            volume = read_images([file], reader, find_hidden=True)
        except SegwrightError as error:
            log.error(file, str(error).removeprefix(f"{file}: "), "replace the file or remove its case")
            continue
        volumes.append(_reoriented(volume, volumes[0]) if volumes else volume)
        log.warnings += volume.notes
    if case.label is None or case.label in unreadable:
        return log
    try:
        label = read_label(case.label, reader, like=None if case.label in apart or not volumes else volumes[0].header)
    except SegwrightError as error:
        log.error(case.label, str(error).removeprefix(f"{case.label}: "), "replace the file or remove its case")
        return log
    _check_values(case.label, label.array, labels, log)
    if not log.errors and len(volumes) == len(case.images) and not apart.intersection(case.images):
        arrays = [volume.array for volume in volumes]
        images = replace(volumes[0], array=arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
        if images.array.shape[1:] == label.array.shape[1:]:
            _check_outside(case.label, images, label, log)
        if visit is not None:
            visit(case, images, label)
    return log


def _reoriented(volume: Volume, first: Volume) -> Volume:
    reorientation = find_reorientation(volume.header, first.header)
    return volume if reorientation is None else replace(volume, array=reorientation(volume.array))


def _check_outside(file: Path, images: Volume, label: Volume, log: _Log) -> None:
    """Warn about foreground that is cropped away with the border in which all channels are 0."""
    total = np.count_nonzero(label.array)
    lost = total - np.count_nonzero(crop(label.array, content_box(images.array)))
    if lost:
        what = f"{100 * lost / total:.2g} % of the labelled voxels lie in the border where all channels are 0"
        log.warn(file, f"{what}, which is cropped away", "check whether image and label belong together")


def _check_values(file: Path, label: npt.NDArray[np.float32], labels: Labels, log: _Log) -> None:
    found = distinct_values(label)
    log.present.update(found)
    unexpected = labels.undeclared(found)
    if unexpected:
        declared = ", ".join(map(str, labels.declared_values))
        log.error(
            file,
            f"unexpected label value {listed(unexpected)}, dataset.json declares {declared}",
            "correct one of them",
        )
    elif found == (0,):
        log.warn(file, "has only background", "check the label file")
