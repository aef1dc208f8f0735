"""Estimate what trainings of a plan take on this machine: time, memory and disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from segwright.api.budgeting import parse_duration
from segwright.api.preparing import cases_are_fresh, cases_folder
from segwright.api.session import Session, open_session
from segwright.core.device import resolve_device
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.data.dataset import NO_ENVIRONMENT, Dataset
from segwright.data.fingerprint import Fingerprint
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.preprocessing.dataset import preprocess_dataset
from segwright.preprocessing.normalization import load_schemes
from segwright.preprocessing.pipeline import full_spacing, target_shape
from segwright.training.loading.caching import choose_placement, total_bytes
from segwright.training.monitoring.cost import TrainingCost
from segwright.training.monitoring.step_time import measure_cost
from segwright.workspace import Workspace

logger = getLogger(__name__)

NUM_CASES: Final = 3
"""Cases that are preprocessed to time steps and to measure how well they compress; of all sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationCost:
    """What a configuration takes.

    Attributes:
        training: Time and memory of the training of one fold.
        cases_bytes: All preprocessed cases on disk.
    """

    training: TrainingCost
    cases_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """Some preprocessed cases, and the sizes of all cases, decoded and on disk, in bytes."""

    store: CaseStore
    decoded_bytes: int
    all_decoded_bytes: int
    all_stored_bytes: int


def training_costs(
    dataset: str | Path | int,
    plan: Plan,
    *,
    workspace: Workspace | None = None,
    budget: str | float | None = None,
    device: str = "auto",
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    trust_code: TrustCode = False,
) -> dict[str, ConfigurationCost]:
    """Return what each configuration of a plan takes on this machine, from a few timed steps.

    A few cases are preprocessed into a temporary folder for it, unless all are preprocessed already. The second stage
    of a cascade is left out, since it needs predictions of the first.

    Args:
        dataset: Folder, name or id; its fingerprint must exist.
        plan: Its plan.
        workspace: Where results are written; `./segwright-work` by default.
        budget: Training time of a fold.
        device: That will train: auto, cpu, mps or a GPU.
        environment: Variables that paths in file lists may contain.
        trust_code: Whether to import normalisation code that the plan names as `module:attr`.
    """
    session = open_session(dataset, workspace, environment=environment, trust=CodeTrust.of(trust_code))
    settings: dict[str, Any] = {"compile": "off"}  # which takes longer than all else here
    if budget is not None:
        settings["budget_s"] = parse_duration(budget)
    single = [name for name in plan.configuration_names if plan.configuration(name).previous_stage is None]
    return {name: _cost(session, plan, name, settings, device) for name in single}


def _cost(session: Session, plan: Plan, name: str, settings: Mapping[str, Any], device: str) -> ConfigurationCost:
    logger.info("timing training steps of %s", name)
    with _sample(session, plan, name) as sample:
        description = session.dataset.description
        cost = measure_cost(plan, name, description, cases=sample.store, settings=settings, device=device)
        needed = sample.all_decoded_bytes
        place = choose_placement("auto", needed, resolve_device(device))
        more = max(0, needed - sample.decoded_bytes)  # the sample's are in memory
        if place.location == "ram" and cost.memory_bytes is not None:
            cost = replace(cost, memory_bytes=cost.memory_bytes + more)
        elif place.location == "device":
            cost = replace(cost, device_memory_bytes=cost.device_memory_bytes + more)
        return ConfigurationCost(training=cost, cases_bytes=sample.all_stored_bytes)


@contextmanager
def _sample(session: Session, plan: Plan, name: str) -> Iterator[_Sample]:
    """Yield preprocessed cases of a configuration: those of the workspace, or a few in a temporary folder."""
    if cases_are_fresh(session, plan, name):
        store = CaseStore(cases_folder(session, plan, name))
        decoded = total_bytes(store, store.identifiers())
        yield _Sample(
            store=store, decoded_bytes=decoded, all_decoded_bytes=decoded, all_stored_bytes=_file_bytes(store)
        )
        return
    load_schemes(plan.configuration(name).normalization_schemes, session.trust, source=f"plans '{plan.plans_name}'")
    voxels = _preprocessed_voxels(session, plan, name)
    with TemporaryDirectory(prefix="segwright-cases-") as folder:
        store = CaseStore(Path(folder))
        preprocess_dataset(_some_cases(session.dataset, voxels), plan, name, store)
        names = store.identifiers()
        share = sum(voxels.values()) / sum(prod(store.load(each).image.shape[1:]) for each in names)
        decoded = total_bytes(store, names)
        yield _Sample(
            store=store,
            decoded_bytes=decoded,
            all_decoded_bytes=round(share * decoded),
            all_stored_bytes=round(share * _file_bytes(store)),
        )


def _some_cases(dataset: Dataset, voxels: Mapping[str, int]) -> Dataset:
    """Return the dataset with a few cases: the middle one of each part when they are sorted by size."""
    cases = sorted(dataset.cases, key=lambda case: voxels[case.identifier])
    count = min(NUM_CASES, len(cases))
    chosen = [cases[int((index + 0.5) * len(cases) / count)] for index in range(count)]
    return replace(dataset, cases=tuple(chosen))


def _preprocessed_voxels(session: Session, plan: Plan, name: str) -> dict[str, int]:
    """Return the number of voxels of each case after preprocessing, by the fingerprint."""
    fingerprint = Fingerprint.load(session.workspace.fingerprint_file(session.name))
    configuration, order = plan.configuration(name), plan.transpose_forward
    found = {}
    for case, shape, spacing in zip(
        session.dataset.cases, fingerprint.shapes_after_crop, fingerprint.spacings, strict=True
    ):
        old = [spacing[axis] for axis in order]
        new = full_spacing(configuration, old)
        found[case.identifier] = prod(target_shape([shape[axis] for axis in order], old, new))
    return found


def _file_bytes(store: CaseStore) -> int:
    return sum(path.stat().st_size for path in store.folder.iterdir() if path.is_file())
