"""nnU-Net's commands that prepare a dataset: fingerprint, plans, preprocessing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Final

from segwright import api
from segwright.cli.nnunet import folders, names
from segwright.cli.nnunet.options import Command, Values, flag, value, values
from segwright.cli.options import environment
from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.json_documents import read_json, write_json
from segwright.data.dataset import load
from segwright.data.images.image_io import files_beside, read_label, write_labels
from segwright.data.labels import parse_label_map
from segwright.data.plan import Plan
from segwright.planning import presets
from segwright.workspace import Workspace

logger = getLogger(__name__)

REFERENCES: Final = "gt_segmentations"
"""Folder of the reference label maps beside the preprocessed data."""

MAP_JSON: Final = "label_map.json"
"""In this folder: the `label_map` with which its files were written, if there was one."""

CONFIGURATIONS: Final = ("2d", "3d_fullres", "3d_lowres")
"""Those that are preprocessed by default; a cascade's second stage shares the data of `3d_fullres`."""

_DATASETS = values("-d", about="Ids or names of the datasets.", is_required=True)
_EXTRACTOR = value(
    "-fpe",
    about="Fingerprint extractor class; only the default.",
    default="DatasetFingerprintExtractor",
    only="DatasetFingerprintExtractor",
    no_effect="Segwright has only nnU-Net's default extractor",
)
_VERIFY = flag("--verify_dataset_integrity", about="The dataset is always checked.")
_CLEAN = flag("--clean", about="Measure again even if nothing changed.")
_QUIET = flag("--no_pbar", about="There is no progress bar unless stderr is a terminal.")
_VERBOSE = flag("--verbose", about="More messages.")
_PLANNER = (
    value("-pl", about="Planner class.", default="ExperimentPlanner"),
    value("-gpu_memory_target", about="GPU memory in GB (default: the planner's).", kind=float),
    value(
        "-preprocessor_name",
        about="Preprocessor class; only the default.",
        default="DefaultPreprocessor",
        only="DefaultPreprocessor",
        no_effect="Segwright has only nnU-Net's default preprocessor",
    ),
    values("-overwrite_target_spacing", about="Target spacing, three numbers.", kind=float),
    value("-overwrite_plans_name", about="Name of the plans (default: the planner's)."),
)
_PREPROCESSING = (
    values("-c", about="Configurations; those that the plans lack are skipped.", default=CONFIGURATIONS),
    values("-np", about="Number of threads, or one for each configuration (default: all CPUs).", kind=int),
)


def extract_fingerprint(arguments: Values) -> None:
    """Measure shapes, spacings and intensities of datasets."""
    workspace = folders.preparing_workspace()
    for raw in _raw_datasets(workspace, arguments):
        _measure(workspace, raw, arguments, arguments.optional_number("-np"))


def plan_experiment(arguments: Values) -> None:
    """Plan datasets whose fingerprint exists."""
    workspace = folders.preparing_workspace()
    for raw in _raw_datasets(workspace, arguments):
        _plan(workspace, raw, arguments)


def preprocess(arguments: Values) -> None:
    """Preprocess datasets whose plans exist."""
    workspace = folders.preparing_workspace()
    for raw in _raw_datasets(workspace, arguments):
        _preprocess(workspace, raw, arguments.text("-plans_name"), arguments)


def plan_and_preprocess(arguments: Values) -> None:
    """Measure, plan and preprocess datasets."""
    workspace = folders.preparing_workspace()
    raw_datasets = list(_raw_datasets(workspace, arguments))
    for raw in raw_datasets:
        _measure(workspace, raw, arguments, arguments.optional_number("-npfp"))
    planned = [_plan(workspace, raw, arguments) for raw in raw_datasets]
    if arguments.is_set("--no_pp"):
        return
    for raw, plan in zip(raw_datasets, planned, strict=True):
        _preprocess(workspace, raw, plan.plans_name, arguments)


def move_plans_between_datasets(arguments: Values) -> None:
    """Copy plans to another dataset, whose data are then preprocessed in the same way."""
    workspace = folders.preparing_workspace()
    source, plans = folders.dataset_name(arguments.text("-s")), arguments.text("-sp")
    folders.load_plan(workspace, source, plans)  # raises if there are none
    api.move_plans(
        workspace.plans_file(source, plans),
        folders.raw_dataset(workspace, arguments.text("-t")),
        workspace=workspace,
        name=arguments.optional("-tp") or plans,
        force=True,
        environment=environment(),
    )


COMMANDS: Final = {
    "extract_fingerprint": Command(
        function=extract_fingerprint,
        options=(
            _DATASETS,
            _EXTRACTOR,
            value("-np", about="Number of threads (default: all CPUs).", kind=int),
            *(_VERIFY, _CLEAN, _VERBOSE, _QUIET),
        ),
        ignores_unknown=True,
    ),
    "plan_experiment": Command(function=plan_experiment, options=(_DATASETS, *_PLANNER), ignores_unknown=True),
    "preprocess": Command(
        function=preprocess,
        options=(
            _DATASETS,
            value("-plans_name", about="Name of the plans.", default=names.PLANS),
            *_PREPROCESSING,
            *(_VERBOSE, _QUIET),
        ),
        ignores_unknown=True,
    ),
    "plan_and_preprocess": Command(
        function=plan_and_preprocess,
        options=(
            *(_DATASETS, _EXTRACTOR),
            value("-npfp", about="Number of threads of the fingerprint (default: all CPUs).", kind=int),
            *(_VERIFY, flag("--no_pp", about="Do not preprocess."), _CLEAN),
            *(*_PLANNER, *_PREPROCESSING, _VERBOSE, _QUIET),
        ),
    ),
    "move_plans_between_datasets": Command(
        function=move_plans_between_datasets,
        options=(
            value("-s", about="Dataset with the plans.", is_required=True),
            value("-t", about="Dataset that gets them.", is_required=True),
            value("-sp", about="Name of the plans.", is_required=True),
            value("-tp", about="Name of the new plans (default: the same)."),
        ),
    ),
}


