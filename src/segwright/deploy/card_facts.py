"""Find out what is known of a trained model, for its card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import Any, Final

import numpy as np

from segwright.core.errors import ModelError
from segwright.core.extensions.trust import RUNS_FILES
from segwright.data.description import DatasetDescription, load_description
from segwright.data.plan import Plan
from segwright.deploy.model_card import UNKNOWN, MemberFacts, ModelCard, Score, read_card
from segwright.evaluation.scores import CaseScores, Scores, class_key_text
from segwright.evaluation.statistics import dice_table, interval
from segwright.inference.models.identity import model_hash
from segwright.inference.models.model_folder import OURS, choose_folds
from segwright.inference.models.selected import MEMBERS, Source, is_selected, read_selected
from segwright.interop.nnunet import is_nnunet_model
from segwright.networks.folds import CheckpointHeader, parse_header
from segwright.workspace import DATASET_JSON, PLANS_JSON, SUMMARY_JSON, Workspace

_FINAL: Final = "final"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedMember:
    """A model folder, and what its documents say.

    Attributes:
        source: the folder, its configuration and the folds whose final checkpoints are used.
        plan: its plan.
        description: its dataset.json.
        headers: the documents of its checkpoints.
    """

    source: Source
    plan: Plan
    description: DatasetDescription
    headers: tuple[CheckpointHeader, ...]


def members_of(folder: Path) -> list[TrainedMember]:
    """Return the models that a selected model, or a model folder, consists of.

    Raises:
        ModelError: it is a model of nnU-Net, needs code of its own folder, or has no final checkpoint.
        SegwrightError: a document is damaged.
    """
    if is_selected(folder):
        return [
            _member(folder / MEMBERS / member.name, tuple(map(str, member.folds)))
            for member in read_selected(folder).members
        ]
    if is_nnunet_model(folder):
        raise ModelError(f"{folder}: is a model of nnU-Net; convert it first with segwright import-model")
    return [_member(folder, choose_folds(folder, None, _FINAL))]


def describe_model(folder: Path, name: str, members: Sequence[TrainedMember], **given: str) -> ModelCard:
    """Return the card of a model with what its files say.

    Args:
        folder: a selected model, or a model folder, with its scores.
        name: of the model.
        members: of it, or of a copy, from `members_of`.
        given: what its authors say: `license`, `license_url`, `intended_use`, `training_data`.
    """
    first = members[0]
    scores = _scores(folder, first)
    known = read_card(folder)  # of a model that was packed before, without the scores of single cases
    return ModelCard(
        name=name,
        **{"license": UNKNOWN, **given},
        dataset=first.plan.dataset_name,
        channels=tuple(first.description.channel_names.values()),
        labels=tuple(first.description.labels),
        num_training=first.description.num_training,
        num_scored=len(scores.metric_per_case) if scores else known.num_scored if known else 0,
        scores=tuple(_table(scores, first.description)) if scores else known.scores if known else (),
        members=tuple(map(_facts, members)),
        shortcoming=read_selected(folder).shortcoming if is_selected(folder) else "",
        versions={package: version(package) for package in ("segwright", "torch")},
    )


def _member(model: Path, folds: tuple[str, ...]) -> TrainedMember:
    folders = [Workspace.fold_folder(model, fold) for fold in folds]
    headers = tuple(
        parse_header(OURS.header(folder, _FINAL), OURS.file(folder, _FINAL).with_suffix(".json")) for folder in folders
    )
    if any(header.network.reference in RUNS_FILES for header in headers):
        raise ModelError(
            f"{model}: its network is built by a file of its trainer; a pack holds no code, share the folder"
        )
    return TrainedMember(
        source=Source(folder=model, configuration=headers[0].configuration, folds=folds),
        plan=Plan.load(model / PLANS_JSON),
        description=load_description(model / DATASET_JSON),
        headers=headers,
    )


def _facts(member: TrainedMember) -> MemberFacts:
    source, header = member.source, member.headers[0]
    configuration = member.plan.configuration(source.configuration)
    extra = header.model_extra or {}
    settings: dict[str, Any] = extra["config"] if isinstance(extra.get("config"), dict) else {}
    epochs = [(each.model_extra or {}).get("epoch") for each in member.headers]
    known = [each for each in epochs if isinstance(each, int)]
    weights = [OURS.file(Workspace.fold_folder(source.folder, fold), _FINAL) for fold in source.folds]
    pretrained = settings.get("pretrained")
    return MemberFacts(
        name=source.folder.name,
        configuration=source.configuration,
        folds=tuple(map(str, source.folds)),
        network=header.network.reference.rpartition(".")[2],
        spacing=tuple(configuration.spacing),
        patch_size=tuple(configuration.patch_size),
        batch_size=settings.get("batch_size") or configuration.batch_size,
        epochs=min(known, default=None),
        pretrained=PureWindowsPath(str(pretrained)).name if pretrained else "",  # a path may name people
        model_hash=model_hash(weights, member.plan, member.description, source.configuration),
    )


def _scores(folder: Path, first: TrainedMember) -> Scores | None:
    """Return the scores of the held-out cases; None if there are none."""
    if is_selected(folder):
        files = [folder / SUMMARY_JSON]
    else:
        folds = [Workspace.fold_folder(folder, fold) for fold in first.source.folds]
        files = [fold / "validation" / SUMMARY_JSON for fold in folds]
    cases: list[CaseScores] = [case for file in files if file.is_file() for case in Scores.load(file).metric_per_case]
    return Scores.of(cases) if cases else None


def _table(scores: Scores, description: DatasetDescription) -> Iterator[Score]:
    table = dice_table(scores)
    names = {class_key_text(key): name for name, key in description.labels.items()}
    yield Score(name="mean", dice=_number(scores.mean_dice), interval=interval(table))
    for index, key in enumerate(scores.mean):
        column = table[:, index : index + 1]
        present = column[np.isfinite(column)]
        dice = float(present.mean()) if len(present) else None
        yield Score(name=names.get(key, key), dice=dice, interval=interval(column))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
