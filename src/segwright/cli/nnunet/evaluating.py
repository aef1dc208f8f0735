"""nnU-Net's commands that score predictions and choose post-processing."""

from __future__ import annotations

import shutil
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright import api
from segwright.cli.nnunet import folders, names
from segwright.cli.nnunet.options import Command, Values, flag, value, values
from segwright.cli.options import environment
from segwright.core.errors import ConfigError
from segwright.core.files.json_documents import write_json
from segwright.evaluation.crossval import accumulated_name, read_crossval
from segwright.evaluation.postprocessing import PostProcessingResult
from segwright.evaluation.scores import Scores
from segwright.inference.export.postprocessing import NNUNET_FUNCTION, POSTPROCESSING_JSON
from segwright.workspace import DATASET_JSON, SUMMARY_JSON

logger = getLogger(__name__)

PICKLE: Final = "postprocessing.pkl"
"""nnU-Net's name of the steps, which Segwright reads from the JSON document beside it."""

_PROCESSED: Final = "postprocessed"
"""Folder of the post-processed label maps, in that of the predictions."""

_FOLDERS: Final = (
    value("gt_folder", about="Folder of the reference label maps."),
    value("pred_folder", about="Folder of the predicted label maps."),
)
_THREADS: Final = value("-np", about="Number of threads (default: all CPUs).", kind=int)
_OUTPUT: Final = value("-o", about="File of the scores (default: summary.json in the folder of the predictions).")
_CHILL: Final = flag("--chill", about="Accept references without a prediction.")
_FOLDS: Final = values("-f", about="Folds.", default=(0, 1, 2, 3, 4), kind=int)


def evaluate_folder(arguments: Values) -> None:
    """Score predictions with the labels of dataset.json."""
    api.evaluate(
        arguments.path("gt_folder"),
        arguments.path("pred_folder"),
        dataset_json=arguments.path("-djfile"),
        output=arguments.optional_path("-o"),
        require_all=not arguments.is_set("--chill"),
        workers=arguments.optional_number("-np"),
        environment=environment(),
    )


def evaluate_simple(arguments: Values) -> None:
    """Score predictions of the given label values."""
    if 0 in arguments.numbers("-l"):
        logger.warning("-l 0: the background is not scored")
    api.evaluate(
        arguments.path("gt_folder"),
        arguments.path("pred_folder"),
        label_values=arguments.numbers("-l"),
        ignore_label=arguments.optional_number("-il"),
        output=arguments.optional_path("-o"),
        require_all=not arguments.is_set("--chill"),
        workers=arguments.optional_number("-np"),
        environment=environment(),
    )


def accumulate_crossval_results(arguments: Values) -> None:
    """Collect the held-out predictions of all folds in one folder and score them together."""
    model = folders.trained_model(
        arguments.text("dataset_name_or_id"), *(arguments.text(name) for name in ("-tr", "-p", "-c"))
    )
    accumulate(model, arguments.numbers("-f"), arguments.optional_path("-o"))


def determine_postprocessing(arguments: Values) -> None:
    """Choose the labels of which only the largest component is kept, and keep it in all predictions."""
    predictions = arguments.path("-i")
    decide(
        predictions,
        arguments.path("-ref"),
        dataset_json=arguments.optional_path("-dataset_json") or predictions / DATASET_JSON,
        workers=arguments.optional_number("-np"),
        keeps_results=not arguments.is_set("--remove_postprocessed"),
    )


def apply_postprocessing(arguments: Values) -> None:
    """Apply post-processing to a folder of label maps."""
    api.apply_postprocessing(
        arguments.path("-i"),
        arguments.path("-o"),
        postprocessing=_document_of(arguments.path("-pp_pkl_file")),
        dataset_json=arguments.optional_path("-dataset_json"),
        workers=arguments.optional_number("-np"),
    )


