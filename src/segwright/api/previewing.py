"""Augmented training samples as a page to look at, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from segwright.api.folds import TrainOptions, require_options
from segwright.api.preparing import DEFAULT_PLANS, cases_are_fresh, cases_folder, load_plan, make_cases
from segwright.api.session import open_session
from segwright.core.documents import write_text
from segwright.core.errors import ConfigError
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.labels import BACKGROUND, IGNORE, Labels
from segwright.data.plan import Plan
from segwright.data.sides import Sides
from segwright.data.store import CaseStore
from segwright.report import augmentation_page
from segwright.report.augmentation_page import ShownSample
from segwright.training.config import TrainConfig
from segwright.workspace import Workspace

if TYPE_CHECKING:
    from segwright.training.batches import Batch, BatchLoader, SampleDraw

PREVIEW_HTML = "augmentation.html"
MOST_SAMPLES = 200


def preview_augmentation(
    dataset: str | Path,
    *,
    configuration: str | None = None,
    samples: int = 16,
    output: Path | str | None = None,
    workspace: Workspace | None = None,
    plans: str = DEFAULT_PLANS,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> Path:
    """Write one HTML page of training samples, each before and after augmentation, and return its path.

    They are the first samples that a training on all cases would see with the same settings.

    Args:
        dataset: Folder, name or id.
        configuration: Of the plan; 3d_fullres, or the first one, by default. Its cases are preprocessed where needed.
        samples: How many to show.
        output: The file; `augmentation.html` beside the preprocessed cases by default.
        workspace: Where plans and preprocessed cases are; `./segwright-work` by default.
        plans: Name of the plans, made before.
        settings: Fields of `TrainConfig` that change samples: `augmentation`, `mirror_axes`, `sampler`, `seed`, ...
        workers: Threads of preprocessing.
        environment: Variables that explicit file lists may name.

    Raises:
        SegwrightError: dataset, plan, configuration or a setting is wrong, or a case cannot be read.

    Example:
        >>> preview_augmentation(4, samples=8)  # doctest: +SKIP
    """
    from segwright.training.loaders import training_recipe

    if not 1 <= samples <= MOST_SAMPLES:
        raise ConfigError(f"samples {samples}: expected 1 to {MOST_SAMPLES}")
    require_options(TrainOptions(settings=settings or {}))
    config = TrainConfig.from_mapping(settings or {})
    session = open_session(dataset, workspace, environment=environment)
    plan = load_plan(session, plans)
    name = configuration or _default(plan)
    chosen = plan.configuration(name)
    recipe = training_recipe(config, chosen, session.dataset.labels, Sides.of_plan(plan))
    if not cases_are_fresh(session, plan, name):
        make_cases(session, plan, name, workers=workers)
    store = CaseStore(cases_folder(session, plan, name))
    labels = session.dataset.labels
    plain, augmented = (
        _loader(store, config, chosen.patch_size, labels, samples, recipe if is_augmented else None)
        for is_augmented in (False, True)
    )
    page = augmentation_page.render(
        _shown(plain, augmented),
        title=f"{session.name}, {name}",
        notes=[
            f"augmentation '{config.augmentation}', seed {config.seed}",
            f"patch {' x '.join(map(str, chosen.patch_size))} voxels",
            f"transforms in order: {', '.join(recipe.names()) or 'none'}",
            "Grey values are drawn in the window of the plain patch; around a case there is padding of 0.",
        ],
        labels={value: labels.class_name(value) for value in labels.foreground_labels},
        channels=list(session.dataset.description.channel_names.values()),
        spacing=chosen.spacing,
        created=datetime.now().astimezone(),
    )
    file = Path(output) if output is not None else store.folder.parent / PREVIEW_HTML
    write_text(file, page)
    return file


def _default(plan: Plan) -> str:
    return next(known for known in ("3d_fullres", *plan.configuration_names) if known in plan.configurations)


def _loader(
    store: CaseStore, config: TrainConfig, patch_size: tuple[int, ...], labels: Labels, count: int, recipe: Any
) -> BatchLoader:
    """Return a loader whose targets are label maps, of regions too."""
    from segwright.training.batches import BatchLoader
    from segwright.training.sampling import build_sampler

    values = {BACKGROUND: 0, **{f"label {value}": value for value in labels.foreground_labels}}
    if labels.ignore_label is not None:
        values[IGNORE] = labels.ignore_label
    return BatchLoader(
        store,
        store.identifiers(),
        patch_size=patch_size,
        batch_size=count,
        labels=Labels(values),
        recipe=recipe,
        oversample_foreground_percent=config.oversample_foreground_percent,
        oversample_by_chance=config.oversample_by_chance,
        sampler=build_sampler(config.sampler),
        seed=config.seed,
    )


def _shown(plain: BatchLoader, augmented: BatchLoader) -> list[ShownSample]:
    (images, maps), (changed_images, changed_maps) = (_arrays(loader.batch(0, 0)) for loader in (plain, augmented))
    return [
        ShownSample(
            title=f"{draw.identifier}, from voxel {', '.join(map(str, draw.start))}",
            plain=images[index],
            plain_labels=maps[index, 0],
            augmented=changed_images[index],
            augmented_labels=changed_maps[index, 0],
            drawn=_drawn(draw),
        )
        for index, draw in enumerate(augmented.draw(0, 0))
    ]


def _arrays(batch: Batch) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    target = batch["target"]
    assert not isinstance(target, list), "without scales there is one target"
    return batch["data"].numpy(), target.numpy()


def _drawn(draw: SampleDraw) -> list[tuple[str, str]]:
    """Return each transform with its parameters; a seed says nothing to a reader."""
    lines = []
    if draw.matrix is not None:
        lines.append(("spatial", augmentation_page.affine_text(draw.matrix)))
    for name, values in draw.augmentation.items():
        shown = [f"{key} {augmentation_page.parameter_text(value)}" for key, value in values.items() if key != "seed"]
        lines.append((name, "; ".join(shown)))
    return lines
