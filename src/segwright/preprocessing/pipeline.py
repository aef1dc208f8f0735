"""Preprocess one case, or a whole dataset into a case store.

nnU-Net behaviour 6.1, 6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import crop
from segwright.core.errors import DatasetError, DiskError, ImageError, Problem, ProblemReport, SegwrightError
from segwright.core.files.atomic_io import content_hash
from segwright.core.memory import available_bytes
from segwright.core.parallel import available_cpus, map_threads
from segwright.core.resources import resource_error
from segwright.core.torch_threads import TorchThreads
from segwright.data.cases import Case
from segwright.data.cropping import content_box, crop_to_nonzero
from segwright.data.dataset import Dataset
from segwright.data.images.image_io import Volume, read_images, read_label
from segwright.data.labels import Labels, distinct_values
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.provenance import Provenance, SourceFile
from segwright.data.stage_cache import identify
from segwright.preprocessing.class_locations import class_locations
from segwright.preprocessing.normalization import NormalizedView, normalize, normalized_view

if TYPE_CHECKING:  # prediction does not need the store, so it does not import blosc2
    from segwright.data.preprocessed.store import CaseStore

logger = getLogger(__name__)

FORMAT = 1
"""Version of the preprocessing; increase it when the output changes, so that stored cases are recomputed."""

_SHOWN_VALUES = 8

_MAX_SPACING_RATIO = 10.0
"""Spacings of similar scans differ by less than this factor."""
_MAX_SIZE_RATIO = 100.0
"""Limit of a case's voxels after resampling, relative to the median training case."""

Floats = npt.NDArray[np.float32]
_Grid = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]  # new shape, spacing before, spacing after


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionInput:
    """A case preprocessed for prediction."""

    image: Floats | NormalizedView  # (C, *S)
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessed:
    """A preprocessed case in memory."""

    image: Floats  # (C, *S)
    label: npt.NDArray[np.int16] | None  # (1, *S), -1 outside the non-zero region
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessReport:
    """Cases that were preprocessed, and cases that were up to date."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    plan: Plan
    configuration: Configuration
    labels: Labels
    reader: str
    store: CaseStore
    settings_hash: str
    """Hash of all settings that determine a preprocessed case, raw files apart."""


def target_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the number of voxels per axis after resampling.

    >>> target_shape((10, 20, 20), (5, 1, 1), (2.5, 0.8, 1))
    (20, 25, 20)
    """
    return tuple(round(old / new * extent) for extent, old, new in zip(shape, spacing, new_spacing, strict=True))


def full_spacing(configuration: Configuration, case_spacing: Sequence[float]) -> tuple[float, ...]:
    """Return the target spacing of all three axes; a 2D configuration keeps the case's slice spacing."""
    return (*case_spacing[: len(case_spacing) - len(configuration.spacing)], *configuration.spacing)


def preprocess_case(
    volume: Volume,
    label: npt.NDArray[Any] | None,
    plan: Plan,
    configuration: Configuration,
    *,
    threads: TorchThreads | None = None,
) -> Preprocessed:
    """Transpose, crop, normalise and resample a case (nnU-Net behaviour 6.1).

    Args:
        volume: the image as read.
        label: (1, *S) in the reader's axis order, None at inference.
        plan: the plan.
        configuration: one of its configurations.
        threads: limits the threads of resampling when several cases are preprocessed in parallel.

    Raises:
        ImageError: image and label differ in shape or the image does not fit the plan.
    """
    if label is not None and label.shape[1:] != volume.array.shape[1:]:
        raise ImageError(
            f"image has shape {volume.array.shape[1:]}, label {label.shape[1:]}; they must have the same grid"
        )
    image, marked, provenance = _cropped(volume, label, plan, configuration)
    _check_size(provenance, plan, configuration, len(image))
    cropped = None if label is None else marked
    image, cropped = _normalize_and_resample(image, cropped, marked, provenance, plan, configuration, threads)
    return Preprocessed(image=image, label=cropped, provenance=provenance)


