"""Post-processing, ensembles and cross-validation on folders of predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segwright.api.datasets.references import listed_references, reference_labels
from segwright.api.evaluating import find_description, find_label_reader, require_folders
from segwright.core.errors import ConfigError, DatasetError
from segwright.core.files.json_documents import write_json
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.description import DatasetDescription, load_description
from segwright.data.labels import Labels
from segwright.evaluation import crossval, scores
from segwright.report.results import Evaluation
from segwright.workspace import DATASET_JSON, SUMMARY_JSON

if TYPE_CHECKING:
    from segwright.evaluation.postprocessing import PostProcessingResult


def determine_postprocessing(
    reference: Path | str,
    prediction: Path | str,
    *,
    dataset_json: Path | str | None = None,
    output: Path | str | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> PostProcessingResult:
    """Decide by nnU-Net's rule for which labels only the largest component is kept; write `postprocessing.json`.

    Args:
        reference: See `evaluate`; it may hold more cases than were predicted.
        prediction: Folder of predicted label maps of cases that were not used for training.
        dataset_json: Names labels and file ending; by default the one in, or one level above, either folder.
        output: The file; `postprocessing.json` in the prediction folder by default.
        workers: Threads.
        environment: Variables that paths in file lists may contain.

    Raises:
        SegwrightError: No predictions were found, one has no reference, or files are damaged or do not match.

    Examples:
        >>> determine_postprocessing("references", "predicted")  # doctest: +SKIP
    """
    from segwright.evaluation.postprocessing import determine
    from segwright.inference.export.postprocessing import POSTPROCESSING_JSON

    truth, predicted = Path(reference), Path(prediction)
    require_folders(truth, predicted)
    description = load_description(Path(dataset_json) if dataset_json else find_description(truth, predicted))
    result = determine(
        scores.pair_files(truth, predicted, description.file_ending, listed=listed_references(truth, environment)),
        labels=Labels.from_description(description) if dataset_json else reference_labels(description, truth),
        reader=find_label_reader(description.file_ending, description.overwrite_image_reader_writer, truth, predicted),
        workers=workers,
    )
    result.processing.save(Path(output) if output else predicted / POSTPROCESSING_JSON)
    return result


def apply_postprocessing(
    prediction: Path | str,
    output: Path | str,
    *,
    postprocessing: Path | str | None = None,
    dataset_json: Path | str | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Apply a `postprocessing.json`, ours or nnU-Net's, to every label map of a folder; return the files written.

    Args:
        prediction: Folder of label maps.
        output: Folder for the post-processed label maps and `dataset.json`.
        postprocessing: The document; `postprocessing.json` in the prediction folder by default.
        dataset_json: Names the file ending; by default the one in, or one level above, the folder.
        workers: Threads.

    Raises:
        SegwrightError: No label map was found, or the document has an unknown format; nnU-Net's pickle is never read.

    Examples:
        >>> apply_postprocessing("predicted", "cleaned")  # doctest: +SKIP
    """
    from segwright.inference.export.postprocessing import PostProcessing, process_folder

    folder = Path(prediction)
    require_folders(folder)
    processing = PostProcessing.load(Path(postprocessing) if postprocessing else folder)
    description = load_description(Path(dataset_json) if dataset_json else find_description(folder))
    files = process_folder(
        processing,
        folder,
        Path(output),
        file_ending=description.file_ending,
        reader=find_label_reader(description.file_ending, description.overwrite_image_reader_writer, folder),
        workers=workers,
    )
    write_json(Path(output) / DATASET_JSON, description.raw(), indent=4)
    return files


def ensemble(
    predictions: Sequence[Path | str],
    output: Path | str,
    *,
    dataset_json: Path | str | None = None,
    probabilities: bool | str = False,
    overwrite: bool = False,
) -> list[Path]:
    """Average saved probabilities, write the resulting label maps and return their paths.

    Args:
        predictions: Two or more folders that `predict` wrote with probabilities as b2nd or npz; nnU-Net's too.
        output: Folder for one label map per case and `dataset.json`.
        dataset_json: Names the labels; by default the one in, or one level above, a prediction folder.
        probabilities: Also write the mean: npz (or True), b2nd or nifti.
        overwrite: Replace existing label maps.

    Raises:
        SegwrightError: Cases are missing in a folder, the folders are of different tasks, or files are damaged or do
            not fit.

    Examples:
        >>> ensemble(["predicted", "predicted-by-another"], "averaged")  # doctest: +SKIP
    """
    if len(predictions) < 2:
        raise ConfigError("ensemble: give at least two folders of predictions")
    from segwright.inference.export.writers import ProbabilityFormat
    from segwright.inference.folder.average_saved import average_folders

    folders = [Path(each) for each in predictions]
    require_folders(*folders)
    source = Path(dataset_json) if dataset_json else find_description(*reversed(folders))
    description = load_description(source)
    _require_same_task(folders, source, description)
    kind = "npz" if probabilities is True else probabilities or None
    files = average_folders(
        folders,
        Path(output),
        labels=Labels.from_description(description),
        file_ending=description.file_ending,
        reader=find_label_reader(
            description.file_ending, description.overwrite_image_reader_writer, *reversed(folders)
        ),
        probability_format=ProbabilityFormat(kind=kind) if kind else None,
        overwrite=overwrite,
    )
    write_json(Path(output) / DATASET_JSON, description.raw(), indent=4)
    return files


def accumulate_crossval(
    model: Path | str, output: Path | str | None = None, *, folds: Sequence[int] | None = None
) -> Evaluation:
    """Collect the held-out predictions of all folds of a model in one folder with one `summary.json`.

    Args:
        model: Model folder, ours or nnU-Net's.
        output: New folder; `crossval_results_folds_0_1` and so on in the model folder by default.
        folds: By default all folds that have predicted their held-out cases.

    Raises:
        SegwrightError: A fold has no predictions, two folds share a case, or the output folder exists.

    Examples:
        >>> accumulate_crossval("Trainer__nnUNetPlans__3d_fullres", "all-folds")  # doctest: +SKIP
    """
    folder = Path(model)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such model folder")
    predictions = crossval.read_crossval(folder, folds)
    target = Path(output) if output else folder / crossval.accumulated_name(predictions.folds)
    pooled = crossval.accumulate(predictions, target)
    labels = Labels.from_description(load_description(find_description(folder)))
    return Evaluation(scores=pooled, file=target / SUMMARY_JSON, labels=labels)


def _require_same_task(folders: Sequence[Path], source: Path, description: DatasetDescription) -> None:
    """Check that predictions belong to the same task, by the dataset.json in their folders.

    Raises:
        ConfigError: one has different labels, channels or file endings.
    """
    wanted = {**description.meaning(), "file_ending": description.file_ending}
    for folder in folders:
        file = folder / DATASET_JSON
        if not file.is_file() or file.samefile(source):
            continue
        other = load_description(file)
        given = {**other.meaning(), "file_ending": other.file_ending}
        differing = [key for key in wanted if wanted[key] != given[key]]
        if differing:
            shown = "; ".join(f"{key} {_difference(given[key], wanted[key])}" for key in differing)
            raise ConfigError(f"{file}: {shown} in {source}; an ensemble needs models of the same task")


def _difference(given: object, wanted: object) -> str:
    """Describe two different values of a dataset.json; of lists only the entries that differ."""
    if isinstance(given, list) and isinstance(wanted, list):
        given, wanted = (
            [entry for entry in one if entry not in two] or one for one, two in ((given, wanted), (wanted, given))
        )
    return f"{json.dumps(given)}, but {json.dumps(wanted)}"
