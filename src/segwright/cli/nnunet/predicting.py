"""nnU-Net's commands that predict, and that average predictions."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright import api
from segwright.cli.nnunet import folders, names
from segwright.cli.nnunet.options import Command, Values, flag, value, values
from segwright.cli.options import code_trust
from segwright.core.errors import ConfigError
from segwright.core.files.json_documents import read_checked_json
from segwright.data.plan import Plan
from segwright.workspace import MODEL_SEPARATOR, PLANS_JSON

logger = getLogger(__name__)

_THREADS: Final = "threads of one process read and write the cases"

_COMMON: Final = (
    value("-i", about="Folder of images, CASE_0000.ENDING.", is_required=True),
    value("-o", about="Folder for the label maps.", is_required=True),
    values("-f", about="Folds to average.", default=("0", "1", "2", "3", "4")),
    value("-step_size", about="Step of the sliding window, as a share of the patch.", default=0.5, kind=float),
    flag("--disable_tta", about="No mirroring: faster, a little less accurate."),
    flag("--verbose", about="More messages."),
    flag("--save_probabilities", about="Also write CASE.npz, for nnUNetv2_ensemble."),
    value("-chk", about="Checkpoint.", default=names.CHECKPOINT),
    value("-npp", about="", kind=int, no_effect=_THREADS),
    value("-nps", about="", kind=int, no_effect=_THREADS),
    value("-prev_stage_predictions", about="Predictions of a cascade's first stage."),
    value("-device", about="cuda, cpu or mps (default: cuda where there is a GPU).", default="auto"),
    flag("--disable_progress_bar", about="There is no progress bar unless stderr is a terminal."),
    flag("--trust-code", about="Import code that the model names; nnU-Net always imports its trainer's."),
    flag("--not_on_device", no_effect="the accumulated logits are in the memory of the device only while they fit"),
)


def predict(arguments: Values) -> None:
    """Predict a folder of images with a model in nnUNet_results."""
    model = folders.trained_model(*(arguments.text(name) for name in ("-d", "-tr", "-p", "-c")))
    _predict(model, arguments, part=arguments.number("-part_id"), parts=arguments.number("-num_parts"))


def predict_from_modelfolder(arguments: Values) -> None:
    """Predict a folder of images with the model in a folder."""
    _predict(arguments.path("-m"), arguments)


def ensemble(arguments: Values) -> None:
    """Average the probabilities that several predictions saved."""
    api.ensemble(
        arguments.texts("-i"),
        arguments.path("-o"),
        probabilities="npz" if arguments.is_set("--save_npz") else False,
        overwrite=True,
    )


COMMANDS: Final = {
    "predict": Command(
        function=predict,
        options=(
            *_COMMON,
            value("-d", about="Id or name of the dataset.", is_required=True),
            value("-p", about="Name of the plans.", default=names.PLANS),
            value("-tr", about="Trainer class.", default=names.TRAINER),
            value("-c", about="Configuration.", is_required=True),
            flag("--continue_prediction", about="Keep existing predictions."),
            value("-num_parts", about="Number of calls that share the cases.", default=1, kind=int),
            value("-part_id", about="Index of this call, from 0.", default=0, kind=int),
        ),
    ),
    "predict_from_modelfolder": Command(
        function=predict_from_modelfolder,
        options=(
            *_COMMON,
            value("-m", about="Folder of the model, with fold_0 and so on.", is_required=True),
            flag("--continue_prediction", "--c", about="Keep existing predictions."),
        ),
    ),
    "ensemble": Command(
        function=ensemble,
        options=(
            values("-i", about="Folders of predictions with probabilities.", is_required=True),
            value("-o", about="Folder for the label maps.", is_required=True),
            value("-np", about="", kind=int, no_effect="cases are averaged one after the other"),
            flag("--save_npz", about="Also write the mean probabilities."),
        ),
    ),
}


def _predict(model: Path, arguments: Values, *, part: int = 0, parts: int = 1) -> None:
    if (previous := arguments.optional_path("-prev_stage_predictions")) is not None:
        _require_own_first_stage(previous, model, arguments)
    folds: Any = [names.fold_of(text) for text in arguments.texts("-f")]
    api.predict(
        model,
        arguments.path("-i"),
        arguments.path("-o"),
        folds=folds,
        checkpoint=names.checkpoint_kind(arguments.text("-chk")),
        mirroring=not arguments.is_set("--disable_tta"),
        step_size=arguments.real("-step_size"),
        probabilities="npz" if arguments.is_set("--save_probabilities") else False,
        overwrite=not arguments.is_set("--continue_prediction"),
        device=names.device_of(arguments),
        part=part,
        parts=parts,
        trust_code=code_trust(arguments.is_set("--trust-code")),
    )


def _require_own_first_stage(predictions: Path, model: Path, arguments: Values) -> None:
    """Check that a model, which predicts the first stage of its cascade itself, predicts what is in a folder.

    Args:
        predictions: given for the first stage.
        model: folder of the second stage.
        arguments: of the command.

    Raises:
        ConfigError: they are of another program or model, or were made with other folds or options.
        ModelError: the model is no cascade, or its first stage is missing.
    """
    from segwright.inference.cascade import previous_stage_folder
    from segwright.inference.folder.log_files import PREDICTION_JSON
    from segwright.inference.models.model_folder import OURS, CheckpointFormat, choose_folds
    from segwright.interop.nnunet import NnunetCheckpoints, is_nnunet_model

    name = model.absolute().name.rpartition(MODEL_SEPARATOR)[2]
    stage = Plan.load(model / PLANS_JSON).configuration(name).previous_stage
    if stage is None:
        raise ConfigError(f"-prev_stage_predictions: {model} is not the second stage of a cascade; leave it out")
    first = previous_stage_folder(model, name, stage)
    checkpoints: CheckpointFormat = NnunetCheckpoints() if is_nnunet_model(first) else OURS
    document = read_checked_json(predictions / PREDICTION_JSON) if (predictions / PREDICTION_JSON).is_file() else {}
    made = document.get("model", {}) if isinstance(document, dict) else {}
    is_equal = (
        made.get("model") == first.name
        and made.get("folds") == list(choose_folds(first, None, "final", checkpoints))
        and made.get("step") == arguments.real("-step_size")
        and bool(made.get("mirror_axes")) is not arguments.is_set("--disable_tta")
    )
    if not is_equal:
        raise ConfigError(
            f"-prev_stage_predictions {predictions}: not predicted by all folds of {first} with the same options, as "
            "the model itself does; leave it out"
        )
    logger.info("-prev_stage_predictions %s: %s predicts the same once more", predictions, model.name)
