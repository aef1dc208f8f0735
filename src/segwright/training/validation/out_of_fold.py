"""Held-out cases of a fold predicted once more: by pairs of models, and by a model that nobody watched.

Each model's probabilities of a case go to a compressed file, are averaged slab by slab for every pair, and are removed
before the next case: neither memory nor disk holds those of several cases.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.core.files.atomic_io import content_hash, file_hash
from segwright.core.files.names import below
from segwright.core.log import progress
from segwright.data.images.image_io import header_of, read_label, write_labels
from segwright.inference.ensemble import mean_labels, require_same_task, store_probabilities
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor
from segwright.inference.reliability.case_statistics import Observation
from segwright.preprocessing.pipeline import PredictionInput
from segwright.training.cascade import network_input
from segwright.training.validation.final import Record, ValidationSource, naming
from segwright.training.validation.reliability import Observed, Witness, judge_mean, observed_file
from segwright.workspace import Workspace

_SCRATCH = ".probabilities-"

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
    references: Mapping[str, Path],
    *,
    file_ending: str,
    device: str = "auto",
    trust: CodeTrust = TRUST_NONE,
) -> None:
    """Write `<case><ending>` of every pair, and what was observed; what the same weights made before is kept.

    Args:
        members: by name.
        folders: where the label maps of each pair of names go.
        fold: whose networks predict.
        references: true label map of each case that they did not train on.
        file_ending: of label maps.
        device: auto, cpu, mps or a GPU.
        trust: what the models may have imported.

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
        case: [
            pair
            for pair, folder in folders.items()
            if not (records[pair].has(below(folder, f"{case}{file_ending}")) and observed_file(folder, case).is_file())
        ]
        for case in references
    }
    cases = [case for case, pairs in todo.items() if pairs]
    if not cases:
        return
    logger.info("fold %d: %d held-out cases by %d pairs of models", fold, len(cases), len(folders))
    needed = {name for pairs in todo.values() for pair in pairs for name in pair}
    predictors = {
        name: load_predictor(members[name].folder, folds=[fold], device=device, trust=trust)
        for name in names
        if name in needed
    }
    require_same_task(list(predictors.values()))
    sources = {name: members[name].cases for name in names}
    for case in progress(cases, title="predicting", total=len(cases)):
        files = {pair: below(folders[pair], f"{case}{file_ending}") for pair in todo[case]}
        with naming(case):
            _predict_case(case, files, sources, predictors, references[case])
        for pair, file in files.items():
            records[pair].add(file)


def observe(
    member: Member,
    folder: Path,
    fold: int,
    identifiers: Sequence[str],
    *,
    device: str = "auto",
    trust: CodeTrust = TRUST_NONE,
) -> dict[str, Observed]:
    """Return what was observed of held-out cases whose label maps are in `folder`; what is not known is predicted.

    A model that was validated before there were observations has none.
    """
    missing = [case for case in identifiers if not observed_file(folder, case).is_file()]
    if missing:
        logger.info("fold %d: observing %d held-out cases of %s", fold, len(missing), member.folder.name)
        predictor = load_predictor(member.folder, folds=[fold], device=device, trust=trust)
        for case in progress(missing, title="observing", total=len(missing)):
            stored = member.cases.load(case)
            image = network_input(stored.image, stored.label, predictor.labels)
            prepared = PredictionInput(image=image, provenance=stored.provenance)
            witness = Witness(predictor, prepared, np.asarray(stored.label[...])[0])
            with naming(case):
                for _ in witness.watch(predictor.planes(image, spread=True)):
                    pass
            witness.observed().save(folder, case)
    return {case: Observed.load(folder, case) for case in identifiers}


def _predict_case(
    case: str,
    files: Mapping[Pair, Path],
    sources: Mapping[str, ValidationSource],
    predictors: Mapping[str, Predictor],
    reference: Path,
) -> None:
    """Write the label map of one case by every pair, and what was observed."""
    place = next(iter(files.values())).parent
    place.mkdir(parents=True, exist_ok=True)
    reader = next(iter(predictors.values())).reader
    for left in place.glob(f"{_SCRATCH}*"):  # of a killed run
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=place, prefix=_SCRATCH) as scratch:
        found, properties = {}, {}
        for name in dict.fromkeys(name for pair in files for name in pair):
            stored, predictor = sources[name].load(case), predictors[name]
            image = network_input(stored.image, stored.label, predictor.labels)
            prepared = PredictionInput(image=image, provenance=stored.provenance)
            planes = predictor.planes(image, spread=True)
            found[name] = store_probabilities(predictor, prepared, planes, Path(scratch), name)
            properties[name] = stored.provenance.properties
        grid = header_of(next(iter(found.values())).array.shape[1:], next(iter(properties.values())))
        truth = read_label(reference, reader, like=grid).array[0].astype(np.int32)
        for pair, file in files.items():
            labels, arrays = predictors[pair[0]].labels, [found[name].array for name in pair]
            Observed(
                observation=Observation.mean(found[name].observation for name in pair),
                reliability=judge_mean(arrays, truth, labels),
                mirror_axes=tuple(predictors[name].window.mirror_axes for name in pair),
            ).save(file.parent, case)
            write_labels(mean_labels(arrays, labels), file, properties[pair[0]], reader)
