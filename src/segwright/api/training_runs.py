"""Train, resume and validate one fold of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segwright.api.checks.one_model import (
    Fold,
    differing_settings,
    require_same_network,
    require_same_plan,
    require_same_task,
)
from segwright.api.checks.pretraining import require_same_pretraining
from segwright.api.checks.staleness import (
    record_scored_labels,
    record_training_data,
    refresh_scores,
    require_same_cases,
)
from segwright.api.checks.trainer_file import require_same_model
from segwright.api.checks.training_options import TrainOptions, trainer_maker
from segwright.api.checks.usability import find_shortcoming
from segwright.api.preparing import cases_are_fresh, cases_folder, preprocess_cases
from segwright.api.session import Session
from segwright.api.splitting import dataset_splits, select_fold
from segwright.core.errors import DatasetError, ModelError
from segwright.core.extensions.user_code import user_call, user_code_errors
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.hashing import file_hash
from segwright.core.files.locks import locked
from segwright.core.files.names import below
from segwright.data.crossval import splits
from segwright.data.plan import Plan
from segwright.data.preprocessed.previous_stage import FOLDER, StageMaps
from segwright.data.preprocessed.store import CaseStore, DamagedCaseError
from segwright.evaluation.crossval import VALIDATION
from segwright.evaluation.scores import Scores
from segwright.report.results import TrainedFold, dice_by_name
from segwright.training.config import TrainConfig
from segwright.workspace import FINGERPRINT_JSON, SUMMARY_JSON, Workspace

if TYPE_CHECKING:
    from segwright.training.cascade import CascadeStore
    from segwright.training.distributed.context import DistributedContext
    from segwright.training.trainer import Trainer

logger = getLogger(__name__)

SUMMARY = Path(VALIDATION) / SUMMARY_JSON
"""Scores of the held-out cases, in the folder of a fold."""
SUMMARY_OF_BEST = Path(f"{VALIDATION}_best") / SUMMARY_JSON
"""The same of `checkpoint_best`."""


def model_folder(session: Session, plan: Plan, configuration: str) -> Path:
    """Return the model folder of a configuration."""
    return session.workspace.model_folder(session.name, session.model_name, plan.plans_name, configuration)


def fold_folder(session: Session, plan: Plan, configuration: str, fold: Fold) -> Path:
    """Return the folder of one fold."""
    return below(model_folder(session, plan, configuration), f"fold_{fold}")


def is_trained(folder: Path) -> bool:
    """Return whether the training of a fold is finished, by file names alone, so that torch is not imported."""
    return all((folder / f"checkpoint_final{suffix}").is_file() for suffix in (".safetensors", ".json"))


def has_training(session: Session, plan: Plan, names: Iterable[str], folds: Iterable[Fold]) -> bool:
    """Return whether a training of one of these configurations and folds was begun."""
    folders = [fold_folder(session, plan, name, fold) for name in names for fold in folds]
    return any(any(folder.glob("checkpoint_*.safetensors")) for folder in folders)


def is_validated(folder: Path) -> bool:
    """Return whether the held-out cases of a fold are scored."""
    return (folder / SUMMARY).is_file()


def training_cases(session: Session, plan: Plan, configuration: str) -> CaseStore | CascadeStore:
    """Return the preprocessed cases of a configuration, with the previous stage's predictions for a cascade."""
    store = CaseStore(cases_folder(session, plan, configuration))
    if plan.configuration(configuration).previous_stage is None:
        return store
    from segwright.training.cascade import CascadeStore

    return CascadeStore(store, _stage_maps(session, plan, configuration))


def require_trainable(
    session: Session, plan: Plan, configuration: str, folds: Sequence[Fold], settings: Mapping[str, Any]
) -> None:
    """Check that a configuration can be trained, and that new folds fit the existing folds of the model.

    Args:
        session: dataset and workspace.
        plan: its plan.
        configuration: its name.
        folds: folds to train.
        settings: fields of `TrainConfig` for them.

    Raises:
        PlanError: the plan lacks the configuration, or the previous stage of a cascade.
        ModelError: existing folds were trained with another plan, other labels or another network, or the network is
            not that of the checkpoint to start from.
    """
    wanted = plan.configuration(configuration)
    if folds:
        has_own_network = session.trainer is not None or session.nnunet_trainer is not None
        require_same_pretraining(settings, wanted, has_own_network=has_own_network)
    if wanted.previous_stage is not None:
        require_trainable(session, plan, wanted.previous_stage, (), settings)
    folder = model_folder(session, plan, configuration)
    require_same_task(folder, session.dataset.description)
    if session.nnunet_trainer is None:  # which may change plan and network; see `require_same_model`
        require_same_plan(folder, plan, configuration)
        require_same_network(folder, folds, settings)


