"""nnU-Net's commands that plan for a checkpoint of nnssl, and train with its encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright import api
from segwright.cli.nnunet import folders, names, preparing, training
from segwright.cli.nnunet.options import Command, Values, flag, value, values
from segwright.cli.nnunet.trainers import TrainerChoice
from segwright.cli.options import environment
from segwright.core.errors import ConfigError, PlanError, did_you_mean
from segwright.data.plan import Plan
from segwright.workspace import Workspace

logger = getLogger(__name__)

FULLRES: Final = "3d_fullres"
MODES: Final = ("default_nnunet", "like_pretrained", "fixed", "no_resample")
TRAINER: Final = "PretrainedTrainer"
PRETRAIN_INFO: Final = "pretrain_info"
"""Key of plans that names the checkpoint with which a training begins."""

_CHECKPOINT: Final = "checkpoint_path"
_FROM_SCRATCH: Final = "__from_scratch"
_BASES: Final = (names.PLANS, *(f"nnUNetResEncUNet{size}Plans" for size in ("", "M", "L", "XL")))
"""Plans whose spacing is the dataset's, in the order in which they are looked for."""

_COMMON: Final[Mapping[str, Any]] = {
    "schedule": "warmup+poly",
    "warmup_epochs": 50,
    "initial_lr": 1e-3,
    "batch_size": 2,
    "enable_deep_supervision": False,
}
_SHORT: Final[Mapping[str, Any]] = {"warmup_epochs": 15, "num_epochs": 150}
_NO_MIRRORING: Final[Mapping[str, Any]] = {"mirror_axes": ()}
_SCRATCH_RATE: Final = 1e-2
"""Learning rate of a training without the checkpoint."""
TRAINERS: Final[dict[str, Mapping[str, Any]]] = {
    TRAINER: {},
    f"{TRAINER}_150ep": _SHORT,
    f"{TRAINER}_300ep": {**_SHORT, "num_epochs": 300},
    f"{TRAINER}_nomirroring": _NO_MIRRORING,
    f"{TRAINER}_150ep_nomirroring": {**_SHORT, **_NO_MIRRORING},
}
"""What nnU-Net's trainers of pre-trained encoders change in `_COMMON`."""


def preprocess_like_nnssl(arguments: Values) -> None:
    """Plan and preprocess a dataset for the network of a checkpoint of nnssl."""
    workspace = folders.preparing_workspace()
    raw = folders.raw_dataset(workspace, arguments.text("-d"))
    checkpoint, mode = _checkpoint(arguments), arguments.text("-am")
    if mode not in MODES:
        raise ConfigError(f"-am {mode}: unknown mode{did_you_mean(mode, MODES)}")
    base = _base(workspace, raw.name)
    spacing = _spacing(arguments, mode, base, checkpoint)
    made = api.plan(
        raw,
        workspace=workspace,
        options=api.PlanOptions(
            like=checkpoint,
            name=_plans_name(arguments.text("-n"), spacing, base),
            spacing=None if spacing is None else _in_axis_order_of_images(spacing, base),
            resampling="none" if mode == "no_resample" else "default",
        ),
        force=True,
        environment=environment(),
    )
    preparing.preprocess_configurations(workspace, raw, made.plans_name, {FULLRES: arguments.number("-np")})
    logger.info("plans: %s", made.plans_name)


def plan_like_dynamic(arguments: Values) -> None:
    """Copy plans for a training with a checkpoint of nnssl, whose encoder must be that of the plans."""
    from segwright.interop.nnssl import open_checkpoint

    workspace = folders.preparing_workspace()
    dataset = folders.raw_dataset(workspace, arguments.text("-d")).name
    checkpoint = open_checkpoint(_checkpoint(arguments)).path.absolute()
    plan = folders.load_plan(workspace, dataset, arguments.text("-pl"))
    if FULLRES not in plan.configurations:
        raise PlanError(f"{plan.plans_name}: no configuration {FULLRES}, which the checkpoint's network needs")
    document = {
        **plan.to_json(),
        "plans_name": f"ptPlans_dynamic__{arguments.text('-n')}",
        "configurations": {FULLRES: plan.to_json()["configurations"][FULLRES]},
        PRETRAIN_INFO: {_CHECKPOINT: str(checkpoint), "checkpoint_name": arguments.text("-n")},
    }
    new = Plan.from_json(document)
    new.save(workspace.plans_file(dataset, new.plans_name))
    logger.info("plans: %s", new.plans_name)


def train_pretrained(arguments: Values) -> None:
    """Train one fold, beginning with the encoder of the checkpoint that the plans name."""
    training.train_with(arguments, _start)


