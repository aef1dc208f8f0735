"""Predict DICOM series with a model, one case at a time, and write the label maps as DICOM objects too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ConfigError, Problem, ProblemReport, SegwrightError, replaced_in_errors
from segwright.core.files.atomic_io import sweep_leftovers, temporary_beside
from segwright.data.description import DatasetDescription
from segwright.deploy.dicom.cases import OutputType, require_output_types, result_files, stage_case, write_results
from segwright.deploy.dicom.choosing import DicomCase, find_dicom_cases, joined_channels
from segwright.deploy.dicom.codes import Segment, guess_segments, read_segments
from segwright.deploy.dicom.objects import SourceModel
from segwright.deploy.dicom.rtstruct import Holes
from segwright.deploy.dicom.sources import is_dicom_input, opened
from segwright.inference.ensemble import Ensemble
from segwright.inference.folder.inputs import Images
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.prediction import CaseRecord
from segwright.inference.predictor import Predictor
from segwright.workspace import SEGMENTS_JSON

logger = getLogger(__name__)

_READERS: Final = ("SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient")
"""Readers of volumes with positions; the others are of pictures and TIFF stacks."""
_SCRATCH: Final = "dicom"
"""Suffix of the temporary folder in the output folder that holds unpacked files and the voxels of one case."""


def predict_inputs(
    model: Predictor | Ensemble,
    images: Images,
    output: Path,
    *,
    series: Sequence[str] = (),
    output_types: Sequence[str] = ("nifti",),
    segments: Path | None = None,
    holes: Holes = "xor",
    model_folder: Path | None = None,
    **options: Any,
) -> list[CaseRecord]:
    """Predict DICOM series, or any other input as `predict_files` does.

    Args:
        model: made by `segwright.load_model`.
        images: DICOM folder, zip file or file, with one case for each study; a list has one for each channel of a
            single case. Anything else is passed on to `predict_files`.
        output: another folder.
        series: which series to use; see `choosing.find_dicom_cases`.
        output_types: `dicom-seg` and `rtstruct` are written as well as the label map, which `nifti` means.
        segments: `segments.json` with the codes of the model's classes; by default that of the model folder, else
            codes are guessed from the names of the labels.
        holes: how RTSTRUCT describes holes; see `rtstruct.write_rtstruct`.
        model_folder: of the model.
        options: of `predict_files`; DICOM is not divided into parts.

    Returns:
        One record for each case, in order of the case names.

    Raises:
        ProblemReport: there is no case, or some cannot be used or predicted (raised after all others are done).
        SegwrightError: anything else a user can fix.
    """
    kinds = require_output_types(output_types)
    places = [images] if isinstance(images, Path) else list(images)
    description = description_of(model)
    if not places or not all(is_dicom_input(place, description.file_ending) for place in places):
        if {*kinds} - {"nifti"} or series:
            what = "--series" if series else f"output type '{next(kind for kind in kinds if kind != 'nifti')}'"
            raise ConfigError(f"{places[0] if places else images}: no DICOM files, which {what} needs")
        return predict_files(model, images, output, **options)
    if model.reader not in _READERS:
        raise ConfigError(
            f"the model was trained with {description.file_ending} files; DICOM series need one of volumes"
        )
    if options.get("parts", 1) > 1:
        raise ConfigError("DICOM input is not divided into parts; give each machine folders of its own")
    coded = _segments(model, segments, model_folder) if {*kinds} - {"nifti"} else ()
    source = SourceModel.of_identity(model.identity)
    records: list[CaseRecord] = []
    problems: list[Problem] = []
    with _scratch_in(output) as scratch, ExitStack() as stack:
        cases, refused = _find_cases(places, stack, scratch, [*description.channel_names.values()], series)
        problems += refused
        for case in cases:
            try:
                record = _predict(model, case, output, scratch, options)
                if outdated := _outdated(record.output, case, output, kinds, [segments, _segments_file(model_folder)]):
                    for file in write_results(
                        record.output, case, output, output_types=outdated, segments=coded, model=source, holes=holes
                    ):
                        logger.info("%s: written", file)
            except ProblemReport as report:
                problems += report.problems
            else:
                records.append(record)
    if problems:
        raise ProblemReport(problems)
    return sorted(records, key=lambda record: record.case)


def description_of(model: Predictor | Ensemble) -> DatasetDescription:
    """Return the dataset.json of a model, with the names of its channels and the ending of its files."""
    description = (model.predictors[0] if isinstance(model, Ensemble) else model).description
    assert description is not None, "a model for files is made by load_model"
    return description


def model_segments(model: Predictor | Ensemble, file: Path | None) -> tuple[Segment, ...]:
    """Return the segments of a model: of a `segments.json`, or guessed from the names of its labels.

    Raises:
        ConfigError: the file does not fit the model, or pydicom is not installed.
    """
    if file is not None:
        return read_segments(file, model.labels)
    segments = guess_segments(model.labels)
    for segment in segments:
        logger.info("code of %s%s", segment, ", not found in the dictionaries" if segment.is_unknown else "")
    logger.info("codes were guessed from the names of the labels; 'segwright segments MODEL' writes them to be edited")
    return segments


def _segments(model: Predictor | Ensemble, given: Path | None, model_folder: Path | None) -> tuple[Segment, ...]:
    return model_segments(model, given or _segments_file(model_folder))


def _segments_file(model_folder: Path | None) -> Path | None:
    """Return the file with the codes of a model; None if its folder has none."""
    file = None if model_folder is None else model_folder / SEGMENTS_JSON
    return file if file is not None and file.is_file() else None


def _find_cases(
    places: Sequence[Path], stack: ExitStack, scratch: Path, channels: Sequence[str], series: Sequence[str]
) -> tuple[tuple[DicomCase, ...], tuple[Problem, ...]]:
    """Return the cases of all inputs, and the problems of studies that are none; zip files stay unpacked on `stack`."""
    folders = [stack.enter_context(opened(place, scratch=scratch)) for place in places]
    if len(folders) == 1:
        return find_dicom_cases(folders[0], channels=channels, series=series)
    if series or len(folders) != len(channels):
        raise ConfigError(
            f"{len(folders)} DICOM inputs are the channels of one case, the model has {len(channels)} "
            f"({', '.join(channels)}); give one for each in this order and no --series, or one folder of all"
        )
    found = [find_dicom_cases(folder, channels=[name]) for folder, name in zip(folders, channels, strict=True)]
    return (joined_channels([case for cases, _ in found for case in cases]),), ()


def _predict(
    model: Predictor | Ensemble, case: DicomCase, output: Path, scratch: Path, options: dict[str, Any]
) -> CaseRecord:
    """Predict a case from image files that are removed afterwards; errors name the series instead of the files."""
    folder = scratch / "staged"
    folder.mkdir()
    try:
        with replaced_in_errors(f"{folder}/", ""):
            [record] = predict_files(model, stage_case(case, folder), output, **options)
    except ProblemReport:
        raise
    except SegwrightError as error:
        raise ProblemReport([Problem(where=case.identifier, what=str(error), case=case.identifier)]) from error
    finally:
        shutil.rmtree(folder)
    return record


def _outdated(
    label_map: Path, case: DicomCase, output: Path, kinds: Sequence[OutputType], others: Sequence[Path | None]
) -> list[OutputType]:
    """Return the kinds of DICOM files that are missing, or older than the label map or the codes.

    Files that are up to date stay as they are: new ones would have new UIDs.
    """
    newest = max(file.stat().st_mtime_ns for file in (label_map, *others) if file is not None)
    files = result_files(case, output, kinds)
    return [kind for kind, file in files.items() if not file.is_file() or file.stat().st_mtime_ns < newest]


@contextmanager
def _scratch_in(output: Path) -> Iterator[Path]:
    """Yield a temporary folder in the output folder, which has the room; those of killed runs are removed."""
    sweep_leftovers(output, {_SCRATCH}, is_shared=True)
    scratch = temporary_beside(output / _SCRATCH)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
