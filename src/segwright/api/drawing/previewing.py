"""Preview augmented training samples as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from segwright.api.checks.training_options import TrainOptions, require_options, trusted_code
from segwright.api.plans.making import DEFAULT_PLANS, load_plan
from segwright.api.preparing import cases_are_fresh, cases_folder, preprocess_cases
from segwright.api.session import Session, open_session
from segwright.api.training_runs import training_cases
from segwright.core.errors import ConfigError, SegwrightError
from segwright.core.extensions.trust import TrustCode
from segwright.core.files.atomic_io import write_text
from segwright.data.crossval import splits
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.labels import BACKGROUND, IGNORE, Labels
from segwright.data.laterality import LabelPairs
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.report import augmentation_page
from segwright.report.augmentation_page import ShownSample
from segwright.report.colours import legend
from segwright.training.config import TrainConfig
from segwright.workspace import Workspace

if TYPE_CHECKING:
    from segwright.augmentation.recipe import Recipe
    from segwright.data.plan import Configuration
    from segwright.training.cascade import CascadeStore
    from segwright.training.loading.batches import Batch, BatchLoader, SampleDraw

PREVIEW_HTML = "augmentation.html"
MAX_SAMPLES = 200


def preview_augmentation(
    dataset: str | Path | int,
    *,
    configuration: str | None = None,
    samples: int = 16,
    output: Path | str | None = None,
    workspace: Workspace | None = None,
    plans: str = DEFAULT_PLANS,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    trust_code: TrustCode = False,
) -> Path:
    """Write one HTML page of training samples, each before and after augmentation, and return its path.

    These are the first samples that a training on all cases with these settings would see on this machine, batch by
    batch, with the foreground-oversampled samples at the end of each. A cascade's second stage needs the predictions
    of the first.

    Args:
        dataset: Folder, name or id.
        configuration: By default 3d_fullres, or the plan's first one. Its cases are preprocessed if needed.
        samples: Number of samples.
        output: HTML file; `augmentation.html` beside the preprocessed cases by default.
        workspace: Where plans and preprocessed cases are; `./segwright-work` by default.
        plans: Name of existing plans.
        settings: Fields of `TrainConfig` that change samples: `augmentation`, `mirror_axes`, `sampler`, `seed`, ...
        workers: Threads of preprocessing.
        environment: Variables that paths in file lists may contain.
        trust_code: Whether to import normalisation code that the plan names as `module:attr`.

    Raises:
        SegwrightError: dataset, plan, configuration or a setting is invalid, a case cannot be read, or a cascade's
            first stage is not trained.

    Examples:
        >>> preview_augmentation(4, samples=8)  # doctest: +SKIP
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise ConfigError(f"samples {samples}: expected 1 to {MAX_SAMPLES}")
    require_options(TrainOptions(settings=settings or {}))
    config = TrainConfig.from_mapping(settings or {})
    trust = trusted_code(trust_code, settings or {})
    session = open_session(dataset, workspace, environment=environment, trust=trust)
    plan = load_plan(session, plans)
    name = configuration or plan.default_configuration
    preview = _Preview.of(session, plan, name, config)
    if not cases_are_fresh(session, plan, name):
        preprocess_cases(session, plan, name, workers=workers)
    folder = cases_folder(session, plan, name)
    page = augmentation_page.render(
        preview.samples(_cases(session, plan, name), samples),
        title=f"{session.name}, {name}",
        notes=preview.notes(),
        labels=legend(session.dataset.labels),
        channels=list(session.dataset.description.channel_names.values()),
        previous=preview.previous_channels(),
        spacing=plan.configuration(name).spacing,
        created=datetime.now().astimezone(),
    )
    file = Path(output) if output is not None else folder.parent / PREVIEW_HTML
    write_text(file, page)
    return file


def _cases(session: Session, plan: Plan, configuration: str) -> CaseStore | CascadeStore:
    """Return the cases as a training reads them, with the previous stage's predictions for a cascade.

    Raises:
        ConfigError: these predictions are missing.
    """
    cases = training_cases(session, plan, configuration)
    previous = plan.configuration(configuration).previous_stage
    if previous is None:
        return cases
    for identifier in CaseStore(cases_folder(session, plan, configuration)).identifiers():
        try:
            cases.load(identifier)
        except SegwrightError as error:
            raise ConfigError(
                f"configuration '{configuration}' is trained on predictions of '{previous}', which some cases lack "
                f"({error}); train '{previous}' and then '{configuration}' on all folds first, or preview '{previous}'"
            ) from error
    return cases


