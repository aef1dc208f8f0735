"""Transfer a plan to another dataset (nnU-Net behaviour 5.16)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.data.plan import Plan
from segwright.planning.normalization import choose_normalization
from segwright.planning.planner import intensities

DATA_IDENTIFIER = "data_identifier"
SCHEMES = "normalization_schemes"
USE_MASK = "use_mask_for_norm"


def transfer_plan(plan: Plan, *, dataset_name: str, reader: str, plans_name: str) -> Plan:
    """Return the plan for another dataset: name and reader change, all else is copied.

    The intensity statistics of the original dataset are kept: a network trained with them needs the same
    normalisation. Data identifiers follow the plan's name, so that preprocessed cases are not mixed.
    """
    document: dict[str, Any] = deepcopy(plan.to_json())
    document |= {"dataset_name": dataset_name, "plans_name": plans_name, "image_reader_writer": reader}
    if plans_name != plan.plans_name:
        for configuration in document["configurations"].values():
            if DATA_IDENTIFIER in configuration:
                configuration[DATA_IDENTIFIER] = _renamed(configuration[DATA_IDENTIFIER], plan.plans_name, plans_name)
    return Plan.from_json(document)


def replan_normalization(plan: Plan, description: DatasetDescription, fingerprint: Fingerprint) -> Plan:
    """Return the plan with the normalisation planned anew, for a dataset with other channels."""
    document: dict[str, Any] = deepcopy(plan.to_json())
    chosen = choose_normalization(description, fingerprint)
    for configuration in document["configurations"].values():
        if SCHEMES in configuration:
            configuration |= {SCHEMES: list(chosen.schemes), USE_MASK: list(chosen.use_mask)}
    document["foreground_intensity_properties_per_channel"] = intensities(fingerprint)
    return Plan.from_json(document)


def _renamed(identifier: str, before: str, after: str) -> str:
    return after + identifier.removeprefix(before) if identifier.startswith(before) else f"{after}_{identifier}"
