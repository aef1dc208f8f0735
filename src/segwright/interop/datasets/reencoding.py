"""Store images of several formats as files of one ending, with the same values and geometry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from segwright.core.errors import ImageError, Problem, ProblemReport, problem_of
from segwright.core.files.atomic_io import atomic_path
from segwright.data.cases import Case
from segwright.data.images.formats import Floats, Refusal
from segwright.data.images.geometry import find_reorientation
from segwright.data.images.image_io import READERS, choose_reader, read_images, read_label
from segwright.data.images.readers.itk import reencode_volume
from segwright.data.images.readers.nifti_channels import nifti_shape
from segwright.data.images.readers.nifti_header import ENDINGS as NIFTI_ENDINGS
from segwright.data.images.readers.pictures import write_picture
from segwright.data.images.readers.tiff import ENDINGS as TIFF_ENDINGS
from segwright.interop.datasets.conversion import Rewrite
from segwright.interop.datasets.file_names import ending_of

_VOLUMES: Final = "SimpleITKIO"
PICTURE_READER: Final = "NaturalImage2DIO"
_FAMILIES: Final[Mapping[str, frozenset[str]]] = {
    _VOLUMES: frozenset({*READERS[_VOLUMES].endings, *NIFTI_ENDINGS}),
    PICTURE_READER: frozenset({*READERS[PICTURE_READER].endings, *TIFF_ENDINGS}),
}
"""Readers that read every one of some endings."""
PICTURE_ENDINGS: Final = _FAMILIES[PICTURE_READER]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unified:
    """How files become files of one ending; those that are named nowhere have it.

    Attributes:
        num_split: as of `Conversion`.
        rewrites: as of `Conversion`.
        problems: files for which there is no way.
    """

    num_split: dict[Path, int] = field(default_factory=dict)
    rewrites: dict[str, Rewrite] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def common_ending(cases: Sequence[Case]) -> str:
    """Return the ending of most first images as it is spelled, or one whose reader reads all files.

    Raises:
        ProblemReport: no reader reads all files.
        ImageError: images cannot be read.
    """
    images = [case.images[0] for case in cases]
    files = [file for case in cases for file in (*case.images, case.label) if file is not None]
    counts = Counter(ending_of(image.name) for image in images)
    usual = max(counts, key=lambda ending: (counts[ending], ending.lower() == NIFTI_ENDINGS[1]))
    first = next(image for image in images if ending_of(image.name) == usual)
    endings = {ending_of(file.name).lower(): file for file in reversed(files)}
    family = next(each for each in _FAMILIES.values() if usual.lower() in each)
    if others := [file for ending, file in endings.items() if ending not in family]:
        what = f"ends in {ending_of(others[0].name)}, and {first.name} in {usual}, which need different readers"
        raise ProblemReport([Problem(where=str(others[0]), what=what, remedy="convert the files of one ending")])
    if usual.lower() in NIFTI_ENDINGS and not endings.keys() <= {*NIFTI_ENDINGS}:
        return NIFTI_ENDINGS[1]  # read by ITK as the others are, and .nii by a reader of NIfTI alone
    are_pictures = usual.lower() in TIFF_ENDINGS and choose_reader(TIFF_ENDINGS[0], images) == PICTURE_READER
    return TIFF_ENDINGS[0] if are_pictures and usual.lower() != TIFF_ENDINGS[0] else usual


def unify(cases: Mapping[str, Sequence[Case]], ending: str) -> Unified:
    """Return how the files of cases become files of one ending, each channel of a NIfTI file in one of its own.

    Args:
        cases: by part (`Tr`, `Ts`), as of `Conversion`.
        ending: of the new files, in lower case.
    """
    found = Unified()
    for part, members in cases.items():
        for case in members:
            for file, name in _named(case, part, ending):
                try:
                    _add(found, file, name, ending, is_label=file == case.label)
                except ImageError as error:
                    found.problems.append(problem_of(error))
    return found


def _named(case: Case, part: str, ending: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a case with the names that they get if no channels are split."""
    for channel, image in enumerate(case.images):
        yield image, f"images{part}/{case.identifier}_{channel:04d}{ending}"
    if case.label is not None:
        yield case.label, f"labels{part}/{case.identifier}{ending}"


def _add(found: Unified, file: Path, name: str, ending: str, *, is_label: bool) -> None:
    own = ending_of(file.name).lower()
    if own in NIFTI_ENDINGS and ending in NIFTI_ENDINGS:
        shape = nifti_shape(file)
        if len(shape) > 3 or own != ending:
            found.num_split[file] = shape[3] if len(shape) > 3 else 1
        return
    if own == ending or {own, ending} <= {*TIFF_ENDINGS}:
        return
    family = next((reader for reader, endings in _FAMILIES.items() if {own, ending} <= endings), None)
    if family is None:
        found.problems.append(
            Problem(where=str(file), what=f"ends in {own}, other files in {ending}", remedy=f"convert it to {ending}")
        )
        return
    write = _reencode if family == _VOLUMES else partial(_redraw, is_label=is_label)
    found.rewrites[name] = Rewrite(change=f"stored as {ending}", write=write)


def _reencode(source: Path, target: Path) -> None:
    """Store a volume in another format.

    Raises:
        ImageError: the format cannot hold its values, its geometry or its channels.
    """
    ending = ending_of(target.name)
    with atomic_path(target) as temporary:
        try:
            reencode_volume(source, temporary)
            before, after = (read_images([file], _VOLUMES) for file in (source, temporary))
        except (ImageError, Refusal, RuntimeError) as error:
            raise ImageError(f"{source}: cannot be stored as {ending} ({error}); convert it to {ending}") from error
        reorientation = find_reorientation(after.header, before.header)
        if reorientation is None or not reorientation.is_identity or not np.array_equal(before.array, after.array):
            raise ImageError(f"{source}: {ending} cannot hold its values or its geometry; convert all files to .nii.gz")


def _redraw(source: Path, target: Path, *, is_label: bool) -> None:
    """Store a picture in another format.

    Raises:
        ImageError: the format cannot hold its values.
    """
    ending = ending_of(target.name)

    def read(file: Path) -> Floats:
        return (read_label(file, PICTURE_READER) if is_label else read_images([file], PICTURE_READER)).array

    array = read(source)  # (C, 1, H, W)
    with atomic_path(target) as temporary:
        try:
            write_picture(array[:, 0], temporary)
            is_same = np.array_equal(array, read(temporary))
        except (ImageError, OSError, ValueError) as error:
            raise ImageError(f"{source}: cannot be stored as {ending} ({error}); convert it to {ending}") from error
        if not is_same:
            raise ImageError(f"{source}: {ending} cannot hold its values; convert all files to .png")