COMMANDS: Final = {
    "evaluate_folder": Command(
        function=evaluate_folder,
        options=(
            *_FOLDERS,
            value("-djfile", about="The dataset.json.", is_required=True),
            value("-pfile", about="", is_required=True, no_effect="the file ending decides how label maps are read"),
            *(_OUTPUT, _THREADS, _CHILL),
        ),
    ),
    "evaluate_simple": Command(
        function=evaluate_simple,
        options=(
            *_FOLDERS,
            values("-l", about="Label values to score.", is_required=True, kind=int),
            value("-il", about="Ignored label value of the references.", kind=int),
            *(_OUTPUT, _THREADS, _CHILL),
        ),
    ),
    "accumulate_crossval_results": Command(
        function=accumulate_crossval_results,
        options=(
            value("dataset_name_or_id", about="Id or name of the dataset."),
            value("-c", about="Configuration.", is_required=True),
            value("-o", about="Output folder (default: crossval_results_folds_... in the model's)."),
            _FOLDS,
            value("-p", about="Name of the plans.", default=names.PLANS),
            value("-tr", about="Trainer class.", default=names.TRAINER),
        ),
    ),
    "determine_postprocessing": Command(
        function=determine_postprocessing,
        options=(
            value("-i", about="Predictions of cases that were not trained on.", is_required=True),
            value("-ref", about="Folder of the reference label maps.", is_required=True),
            value("-plans_json", about="", no_effect="the file ending decides how label maps are read"),
            value("-dataset_json", about="The dataset.json (default: in the folder of the predictions)."),
            _THREADS,
            flag("--remove_postprocessed", about="Do not keep the post-processed label maps."),
        ),
    ),
    "apply_postprocessing": Command(
        function=apply_postprocessing,
        options=(
            value("-i", about="Folder of label maps.", is_required=True),
            value("-o", about="Output folder.", is_required=True),
            value(
                "-pp_pkl_file",
                "--pp_pkl_file",
                about=f"{POSTPROCESSING_JSON}, or the name of {PICKLE} beside it.",
                is_required=True,
            ),
            _THREADS,
            value("-plans_json", about="", no_effect="the file ending decides how label maps are read"),
            value("-dataset_json", about="The dataset.json (default: in the folder of label maps)."),
        ),
    ),
}


def accumulate(model: Path, folds: list[int], output: Path | None = None) -> tuple[Path, Scores]:
    """Collect the held-out predictions of a model's folds; return the folder and the scores.

    The folder in the model's is replaced, as in nnU-Net; another one must be empty.
    """
    if output is None:
        output = model / accumulated_name(read_crossval(model, folds).folds)  # raises before anything is removed
        shutil.rmtree(output, ignore_errors=True)
    return output, api.accumulate_crossval(model, output, folds=folds).scores


def decide(
    predictions: Path,
    references: Path,
    *,
    dataset_json: Path,
    workers: int | None = None,
    keeps_results: bool = True,
) -> PostProcessingResult:
    """Choose post-processing, write nnU-Net's postprocessing.json beside the predictions, and apply it.

    Args:
        predictions: folder of label maps; `postprocessed` in it gets the results.
        references: folder of the true label maps.
        dataset_json: with the labels.
        workers: threads.
        keeps_results: whether to keep the results.
    """
    if not (predictions / SUMMARY_JSON).is_file():
        api.evaluate(references, predictions, dataset_json=dataset_json, workers=workers, environment=environment())
    document = predictions / POSTPROCESSING_JSON
    result = api.determine_postprocessing(
        references,
        predictions,
        dataset_json=dataset_json,
        output=document,
        workers=workers,
        environment=environment(),
    )
    write_json(document, nnunet_document(result), indent=4)
    results = predictions / _PROCESSED
    shutil.rmtree(results, ignore_errors=True)
    if keeps_results:
        api.apply_postprocessing(
            predictions, results, postprocessing=document, dataset_json=dataset_json, workers=workers
        )
        result.after.save(results / SUMMARY_JSON)
    return result


def nnunet_document(result: PostProcessingResult) -> dict[str, Any]:
    """Return post-processing in nnU-Net's schema: the scores without and with it, and its steps."""
    steps = [list(step.labels) for step in result.processing.steps]
    scores = {"input_folder": result.before.to_json(), "postprocessed": result.after.to_json()}
    return {
        **{key: {part: each[part] for part in ("foreground_mean", "mean")} for key, each in scores.items()},
        "postprocessing_fns": [NNUNET_FUNCTION] * len(steps),
        "postprocessing_kwargs": [{"labels_or_regions": labels if len(labels) > 1 else labels[0]} for labels in steps],
    }


def _document_of(file: Path) -> Path:
    """Return the JSON document that stands for nnU-Net's pickle, which is never read.

    Raises:
        ConfigError: there is none beside it.
    """
    if file.suffix != Path(PICKLE).suffix:
        return file
    document = file.with_suffix(".json")
    if not document.is_file():
        raise ConfigError(
            f"{file}: reading a pickle can run any code, and {document} is missing; copy it from where the pickle came"
        )
    return document
