"""Convert datasets of other layouts into raw datasets in nnU-Net's, and ours into those that nnU-Net itself reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path

from segwright.core.errors import ConfigError, WorkspaceError, did_you_mean
from segwright.core.files.atomic_io import require_writable_folder
from segwright.core.files.locks import locked
from segwright.core.files.names import path_problem, require_name, require_text_path
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.interop.datasets.conversion import (
    CONVERSION_JSON,
    DATASET_NAME,
    Conversion,
    Converted,
    require_own,
    suggested_name,
    write_conversion,
)
from segwright.interop.datasets.decathlon import find_msd, find_nnunet_v1
from segwright.interop.datasets.folders import find_cases, folders_conversion
from segwright.interop.datasets.proposal import propose
from segwright.interop.datasets.raw import find_raw
from segwright.workspace import Workspace

logger = getLogger(__name__)

FORMATS = ("msd", "nnunet-v1", "folders", "dicom", "nnunet")


def convert(
    kind: str,
    source: Path | str,
    target: Path | str,
    *,
    link: bool = False,
    images: str | None = None,
    labels: str | None = None,
    channel_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    names: Sequence[str] = (),
    series: Sequence[str] = (),
    workers: int | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    review: Callable[[Conversion, Path], bool] | None = None,
) -> Converted | None:
    """Convert a dataset of another layout into a raw dataset in nnU-Net's; the source is never changed.

    All problems of the source are found before anything is written. An interrupted conversion continues when it is
    started again. `conversion.json` in the new dataset lists where each file came from.

    Args:
        kind: `msd` (a task of the Medical Segmentation Decathlon), `nnunet-v1`, `folders` (images and label maps that
            are matched by their names, or by a table of paths), `dicom` (series with SEG or RTSTRUCT objects, in any
            folders), or `nnunet` (a raw dataset of ours, which becomes one
            that nnU-Net itself reads: label maps with mapped values, no file lists, no keys that it does not have).
        source: Folder of the task, of images and label maps, or the table (CSV).
        target: New dataset folder. If it is an existing folder, such as that of all raw datasets, the new dataset of a
            task is written below it, named after the task (`Task04_X`: `Dataset004_X`).
        link: Make hard links instead of copies.
        images: For `folders`: folder of the images, or pattern of their paths such as `scans/{case}_{channel}.nii.gz`.
        labels: The same for label maps.
        channel_names: For `folders`: names of the channels; proposed by default. For `dicom`: several are chosen among
            the series of a study by their descriptions; by default the annotated series is the only channel.
        label_names: For `folders`: names of the labels but the background, by ascending value; proposed by default.
        names: For `dicom`: `NAME=LABEL` for each name in the objects that becomes a label (`*` in a name stands for any
            text), or a JSON file of such pairs. Other names are left out. By default every name is a label.
        series: For `dicom`: the series of each channel, as for `predict`.
        workers: Threads; all CPUs by default.
        environment: For `nnunet`: variables that paths in file lists may contain.
        review: Called with what will be written and where; the conversion ends without a result if it returns False.

    Raises:
        SegwrightError: the source has problems (a `ProblemReport` lists all), or the target exists or is not writable.

    Examples:
        >>> convert("folders", "scans", "raw/Dataset005_Scans", channel_names=["MRI"])  # doctest: +SKIP
    """
    if kind not in FORMATS:
        raise ConfigError(f"unknown format '{kind}'{did_you_mean(kind, FORMATS)}")
    place = Path(os.path.abspath(require_text_path(Path(source))))
    if (kind != "folders" or not place.is_file()) and (wrong := path_problem(place, "folder")):
        is_packed = place.name.endswith((".tar", ".tar.gz", ".tgz", ".zip")) and place.is_file()
        remedy = "unpack it, and give the folder" if is_packed else "give the folder of the dataset to convert"
        raise WorkspaceError(f"{place}: {wrong}; {remedy}")
    _require_options_of(
        kind,
        folders={"images": images, "labels": labels, "label_names": label_names, "channel_names": channel_names},
        dicom={"names": names or None, "series": series or None, "channel_names": channel_names},
    )
    new = _dataset_folder(Path(os.path.abspath(require_text_path(Path(target)))), place, kind)
    if kind == "folders":
        matching = find_cases(place, images=images, labels=labels)
        root = place.parent if place.is_file() else place
        proposal = propose(root, matching, channel_names=channel_names, label_names=label_names, workers=workers)
        found = folders_conversion(place, proposal)
    elif kind == "dicom":
        from segwright.deploy.dicom.converting import find_dicom

        if link:
            raise ConfigError("link: voxels of DICOM files are written to new files; leave it out")
        found = find_dicom(place, names=names, channel_names=channel_names, series=series)
    elif kind == "nnunet":
        found = find_raw(place, environment=environment, workers=workers)
    else:
        found = find_msd(place) if kind == "msd" else find_nnunet_v1(place)
    for note in found.notes:
        logger.warning("%s", note)
    if kind == "nnunet" and not DATASET_NAME.fullmatch(new.name):
        logger.warning("%s: nnU-Net finds a dataset by a name such as Dataset123_Name; give the folder one", new)
    if review is not None and not review(found, new):
        return None
    with locked(Workspace.lock_beside(new), "converting"):
        return write_conversion(found, new, link=link)


def _require_options_of(kind: str, **options: Mapping[str, object]) -> None:
    """Check that only options of a format are given; `options` has those of formats with some, None if not given.

    Raises:
        ConfigError: one is of other formats.
    """
    for name in dict.fromkeys(name for of_format in options.values() for name in of_format):
        formats = [each for each, of_format in options.items() if name in of_format]
        if kind not in formats and options[formats[0]][name] is not None:
            raise ConfigError(f"{name}: only for the format '{' or '.join(formats)}'; leave it out")


def _dataset_folder(target: Path, source: Path, kind: str) -> Path:
    """Return the folder of the new dataset: the target, or one below it if that is a folder of datasets.

    Raises:
        WorkspaceError: it would be in the source, it cannot be written to, it holds something else, or its id is taken.
    """
    require_writable_folder(target)
    require_name(target.name, "the name of a dataset,", error=WorkspaceError)
    name = suggested_name(source, kind)
    is_started = (target / CONVERSION_JSON).is_file() or Workspace.lock_beside(target).is_file()  # by a killed process
    new = target if is_started or name is None or not target.exists() else target / name
    if source.is_dir() and new.resolve().is_relative_to(source.resolve()):
        raise WorkspaceError(f"{new}: lies in the source, which is never written to; name a folder elsewhere")
    require_writable_folder(new)
    require_own(new)
    number = new.name.partition("_")[0]
    taken = [folder.name for folder in new.parent.glob(f"{number}_*") if folder.name != new.name]
    if new == target or not taken:
        return new
    raise WorkspaceError(
        f"{new}: its id is taken by {taken[0]}; name the new dataset yourself, such as {new.parent / 'Dataset123_Name'}"
    )
