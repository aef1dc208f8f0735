"""Held-out cases of a fold predicted by pairs of models: the mean of their probabilities, made case by case.

Each model's probabilities of a case go to a compressed file, are averaged slab by slab for every pair, and are removed
before the next case: neither memory nor disk holds those of several cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory

from segwright.core.documents import content_hash, file_hash
from segwright.core.errors import SegwrightError
from segwright.core.log import progress
from segwright.data.images import write_labels
from segwright.inference.ensemble import mean_labels, require_same_task, store_probabilities
from segwright.inference.model_folder import load_predictor
from segwright.inference.predictor import Predictor
from segwright.preprocessing.pipeline import Preprocessed
from segwright.training.cascade import network_input
from segwright.training.final_validation import Record, ValidationSource
from segwright.workspace import Workspace

logger = getLogger(__name__)

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A trained model: its folder, and its cases as they were preprocessed for it."""

    folder: Path
    cases: ValidationSource


def predict_pairs(
    members: Mapping[str, Member],
    folders: Mapping[Pair, Path],
    fold: int,
    identifiers: Sequence[str],
    *,
    file_ending: str,
    device: str = "auto",
) -> None:
    """Write `<case><ending>` of every pair; what the same weights made before is kept.

    Args:
        members: by name.
        folders: where the label maps of each pair of names go.
        fold: whose networks predict.
        identifiers: the cases that they did not train on.
        file_ending: of label maps.
        device: auto, cpu, mps or a GPU.

    Raises:
        ModelError: two models do not belong together.
        SegwrightError: a case cannot be read, the case named.
    """
    names = list(dict.fromkeys(name for pair in folders for name in pair))
    checkpoints = {name: Workspace.fold_folder(members[name].folder, fold) for name in names}
    weights = {name: file_hash(folder / "checkpoint_final.safetensors") for name, folder in checkpoints.items()}
    records = {
        pair: Record.open(folder, content_hash([weights[name] for name in pair])) for pair, folder in folders.items()
    }
    todo = {
        case: [pair for pair, folder in folders.items() if not records[pair].has(folder / f"{case}{file_ending}")]
        for case in identifiers
    }
    cases = [case for case, pairs in todo.items() if pairs]
    if not cases:
        return
    logger.info("fold %d: %d held-out cases by %d pairs of models", fold, len(cases), len(folders))
    needed = {name for pairs in todo.values() for pair in pairs for name in pair}
    predictors = {
        name: load_predictor(members[name].folder, folds=[fold], device=device) for name in names if name in needed
    }
    require_same_task(list(predictors.values()))
    for case in progress(cases, title="predicting", total=len(cases)):
        files = {pair: folders[pair] / f"{case}{file_ending}" for pair in todo[case]}
        try:
            _predict_case(case, files, {name: members[name].cases for name in names}, predictors)
        except SegwrightError as error:
            raise type(error)(f"case {case}: {error}") from error
        for pair, file in files.items():
            records[pair].add(file)


def _predict_case(
    case: str, files: Mapping[Pair, Path], sources: Mapping[str, ValidationSource], predictors: Mapping[str, Predictor]
) -> None:
    """Write the label map of one case by every pair."""
    place = next(iter(files.values())).parent
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place, prefix=".probabilities-") as scratch:
        arrays, properties = {}, {}
        for name in dict.fromkeys(name for pair in files for name in pair):
            stored, predictor = sources[name].load(case), predictors[name]
            image = network_input(stored.image, stored.label, predictor.labels)
            prepared = Preprocessed(image=image, label=None, provenance=stored.provenance)
            stored_now = store_probabilities(predictor, prepared, predictor.planes(image), Path(scratch), name)
            arrays[name] = stored_now.array
            properties[name] = stored.provenance.properties
        for pair, file in files.items():
            predictor = predictors[pair[0]]
            label_map = mean_labels([arrays[name] for name in pair], predictor.labels)
            write_labels(label_map, file, properties[pair[0]], predictor.plan.image_reader_writer)
