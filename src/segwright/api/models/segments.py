"""The codes of what a model segments, which DICOM objects have: guess, write and read them."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

from segwright.api.models.exchange import only_model
from segwright.api.models.finding import find_model
from segwright.core.errors import ModelError
from segwright.core.files.atomic_io import require_writable_folder
from segwright.core.files.names import path_problem
from segwright.data.description import load_description
from segwright.data.labels import Labels
from segwright.workspace import DATASET_JSON, SEGMENTS_JSON, Workspace

if TYPE_CHECKING:
    from segwright.deploy.dicom.codes import Segment

logger = getLogger(__name__)


def segments(
    model: Path | str,
    output: Path | str | None = None,
    *,
    overwrite: bool = False,
    workspace: Workspace | None = None,
) -> tuple[Segment, ...]:
    """Write `segments.json` with the codes of a model's classes, to be edited; read it if it exists.

    DICOM SEG and RTSTRUCT objects of the model's predictions have these names, codes and colours.

    Args:
        model: Model folder, folder written by `select`, name of an installed model, or name or id of a dataset.
        output: The file; by default in the model folder, where `predict` looks for it.
        overwrite: Replace an existing file by a new guess.
        workspace: Where models and results are; `./segwright-work` by default.

    Raises:
        SegwrightError: there is no such model, an existing file does not fit it, or pydicom is not installed.
    """
    from segwright.deploy.dicom.codes import guess_segments, read_segments, write_segments
    from segwright.inference.models.selected import find_selected, member_folders

    place = find_model(model, workspace)
    if wrong := path_problem(place, "folder"):
        raise ModelError(f"{place}: {wrong}; give a model folder, of a zip file after import-model or install")
    selected = find_selected(place)
    folder = selected or only_model(place, place)
    first = folder if selected is None else member_folders(selected)[0]
    labels = Labels.from_description(load_description(first / DATASET_JSON))
    file = folder / SEGMENTS_JSON if output is None else Path(output)
    if file.exists() and not overwrite:
        return read_segments(file, labels)
    require_writable_folder(file.parent)
    found = guess_segments(labels)
    write_segments(found, file, model=first.name)
    logger.info("%s: written", file)
    return found
