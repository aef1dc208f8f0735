"""Check, fingerprint, plan and preprocess a dataset; up-to-date results are kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segwright.api.budgeting import parse_duration, plan_for_budget
from segwright.api.models.finding import find_model
from segwright.api.session import (
    Session,
    dataset_lock,
    open_session,
    record_owner,
    trained_folds,
    workspace_or_default,
    writing_problem,
)
from segwright.api.splitting import (
    require_options,
    split_options,
    warn_of_several_scans,
    warn_of_unused_cases,
    write_splits,
)
from segwright.core.errors import ConfigError, PlanError, ProblemReport, SegwrightError, WorkspaceError
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.hashing import content_hash, file_hash
from segwright.core.files.locks import holder
from segwright.data import checks
from segwright.data import fingerprint as measuring
from segwright.data.crossval.groups import Groups
from segwright.data.crossval.splits import shorten
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.description import DatasetDescription, load_description
from segwright.data.fingerprint import Fingerprint
from segwright.data.images.image_io import reader_of_shapes
from segwright.data.images.orientation import canonical_axes, lateral_axis, reorienting_reader
from segwright.data.laterality import LEFT_RIGHT_KEY, find_pairs
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.data.stage_cache import folder_digest
from segwright.planning import planner, presets, rationale
from segwright.planning.pretrained import BASE_PRESET, plan_like, plans_name_like
from segwright.workspace import DATASET_JSON, LOCK, Workspace

if TYPE_CHECKING:
    from segwright.preprocessing.dataset import PreprocessReport

logger = getLogger(__name__)

DEFAULT_PLANS = presets.PRESETS["default"].plans_name
UNNAMED_DATASET = "Dataset"

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
    """

    preset: str = "default"
    gpu_memory_gb: float | None = None
    name: str | None = None
    spacing: tuple[float, float, float] | None = None
    resampling: str = "default"
    reorient: bool = False
    like: Path | str | None = None


DEFAULT_OPTIONS = PlanOptions()


