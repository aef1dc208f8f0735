"""Make the plan of a time budget: time a few steps on this machine, choose a size, and keep the plan."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segwright.api.session import Session, trained_folds
from segwright.core.errors import ConfigError
from segwright.core.files.hashing import file_hash
from segwright.core.text import short_duration
from segwright.data.images.image_io import read_label
from segwright.data.plan import Configuration, Plan
from segwright.planning.rationale import format_value

if TYPE_CHECKING:
    from segwright.planning.time_budget import Choice

logger = getLogger(__name__)

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?")
_SECONDS = (3600.0, 60.0, 1.0)

_OWN_KEYS = ("plans_name", "configurations", "segwright")
"""Keys of a plan that are not facts about the dataset."""

_DECIDING = ("network", "pretrained")
"""Settings that bind a network of another size than a plan for a budget would have."""

NUM_LABEL_CASES = 8
"""Number of cases whose label maps tell how coarse the spacing may become."""


def plan_for_budget(
    session: Session,
    full: Plan,
    wanted: Sequence[str] | None,
    settings: Mapping[str, Any],
    *,
    device: str = "auto",
    force: bool = False,
) -> tuple[Plan, tuple[str, ...], bool]:
    """Return the plan and the configurations to train in a time budget, and whether the plan was newly made.

    That is the full plan if the budget allows enough steps of it; otherwise one of another name, with some of its
    configurations in another size. Once made it is kept, so that a training can be resumed and repeated.

    Args:
        session: of the dataset.
        full: plan without a budget.
        wanted: configurations to train; None: the one that suits the time.
        settings: fields of `TrainConfig` that the training will have, `budget_s` among them.
        device: auto, cpu, mps or a GPU.
        force: whether to make the plan anew.
    """
    from segwright.planning import time_budget
    from segwright.planning.budget_plan import with_choices

    budget_s = settings["budget_s"]
    usual = (full.default_configuration,)
    if not _can_be_sized(full, wanted, settings):
        return full, tuple(wanted or usual), False
    plans_name, file = _budget_file(session, full, budget_s)
    existing = None if force else _current_plan(session, file, full)
    if existing is not None and (names := _names_in(existing, wanted)):
        return existing, names, False
    names = tuple(wanted or (time_budget.quick_configuration(full),))
    if wanted is None and names != usual and _choose(session, full, usual[0], plans_name, settings, device).is_full:
        return full, usual, False
    known = {} if existing is None else existing.configurations
    choices = {name: _choose(session, full, name, plans_name, settings, device) for name in names if name not in known}
    if existing is None and all(choice.is_full for choice in choices.values()):
        return full, names, False
    plan = with_choices(existing or full, plans_name, choices, budget_s)
    plan.save(file)
    session.stage_cache.record(*_as_written(plans_name, file))
    return plan, names, True


def sized_before(
    session: Session, full: Plan, wanted: Sequence[str] | None, settings: Mapping[str, Any]
) -> tuple[Plan, tuple[str, ...]] | None:
    """Return the plan that exists for a time budget, and the configurations to train; None if `full` is trained.

    Args:
        session: of the dataset.
        full: plan without a budget.
        wanted: configurations to train; None: the one that suits the time.
        settings: fields of `TrainConfig` that the training will have, `budget_s` among them.
    """
    if not _can_be_sized(full, wanted, settings):
        return None
    name, file = _budget_file(session, full, settings["budget_s"])
    existing = _current_plan(session, file, full)
    names = () if existing is None else _names_in(existing, wanted)
    if existing is not None and names:
        return existing, names
    logger.warning(
        "no plans %s were made for this budget, so %s are used; if they may be too large for the time, call first, on "
        "a machine like those that train: segwright plan %s --budget %s",
        *(name, full.plans_name, session.name, short_duration(settings["budget_s"])),
    )
    return None


def _can_be_sized(full: Plan, wanted: Sequence[str] | None, settings: Mapping[str, Any]) -> bool:
    """Return whether a budget may change the size of the networks of a plan; the reason is logged if not."""
    from segwright.planning import time_budget

    names = wanted or (full.default_configuration,)
    fixed = [name for name in names if not time_budget.can_be_resized(full.configuration(name))]
    bound = [name for name in _DECIDING if settings.get(name) is not None]
    if bound:
        logger.info("%s is set, so the plan stays as it is without a budget", " and ".join(bound))
    elif fixed:
        logger.info(
            "%s stays as it is without a budget: only nnU-Net's networks outside a cascade have other sizes",
            " and ".join(fixed),
        )
    return not (settings["budget_s"] < time_budget.MIN_BUDGET_S or fixed or bound)


def _budget_file(session: Session, full: Plan, budget_s: float) -> tuple[str, Path]:
    """Return the name of the plans for a budget, and their file."""
    name = f"{full.plans_name}_{short_duration(budget_s)}"
    return name, session.workspace.plans_file(session.name, name)


def _names_in(plan: Plan, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the configurations to train of a plan for a budget; none if it lacks one that is wanted."""
    if wanted is None:
        return plan.configuration_names[:1]
    return tuple(wanted) if {*wanted} <= {*plan.configurations} else ()


