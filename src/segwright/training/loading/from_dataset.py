"""Make the trainer of a preprocessed dataset: find its plan, cases, split and folders in a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from segwright.core.errors import ModelError, PlanError, WorkspaceError
from segwright.core.extensions.user_code import user_call
from segwright.core.files.names import below
from segwright.core.interrupt import StopRequest
from segwright.data.crossval import splits
from segwright.data.crossval.resolving import SplitMaker
from segwright.data.crossval.strata import labels_of_cases
from segwright.data.dataset import Dataset, load
from segwright.data.description import DatasetDescription, load_description
from segwright.data.plan import Plan
from segwright.data.preprocessed.previous_stage import FOLDER, StageMaps
from segwright.data.preprocessed.store import CaseStore
from segwright.planning.presets import plan_command
from segwright.training.cascade import CascadeStore
from segwright.training.checkpointing.checkpoints import find_resumable
from segwright.training.config import TrainConfig, changed
from segwright.workspace import DEFAULT_WORK, SPLITS_JSON, Workspace, name_of_model

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingInputs:
    """What a trainer needs of a preprocessed dataset.

    Attributes:
        dataset: the raw dataset.
        plan: its plan.
        cases: the preprocessed cases of the configuration.
        split: the cases of the fold.
        output_folder: of the fold.
        checkpoint: from which its training can go on; None: it was not begun.
    """

    dataset: Dataset
    plan: Plan
    cases: CaseStore | CascadeStore
    split: splits.Split
    output_folder: Path
    checkpoint: Path | None


def find_inputs(
    raw: str | Path | int,
    configuration: str,
    fold: int | Literal["all"],
    workspace: Workspace,
    *,
    plans: str,
    model: str,
) -> TrainingInputs:
    """Find everything in a workspace; nothing is computed, and nothing but missing splits is written.

    Args:
        raw: folder, name or id of the dataset.
        configuration: its name in the plan.
        fold: number or `all`.
        workspace: where the dataset was preprocessed.
        plans: name of the plans.
        model: first part of the name of the model's folder.

    Raises:
        SegwrightError: the dataset is invalid, or is not planned and preprocessed as it is now.
    """
    loaded = load(workspace.resolve_dataset(raw))
    prepare = f"prepare it with segwright.preprocess({str(raw)!r}) or 'segwright preprocess {raw}'"
    file = workspace.plans_file(loaded.name, plans)
    if not file.is_file():
        raise PlanError(f"{file}: no such plans; make them with segwright.plan or '{plan_command(raw, plans)}'")
    plan = Plan.load(file)
    copy = workspace.dataset_copy(loaded.name)
    if copy.is_file() and _data_meaning(load_description(copy)) != _data_meaning(loaded.description):
        raise WorkspaceError(f"{loaded.folder}: channels or labels have changed since {copy}; {prepare}")
    store = CaseStore(workspace.case_folder(loaded.name, plan.configuration(configuration).data_identifier))
    known = {*store.identifiers()}
    missing = [name for name in loaded.identifiers if name not in known]
    if missing:
        raise WorkspaceError(f"{store.folder}: {len(missing)} cases are missing, the first is {missing[0]}; {prepare}")
    maker = SplitMaker(
        workspace.splits_file(loaded.name),
        loaded.identifiers,
        raw_file=loaded.folder / SPLITS_JSON,
        declared=loaded.description.groups,
        folder=loaded.folder,
    )
    folds = [] if fold == "all" else maker.resolve(read_labels=partial(labels_of_cases, loaded))
    folder = below(workspace.model_folder(loaded.name, model, plan.plans_name, configuration), f"fold_{fold}")
    return TrainingInputs(
        dataset=loaded,
        plan=plan,
        cases=_with_previous_stage(store, workspace, loaded.name, plan, configuration, model),
        split=splits.select(folds, loaded.identifiers, fold, groups=maker.groups),
        output_folder=folder,
        checkpoint=find_resumable(folder),
    )


def make_trainer(
    cls: type[T],
    dataset: str | Path | int,
    configuration: str,
    fold: int | Literal["all"],
    *,
    workspace: Workspace | None = None,
    plans: str = "nnUNetPlans",
    name: str | None = None,
    config: TrainConfig | None = None,
    device: str | torch.device = "auto",
    stop: StopRequest | None = None,
    resume: bool = False,
    **settings: Any,
) -> T:
    """Return the trainer of one fold of a preprocessed dataset.

    Args:
        cls: the trainer class.
        dataset: folder, name or id.
        configuration: its name in the plan.
        fold: number or `all`.
        workspace: where the dataset was preprocessed; `./segwright-work` by default.
        plans: name of the plans.
        name: of the model, the first part of the name of its folder, as for `segwright.train`.
        config: the settings; nnU-Net's by default.
        device: auto, cpu, cuda, cuda:1, mps or a torch device.
        stop: as for the constructor.
        resume: go on with the training that the fold has.
        settings: fields of `config`, such as `network`, `loss`, `callbacks` or `num_epochs`.

    Raises:
        ModelError: the fold has a training, or none to resume.
        SegwrightError: a setting is invalid, or the dataset is not preprocessed.
    """
    config = changed(config or TrainConfig(), **settings)
    where, model = workspace or Workspace.under(DEFAULT_WORK), name_of_model(name, cls.__name__, config.network)
    inputs = find_inputs(dataset, configuration, fold, where, plans=plans, model=model)
    if resume and inputs.checkpoint is None:
        raise ModelError(f"{inputs.output_folder}: there is no training to resume; leave out resume=True")
    if not resume and inputs.checkpoint is not None:
        raise ModelError(
            f"{inputs.output_folder}: has a training already; continue it with resume=True, give this one a name of "
            "its own with name=, or delete the folder"
        )
    make: Any = cls
    contract = "its __init__ must accept the arguments of Trainer's and pass them on"
    with user_call(make, f"trainer '{cls.__name__}'", contract=contract):
        trainer: Any = make(
            inputs.plan,
            configuration,
            fold,
            inputs.dataset.description,
            device,
            cases=inputs.cases,
            split=inputs.split,
            output_folder=inputs.output_folder,
            config=config,
            references={case.identifier: case.label for case in inputs.dataset.cases if case.label is not None},
            stop=stop,
        )
    if inputs.checkpoint is not None:
        trainer.load_checkpoint(inputs.checkpoint)
    return trainer  # type: ignore[no-any-return]


def _data_meaning(description: DatasetDescription) -> dict[str, Any]:
    """Return what the values of images and label files mean."""
    return {**description.meaning(), "label_map": description.label_map}


def _with_previous_stage(
    store: CaseStore, workspace: Workspace, name: str, plan: Plan, configuration: str, model: str
) -> CaseStore | CascadeStore:
    previous = plan.configuration(configuration).previous_stage
    if previous is None:
        return store
    maps = StageMaps(workspace.model_folder(name, model, plan.plans_name, previous) / FOLDER / configuration)
    return CascadeStore(store, maps)
