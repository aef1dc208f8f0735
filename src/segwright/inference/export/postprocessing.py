"""Post-process label maps: keep only the largest connected component of some labels (nnU-Net behaviour 12.4).

`evaluation.postprocessing` chooses the labels; they are stored as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import scipy
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from segwright.core.boxes import box_slices, nonzero_box
from segwright.core.errors import ConfigError, DatasetError
from segwright.core.files.json_documents import describe_validation, read_checked_json, write_checked_json
from segwright.core.files.names import below, path_problem
from segwright.core.parallel import map_threads
from segwright.data.images.image_io import read_label, write_labels
from segwright.data.unmatched_files import entries, possible_label_map

POSTPROCESSING_JSON: Final = "postprocessing.json"
MAX_STEPS: Final = 10_000
"""Limit on steps read from a file, since each step passes over every label map.

nnU-Net writes at most one step per label and one for all labels.
"""

NNUNET_FUNCTION: Final = "remove_all_but_largest_component_from_segmentation"
"""Name of the only step that nnU-Net has, in its document."""
_PICKLE = ".pkl"


class KeepLargest(BaseModel):
    """Keep only the largest connected component of the union of some labels; the rest becomes background.

    Attributes:
        labels: their values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[PositiveInt, ...]

    @field_validator("labels", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    def __call__(self, label_map: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the changed label map (*S)."""
        return keep_largest(label_map, self.labels)


class Decision(BaseModel):
    """Whether a step was accepted.

    Attributes:
        name: of its label, or of all foreground.
        labels: values of its labels.
        before: mean Dice of these labels without the step; NaN if no case has them.
        after: the same with the step.
        accepted: whether the step is applied.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    labels: tuple[int, ...]
    before: float
    after: float
    accepted: bool
    is_unclear: bool = False
    """The step helps, but by too little or on too few cases."""


class PostProcessing(BaseModel):
    """Steps in their order, and their gain in cross-validation; without steps label maps are unchanged.

    Attributes:
        steps: are applied one after the other.
        decisions: on each step that was tried.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1] = 1
    steps: tuple[KeepLargest, ...] = Field(default=(), max_length=MAX_STEPS)
    decisions: tuple[Decision, ...] = ()
    dice_before: float | None = None
    """Mean foreground Dice of the cases on which the steps were chosen."""
    dice_after: float | None = None
    """The same with the steps."""
    cases: int | None = None
    """Number of these cases."""

    def __call__(self, label_map: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the label map (*S) after all steps; the argument is not changed."""
        result: npt.NDArray[Any] = label_map
        for step in self.steps:
            result = step(result)
        return result

    @property
    def gain(self) -> float | None:
        """Mean foreground Dice with the steps, minus that without them."""
        return None if self.dice_before is None or self.dice_after is None else self.dice_after - self.dice_before

    def to_json(self) -> list[list[int]]:
        """Return the labels of each step, without scores; used to identify predictions made with the same steps."""
        return [list(step.labels) for step in self.steps]

    def save(self, path: Path) -> None:
        """Write the document."""
        write_checked_json(path, self.model_dump(mode="python", exclude_none=True))

    @classmethod
    def load(cls, path: Path) -> PostProcessing:
        """Read `postprocessing.json`, ours or nnU-Net's, or the one in a folder.

        Raises:
            ConfigError: it is nnU-Net's pickle, which is never read, or not a valid document.
            SegwrightError: it is missing or damaged.
        """
        if path.suffix == _PICKLE:
            raise ConfigError(
                f"{path}: reading a pickle can run any code; give the {POSTPROCESSING_JSON} beside it instead"
            )
        file = path / POSTPROCESSING_JSON if path.is_dir() else path
        document = read_checked_json(file)
        if isinstance(document, dict) and "postprocessing_fns" in document:
            document = _from_nnunet(document, file)
        elif isinstance(document, dict) and "steps" not in document:
            raise ConfigError(
                f"{file}: holds no post-processing: expected 'steps', or nnU-Net's 'postprocessing_fns'; "
                "'segwright determine-postprocessing' writes one"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(f"{file}: {describe_validation(error)}") from error


NO_POSTPROCESSING: Final = PostProcessing()


def keep_largest(label_map: npt.NDArray[Any], labels: Sequence[int]) -> npt.NDArray[Any]:
    """Remove all but the largest connected component of the union of `labels` from a label map (*S).

    Voxels that share a corner are connected. If several components are largest, all of them stay, as in nnU-Net.
    """
    mask = np.isin(label_map, labels)
    if not mask.any():
        return label_map
    inside = box_slices(nonzero_box(mask))
    components = _components(np.ascontiguousarray(mask[inside]))
    sizes = np.bincount(components.reshape(-1))
    sizes[0] = 0
    is_removed = sizes < sizes.max()
    is_removed[0] = False
    if not is_removed.any():
        return label_map
    result: npt.NDArray[Any] = label_map.copy()
    result[inside][is_removed[components]] = 0
    return result


def process_folder(
    processing: PostProcessing,
    source: Path,
    target: Path,
    *,
    file_ending: str,
    reader: str,
    workers: int | None = None,
) -> list[Path]:
    """Apply steps to every label map of a folder and return the files written; the source may be the target.

    Raises:
        DatasetError: there is no label map.
        ImageError: one cannot be read or written.
    """
    wrong = path_problem(source, "folder")
    if wrong:
        raise DatasetError(f"{source}: {wrong}")
    files = [source / entry.name for entry in entries(source) if entry.name.endswith(file_ending)]
    if not files:
        hint = possible_label_map(source, file_ending)
        raise DatasetError(f"{source}: no label map ends in {file_ending}{hint}")

    def process(file: Path) -> Path:
        volume = read_label(file, reader)
        label_map = volume.array[0].astype(np.int32)  # write_labels rejects values outside 0..MAX_WRITTEN_LABEL
        written = below(target, file.name)
        write_labels(processing(label_map), written, volume.properties, reader)
        return written

    return map_threads(process, files, workers=workers, title="post-processing")


def _components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Return the number of each voxel's connected component, 0 outside; with cc3d if it is installed, which is faster.

    cc3d fails on masks with an extent of 1, so they are padded.
    """
    if mask.ndim == 3 and find_spec("cc3d") is not None:
        padded: npt.NDArray[Any] = import_module("cc3d").connected_components(np.pad(mask, 1), connectivity=26)
        return padded[1:-1, 1:-1, 1:-1]
    numbered, _ = scipy.ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=bool))
    return np.asarray(numbered)


def _from_nnunet(document: dict[str, Any], file: Path) -> dict[str, Any]:
    """Convert nnU-Net's document to ours."""
    functions, arguments = document["postprocessing_fns"], document.get("postprocessing_kwargs")
    unknown = [name for name in functions if name != NNUNET_FUNCTION]
    if unknown:
        raise ConfigError(f"{file}: unknown step '{unknown[0]}'; expected {NNUNET_FUNCTION}")
    if not isinstance(arguments, list) or len(arguments) != len(functions):
        raise ConfigError(f"{file}: expected as many postprocessing_kwargs as postprocessing_fns")
    return {"steps": [{"labels": each.get("labels_or_regions")} for each in arguments]}
