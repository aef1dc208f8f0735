"""Make, load and replace the plans of a dataset; plans that were edited or are in use are kept."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, fields, replace
from logging import getLogger
from pathlib import Path
from typing import Any

from segwright.api.models.finding import find_model
from segwright.api.session import Session, trained_folds
from segwright.core.errors import ConfigError, PlanError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.hashing import content_hash, file_hash
from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.data.images.orientation import canonical_axes, lateral_axis, reorienting_reader
from segwright.data.laterality import LEFT_RIGHT_KEY, find_pairs
from segwright.data.plan import Plan
from segwright.planning import planner, presets
from segwright.planning.pretrained import BASE_PRESET, plan_like, plans_name_like
from segwright.workspace import DATASET_JSON, Workspace

logger = getLogger(__name__)

DEFAULT_PLANS = presets.PRESETS["default"].plans_name

OPTIONS = "options"
"""Key of the stored `PlanOptions` in a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of a plan.

    Attributes:
        preset: default, resenc-m, resenc-l, mednext-s, mednext-s-k5, ... (`planning.presets`).
        gpu_memory_gb: Target GPU memory in GB; the preset's by default.
        name: Name of the plans and their file; the preset's by default.
        spacing: Target spacing in the images' axis order; planned by default.
        resampling: default, torch, torch-sepz or none.
        reorient: Reorient every image to RAS+ first, for datasets with several orientations.
        like: Checkpoint of nnssl (`.pth`) for whose network, spacing, patch and normalisation to plan; without
            `preset` and `gpu_memory_gb`, which it decides.

    Examples:
        >>> segwright.plan(4, options=PlanOptions(preset="resenc-m", name="small", gpu_memory_gb=4))  # doctest: +SKIP
    """

    preset: str = "default"
    gpu_memory_gb: float | None = None
    name: str | None = None
    spacing: tuple[float, float, float] | None = None
    resampling: str = "default"
    reorient: bool = False
    like: Path | str | None = None


DEFAULT_OPTIONS = PlanOptions()


def load_plan(session: Session, name: str) -> Plan:
    """Return the plan of that name.

    Raises:
        PlanError: there are no such plans.
    """
    file = session.workspace.plans_file(session.name, name)
    if not file.is_file():
        known = sorted(other.stem for other in file.parent.glob("*Plans*.json"))
        command = presets.plan_command(session.dataset.folder, name)
        others = f", or choose from {', '.join(known)}" if known else ""
        raise PlanError(f"{file}: no such plans; create them with '{command}'{others}")
    return Plan.load(file)


def make_plan(
    session: Session, measured: Fingerprint, options: PlanOptions, *, force: bool = False, prefer_existing: bool = False
) -> tuple[Plan, bool]:
    """Return the plan and whether it was newly made; a file edited by others is kept unless `force`.

    Args:
        session: of the dataset.
        measured: its fingerprint.
        options: options of the plan.
        force: replace plans that were edited by hand, or that trainings or preprocessed data use.
        prefer_existing: replan existing plans with their own options, but for a given GPU memory, and keep them if
            trainings use them.

    Raises:
        PlanError: the plans would change although trainings or preprocessed data use them.
    """
    name = _name_of(options)
    copy_description(session)
    file = session.workspace.plans_file(session.name, name)
    stage = f"plans {name}"
    existing = Plan.load(file) if file.is_file() else None
    before = _options_of(existing)
    if prefer_existing and before is not None:
        memory_gb = before.gpu_memory_gb if options.gpu_memory_gb is None else options.gpu_memory_gb
        options = replace(before, name=options.name, gpu_memory_gb=memory_gb)
    made_from = [
        file_hash(session.workspace.fingerprint_file(session.name)),
        session.dataset.description.raw(),
        _document(options),
    ]
    if existing is not None and not force:
        if not session.stage_cache.is_current(f"{stage} as written", file_hash(file)):
            _log_kept(file, session, stage, made_from)
            return existing, False
        if session.stage_cache.is_current(stage, made_from):
            return existing, False
    new = _compute_plan(session, measured, options, name, existing)
    if existing is not None and not force and not _has_same_values(new, existing):
        users = trained_folds(session, name)
        if users and prefer_existing:
            logger.warning(
                "%s is kept although dataset or options changed since: %s was trained with it; 'segwright plan --name "
                "NAME' makes a second plan, which --plans NAME uses; 'segwright plan --overwrite' replaces it",
                *(file, users[0]),
            )
            return existing, False
        users += [] if before in (None, replace(options, name=None)) else _case_folders(session, existing)
        if users:
            raise PlanError(
                f"{file}: these plans would change, and {' and '.join(users)} use{'s' * (len(users) == 1)} them; "
                f"keep both with 'segwright plan --name {_free_name(session, name)}', or replace them with 'segwright "
                "plan --overwrite'"
            )
    new.save(file)
    session.stage_cache.record(f"{stage} as written", file_hash(file))
    session.stage_cache.record(stage, made_from)
    return new, True


def plan_values(measured: Fingerprint, description: DatasetDescription, options: PlanOptions, **values: Any) -> Plan:
    """Return the plan for a fingerprint, with its options stored in it; `values` as for `planner.plan`."""
    preset, checkpoint = presets.preset(options.preset, options.resampling), None
    spacing: tuple[float, ...] | None = options.spacing
    if options.like is not None:
        from segwright.interop.nnssl import open_checkpoint

        checkpoint = open_checkpoint(Path(options.like))
        preset, spacing = presets.preset(BASE_PRESET, options.resampling), spacing or checkpoint.spacing
    new = planner.plan(
        measured,
        description,
        preset=preset,
        gpu_memory_gb=options.gpu_memory_gb,
        spacing=spacing,
        plans_name=_name_of(options),
        **values,
    )
    if checkpoint is not None:
        has_decided = spacing != options.spacing
        new = plan_like(new, patch_size=checkpoint.patch_size, checkpoint=checkpoint.path, decided_spacing=has_decided)
    return new.model_copy(update={"segwright": {**new.segwright, OPTIONS: _document(replace(options, name=None))}})


def checked_options(options: PlanOptions, workspace: Workspace | None) -> PlanOptions:
    """Return the options with the path of the checkpoint, after checking them.

    Raises:
        PlanError: unknown preset or resampling.
        ConfigError: options contradict each other.
        ModelError: there is no such checkpoint, or one of another network.
    """
    presets.preset(options.preset, options.resampling)
    if options.like is None:
        return options
    if options.preset != DEFAULT_OPTIONS.preset or options.gpu_memory_gb is not None:
        raise ConfigError(
            "plan: the checkpoint of like decides network, patch and batch; leave out preset and GPU memory"
        )
    from segwright.interop.nnssl import open_checkpoint
    from segwright.training.finetuning import find_checkpoint

    checkpoint = open_checkpoint(find_checkpoint(find_model(options.like, workspace)).absolute())
    checkpoint.require_known_network()
    return replace(options, like=str(checkpoint.path))


def copy_description(session: Session) -> None:
    """Copy dataset.json beside the preprocessed data, as nnU-Net does."""
    source = session.dataset.folder / DATASET_JSON
    target = session.workspace.dataset_copy(session.name)
    content = source.read_bytes()
    if not target.is_file() or target.read_bytes() != content:
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)


def _compute_plan(
    session: Session, measured: Fingerprint, options: PlanOptions, name: str, existing: Plan | None
) -> Plan:
    """Plan the dataset; with `reorient`, as if all images were stored in RAS+ orientation."""
    reader = session.dataset.reader
    if options.reorient:
        measured = measured.reordered([canonical_axes(case.images[0], reader) for case in session.dataset.cases])
        reader = reorienting_reader(reader)
    has_sides = bool(find_pairs(session.dataset.description)) or measured.mirror_pairs is not None
    cases = session.dataset.cases if has_sides else ()
    return plan_values(
        measured,
        session.dataset.description,
        replace(options, name=name),
        dataset_name=session.name,
        reader=reader,
        existing=existing,
        lateral={lateral_axis(case.images[0], reader) for case in cases},
    )


def _name_of(options: PlanOptions) -> str:
    """Return the name of the plans."""
    if options.name is not None:
        return options.name
    if options.like is not None:
        return plans_name_like(options.resampling)
    return presets.preset(options.preset, options.resampling).plans_name


def _document(options: PlanOptions) -> dict[str, Any]:
    """Return options as JSON; `like`, which older plans do not have, only if it is set."""
    return {key: value for key, value in asdict(options).items() if key != "like" or value is not None}


def _options_of(plan: Plan | None) -> PlanOptions | None:
    """Return the options of a plan; None if it has none stored."""
    stored = None if plan is None else plan.segwright.get(OPTIONS)
    if not isinstance(stored, dict) or {"like", *stored} != {each.name for each in fields(PlanOptions)}:
        return None
    spacing = stored["spacing"]
    return PlanOptions(**{**stored, "spacing": tuple(spacing) if isinstance(spacing, list) else None})


def _has_same_values(new: Plan, existing: Plan) -> bool:
    """Return whether two plans have the same values; their recorded reasons may differ."""
    documents = [plan.to_json() for plan in (new, existing)]
    one, other = (
        {**document, "segwright": document.get("segwright", {}).get(LEFT_RIGHT_KEY)} for document in documents
    )
    return content_hash(one) == content_hash(other)


def _case_folders(session: Session, plan: Plan) -> list[str]:
    """Return the names of the folders with cases that were preprocessed with a plan."""
    names = dict.fromkeys(plan.configuration(name).data_identifier for name in plan.configuration_names)
    folders = [session.workspace.case_folder(session.name, name) for name in names]
    return [folder.name for folder in folders if folder.is_dir() and any(folder.iterdir())]


def _free_name(session: Session, name: str) -> str:
    """Return an unused name for plans."""
    names = (f"{name}_{number}" for number in itertools.count(2))
    return next(each for each in names if not session.workspace.plans_file(session.name, each).exists())


def _log_kept(file: Path, session: Session, stage: str, made_from: object) -> None:
    if not session.stage_cache.has_stage(stage):
        logger.info("%s was not written by this workspace and is kept", file)
    elif session.stage_cache.is_current(stage, made_from):
        logger.info(
            "%s was edited by hand and is kept; if you did not edit it, it is damaged; 'segwright plan --overwrite' "
            "replaces it",
            file,
        )
    else:
        logger.warning(
            "%s was edited by hand and is kept although dataset or options changed; "
            "'segwright plan --name NAME' makes a second plan, 'segwright plan --overwrite' replaces it",
            file,
        )