def check(
    dataset: str | Path,
    *,
    workspace: Workspace | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> checks.Findings:
    """Find all problems of a dataset in one pass over its files; nothing is written.

    Example:
        >>> findings = check("raw/Dataset004_Hippocampus")  # doctest: +SKIP
        >>> [str(problem) for problem in findings.errors]  # doctest: +SKIP
    """
    place = workspace_or_default(workspace)
    findings = checks.check(place.resolve_dataset(dataset), workers=workers, environment=environment)
    problem = writing_problem(place)
    return findings if problem is None else replace(findings, errors=(*findings.errors, problem))


def fingerprint(
    dataset: str | Path,
    *,
    workspace: Workspace | None = None,
    workers: int | None = None,
    force: bool = False,
    wait: bool = True,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> Fingerprint:
    """Measure shapes, spacings and intensities of a checked dataset, or return the existing fingerprint.

    Raises:
        ProblemReport: the dataset has problems; all are listed.
        LockHeldError: another process works on the dataset, and `wait` is False.
    """
    session = open_session(dataset, workspace, environment=environment, wait=wait)
    with dataset_lock(session, "measuring"):
        return make_fingerprint(session, workers=workers, force=force)[0]


def plan(
    dataset: str | Path,
    *,
    workspace: Workspace | None = None,
    options: PlanOptions = DEFAULT_OPTIONS,
    budget: str | float | None = None,
    device: str = "auto",
    workers: int | None = None,
    force: bool = False,
    groups: Groups | None = None,
    stratify: bool | None = None,
    wait: bool = True,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> Plan:
    """Plan a dataset: network, patch size, spacing and so on, each with its reason.

    The fingerprint is made first if needed. A plans file that was edited by hand or written by another program is
    kept unless `force`.

    Args:
        dataset: Folder, name or id.
        workspace: Where results are written; `./segwright-work` by default.
        options: Preset, name, spacing and so on.
        budget: Training time of a fold, such as `10m` or seconds; where the machine is too slow for the plans, others
            are made that fit the time, and returned.
        device: That will train: auto, cpu, mps or a GPU.
        workers: Threads.
        force: Replace plans that were edited by hand or are in use.
        groups: Which cases share a fold, such as scans of a patient: `FILE.csv:COLUMN`, `regex:PATTERN`, the group of
            each case, or `none`; by default as the last time, else as dataset.json says.
        stratify: Whether the cases with each label are spread evenly over the folds; by default as the last time.
        wait: Wait for another process that works on the dataset; otherwise raise `LockHeldError`.
        environment: Variables that paths in file lists may contain.

    Raises:
        ConfigError: groups or strata are given, but the folds are in use or were made by hand.
        PlanError: the plans would change although trainings or preprocessed data use them; `force` replaces them.
    """
    options = _checked(options, workspace)
    if options.like is not None and budget is not None:
        raise ConfigError("plan: a budget chooses another network than the checkpoint's; leave out budget or like")
    budget_s = parse_duration(budget)
    session = open_session(
        dataset,
        workspace,
        environment=environment,
        split_options=split_options(groups, stratify=stratify),
        wait=wait,
    )
    require_options(session)
    with dataset_lock(session, "planning"):
        measured, _ = make_fingerprint(session, workers=workers)
        write_splits(session, workers=workers)
        warn_of_unused_cases(session)
        warn_of_several_scans(session)
        made, _ = make_plan(session, measured, options, force=force)
        if budget_s is None:
            return made
        return plan_for_budget(session, made, None, {"budget_s": budget_s}, device=device, force=force)[0]


def plan_from_fingerprint(fingerprint: Path, dataset_json: Path, *, options: PlanOptions = DEFAULT_OPTIONS) -> Plan:
    """Plan from a fingerprint without images; nothing is written. The folder of `dataset_json` names the dataset."""
    options = _checked(options, None)
    measured = Fingerprint.load(fingerprint)
    description = load_description(dataset_json)
    return _plan_values(
        measured,
        description,
        options,
        dataset_name=dataset_json.absolute().parent.name or UNNAMED_DATASET,
        reader=reader_of_shapes(
            description.file_ending, measured.shapes_after_crop, description.overwrite_image_reader_writer
        ),
    )


def explain(plan: Plan) -> str:
    """Return the reason of every decision in a plan as text."""
    return rationale.explain(plan)


def preprocess(
    dataset: str | Path,
    *,
    workspace: Workspace | None = None,
    plans: str = DEFAULT_PLANS,
    configurations: Sequence[str] | None = None,
    workers: int | None = None,
    wait: bool = True,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    trust_code: TrustCode = False,
) -> dict[str, PreprocessReport]:
    """Crop, normalise, resample and store all cases; up-to-date cases are kept.

    Args:
        dataset: Folder, name or id.
        workspace: Where results are written; `./segwright-work` by default.
        plans: Name of existing plans.
        configurations: All configurations of the plan by default.
        workers: Threads.
        wait: Wait for another process that works on the dataset; otherwise raise `LockHeldError`.
        environment: Variables that paths in file lists may contain.
        trust_code: Whether to import normalisation code that the plan names as `module:attr`.

    Returns:
        The preprocessed and the kept cases of each configuration.
    """
    session = open_session(dataset, workspace, environment=environment, trust=CodeTrust.of(trust_code), wait=wait)
    plan = load_plan(session, plans)
    warn_of_unused_cases(session)
    names = tuple(configurations or plan.configuration_names)
    for name in names:
        plan.configuration(name)  # raises if it does not exist
    chosen = configurations_to_preprocess(plan, names)
    return {name: preprocess_cases(session, plan, name, workers=workers) for name in chosen}


def verify(
    session: Session, *, workers: int | None = None, visit: checks.Visitor | None = None
) -> checks.Findings | None:
    """Check the raw files unless these exact files passed before; return what was found, None if the check did not run.

    Args:
        session: the dataset.
        workers: threads; all CPUs by default.
        visit: called with the voxels of every checked case.

    Raises:
        ProblemReport: all problems of the dataset.
    """
    if session.stage_cache.is_current("check", session.raw_digest):
        return None
    findings = checks.check(session.dataset.folder, workers=workers, environment=session.environment, visit=visit)
    for problem in findings.warnings:
        logger.warning("%s", problem)
    if findings.errors:
        raise ProblemReport(findings.errors)
    record_owner(session)  # only now: a refused dataset leaves no files behind
    session.stage_cache.record("check", session.raw_digest)
    return findings


def make_fingerprint(session: Session, *, workers: int | None = None, force: bool = False) -> tuple[Fingerprint, bool]:
    """Return the fingerprint and whether it was newly measured."""
    file = session.workspace.fingerprint_file(session.name)
    stage = "fingerprint"
    dataset = session.dataset
    collector = measuring.FingerprintCollector(num_cases=len(dataset.cases), num_channels=dataset.num_channels)
    is_new = not file.is_file()
    findings = verify(session, workers=workers, visit=collector.add if is_new else None)
    if not is_new and not force:
        if session.stage_cache.is_current(stage, session.raw_digest):
            return _load_fingerprint(file), False
        if not session.stage_cache.has_stage(stage):
            existing = _load_fingerprint(file)
            if len(existing.spacings) == len(dataset.cases):
                logger.info("%s exists and is kept; segwright fingerprint --force measures again", file)
                session.stage_cache.record(stage, session.raw_digest)
                return existing, False
        logger.info("the dataset changed since the fingerprint was made")
    if is_new and findings is not None:
        new = collector.fingerprint(dataset, findings.mirror_pairs)
    else:
        new = measuring.extract(dataset, workers=workers)
    new.save(file)
    session.stage_cache.record(stage, session.raw_digest)
    return new, True


def _load_fingerprint(file: Path) -> Fingerprint:
    """Read the fingerprint of the workspace.

    Raises:
        PlanError: it is damaged; the message says how to measure again.
    """
    try:
        return Fingerprint.load(file)
    except SegwrightError as error:
        raise PlanError(f"{error}; 'segwright fingerprint DATASET --force' measures again") from error


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
    return _plan_values(
        measured,
        session.dataset.description,
        replace(options, name=name),
        dataset_name=session.name,
        reader=reader,
        existing=existing,
        lateral={lateral_axis(case.images[0], reader) for case in cases},
    )


def _plan_values(measured: Fingerprint, description: DatasetDescription, options: PlanOptions, **values: Any) -> Plan:
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


def _checked(options: PlanOptions, workspace: Workspace | None) -> PlanOptions:
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


def configurations_to_preprocess(plan: Plan, names: Sequence[str]) -> tuple[str, ...]:
    """Return the configurations to preprocess for `names`: one of those that share their preprocessed data."""
    by_data: dict[str, str] = {}
    for name in names:
        by_data.setdefault(plan.configuration(name).data_identifier, name)
    return tuple(by_data.values())


def preprocess_cases(
    session: Session, plan: Plan, name: str, *, workers: int | None = None, even_if_in_use: bool = False
) -> PreprocessReport:
    """Preprocess the missing and outdated cases of one configuration.

    Raises:
        WorkspaceError: another process trains on cases that would be replaced.
        ProblemReport: some cases failed.
    """
    from segwright.preprocessing.dataset import preprocess_dataset
    from segwright.preprocessing.normalization import load_schemes

    schemes = plan.configuration(name).normalization_schemes
    load_schemes(schemes, session.trust, source=f"plans '{plan.plans_name}'")
    folder = cases_folder(session, plan, name)
    with dataset_lock(session, "preprocessing"):
        if not even_if_in_use:
            _require_unused(session, plan, name)
        report = preprocess_dataset(session.dataset, plan, name, CaseStore(folder), workers=workers)
        copy_description(session)  # labels may have other meanings than when it was planned
        session.stage_cache.record(*_cases_record(session, plan, name))
    return report


def _require_unused(session: Session, plan: Plan, name: str) -> None:
    """Check that no other process trains on cases that would be replaced.

    Raises:
        WorkspaceError: one does.
    """
    from segwright.preprocessing.dataset import replaced_cases

    data = plan.configuration(name).data_identifier
    sharing = {each for each in plan.configuration_names if plan.configuration(each).data_identifier == data}
    for path in sorted((session.workspace.results / session.name).glob(f"*/.fold_*{LOCK}")):
        busy = holder(path) if path.parent.name.rpartition("__")[2] in sharing else None
        if busy is None or busy.is_this_process:
            continue
        replaced = replaced_cases(session.dataset, plan, name, CaseStore(cases_folder(session, plan, name)))
        if replaced:
            raise WorkspaceError(
                f"{cases_folder(session, plan, name)}: case {shorten(replaced)} changed and would be replaced, but "
                f"{busy}, and reads it; wait until that ends, or stop it"
            )


def cases_are_fresh(session: Session, plan: Plan, name: str) -> bool:
    """Return whether preprocessed data are up to date, from file sizes and times alone."""
    return session.stage_cache.is_current(*_cases_record(session, plan, name))


def cases_folder(session: Session, plan: Plan, name: str) -> Path:
    """Return the folder of a configuration's preprocessed cases."""
    return session.workspace.case_folder(session.name, plan.configuration(name).data_identifier)


def _cases_record(session: Session, plan: Plan, name: str) -> tuple[str, object]:
    """Return the stage cache's key of a configuration's preprocessed cases, and everything they are made from."""
    configuration = plan.configuration(name).model_dump(mode="json", by_alias=True)
    shared = {key: value for key, value in plan.to_json().items() if key not in ("configurations", "segwright")}
    made_from = [session.raw_digest, configuration, shared, folder_digest(cases_folder(session, plan, name))]
    return f"cases {plan.plans_name} {name}", made_from


def copy_description(session: Session) -> None:
    """Copy dataset.json beside the preprocessed data, as nnU-Net does."""
    source = session.dataset.folder / DATASET_JSON
    target = session.workspace.dataset_copy(session.name)
    content = source.read_bytes()
    if not target.is_file() or target.read_bytes() != content:
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)


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
