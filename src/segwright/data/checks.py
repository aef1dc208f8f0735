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
from segwright.data.cases import Case, surplus_labels
from segwright.data.cropping import content_box
from segwright.data.crossval import splits
from segwright.data.crossval.groups import groups_of
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
from segwright.data.laterality import FoundPairs, PairFinder
from segwright.data.preprocessed.store import CaseStore

SPLITS_JSON = "splits_final.json"

Visitor = Callable[[Case, Volume, Volume], None]
"""Takes a case, its images (C, *S) and its label (1, *S)."""

MAX_VOXEL_RATIO = 64
"""A file with as many times the voxels of its image is reported but not read: it may unpack to gigabytes."""
_UNIT_FACTOR = 100
"""Factor to the usual spacing: mm and micrometres differ by 1000, images that one network can learn by far less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that `check` found.

    Attributes:
        errors: must be fixed before the dataset can be used.
        warnings: worth checking.
        num_cases: number of cases checked.
        mirror_pairs: labels that look like left and right; None without any, or if names or a declaration say so.
    """

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    num_cases: int
    mirror_pairs: FoundPairs | None = None

    @property
    def is_clean(self) -> bool:
        """Whether the dataset can be used."""
        return not self.errors


@dataclass(slots=True)
class _Collector:
    """Findings while they are collected.

    Attributes:
        unreadable: files whose voxels are not read.
        found_labels: label values that occur.
        off_grid: files on another grid than the first image of their case.
        reoriented: files stored along other axes than it.
        orientations: orientation code of the first image to cases.
        flat: first images in 2D.
        spacings: finest spacing of each first image, mm.
    """

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)
    found_labels: set[int] = field(default_factory=set)
    off_grid: set[Path] = field(default_factory=set)
    reoriented: list[Path] = field(default_factory=list)
    orientations: dict[str, list[str]] = field(default_factory=dict)
    flat: set[Path] = field(default_factory=set)
    spacings: dict[Path, float] = field(default_factory=dict)

    def error(self, where: object, what: str, remedy: str = "") -> None:
        self.errors.append(Problem(where=str(where), what=what, remedy=remedy))

    def warn(self, where: object, what: str, remedy: str = "") -> None:
        self.warnings.append(Problem(where=str(where), what=what, remedy=remedy))

    def merge(self, others: Sequence[_Collector]) -> None:
        for other in others:
            # A broken file is found by the scan as well as in its case; report it once.
            known = {problem.where for problem in self.errors}
            self.errors += [p for p in other.errors if not (p.where in known and Path(p.where) in other.unreadable)]
            self.warnings += other.warnings
            self.unreadable |= other.unreadable
            self.found_labels |= other.found_labels
            self.off_grid |= other.off_grid
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
    description: DatasetDescription | None = None,
) -> Findings:
    """Check a raw dataset folder in one pass; bad data is reported, never raised, and nothing is written.

    Headers of all cases are read before any voxel, so that cheap findings do not wait for expensive ones.

    Args:
        environment: variables that explicit file lists may name as `$NAME`.
        workers: threads; all CPUs by default.
        visit: called with every case, in any thread, unless errors were found; saves the caller reading the voxels
            again.
        description: of a dataset whose dataset.json is not written yet.
    """
    scanned = scan(folder, environment=environment, description=description)
    collector = _Collector(errors=list(scanned.problems))
    description = scanned.description
    if description is None:
        return Findings(errors=tuple(collector.errors), warnings=(), num_cases=0)
    _check_description(folder / DATASET_JSON, description, scanned, collector)
    _check_surroundings(folder, description, scanned, collector)
    cases = scanned.cases if scanned.reader else ()
    num_channels = len(description.channel_names)
    counted = {problem.case for problem in scanned.problems}
    collector.merge(
        map_threads(
            lambda case: _check_headers(case, scanned.reader, None if case.identifier in counted else num_channels),
            cases,
            workers=workers,
            describe=lambda case: case.identifier,
            title="headers",
        )
    )
    _report_axes(folder, collector)
    _report_flat(collector, len(cases))
    _report_units(collector)
    labels = Labels.from_description(description)
    unreadable, off_grid = frozenset(collector.unreadable), frozenset(collector.off_grid)
    visit = None if collector.errors else visit
    finder = PairFinder(description, [case.identifier for case in cases], scanned.reader)
    collector.merge(
        map_threads(
            lambda case: _check_voxels(case, scanned.reader, labels, unreadable, off_grid, finder, visit),
            cases,
            workers=workers,
            describe=lambda case: case.identifier,
            title="voxels",
        )
    )
    absent = sorted(set(labels.foreground_labels) - collector.found_labels)
    if absent and cases:
        names = ", ".join(f"{value} ({labels.class_name(value)})" for value in absent)
        collector.warn(folder / DATASET_JSON, f"label {names} occurs in no case", "remove it or check the label files")
    return Findings(
        errors=tuple(collector.errors),
        warnings=tuple(collector.warnings),
        num_cases=len(scanned.cases),
        mirror_pairs=finder.found(),
    )


