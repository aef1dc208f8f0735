"""nnU-Net's commands that exchange trained models as zip files."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from segwright.api.models.exchange import find_models, unpacked
from segwright.api.models.installing import proxies_of
from segwright.cli.nnunet import folders, names
from segwright.cli.nnunet.options import Command, Values, flag, value, values
from segwright.cli.options import environment
from segwright.core.errors import ConfigError, ModelError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.download import discard, download, require_url
from segwright.evaluation.crossval import VALIDATION, accumulated_name
from segwright.inference.export.postprocessing import POSTPROCESSING_JSON
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON, SUMMARY_JSON, Workspace

logger = getLogger(__name__)

_DOCUMENTS: Final = (PLANS_JSON, DATASET_JSON, FINGERPRINT_JSON)
_OF_FOLD: Final = ("progress.png", "debug.json", "network_architecture.png")
_ZIP_MAGIC: Final = b"PK"
"""First bytes of a zip file."""
_CONFIGURATIONS: Final = ("3d_lowres", "3d_fullres", "2d", "3d_cascade_fullres")


def export_model_to_zip(arguments: Values) -> None:
    """Pack the trained models of a dataset into a zip file for nnU-Net."""
    dataset = folders.dataset_name(arguments.text("-d"))
    wanted = {names.checkpoint_kind(name) for name in arguments.texts("-chk")}
    if wanted != {"final"}:
        raise ConfigError(f"-chk {' '.join(arguments.texts('-chk'))}: only {names.CHECKPOINT} is exported")
    models = [
        folders.trained_model(dataset, arguments.text("-tr"), arguments.text("-p"), configuration)
        for configuration in arguments.texts("-c")
    ]
    folds = [names.fold_of(text) for text in arguments.texts("-f")]
    target, everything = arguments.path("-o"), arguments.is_set("--exp_cv_preds")
    with TemporaryDirectory(prefix="segwright-export-") as scratch:
        for model in models:
            copy = Path(scratch) / dataset / model.name
            _copy_model(model, copy, folds)
            for file in _files_to_show(model, folds, everything=everything):
                new = copy / file.relative_to(model)
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, new)
        with atomic_path(target) as temporary:
            _zip(Path(scratch), temporary)
    logger.info("%s: %s", target, ", ".join(model.name for model in models))


def install_pretrained_model_from_zip(arguments: Values) -> None:
    """Unpack the models of a zip file into nnUNet_results."""
    install(arguments.path("zip"))


def download_pretrained_model_by_url(arguments: Values) -> None:
    """Download a zip file of models and unpack it into nnUNet_results; an interrupted download is continued."""
    url = require_url(arguments.text("url"))
    results = folders.folder_of(folders.RESULTS)
    results.mkdir(parents=True, exist_ok=True)
    file = results / f".download-{sha256(url.encode()).hexdigest()[:16]}.zip"
    download(url, file, magic=_ZIP_MAGIC, proxies=proxies_of(environment()))
    try:
        install(file)
    finally:
        discard(file)


COMMANDS: Final = {
    "export_model_to_zip": Command(
        function=export_model_to_zip,
        options=(
            value("-d", about="Id or name of the dataset.", is_required=True),
            value("-o", about="The zip file.", is_required=True),
            values("-c", about="Configurations; all must be trained.", default=_CONFIGURATIONS),
            value("-tr", about="Trainer class.", default=names.TRAINER),
            value("-p", about="Name of the plans.", default=names.PLANS),
            values("-f", about="Folds; all must be trained.", default=("0", "1", "2", "3", "4")),
            values("-chk", about="Checkpoints; only the final one.", default=(names.CHECKPOINT,)),
            flag("--not_strict", no_effect="nor in nnU-Net; name the trained configurations with -c"),
            flag("--exp_cv_preds", about="Also pack the held-out predictions."),
        ),
    ),
    "install_pretrained_model_from_zip": Command(
        function=install_pretrained_model_from_zip,
        options=(value("zip", about="Zip file of models, as nnU-Net exports it."),),
    ),
    "download_pretrained_model_by_url": Command(
        function=download_pretrained_model_by_url,
        options=(value("url", about="Address of a zip file of models, https://..."),),
    ),
}


def install(archive: Path) -> None:
    """Unpack the models of a zip file into nnUNet_results; files that exist there are replaced.

    Raises:
        ModelError: it is no zip file, is unsafe to unpack, or has no model.
    """
    results = folders.folder_of(folders.RESULTS)
    if not archive.is_file():
        raise ModelError(f"{archive}: no such file; give a zip file that nnUNetv2_export_model_to_zip wrote")
    with unpacked(archive) as place:
        models = find_models(place)
        if place in models or any(len(model.relative_to(place).parts) != 2 for model in models):
            raise ModelError(f"{archive}: expected models as Dataset004_NAME/TRAINER__PLANS__CONFIGURATION in it")
        for file in sorted(path for path in place.rglob("*") if path.is_file()):
            with atomic_path(results / file.relative_to(place)) as temporary:
                shutil.copyfile(file, temporary)
    for model in models:
        logger.info("installed: %s", results / model.relative_to(place))


def _copy_model(model: Path, target: Path, folds: list[int | str]) -> None:
    """Write a model folder of nnU-Net: a copy of one, or one of ours exported.

    Raises:
        ModelError: a fold is not trained.
    """
    from segwright.interop.nnunet import is_nnunet_model

    if not is_nnunet_model(model):
        from segwright.interop.export import export_model

        export_model(model, target, folds=[str(fold) for fold in folds])
        return
    for fold in folds:
        file = Workspace.fold_folder(model, fold) / names.CHECKPOINT
        if not file.is_file():
            raise ModelError(f"{file}: no such checkpoint; train the fold, or name the trained folds with -f")
        new = Workspace.fold_folder(target, fold)
        new.mkdir(parents=True)
        shutil.copyfile(file, new / file.name)
    for name in _DOCUMENTS:
        if (model / name).is_file():
            shutil.copyfile(model / name, target / name)


def _files_to_show(model: Path, folds: list[int | str], *, everything: bool) -> Iterator[Path]:
    """Yield the files of a model that say how good it is: plots, scores, and all held-out predictions if wanted."""
    numbers = [fold for fold in folds if isinstance(fold, int)]
    places = [model / accumulated_name(numbers)]
    for fold in folds:
        folder = Workspace.fold_folder(model, fold)
        yield from (folder / name for name in _OF_FOLD if (folder / name).is_file())
        places.append(folder / VALIDATION)
    for place in places:
        kept = [SUMMARY_JSON, POSTPROCESSING_JSON]
        if everything and place.is_dir():
            kept = [path.name for path in place.iterdir() if path.is_file() and path.suffix not in (".npz", ".pkl")]
        yield from (place / name for name in sorted(kept) if (place / name).is_file())


def _zip(folder: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, os.fspath(path.relative_to(folder)))