def _raw_datasets(workspace: Workspace, arguments: Values) -> Iterator[Path]:
    for text in arguments.texts("-d"):
        yield folders.raw_dataset(workspace, text)


def _measure(workspace: Workspace, raw: Path, arguments: Values, workers: int | None) -> None:
    api.fingerprint(
        raw, workspace=workspace, workers=workers, force=arguments.is_set("--clean"), environment=environment()
    )


def _plan(workspace: Workspace, raw: Path, arguments: Values) -> Plan:
    """Write the plans, in place of existing ones as nnU-Net does."""
    return api.plan(raw, workspace=workspace, options=plan_options(arguments), force=True, environment=environment())


def plan_options(arguments: Values) -> api.PlanOptions:
    """Return the options of plans that a planner class and its options stand for.

    Raises:
        ConfigError: there is no such planner, or the spacing has not three numbers.
    """
    planners = {
        presets.preset(name, resampling).planner: (name, resampling)
        for resampling in reversed(presets.RESAMPLINGS)
        for name, preset in presets.PRESETS.items()
        if preset.network is not presets.Network.MEDNEXT  # not one of nnU-Net's
    }
    planner, spacing = arguments.text("-pl"), [float(size) for size in arguments.texts("-overwrite_target_spacing")]
    if planner not in planners:
        raise ConfigError(f"-pl {planner}: unknown planner{did_you_mean(planner, planners)}")
    if spacing and len(spacing) != 3:
        raise ConfigError(f"-overwrite_target_spacing: expected three numbers, found {len(spacing)}")
    chosen, resampling = planners[planner]
    return api.PlanOptions(
        preset=chosen,
        resampling=resampling,
        gpu_memory_gb=arguments.optional_real("-gpu_memory_target"),
        spacing=(spacing[0], spacing[1], spacing[2]) if spacing else None,
        name=arguments.optional("-overwrite_plans_name"),
    )


def _preprocess(workspace: Workspace, raw: Path, plans_name: str, arguments: Values) -> None:
    wanted = arguments.texts("-c")
    workers = dict(zip(wanted, num_threads(wanted, arguments.numbers("-np")), strict=True))
    preprocess_configurations(workspace, raw, plans_name, workers)


def preprocess_configurations(
    workspace: Workspace, raw: Path, plans_name: str, workers: Mapping[str, int | None]
) -> None:
    """Preprocess configurations and copy the reference label maps; configurations that plans lack are skipped.

    Args:
        workspace: where preprocessed data are.
        raw: the dataset.
        plans_name: name of its plans.
        workers: threads of each configuration.

    Raises:
        PlanError: there are no such plans.
    """
    plan = folders.load_plan(workspace, raw.name, plans_name)
    for name, count in workers.items():
        if name not in plan.configurations:
            logger.info("%s: %s has no configuration %s, skipped", raw.name, plans_name, name)
            continue
        api.preprocess(
            raw,
            workspace=workspace,
            plans=plans_name,
            configurations=[name],
            workers=count,
            environment=environment(),
        )
    copy_references(workspace, raw)


def num_threads(names: Sequence[str], numbers: Sequence[int]) -> Sequence[int | None]:
    """Return the number of threads of each configuration; None: all CPUs.

    Raises:
        ConfigError: there are several numbers, but not one for each configuration.
    """
    if any(number < 1 for number in numbers):
        raise ConfigError(f"-np {min(numbers)}: expected at least 1")
    if len(numbers) < 2:
        return [numbers[0] if numbers else None] * len(names)
    if len(numbers) != len(names):
        raise ConfigError(f"-np: {len(numbers)} numbers for {len(names)} configurations; give one, or one for each")
    return numbers


def copy_references(workspace: Workspace, raw: Path) -> None:
    """Copy the reference label maps beside the preprocessed data, with the values that dataset.json maps them to.

    Copies are made anew if a file or the map has changed since.
    """
    dataset = load(raw, environment=environment())
    target = workspace.preprocessed_dataset(raw.name) / REFERENCES
    target.mkdir(parents=True, exist_ok=True)
    label_map, used = dataset.description.label_map, target / MAP_JSON
    is_same_map = label_map == (parse_label_map(read_json(used)) if used.is_file() else {})
    for case in dataset.cases:
        if case.label is None:
            continue
        copy = target / f"{case.identifier}{dataset.description.file_ending}"
        if is_same_map and copy.is_file() and copy.stat().st_mtime_ns >= case.label.stat().st_mtime_ns:
            continue
        if label_map:
            volume = read_label(case.label, dataset.reader, label_map=label_map)
            write_labels(volume.array[0].astype(int), copy, volume.properties, dataset.reader)
            continue
        for file in (case.label, *files_beside(case.label)):
            with atomic_path(copy if file == case.label else target / file.name) as temporary:
                shutil.copyfile(file, temporary)
    if not is_same_map:
        write_json(used, {str(value): label for value, label in label_map.items()})