def _check_description(path: Path, description: DatasetDescription, scanned: ScanResult, collector: _Collector) -> None:
    if description.num_training != scanned.num_found:
        what = f"numTraining is {description.num_training}, found {scanned.num_found} cases"
        collector.error(path, what, "correct the number or add the missing files")
    gap = gap_problem(description.labels)
    if gap is not None and Labels.from_description(description).has_regions:
        collector.error(f"{path}, labels", gap)  # without regions the scan has reported it
    expected = [str(index) for index in range(len(description.channel_names))]
    if list(description.channel_names) != expected:
        what = f"channel_names are numbered {', '.join(description.channel_names)}, expected {', '.join(expected)}"
        collector.warn(path, what, "the order of the entries is what counts, not their numbers")


def _check_surroundings(
    folder: Path, description: DatasetDescription, scanned: ScanResult, collector: _Collector
) -> None:
    """Check what else the dataset holds: stray files, surplus labels, groups of cases, its own splits."""
    collector.warnings += scanned.stray
    collector.errors += CaseStore.clash_problems(folder.name, [case.identifier for case in scanned.cases])
    if description.dataset is None and (folder / LABELS_FOLDER).is_dir():
        for file in surplus_labels(folder / LABELS_FOLDER, scanned.cases, description.file_ending):
            collector.warn(file, "label without an image", "add the images or remove the label")
    identifiers = [case.identifier for case in scanned.cases]
    try:
        groups_of(description.groups, identifiers, folder=folder)
    except SegwrightError as error:
        collector.error(f"{folder / DATASET_JSON}, groups", str(error))
    path = folder / SPLITS_JSON
    if path.is_file():
        _check_splits(path, identifiers, collector)


def _check_splits(path: Path, identifiers: Sequence[str], collector: _Collector) -> None:
    try:
        folds = splits.load(path)
    except SegwrightError as error:
        collector.errors.append(problem_of(error))
        return
    for index, fold in enumerate(folds):
        where = f"{path}, fold {index}"
        unknown = splits.unknown_identifiers(fold, identifiers)
        if unknown:
            collector.error(
                where, f"the dataset has no case {splits.shorten(unknown)}", "correct the names or add the cases"
            )
        if not fold.train or not fold.val:
            collector.error(
                where,
                f"{len(fold.train)} training and {len(fold.val)} validation cases",
                "put at least one case into both",
            )
        shared = splits.overlap(fold)
        if shared:
            collector.warn(where, f"{splits.shorten(shared)} in both train and val", "scores of this fold are too good")


def _check_headers(case: Case, reader: str, num_channels: int | None) -> _Collector:
    """Compare the grids of all files of a case, and its channels if `num_channels` is given, without reading voxels."""
    collector = _Collector()
    headers: dict[Path, Header] = {}
    for file in (*case.images, *([case.label] if case.label is not None else [])):
        if not file.is_file():
            collector.unreadable.add(file)  # reported by the scan
            continue
        try:
            headers[file] = read_header(file, reader, is_label=file == case.label)
        except SegwrightError as error:
            collector.unreadable.add(file)
            collector.error(file, str(error).removeprefix(f"{file}: "), "replace the file or remove its case")
    images = [file for file in case.images if file in headers]
    collector.flat |= {file for file in images[:1] if headers[file].is_flat}
    collector.spacings |= {file: min(headers[file].spacing) for file in images[:1]}
    found = sum(headers[file].num_channels for file in images)
    if num_channels is not None and len(images) == len(case.images) and found != num_channels:
        what = f"case '{case.identifier}' has {found} channels, dataset.json names {num_channels}"
        collector.error(case.images[0], what, "make channel_names and files agree")
    if case.label is not None and case.label in headers and headers[case.label].num_channels != 1:
        collector.unreadable.add(case.label)
        what = f"has {headers[case.label].num_channels} channels, a label map has one whole number per voxel"
        collector.error(case.label, what, "save it as a single-channel image")
    for file in headers:
        _compare_grids(file, headers, images, collector)
    code = orientation_code({"geometry": headers[images[0]].geometry}) if images else None
    if code is not None:
        collector.orientations[code] = [case.identifier]
    return collector


def _compare_grids(file: Path, headers: Mapping[Path, Header], images: Sequence[Path], collector: _Collector) -> None:
    """Compare a file with the first readable image of its case."""
    if not images or file == images[0]:
        return
    reorientation = find_reorientation(headers[file], headers[images[0]])
    if reorientation is None:
        collector.off_grid.add(file)
        if prod(headers[file].shape) > MAX_VOXEL_RATIO * prod(headers[images[0]].shape):
            collector.unreadable.add(file)
        collector.errors.append(grid_problem(headers[file], headers[images[0]], file=file, name=images[0].name))
    elif not reorientation.is_identity:
        collector.reoriented.append(file)


