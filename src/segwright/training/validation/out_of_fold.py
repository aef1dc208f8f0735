"""Predict the held-out cases of a fold with pairs of models, and add statistics to a model that has none recorded.

Each model's probabilities of a case are written to a compressed file, averaged slab by slab for every pair, and removed
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

from segwright.core.errors import locate_errors
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.core.files.hashing import content_hash, file_hash
from segwright.core.files.names import below
from segwright.core.log import progress
from segwright.data.images.image_io import header_of, read_label, write_labels
from segwright.data.label_maps import NO_LABEL_MAP
from segwright.inference.ensemble import mean_labels, require_same_task, store_probabilities
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor
from segwright.inference.reliability.case_statistics import Observation
from segwright.preprocessing.pipeline import PredictionInput
from segwright.training.cascade import network_input
from segwright.training.validation.final import PredictionRecord, ValidationSource
from segwright.training.validation.reliability import CaseStats, CaseStatsCollector, mean_calibration_stats, stats_file
from segwright.workspace import Workspace

_SCRATCH = ".probabilities-"

logger = getLogger(__name__)

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A trained model: its folder and its preprocessed cases."""

    folder: Path
    cases: ValidationSource


def predict_pairs(
    members: Mapping[str, Member],
    folders: Mapping[Pair, Path],
    fold: int,
    references: Mapping[str, Path],
    *,
    file_ending: str,
    label_map: Mapping[int, int] = NO_LABEL_MAP,
    device: str = "auto",
    trust: CodeTrust = TRUST_NONE,
) -> None:
    """Write `<case><ending>` and its statistics for every pair; what the same weights made before is kept.

    Args:
        members: the models by name.
        folders: where the label maps of each pair of names are written.
        fold: whose networks predict.
        references: true label map of each case that they did not train on.
        file_ending: of label maps.
        label_map: from values in the files of references to labels.
        device: auto, cpu, mps or a GPU.
        trust: code that the models may import.

    Raises:
        ModelError: two models are of different tasks.
        SegwrightError: a case cannot be read.
    """
    names = list(dict.fromkeys(name for pair in folders for name in pair))
    checkpoints = {name: Workspace.fold_folder(members[name].folder, fold) for name in names}
    weights = {name: file_hash(folder / "checkpoint_final.safetensors") for name, folder in checkpoints.items()}
    records = {
        pair: PredictionRecord.open(folder, content_hash([weights[name] for name in pair]))
        for pair, folder in folders.items()
    }
    todo = {
        case: [
            pair
            for pair, folder in folders.items()
            if not (records[pair].has(below(folder, f"{case}{file_ending}")) and stats_file(folder, case).is_file())
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
        with locate_errors(f"case {case}"):
            _predict_case(case, files, sources, predictors, references[case], label_map)
        for pair, file in files.items():
            records[pair].add(file)


def collect_stats(
    member: Member,
    folder: Path,
    fold: int,
    identifiers: Sequence[str],
    *,
    device: str = "auto",
    trust: CodeTrust = TRUST_NONE,
) -> dict[str, CaseStats]:
    """Return the statistics of held-out cases whose label maps are in `folder`; cases without any are predicted.

    Models that older versions validated have none.
    """
    missing = [case for case in identifiers if not stats_file(folder, case).is_file()]
    if missing:
        logger.info("fold %d: collecting statistics of %d cases of %s", fold, len(missing), member.folder.name)
        predictor = load_predictor(member.folder, folds=[fold], device=device, trust=trust)
        for case in progress(missing, title="collecting", total=len(missing)):
            stored = member.cases.load(case)
            image = network_input(stored.image, stored.label, predictor.labels)
            prepared = PredictionInput(image=image, provenance=stored.provenance)
            collector = CaseStatsCollector(predictor, prepared, np.asarray(stored.label[...])[0])
            with locate_errors(f"case {case}"):
                for _ in collector.collect(predictor.planes(image, disagreement=True)):
                    pass
            collector.stats().save(folder, case)
    return {case: CaseStats.load(folder, case) for case in identifiers}


def _predict_case(
    case: str,
    files: Mapping[Pair, Path],
    sources: Mapping[str, ValidationSource],
    predictors: Mapping[str, Predictor],
    reference: Path,
    label_map: Mapping[int, int],
) -> None:
    """Write the label map and the statistics of one case for every pair."""
    folder = next(iter(files.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    reader = next(iter(predictors.values())).reader
    for left in folder.glob(f"{_SCRATCH}*"):  # of a killed run
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        probabilities, properties = {}, {}
        for name in dict.fromkeys(name for pair in files for name in pair):
            stored, predictor = sources[name].load(case), predictors[name]
            image = network_input(stored.image, stored.label, predictor.labels)
            prepared = PredictionInput(image=image, provenance=stored.provenance)
            planes = predictor.planes(image, disagreement=True)
            probabilities[name] = store_probabilities(predictor, prepared, planes, Path(scratch), name)
            properties[name] = stored.provenance.properties
        grid = header_of(next(iter(probabilities.values())).array.shape[1:], next(iter(properties.values())))
        truth = read_label(reference, reader, like=grid, label_map=label_map).array[0].astype(np.int32)
        for pair, file in files.items():
            labels, arrays = predictors[pair[0]].labels, [probabilities[name].array for name in pair]
            CaseStats(
                observation=Observation.mean(probabilities[name].observation for name in pair),
                calibration=mean_calibration_stats(arrays, truth, labels),
                mirror_axes=tuple(predictors[name].window.mirror_axes for name in pair),
            ).save(file.parent, case)
            write_labels(mean_labels(arrays, labels), file, properties[pair[0]], reader)