def warn_of_ignored_settings(
    session: Session, plan: Plan, configuration: str, fold: Fold, settings: Mapping[str, Any]
) -> None:
    """Warn about requested settings that have no effect, because the fold is finished and was trained with others."""
    folder = fold_folder(session, plan, configuration, fold)
    for name, (used, requested) in differing_settings(folder, settings).items():
        logger.warning(
            "%s is finished and kept: %s = %s has no effect, it was trained with %s; delete it to train again",
            *(folder, name, requested, used),
        )


@contextmanager
def fold_lock(
    session: Session, folder: Path, distributed: DistributedContext | None = None, *, what: str = "training"
) -> Iterator[None]:
    """Lock a folder of a model, such as that of a fold; wait for another process that writes it.

    The first of several processes holds the lock for all.
    """
    what = f"{what} {folder.parent.name}, {folder.name}"
    is_first = distributed is None or distributed.is_first
    with locked(Workspace.lock_beside(folder), what, wait=session.wait) if is_first else nullcontext():
        if distributed is not None:
            distributed.barrier()
        yield


def describe_ignored_settings(
    session: Session, plan: Plan, finished: Iterable[tuple[str, Fold]], settings: Mapping[str, Any]
) -> str:
    """Describe on one line the requested settings that finished folds were not trained with; empty without any."""
    folders = {(name, fold): fold_folder(session, plan, name, fold) for name, fold in finished}
    differing = {key: differing_settings(folder, settings) for key, folder in sorted(folders.items(), key=str)}
    parts = [
        f"{name} fold {fold} was trained with {_listed({key: used for key, (used, _) in values.items()})}, not "
        f"{_listed({key: requested for key, (_, requested) in values.items()})}"
        for (name, fold), values in differing.items()
        if values
    ]
    if not parts:
        return ""
    kept = ", ".join(str(folders[key]) for key, values in differing.items() if values)
    return (
        f"not done: {'; '.join(parts)}, and is kept; to train again delete {kept}; to keep both, train the second "
        "model with --name NAME"
    )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {'that of the plan' if value is None else value}" for key, value in values.items())


def complete_fold(session: Session, plan: Plan, configuration: str, fold: Fold, *, options: TrainOptions) -> bool:
    """Train and validate one fold as far as needed, and return whether anything was missing."""
    folder = fold_folder(session, plan, configuration, fold)

    def train_and_validate() -> None:
        _complete_previous_stage(session, plan, configuration, fold, options)
        trainer = _train(session, plan, configuration, fold, options)
        with user_code_errors(trainer.trust.packages | session.trust.packages, "the validation"):
            if options.validate == "final" or not is_validated(folder):
                trainer.perform_actual_validation()
            if options.validate == "best":
                _validate_best(trainer)

    is_first = options.distributed is None or options.distributed.is_first
    with fold_lock(session, folder, options.distributed):
        is_complete = is_trained(folder) and is_validated(folder)  # perhaps by another process meanwhile
        is_complete &= options.validate is None
        if is_trained(folder) and is_first:
            without = ("save_probabilities",) if options.validate is not None else ()
            settings = {key: value for key, value in options.settings.items() if key not in without}
            warn_of_ignored_settings(session, plan, configuration, fold, settings)
        if not is_complete:
            _retry_damaged_cases(train_and_validate, session, plan, configuration, options)
            if is_first:
                record_scored_labels(session, plan, configuration, folder)
        elif is_first:
            refresh_scores(session, plan, configuration, folder)
    return not is_complete


def _validate_best(trainer: Trainer) -> None:
    """Predict and score the held-out cases with the weights of `checkpoint_best`.

    Raises:
        ModelError: there is none.
    """
    from segwright.networks.checkpoint import load_state, load_weights
    from segwright.training.checkpointing.checkpoints import checkpoint_file

    file = checkpoint_file(trainer.output_folder, "best")
    if not file.is_file():
        raise ModelError(f"{file}: no such file; the training kept no best checkpoint, validate the final one")
    load_state(trainer.network, load_weights(file), source=str(file))
    trainer.validated = "best"
    trainer.perform_actual_validation()


def refresh_fold(session: Session, plan: Plan, configuration: str, folder: Path) -> None:
    """Score a finished fold with the current labels if they changed, as `refresh_scores`; one process at a time."""
    with fold_lock(session, folder, what="scoring"):
        refresh_scores(session, plan, configuration, folder)


def train_only(session: Session, plan: Plan, configuration: str, fold: Fold, *, options: TrainOptions) -> Path:
    """Train one fold as far as needed, without validation, and return the model folder."""
    folder = fold_folder(session, plan, configuration, fold)
    with fold_lock(session, folder, options.distributed):
        if not is_trained(folder):
            _complete_previous_stage(session, plan, configuration, fold, options)
            _train(session, plan, configuration, fold, options)
    return folder.parent


