"""Models from and for nnU-Net: opened where they lie, imported as safe folders, exported as nnU-Net's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory

from segwright.core.errors import ConfigError, ModelError, ProblemReport, SegwrightError, nearest
from segwright.data.plan import Plan
from segwright.workspace import PLANS_JSON

logger = getLogger(__name__)

FORMATS = ("nnunet",)


def import_model(source: Path | str, target: Path | str) -> list[Path]:
    """Convert models of nnU-Net v2, which are pickles, into folders of ours, which are not; return these.

    Args:
        source: Model folder, or a zip file as nnU-Net exports it; only read.
        target: New model folder; of several models in a zip file, their parent. The first stage of a cascade, stored in
            the second or beside it, becomes a folder in it.

    Raises:
        SegwrightError: nothing to import, a file that is damaged or does more than hold weights, or the target exists.
    """
    from segwright.interop import nnunet

    with unpacked(Path(source)) as place:
        models = without_first_stages(find_models(place))
        targets = [Path(target)] if len(models) == 1 else [Path(target) / model.name for model in models]
        for model, new in zip(models, targets, strict=True):
            inside = _first_stage(model)
            folds = nnunet.import_model(model, new, inside=inside)
            for name, first in inside.items():
                logger.info("%s: first stage %s", new / name, first.name)
            logger.info("%s: %s", new, ", ".join(fold.name for fold in folds))
    return targets


def export_model(
    model: Path | str, target: Path | str, *, kind: str = "nnunet", folds: Sequence[int | str] | None = None
) -> Path:
    """Write a model trained here for another system.

    Args:
        model: Model folder of ours.
        target: New model folder, or `NAME.zip` for `nnUNetv2_install_pretrained_model_from_zip`.
        kind: nnunet.
        folds: All that are trained by default.

    Raises:
        SegwrightError: nothing is trained, the network is none of nnU-Net's, or the target exists.
    """
    if kind not in FORMATS:
        raise ConfigError(f"no format '{kind}'{nearest(kind, FORMATS)}")
    from segwright.interop.export import export_model as export

    done = export(Path(model), Path(target), folds=None if folds is None else [str(fold) for fold in folds])
    logger.info("%s: %s for nnU-Net v2", target, ", ".join(done))
    return Path(target)


@contextmanager
def unpacked(place: Path) -> Iterator[Path]:
    """Yield a folder as it is, a zip file unpacked into a folder that is gone after the block.

    Errors in the block name the zip file instead of that folder.

    Raises:
        ModelError: the zip file is damaged or hostile.
    """
    if not place.is_file():
        yield place
        return
    from segwright.interop.archive import extract

    with TemporaryDirectory(prefix="segwright-model-") as folder:
        root = Path(folder) / place.name  # a model that is the whole of the file gets its name, the same every time
        try:
            extract(place, root)
            yield root
        except ProblemReport as report:
            raise ProblemReport(
                [
                    replace(
                        problem,
                        where=problem.where.replace(str(root), str(place)),
                        what=problem.what.replace(str(root), str(place)),
                    )
                    for problem in report.problems
                ]
            ) from report
        except SegwrightError as error:
            error.args = (str(error).replace(str(root), str(place)),)
            raise


def find_models(place: Path) -> list[Path]:
    """Return the model folders at or below a folder.

    Raises:
        ModelError: there is none.
    """
    found = sorted(file.parent for file in place.rglob(PLANS_JSON) if any(file.parent.glob("fold_*/checkpoint_*")))
    if not found:
        raise ModelError(f"{place}: no model; expected {PLANS_JSON} and fold_0 with a checkpoint in it")
    return found


def only_model(place: Path, source: Path) -> Path:
    """Return the model folder at or below a folder, of which there must be one.

    Raises:
        ModelError: there is none, or several: their names.
    """
    if (place / PLANS_JSON).is_file() or place == source:
        return place
    found = without_first_stages(find_models(place))
    if len(found) > 1:
        names = ", ".join(str(model.relative_to(place)) for model in found)
        raise ModelError(f"{source}: holds {len(found)} models: {names}; import it, and name one of the new folders")
    return found[0]


def without_first_stages(models: Sequence[Path]) -> list[Path]:
    """Return models without those that another of them needs as its previous stage."""
    firsts = {first.resolve() for model in models for first in _first_stage(model, quiet=True).values()}
    return [model for model in models if model.resolve() not in firsts]


def _first_stage(model: Path, *, quiet: bool = False) -> dict[str, Path]:
    """Return the folder of a cascade's first stage under the name that it has in the second, empty if there is none."""
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
