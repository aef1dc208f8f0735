"""Read and write the folder of a selected model: its members, all that prediction needs, and post-processing.

selection.json        members, and the result of the selection
postprocessing.json   steps for label maps
summary.json          scores of its held-out cases, before post-processing
quality.json          estimator of the Dice of a prediction
calibration.json      the temperature of its probabilities
members/<name>/       one or two model folders, see `model_folder`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.errors import ModelError, WorkspaceError
from segwright.core.files.atomic_io import atomic_path, sweep_leftovers
from segwright.core.files.hashing import content_hash, file_hash
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.core.files.names import FileName
from segwright.core.text import printable
from segwright.data.description import load_description
from segwright.data.plan import Plan
from segwright.inference.export.postprocessing import POSTPROCESSING_JSON, PostProcessing
from segwright.inference.models.identity import model_hash
from segwright.inference.reliability.calibration import CALIBRATION_JSON, Calibration
from segwright.inference.reliability.expected_dice import QUALITY_JSON, DiceEstimator
from segwright.inference.reliability.model import with_estimates
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON, SEGMENTS_JSON, SUMMARY_JSON, Workspace

if TYPE_CHECKING:
    from segwright.inference.ensemble import Ensemble
    from segwright.inference.predictor import Predictor

logger = getLogger(__name__)

SELECTION_JSON: Final = "selection.json"
MEMBERS: Final = "members"

_OURS = {
    *(SELECTION_JSON, SUMMARY_JSON, POSTPROCESSING_JSON, QUALITY_JSON, CALIBRATION_JSON, MEMBERS, "report.html"),
    SEGMENTS_JSON,
}
_CHECKPOINT = ("checkpoint_final.safetensors", "checkpoint_final.json")
_RECORDS = ("train.json", "metrics.jsonl")
"""Files of a fold that its report shows; prediction does not need them."""


class Member(BaseModel):
    """One model of a selection."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: FileName
    configuration: str
    folds: tuple[int | FileName, ...]
    made_of: Mapping[str, str] = {}
    """`fold_digest` of each fold at the selection; empty in folders of earlier versions."""


class Selected(BaseModel):
    """`selection.json`."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    schema_version: Literal[1] = 1
    dataset: str
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    source_hash: str = Field(default="", alias="made_from")
    """Hash of all inputs of the selection; equal inputs give the same model."""
    made_by: str = Field(default="", alias="by")
    """The command that wrote it."""
    selection: Mapping[str, Any] = {}
    """The candidates and the result."""
    shortcoming: str = ""
    """Why the model is not usable; empty if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A trained model folder, its configuration, and the folds to take."""

    folder: Path
    configuration: str
    folds: tuple[int | str, ...]


def is_selected(folder: Path) -> bool:
    """Whether a folder holds a selected model."""
    return (folder / SELECTION_JSON).is_file()


def find_selected(folder: Path) -> Path | None:
    """Find a selected model: the folder itself, or the only one in it, for instance in the results of a dataset.

    Raises:
        ModelError: the folder has several.
    """
    if is_selected(folder):
        return folder
    models = sorted(each for each in folder.iterdir() if is_selected(each)) if folder.is_dir() else []
    if len(models) > 1:
        raise ModelError(f"{folder}: holds several selected models; name one of {', '.join(map(str, models))}")
    return models[0] if models else None


def read_selected(folder: Path) -> Selected:
    """Read `selection.json`.

    Raises:
        SegwrightError: it is missing or damaged.
    """
    return parse_document(Selected, folder / SELECTION_JSON)


def member_folders(folder: Path) -> list[Path]:
    """Return the model folders of a selected model, in the order of the selection."""
    return [folder / MEMBERS / member.name for member in read_selected(folder).members]


def fold_digest(model: Path, fold: int | str) -> str:
    """Return a hash of a fold's training and scores, from its documents; no weights are read."""
    folder = Workspace.fold_folder(model, fold)
    documents = (folder / _CHECKPOINT[1], folder / "validation" / SUMMARY_JSON)
    return content_hash([file_hash(file) if file.is_file() else None for file in documents])


def newer_folds(folder: Path) -> list[str]:
    """Return the folds, beside the folder of a selected model, that were trained or scored after it was selected."""
    newer = []
    for member in read_selected(folder).members:
        model = folder.parent / member.name
        for fold_folder in sorted(model.glob("fold_*")):
            fold = fold_folder.name.removeprefix("fold_")
            is_member = fold in map(str, member.folds)
            known = member.made_of.get(fold)
            has_changed = known is not None and fold_digest(model, fold) != known
            is_new = fold.isdecimal() and not is_member and all((fold_folder / name).is_file() for name in _CHECKPOINT)
            if has_changed or (is_new and member.made_of):
                newer.append(f"{member.name}/{fold_folder.name}")
    return newer


def has_predicted(folder: Path, identity: Any) -> bool:
    """Return whether a selected model is the one of an identity, on whatever device and in whatever precision.

    Args:
        folder: of the selected model; its weights are read.
        identity: as a log of predictions has it; see `Predictor.identity`.

    Raises:
        SegwrightError: a document is damaged or a file missing.
    """
    if not isinstance(identity, dict):
        return False
    members = identity.get("ensemble", [identity])
    steps = PostProcessing.load(folder / POSTPROCESSING_JSON).to_json()
    hashes = [each.get("model_hash") for each in members if isinstance(each, dict)]
    return identity.get("postprocessing", []) == steps and hashes == [
        _hash_of_member(folder, member) for member in read_selected(folder).members
    ]