def _report_axes(folder: Path, collector: _Collector) -> None:
    """Report once which files are stored along other axes, within cases and among them."""
    if collector.reoriented:
        what = f"{len(collector.reoriented)} files are stored along other axes than the first image of their case"
        collector.warn(
            folder, f"{what}, first {collector.reoriented[0].name}", "their voxels are re-oriented when read"
        )
    if len(collector.orientations) > 1:
        found = sorted(collector.orientations.items(), key=lambda item: -len(item[1]))
        counts = ", ".join(f"{code} in {len(cases)} (first {cases[0]})" for code, cases in found)
        remedy = "'segwright plan --reorient' turns all of them to one orientation"
        collector.warn(folder, f"the axes of images run differently among cases: {counts}", remedy)


def _report_units(collector: _Collector) -> None:
    """Report images whose voxels are so much larger or smaller than those of others that a unit must be wrong."""
    usual = float(np.median([*collector.spacings.values()])) if collector.spacings else 0.0
    for file, spacing in collector.spacings.items():
        if not usual / _UNIT_FACTOR <= spacing <= usual * _UNIT_FACTOR:
            what = f"voxels of {spacing:g} mm, most other images have {usual:g} mm"
            collector.warn(file, what, "check the spacing and its unit in the header (micrometres written as mm?)")


def _report_flat(collector: _Collector, num_cases: int) -> None:
    """Report 2D images among 3D ones; resampling would turn each into a stack of hundreds of slices."""
    if len(collector.flat) <= num_cases // 2:
        for file in sorted(collector.flat):
            collector.error(
                file, "is a 2D image, most cases are 3D", "remove the case, or make a dataset of 2D images alone"
            )


def _check_voxels(
    case: Case,
    reader: str,
    labels: Labels,
    unreadable: frozenset[Path],
    off_grid: frozenset[Path],
    finder: PairFinder,
    visit: Visitor | None,
) -> _Collector:
    """Check for NaN and infinite values, and for labels that dataset.json does not declare.

    Args:
        case: its files.
        reader: name of the image reader.
        labels: of the dataset.
        unreadable: files that are skipped.
        off_grid: files on another grid than the first image of their case; they are not re-oriented.
        finder: gets the label map if the case has no error.
        visit: called with the case if it has no error.
    """
    collector = _Collector()
    volumes: list[Volume] = []
    for file in case.images:
        if file in unreadable:
            continue
        try:
            volume = read_images([file], reader, find_nonfinite=True)
        except SegwrightError as error:
            collector.error(file, str(error).removeprefix(f"{file}: "), "replace the file or remove its case")
            continue
        volumes.append(_reorient(volume, volumes[0]) if volumes else volume)
        collector.warnings += volume.notes
    if case.label is None or case.label in unreadable:
        return collector
    try:
        label = read_label(
            case.label,
            reader,
            like=None if case.label in off_grid or not volumes else volumes[0].header,
            label_map=labels.label_map,
        )
    except SegwrightError as error:
        collector.error(case.label, str(error).removeprefix(f"{case.label}: "), "replace the file or remove its case")
        return collector
    _check_values(case.label, label.array, labels, collector)
    if not collector.errors and len(volumes) == len(case.images) and not off_grid.intersection(case.images):
        arrays = [volume.array for volume in volumes]
        images = replace(volumes[0], array=arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
        if images.array.shape[1:] == label.array.shape[1:]:
            _check_cropped_labels(case.label, images, label, collector)
            finder.add(case.identifier, label)
        if visit is not None:
            visit(case, images, label)
    return collector


def _reorient(volume: Volume, first: Volume) -> Volume:
    reorientation = find_reorientation(volume.header, first.header)
    return volume if reorientation is None else replace(volume, array=reorientation(volume.array))


def _check_cropped_labels(file: Path, images: Volume, label: Volume, collector: _Collector) -> None:
    """Warn about foreground that is cropped away with the border in which all channels are 0."""
    total = np.count_nonzero(label.array)
    lost = total - np.count_nonzero(crop(label.array, content_box(images.array)))
    if lost:
        what = f"{100 * lost / total:.2g} % of the labelled voxels lie in the border where all channels are 0"
        collector.warn(file, f"{what}, which is cropped away", "check whether image and label belong together")


def _check_values(file: Path, label: npt.NDArray[np.float32], labels: Labels, collector: _Collector) -> None:
    """Check that a label map has foreground, and declared values only."""
    found = distinct_values(label)
    collector.found_labels.update(found)
    unexpected = labels.undeclared(found)
    if unexpected:
        declared = ", ".join(map(str, labels.declared_values))
        collector.error(
            file,
            f"unexpected label value {listed(unexpected)}, dataset.json declares {declared}",
            "correct one of them, or add a label_map that says which label it is",
        )
    elif found == (0,):
        collector.warn(file, "has only background", "check the label file")
