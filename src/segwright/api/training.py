"""Training as a verb, and the evaluation of predictions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segwright.api.aging import older_than_folds
from segwright.api.one_model import TRAIN_JSON, Fold, require_nothing_new, require_unbegun
from segwright.api.preparing import DEFAULT_PLANS, cases_are_fresh, load_plan, make_cases
from segwright.api.references import listed_references
from segwright.api.session import open_session
from segwright.api.splitting import require_folds, say_left_out
from segwright.api.training_runs import (
    TrainOptions,
    fold_folder,
    is_trained,
    named_code,
    require_options,
    require_trainable,
    train_fold,
)
from segwright.core.errors import ConfigError, DatasetError, ImageError, ModelError
from segwright.core.extensions.trust import TrustCode
from segwright.core.files.names import absence
from segwright.data.dataset import NO_ENVIRONMENT, load_description
from segwright.data.images.image_io import READERS, choose_reader, read_header
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.evaluation import scores as scoring
from segwright.evaluation import statistics
from segwright.evaluation.statistics import Comparison
from segwright.report.results import Evaluation, TrainedFold
from segwright.workspace import DATASET_JSON, PLANS_JSON, Workspace

if TYPE_CHECKING:
    from segwright.core.interrupt import StopRequest
    from segwright.training.distributed.context import Ranks

logger = getLogger(__name__)

SUMMARY = "summary.json"

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?")
_EXAMPLES = 3
"""Label maps that the reader of a plan is tried on."""
_SECONDS = (3600.0, 60.0, 1.0)


def train(
    dataset: str | Path,
    *,
    configuration: str,
    fold: Fold,
    workspace: Workspace | None = None,
    plans: str = DEFAULT_PLANS,
    budget: str | float | None = None,
    network: str | None = None,
    network_kwargs: Mapping[str, Any] | None = None,
    pretrained: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    trainer: str | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    ranks: Ranks | None = None,
    stop: StopRequest | None = None,
    trust_code: TrustCode = False,
) -> TrainedFold:
    """Train one fold of one configuration, then predict and score its held-out cases.

    Args:
        dataset: Folder, name or id.
        configuration: Of the plan; its cases are preprocessed first where needed.
        fold: Which fold to hold out, or `all` to train on every case.
        workspace: Where results go; `./segwright-work` by default.
        plans: Name of the plans, made before.
        budget: Training time, as `10m` or in seconds; the schedule follows the time.
        network: Another network than the plan's: `residual-unet`, `module:function`.
        network_kwargs: Its arguments.
        pretrained: Model folder or checkpoint, ours or nnU-Net's, to begin with; what fits is taken over.
        settings: Further fields of `TrainConfig`, e.g. `num_epochs`.
        trainer: A subclass of `Trainer` that trains instead, `module:Class`.
        resume: Continue an interrupted training; without it one that was begun is an error, with it one that was not.
        device: auto, cpu, mps or a GPU.
        workers: Threads of preprocessing.
        environment: Variables that explicit file lists may name.
        ranks: The processes that share the training; all of them call this function.
        stop: Asks the training to save and end after its step.
        trust_code: Whether code is imported that only files name, a network in a checkpoint for instance: no, yes, or
            only the references given (`module:attr`).

    Raises:
        Interrupted: it was asked to stop; `resume` goes on from there.
        SegwrightError: dataset, plan, fold, a setting or the device is wrong, or the fold was begun before.
    """
    chosen = training_settings(budget, settings, network=network, network_kwargs=network_kwargs, pretrained=pretrained)
    options = TrainOptions(settings=chosen, device=device, ranks=ranks, stop=stop, resume=resume)
    require_options(options)
    trust = named_code(trust_code, chosen, trainer)
    session = open_session(dataset, workspace, environment=environment, trainer=trainer, trust=trust)
    plan = load_plan(session, plans)
    require_folds(session, [fold])
    if fold != "all":
        say_left_out(session)
    require_trainable(session, plan, configuration, [fold], chosen)
    folder = fold_folder(session, plan, configuration, fold)
    if not resume:
        require_unbegun(folder)
    if resume and not (folder / TRAIN_JSON).is_file():
        raise ModelError(f"{folder}: no training was begun here, so there is nothing to resume; leave --resume out")
    if is_trained(folder) and trainer is None:  # a class of the user's may decide otherwise than the settings
        require_nothing_new(folder, chosen)
    if (ranks is None or ranks.is_first) and not cases_are_fresh(session, plan, configuration):
        make_cases(session, plan, configuration, workers=workers)
    if ranks is not None:
        ranks.barrier()
    trained = train_fold(session, plan, configuration, fold, options=options)
    if ranks is None or ranks.is_first:
        for line in older_than_folds(trained.model.parent):
            logger.warning("%s", line)
    return trained


def evaluate(
    reference: Path | str,
    prediction: Path | str,
    *,
    dataset_json: Path | str | None = None,
    label_values: Sequence[int] | None = None,
    output: Path | str | None = None,
    surface: bool = False,
    lesions: bool = False,
    tolerances: Sequence[float] | None = None,
    ignore_label: int | None = None,
    require_all: bool = False,
    csv: Path | str | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> Evaluation:
    """Score predictions against references of the same file names and write nnU-Net's `summary.json`.

    Args:
        reference: Folder of true label maps; of a raw dataset that lists its files, this dataset or that folder.
        prediction: Folder of predicted label maps.
        dataset_json: Names labels and file ending; by default the one in, or one level above, either folder.
        label_values: What to score, instead of what a dataset.json says; the file ending is that of the references.
        output: File of the scores; `summary.json` in the prediction folder by default.
        surface: Also HD, HD95, ASSD and NSD, in mm.
        lesions: Also detection of single structures, and panoptic quality.
        tolerances: Of the NSD, in mm; 1 and 2 by default.
        ignore_label: Voxels with this reference count for nothing; by default what dataset.json says.
        require_all: A reference without a prediction is an error, instead of left out.
        csv: Also write one line for each case and class.
        workers: Threads.
        environment: Variables that file lists may name.

    Raises:
        SegwrightError: a folder or file is missing, damaged or does not fit, or a value is wrong.
    """
    truth, predicted = Path(reference), Path(prediction)
    require_folders(truth, predicted)
    further = _further(surface=surface, lesions=lesions, tolerances=tolerances)
    if label_values:
        labels = Labels({"background": 0, **{str(value): value for value in sorted({*label_values} - {0})}})
        ending, reader = _known_ending(truth), None
    else:
        description = load_description(Path(dataset_json) if dataset_json else find_description(truth, predicted))
        labels = Labels.from_description(description)
        ending, reader = description.file_ending, description.overwrite_image_reader_writer
    if ignore_label is not None and ignore_label in labels.all_labels:
        scored = ", ".join(str(value) for value in labels.foreground_labels if value != ignore_label)
        raise ConfigError(f"label {ignore_label} cannot be scored and ignored; name the others with --labels {scored}")
    found = scoring.evaluate(
        truth,
        predicted,
        labels=labels,
        file_ending=ending,
        reader=find_label_reader(ending, reader, truth, predicted),
        further=further,
        workers=workers,
        require_all=require_all,
        ignore_label=ignore_label,
        known=None if label_values else labels.all_labels,
        listed=listed_references(truth, environment),
    )
    if csv is not None:
        found.save_csv(Path(csv))
    file = Path(output) if output else predicted / SUMMARY
    found.save(file)
    return Evaluation(scores=found, file=file, labels=labels)


def _further(*, surface: bool, lesions: bool, tolerances: Sequence[float] | None) -> scoring.Further:
    if tolerances is None:
        return scoring.Further(surface=surface, lesions=lesions)
    wrong = [value for value in tolerances if not (math.isfinite(value) and value > 0)]
    if wrong or not tolerances:
        raise ConfigError(f"tolerance {wrong[0] if wrong else 'list is empty'}: expected mm above 0, for instance 1,2")
    return scoring.Further(surface=True, lesions=lesions, tolerances=tuple(dict.fromkeys(tolerances)))


def _known_ending(folder: Path) -> str:
    """Return the ending of the files in a folder, the longest that a reader knows."""
    endings = sorted({ending for reader in READERS.values() for ending in reader.endings}, key=len, reverse=True)
    for file in sorted(folder.iterdir()):
        for ending in endings:
            if file.name.lower().endswith(ending):
                return file.name[-len(ending) :]
    raise DatasetError(f"{folder}: no label map; a reader knows {', '.join(sorted(endings))}")


def compare(summaries: Sequence[Path | str]) -> list[Comparison]:
    """Test which of several models is better on the cases they share, by their `summary.json`.

    Args:
        summaries: Files, or the folders that hold them; at least two.

    Raises:
        SegwrightError: a file is missing, damaged or given twice, or too few cases are shared.
    """
    if len(summaries) < 2:
        raise ConfigError("compare: give at least two summary.json files")
    paths = [Path(each) / SUMMARY if Path(each).is_dir() else Path(each) for each in summaries]
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ConfigError(f"compare: {path} is given twice; give the summary of another model")
        seen.add(path.resolve())
    return statistics.compare({str(path): scoring.Scores.load(path) for path in paths})


def seconds(duration: str | float | None) -> float | None:
    """Return a duration such as `90s`, `10m`, `1h30m` or plain seconds in seconds.

    >>> seconds("1h30m"), seconds("90"), seconds(5)
    (5400.0, 90.0, 5.0)
    """
    if duration is None:
        return None
    match = _DURATION.fullmatch(str(duration).strip().lower().replace(" ", ""))
    parts = match.groups() if match else ()
    found = sum(float(part) * unit for part, unit in zip(parts, _SECONDS, strict=False) if part)
    if found <= 0:
        raise ConfigError(f"budget '{duration}' is not a duration; write for instance 90s, 10m or 1h30m")
    return found


def keyword_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` texts as keyword arguments; a value is read as JSON where it is JSON.

    >>> keyword_values(["width=48", "norm=batch"])
    {'width': 48, 'norm': 'batch'}
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"'{pair}' is not KEY=VALUE; write for instance width=48")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{name}: a number of too many digits, or lists nested too deep, in '{text[:40]}...'"
            ) from error
    return values


def training_settings(
    budget: str | float | None,
    settings: Mapping[str, Any] | None = None,
    *,
    network: str | None = None,
    network_kwargs: Mapping[str, Any] | None = None,
    pretrained: Path | str | None = None,
) -> dict[str, Any]:
    """Return the fields of `TrainConfig` that were asked for."""
    chosen = {**(settings or {})}
    if pretrained is not None:
        chosen["pretrained"] = str(Path(pretrained).absolute())
    if budget is not None:
        chosen["budget_s"] = seconds(budget)
    if network is not None:
        chosen["network"] = network
    if network_kwargs:
        chosen["network_kwargs"] = dict(network_kwargs)
    return chosen


def require_folders(*folders: Path) -> None:
    """Make sure that folders are there.

    Raises:
        DatasetError: one is not.
    """
    for folder in folders:
        wrong = absence(folder, "folder")
        if wrong:
            raise DatasetError(f"{folder}: {wrong}")


def find_description(*folders: Path) -> Path:
    """Return the `dataset.json` in one of some folders, the last first, or beside one; of a fold, its model's.

    Raises:
        DatasetError: a folder is missing, or there is none.
    """
    require_folders(*folders)
    for folder in _places(folders):
        if (folder / DATASET_JSON).is_file():
            return folder / DATASET_JSON
    places = ", ".join(map(str, folders))
    raise DatasetError(f"{places}: no {DATASET_JSON} here or one level above; name one with --dataset-json FILE")


def find_label_reader(file_ending: str, override: str | None, *folders: Path) -> str:
    """Return the reader of the label maps in some folders.

    That of the plans in or above one of them, if it opens the files; else the one that opens most of them.

    Args:
        file_ending: of the label maps.
        override: what dataset.json says.
        folders: those with label maps; of plans, the last folder's come first.

    Raises:
        ImageError: no reader knows the ending.
        SegwrightError: a plan is damaged.
    """
    files = [
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.name.endswith(file_ending) and not file.name.startswith(".")
    ]
    for place in _places(folders):
        if (place / PLANS_JSON).is_file():
            planned = Plan.load(place / PLANS_JSON).image_reader_writer
            if not files or any(_opens(planned, file) for file in files[:_EXAMPLES]):
                return planned
    try:
        return choose_reader(file_ending, files, override, are_labels=True)
    except ImageError:  # reading them names all that are damaged
        return choose_reader(file_ending, None, override)


def _places(folders: Sequence[Path]) -> list[Path]:
    """Return where documents about some folders may lie: in them, the last first, one level above, in their model."""
    models = [folder.parent.parent for folder in map(Path.absolute, folders) if folder.parent.name.startswith("fold_")]
    return [*reversed(folders), *(folder.absolute().parent for folder in folders), *reversed(models)]


def _opens(reader: str, file: Path) -> bool:
    try:
        read_header(file, reader, is_label=True)
    except ImageError:
        return False
    return True
