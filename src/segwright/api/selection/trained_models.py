"""Find the trained models of a dataset and the folds on which they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from segwright.api.checks.one_model import task_difference
from segwright.api.session import Session
from segwright.api.training_runs import is_trained
from segwright.core.errors import ModelError, did_you_mean
from segwright.data.description import load_description
from segwright.data.plan import Plan
from segwright.evaluation.crossval import CrossValidation, read_crossval, validated_folds
from segwright.workspace import DATASET_JSON, MODEL_SEPARATOR, PLANS_JSON, Workspace

logger = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A model folder with the folds to compare; `crossval` holds their out-of-fold predictions."""

    folder: Path
    plan: Plan
    configuration: str
    crossval: CrossValidation

    @property
    def name(self) -> str:
        """Name of the folder: trainer, plans and configuration."""
        return self.folder.name


def model_folders(workspace: Workspace, dataset: str) -> list[Path]:
    """Return the model folders of a dataset that have plans, in the order of their names."""
    pattern = MODEL_SEPARATOR.join("***")
    return sorted(file.parent for file in (workspace.results / dataset).glob(f"{pattern}/{PLANS_JSON}"))


def name_of(folder: Path) -> str:
    """Return the first part of the name of a model's folder: the name that the user gave, or the trainer class's."""
    return folder.name.rsplit(MODEL_SEPARATOR, 2)[0]


def find_trained(
    session: Session,
    *,
    configurations: Sequence[str] | None = None,
    plans: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Find the model folders of a dataset with held-out predictions.

    Args:
        session: dataset and workspace.
        configurations: those to find; all by default.
        plans: name of the plans; all by default.
        names: first parts of the folders' names; all by default.

    Raises:
        ModelError: there are none, or none of a requested configuration or name.
    """
    place = session.workspace.results / session.name
    folders = model_folders(session.workspace, session.name)
    known = {name_of(folder) for folder in folders}
    for name in names or ():
        if name not in known:
            raise ModelError(f"{place}: no model named '{name}'{did_you_mean(name, known)}")
    folders = [folder for folder in folders if names is None or name_of(folder) in names]
    comparable: dict[Path, str] = {}  # with the name of the configuration
    for folder in folders:
        *_, plans_name, name = folder.name.split(MODEL_SEPARATOR)
        if plans not in (None, plans_name):
            continue
        if comparable_folds(folder):
            comparable[folder] = name
        elif configurations is None or name in configurations:
            logger.warning("%s is left out: no fold is trained here and has predicted held-out cases", folder.name)
    if not comparable:
        unfinished = f"; no fold in {folders[0].name} is trained to the end and validated" if folders else ""
        raise ModelError(
            f"{place}: nothing to select from{unfinished}; train folds with 'segwright train' or 'segwright run'"
        )
    for name in configurations or ():
        if name not in comparable.values():
            raise ModelError(f"{place}: no trained fold of '{name}'{did_you_mean(name, set(comparable.values()))}")
    return [folder for folder, name in comparable.items() if configurations is None or name in configurations]


def open_trained(models: Sequence[Path], folds: Sequence[int] | None) -> list[TrainedModel]:
    """Open the models with their common folds.

    Raises:
        ModelError: there is no common fold, or the models were trained with different splits.
    """
    for model in models:
        missing = sorted(set(folds or ()) - set(comparable_folds(model)))
        if missing:
            listed = ", ".join(map(str, comparable_folds(model)))
            raise ModelError(
                f"{model}: fold {', '.join(map(str, missing))} is not trained and validated; those that are: "
                f"{listed or 'none'}"
            )
    crossvals = [read_crossval(model, folds or comparable_folds(model)) for model in models]
    first = crossvals[0]
    common = [fold for fold in first.folds if all(fold in each.folds for each in crossvals)]
    if not common:
        listed = "; ".join(f"{each.model.name}: {', '.join(map(str, each.folds))}" for each in crossvals)
        raise ModelError(
            f"the models have no common fold with predicted held-out cases ({listed}); train the same fold of each, or "
            "choose models with --config"
        )
    result = []
    for each in crossvals:
        for fold in common:
            if each.files[fold].keys() != first.files[fold].keys():
                raise ModelError(
                    f"{each.model}: fold {fold} holds out other cases than that of {first.model.name}; only models "
                    "with the same splits can be compared, choose them with --config or --folds"
                )
        name = each.model.name.split(MODEL_SEPARATOR)[-1]
        plan = Plan.load(each.model / PLANS_JSON)
        result.append(TrainedModel(folder=each.model, plan=plan, configuration=name, crossval=each.only(common)))
    return result


def comparable_folds(model: Path) -> list[int]:
    """Return the folds trained by Segwright whose held-out cases are predicted."""
    return [fold for fold in validated_folds(model) if is_trained(Workspace.fold_folder(model, fold))]


def require_current_labels(session: Session, trained: Sequence[TrainedModel]) -> None:
    """Check that models were trained with the labels and channels that the dataset has now.

    Raises:
        ModelError: they differ; the differences are listed.
    """
    for each in trained:
        difference = task_difference(load_description(each.folder / DATASET_JSON), session.dataset.description)
        if difference:
            raise ModelError(
                f"{each.folder}: was trained on other labels or channels than {session.dataset.folder / DATASET_JSON} "
                f"has now ({difference}); restore dataset.json, train it again, or leave it out with --config"
            )


def log_folds(trained: Sequence[TrainedModel]) -> None:
    """Log which folds are compared, and which are skipped because not all models have them."""
    common = trained[0].crossval.folds
    count = len(trained[0].crossval.cases)
    logger.info(
        "comparing %s on %d held-out cases of fold%s %s",
        *(", ".join(each.name for each in trained), count),
        *("s" if len(common) > 1 else "", ", ".join(map(str, common))),
    )
    for each in trained:
        others = sorted(set(comparable_folds(each.folder)) - set(common))
        if others:
            logger.warning(
                "%s has fold %s too, which is skipped because not all models have it",
                each.name,
                ", ".join(map(str, others)),
            )
