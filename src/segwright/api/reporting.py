"""Write the HTML report of a run or model; find plans, fingerprints and scores for `show`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from logging import getLogger
from pathlib import Path

import numpy as np

from segwright.api.checks.staleness import REPORT_HTML, changes_since_training, reported_documents
from segwright.api.selecting import read_selection
from segwright.api.session import workspace_or_default
from segwright.core.errors import DatasetError, ModelError, SegwrightError
from segwright.core.files.atomic_io import write_text
from segwright.core.files.hashing import content_hash, file_hash
from segwright.core.files.json_documents import read_bytes
from segwright.core.files.json_text import MAX_BYTES
from segwright.data.dataset import NO_ENVIRONMENT, scan
from segwright.data.description import DatasetDescription, load_description
from segwright.data.fingerprint import Fingerprint
from segwright.data.images.image_io import read_header
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.evaluation.scores import CaseScores, Scores, class_key
from segwright.inference.models.selected import MEMBERS, find_selected, is_selected, read_selected
from segwright.report import page, sources, tables
from segwright.report.case_errors import measure_cases
from segwright.report.case_images import CaseImages, ImageSources, case_identifier, load_case
from segwright.report.error_analysis import ErrorAnalysis, analyse_errors
from segwright.report.sources import ModelRecord, ScoreSet
from segwright.report.volumes import foreground_window, pack
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON, SUMMARY_JSON, Workspace

logger = getLogger(__name__)

_BELOW = (f"{MEMBERS}/*/", "*/", "preprocessed/*/", "results/*/*/")
"""Where documents lie below a selected model, the results of a dataset and a work folder."""
_RANKS = ("worst", "second worst", "third worst")
PICTURE_BYTES = 9_000_000
"""Limit of all compressed voxels of a report in bytes; base64 adds a third, so the file stays below 15 MB."""
_CASE_BYTES = 1_800_000
_CT = "CTNormalization"
_ML = 1e-3
"""mm^3 in mL."""


def write_report(
    target: str | Path,
    output: Path | str | None = None,
    *,
    workspace: Workspace | None = None,
    dataset: Path | str | None = None,
    scores: Sequence[Path | str] = (),
    pictures: bool = True,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> Path:
    """Write one self-contained HTML report about a model, or all models of a dataset, and return its path.

    Args:
        target: A model folder, one of its folds, a folder written by `select`, a results or work folder; or a
            dataset's name or id.
        output: HTML file; by default `report.html` in the folder of `target`.
        workspace: Where to look for raw and preprocessed images; by default that of the model.
        dataset: Raw dataset whose images are shown; by default that of the workspace. Images that scores name
            anywhere else are not opened.
        scores: `summary.json` files of other predictions by the model, shown with their cases.
        pictures: Show cases in a slice viewer; without, the page contains no patient images.
        environment: Variables that paths in file lists may contain.

    Raises:
        ModelError: No trained model was found, or models of several datasets.

    Examples:
        >>> write_report("segwright-work", "report.html")  # doctest: +SKIP
    """
    place = workspace_or_default(workspace)
    folder = place.find_results(target)
    models = [sources.read_model(model, fold) for model, fold in sources.locate(folder)]
    for model in models:
        _warn_if_folds_differ(model)
    summary = folder / SUMMARY_JSON
    selected_scores = [summary] if is_selected(folder) and summary.is_file() else []
    further = [[*(selected_scores if model is models[0] else ()), *map(Path, scores)] for model in models]
    shown = [(model, sources.score_sets(model, files)) for model, files in zip(models, further, strict=True)]
    num_viewed = sum(len(_cases_to_view(scored)) for _, sets in shown for scored in sets)
    max_bytes = min(_CASE_BYTES, PICTURE_BYTES // max(num_viewed, 1))
    given = _raw_folder(target, place) if dataset is None else Path(dataset).absolute()
    parts = []
    for model, sets in shown:
        allowed = [folder, model.folder, *(Path(file).absolute().parent for file in scores)]
        if is_selected(folder):
            allowed += [folder.absolute().parent / name for name in ("ensembles", *_member_names(folder))]
        images = [_image_sources(model, scored, workspace, environment, given, allowed) for scored in sets]
        volumes, unit = _label_volumes(model, sets[0], images[0]) if sets else ({}, "")
        parts.append(
            page.ShownModel(
                model=model,
                sets=tuple(
                    replace(
                        _load_cases(model, scored, searched, max_bytes) if pictures else page.ShownSet(scored=scored),
                        errors=_analyse_errors(model, scored, searched),
                    )
                    for scored, searched in zip(sets, images, strict=True)
                ),
                volumes=volumes,
                volume_unit=unit,
            )
        )
    file = Path(output) if output is not None else folder / REPORT_HTML
    selected = find_selected(folder)
    selection = None if selected is None else read_selection(selected)
    digest = _digest([*reported_documents(folder), *map(Path, scores)])
    created = datetime.now().astimezone()
    write_text(file, page.render(parts, selection=selection, created=created, source_hash=digest))
    for model in models:
        for fold in model.folds:
            for line in changes_since_training(Workspace.fold_folder(model.folder, fold.name)):
                logger.warning("%s; %s shows the existing scores", line, file)
    return file


def _warn_if_folds_differ(model: ModelRecord) -> None:
    """Warn if the folds of a model folder are different models, so that their scores cannot be combined."""
    trained = [fold.name for fold in model.folds if (fold.folder / "checkpoint_final.json").is_file()]
    if len(trained) < 2:
        return
    from segwright.inference.models.model_folder import require_folds

    try:
        require_folds(model.folder, trained)
    except ModelError as error:
        logger.warning("%s; the report shows them together", error)


def find_plan(path: str | Path, *, workspace: Workspace | None = None) -> Plan:
    """Find the plan in a file or folder: of a model, preprocessed data, results or a work folder.

    Args:
        path: The file or folder; or the name or id of a dataset that was planned in the workspace.
        workspace: `./segwright-work` by default.

    Raises:
        SegwrightError: There is none, or several different ones.
    """
    return Plan.load(_find_document(_preprocessed(path, workspace), (PLANS_JSON, "*Plans*.json"), "plan"))


def find_fingerprint(path: str | Path, *, workspace: Workspace | None = None) -> Fingerprint:
    """Find the fingerprint in a file or folder, or of a dataset, as `find_plan` does.

    Raises:
        SegwrightError: There is none, or several different ones.
    """
    return Fingerprint.load(_find_document(_preprocessed(path, workspace), (FINGERPRINT_JSON,), "fingerprint"))


def find_scores(path: str | Path, *, workspace: Workspace | None = None) -> list[tables.ScoreTable]:
    """Find the scores in a `summary.json`, in a folder with one, or of all models below a path or of a dataset.

    Args:
        path: The file or folder; or the name or id of a dataset that was trained in the workspace.
        workspace: `./segwright-work` by default.

    Raises:
        SegwrightError: There are none.
    """
    place = workspace_or_default(workspace).find_results(path)
    file = place if place.is_file() else place / SUMMARY_JSON
    if file.is_file():
        description = _description_near(file)
        return [
            tables.ScoreTable.of(
                str(file), Scores.load(file), Labels.from_description(description), description.file_ending
            )
        ]
    score_tables = [
        tables.ScoreTable.of(
            f"{model.configuration_name}: {scored.title}", scored.scores, model.labels, model.description.file_ending
        )
        for model in (sources.read_model(folder, fold) for folder, fold in sources.locate(place))
        for scored in sources.score_sets(model)
    ]
    if not score_tables:
        raise ModelError(
            f"{place}: no fold has a validation/{SUMMARY_JSON}; train a numbered fold (`all` has no validation)"
        )
    return score_tables


def report_of_run(
    results: Path, *, workspace: Workspace, dataset: Path | None = None, scores: Sequence[Path] = ()
) -> Path | None:
    """Return the report beside the models of a dataset, rewritten if scores are newer.

    A failure is logged and returns None, so that it does not fail the run.
    """
    file = results / REPORT_HTML
    shown = [*reported_documents(results), *scores]
    try:
        written = file.stat().st_mtime_ns if file.is_file() else 0
        is_older = any(document.stat().st_mtime_ns > written for document in shown)
        if is_older or page.source_hash_of(file) != _digest(shown):
            write_report(results, file, workspace=workspace, dataset=dataset, scores=scores)
    except Exception as error:  # any failure, since the results are complete
        logger.warning("no report was written (%s: %s); all other results are complete", type(error).__name__, error)
        return None
    return file


def _digest(documents: Sequence[Path]) -> str:
    return content_hash([file_hash(document) for document in documents])


def _find_document(path: Path, names: Sequence[str], kind: str) -> Path:
    """Find a document: the path itself if it is a file, else in the folder, above it (for a fold), or below it.

    Raises:
        ModelError: there is none, or several different ones in the same place.
    """
    if path.is_file():
        return path
    patterns = [(folder, name) for folder in (path, path.absolute().parent) for name in names]
    patterns += [(path, f"{below}{name}") for below in _BELOW for name in names]
    for folder, pattern in patterns:
        matches = sorted(folder.glob(pattern))
        if len(matches) > 1 and len({read_bytes(file, max_bytes=MAX_BYTES) for file in matches}) > 1:
            listed = ", ".join(str(file.relative_to(folder)) for file in matches)
            raise ModelError(f"{folder}: contains several files with a {kind} ({listed}); give one of them")
        if matches:
            return matches[0]
    what = f"holds no {kind}" if path.is_dir() else "no such file or folder"
    raise ModelError(f"{path}: {what}; give {names[0]} or a folder with it, for instance a model folder")


def _description_near(summary: Path) -> DatasetDescription:
    """Find the dataset.json for the class names of a summary: beside it, up to three folders above, or of a member."""
    above = list(summary.absolute().parents)[:4]
    folders = [*above, *sorted(above[0].glob(f"{MEMBERS}/*"))]
    file = next((folder / DATASET_JSON for folder in folders if (folder / DATASET_JSON).is_file()), None)
    if file is None:
        raise DatasetError(
            f"{summary}: no {DATASET_JSON} beside it or up to three folders above, which "
            "gives the class names; copy it there"
        )
    return load_description(file)


def _preprocessed(path: str | Path, workspace: Workspace | None) -> Path:
    """Return a path if it exists, else the preprocessed folder of a dataset given by name or id, else the path."""
    place = workspace_or_default(workspace)
    try:
        return Path(path) if Path(path).exists() else place.preprocessed_dataset(place.dataset_name(path))
    except DatasetError:
        return Path(path)


def _raw_folder(target: str | Path, workspace: Workspace) -> Path | None:
    """Return the raw folder of a dataset given by name or id; None for the path of a model, or if it is not found."""
    if Path(target).exists():
        return None
    try:
        return workspace.resolve_dataset(target)
    except DatasetError as error:
        logger.warning("%s; images are shown as they were preprocessed", error)
        return None


def _cases_to_view(scored: ScoreSet) -> list[tuple[str, CaseScores]]:
    """Return the worst cases, the median and the best, each with its rank in words."""
    cases = [case for case in tables.ranked(scored.scores) if not math.isnan(case.mean_dice)]
    if not cases:
        return []
    num_worst = min(len(_RANKS), max(1, len(cases) - 2))
    picks = {index: _RANKS[index] for index in range(num_worst)}
    median = (len(cases) - 1) // 2
    if median:
        picks[median] = "median"
    picks.setdefault(len(cases) - 1, "best")
    return [(rank, cases[index]) for index, rank in sorted(picks.items())]


def _load_cases(model: ModelRecord, scored: ScoreSet, images: ImageSources, max_bytes: int) -> page.ShownSet:
    """Load the cases of a score set for the viewer, each packed into `max_bytes`."""
    viewed, missing = [], []
    labels = model.labels
    for rank, case in _cases_to_view(scored):
        try:
            loaded = load_case(case, images)
        except SegwrightError as error:
            missing.append(f"{rank}, {error}")
            continue
        viewed.append(
            page.ViewedCase(
                rank=rank,
                name=loaded.identifier,
                mean=case.mean_dice,
                dice={labels.class_name(class_key(key)): item.dice for key, item in case.metrics.items()},
                packed=pack(loaded, labels.foreground_labels, max_bytes=max_bytes, windows=_windows(model, loaded)),
            )
        )
    return page.ShownSet(scored=scored, viewed=tuple(viewed), missing=tuple(missing))


def _analyse_errors(model: ModelRecord, scored: ScoreSet, images: ImageSources) -> ErrorAnalysis | None:
    """Return what loses most in a score set; slices lie across the plan's first axis, as in 2D configurations."""
    measured = measure_cases(scored.scores, images, model.plan.transpose_forward[0], model.labels.ignore_label)
    return analyse_errors(scored.scores, model.labels, measured)


