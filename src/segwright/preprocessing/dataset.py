"""Preprocess all cases of a dataset into a case store, skipping those that are up to date."""

from __future__ import annotations

from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from segwright.core.errors import DatasetError, DiskError, Problem, ProblemReport, SegwrightError
from segwright.core.files.hashing import content_hash
from segwright.core.parallel import available_cpus, map_threads
from segwright.core.resources import resource_error
from segwright.core.torch_threads import TorchThreads
from segwright.data.cases import Case
from segwright.data.dataset import Dataset
from segwright.data.images.image_io import read_images, read_label
from segwright.data.label_maps import distinct_values
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.provenance import SourceFile
from segwright.data.preprocessed.store import CaseStore
from segwright.data.stage_cache import hash_files
from segwright.preprocessing.class_locations import class_locations
from segwright.preprocessing.pipeline import preprocess_case

logger = getLogger(__name__)

FORMAT = 1
"""Version of the preprocessing; increase it when the output changes, so that stored cases are recomputed."""

_SHOWN_VALUES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessReport:
    """What a preprocessing did.

    Attributes:
        done: names of the cases that were preprocessed.
        skipped: names of the cases that were up to date.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What the preprocessing of each case of a dataset needs."""

    plan: Plan
    configuration: Configuration
    labels: Labels
    reader: str
    store: CaseStore
    settings_hash: str
    """Hash of all settings that determine a preprocessed case, raw files apart."""


def preprocess_dataset(
    dataset: Dataset, plan: Plan, configuration_name: str, store: CaseStore, *, workers: int | None = None
) -> PreprocessReport:
    """Preprocess all cases that are missing or outdated in the store; remove cases that the dataset no longer has.

    A failing case does not stop the others.

    Raises:
        ProblemReport: the cases that failed, after all others were preprocessed.
    """
    if clashes := store.clash_problems(dataset.name, [case.identifier for case in dataset.cases]):
        raise ProblemReport(clashes)
    task = _task(dataset, plan, configuration_name, store)
    store.sweep()
    known = {case.identifier for case in dataset.cases}
    for identifier in store.identifiers():
        if identifier not in known:
            logger.info("%s: removing case %s, which the dataset no longer has", store.folder, identifier)
            store.remove(identifier)
    # Cases in parallel use the cores better than many threads on one small array.
    num_parallel = max(1, min(available_cpus() if workers is None else workers, len(dataset.cases)))
    with TorchThreads(max(1, available_cpus() // num_parallel)) as threads:
        results = map_threads(
            lambda case: _try_update_case(case, task, threads),
            dataset.cases,
            workers=num_parallel,
            describe=lambda case: case.identifier,
            title=f"preprocessing {configuration_name}",
        )
    problems = [result for result in results if isinstance(result, Problem)]
    if problems:
        raise ProblemReport(problems)
    outcome = list(zip(dataset.cases, results, strict=True))
    return PreprocessReport(
        done=tuple(case.identifier for case, was_updated in outcome if was_updated),
        skipped=tuple(case.identifier for case, was_updated in outcome if not was_updated),
    )


def replaced_cases(dataset: Dataset, plan: Plan, configuration_name: str, store: CaseStore) -> list[str]:
    """Return the cases in the store that `preprocess_dataset` would replace or remove."""
    task = _task(dataset, plan, configuration_name, store)
    cases = {case.identifier: case for case in dataset.cases}
    return [name for name in store.identifiers() if name not in cases or not _is_fresh(cases[name], task)]


def _task(dataset: Dataset, plan: Plan, configuration_name: str, store: CaseStore) -> _Task:
    configuration = plan.configuration(configuration_name)
    labels = Labels.from_description(dataset.description)
    settings: dict[str, Any] = {
        "format": FORMAT,
        "reader": plan.image_reader_writer,
        "transpose": plan.transpose_forward,
        "spacing": configuration.spacing,
        "normalization": [configuration.normalization_schemes, configuration.use_mask_for_norm],
        "intensities": plan.foreground_intensity_properties_per_channel,
        "image": [configuration.resampling_fn_data, configuration.resampling_fn_data_kwargs],
        "label": [configuration.resampling_fn_seg, configuration.resampling_fn_seg_kwargs],
        "classes": labels.class_keys,
    }
    if labels.label_map:
        settings["label_map"] = dict(labels.label_map)
    return _Task(
        plan=plan,
        configuration=configuration,
        labels=labels,
        reader=plan.image_reader_writer,
        store=store,
        settings_hash=content_hash(settings),
    )


def _try_update_case(case: Case, task: _Task, threads: TorchThreads) -> bool | Problem:
    """Return whether the case had to be preprocessed, or the problem that prevented it."""
    try:
        return _update_case(case, task, threads)
    except DiskError:  # the other cases would fail too
        raise
    except SegwrightError as error:
        return Problem(where=f"case {case.identifier}", what=str(error))
    except Exception as error:  # one broken case must not stop the others
        resource = resource_error(error)
        if isinstance(resource, DiskError):
            raise resource from error
        if resource is not None:
            return Problem(where=f"case {case.identifier}", what=str(resource))
        logger.debug("case %s", case.identifier, exc_info=True)
        return Problem(where=f"case {case.identifier}", what=f"{type(error).__name__}: {error}")


def _update_case(case: Case, task: _Task, threads: TorchThreads) -> bool:
    """Preprocess and store a case unless it is up to date; return whether that was necessary."""
    if case.label is None:
        raise DatasetError(f"no label file for {case.images[0]}; every training case needs one")
    sources, source_hash = _sources_and_hash(case, case.label, task)
    if task.store.is_fresh(case.identifier, source_hash):
        return False
    volume = read_images(case.images, task.reader)
    label = read_label(case.label, task.reader, like=volume.header, label_map=task.labels.label_map)
    unexpected = task.labels.undeclared(distinct_values(label.array))
    if unexpected:
        raise DatasetError(
            f"{case.label}: unexpected label value {', '.join(map(str, unexpected[:_SHOWN_VALUES]))}; dataset.json "
            f"declares {', '.join(map(str, task.labels.declared_values))}; correct the label file or dataset.json"
        )
    prepared = preprocess_case(volume, label.array, task.plan, task.configuration, threads=threads)
    assert prepared.label is not None
    task.store.save(
        case.identifier,
        prepared.image,
        prepared.label,
        class_locations(prepared.label, task.labels.class_keys),
        prepared.provenance,
        patch_size=task.configuration.patch_size,
        source_hash=source_hash,
        sources=sources,
    )
    return True


def _is_fresh(case: Case, task: _Task) -> bool:
    return case.label is not None and task.store.is_fresh(case.identifier, _sources_and_hash(case, case.label, task)[1])


def _sources_and_hash(case: Case, label: Path, task: _Task) -> tuple[list[SourceFile], str]:
    """Return a case's raw files, and a hash of everything that determines its preprocessed form."""
    sources = hash_files([*case.images, label], task.store.recorded_sources(case.identifier))
    return sources, content_hash([task.settings_hash, [[file.name, file.sha256] for file in sources]])