@dataclass(frozen=True, slots=True, kw_only=True)
class _Preview:
    """The first samples of a training with `config`, whose batch size must be set."""

    identifiers: tuple[str, ...]
    config: TrainConfig
    configuration: Configuration
    labels: Labels
    recipe: Recipe

    @classmethod
    def of(cls, session: Session, plan: Plan, name: str, config: TrainConfig) -> _Preview:
        """Resolve the settings of a training on all cases on this machine.

        Raises:
            SegwrightError: the configuration or the augmentation recipe does not exist.
        """
        from segwright.core.device import resolve_device
        from segwright.training import defaults
        from segwright.training.loading.loaders import training_recipe

        configuration, labels = plan.configuration(name), session.dataset.labels
        decided = defaults.resolve_config(config, configuration, resolve_device("auto")).config
        return cls(
            identifiers=tuple(splits.select([], session.dataset.identifiers, "all").train),
            config=decided,
            configuration=configuration,
            labels=labels,
            recipe=training_recipe(decided, configuration, labels, LabelPairs.of_plan(plan)),
        )

    def notes(self) -> list[str]:
        """Return the text above the samples."""
        return [
            f"augmentation '{self.config.augmentation}', seed {self.config.seed}",
            f"patch {' x '.join(map(str, self.configuration.patch_size))} voxels, batches of {self.config.batch_size}",
            f"transforms in order: {', '.join(self.recipe.names()) or 'none'}",
            "Grey values use the window of the original patch; outside a case the padding is 0.",
        ]

    def previous_channels(self) -> list[str]:
        """Return the names of the one-hot channels of the previous stage's prediction."""
        if self.configuration.previous_stage is None:
            return []
        return [f"previous stage: {self.labels.class_name(value)}" for value in self.labels.foreground_labels]

    def samples(self, cases: CaseStore | CascadeStore, count: int) -> Iterator[ShownSample]:
        """Yield the first samples, keeping one batch in memory."""
        plain, augmented = self._loader(cases, None), self._loader(cases, self.recipe)
        for number in range(count):
            step, index = divmod(number, augmented.batch_size)
            if index == 0:
                (images, maps), (changed_images, changed_maps) = (
                    _arrays(loader.batch(0, step)) for loader in (plain, augmented)
                )
                draws = augmented.draw(0, step)
            yield ShownSample(
                title=f"{draws[index].identifier}, from voxel {', '.join(map(str, draws[index].start))}",
                plain=images[index],
                plain_labels=maps[index, 0],
                augmented=changed_images[index],
                augmented_labels=changed_maps[index, 0],
                drawn=_drawn(draws[index]),
            )

    def _loader(self, cases: CaseStore | CascadeStore, recipe: Recipe | None) -> BatchLoader:
        """Return a loader whose targets are label maps, also for region-based labels."""
        from segwright.training.cascade import build_previous_stage
        from segwright.training.loading.batches import BatchLoader
        from segwright.training.loading.loaders import forced_share
        from segwright.training.loading.sampling import build_sampler

        values = {BACKGROUND: 0, **{f"label {value}": value for value in self.labels.foreground_labels}}
        if self.labels.ignore_label is not None:
            values[IGNORE] = self.labels.ignore_label
        assert self.config.batch_size is not None, "the batch size must be decided before"
        return BatchLoader(
            cases,
            self.identifiers,
            patch_size=self.configuration.patch_size,
            batch_size=self.config.batch_size,
            labels=Labels(values),
            recipe=recipe,
            previous=build_previous_stage(self.configuration, self.labels, recipe),
            oversample_foreground_percent=forced_share(self.config),
            oversample_by_chance=self.config.oversample_by_chance,
            sampler=build_sampler(self.config.sampler),
            seed=self.config.seed,
        )


def _arrays(batch: Batch) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    target = batch["target"]
    assert not isinstance(target, list), "without deep supervision there is one target"
    return batch["data"].numpy(), target.numpy()


def _drawn(draw: SampleDraw) -> list[tuple[str, str]]:
    """Return each transform with its parameters except seeds."""
    lines = []
    if draw.matrix is not None:
        lines.append(("spatial", augmentation_page.affine_text(draw.matrix)))
    for name, values in draw.augmentation.items():
        shown = [f"{key} {augmentation_page.parameter_text(value)}" for key, value in values.items() if key != "seed"]
        lines.append((name, "; ".join(shown)))
    return lines
