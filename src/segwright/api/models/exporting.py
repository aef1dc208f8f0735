"""Export models: for nnU-Net, or as an ONNX bundle that predicts without torch."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, Literal

from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.extensions.trust import TrustCode
from segwright.workspace import Workspace

logger = getLogger(__name__)

FORMATS = ("nnunet", "onnx")


def export_model(
    model: Path | str,
    target: Path | str,
    *,
    kind: str = "nnunet",
    folds: Sequence[int | str] | None = None,
    with_validation: bool = False,
    mirroring: bool = True,
    license: str | None = None,  # noqa: A002  the name of the field
    trust_code: TrustCode = False,
    workspace: Workspace | None = None,
) -> Path:
    """Export a model for nnU-Net, or as an ONNX bundle for `segwright-runtime`.

    Args:
        model: Segwright model folder; with `onnx` also what `load_model` takes, such as a selected model.
        target: New folder, or `NAME.zip`; with `nnunet` for `nnUNetv2_install_pretrained_model_from_zip`.
        kind: Format: `nnunet` or `onnx`.
        folds: All trained folds by default.
        with_validation: With `nnunet`: also export the predictions of held-out cases and their `summary.json`.
        mirroring: With `onnx`: predict with test-time augmentation by mirroring.
        license: With `onnx`: license of the weights, for the document of the bundle.
        trust_code: With `onnx`: whether to import code that the model names; see `load_model`.
        workspace: With `onnx`: where models and results are; `./segwright-work` by default.

    Returns:
        The folder or the file.

    Raises:
        SegwrightError: no fold is trained, the network cannot be exported, its logits differ from those of torch, or
            the target exists.
    """
    if kind not in FORMATS:
        raise ConfigError(f"no format '{kind}'{did_you_mean(kind, FORMATS)}")
    names = None if folds is None else [str(fold) for fold in folds]
    if kind == "onnx":
        if with_validation:
            raise ConfigError("with_validation: an ONNX bundle holds no predictions; leave it out")
        options = {"mirroring": mirroring, "trust_code": trust_code, "workspace": workspace}
        _export_onnx(model, Path(target), names, license_name=license, **options)
        return Path(target)
    if license is not None or not mirroring or trust_code:
        raise ConfigError("license, mirroring and trust_code are options of the format onnx; leave them out")
    from segwright.interop.export import export_model as export

    exported = export(Path(model), Path(target), folds=names, with_validation=with_validation)
    logger.info("%s: %s for nnU-Net v2", target, ", ".join(exported))
    return Path(target)


def _export_onnx(
    model: Path | str, target: Path, folds: Sequence[str] | None, *, license_name: str | None, **options: Any
) -> None:
    """Export an ONNX bundle; `options` are those of `load_model`."""
    from segwright.api.predicting import load_model
    from segwright.deploy.onnx_export import export_bundle

    chosen: Sequence[int] | Literal["all"] | None = None
    if folds is not None:
        if wrong := [fold for fold in folds if not fold.isdecimal() and folds != ["all"]]:
            raise ConfigError(f"folds: '{wrong[0]}' is not a fold; give numbers, or all alone")
        chosen = "all" if folds == ["all"] else [int(fold) for fold in folds]
    loaded = load_model(model, folds=chosen, precision="fp32", device="cpu", **options)
    name = Path(model).name.removesuffix(".zip")
    differences = export_bundle(loaded, target, name=name, license_name=license_name)
    logger.info("%s: %d network%s for onnxruntime", target, len(differences), "s" * (len(differences) > 1))
