"""nnU-Net's command that finds the best configuration, and the documents that it writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from logging import getLogger
from math import isnan
from pathlib import Path
from typing import Any, Final

from segwright import api
from segwright.cli.nnunet import evaluating, folders, names
from segwright.cli.nnunet.options import Command, Values, flag, value, values
from segwright.cli.nnunet.preparing import REFERENCES
from segwright.cli.options import environment
from segwright.core.errors import DatasetError, ModelError
from segwright.core.files.atomic_io import write_text
from segwright.core.files.json_documents import write_json
from segwright.evaluation.crossval import VALIDATION, read_crossval
from segwright.evaluation.postprocessing import PostProcessingResult
from segwright.evaluation.selection import ensemble_name
from segwright.inference.export.postprocessing import POSTPROCESSING_JSON
from segwright.workspace import DATASET_JSON, MODEL_SEPARATOR, PLANS_JSON, Workspace

logger = getLogger(__name__)

INFORMATION_JSON: Final = "inference_information.json"
INSTRUCTIONS_TXT: Final = "inference_instructions.txt"

_CONFIGURATIONS: Final = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model to compare."""

    trainer: str
    plans: str
    configuration: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return MODEL_SEPARATOR.join((self.trainer, self.plans, self.configuration))

    def to_json(self) -> dict[str, str]:
        """Return the entry of a chosen model."""
        return {"configuration": self.configuration, "trainer": self.trainer, "plans_identifier": self.plans}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model or an ensemble of two, with its held-out predictions in one folder and their mean Dice."""

    name: str
    models: tuple[Model, ...]
    folder: Path
    dice: float


def find_best_configuration(arguments: Values) -> None:
    """Compare models and ensembles of two on held-out cases; say how to predict with the best."""
    workspace = folders.full_workspace()
    dataset = folders.dataset_name(arguments.text("dataset_name_or_id"))
    folds = arguments.numbers("-f")
    models = list(_models(workspace, dataset, arguments))
    results = workspace.results / dataset
    candidates = [_single(results / model.name, model, folds) for model in models]
    ensembles = not arguments.is_set("--disable_ensembling")
    references = _references(workspace, dataset)
    if ensembles:
        for one, other in combinations(models, 2):
            candidates.append(_pair(results, one, other, folds, references))
    best = max(
        candidates, key=lambda candidate: -1.0 if isnan(candidate.dice) else candidate.dice
    )  # the first of equals
    dataset_json = best.folder / DATASET_JSON
    decided = evaluating.decide(
        best.folder, references, dataset_json=dataset_json, workers=arguments.optional_number("-np")
    )
    document = {
        "folds": folds,
        "dataset_name_or_id": dataset,
        "considered_models": [
            {"plans": model.plans, "configuration": model.configuration, "trainer": model.trainer} for model in models
        ],
        "ensembling_allowed": ensembles,
        "all_results": {candidate.name: candidate.dice for candidate in candidates},
        "best_model_or_ensemble": _chosen(best, decided),
    }
    write_json(results / INFORMATION_JSON, dict(sorted(document.items())), indent=4)
    text = "\n".join(_instructions(best, dataset, folds))
    write_text(results / INSTRUCTIONS_TXT, f"{text}\n")
    for candidate in candidates:
        logger.info("%s: mean Dice %.4f", candidate.name, candidate.dice)
    print(text)


COMMANDS: Final = {
    "find_best_configuration": Command(
        function=find_best_configuration,
        options=(
            value("dataset_name_or_id", about="Id or name of the dataset."),
            values("-p", about="Names of the plans.", default=(names.PLANS,)),
            values("-c", about="Configurations; those that the plans lack are left out.", default=_CONFIGURATIONS),
            values("-tr", about="Trainer classes.", default=(names.TRAINER,)),
            value("-np", about="Number of threads (default: all CPUs).", kind=int),
            values("-f", about="Folds.", default=(0, 1, 2, 3, 4), kind=int),
            flag("--disable_ensembling", about="Compare single models only."),
            flag("--no_overwrite", no_effect="the collected predictions are made again, which takes seconds"),
        ),
    ),
}


def _models(workspace: Workspace, dataset: str, arguments: Values) -> Iterator[Model]:
    """Yield the models to compare, in nnU-Net's order.

    Raises:
        ModelError: one is not trained, or there is none.
    """
    is_empty = True
    for trainer, configuration, plans in product(*(arguments.texts(name) for name in ("-tr", "-c", "-p"))):
        if configuration not in folders.load_plan(workspace, dataset, plans).configurations:
            logger.info("%s has no configuration %s, left out", plans, configuration)
            continue
        model = Model(trainer=trainer, plans=plans, configuration=configuration)
        folder = workspace.model_folder(dataset, trainer, plans, configuration)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such model; train it, or name the trained configurations with -c")
        is_empty = False
        yield model
    if is_empty:
        raise ModelError(f"{dataset}: the plans have none of the configurations {', '.join(arguments.texts('-c'))}")


def _references(workspace: Workspace, dataset: str) -> Path:
    """Return the folder of the reference label maps.

    Raises:
        DatasetError: there is none.
    """
    choices = (workspace.preprocessed_dataset(dataset) / REFERENCES, workspace.raw / dataset / "labelsTr")
    for folder in choices:
        if folder.is_dir():
            return folder
    raise DatasetError(f"{choices[0]}: no such folder of reference label maps; run nnUNetv2_preprocess -d {dataset}")


def _single(folder: Path, model: Model, folds: list[int]) -> Candidate:
    collected, scores = evaluating.accumulate(folder, folds)
    return Candidate(name=model.name, models=(model,), folder=collected, dice=scores.foreground_mean.dice)


def _pair(results: Path, one: Model, other: Model, folds: Sequence[int], references: Path) -> Candidate:
    """Average the probabilities that two models saved for held-out cases, and score the mean.

    Raises:
        ModelError: a model has none.
    """
    name = ensemble_name(one.name, other.name, folds)
    folder = results / "ensembles" / name
    pairs = [
        [Workspace.fold_folder(results / model.name, fold) / VALIDATION for model in (one, other)] for fold in folds
    ]
    for validation in (validation for pair in pairs for validation in pair):
        if not any(validation.glob("*.npz")):
            raise ModelError(
                f"{validation}: no probabilities of held-out cases; write them with nnUNetv2_train ... --val "
                "--npz, or compare single models with --disable_ensembling"
            )
    shutil.rmtree(folder, ignore_errors=True)
    for pair in pairs:
        api.ensemble(pair, folder, overwrite=True)
    for document in (DATASET_JSON, PLANS_JSON):
        shutil.copyfile(results / one.name / document, folder / document)
    scored = api.evaluate(references, folder, dataset_json=folder / DATASET_JSON, environment=environment())
    held_out = read_crossval(results / one.name, folds).cases
    if len(scored.scores.metric_per_case) != len(held_out):
        raise ModelError(f"{folder}: {len(scored.scores.metric_per_case)} of {len(held_out)} held-out cases averaged")
    return Candidate(name=name, models=(one, other), folder=folder, dice=scored.scores.foreground_mean.dice)


def _chosen(best: Candidate, decided: PostProcessingResult) -> Mapping[str, Any]:
    return {
        "result_on_crossval_pre_pp": decided.before.foreground_mean.dice,
        "result_on_crossval_post_pp": decided.after.foreground_mean.dice,
        "postprocessing_file": str(best.folder / POSTPROCESSING_JSON),
        "some_plans_file": str(best.folder / PLANS_JSON),
        "selected_model_or_models": [model.to_json() for model in best.models],
    }


def _instructions(best: Candidate, dataset: str, folds: Sequence[int]) -> Iterator[str]:
    """Yield the commands that predict with the best candidate."""
    several = len(best.models) > 1
    outputs = [f"OUTPUT_FOLDER_MODEL_{index}" for index in (1, 2)] if several else ["OUTPUT_FOLDER"]
    yield "***Run inference like this:***"
    yield ""
    for model, output in zip(best.models, outputs, strict=True):
        yield (
            f"nnUNetv2_predict -d {dataset} -i INPUT_FOLDER -o {output} -f {' '.join(map(str, folds))} "
            f"-tr {model.trainer} -c {model.configuration} -p {model.plans}{' --save_probabilities' * several}"
        )
        yield ""
    if several:
        yield "***Then average both:***"
        yield ""
        yield f"nnUNetv2_ensemble -i {' '.join(outputs)} -o OUTPUT_FOLDER -np 8"
        yield ""
    yield "***Once inference is completed, run postprocessing like this:***"
    yield ""
    plans, document = best.folder / PLANS_JSON, best.folder / POSTPROCESSING_JSON
    yield (
        f"nnUNetv2_apply_postprocessing -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP -pp_pkl_file {document} -np 8 "
        f"-plans_json {plans}"
    )