def preprocess_for_prediction(volume: Volume, plan: Plan, configuration: Configuration) -> PredictionInput:
    """Preprocess a case for prediction; without resampling, the image is normalised lazily, patch by patch.

    Raises:
        ImageError: the image does not fit the plan.
    """
    image, mask, provenance = _cropped(volume, None, plan, configuration)
    _check_size(provenance, plan, configuration, len(image))
    if _grid(provenance, configuration)[0] == image.shape[1:]:
        view = normalized_view(
            image,
            configuration.normalization_schemes,
            configuration.use_mask_for_norm,
            plan.foreground_intensity_properties_per_channel,
        )
        if view is not None:
            return PredictionInput(image=view, provenance=provenance)
    image, _ = _normalize_and_resample(image, None, mask, provenance, plan, configuration)
    return PredictionInput(image=image, provenance=provenance)


def _cropped(
    volume: Volume, label: npt.NDArray[Any] | None, plan: Plan, configuration: Configuration
) -> tuple[Floats, npt.NDArray[np.int16] | None, Provenance]:
    """Transpose and crop; return image, label or mask (-1 outside the non-zero region), provenance."""
    order = plan.transpose_forward
    axes = (0, *(axis + 1 for axis in order))
    transposed = volume.array.transpose(axes)
    marked: npt.NDArray[np.int16] | None = None
    if label is None and not any(configuration.use_mask_for_norm):
        box = content_box(transposed)  # the mask is not needed
        image = crop(transposed, box)
    else:
        image, marked, box = crop_to_nonzero(transposed, None if label is None else label.transpose(axes))
    provenance = Provenance(
        properties=volume.properties,
        shape_before_cropping=tuple(transposed.shape[1:]),
        box=box,
        shape_after_cropping=tuple(image.shape[1:]),
        spacing=tuple(float(volume.spacing[axis]) for axis in order),
        transpose_forward=tuple(order),
        transpose_backward=tuple(plan.transpose_backward),
    )
    return image, marked, provenance


def _grid(provenance: Provenance, configuration: Configuration) -> _Grid:
    """Return shape and spacings of the resampled case.

    Raises:
        ImageError: it would have no voxel.
    """
    shape, spacing = provenance.shape_after_cropping, provenance.spacing
    new_spacing = full_spacing(configuration, spacing)
    grid = (target_shape(shape, spacing, new_spacing), spacing, new_spacing)
    if min(grid[0]) < 1:
        raise ImageError(
            f"shape {shape} at spacing {spacing} has no voxel at the target spacing {new_spacing}; check the "
            "spacing in the file's header"
        )
    return grid


def _check_size(provenance: Provenance, plan: Plan, configuration: Configuration, num_channels: int) -> None:
    """Check the size of the resampled case before memory is allocated; warn about an unusual spacing.

    Raises:
        ImageError: the resampled image exceeds the free memory, or spacing and size are both far from those of the
            training cases, as with a wrong header.
    """
    shape, spacing, new_spacing = _grid(provenance, configuration)
    usual = plan.original_median_spacing_after_transp
    sizes = zip(plan.original_median_shape_after_transp, usual, new_spacing, strict=False)
    times = prod(shape) / max(prod(size * old / new for size, old, new in sizes), 1.0)
    ratios = [own / other for own, other in zip(spacing, usual, strict=False)]
    is_far = any(not 1 / _MAX_SPACING_RATIO <= ratio <= _MAX_SPACING_RATIO for ratio in ratios)
    needed, free = 4 * num_channels * prod(shape), available_bytes()
    case_text = f"shape {provenance.shape_after_cropping} at spacing {_rounded(spacing)}"
    median = f"the median training case has spacing {_rounded(usual)}; check the spacing in the file's header"
    if needed > free or (is_far and times > _MAX_SIZE_RATIO):
        raise ImageError(
            f"{case_text} becomes {shape} at spacing {_rounded(new_spacing)}, which needs {needed / 2**30:.3g} GiB "
            f"({free / 2**30:.3g} GiB are free) and is {times:.3g} times the size of a training case; {median}"
        )
    if is_far:
        logger.warning("%s: %s", case_text, median)


def _rounded(spacing: Sequence[float]) -> str:
    return f"({', '.join(f'{extent:.4g}' for extent in spacing)})"