def _windows(model: ModelRecord, case: CaseImages) -> list[tuple[float, float] | None]:
    """Return the intensity window of each channel: that of the foreground in a raw CT, else None (from the image)."""
    windows: list[tuple[float, float] | None] = []
    statistics = model.plan.foreground_intensity_properties_per_channel
    for channel in range(len(case.image)):
        schemes = model.configuration.normalization_schemes
        known = statistics.get(str(channel))
        if not case.is_raw or known is None or channel >= len(schemes) or schemes[channel] != _CT:
            windows.append(None)
            continue
        windows.append(foreground_window(known["percentile_00_5"], known["percentile_99_5"]))
    return windows


def _image_sources(
    model: ModelRecord,
    scored: ScoreSet,
    workspace: Workspace | None,
    environment: Mapping[str, str],
    dataset: Path | None,
    allowed: Sequence[Path],
) -> ImageSources:
    """Return where to look for images: in the given dataset, in the given workspace, in the model's workspace.

    Args:
        model: the model.
        scored: its scores.
        workspace: the given workspace.
        environment: variables that paths in file lists may contain.
        dataset: the given raw dataset.
        allowed: further folders whose files may be opened.
    """
    name, identifier = model.dataset, model.configuration.data_identifier
    workspaces = [each for each in (workspace, _own_workspace(model)) if each is not None]
    folders = [*([] if dataset is None else [dataset]), *(each.raw / name for each in workspaces)]
    raw = next((folder for folder in folders if (folder / DATASET_JSON).is_file()), None)
    stores = [CaseStore(each.case_folder(name, identifier)) for each in workspaces]
    store = next((store for store in stores if store.identifiers()), None)
    return ImageSources(
        description=model.description,
        reader=model.plan.image_reader_writer,
        predictions=scored.folders,
        raw=raw,
        files={} if raw is None else _listed_files(model, raw, dataset, workspace, environment),
        store=store,
        places=allowed,
        datasets=folders,
    )


