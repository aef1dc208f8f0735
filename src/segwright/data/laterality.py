"""Left and right: pairs of labels that are mirror images of each other, and the lateral axis of the images."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from segwright.core.errors import PlanError
from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import Volume
from segwright.data.images.orientation import left_axis
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.data.symmetry import MAX_CASES, CaseSymmetry, find_symmetric_pairs, measure_symmetry

LEFT_RIGHT_KEY: Final = "left_right"
"""Key of the pairs in a plan, below `segwright`."""

Pairs = tuple[tuple[str, str], ...]

_LEFT: Final = re.compile(r"(?<![a-z])left(?![a-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPairs:
    """Pairs of left and right labels, for mirroring.

    Attributes:
        pairs: names of labels or regions, left and right.
        axes: those of preprocessed images, 0 to 2, that may run between left and right.
        swap: whether mirroring these axes swaps the labels of each pair; otherwise they are not mirrored.
    """

    pairs: Pairs
    axes: tuple[int, ...]
    swap: bool

    @classmethod
    def of_plan(cls, plan: Plan) -> LabelPairs | None:
        """Return the pairs of a plan; None if it has none.

        Raises:
            PlanError: the entry is malformed.
        """
        entry = plan.segwright.get(LEFT_RIGHT_KEY)
        if entry is None:
            return None
        where = f"plans '{plan.plans_name}': segwright.{LEFT_RIGHT_KEY}"
        try:
            pairs = tuple((str(left), str(right)) for left, right in entry["pairs"])
            found = cls(pairs=pairs, axes=tuple(int(axis) for axis in entry["axes"]), swap=bool(entry["swap"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"{where} must have 'pairs' (of two names), 'axes' and 'swap'; correct it or make the plan again"
            ) from error
        if not set(found.axes) <= {0, 1, 2}:
            raise PlanError(f"{where}.axes {list(found.axes)}: expected 0, 1 or 2")
        return found

    def in_patch(self, dims: int) -> tuple[int, ...]:
        """Return `axes` as axes of a patch with `dims` (2 or 3) axes; a 2D patch lacks the first one."""
        return tuple(axis - 3 + dims for axis in self.axes if axis >= 3 - dims)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the plan."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPairs:
    """Pairs of labels that look like mirror images of each other in the label maps of a dataset.

    Attributes:
        pairs: names of labels, left and right.
        cases: number of cases that were measured.
        least_overlap: smallest Dice of a mirrored structure with its counterpart.
        certain: whether mirroring swaps them without a declaration; see `symmetry.find_symmetric_pairs`.
    """

    pairs: Pairs
    cases: int
    least_overlap: float
    certain: bool

    def declaration(self) -> str:
        """Return the line for dataset.json that declares the pairs."""
        return f'"label_pairs": {json.dumps(self.pairs)}'

    def advice(self) -> str:
        """Return how the pairs are used, and how to declare them, as text."""
        if not self.certain:
            return f"not used unless you add {self.declaration()} to dataset.json"
        return (
            f"a new plan swaps them where it mirrors, if all images have one orientation; add {self.declaration()} to"
            ' dataset.json to declare them, or "label_pairs": [] for no pairs'
        )

    def describe(self) -> str:
        """Return what was found, as text."""
        number = f"{len(self.pairs)} {'pair' if len(self.pairs) == 1 else 'pairs'} of labels"
        return f"{number} are mirror images in {self.cases} cases, with Dice {self.least_overlap:.2f} or more"


class PairFinder:
    """Finds pairs of labels by their symmetry in a few cases, which are added in any order and from any thread."""

    def __init__(self, description: DatasetDescription, identifiers: Sequence[str], reader: str) -> None:
        self._labels = Labels.from_description(description)
        self._reader = reader
        self._values: tuple[int, ...] = ()
        if description.label_pairs is None and not find_pairs(description) and not self._labels.has_regions:
            self._values = self._labels.foreground_labels
        count = min(len(identifiers), MAX_CASES)
        self._chosen = {identifiers[index * len(identifiers) // count] for index in range(count)}
        self._measured: dict[str, CaseSymmetry] = {}

    def add(self, identifier: str, label: Volume) -> None:
        """Measure the symmetry of a label map (1, *S) if its case is one of the few; without orientation it is not."""
        if len(self._values) < 2 or identifier not in self._chosen:
            return
        axis = left_axis(label.header, self._reader)
        if axis is None:
            return
        measured = measure_symmetry(label.array[0], label.spacing, axis, self._values)
        if measured is not None:
            self._measured[identifier] = measured

    def found(self) -> FoundPairs | None:
        """Return the pairs; None without any, and where labels are declared or named as left and right."""
        found = find_symmetric_pairs([self._measured[identifier] for identifier in sorted(self._measured)])
        if found is None:
            return None
        return FoundPairs(
            pairs=tuple((self._labels.class_name(left), self._labels.class_name(right)) for left, right in found.pairs),
            cases=found.num_cases,
            least_overlap=found.least_overlap,
            certain=found.are_certain,
        )


def find_pairs(description: DatasetDescription) -> Pairs:
    """Return the declared `label_pairs`, else all pairs of names that differ only in left and right.

    >>> labels = {"background": 0, "kidney_left": 1, "kidney_right": 2, "Left lung": 3, "cleft": 4}
    >>> document = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    >>> find_pairs(DatasetDescription(**document))
    (('kidney_left', 'kidney_right'),)
    """
    if description.label_pairs is not None:
        return description.label_pairs
    named = {name.lower(): name for name in description.labels}
    others = ((name, _LEFT.sub("right", lower)) for lower, name in named.items() if _LEFT.search(lower))
    return tuple((left, named[right]) for left, right in others if right in named)


def mirrored_values(labels: Labels, pairs: Pairs) -> dict[int, int] | None:
    """Return the label value that each value becomes when mirrored, or None if the pairs do not determine it.

    A value is mapped to the one that belongs to the counterparts of its labels and regions.
    """
    counterparts = _counterparts(pairs)
    owners: dict[int, frozenset[str]] = {}
    for name, key in labels.declared.items():
        for value in key if isinstance(key, tuple) else (key,):
            owners[value] = owners.get(value, frozenset()) | {name}
    by_owners: dict[frozenset[str], list[int]] = {}
    for value in sorted(owners):
        by_owners.setdefault(owners[value], []).append(value)
    result: dict[int, int] = {}
    for names, values in by_owners.items():
        others = by_owners.get(frozenset(counterparts.get(name, name) for name in names), [])
        if len(others) != len(values):
            return None
        result |= dict(zip(values, others, strict=True))
    return result


def mirrored_heads(labels: Labels, pairs: Pairs) -> tuple[int, ...]:
    """Return for each head of the network the index of its counterpart, itself without one."""
    counterparts = _counterparts(pairs)
    index = {name: head for head, name in labels.names.items()}
    return tuple(index[counterparts.get(name, name)] for name in labels.names.values())


def _counterparts(pairs: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    return dict(pairs) | {right: left for left, right in pairs}