def train_for_next_stage(
    session: Session, plan: Plan, configuration: str, fold: Fold, *, options: TrainOptions
) -> bool:
    """Train one fold of a cascade's first stage for its second, without validation; return whether it was missing."""
    if is_trained(fold_folder(session, plan, configuration, fold)):
        return False
    train_only(session, plan, configuration, fold, options=_previous_stage_options(options))
    return True


def _retry_damaged_cases(
    action: Callable[[], None], session: Session, plan: Plan, configuration: str, options: TrainOptions
) -> None:
    """Run an action that reads preprocessed cases; if some are damaged, preprocess them again and retry once.

    A training continues from its last checkpoint. With several processes the error is raised, since they cannot be
    restarted here.
    """
    try:
        action()
    except DamagedCaseError as error:
        if options.distributed is not None:
            raise
        logger.warning("%s", error)
        stage: str | None = configuration
        while stage is not None:
            logger.warning("preprocessing damaged cases of %s again, then continuing", stage)
            preprocess_cases(session, plan, stage, even_if_in_use=True)
            stage = plan.configuration(stage).previous_stage
        action()


def finished_fold(
    session: Session, plan: Plan, configuration: str, fold: Fold, *, with_best: bool = False
) -> TrainedFold:
    """Return the scores of a finished fold, with those of `checkpoint_best` on request."""
    folder, labels = fold_folder(session, plan, configuration, fold), session.dataset.labels
    summary = Scores.load(folder / SUMMARY)
    return TrainedFold(
        configuration=configuration,
        fold=fold,
        model=folder.parent,
        folder=folder,
        dice=dice_by_name(summary, labels),
        dice_best=dice_by_name(Scores.load(folder / SUMMARY_OF_BEST), labels) if with_best else None,
        shortcoming=find_shortcoming([folder], summary.mean_dice),
    )


def _train(session: Session, plan: Plan, configuration: str, fold: Fold, options: TrainOptions) -> Trainer:
    """Start, resume or open the training of a fold; return its trainer with the final weights."""
    from segwright.core.device import CPU, resolve_device
    from segwright.training.checkpointing.checkpoints import find_resumable
    from segwright.training.distributed.context import SINGLE
    from segwright.training.monitoring.cost import CostEstimate
    from segwright.training.monitoring.thread_choice import LONGEST_TRIAL, fastest_threads

    folder = fold_folder(session, plan, configuration, fold)
    if session.nnunet_trainer is None:
        require_same_network(folder.parent, [fold], options.settings)  # a cascade's first stage has no training yet
    distributed = options.distributed or SINGLE
    split = _split(session, fold, write=distributed.is_first)
    checkpoint = find_resumable(folder)
    make = trainer_maker(session)
    contract = "its __init__ must accept the arguments of Trainer's and pass them on"
    packages = session.trust.packages
    with user_call(make, f"trainer '{session.trainer_name}'", packages=packages, contract=contract):
        trainer = make(
            plan,
            configuration,
            fold,
            session.dataset.description,
            options.device,
            config=TrainConfig.from_mapping(options.settings),
            cases=training_cases(session, plan, configuration),
            split=split,
            references={case.identifier: case.label for case in session.dataset.cases if case.label is not None},
            output_folder=folder,
            distributed=distributed,
            stop=options.stop,
        )
        # Not an argument: a subclass may have a signature of its own.
        trainer.trust = session.trust.with_references(*trainer.trust.references)
    if session.nnunet_trainer is not None:
        require_same_model(trainer)
    if distributed.is_first and checkpoint is None:
        record_training_data(session, plan, configuration, folder, trainer.split)
    elif distributed.is_first:
        require_same_cases(session, plan, configuration, folder, trainer.split)
    with user_code_errors(packages, f"trainer '{session.trainer_name}'"):
        if distributed.is_first:
            _copy_fingerprint(session, folder.parent)
        if checkpoint is not None:
            trainer.load_checkpoint(checkpoint)
    if not is_trained(folder):
        # Under a budget the result depends on the machine's speed anyway; otherwise threads would change the last bits.
        has_choice = "budget_s" in options.settings and resolve_device(options.device).type == CPU
        threads = fastest_threads(trainer.callbacks) if has_choice else nullcontext()
        if session.nnunet_trainer is None:
            trainer.callbacks.append(CostEstimate(after_steps=LONGEST_TRIAL if has_choice else 0))
        with threads, user_code_errors(trainer.trust.packages | session.trust.packages, "the training"):
            trainer.run_training()
    return trainer


def _split(session: Session, fold: Fold, *, write: bool) -> splits.Split:
    return select_fold(session, fold, write=write)


def _stage_maps(session: Session, plan: Plan, configuration: str) -> StageMaps:
    """Return the folder of the previous stage's predictions, in the model folder of that stage."""
    previous = plan.configuration(configuration).previous_stage
    assert previous is not None, "only a cascade's second stage reads predictions"
    return StageMaps(model_folder(session, plan, previous) / FOLDER / configuration)


