"""Predict a folder of cases with one model or an ensemble; a second run keeps the cases that are finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path

from segwright.core.parallel import fork_safe
from segwright.inference.case_predictor import HOLD_BYTES, CasePredictor
from segwright.inference.ensemble import Ensemble
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.folder import one_model, several_models
from segwright.inference.folder.inputs import Images
from segwright.inference.folder.jobs import PredictOptions
from segwright.inference.folder.run import open_run
from segwright.inference.prediction import CaseRecord
from segwright.inference.window.tile_planes import TileCount
from segwright.workspace import PLANS_JSON

logger = getLogger(__name__)


@fork_safe
def predict_files(
    model: CasePredictor | Ensemble,
    images: Images,
    output_folder: Path,
    *,
    probabilities: bool | ProbabilityFormat = False,
    uncertainty: bool = False,
    calibrated: bool = False,
    overwrite: bool = False,
    part: int = 0,
    parts: int = 1,
    wait: bool = True,
    others: Sequence[CasePredictor] = (),
    hold_bytes: int = HOLD_BYTES,
    on_tiles: Callable[[TileCount], None] | None = None,
) -> list[CaseRecord]:
    """Predict every case of a folder, or one case, and write `<case><ending>` for each.

    The output folder also gets `dataset.json`, `plans.json` (of a single model, as with nnU-Net) and
    `prediction.json`: the model, the options and the record of each case. Started again, it predicts only what is
    missing or whose input changed.

    Args:
        model: made by `load_predictor`, so that it knows its dataset.json; or an ensemble of such models.
        images: a folder with `<case>_0000<ending>` and so on, a file, or the files of the channels of one case; see
            `inputs.find_cases`. Their folder is never written to.
        output_folder: another folder.
        probabilities: also write `<case>.npz` and `<case>.provenance.json`, or another `ProbabilityFormat`.
        uncertainty: also write the maps of `uncertainty.map_files`.
        calibrated: write probabilities with the model's temperature.
        overwrite: predict everything again, and replace predictions of another model.
        part: predict every `parts`-th case, beginning with this one (from 0); for several machines.
        parts: number of parts that the cases are divided into.
        wait: wait for another process that predicts into the folder; otherwise raise `LockHeldError`.
        others: the same model on other devices, which share the cases; not with an ensemble.
        hold_bytes: size of logits above which a case is exported while it is predicted.
        on_tiles: is called after each forward pass with the tiles of its case, in the thread that predicts; what it
            raises ends the run, unless it is a `SegwrightError`, which ends the case.

    Returns:
        One record for each case, in order of the case names.

    Raises:
        ProblemReport: there is no case, or cases lack channels: all of them are named before work starts. Or cases
            cannot be read or predicted: they are named after all others are done.
        SegwrightError: anything else a user can fix.
    """
    options = PredictOptions(
        probability_format=ProbabilityFormat(kind="npz") if probabilities is True else probabilities or None,
        uncertainty=uncertainty,
        calibrated=calibrated,
        overwrite=overwrite,
        part=part,
        parts=parts,
        wait=wait,
    )
    members = model.predictors if isinstance(model, Ensemble) else (model,)
    workers = (members[0], *others)
    precision, *_ = [each.precision for each in (*members, *others)]  # raises where a device lacks it
    description = members[0].description
    assert description is not None, "a predictor for files is made by load_predictor"
    run = open_run(
        images,
        output_folder,
        options,
        description=description,
        labels=model.labels,
        reader=model.reader,
        model=model.identity,
        settings=_settings(options, members, workers, precision),
        temperature=model.reliability.temperature(calibrated=calibrated),
    )
    with run as opened:
        jobs, log, failures = opened.jobs, opened.log, opened.failures
        if opened.todo and (backend := members[0].describe_backend()):
            logger.info("%s; precision %s", backend, precision)
        if isinstance(model, Ensemble):
            records = several_models.predict_jobs(model, opened.todo, log, failures, on_tiles=on_tiles)
        else:
            model.plan.save(output_folder / PLANS_JSON)
            records = one_model.predict_jobs(
                workers, opened.todo, log, failures, hold_bytes=hold_bytes, on_tiles=on_tiles
            )
    failures.raise_if_any(len(jobs))
    done = {record.case: record for record in records}
    return [done.get(job.case.identifier) or log.kept_record(job) for job in jobs]


def _settings(
    options: PredictOptions, members: Sequence[CasePredictor], workers: Sequence[CasePredictor], precision: str
) -> dict[str, object]:
    """Return what `prediction.json` says about the run; `members` are the models that are averaged."""
    first = members[0]
    folds = [each.origin.get("folds") for each in members]
    return {
        "folds": folds[0] if len(folds) == 1 else folds,
        "mirroring": any(each.window.mirror_axes for each in members),
        "exact": not first.window.reuse,
        "precision": precision,
        "devices": [each.device_name for each in workers],
        **options.to_json(first.labels),
    }
