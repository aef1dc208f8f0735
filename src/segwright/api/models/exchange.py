"""Open and import models of nnU-Net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory

from segwright.core.errors import ModelError, replaced_in_errors
from segwright.data.plan import Plan
from segwright.workspace import PLANS_JSON

logger = getLogger(__name__)


def import_model(source: Path | str, target: Path | str) -> list[Path]:
    """Convert nnU-Net v2 models into Segwright model folders without pickle; return the new folders.

    Args:
        source: Model folder, or a zip file as nnU-Net exports it; it is never changed.
        target: New model folder, or the parent folder for a zip file with several models. A cascade's first stage
            becomes a sub-folder of the second.

    Raises:
        SegwrightError: no model was found, a file is damaged or contains more than weights, or the target exists.
    """
    from segwright.interop import nnunet

    with unpacked(Path(source)) as place:
        models = without_first_stages(find_models(place))
        targets = [Path(target)] if len(models) == 1 else [Path(target) / model.name for model in models]
        for model, new in zip(models, targets, strict=True):
            nested = first_stage(model)
            folds = nnunet.import_model(model, new, nested=nested)
            for name, first in nested.items():
                logger.info("%s: first stage %s", new / name, first.name)
            logger.info("%s: %s", new, ", ".join(fold.name for fold in folds))
    return targets


@contextmanager
def unpacked(place: Path, *, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a folder as it is, or a zip file unpacked into a temporary folder, below `scratch` if it is given.

    Errors in the block name the zip file instead of the temporary folder.

    Raises:
        ModelError: the zip file is damaged or unsafe to unpack.
    """
    if not place.is_file():
        yield place
        return
    from segwright.interop.archive import extract

    with TemporaryDirectory(prefix="segwright-model-", dir=scratch) as folder:
        root = Path(folder) / place.name  # a model at the top level of the zip file is named after the file
        with replaced_in_errors(root, place):
            extract(place, root)
            yield root


def find_models(place: Path) -> list[Path]:
    """Find the model folders at or below a folder.

    Raises:
        ModelError: there are none.
    """
    models = sorted(file.parent for file in place.rglob(PLANS_JSON) if any(file.parent.glob("fold_*/checkpoint_*")))
    if not models:
        raise ModelError(f"{place}: no model found; expected {PLANS_JSON} and fold_0 with a checkpoint in it")
    return models


def only_model(place: Path, source: Path) -> Path:
    """Return the only model folder in an unpacked zip file; a folder that the user gave is returned as it is.

    Args:
        place: the folder, or where the zip file was unpacked.
        source: what the user gave.

    Raises:
        ModelError: the zip file has no model, or several, which are listed.
    """
    if (place / PLANS_JSON).is_file() or place == source:
        return place
    models = without_first_stages(find_models(place))
    if len(models) > 1:
        names = ", ".join(str(model.relative_to(place)) for model in models)
        raise ModelError(
            f"{source}: contains {len(models)} models: {names}; run import-model first and choose one of the new "
            "folders"
        )
    return models[0]


def without_first_stages(models: Sequence[Path]) -> list[Path]:
    """Drop models that are the first stage of another model in the list."""
    firsts = {first.resolve() for model in models for first in first_stage(model, quiet=True).values()}
    return [model for model in models if model.resolve() not in firsts]


def first_stage(model: Path, *, quiet: bool = False) -> dict[str, Path]:
    """Return the model folder of a cascade's first stage by the name it gets in the new model; else nothing."""
    from segwright.inference.cascade import STORED, previous_stage_folder

    plan, configuration = Plan.load(model / PLANS_JSON), model.name.rpartition("__")[2]
    if any(model.glob("fold_*/checkpoint_*.pth")):
        from segwright.interop.nnunet import configuration_of

        configuration = configuration_of(model)
    previous = plan.configuration(configuration).previous_stage if configuration in plan.configurations else None
    if previous is None:
        return {}
    try:
        return {STORED: previous_stage_folder(model, configuration, previous)}
    except ModelError as error:
        if not quiet:
            logger.warning("imported without the first stage: %s", error)
        return {}
