"""Prediction as a verb: a folder of images, or arrays through a predictor that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from segwright.inference.files import CaseRecord
    from segwright.inference.predictor import Predictor


def predict(
    model: Path | str,
    images: Path | str,
    output: Path | str,
    *,
    folds: Sequence[int] | Literal["all"] | None = None,
    checkpoint: str = "final",
    mirroring: bool = True,
    probabilities: bool | str = False,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> list[CaseRecord]:
    """Predict a folder of images (`CASE_0000.ENDING`, one file per channel) with a trained model.

    Args:
        model: Model folder, with `plans.json`, `dataset.json` and `fold_k`.
        images: Input folder, never written to.
        output: Gets one label map per case; cases that are there already are kept.
        folds: Whose networks are averaged; all that are trained by default.
        checkpoint: final, best or latest.
        mirroring: Average over flipped images too.
        probabilities: Also write class probabilities: npz (or True), b2nd or nifti.
        classes: Of nifti: whose maps are written; all but the background by default.
        overwrite: Predict again what is there.
        precision: fp32, bf16, fp16, or what the device is fast at.
        device: auto, cpu, mps or a GPU.
    """
    from segwright.inference.files import predict_files
    from segwright.inference.writers import Saving

    kind = "npz" if probabilities is True else probabilities or ("nifti" if classes else None)
    saving = Saving(kind=kind, classes=classes) if kind else False
    predictor = load_model(
        model, folds=folds, checkpoint=checkpoint, mirroring=mirroring, precision=precision, device=device
    )
    return predict_files(predictor, Path(images), Path(output), probabilities=saving, overwrite=overwrite)


def load_model(
    model: Path | str,
    *,
    folds: Sequence[int] | Literal["all"] | None = None,
    checkpoint: str = "final",
    mirroring: bool = True,
    precision: str = "auto",
    device: str = "auto",
) -> Predictor:
    """Return the predictor of a model folder, for many predictions in one process.

    `model.predict(array, spacing=...)` gives the label map of an array in the array's own axis order,
    `model.predict_files(images, output)` those of a folder. Threads may share a predictor.

    Args:
        model: Model folder, with `plans.json`, `dataset.json` and `fold_k`.
        folds: Whose networks are averaged; all that are trained by default.
        checkpoint: final, best or latest.
        mirroring: Average over flipped images too.
        precision: fp32, bf16, fp16, or what the device is fast at.
        device: auto, cpu, mps or a GPU.
    """
    from segwright.inference.model_folder import load_predictor

    return load_predictor(
        Path(model), folds=folds, checkpoint=checkpoint, mirroring=mirroring, precision=precision, device=device
    )