def load_selected(folder: Path, load: Callable[[Path], Predictor]) -> Predictor | Ensemble:
    """Load a selected model: the predictor of its only member, or an ensemble, with post-processing.

    Args:
        folder: of the selected model.
        load: loads a model folder.

    Raises:
        SegwrightError: a document is damaged or a member missing.
    """
    from segwright.inference.ensemble import Ensemble

    if shortcoming := read_selected(folder).shortcoming:
        logger.warning("%s: %s", folder, printable(shortcoming))
    members = [load(member) for member in member_folders(folder)]
    processing = PostProcessing.load(folder / POSTPROCESSING_JSON)
    model = Ensemble(members, processing) if len(members) > 1 else members[0]
    model.postprocessing = processing
    model.reliability = with_estimates(model.reliability, folder)
    return model


def require_replaceable(target: Path) -> None:
    """Check that a folder may be replaced by a selected model.

    Raises:
        WorkspaceError: it holds other files.
    """
    if target.exists() and not (target.is_dir() and {path.name for path in target.iterdir()} <= _OURS):
        raise WorkspaceError(f"{target}: holds other files than those of a selected model; choose a new folder with -o")


def write_selected(
    target: Path,
    sources: Sequence[Source],
    postprocessing: PostProcessing,
    *,
    dataset: str,
    source_hash: str,
    made_by: str,
    selection: Mapping[str, Any],
    summary: Mapping[str, Any] | None = None,
    dice_estimator: DiceEstimator | None = None,
    calibration: Calibration | None = None,
    shortcoming: str = "",
) -> None:
    """Write a selected model atomically; an earlier one is replaced.

    Weights are hard links where the file system has them, to save space. Checkpoints are replaced, never changed in
    place, so a later training does not change the links.

    Args:
        target: the folder.
        sources: the members, in the order of the selection.
        postprocessing: its steps.
        dataset: name of the dataset.
        source_hash: see `Selected`.
        made_by: see `Selected`.
        selection: see `Selected`.
        summary: document with the scores of its held-out cases.
        dice_estimator: fitted on held-out cases.
        calibration: temperature fitted on them.
        shortcoming: see `Selected`.

    Raises:
        WorkspaceError: the target holds other files.
        ModelError: a member lacks a file.
    """
    require_replaceable(target)
    sweep_leftovers(target.parent, {target.name})
    with atomic_path(target) as temporary:
        members = []
        for source in sources:
            copy_model(source, temporary / MEMBERS / source.folder.name)
            made_of = {str(fold): fold_digest(source.folder, fold) for fold in source.folds}
            member = Member(
                name=source.folder.name, configuration=source.configuration, folds=source.folds, made_of=made_of
            )
            members.append(member)
        postprocessing.save(temporary / POSTPROCESSING_JSON)
        if summary is not None:
            write_checked_json(temporary / SUMMARY_JSON, summary, indent=4, sort_keys=True)
        if dice_estimator is not None:
            dice_estimator.save(temporary / QUALITY_JSON)
        if calibration is not None:
            calibration.save(temporary / CALIBRATION_JSON)
        document = Selected(
            dataset=dataset,
            members=tuple(members),
            source_hash=source_hash,
            made_by=made_by,
            selection=selection,
            shortcoming=shortcoming,
        )
        write_checked_json(temporary / SELECTION_JSON, document.model_dump(mode="python", by_alias=True))
        if target.exists():
            if (target / SEGMENTS_JSON).is_file():  # a user may have edited it
                shutil.copyfile(target / SEGMENTS_JSON, temporary / SEGMENTS_JSON)
            shutil.rmtree(target)


def copy_model(source: Source, target: Path, *, with_records: bool = True) -> None:
    """Copy what prediction needs to a new folder; for the second stage of a cascade also the first stage.

    Args:
        source: the model folder, and the folds to copy.
        target: the new folder.
        with_records: also copy the curves and settings of the trainings, which reports show.
    """
    for name in (PLANS_JSON, DATASET_JSON, FINGERPRINT_JSON):
        if name != FINGERPRINT_JSON or (source.folder / name).is_file():
            _copy(source.folder / name, target / name)
    for fold in source.folds:
        here, there = Workspace.fold_folder(source.folder, fold), Workspace.fold_folder(target, fold)
        for name in _CHECKPOINT:
            _copy(here / name, there / name, link=True)
        for name in _RECORDS if with_records else ():
            if (here / name).is_file():
                _copy(here / name, there / name)
    from segwright.inference.cascade import STORED, previous_stage_folder
    from segwright.inference.models.model_folder import choose_folds

    previous = Plan.load(source.folder / PLANS_JSON).configuration(source.configuration).previous_stage
    if previous is not None:
        first = previous_stage_folder(source.folder, source.configuration, previous)
        every = choose_folds(first, None, "final")  # the folds that prediction uses
        copy_model(
            Source(folder=first, configuration=previous, folds=every), target / STORED, with_records=with_records
        )


def _hash_of_member(folder: Path, member: Member) -> str:
    model = folder / MEMBERS / member.name
    weights = [Workspace.fold_folder(model, fold) / _CHECKPOINT[0] for fold in member.folds]
    plan, description = Plan.load(model / PLANS_JSON), load_description(model / DATASET_JSON)
    return model_hash(weights, plan, description, member.configuration)


def _copy(source: Path, target: Path, *, link: bool = False) -> None:
    if not source.is_file():
        raise ModelError(f"{source}: no such file; the model is not complete, train it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
