"""Labels of a dataset: classes or regions, heads of the network, and the label map that its outputs mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from segwright.core.errors import DatasetError
from segwright.core.text import MAX_LISTED, listed
from segwright.data.label_maps import MAX_UINT8_LABEL, MAX_WRITTEN_LABEL

ClassKey = int | tuple[int, ...]
"""One label value, or the values that make up a region."""

BACKGROUND = "background"
IGNORE = "ignore"
OUTSIDE = -1
"""Marks background outside the non-zero mask in preprocessed labels (nnU-Net behaviour 3.1)."""

REGION_THRESHOLD = 0.5
"""Probability above which a voxel belongs to a region."""

_IGNORE_SPELLINGS = ("ignore", "ignored", "ignorelabel", "ignoredlabel", "ignoreclass", "ignoreindex", "toignore")


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a dataset, and how they map to the network's heads (nnU-Net behaviour 4).

    Attributes:
        declared: name to value, or to the values of a region, as in dataset.json.
        regions_class_order: label value that each region is written with, in order; None without regions.
        label_map: label of each other value that files of the dataset may hold; what a file means, not what a model
            learns, so it does not count when labels are compared.
        names: head index to label name.

    >>> labels = Labels.from_dataset_json({"labels": {"background": 0, "liver": 1, "tumour": 2}})
    >>> labels.num_heads, labels.foreground_labels, labels.names[2]
    (3, (1, 2), 'tumour')
    """

    declared: Mapping[str, ClassKey]
    regions_class_order: tuple[int, ...] | None = None
    label_map: Mapping[int, int] = field(default_factory=dict, compare=False)
    names: Mapping[int, str] = field(init=False)

    def __post_init__(self) -> None:
        problems = label_problems(self.declared, self.regions_class_order)
        if problems:
            raise DatasetError(f"dataset.json, labels: {'; '.join(problems)}")
        if problems := label_map_problems(self.label_map, self.declared):
            raise DatasetError(f"dataset.json, label_map: {'; '.join(problems)}")
        object.__setattr__(self, "names", self._head_names())

    @classmethod
    def from_dataset_json(cls, document: Mapping[str, Any]) -> Labels:
        """Return the labels of a `dataset.json` document.

        Raises:
            DatasetError: a rule of nnU-Net behaviour 4.1 is broken.
        """
        if "labels" not in document:
            raise DatasetError("dataset.json: key 'labels' is missing; expected an object of name -> value")
        order = document.get("regions_class_order")
        return cls(
            {str(name): _as_key(value) for name, value in document["labels"].items()},
            None if order is None else tuple(int(value) for value in order),
            parse_label_map(document.get("label_map")),
        )

    @classmethod
    def from_description(cls, description: Any) -> Labels:
        """Return the labels of a `DatasetDescription`."""
        return cls(dict(description.labels), description.regions_class_order, description.label_map)

    @property
    def has_regions(self) -> bool:
        """Whether the network has one sigmoid head per region instead of one softmax head per label."""
        return any(isinstance(key, tuple) and len(key) > 1 for key in self.declared.values())

    @property
    def ignore_label(self) -> int | None:
        """The value of voxels without annotation."""
        value = self.declared.get(IGNORE)
        return value if isinstance(value, int) else None

    @property
    def all_labels(self) -> tuple[int, ...]:
        """Every value, background included, ignore left out, ascending."""
        values = {value for name, key in self.declared.items() if name != IGNORE for value in _values(key)}
        return tuple(sorted(values))

    @property
    def foreground_labels(self) -> tuple[int, ...]:
        """Every value but background and ignore, ascending."""
        return tuple(value for value in self.all_labels if value != 0)

    @property
    def regions(self) -> tuple[ClassKey, ...] | None:
        """The foreground regions in the order of their declaration; None without regions."""
        if not self.has_regions:
            return None
        return tuple(key for name, key in self.declared.items() if _is_foreground(name, key))

    @property
    def num_heads(self) -> int:
        """Number of output channels of the network."""
        regions = self.regions
        return len(self.all_labels) if regions is None else len(regions)

    @property
    def class_keys(self) -> tuple[ClassKey, ...]:
        """The classes whose locations are collected: regions or foreground labels, then everything annotated.

        The last key is there only with an ignore label (nnU-Net behaviour 6.5).
        """
        keys = self.evaluation_classes()
        return keys if self.ignore_label is None else (*keys, (OUTSIDE, *self.all_labels))

    def evaluation_classes(self) -> tuple[ClassKey, ...]:
        """Return what is scored: regions or labels, without background."""
        regions = self.regions
        return self.foreground_labels if regions is None else regions

    @property
    def declared_values(self) -> tuple[int, ...]:
        """Every value that a label map may hold: those of labels, background and ignore, ascending."""
        return tuple(sorted({value for key in self.declared.values() for value in _values(key)}))

    def undeclared(self, found: Iterable[int]) -> tuple[int, ...]:
        """Return the values of a label map that the dataset does not declare, ascending."""
        return tuple(sorted({int(value) for value in found} - set(self.declared_values)))

    def class_name(self, key: ClassKey) -> str:
        """Return the name under which a label or region was declared."""
        wanted = set(_values(key))
        for name, declared in self.declared.items():
            if set(_values(declared)) == wanted:
                return name
        return "+".join(str(value) for value in _values(key))

    def encode(self, label_map: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return `label_map` (*S) as one boolean channel per head (heads, *S).

        Voxels with the ignore label or outside the mask (-1) belong to no foreground head; the latter are background.
        """
        regions = self.regions
        if regions is not None:
            return np.stack([np.isin(label_map, _values(region)) for region in regions])
        heads = np.stack([label_map == value for value in self.all_labels])
        heads[0] |= label_map == OUTSIDE
        return heads

    def decide(self, scores: npt.NDArray[Any], *, logits: bool) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the label map (*S) of network outputs or probabilities (heads, *S), nnU-Net behaviour 4.4.

        Labels: the head with the largest score, the first among equals. Regions: `regions_class_order[i]` is written
        where region i is above one half, later regions over earlier ones.
        """
        self._require_heads(scores)
        return self.decide_one_by_one(scores, scores.shape[1:], logits=logits)

    def decide_one_by_one(
        self, heads: Iterable[npt.NDArray[Any]], shape: tuple[int, ...], *, logits: bool
    ) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the label map (*S) as `decide`, from heads (*S) that need not be in memory at the same time."""
        result: npt.NDArray[np.unsignedinteger[Any]] = np.zeros(shape, dtype=self.dtype)
        if self.has_regions:
            assert self.regions_class_order is not None
            threshold = 0.0 if logits else REGION_THRESHOLD
            for value, score in zip(self.regions_class_order, heads, strict=True):
                result[score > threshold] = value
            return result
        # A running maximum avoids an index array of eight bytes per voxel and reads every head once.
        best: npt.NDArray[Any] | None = None
        for value, score in zip(self.all_labels, heads, strict=True):
            if best is None:
                best = score.copy()
                continue
            result[score > best] = value
            np.maximum(best, score, out=best)
        return result

    def probabilities(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return softmax, or sigmoid for regions, of `logits` (heads, *S) in float32 (nnU-Net behaviour 4.3)."""
        self._require_heads(logits)
        values = np.array(logits, dtype=np.float32)
        if self.has_regions:
            scipy.special.expit(values, out=values)
            return values
        values -= values.max(axis=0)
        np.exp(values, out=values)
        values /= values.sum(axis=0)
        return values

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The dtype of label maps.

        Raises:
            DatasetError: the largest value exceeds uint16.
        """
        largest = max((*self.all_labels, *(self.regions_class_order or ())))
        if largest > MAX_WRITTEN_LABEL:
            raise DatasetError(
                f"dataset.json, labels: {largest} cannot be written, {MAX_WRITTEN_LABEL} is the largest value of a "
                "label map"
            )
        return np.uint8 if largest <= MAX_UINT8_LABEL else np.uint16

    def _require_heads(self, scores: npt.NDArray[Any]) -> None:
        if len(scores) != self.num_heads:
            raise DatasetError(
                f"network output has {len(scores)} channels, the labels of dataset.json need {self.num_heads}; "
                "use the dataset.json the model was trained with"
            )

    def _head_names(self) -> dict[int, str]:
        regions = self.regions
        if regions is not None:
            names = [name for name, key in self.declared.items() if _is_foreground(name, key)]
        else:
            names = [self.class_name(value) for value in self.all_labels]
        return dict(enumerate(names))


def label_problems(declared: Mapping[str, ClassKey], regions_class_order: tuple[int, ...] | None) -> list[str]:
    """Return every broken rule of the `labels` of a dataset.json (nnU-Net behaviour 4.1), each as 'what; remedy'."""
    problems = []
    if BACKGROUND not in declared:
        problems.append("'background' is missing; add \"background\": 0")
    elif declared[BACKGROUND] != 0:
        problems.append(f"'background' is {declared[BACKGROUND]}, expected 0")
    others = [value for name, key in declared.items() if name != IGNORE for value in _values(key)]
    if any(value < 0 for value in others):
        problems.append(f"values must not be negative, found {min(others)}")
    empty = [name for name, key in declared.items() if not _values(key)]
    if empty:
        problems.append(f"'{empty[0]}' lists no value")
    if IGNORE in declared:
        problems.extend(_ignore_problems(declared[IGNORE], others))
    return problems + _region_problems(declared, regions_class_order)


def parse_label_map(document: Any) -> dict[int, int]:
    """Return the `label_map` of a dataset.json as numbers; empty for None.

    Raises:
        DatasetError: it is not an object of value -> value, or names a value twice.
    """
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        kind = type(document).__name__
        raise DatasetError(f'is a {kind}, expected an object of value -> label, such as {{"255": 1}}')
    found: dict[int, int] = {}
    for key, label in document.items():
        if not re.fullmatch(r"-?[0-9]{1,9}", str(key)) or not isinstance(label, int) or isinstance(label, bool):
            raise DatasetError(f"maps '{key}' to {label!r}, expected whole numbers")
        if int(key) in found:
            raise DatasetError(f"maps {int(key)} twice, as '{key}' too; leave one")
        found[int(key)] = label
    return found


def label_map_problems(label_map: Mapping[int, int], declared: Mapping[str, ClassKey]) -> list[str]:
    """Return every broken rule of the `label_map` of a dataset.json, each as 'what; remedy'."""
    names = {value: name for name, key in declared.items() for value in _values(key)}
    problems = [
        f"maps {value} to {label}, which no label has; expected one of {listed(sorted(names))}"
        for value, label in label_map.items()
        if label not in names
    ]
    return problems + [
        f"maps {value}, which is the value of label '{names[value]}' itself, so that files with it have two meanings; "
        f"declare {value} for the label that files mean by it, and map only values that no label has"
        for value in label_map
        if value in names
    ]


def gap_problem(declared: Mapping[str, ClassKey]) -> str | None:
    """Return what is wrong if the values, including the ignore label, are not 0, 1, 2, ... without a gap."""
    values = sorted({value for key in declared.values() for value in _values(key)})
    gaps = (range(low + 1, high) for low, high in pairwise([-1, *values]))
    missing = list(islice(chain.from_iterable(gaps), MAX_LISTED + 1))  # a value may be in the millions
    if not missing:
        return None
    return (
        f"values {listed(values)} are not consecutive, {listed(missing)} missing; renumber the labels without gaps, "
        "and add a label_map if files have other values"
    )


def ignore_problem(declared: Mapping[str, ClassKey]) -> str | None:
    """Return what is wrong if a name is a misspelt `ignore`, which would be trained as a class."""
    if IGNORE in declared:
        return None
    for name in declared:
        if re.sub(r"[^a-z]", "", name.lower()) in _IGNORE_SPELLINGS:
            return (
                f"'{name}' would be trained as a class; name it '{IGNORE}' for voxels without annotation, or give "
                "the class another name"
            )
    return None


def decoding_problem(labels: Labels) -> str | None:
    """Return what is wrong if `Labels.decide` cannot recover every label from its regions.

    Labels in the same regions are indistinguishable; any one of them will do.
    """
    regions, order = labels.regions, labels.regions_class_order
    if regions is None or order is None:
        return None
    members = [set(_values(region)) for region in regions]
    unknown = sorted(set(order) - set(labels.all_labels))
    if unknown:
        return f"{list(order)}: {listed(unknown)} is not a declared label; {_order_remedy(labels)}"
    for value in labels.all_labels:
        written = _decoded_value(value, members, order)
        if any((value in region) != (written in region) for region in members):
            names = [name for name, key in labels.declared.items() if _is_foreground(name, key)]
            inside = ", ".join(f"'{name}'" for name, region in zip(names, members, strict=True) if value in region)
            return (
                f"{list(order)}: label {value}, in {inside or 'no region'}, would be predicted as "
                f"{written}; {_order_remedy(labels)}"
            )
    return None


def _decoded_value(value: int, members: Sequence[set[int]], order: Sequence[int]) -> int:
    """Return the predicted value of a voxel with a label, if the network finds exactly its regions."""
    return next((new for new, region in zip(reversed(order), reversed(members), strict=True) if value in region), 0)


def _order_remedy(labels: Labels) -> str:
    """Return the remedy: a valid regions_class_order if there is one."""
    assert labels.regions is not None
    members = [set(_values(region)) for region in labels.regions]
    own = [region - set().union(*members[index + 1 :]) for index, region in enumerate(members)]
    order = [min(left or region) for left, region in zip(own, members, strict=True)]
    values = set().union(*members)
    decoded = {value: _decoded_value(value, members, order) for value in values}
    if all((value in region) == (decoded[value] in region) for value in values for region in members):
        return f"use {order}"
    return "declare regions before those that they contain, and for each the label that only this region has"


def _ignore_problems(ignore: ClassKey, others: list[int]) -> list[str]:
    expected = max(others, default=0) + 1
    if not isinstance(ignore, int):
        return [f"'ignore' is a list, expected the single value {expected}"]
    return [] if ignore == expected else [f"'ignore' is {ignore}, expected {expected}, one above all other values"]


def _region_problems(declared: Mapping[str, ClassKey], order: tuple[int, ...] | None) -> list[str]:
    if not any(isinstance(key, tuple) and len(key) > 1 for key in declared.values()):
        return []
    names = [name for name, key in declared.items() if _is_foreground(name, key)]
    if order is None:
        return [f"regions are declared but regions_class_order is missing; give one value for each of {names}"]
    if len(order) != len(names):
        return [f"regions_class_order has {len(order)} entries, expected one for each of {names}"]
    if impossible := [value for value in order if not 0 <= value <= MAX_WRITTEN_LABEL]:
        return [f"regions_class_order names {impossible[0]}; expected values from 0 to {MAX_WRITTEN_LABEL}"]
    return []


def _is_foreground(name: str, key: ClassKey) -> bool:
    return name != IGNORE and set(_values(key)) != {0}


def _values(key: ClassKey) -> tuple[int, ...]:
    return key if isinstance(key, tuple) else (key,)


def _as_key(value: Any) -> ClassKey:
    return int(value) if isinstance(value, int) else tuple(int(part) for part in value)