def _normalize_and_resample(
    image: Floats,
    label: npt.NDArray[np.int16] | None,
    mask: npt.NDArray[np.int16] | None,
    provenance: Provenance,
    plan: Plan,
    configuration: Configuration,
    threads: TorchThreads | None = None,
) -> tuple[Floats, npt.NDArray[np.int16] | None]:
    """Normalise and resample a cropped image, whose `mask` is -1 outside, and resample its label."""
    grid = _grid(provenance, configuration)
    image = normalize(
        image,
        configuration.normalization_schemes,
        configuration.use_mask_for_norm,
        mask,
        plan.foreground_intensity_properties_per_channel,
    )
    if grid[0] != image.shape[1:]:
        if threads is not None:
            threads.limit()
        image, label = _resample(image, label, grid, configuration)
    return image.astype(np.float32, copy=False), label


def _resample(
    image: Floats, label: npt.NDArray[np.int16] | None, grid: _Grid, configuration: Configuration
) -> tuple[Floats, npt.NDArray[np.int16] | None]:
    # A late import: importing torch takes longer than preprocessing a small dataset that needs no resampling.
    from segwright.preprocessing.resampling import resample_image, resample_label

    image = resample_image(image, *grid, configuration.resampling_fn_data, configuration.resampling_fn_data_kwargs)
    if label is not None:
        label = resample_label(label, *grid, configuration.resampling_fn_seg, configuration.resampling_fn_seg_kwargs)
    return image, label


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
    job = _job(dataset, plan, configuration_name, store)
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
            lambda case: _attempt(case, job, threads),
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
        done=tuple(case.identifier for case, was_made in outcome if was_made),
        skipped=tuple(case.identifier for case, was_made in outcome if not was_made),
    )


def replaced_cases(dataset: Dataset, plan: Plan, configuration_name: str, store: CaseStore) -> list[str]:
    """Return the cases in the store that `preprocess_dataset` would replace or remove."""
    job = _job(dataset, plan, configuration_name, store)
    cases = {case.identifier: case for case in dataset.cases}
    return [name for name in store.identifiers() if name not in cases or not _is_fresh(cases[name], job)]


def _job(dataset: Dataset, plan: Plan, configuration_name: str, store: CaseStore) -> _Job:
    configuration = plan.configuration(configuration_name)
    labels = Labels.from_description(dataset.description)
    settings = {
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
    return _Job(
        plan=plan,
        configuration=configuration,
        labels=labels,
        reader=plan.image_reader_writer,
        store=store,
        settings_hash=content_hash(settings),
    )


def _attempt(case: Case, job: _Job, threads: TorchThreads) -> bool | Problem:
    """Return whether the case had to be preprocessed, or the problem that prevented it."""
    try:
        return _preprocess_case(case, job, threads)
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


def _preprocess_case(case: Case, job: _Job, threads: TorchThreads) -> bool:
    if case.label is None:
        raise DatasetError(f"no label file for {case.images[0]}; every training case needs one")
    sources, made_from = _made_from(case, case.label, job)
    if job.store.is_fresh(case.identifier, made_from):
        return False
    volume = read_images(case.images, job.reader)
    label = read_label(case.label, job.reader, like=volume.header)
    unexpected = job.labels.undeclared(distinct_values(label.array))
    if unexpected:
        raise DatasetError(
            f"{case.label}: unexpected label value {', '.join(map(str, unexpected[:_SHOWN_VALUES]))}; dataset.json "
            f"declares {', '.join(map(str, job.labels.declared_values))}; correct the label file or dataset.json"
        )
    prepared = preprocess_case(volume, label.array, job.plan, job.configuration, threads=threads)
    assert prepared.label is not None
    job.store.save(
        case.identifier,
        prepared.image,
        prepared.label,
        class_locations(prepared.label, job.labels.class_keys),
        prepared.provenance,
        patch_size=job.configuration.patch_size,
        source_hash=made_from,
        sources=sources,
    )
    return True


def _is_fresh(case: Case, job: _Job) -> bool:
    return case.label is not None and job.store.is_fresh(case.identifier, _made_from(case, case.label, job)[1])


def _made_from(case: Case, label: Path, job: _Job) -> tuple[list[SourceFile], str]:
    """Return a case's raw files, and a hash of everything that determines its preprocessed form."""
    sources = identify([*case.images, label], job.store.recorded_sources(case.identifier))
    return sources, content_hash([job.settings_hash, [[file.name, file.sha256] for file in sources]])