def _member_names(folder: Path) -> list[str]:
    return [member.name for member in read_selected(folder).members]


def _own_workspace(model: ModelRecord) -> Workspace | None:
    """Return the workspace that contains the model, judged by folder names."""
    results = model.folder.parent.parent
    return Workspace.under(results.parent) if results.name == "results" else None


def _listed_files(
    model: ModelRecord, raw: Path, dataset: Path | None, workspace: Workspace | None, environment: Mapping[str, str]
) -> Mapping[str, Sequence[Path]]:
    """Return the images of each case that a raw dataset lists; files outside it only if the user named the dataset.

    A dataset found beside the model may come from somebody else, as the model may, and list any files of this machine.
    """
    if model.description.dataset is None:
        return {}
    cases = scan(raw, environment=environment).cases
    is_given = raw == dataset or (workspace is not None and raw == workspace.raw / model.dataset)
    inside = Path(raw.anchor) if is_given else raw
    return {
        case.identifier: case.images
        for case in cases
        if all(file.resolve().is_relative_to(inside.resolve()) for file in case.images)
    }


def _label_volumes(model: ModelRecord, scored: ScoreSet, images: ImageSources) -> tuple[dict[str, list[float]], str]:
    """Return the reference volumes of each class over the cases that contain it, and their unit.

    Voxel counts come from the scores, voxel sizes from image headers; without headers the unit is voxels.
    """
    sizes = [_voxel_ml(case, images) for case in scored.scores.metric_per_case]
    is_known = all(size is not None for size in sizes)
    volumes: dict[str, list[float]] = {}
    for key in scored.scores.mean:
        counts = [case.metrics[key].n_ref for case in scored.scores.metric_per_case]
        volumes[model.labels.class_name(class_key(key))] = [
            count * (size if is_known and size is not None else 1.0)
            for count, size in zip(counts, sizes, strict=True)
            if count
        ]
    return volumes, "mL" if is_known else "voxels"


def _voxel_ml(case: CaseScores, images: ImageSources) -> float | None:
    """Return the volume of a voxel in mL; None for 2D images or if no file has it."""
    files = [Path(case.reference_file), *(folder / case.case for folder in images.predictions)]
    file = next((file for file in files if images.finds(file)), None)
    if file is None:
        logger.debug("%s: no file to read the voxel size from", case_identifier(case, images.description))
        return None
    try:
        header = read_header(file, images.reader, is_label=True)
    except SegwrightError:
        return None
    return None if header.shape[0] == 1 else float(np.prod(header.spacing)) * _ML
