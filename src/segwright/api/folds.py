"""One fold of one configuration: where it lies, how far it is, and doing what is missing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segwright.api.preparing import cases_folder
from segwright.api.session import Session
from segwright.core.documents import atomic_path, read_json
from segwright.core.errors import ConfigError, ModelError
from segwright.data import splits
from segwright.data.plan import Plan
from segwright.data.store import CaseStore
from segwright.evaluation.scores import Scores
from segwright.report.results import TrainedFold, dice_by_name
from segwright.training.config import TrainConfig
from segwright.workspace import FINGERPRINT_JSON, PLANS_JSON

if TYPE_CHECKING:
    from segwright.training.distributed import Ranks
    from segwright.training.trainer import Trainer

logger = getLogger(__name__)

Fold = int | Literal["all"]

TRAINER = "Trainer"
TRAIN_JSON = "train.json"
SUMMARY = Path("validation") / "summary.json"


def require_folds(session: Session, folds: Sequence[Fold]) -> None:
    """See that every fold exists, before anything is written.

    Raises:
        DatasetError: a fold does not exist, or its cases do not.
    """
    for fold in folds:
        if fold != "all":
            splits.select(dataset_splits(session, write=False), session.dataset.identifiers, fold)


def dataset_splits(session: Session, *, write: bool = True) -> list[splits.Split]:
    """Return the dataset's splits: those in the workspace, else the raw dataset's, else nnU-Net's default."""
    file = session.workspace.splits_file(session.name)
    return splits.resolve(file, session.dataset.identifiers, raw_file=session.raw_splits, write=write)


def model_folder(session: Session, plan: Plan, configuration: str) -> Path:
    """Return where the folds of a configuration go."""
    return session.workspace.model_folder(session.name, TRAINER, plan.plans_name, configuration)


def fold_folder(session: Session, plan: Plan, configuration: str, fold: Fold) -> Path:
    """Return where one fold goes."""
    return session.workspace.fold_folder(model_folder(session, plan, configuration), fold)


def is_begun(folder: Path) -> bool:
    """Whether a fold folder holds a checkpoint."""
    return any(folder.glob("checkpoint_*.safetensors"))


def is_trained(folder: Path) -> bool:
    """Whether the training of a fold has ended; told by file names alone, so that torch is not needed for it."""
    return all((folder / f"checkpoint_final{suffix}").is_file() for suffix in (".safetensors", ".json"))


def is_validated(folder: Path) -> bool:
    """Whether the held-out cases of a fold are scored."""
    return (folder / SUMMARY).is_file()


def require_settings(settings: Mapping[str, Any], device: str) -> None:
    """See, before any work starts, that training settings and device are right.

    Raises:
        ConfigError: one is not.
    """
    TrainConfig.from_mapping(settings)
    if device != "auto":  # always there, and torch takes seconds to import
        from segwright.core.device import resolve_device

        resolve_device(device)


def require_trainable(session: Session, plan: Plan, configuration: str) -> None:
    """See that a configuration can be trained, and that folds trained before belong to this plan.

    Raises:
        ConfigError: it needs another configuration's predictions.
        ModelError: there are folds that were trained with another plan.
    """
    wanted = plan.configuration(configuration)
    if wanted.previous_stage is not None:
        raise ConfigError(
            f"configuration '{configuration}' takes the predictions of '{wanted.previous_stage}' as input and cannot "
            "be trained yet; choose 3d_fullres, 3d_lowres or 2d"
        )
    folder = model_folder(session, plan, configuration)
    used = folder / PLANS_JSON
    if not used.is_file() or not any(is_begun(fold) for fold in folder.glob("fold_*")):
        return
    trained = Plan.load(used)
    if configuration not in trained.configurations or trained.configuration(configuration) != wanted:
        raise ModelError(
            f"{folder}: was trained with a plan that has changed since; remove the folder to train anew, "
            "or keep both with other plans ('segwright plan --name NAME')"
        )


def say_if_trained_otherwise(
    session: Session, plan: Plan, configuration: str, fold: Fold, settings: Mapping[str, Any]
) -> None:
    """Log which of the settings asked for are not those that a finished fold was trained with."""
    folder = fold_folder(session, plan, configuration, fold)
    record = folder / TRAIN_JSON
    used = read_json(record).get("config", {}) if record.is_file() else {}
    for name, value in settings.items():
        if used.get(name) != value:
            logger.warning(
                "%s is kept, trained with %s = %s, not %s; remove it to train anew", folder, name, used.get(name), value
            )


def train_fold(
    session: Session,
    plan: Plan,
    configuration: str,
    fold: Fold,
    *,
    settings: Mapping[str, Any],
    device: str,
    ranks: Ranks | None = None,
) -> TrainedFold:
    """Train what is missing of one fold, validate what is missing, and return its scores."""
    folder = fold_folder(session, plan, configuration, fold)
    if not (is_trained(folder) and is_validated(folder)):
        trainer = _train(session, plan, configuration, fold, settings=settings, device=device, ranks=ranks)
        trainer.perform_actual_validation()
    return finished_fold(session, plan, configuration, fold)


def train_only(
    session: Session, plan: Plan, configuration: str, fold: Fold, *, settings: Mapping[str, Any], device: str
) -> Path:
    """Train what is missing of one fold, without validation, and return the model folder."""
    folder = fold_folder(session, plan, configuration, fold)
    if not is_trained(folder):
        _train(session, plan, configuration, fold, settings=settings, device=device)
    return folder.parent


def finished_fold(session: Session, plan: Plan, configuration: str, fold: Fold) -> TrainedFold:
    """Return the scores of a fold that is trained and validated."""
    folder = fold_folder(session, plan, configuration, fold)
    summary = Scores.load(folder / SUMMARY)
    return TrainedFold(
        configuration=configuration,
        fold=fold,
        model=folder.parent,
        folder=folder,
        dice=dice_by_name(summary, session.dataset.labels),
    )


def _train(
    session: Session,
    plan: Plan,
    configuration: str,
    fold: Fold,
    *,
    settings: Mapping[str, Any],
    device: str,
    ranks: Ranks | None = None,
) -> Trainer:
    """Begin, continue or just open the training of a fold, and return its trainer with the final weights."""
    from segwright.training.checkpoints import resumable
    from segwright.training.distributed import ALONE
    from segwright.training.trainer import Trainer

    folder = fold_folder(session, plan, configuration, fold)
    identifiers = session.dataset.identifiers
    writes = ranks is None or ranks.is_first
    trainer = Trainer(
        plan,
        configuration,
        fold,
        session.dataset.description,
        device,
        config=TrainConfig.from_mapping(settings),
        cases=CaseStore(cases_folder(session, plan, configuration)),
        split=splits.select([] if fold == "all" else dataset_splits(session, write=writes), identifiers, fold),
        references={case.identifier: case.label for case in session.dataset.cases if case.label is not None},
        output_folder=folder,
        ranks=ranks or ALONE,
    )
    if writes:
        _copy_fingerprint(session, folder.parent)
    checkpoint = resumable(folder)
    if checkpoint is not None:
        trainer.load_checkpoint(checkpoint)
    if not is_trained(folder):
        trainer.run_training()
    return trainer


def _copy_fingerprint(session: Session, model: Path) -> None:
    """Put the fingerprint beside the folds, as nnU-Net does; plan and dataset.json are the trainer's."""
    source = session.workspace.fingerprint_file(session.name)
    if source.is_file():
        with atomic_path(model / FINGERPRINT_JSON) as temporary:
            temporary.write_bytes(source.read_bytes())
