"""Prediction as a verb: a folder of images, or arrays through a predictor that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segwright.api.exchange import only_model, unpacked

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
    trust_code: bool = False,
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
        trust_code: Let the plans of nnU-Net name any installed network class, which is then imported and called.
    """
    from segwright.inference.files import predict_files
    from segwright.inference.writers import Saving

    kind = "npz" if probabilities is True else probabilities or ("nifti" if classes else None)
    saving = Saving(kind=kind, classes=classes) if kind else False
    predictor = load_model(
        model,
        folds=folds,
        checkpoint=checkpoint,
        mirroring=mirroring,
        precision=precision,
        device=device,
        trust_code=trust_code,
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
    trust_code: bool = False,
) -> Predictor:
    """Return the predictor of a model folder, for many predictions in one process.

    `model.predict(array, spacing=...)` gives the label map of an array in the array's own axis order,
    `model.predict_files(images, output)` those of a folder. Threads may share a predictor.

    Args:
        model: Model folder, with `plans.json`, `dataset.json` and `fold_k`; of nnU-Net v2 too, or its zip file.
        folds: Whose networks are averaged; all that are trained by default.
        checkpoint: final, best or latest.
        mirroring: Average over flipped images too.
        precision: fp32, bf16, fp16, or what the device is fast at.
        device: auto, cpu, mps or a GPU.
        trust_code: Let the plans of nnU-Net name any installed network class, which is then imported and called.
    """
    from segwright.inference.model_folder import OURS, CheckpointFormat, load_predictor
    from segwright.interop.nnunet import NnunetCheckpoints, is_nnunet_model

    with unpacked(Path(model)) as place:
        folder = only_model(place, Path(model))
        reading: CheckpointFormat = NnunetCheckpoints() if is_nnunet_model(folder) else OURS
        return load_predictor(
            folder,
            folds=folds,
            checkpoint=checkpoint,
            mirroring=mirroring,
            precision=precision,
            device=device,
            reading=reading,
            trust_code=trust_code,
        )
