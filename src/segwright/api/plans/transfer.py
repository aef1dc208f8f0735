"""Copy the plans of a dataset or trained model to another dataset."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

from segwright.api.plans.making import DEFAULT_PLANS, copy_description
from segwright.api.preparing import make_fingerprint
from segwright.api.session import dataset_lock, open_session, workspace_or_default
from segwright.core.errors import PlanError
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.plan import Plan
from segwright.planning.transfer import replan_normalization, transfer_plan
from segwright.workspace import PLANS_JSON, Workspace

logger = getLogger(__name__)


def move_plans(
    source: Path | str,
    target: Path | str,
    *,
    workspace: Workspace | None = None,
    plans: str = DEFAULT_PLANS,
    name: str | None = None,
    force: bool = False,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> Plan:
    """Copy plans to another dataset, to pre-train or fine-tune with the same network and spacing.

    If both have the same number of channels, normalisation and intensity statistics are kept, as in nnU-Net.

    Args:
        source: A planned dataset (folder, name or id), a model folder, or a plans file.
        target: The dataset to which plans are copied.
        workspace: Workspace of both datasets; `./segwright-work` by default.
        plans: Name of the source dataset's plans.
        name: Name of the new plans; as in the source by default.
        force: Overwrite existing plans.
        workers: Threads, if the target's fingerprint must be made.
        environment: Variables that paths in file lists may contain.

    Raises:
        PlanError: there are no such plans, or the target already has plans of that name.
    """
    place = workspace_or_default(workspace)
    plan = Plan.load(_plans_file(source, place, plans))
    session = open_session(target, workspace, environment=environment)
    with dataset_lock(session, "planning"):
        if _num_channels(plan) != len(session.dataset.description.channel_names):
            measured, _ = make_fingerprint(session, workers=workers)
            logger.info("%s has other channels than the plans: its own normalisation is planned", session.name)
            plan = replan_normalization(plan, session.dataset.description, measured)
        transferred = transfer_plan(
            plan, dataset_name=session.name, reader=session.dataset.reader, plans_name=name or plan.plans_name
        )
        file = place.plans_file(session.name, transferred.plans_name)
        if file.exists() and not force:
            raise PlanError(f"{file}: already exists; choose another name with --name, or overwrite it with --force")
        copy_description(session)
        transferred.save(file)
    logger.info("plans %s of %s copied to %s: %s", plan.plans_name, plan.dataset_name, session.name, file)
    return transferred


def _num_channels(plan: Plan) -> int:
    return len(plan.configuration(plan.configuration_names[0]).normalization_schemes)


def _plans_file(source: Path | str, workspace: Workspace, plans: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if (path / PLANS_JSON).is_file():
        return path / PLANS_JSON
    file = workspace.plans_file(workspace.dataset_name(source), plans)
    if not file.is_file():
        raise PlanError(f"{file}: no such plans; plan the source first ('segwright plan {source}'), or give --plans")
    return file
