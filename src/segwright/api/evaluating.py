"""Evaluate predictions against reference label maps, and compare models by their scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path

from segwright.api.datasets.references import listed_references, reference_labels
from segwright.api.selection.trained_models import model_folders, name_of
from segwright.api.session import workspace_or_default
from segwright.core.errors import ConfigError, DatasetError, ImageError, ModelError, did_you_mean
from segwright.core.files.names import path_problem
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.description import load_description
from segwright.data.images.image_io import READERS, choose_reader, read_header
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.evaluation import scores as scoring
from segwright.evaluation import statistics
from segwright.evaluation.crossval import VALIDATION, validated_folds
from segwright.evaluation.statistics import Comparison
from segwright.report.results import Evaluation
from segwright.workspace import DATASET_JSON, PLANS_JSON, SUMMARY_JSON, Workspace

logger = getLogger(__name__)

_EXAMPLES = 3
"""Number of label maps that are opened to test the reader of a plan."""


def evaluate(
    reference: Path | str,
    prediction: Path | str,
    *,
    dataset_json: Path | str | None = None,
    label_values: Sequence[int] | None = None,
    output: Path | str | None = None,
    surface: bool = False,
    lesions: bool = False,
    tolerances: Sequence[float] | None = None,
    ignore_label: int | None = None,
    require_all: bool = False,
    csv: Path | str | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> Evaluation:
    """Score predictions against references of the same names and write nnU-Net's `summary.json`.

    Where a folder has no files of the dataset's ending, its files of another format are scored.

    Args:
        reference: Folder of reference label maps, or a raw dataset whose dataset.json lists its files.
        prediction: Folder of predicted label maps.
        dataset_json: The dataset.json with labels and file ending; by default searched in both folders, one level
            above, and in the model folder of a fold.
        label_values: Label values to score instead of those in dataset.json, which is then not read; the file ending is
            taken from the references.
        output: File of the scores; `summary.json` in the prediction folder by default.
        surface: Also compute HD, HD95, ASSD (in mm) and NSD.
        lesions: Also compute lesion-wise detection scores and panoptic quality.
        tolerances: Tolerances of the NSD in mm, 1 and 2 by default; implies `surface`.
        ignore_label: Voxels with this reference label are excluded; by default the ignore label of dataset.json.
        require_all: Raise an error for a reference without a prediction, instead of leaving it out.
        csv: File to which one row per case and class is written.
        workers: Threads.
        environment: Variables that paths in file lists may contain.

    Raises:
        SegwrightError: a folder or file is missing, damaged or does not match, or an argument is invalid.

    Examples:
        >>> scores = evaluate("references", "predicted")  # doctest: +SKIP
    """
    truth, predicted = Path(reference), Path(prediction)
    require_folders(truth, predicted)
    extra = _extra_metrics(surface=surface, lesions=lesions, tolerances=tolerances)
    if label_values:
        labels = Labels({"background": 0, **{str(value): value for value in sorted({*label_values} - {0})}})
        ending, override = _ending_of(truth), None
    else:
        description = load_description(Path(dataset_json) if dataset_json else find_description(truth, predicted))
        labels = Labels.from_description(description) if dataset_json else reference_labels(description, truth)
        ending, override = description.file_ending, description.overwrite_image_reader_writer
    if ignore_label is not None and ignore_label in labels.all_labels:
        scored = ", ".join(str(value) for value in labels.foreground_labels if value != ignore_label)
        raise ConfigError(
            f"label {ignore_label} cannot be both scored and ignored; name the others with --labels {scored}"
        )
    endings = [_ending_of(folder, ending) for folder in (truth, predicted)]
    scores = scoring.evaluate(
        truth,
        predicted,
        labels=labels,
        file_ending=endings[0],
        prediction_ending=endings[1],
        reader=_common_reader(endings, override, truth, predicted),
        extra=extra,
        workers=workers,
        require_all=require_all,
        ignore_label=ignore_label,
        known=None if label_values else labels.all_labels,
        listed=listed_references(truth, environment),
    )
    if csv is not None:
        scores.save_csv(Path(csv))
    file = Path(output) if output else predicted / SUMMARY_JSON
    scores.save(file)
    return Evaluation(scores=scores, file=file, labels=labels)


def compare(
    models: Sequence[Path | str], *, dataset: str | Path | int | None = None, workspace: Workspace | None = None
) -> list[Comparison]:
    """Compare every pair of models, from their `summary.json`, by each common case's mean foreground Dice.

    The test is a two-sided Wilcoxon signed-rank test, corrected for the number of pairs (Holm).

    Args:
        models: At least two `summary.json` files, folders that contain one, model folders (the held-out cases of all
            their folds), or names of the dataset's models, as `train(name=...)` gave them or whole as the folder's.
        dataset: Folder, name or id; needed for names.
        workspace: Where its results are; `./segwright-work` by default.

    Raises:
        SegwrightError: a file is missing, damaged or given twice, a name is unknown or ambiguous, or there are too few
            common cases.
    """
    if len(models) < 2:
        raise ConfigError("compare: give at least two models or summary.json files")
    places: dict[str, Path] = {}
    seen: set[Path] = set()
    for model in models:
        path = Path(model)
        if dataset is not None and not path.exists():
            path = _model_named(str(model), dataset, workspace_or_default(workspace))
        if path.is_dir() and ((path / SUMMARY_JSON).is_file() or not validated_folds(path)):
            path = path / SUMMARY_JSON
        if path.resolve() in seen:  # also by another path or a link
            raise ConfigError(f"compare: {path} is given twice; give the summary of another model")
        seen.add(path.resolve())
        places[str(model) if dataset is not None else str(path)] = path
    return statistics.compare({name: _scores_in(place) for name, place in places.items()})


def _model_named(name: str, dataset: str | Path | int, workspace: Workspace) -> Path:
    """Return the folder of a dataset's model by its name.

    Raises:
        ModelError: no model has this name, or models of several configurations have it.
    """
    folders = model_folders(workspace, workspace.dataset_name(dataset))
    found = [folder for folder in folders if name in (folder.name, name_of(folder))]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(folder.name for folder in found)
        raise ModelError(f"compare: several models are named '{name}': {listed}; give one of these names")
    known = {name_of(folder) for folder in folders}
    raise ModelError(f"compare: no model of {dataset} is named '{name}'{did_you_mean(name, known)}")


def _scores_in(place: Path) -> scoring.Scores:
    """Return the scores in a file, or those of the held-out cases of all folds in a model folder."""
    if not place.is_dir():
        return scoring.Scores.load(place)
    files = [Workspace.fold_folder(place, fold) / VALIDATION / SUMMARY_JSON for fold in validated_folds(place)]
    return scoring.Scores.of([case for file in files for case in scoring.Scores.load(file).metric_per_case])


def require_folders(*folders: Path) -> None:
    """Check that folders exist.

    Raises:
        DatasetError: one does not.
    """
    for folder in folders:
        wrong = path_problem(folder, "folder")
        if wrong:
            raise DatasetError(f"{folder}: {wrong}")


def find_description(*folders: Path) -> Path:
    """Find the `dataset.json` of folders of label maps: in them, one level above, or in the model folder of a fold.

    The last folder is searched first.

    Raises:
        DatasetError: a folder is missing, or there is none.
    """
    require_folders(*folders)
    for folder in _folders_to_search(folders):
        if (folder / DATASET_JSON).is_file():
            return folder / DATASET_JSON
    listed = ", ".join(map(str, folders))
    raise DatasetError(f"{listed}: no {DATASET_JSON} here or one level above; name one with --dataset-json FILE")


def find_label_reader(file_ending: str, override: str | None, *folders: Path) -> str:
    """Choose the reader of label maps: that of a plan if it can open them, else the one that opens most of them.

    Args:
        file_ending: of the label maps.
        override: reader that dataset.json names.
        folders: of label maps; plans are searched like dataset.json in `find_description`.

    Raises:
        ImageError: no reader supports the ending.
        SegwrightError: a plan is damaged.
    """
    files = [
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.name.endswith(file_ending) and not file.name.startswith(".")
    ]
    for folder in _folders_to_search(folders):
        if (folder / PLANS_JSON).is_file():
            reader = Plan.load(folder / PLANS_JSON).image_reader_writer
            if not files or any(_can_read(reader, file) for file in files[:_EXAMPLES]):
                return reader
    try:
        return choose_reader(file_ending, files, override, are_labels=True)
    except ImageError:  # scoring reports every damaged file
        return choose_reader(file_ending, None, override)


def _extra_metrics(*, surface: bool, lesions: bool, tolerances: Sequence[float] | None) -> scoring.ExtraMetrics:
    if tolerances is None:
        return scoring.ExtraMetrics(surface=surface, lesions=lesions)
    wrong = [value for value in tolerances if not (math.isfinite(value) and value > 0)]
    if wrong or not tolerances:
        raise ConfigError(f"tolerance {wrong[0] if wrong else 'list is empty'}: expected mm above 0, for instance 1,2")
    return scoring.ExtraMetrics(surface=True, lesions=lesions, tolerances=tuple(dict.fromkeys(tolerances)))


def _ending_of(folder: Path, expected: str = "") -> str:
    """Return the ending of the label maps in a folder: the expected one if a file has it, else that of most files.

    Without any label map it is the expected one.

    Raises:
        DatasetError: there is no label map, and none is expected.
    """
    names = [file.name for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    if expected and any(name.endswith(expected) for name in names):
        return expected
    known = sorted({ending for reader in READERS.values() for ending in reader.endings}, key=len, reverse=True)
    matches = (next((each for each in known if name.lower().endswith(each)), "") for name in names)
    found = Counter(name[-len(match) :] for name, match in zip(names, matches, strict=True) if match)
    if not found and not expected:
        raise DatasetError(f"{folder}: no label map found; supported endings are {', '.join(sorted(known))}")
    ending = max(found, key=lambda each: found[each], default=expected)
    if expected and found:
        logger.info(
            "%s: no %s file, so its %d files that end in %s are scored", folder, expected, found[ending], ending
        )
    return ending


def _common_reader(endings: Sequence[str], override: str | None, truth: Path, predicted: Path) -> str:
    """Return the reader of label maps of one or two endings.

    Raises:
        DatasetError: no reader reads both.
    """
    if endings[0] == endings[1]:
        return find_label_reader(endings[0], override, truth, predicted)
    files = [
        file
        for folder, ending in zip((truth, predicted), endings, strict=True)
        for file in [each for each in sorted(folder.iterdir()) if each.name.endswith(ending)][:1]
    ]
    for name, reader in READERS.items():
        if reader.endings and all(_can_read(name, file) for file in files):
            return name
    raise DatasetError(
        f"{' and '.join(map(str, files))} are of formats without a common reader; convert the files of one folder"
    )


def _folders_to_search(folders: Sequence[Path]) -> list[Path]:
    """Return where to look for documents: in the folders (last first), one level above, in the model of a fold."""
    models = [folder.parent.parent for folder in map(Path.absolute, folders) if folder.parent.name.startswith("fold_")]
    return [*reversed(folders), *(folder.absolute().parent for folder in folders), *reversed(models)]


def _can_read(reader: str, file: Path) -> bool:
    try:
        read_header(file, reader, is_label=True)
    except ImageError:
        return False
    return True
