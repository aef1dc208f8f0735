"""nnU-Net's label manager over `data.labels` (nnU-Net behaviour 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segwright.data.label_maps import MAX_UINT8_LABEL
from segwright.data.labels import BACKGROUND, IGNORE, Labels

Scores = Tensor | npt.NDArray[Any]
Region = int | tuple[int, ...]


class LabelManager:
    """The labels or regions of a dataset.

    Attributes:
        label_dict: `labels` of dataset.json.
        regions_class_order: value that each region is written with; None without regions.
        inference_nonlin: from logits (C, *S) to probabilities.
    """

    def __init__(
        self,
        label_dict: Mapping[str, Any],
        regions_class_order: Sequence[int] | None,
        force_use_labels: bool = False,
        inference_nonlin: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.label_dict = dict(label_dict)
        self.regions_class_order = regions_class_order
        document = {"labels": _single_labels(label_dict) if force_use_labels else self.label_dict}
        if not force_use_labels and regions_class_order is not None:
            document["regions_class_order"] = list(regions_class_order)  # type: ignore[assignment]
        self.labels = Labels.from_dataset_json(document)
        self.inference_nonlin = inference_nonlin or self._default_nonlin

    @property
    def has_regions(self) -> bool:
        """Whether the network has a head for each region instead of each label."""
        return self.labels.has_regions

    @property
    def has_ignore_label(self) -> bool:
        """Whether voxels may be without annotation."""
        return self.labels.ignore_label is not None

    @property
    def ignore_label(self) -> int | None:
        """The value of voxels without annotation."""
        return self.labels.ignore_label

    @property
    def all_labels(self) -> list[int]:
        """Every value with background and without the ignore label."""
        return [*self.labels.all_labels]

    @property
    def foreground_labels(self) -> list[int]:
        """Every value but background and the ignore label."""
        return [*self.labels.foreground_labels]

    @property
    def all_regions(self) -> list[Region] | None:
        """The regions without background and the ignore label; None without regions."""
        return None if self.labels.regions is None else [*self.labels.regions]

    @property
    def foreground_regions(self) -> list[Region] | None:
        """The regions, as `all_regions`."""
        return self.all_regions

    @property
    def num_segmentation_heads(self) -> int:
        """Output channels of the network."""
        return self.labels.num_heads

    def apply_inference_nonlin(self, logits: Scores) -> Tensor:
        """Return probabilities (C, *S) of logits, in float32."""
        with torch.no_grad():
            return self.inference_nonlin(torch.as_tensor(logits).float())

    def convert_probabilities_to_segmentation(self, predicted_probabilities: Scores) -> Scores:
        """Return the label map (*S) of probabilities (C, *S), of their kind: a tensor or an array."""
        return self._decide(predicted_probabilities, logits=False)

    def convert_logits_to_segmentation(self, predicted_logits: Scores) -> Scores:
        """Return the label map (*S) of logits (C, *S), of their kind: a tensor or an array."""
        if self.inference_nonlin == self._default_nonlin:
            return self._decide(predicted_logits, logits=True)
        probabilities: Scores = self.apply_inference_nonlin(predicted_logits)
        is_tensor = isinstance(predicted_logits, Tensor)
        return self._decide(probabilities if is_tensor else np.asarray(probabilities), logits=False)

    def revert_cropping_on_probabilities(
        self, predicted_probabilities: Scores, bbox: Sequence[Sequence[int]], original_shape: Sequence[int]
    ) -> Scores:
        """Return probabilities (C, *original) that are background outside of `bbox`, the (start, stop) of each axis."""
        array = predicted_probabilities
        shape = (array.shape[0], *original_shape)
        like = torch.zeros(shape, dtype=array.dtype) if isinstance(array, Tensor) else np.zeros(shape, array.dtype)
        if not self.has_regions:
            like[0] = 1
        like[(slice(None), *(slice(low, high) for low, high in bbox))] = array  # type: ignore[assignment]
        return like

    @staticmethod
    def filter_background(classes_or_regions: Sequence[Any]) -> list[Any]:
        """Return the entries that hold another value than 0."""
        return [entry for entry in classes_or_regions if {*np.atleast_1d(entry).tolist()} != {0}]

    def _default_nonlin(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.has_regions else torch.softmax(logits, 0)

    def _decide(self, scores: Scores, *, logits: bool) -> Scores:
        if not isinstance(scores, Tensor):
            return self.labels.decide(scores, logits=logits)
        decided = self.labels.decide(scores.detach().float().cpu().numpy(), logits=logits)
        return torch.from_numpy(decided.astype(np.int16 if self.has_regions else np.int64)).to(scores.device)


def get_labelmanager_class_from_plans(plans: Mapping[str, Any]) -> type[LabelManager]:
    """Return the class of label managers; there is one."""
    del plans
    return LabelManager


def convert_labelmap_to_one_hot(
    segmentation: Scores, all_labels: Sequence[int] | npt.NDArray[Any] | Tensor, output_dtype: Any = None
) -> Scores:
    """Return a label map (*S) as one channel for each of `all_labels`, (labels, *S), of 0 and 1."""
    values = [int(value) for value in all_labels]
    if isinstance(segmentation, Tensor):
        dtype = output_dtype or (torch.uint8 if max(values) <= MAX_UINT8_LABEL else torch.int16)
        return torch.stack([(segmentation == value).to(dtype) for value in values])
    small: Any = np.uint8 if max(values) <= MAX_UINT8_LABEL else np.uint16
    return np.stack([(segmentation == value).astype(output_dtype or small) for value in values])


def _single_labels(label_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return declared labels with each value of a region on its own."""
    values = {int(value) for name, entry in label_dict.items() if name != IGNORE for value in np.atleast_1d(entry)}
    single = {BACKGROUND: 0, **{str(value): value for value in sorted(values - {0})}}
    return {**single, IGNORE: label_dict[IGNORE]} if IGNORE in label_dict else single
