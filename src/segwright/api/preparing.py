"""Check, fingerprint, plan and preprocess a dataset; up-to-date results are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

from segwright.api.budgeting import parse_duration, plan_for_budget
from segwright.api.plans.making import (
    DEFAULT_OPTIONS,
    DEFAULT_PLANS,
    PlanOptions,
    checked_options,
    copy_description,
    load_plan,
    make_plan,
    plan_values,
)
from segwright.api.session import (
    Session,
    dataset_lock,
    open_session,
    record_owner,
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
from segwright.core.files.locks import holder
from segwright.data import checks
from segwright.data import fingerprint as measuring
from segwright.data.crossval.groups import Groups
from segwright.data.crossval.splits import shorten
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.description import load_description
from segwright.data.fingerprint import Fingerprint
from segwright.data.images.image_io import reader_of_shapes
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.data.stage_cache import folder_digest
from segwright.planning import rationale
from segwright.workspace import LOCK, Workspace

if TYPE_CHECKING:
    from segwright.preprocessing.dataset import PreprocessReport

logger = getLogger(__name__)

UNNAMED_DATASET = "Dataset"


def check(
    dataset: str | Path | int,
    *,
    workspace: Workspace | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> checks.Findings:
    """Find all problems of a dataset in one pass over its files; nothing is written.

    Examples:
        >>> findings = check("raw/Dataset004_Hippocampus")  # doctest: +SKIP
        >>> [str(problem) for problem in findings.errors]  # doctest: +SKIP
    """
    place = workspace_or_default(workspace)
    findings = checks.check(place.resolve_dataset(dataset), workers=workers, environment=environment)
    problem = writing_problem(place)
    return findings if problem is None else replace(findings, errors=(*findings.errors, problem))


def fingerprint(
    dataset: str | Path | int,
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

    Examples:
        >>> fingerprint("raw/Dataset004_Hippocampus").spacings  # doctest: +SKIP
    """
    session = open_session(dataset, workspace, environment=environment, wait=wait)
    with dataset_lock(session, "measuring"):
        return make_fingerprint(session, workers=workers, force=force)[0]


def plan(
    dataset: str | Path | int,
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

    Examples:
        >>> plan("raw/Dataset004_Hippocampus").configuration("3d_fullres").patch_size  # doctest: +SKIP
    """
    options = checked_options(options, workspace)
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
    """Plan from a fingerprint without images; nothing is written. The folder of `dataset_json` names the dataset.

    Examples:
        >>> plan_from_fingerprint(Path("dataset_fingerprint.json"), Path("dataset.json"))  # doctest: +SKIP
    """
    options = checked_options(options, None)
    measured = Fingerprint.load(fingerprint)
    description = load_description(dataset_json)
    return plan_values(
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
    dataset: str | Path | int,
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

    Examples:
        >>> preprocess("raw/Dataset004_Hippocampus", configurations=["3d_fullres"])  # doctest: +SKIP
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
