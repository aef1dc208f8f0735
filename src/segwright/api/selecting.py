"""Select the model or ensemble with the highest mean foreground Dice on held-out cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from logging import getLogger
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from segwright.api.checks.usability import find_shortcoming
from segwright.api.selection.estimating import fit_estimates, make_member
from segwright.api.selection.trained_models import (
    TrainedModel,
    comparable_folds,
    find_trained,
    log_folds,
    open_trained,
    require_current_labels,
)
from segwright.api.session import Session, open_session
from segwright.api.training_runs import is_trained, model_folder, refresh_fold
from segwright.core.errors import ModelError, Problem, ProblemReport
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_documents import describe_validation
from segwright.core.files.locks import locked
from segwright.core.files.names import below
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.plan import Plan
from segwright.evaluation.crossval import VALIDATION, CrossValidation
from segwright.evaluation.postprocessing import CLEAR_GAIN, determine
from segwright.evaluation.scores import OVERLAP_ALONE, ExtraMetrics, Scores, evaluate_files
from segwright.evaluation.selection import Candidate, Summary, choose, ensemble_name
from segwright.inference.export.postprocessing import POSTPROCESSING_JSON, PostProcessing
from segwright.inference.models.selected import (
    MEMBERS,
    SELECTION_JSON,
    Source,
    is_selected,
    read_selected,
    require_replaceable,
    write_selected,
)
from segwright.inference.reliability.model import read_estimates
from segwright.report.results import SelectionReport
from segwright.workspace import PLANS_JSON, SUMMARY_JSON, Workspace

logger = getLogger(__name__)

VERSION = 3
"""Version of the rules of selection; increased when they change, so that older selections are redone."""

Command = Literal["select", "run"]


def select(
    dataset: str | Path | int,
    *,
    workspace: Workspace | None = None,
    configurations: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    plans: str | None = None,
    names: Sequence[str] | None = None,
    ensembles: bool = True,
    output: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
    wait: bool = True,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    trust_code: TrustCode = False,
) -> SelectionReport:
    """Find the model, or ensemble of two, with the highest mean foreground Dice on held-out cases, and write it.

    Models are scored on the held-out cases of the folds that all models have. Ensembles are scored on the averaged
    probabilities of both models, which are predicted now if missing. Post-processing is determined on the predictions
    of the best. The result is a model folder.

    Args:
        dataset: Folder, name or id.
        workspace: Where results are; `./segwright-work` by default.
        configurations: Configurations to compare; all trained ones by default.
        folds: Folds whose held-out cases are scored; by default those that all models have.
        plans: Only compare models of these plans; all by default.
        names: Only compare models that were trained under these names (`train(name=...)`); all by default.
        ensembles: Whether to compare ensembles of two models too.
        output: Output folder; `model` in the results of the dataset by default. An earlier selection is replaced.
        device: auto, cpu, mps or a GPU.
        workers: Threads.
        environment: Variables that paths in file lists may contain.
        trust_code: Whether to import code that only files name, for instance a network in a checkpoint: False, True,
            or only the given references (`module:attr`).

    Raises:
        SegwrightError: No fold is trained and validated, models have no common fold, or the folder is in use.

    Examples:
        >>> report = select(4)  # doctest: +SKIP
        >>> segwright.predict(report.model, "images", "out")  # doctest: +SKIP
    """
    session = open_session(dataset, workspace, environment=environment, trust=CodeTrust.of(trust_code), wait=wait)
    models = find_trained(session, configurations=configurations, plans=plans, names=names)
    _refresh_folds(session, models, folds)
    return select_models(
        session, models, folds=folds, ensembles=ensembles, output=output, device=device, workers=workers
    )


def select_after_run(
    session: Session,
    plan: Plan,
    names: Sequence[str],
    folds: Sequence[int],
    *,
    device: str = "auto",
    workers: int | None = None,
) -> SelectionReport:
    """Select among the configurations of a run and earlier ones of the same plans with the same folds.

    As `select` does, it scores all finished folds that these models have: of runs with different folds, the last one to
    end selects with the folds of all. Where other folds or models do not fit, a warning says what is left out.
    """
    own, compared = _models_of_run(session, plan, names, folds)

    def select_in(folders: Sequence[Path], numbers: Sequence[int] | None) -> SelectionReport:
        return select_models(session, folders, folds=numbers, device=device, workers=workers, made_by="run")

    try:
        _refresh_folds(session, compared, None)
        return select_in(compared, None)
    except (ModelError, ProblemReport) as error:
        logger.warning("%s; only folds of this run are compared: %s", error, ", ".join(map(str, folds)))
    try:
        return select_in(compared, folds)
    except (ModelError, ProblemReport) as error:
        if compared == own:
            raise
        logger.warning("%s; only the models of this run are compared", error)
        return select_in(own, folds)


def is_selected_after_run(session: Session, plan: Plan, names: Sequence[str], folds: Sequence[int]) -> bool:
    """Return whether `select_after_run` would keep the selection that there is; nothing is written."""
    own, compared = _models_of_run(session, plan, names, folds)
    for models, numbers in ((compared, None), (compared, folds), (own, folds)):
        try:
            trained = open_trained(models, numbers)
        except (ModelError, ProblemReport):
            continue
        source_hash = _source_hash(session, trained, _sources(trained, numbers), ensembles=True)
        return _existing_selection(session.workspace.selected_folder(session.name), source_hash, "run") is not None
    return False


def _models_of_run(
    session: Session, plan: Plan, names: Sequence[str], folds: Sequence[int]
) -> tuple[list[Path], list[Path]]:
    """Return the model folders of the configurations of a run, and those that they are compared with as well."""
    models = {name: model_folder(session, plan, name) for name in sorted({*names, *plan.configuration_names})}
    compared = [folder for name, folder in models.items() if name in names or {*folds} <= {*comparable_folds(folder)}]
    return [models[name] for name in sorted(set(names))], compared


def select_models(
    session: Session,
    models: Sequence[Path],
    *,
    folds: Sequence[int] | None = None,
    ensembles: bool = True,
    output: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
    made_by: Command = "select",
) -> SelectionReport:
    """Select among model folders; see `select` for the arguments.

    An up-to-date selection is kept. With `made_by='run'` a selection made by `segwright select` is kept even if it is
    outdated.
    """
    target = Path(output) if output is not None else session.workspace.selected_folder(session.name)
    require_replaceable(target)
    what = f"selecting {target.name} of {session.name}"
    with locked(Workspace.lock_beside(target.absolute()), what, wait=session.wait):
        return _select(
            session, models, target, folds=folds, ensembles=ensembles, device=device, workers=workers, made_by=made_by
        )


def _select(
    session: Session,
    models: Sequence[Path],
    target: Path,
    *,
    folds: Sequence[int] | None,
    ensembles: bool,
    device: str,
    workers: int | None,
    made_by: Command,
) -> SelectionReport:
    trained = open_trained(models, folds)
    common = trained[0].crossval.folds
    sources = _sources(trained, folds)
    source_hash = _source_hash(session, trained, sources, ensembles=ensembles)
    existing = _existing_selection(target, source_hash, made_by)
    if existing is not None:
        return existing
    from segwright.inference.models.model_folder import require_folds

    require_current_labels(session, trained)
    for source in sources.values():
        require_folds(source.folder, source.folds)
    log_folds(trained)
    references = _references(session, trained[0].crossval)
    predictions: dict[tuple[str, ...], dict[str, Path]] = {(each.name,): each.crossval.cases for each in trained}
    if ensembles and len(trained) > 1:
        predictions |= _pair_predictions(session, trained, references, device=device, workers=workers)
    reader = trained[0].plan.image_reader_writer

    def score(files: Mapping[str, Path], extra: ExtraMetrics = OVERLAP_ALONE) -> Scores:
        pairs = [(references[case], file) for case, file in files.items()]
        return evaluate_files(pairs, labels=session.dataset.labels, reader=reader, workers=workers, extra=extra)

    candidates = [
        Candidate(
            name=names[0] if len(names) == 1 else ensemble_name(names[0], names[1], common),
            members=names,
            scores=score(files),
        )
        for names, files in predictions.items()
    ]
    selection = choose(candidates, common)
    winners = predictions[selection.winner.members]
    processing = determine(
        [(references[case], file) for case, file in winners.items()],
        labels=session.dataset.labels,
        reader=reader,
        workers=workers,
        minimum=CLEAR_GAIN,
    ).processing
    comparison = selection.summary()
    winner_sources = [sources[name] for name in selection.winner.members]
    fold_folders = [Workspace.fold_folder(each.folder, fold) for each in winner_sources for fold in each.folds]
    shortcoming = find_shortcoming(fold_folders, comparison.dice)
    members = [each for each in trained if each.name in selection.winner.members]
    estimates = fit_estimates(session, members, winners, selection.winner.scores, device=device, workers=workers)
    _warn_of_fewer_folds(target, common)
    write_selected(
        target,
        winner_sources,
        processing,
        dataset=session.name,
        source_hash=source_hash,
        made_by=made_by,
        selection=comparison.model_dump(),
        summary=score(winners, ExtraMetrics(surface=True)).to_json(),
        dice_estimator=estimates.dice_estimator,
        calibration=estimates.calibration,
        shortcoming=shortcoming,
    )
    logger.info("selected %s, mean Dice %.4f: %s", comparison.winner, comparison.dice, target)
    return SelectionReport(
        model=target,
        comparison=comparison,
        postprocessing=processing,
        dice_estimator=estimates.dice_estimator,
        calibration=estimates.calibration,
        is_new=True,
        shortcoming=shortcoming,
    )


def _refresh_folds(session: Session, models: Sequence[Path], folds: Sequence[int] | None) -> None:
    """Score the folds to compare with the current labels if these changed."""
    for model in open_trained(models, folds):
        for fold in model.crossval.folds:
            refresh_fold(session, model.plan, model.configuration, Workspace.fold_folder(model.folder, fold))


def _warn_of_fewer_folds(target: Path, folds: Sequence[int]) -> None:
    """Warn if the selection that is replaced scored more folds than the new one."""
    before = read_selected(target).selection.get("folds", ()) if is_selected(target) else ()
    left_out = [str(fold) for fold in before if fold not in folds]
    if left_out:
        logger.warning(
            "%s: the selection that is replaced scored fold %s too, the new one only %s",
            *(target, ", ".join(left_out), ", ".join(map(str, folds))),
        )


def _source_hash(
    session: Session, trained: Sequence[TrainedModel], sources: Mapping[str, Source], *, ensembles: bool
) -> str:
    """Return a hash of everything that a selection depends on."""
    states = [[name, source.folds, _state(source)] for name, source in sources.items()]
    return content_hash([VERSION, ensembles, trained[0].crossval.folds, session.raw_digest, states])


def _sources(trained: Sequence[TrainedModel], folds: Sequence[int] | None) -> dict[str, Source]:
    return {each.name: _source(each, folds) for each in trained}


def _source(model: TrainedModel, folds: Sequence[int] | None) -> Source:
    """Return the model with the requested folds, or all finished ones."""
    names = [path.name.removeprefix("fold_") for path in model.folder.glob("fold_*") if is_trained(path)]
    every = sorted(int(name) for name in names if name.isdecimal())
    chosen = tuple(fold for fold in every if folds is None or fold in folds)
    return Source(folder=model.folder, configuration=model.configuration, folds=chosen)


def _state(source: Source) -> list[tuple[str, int, int]]:
    """Return size and time of all files that a selection depends on."""
    names = ("checkpoint_final.safetensors", f"{VALIDATION}/{SUMMARY_JSON}")
    files = [Workspace.fold_folder(source.folder, fold) / name for fold in source.folds for name in names]
    states = [(file, file.stat()) for file in (source.folder / PLANS_JSON, *files) if file.is_file()]
    return [(file.relative_to(source.folder).as_posix(), state.st_size, state.st_mtime_ns) for file, state in states]


def _existing_selection(target: Path, source_hash: str, made_by: Command) -> SelectionReport | None:
    """Return the existing selection if it is up to date or must not be replaced by this command."""
    if not is_selected(target):
        return None
    selected = read_selected(target)
    is_complete = all((target / MEMBERS / member.name).is_dir() for member in selected.members)
    if not is_complete:
        return None
    if selected.source_hash != source_hash:
        if made_by == "select" or selected.made_by != "select":
            return None
        logger.warning(
            "%s: was made by 'segwright select' and is kept; run 'segwright select' again to update it", target
        )
    return read_selection(target)


def read_selection(folder: Path) -> SelectionReport:
    """Read the selection document of a selected model.

    Raises:
        SegwrightError: a document is missing or damaged.
    """
    dice_estimator, calibration = read_estimates(folder)
    selected = read_selected(folder)
    try:
        comparison = Summary.model_validate(selected.selection)
    except ValidationError as error:
        raise ModelError(f"{folder / SELECTION_JSON}: selection: {describe_validation(error)}") from error
    return SelectionReport(
        model=folder,
        comparison=comparison,
        postprocessing=PostProcessing.load(folder / POSTPROCESSING_JSON),
        dice_estimator=dice_estimator,
        calibration=calibration,
        is_new=False,
        shortcoming=selected.shortcoming,
    )


def _references(session: Session, held_out: CrossValidation) -> dict[str, Path]:
    """Return the reference label map of each held-out case.

    Raises:
        ProblemReport: cases have none any more; all of them at once.
    """
    labels = {case.identifier: case.label for case in session.dataset.cases if case.label is not None}
    missing = [case for case in held_out.cases if case not in labels]
    if missing:
        raise ProblemReport(
            [
                Problem(where=f"case {case}", what="was held out but has no label in the dataset", remedy="put it back")
                for case in missing
            ]
        )
    return {case: labels[case] for case in held_out.cases}


def _pair_predictions(
    session: Session,
    trained: Sequence[TrainedModel],
    references: Mapping[str, Path],
    *,
    device: str,
    workers: int | None,
) -> dict[tuple[str, ...], dict[str, Path]]:
    """Return the label maps of every ensemble of two models; missing ones are predicted."""
    from segwright.training.validation.out_of_fold import predict_pairs

    ending = session.dataset.description.file_ending
    members = {each.name: make_member(session, each, workers=workers) for each in trained}
    pairs = list(combinations(members, 2))
    result: dict[tuple[str, ...], dict[str, Path]] = {pair: {} for pair in pairs}
    everything = session.workspace.ensemble_folder(session.name, "ensemble").parent
    with locked(Workspace.lock_beside(everything), f"predicting ensembles of {session.name}", wait=session.wait):
        for fold, files in trained[0].crossval.files.items():
            folders = {
                pair: below(
                    session.workspace.ensemble_folder(session.name, "___".join(("ensemble", *pair))), f"fold_{fold}"
                )
                for pair in pairs
            }
            truths = {case: references[case] for case in files}
            predict_pairs(
                members,
                folders,
                fold,
                truths,
                file_ending=ending,
                label_map=session.dataset.description.label_map,
                device=device,
                trust=session.trust,
            )
            for pair, folder in folders.items():
                result[pair] |= {case: folder / f"{case}{ending}" for case in files}
    return result
