"""nnU-Net's command that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segwright import api
from segwright.cli.dist_env import device_of, process_group, rank_info_from_env
from segwright.cli.nnunet import folders, names
from segwright.cli.nnunet.options import Command, Values, flag, value
from segwright.cli.nnunet.trainers import TrainerChoice, find_trainer
from segwright.cli.options import environment
from segwright.cli.signals import stop_on_signals
from segwright.cli.tables import print_scores
from segwright.core.errors import ModelError, SegwrightError
from segwright.data.plan import Plan
from segwright.workspace import TRAIN_JSON, Workspace

if TYPE_CHECKING:
    from segwright.report.results import TrainedFold

logger = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a training begins with.

    Attributes:
        plan: its plans.
        trainer: what trains.
        pretrained: checkpoint or model with the first weights.
    """

    plan: Plan
    trainer: TrainerChoice
    pretrained: str | None = None


Chooser: TypeAlias = Callable[[Values, Workspace, str], Start]
"""Function of the options, the workspace and the dataset's name."""


def train(arguments: Values) -> None:
    """Train one fold of one configuration, then predict and score its held-out cases."""
    train_with(arguments, _start)


def train_with(arguments: Values, choose: Chooser) -> None:
    """Train one fold, in several processes if several GPUs are wanted, and write the checkpoint for nnU-Net."""
    rank_info = rank_info_from_env(environment())
    device, count = names.device_of(arguments), arguments.number("-num_gpus")
    if rank_info is None and count > 1:
        from segwright.cli import launch

        launch.start(count, device, program=f"from segwright.cli.nnunet.program import run; run({arguments.words!r})")
        return
    with stop_on_signals() as stop, process_group(rank_info, device) as distributed:
        trained = _train(arguments, choose, device=device_of(device, rank_info), distributed=distributed, stop=stop)
    if rank_info is not None and rank_info.rank > 0:
        return
    if not arguments.is_set("--disable_checkpointing"):
        _write_checkpoint(trained.folder)
    title = f"{trained.configuration}, fold {trained.fold}: Dice of held-out cases"
    print_scores(title, {"Dice": trained.dice})


SHARED: Final = (
    value("dataset_name_or_id", about="Id or name of the dataset."),
    value("configuration", about="Configuration, e.g. 3d_fullres."),
    value("fold", about="Fold to hold out, or all to train on every case."),
    value("-num_gpus", about="Number of GPUs that share each batch.", default=1, kind=int),
    flag("--npz", about="Also save the probabilities of held-out cases."),
    flag("--c", about="Continue an interrupted training."),
    flag("--val", about="Only predict and score the held-out cases of a finished training."),
    flag("--val_best", about="Also score the best checkpoint, in validation_best."),
    flag("--disable_checkpointing", about="Write no checkpoint."),
    value("-device", about="cuda, cpu or mps (default: cuda where there is a GPU).", default="auto"),
)
"""Options of all commands that train."""

COMMANDS: Final = {
    "train": Command(
        function=train,
        options=(
            *SHARED,
            value("-tr", about="Trainer class.", default=names.TRAINER),
            value("-p", about="Name of the plans.", default=names.PLANS),
            value("-pretrained_weights", about="Checkpoint or model whose matching weights are the first ones."),
        ),
    ),
}


def _start(arguments: Values, workspace: Workspace, dataset: str) -> Start:
    plan = folders.load_plan(workspace, dataset, arguments.text("-p"))
    dims = plan.configuration(arguments.text("configuration")).dims
    trainer = find_trainer(arguments.text("-tr"), dims, environment())
    return Start(plan=plan, trainer=trainer, pretrained=arguments.optional("-pretrained_weights"))


def _train(arguments: Values, choose: Chooser, **how: Any) -> TrainedFold:
    """Train, continue or validate one fold."""
    workspace = folders.full_workspace()
    raw = folders.raw_dataset(workspace, arguments.text("dataset_name_or_id"))
    configuration, fold = arguments.text("configuration"), names.fold_of(arguments.text("fold"))
    start = choose(arguments, workspace, raw.name)
    plans = start.plan.plans_name
    model = workspace.model_folder(raw.name, start.trainer.name, plans, configuration)
    return api.train(
        raw,
        workspace=workspace,
        environment=environment(),
        configuration=configuration,
        fold=fold,  # type: ignore[arg-type]  # a number or all
        plans=plans,
        pretrained=start.pretrained,
        settings=_settings(arguments, start.trainer),
        nnunet_trainer=start.trainer.file,
        name=start.trainer.name,
        validate="best" if arguments.is_set("--val_best") else "final" if arguments.is_set("--val") else None,
        resume=_continues(arguments, Workspace.fold_folder(model, fold)),
        **how,
    )


def _settings(arguments: Values, trainer: TrainerChoice) -> dict[str, Any]:
    flags = {"--npz": "save_probabilities", "--disable_checkpointing": "disable_checkpointing"}
    return {**trainer.settings, **{name: True for option, name in flags.items() if arguments.is_set(option)}}


def _continues(arguments: Values, fold: Path) -> bool:
    """Return whether an existing training goes on.

    Raises:
        ModelError: there is a training that would be replaced, or none to validate.
    """
    from segwright.api.checks.one_model import has_checkpoint
    from segwright.api.training_runs import is_trained

    has_begun = (fold / TRAIN_JSON).is_file()
    if arguments.is_set("--val") and not is_trained(fold):
        raise ModelError(f"{fold}: no finished training to validate; train it without --val")
    if arguments.is_set("--c") and not has_begun:
        logger.warning("%s: nothing to continue; a new training begins", fold)
    if arguments.is_set("--c") or arguments.is_set("--val"):
        return has_begun
    if has_checkpoint(fold):
        raise ModelError(f"{fold}: has a training already; continue it with --c, or delete the folder to train again")
    return False


def _write_checkpoint(fold: Path) -> None:
    """Write the checkpoint for nnU-Net beside ours, if nnU-Net has the network."""
    from segwright.interop.export import write_checkpoint

    try:
        write_checkpoint(fold)
    except SegwrightError as error:
        logger.warning("no %s: %s", names.CHECKPOINT, error)