def _current_plan(session: Session, file: Path, full: Plan) -> Plan | None:
    """Return the existing plan for the budget; None if it must be made, for the first time or for changed data."""
    if not file.is_file():
        return None
    plan = Plan.load(file)
    facts, known = (
        {key: value for key, value in each.to_json().items() if key not in _OWN_KEYS} for each in (full, plan)
    )
    if facts == known:
        return plan
    users = trained_folds(session, plan.plans_name)
    is_edited = not session.stage_cache.is_current(*_as_written(plan.plans_name, file))
    if not users and not is_edited:
        return None
    why = "it was edited by hand" if is_edited else f"{users[0]} was trained with it"
    logger.warning(
        "%s does not fit the dataset, or the plans without a budget, as they are now; %s and is kept; 'segwright plan "
        "--budget TIME --overwrite' replaces it",
        *(file, why),
    )
    return plan


def _as_written(plans_name: str, file: Path) -> tuple[str, str]:
    """Return the stage cache's key of a plans file and its content."""
    return f"plans {plans_name} as written", file_hash(file)


def _choose(
    session: Session, full: Plan, name: str, plans_name: str, settings: Mapping[str, Any], device: str
) -> Choice:
    """Time steps of a configuration in several sizes, and choose one."""
    from segwright.core.device import resolve_device
    from segwright.planning import time_budget
    from segwright.planning.budget_plan import explain_choice
    from segwright.training.config import TrainConfig
    from segwright.training.defaults import resolve_config
    from segwright.training.monitoring.step_time import step_seconds

    def seconds(configuration: Configuration) -> float:
        document = configuration.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return step_seconds(
            full.model_copy(update={"configurations": {name: document}}),
            name,
            session.dataset.description,
            settings={**settings, "batch_size": configuration.batch_size},
            device=device,
        )

    config, planned = TrainConfig.from_mapping(settings), full.configuration(name)
    logger.info("timing training steps of %s, to plan for %s", name, short_duration(settings["budget_s"]))
    trained = resolve_config(config, planned, resolve_device(device)).config
    choice = time_budget.choose(
        planned.model_copy(update={"batch_size": trained.batch_size}),
        settings["budget_s"],
        labels_kept(session, full, planned),
        batch_size=config.batch_size,
        data_identifier=f"{plans_name}_{name}",
        step_seconds=seconds,
    )
    for line in explain_choice(choice, name, settings["budget_s"]):
        logger.info("%s, %s: %s; %s", name, line.decision, format_value(line.value), line.reason)
    return choice


def labels_kept(session: Session, plan: Plan, configuration: Configuration) -> dict[float, float]:
    """Return the share of their Dice that the label maps of some cases keep at coarser spacings, by factor."""
    from segwright.planning.label_detail import kept_dice

    cases = [case for case in session.dataset.cases if case.label is not None]
    chosen = np.linspace(0, len(cases) - 1, min(NUM_LABEL_CASES, len(cases))).round().astype(int)
    labels = session.dataset.labels

    def maps() -> Iterator[tuple[np.ndarray[Any, np.dtype[np.int32]], list[float]]]:
        for index in chosen:
            volume = read_label(cases[index].label, session.dataset.reader, label_map=labels.label_map)
            order = plan.transpose_forward
            label = volume.array[0].astype(np.int32).transpose(order)
            label[label == labels.ignore_label] = 0
            yield label, [volume.header.spacing[axis] for axis in order]

    return kept_dice(maps(), configuration.spacing)


def parse_duration(duration: str | float | None, what: str = "budget") -> float | None:
    """Parse a duration such as `90s`, `10m`, `1h30m` or plain seconds; return seconds.

    Args:
        duration: None stays None.
        what: name of the value in an error message.

    Raises:
        ConfigError: it is no duration.

    >>> parse_duration("1h30m"), parse_duration("90"), parse_duration(5)
    (5400.0, 90.0, 5.0)
    """
    if duration is None:
        return None
    match = _DURATION.fullmatch(str(duration).strip().lower().replace(" ", ""))
    parts = match.groups() if match else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, _SECONDS, strict=False) if part)
    if seconds <= 0:
        raise ConfigError(f"{what} '{duration}' is not a duration; write for instance 90s, 10m or 1h30m")
    return seconds