COMMANDS: Final = {
    "preprocess_like_nnssl": Command(
        function=preprocess_like_nnssl,
        options=(
            value("-d", about="Id or name of the dataset.", is_required=True),
            value("-n", "--pretraining_name", about="Name of the pre-training, for the plans.", is_required=True),
            value("-pc", "--pretrained_checkpoint", about="Checkpoint of nnssl (.pth).", is_required=True),
            value("-am", "--adaptation_mode", about=f"Spacing: {', '.join(MODES)}.", default=MODES[0]),
            values("-os", "--override_spacing", about="Spacing of the mode fixed, three numbers.", kind=float),
            value("-np", about="Number of threads.", default=4, kind=int),
            flag("--verbose", about="More messages."),
            flag("--overwrite_pp", no_effect="cases that are not up to date are always preprocessed again"),
        ),
    ),
    "plan_like_dynamic": Command(
        function=plan_like_dynamic,
        options=(
            value("-d", about="Id or name of the dataset.", is_required=True),
            value("-n", "--pretraining_name", about="Name of the pre-training, for the plans.", is_required=True),
            value("-pc", "--pretrained_checkpoint", about="Checkpoint of nnssl (.pth).", is_required=True),
            value("-pl", "--plans_identifier", about="Name of the plans to copy.", default=names.PLANS),
            value("-np", about="", kind=int, no_effect="nothing is preprocessed"),
            flag("--verbose", about="More messages."),
            flag("--overwrite_pp", no_effect="nothing is preprocessed"),
        ),
    ),
    "train_pretrained": Command(
        function=train_pretrained,
        options=(
            *training.SHARED,
            value("-tr", about="Trainer class of a pre-trained encoder.", default=TRAINER),
            value("-p", about="Name of the plans.", is_required=True),
            flag("--from_scratch", about="Without the checkpoint, for comparison."),
            value("-overwrite_ckpt_path", about="Another checkpoint than that of the plans."),
        ),
    ),
}


def _checkpoint(arguments: Values) -> Path:
    """Return the file of the checkpoint.

    Raises:
        ConfigError: it is an address.
    """
    text = arguments.text("-pc")
    if "://" in text:
        raise ConfigError(f"-pc {text}: download it with 'segwright install {text}', and give the file")
    return Path(text)


def _base(workspace: Workspace, dataset: str) -> Plan:
    """Return the plans whose spacing is the dataset's.

    Raises:
        PlanError: there are none.
    """
    for name in _BASES:
        if workspace.plans_file(dataset, name).is_file():
            return Plan.load(workspace.plans_file(dataset, name))
    raise PlanError(f"{dataset}: no plans; run nnUNetv2_plan_experiment -d {dataset} first")


def _spacing(arguments: Values, mode: str, base: Plan, checkpoint: Path) -> tuple[float, ...] | None:
    """Return the target spacing in the axis order of plans; None: that of each image.

    Raises:
        ConfigError: the spacing of the mode `fixed` has not three numbers.
    """
    from segwright.interop.nnssl import open_checkpoint

    given = tuple(float(size) for size in arguments.texts("-os"))
    if mode == "fixed" and len(given) != 3:
        raise ConfigError(f"-os: the mode fixed needs three numbers, found {len(given)}")
    of_dataset = tuple(base.configuration(FULLRES).spacing)
    choices: dict[str, tuple[float, ...] | None] = {"default_nnunet": of_dataset, "fixed": given, "no_resample": None}
    return choices[mode] if mode in choices else open_checkpoint(checkpoint).spacing or of_dataset


def _plans_name(name: str, spacing: Sequence[float] | None, base: Plan) -> str:
    """Return nnU-Net's name of the plans: of the pre-training, spacing and normalisation."""
    sizes = "_".join("None" if spacing is None else f"{spacing[axis]:.2f}" for axis in range(3))
    channels = len(base.configuration(FULLRES).normalization_schemes)
    return f"ptPlans__{name}____Spacing__{sizes}___Norm__{'_'.join('Z' * channels)}"


def _in_axis_order_of_images(spacing: Sequence[float], plan: Plan) -> tuple[float, float, float]:
    z, y, x = (spacing[axis] for axis in plan.transpose_backward)
    return z, y, x


def _start(arguments: Values, workspace: Workspace, dataset: str) -> training.Start:
    """Return plans, settings and checkpoint of a training.

    Raises:
        ConfigError: there is no such trainer.
        PlanError: the plans name no checkpoint.
    """
    trainer = arguments.text("-tr")
    if trainer not in TRAINERS:
        raise ConfigError(f"-tr {trainer}: no trainer of pre-trained encoders here{did_you_mean(trainer, TRAINERS)}")
    settings = {**_COMMON, **TRAINERS[trainer]}
    plan = folders.load_plan(workspace, dataset, arguments.text("-p"))
    if not arguments.is_set("--from_scratch"):
        checkpoint = arguments.optional("-overwrite_ckpt_path") or _checkpoint_of(plan)
        if checkpoint is None:
            raise PlanError(f"{plan.plans_name}: names no checkpoint; make plans with nnUNetv2_preprocess_like_nnssl")
        return training.Start(plan=plan, trainer=TrainerChoice(name=trainer, settings=settings), pretrained=checkpoint)
    plan = plan.model_copy(update={"plans_name": f"{plan.plans_name}{_FROM_SCRATCH}"})
    plan.save(workspace.plans_file(dataset, plan.plans_name))
    return training.Start(
        plan=plan, trainer=TrainerChoice(name=trainer, settings={**settings, "initial_lr": _SCRATCH_RATE})
    )


def _checkpoint_of(plan: Plan) -> str | None:
    """Return the checkpoint that plans name; None if they name none."""
    document = plan.to_json()
    for path in ((PRETRAIN_INFO, _CHECKPOINT), ("segwright", "options", "like")):
        found: Any = document
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found
    return None
