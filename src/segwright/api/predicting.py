"""Predict a folder of images, or load a model for many predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segwright.api.models.exchange import only_model, unpacked
from segwright.api.models.finding import find_model
from segwright.core.errors import ConfigError
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.core.extensions.user_code import user_code_errors
from segwright.core.process_tuning import gc_paused
from segwright.inference.window.tiling import DEFAULT_STEP, require_step
from segwright.workspace import Workspace

if TYPE_CHECKING:
    from segwright.inference.ensemble import Ensemble
    from segwright.inference.export.writers import ProbabilityFormat
    from segwright.inference.prediction import CaseRecord
    from segwright.inference.predictor import Predictor

logger = getLogger(__name__)


def predict(
    model: Path | str | Sequence[Path | str],
    images: Path | str | Sequence[Path | str],
    output: Path | str,
    *,
    folds: Sequence[int] | Literal["all"] | None = None,
    checkpoint: str = "final",
    mirroring: bool = True,
    step_size: float = DEFAULT_STEP,
    probabilities: bool | str = False,
    classes: Sequence[str] | None = None,
    uncertainty: bool = False,
    calibrated: bool = False,
    overwrite: bool = False,
    precision: str = "auto",
    device: str = "auto",
    trust_code: TrustCode = False,
    exact: bool = False,
    part: int = 0,
    parts: int = 1,
    wait: bool = True,
    series: Sequence[str] = (),
    output_types: Sequence[str] = ("nifti",),
    segments: Path | str | None = None,
    holes: str = "xor",
    workspace: Workspace | None = None,
) -> list[CaseRecord]:
    """Predict a folder of images (`CASE_0000.ENDING`, one file per channel), or one case, with a trained model.

    A folder or zip file of DICOM is one case for each study, named after its folder.

    Args:
        model: Folder written by `select`, the results folder that contains it, or a model folder with `plans.json`,
            `dataset.json` and `fold_k` (also of nnU-Net v2, also as a zip file), or the name of an installed model, or
            the name or id of a dataset, for its selected model. Several models are averaged.
        images: Input folder, never written to; or the file of one case, or a list of the files of its channels; or a
            folder, zip file or file of DICOM, or a list of one for each channel.
        output: Folder for one label map per case; existing predictions are kept.
        folds: Folds to average; all trained folds by default.
        checkpoint: final, best or latest.
        mirroring: Test-time augmentation by mirroring.
        step_size: Distance of two tiles as a share of the patch; a smaller one is slower and smooths more.
        probabilities: Also write class probabilities: npz (or True), b2nd or nifti.
        classes: Classes whose maps are written with nifti; all but the background by default.
        uncertainty: Also write maps of entropy and of the disagreement between folds and mirrored views.
        calibrated: Scale the written probabilities with the temperature found by `select`; labels do not change.
        overwrite: Replace existing predictions.
        precision: fp32, bf16, fp16, or auto: the fastest of the device.
        device: auto, cpu, mps, a GPU, or several GPUs separated by commas (`cuda:0,cuda:1`) that share the cases.
        trust_code: Whether to import code that the model names, for instance a user's own network: False, True, or
            only the given references (`module:attr`).
        exact: Also run the network on constant tiles such as air, which are otherwise computed once.
        part: Index of the part to predict, from 0; for several machines.
        parts: Number of parts into which the cases are divided.
        wait: Wait for another process that predicts into the folder; otherwise raise `LockHeldError`.
        series: Of DICOM input, the series of each channel: its UID, number or description (with `*` for any text), or
            `CHANNEL=SERIES`, or a JSON file of such pairs. By default the only series that is a volume.
        output_types: For DICOM input `dicom-seg` and `rtstruct` are written as well as the label map (`nifti`).
        segments: `segments.json` with the codes of the classes for DICOM objects; by default that of the model folder,
            else they are guessed from the names of the labels.
        holes: How RTSTRUCT describes holes: xor (contours of their own) or keyhole (joined to the outer one).
        workspace: Where models and results are; `./segwright-work` by default.

    Returns:
        One record for each case, in order of the case names.

    Raises:
        ProblemReport: there is no case, or some cannot be read or predicted (raised after all others are done).
        SegwrightError: the model, an option or the device is invalid.

    Examples:
        >>> cases = predict("model", "images", "predicted", probabilities=True)  # doctest: +SKIP
    """
    with gc_paused():
        from segwright.deploy.dicom.predicting import predict_inputs
        from segwright.inference.ensemble import Ensemble
        from segwright.inference.models.selected import find_selected
        from segwright.inference.predictor import Predictor
        from segwright.networks.references import packages_of

    given = Path(images) if isinstance(images, Path | str) else [Path(each) for each in images]
    require_step(step_size)
    probability_format = _checked_options(given, output, probabilities, classes, part=part, parts=parts)
    devices = _checked_devices(device, precision)
    models = [find_model(each, workspace) for each in ([model] if isinstance(model, Path | str) else model)]
    if len(models) > 1:
        _require_none_selected(models)
        _require_one_device(devices)
    trust = CodeTrust.of(trust_code)
    loaded = [
        _load(
            each,
            folds=folds,
            checkpoint=checkpoint,
            mirroring=mirroring,
            step=step_size,
            precision=precision,
            device=name,
            trust=trust,
            exact=exact,
        )
        for each in models
        for name in devices
    ]
    predictors = [each for each in loaded if not isinstance(each, Ensemble)]
    ensemble = loaded[0] if isinstance(loaded[0], Ensemble) else Ensemble(predictors) if len(models) > 1 else None
    options: dict[str, Any] = {
        "probabilities": probability_format or False,
        "uncertainty": uncertainty,
        "calibrated": calibrated,
        "overwrite": overwrite,
        "part": part,
        "parts": parts,
        "wait": wait,
        "series": series,
        "output_types": output_types,
        "segments": None if segments is None else Path(segments),
        "holes": holes,
        "model_folder": find_selected(models[0]) or models[0],
    }
    members = predictors if ensemble is None else ensemble.predictors
    networks = [network for each in members if isinstance(each, Predictor) for network in each.networks]
    packages = frozenset[str]().union(*map(packages_of, networks))
    with user_code_errors(packages, "the network of a model"):
        if ensemble is not None:
            _require_one_device(devices)
            return predict_inputs(ensemble, given, Path(output), **options)
        return predict_inputs(predictors[0], given, Path(output), others=predictors[1:], **options)


def load_model(
    model: Path | str,
    *,
    folds: Sequence[int] | Literal["all"] | None = None,
    checkpoint: str = "final",
    mirroring: bool = True,
    step_size: float = DEFAULT_STEP,
    precision: str = "auto",
    device: str = "auto",
    network: Callable[..., Any] | None = None,
    trust_code: TrustCode = False,
    exact: bool = False,
    workspace: Workspace | None = None,
) -> Predictor | Ensemble:
    """Load a model for many predictions in one process.

    `model.predict(array, spacing=...)` returns the label map of an array in the array's own axis order;
    `model.predict_files(images, output)` predicts a folder, `model.predict_dicom(path)` a DICOM study. Threads may
    share a predictor. A model written by `select` works the same way, with its ensemble members and its
    post-processing.

    Args:
        model: Model folder with `plans.json`, `dataset.json` and `fold_k`, or a folder written by `select`; also of
            nnU-Net v2, also as a zip file; or the name of an installed model, or the name or id of a dataset, for its
            selected model.
        folds: Folds to average; all trained folds by default.
        checkpoint: final, best or latest.
        mirroring: Test-time augmentation by mirroring.
        step_size: Distance of two tiles as a share of the patch; a smaller one is slower and smooths more.
        precision: fp32, bf16, fp16, or auto: the fastest of the device.
        device: auto, cpu, mps or a GPU.
        network: Function, class or module with which the model was trained, or its trainer class; needed where files
            cannot name it, as a lambda. It is used in place of the network that the model names.
        trust_code: Whether to import code that the model names, for instance a user's own network: False, True, or
            only the given references (`module:attr`).
        exact: Also run the network on constant tiles such as air, which are otherwise computed once.
        workspace: Where models and results are; `./segwright-work` by default.

    Raises:
        SegwrightError: the model, an option or the device is invalid, or the network is not that of the weights.

    Examples:
        >>> model = load_model("model")  # doctest: +SKIP
        >>> labels = model.predict(array, spacing=(3.0, 0.8, 0.8))  # doctest: +SKIP
    """
    _checked_devices(device, precision)
    require_step(step_size)
    return _load(
        find_model(model, workspace),
        folds=folds,
        checkpoint=checkpoint,
        mirroring=mirroring,
        step=step_size,
        precision=precision,
        device=device,
        trust=replace(CodeTrust.of(trust_code), network=network),
        exact=exact,
    )


def _load(model: Path, *, trust: CodeTrust, exact: bool, **options: Any) -> Predictor | Ensemble:
    """Load a model folder or a selected model; device and precision have been checked."""
    with gc_paused():
        from segwright.deploy.dicom.one_study import predict_dicom
        from segwright.deploy.dicom.predicting import predict_inputs
        from segwright.inference.models.model_folder import OURS, CheckpointFormat, load_predictor
        from segwright.inference.models.selected import find_selected, load_selected
        from segwright.interop.nnunet import NnunetCheckpoints, is_nnunet_model

    def load(folder: Path) -> Predictor:
        checkpoints: CheckpointFormat = NnunetCheckpoints() if is_nnunet_model(folder) else OURS
        predictor = load_predictor(folder, checkpoints=checkpoints, trust=trust, reuse=not exact, **options)
        predictor.folder_function = predict_inputs
        return predictor

    with unpacked(model) as place:
        selected = find_selected(place)
        folder = selected or only_model(place, model)
        _show_card(folder, is_unpacked=place != model)
        loaded = load(folder) if selected is None else load_selected(selected, load)
    loaded.folder_function = partial(predict_inputs, model_folder=selected or model)
    loaded.dicom_function = partial(predict_dicom, model_folder=selected or model)
    return loaded


def _show_card(folder: Path, *, is_unpacked: bool) -> None:
    """Show the license and the intended use of a packed model; check its files if they were unpacked just now."""
    from segwright.deploy.model_card import read_card
    from segwright.deploy.unpacked import checked_card

    card = checked_card(folder) if is_unpacked else read_card(folder)
    if card is not None:
        logger.info("model %s: %s", card.name, card.terms)


def _checked_options(
    images: Path | Sequence[Path],
    output: Path | str,
    probabilities: bool | str,
    classes: Sequence[str] | None,
    *,
    part: int,
    parts: int,
) -> ProbabilityFormat | None:
    """Check the options that need no model and return the format of probabilities."""
    from segwright.core.files.atomic_io import require_writable_folder
    from segwright.inference.export.writers import ProbabilityFormat
    from segwright.inference.folder.inputs import require_other_folder
    from segwright.inference.folder.jobs import PredictOptions

    kind = "npz" if probabilities is True else probabilities or ("nifti" if classes else None)
    probability_format = ProbabilityFormat(kind=kind, classes=classes) if kind else None
    PredictOptions(probability_format=probability_format, part=part, parts=parts)  # raises for an invalid part
    require_other_folder(images, Path(output))
    require_writable_folder(Path(output))
    return probability_format


def _checked_devices(text: str, precision: str) -> list[str]:
    """Return the device names after checking that each exists and supports the precision."""
    from segwright.core.device import CPU, has_fast_bf16, resolve_device
    from segwright.inference.precision import used_precision

    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise ConfigError(f"device '{text}': a name is missing; expected for instance cpu, or cuda:0,cuda:1")
    devices = [resolve_device(name) for name in names]
    for device in devices:
        used_precision(device, precision)
    if precision == "bf16" and any(device.type == CPU for device in devices) and not has_fast_bf16():
        logger.warning(
            "precision 'bf16': this CPU has no fast instructions for it, so it is slower than fp32 and less exact; "
            "choose fp32 or auto"
        )
    return names


def _require_one_device(devices: Sequence[str]) -> None:
    """Check that an ensemble predicts on a single device."""
    if len(devices) > 1:
        raise ConfigError(
            "several models can only predict on one device; run one command per device, --part 0 --parts "
            f"{len(devices)} and so on"
        )


def _require_none_selected(models: Sequence[Path]) -> None:
    """Check that no model to average is a selected one, which has post-processing of its own."""
    from segwright.inference.models.selected import MEMBERS, find_selected

    for each in models:
        if find_selected(each) is not None:
            raise ConfigError(
                f"{each}: a selected model has its own post-processing and cannot be averaged with others; to "
                f"average its members, give the folders in {each / MEMBERS}"
            )
