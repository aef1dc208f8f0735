"""Load a raw dataset: list its cases, choose the image reader, and collect problems."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from segwright.core.errors import ImageError, Problem, ProblemReport, SegwrightError, problem_of
from segwright.core.files.names import require_text_path
from segwright.data.cases import Case, Listing, channel_problems, explicit_cases, list_folder
from segwright.data.description import DATASET_JSON, DatasetDescription, load_description
from segwright.data.images.image_io import choose_reader, read_header
from segwright.data.labels import Labels, decoding_problem, gap_problem, ignore_problem

logger = getLogger(__name__)

IMAGES_FOLDER = "imagesTr"
LABELS_FOLDER = "labelsTr"

NO_ENVIRONMENT: Mapping[str, str] = {}

_NUM_EXAMPLES = 3
"""Number of images that are read to find the number of channels per file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A raw dataset whose files all exist; `check` reads them.

    Attributes:
        name: of its folder.
        cases: sorted by identifier; with explicit lists in the order of dataset.json.
        reader: nnU-Net's name of the image reader.
    """

    name: str
    folder: Path
    description: DatasetDescription
    cases: tuple[Case, ...]
    reader: str

    @property
    def labels(self) -> Labels:
        """What the label values mean."""
        return Labels.from_description(self.description)

    @property
    def num_channels(self) -> int:
        """Number of image channels."""
        return len(self.description.channel_names)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """The names of the cases."""
        return tuple(case.identifier for case in self.cases)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult:
    """What a scan of a dataset folder finds, problems included.

    Attributes:
        description: None if dataset.json is missing or invalid; there are no cases then.
        cases: all that were found, complete or not.
        problems: everything that prevents loading the dataset.
        stray: files in the image folder that belong to no case (nnU-Net behaviour 1.3).
        reader: chosen by file ending alone where no example could be read.
    """

    description: DatasetDescription | None
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    stray: tuple[Problem, ...]
    reader: str

    @property
    def num_found(self) -> int:
        """Number of cases, including those that cannot be used."""
        refused = {problem.case for problem in self.problems if problem.case is not None}
        return len(refused | {case.identifier for case in self.cases})


def load(folder: Path, *, environment: Mapping[str, str] = NO_ENVIRONMENT) -> Dataset:
    """Load a raw dataset folder: read dataset.json, list the cases, choose the reader.

    Args:
        folder: holds dataset.json, imagesTr and labelsTr (or explicit file lists in dataset.json).
        environment: variables that explicit file lists may name as `$NAME`.

    Raises:
        ProblemReport: dataset.json, folders or files are missing or wrong; every finding is listed.
    """
    result = scan(folder, environment=environment)
    if result.problems or result.description is None:
        raise ProblemReport(result.problems)
    for problem in result.stray:
        logger.warning("%s", problem)
    declared = result.description.num_training
    if declared != len(result.cases):
        logger.warning("%s: numTraining is %d, found %d cases", folder / DATASET_JSON, declared, len(result.cases))
    return Dataset(
        name=Path(os.path.abspath(folder)).name,
        folder=folder,
        description=result.description,
        cases=result.cases,
        reader=result.reader,
    )


def scan(
    folder: Path, *, environment: Mapping[str, str] = NO_ENVIRONMENT, description: DatasetDescription | None = None
) -> ScanResult:
    """Read dataset.json, list the cases and choose the reader; problems are collected, not raised.

    Args:
        folder: of the dataset.
        environment: variables that explicit file lists may name as `$NAME`.
        description: of a dataset whose dataset.json is not written yet.
    """
    try:
        if description is None:
            description = load_description(require_text_path(folder) / DATASET_JSON)
    except ProblemReport as report:
        return ScanResult(description=None, cases=(), problems=report.problems, stray=(), reader="")
    except SegwrightError as error:
        return ScanResult(description=None, cases=(), problems=(problem_of(error),), stray=(), reader="")
    if description.dataset is not None:
        place = folder / DATASET_JSON
        listing = explicit_cases(place, description.file_lists(), environment)
    else:
        place = folder / IMAGES_FOLDER
        listing = list_folder(place, description.file_ending, labels=folder / LABELS_FOLDER)
    problems = list(listing.problems)
    gap = gap_problem(description.labels)
    if gap is not None and not Labels.from_description(description).has_regions:
        # Heads are numbered without gaps, so training would learn other values than those on disk.
        problems.append(Problem(where=f"{folder / DATASET_JSON}, labels", what=gap))
    problems += _meaning_problems(folder / DATASET_JSON, description)
    if not listing.cases and not listing.problems:
        remedy = "list some, or remove the key 'dataset'"
        problems.append(Problem(where=str(place), what="lists no case", remedy=remedy))
    reader = _choose_reader(listing, description, problems)
    names = tuple(description.channel_names.values())
    problems += _channel_count_problems(listing, names, reader, description.file_ending)
    return ScanResult(
        description=description,
        cases=listing.cases,
        problems=tuple(problems),
        stray=listing.stray,
        reader=reader,
    )


def list_cases(folder: Path, file_ending: str, num_channels: int | None = None) -> tuple[Case, ...]:
    """List the cases of a folder of images to predict (nnU-Net behaviour 1.3, 1.5); their `label` is None.

    Args:
        num_channels: if given, every case must have that many channels.

    Raises:
        ProblemReport: the folder is missing or holds no case, or a case cannot be used; every problem is listed.
    """
    cases, problems = usable_cases(folder, file_ending, num_channels)
    if problems:
        raise ProblemReport(problems)
    return cases


def usable_cases(
    folder: Path, file_ending: str, num_channels: int | None = None
) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    """List the cases of a folder that can be used, and the problems of the others; otherwise as `list_cases`.

    Raises:
        ProblemReport: the folder is missing or holds no usable case, or channels are missing or too many.
    """
    listing = list_folder(require_text_path(folder), file_ending, labels=None)
    problems = list(listing.problems)
    if not listing.cases:
        raise ProblemReport(problems)
    for problem in listing.stray:
        logger.warning("%s", problem)
    if num_channels is not None:
        names = tuple(f"{index:04d}" for index in range(num_channels))
        try:
            reader = choose_reader(file_ending, _first_images(listing))
        except ImageError:
            reader = choose_reader(file_ending, None)
        wrong = _channel_count_problems(listing, names, reader, file_ending)
        if wrong:
            raise ProblemReport([*problems, *wrong])
    refused = {problem.case for problem in problems}
    cases = tuple(case for case in listing.cases if case.identifier not in refused)
    if not cases:
        raise ProblemReport(problems)
    return cases, tuple(problems)


def _meaning_problems(path: Path, description: DatasetDescription) -> list[Problem]:
    """Return label definitions with which a model would predict other labels than intended."""
    found = {
        "labels": ignore_problem(description.labels),
        "regions_class_order": decoding_problem(Labels.from_description(description)),
    }
    return [Problem(where=f"{path}, {key}", what=what) for key, what in found.items() if what is not None]


def _choose_reader(listing: Listing, description: DatasetDescription, problems: list[Problem]) -> str:
    """Choose the reader by the images; add a problem if none can read them."""
    override = description.overwrite_image_reader_writer
    try:
        return choose_reader(description.file_ending, _first_images(listing), override)
    except ImageError as error:
        problems.append(problem_of(error, remedy="replace the file or remove its case"))
    try:
        return choose_reader(description.file_ending, None, override)
    except ImageError:
        return ""


def _first_images(listing: Listing) -> list[Path]:
    """Return the first image of every case that has one."""
    return [case.images[0] for case in listing.cases if case.images and case.images[0].is_file()]


def _channel_count_problems(listing: Listing, names: Sequence[str], reader: str, file_ending: str) -> list[Problem]:
    """Return problems of cases with missing or surplus channels; one RGB(A) or 4D file holds several channels."""
    num_files = len(names)
    if reader and any(len(case.images) != num_files for case in listing.cases):
        examples = _first_images(listing)[:_NUM_EXAMPLES]
        channels_per_file = [count for count in (_num_channels(file, reader) for file in examples) if count > 1]
        fitting = [count for count in channels_per_file if len(names) % count == 0]
        if channels_per_file and not fitting:
            return _wrong_channels(listing, names, reader)
        if fitting:
            num_files //= fitting[0]
    return channel_problems(listing, names[:num_files] if num_files else names, file_ending)


def _wrong_channels(listing: Listing, names: Sequence[str], reader: str) -> list[Problem]:
    """Return problems of cases whose files do not hold as many channels as dataset.json names."""
    problems = []
    for case in listing.cases:
        found = sum(_num_channels(file, reader) for file in case.images)
        if found != len(names):
            what = (
                f"{found} channels in {len(case.images)} file(s), dataset.json names {len(names)} ({', '.join(names)})"
            )
            remedy = (
                "remove the transparency" if (found, len(names)) == (4, 3) else "make channel_names and files agree"
            )
            problems.append(Problem(where=str(case.images[0]), what=what, remedy=remedy, case=case.identifier))
    return problems


def _num_channels(file: Path, reader: str) -> int:
    """Return the number of channels in a file; 1 if it cannot be read, which is reported elsewhere."""
    try:
        return read_header(file, reader).num_channels
    except ImageError:
        return 1