def _complete_previous_stage(
    session: Session, plan: Plan, configuration: str, fold: Fold, options: TrainOptions
) -> None:
    """Train the folds of a cascade's first stage that a fold of the second needs, and predict each case with them.

    Each case is predicted by the fold that holds it out; up-to-date predictions are kept.

    Raises:
        DatasetError: no fold holds out a case.
    """
    previous = plan.configuration(configuration).previous_stage
    if previous is None:
        return
    from segwright.training.distributed.context import SINGLE

    distributed = options.distributed or SINGLE
    options = _previous_stage_options(options)
    held_out = _cases_by_holding_fold(session, fold, write=distributed.is_first)
    if distributed.is_first and not cases_are_fresh(session, plan, previous):
        preprocess_cases(session, plan, previous)
    untrained = distributed.broadcast([k for k in held_out if not is_trained(fold_folder(session, plan, previous, k))])
    if untrained:
        logger.info(
            "%s fold %s needs out-of-fold predictions of %s: training its missing folds %s with the same settings",
            *(configuration, fold, previous, ", ".join(map(str, untrained))),
        )
    for number in untrained:
        folder = fold_folder(session, plan, previous, number)
        with fold_lock(session, folder, options.distributed):
            if not distributed.broadcast(is_trained(folder)):  # otherwise another process has trained it meanwhile
                _complete_previous_stage(session, plan, previous, number, options)
                _train(session, plan, previous, number, options)
            distributed.barrier()
    maps = _stage_maps(session, plan, configuration)
    for number, identifiers in held_out.items():
        with fold_lock(session, maps.folder / f"fold_{number}", distributed, what="predicting held-out cases for"):
            part = distributed.local_items(identifiers)
            _predict_held_out(session, plan, configuration, number, part, device=options.device)
            distributed.barrier()


def _previous_stage_options(options: TrainOptions) -> TrainOptions:
    """Return the options for a cascade's first stage; pretrained weights are those of a second stage."""
    second_only = ("pretrained", "pretrained_channels")
    settings = {key: value for key, value in options.settings.items() if key not in second_only}
    return replace(options, settings=settings)


def _cases_by_holding_fold(session: Session, fold: Fold, *, write: bool) -> dict[int, list[str]]:
    """Return the training and held-out cases of `fold`, grouped by the fold that holds them out.

    Raises:
        DatasetError: no fold holds out a case.
    """
    needed = _split(session, fold, write=write)
    folds = dataset_splits(session, write=write)
    held_out: dict[int, list[str]] = {}
    for name in sorted({*needed.train, *needed.val}):
        number = next((index for index, split in enumerate(folds) if name in split.val), None)
        if number is None:
            raise DatasetError(
                f"case {name}: no fold holds it out, so the cascade's first stage has no unbiased prediction of it; "
                "add such a fold to splits_final.json"
            )
        held_out.setdefault(number, []).append(name)
    return dict(sorted(held_out.items()))


def _predict_held_out(
    session: Session, plan: Plan, configuration: str, fold: int, identifiers: Sequence[str], *, device: str
) -> None:
    """Predict missing cases for a cascade's second stage with the first-stage fold that did not train on them."""
    from segwright.inference.models.model_folder import load_predictor
    from segwright.training.cascade import missing_maps, predict_next_stage

    wanted = plan.configuration(configuration)
    assert wanted.previous_stage is not None
    folder = fold_folder(session, plan, wanted.previous_stage, fold)
    weights_hash = file_hash(folder / "checkpoint_final.safetensors")
    maps = _stage_maps(session, plan, configuration)
    next_cases = CaseStore(cases_folder(session, plan, configuration))  # on the second stage's grid
    missing = missing_maps(maps, next_cases, identifiers, weights_hash)
    if not missing:
        return
    cases = training_cases(session, plan, wanted.previous_stage)
    logger.info(
        "%s fold %d: predicting %d held-out cases for %s, %d exist",
        *(wanted.previous_stage, fold, len(missing), configuration, len(identifiers) - len(missing)),
    )
    predictor = load_predictor(folder.parent, folds=[fold], device=device, trust=session.trust)
    predict_next_stage(
        predictor, cases, missing, next_cases, maps, patch_size=wanted.patch_size, weights_hash=weights_hash
    )


def _copy_fingerprint(session: Session, model: Path) -> None:
    """Copy the fingerprint beside the folds, as nnU-Net does; the trainer writes plan and dataset.json."""
    source = session.workspace.fingerprint_file(session.name)
    if source.is_file():
        with atomic_path(model / FINGERPRINT_JSON) as temporary:
            temporary.write_bytes(source.read_bytes())
