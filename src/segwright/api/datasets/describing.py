"""Write the dataset.json of a folder of images and label maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path

from segwright.core.errors import ProblemReport, WorkspaceError
from segwright.core.files.atomic_io import require_writable_folder, sweep_leftovers
from segwright.core.files.json_documents import write_json
from segwright.core.files.names import path_problem, require_text_path
from segwright.data.dataset import scan
from segwright.data.description import DatasetDescription
from segwright.interop.datasets.folders import find_cases
from segwright.interop.datasets.proposal import Proposal, propose
from segwright.workspace import DATASET_JSON

logger = getLogger(__name__)


def init(
    folder: Path | str,
    *,
    images: str | None = None,
    labels: str | None = None,
    channel_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    force: bool = False,
    workers: int | None = None,
    review: Callable[[Proposal], Proposal | None] | None = None,
) -> Proposal | None:
    """Look at a folder of images and label maps and write its dataset.json; other files are never changed.

    Files in nnU-Net's raw layout stay unlisted; otherwise dataset.json lists the files of each case.

    Args:
        folder: Folder of the dataset.
        images: Folder of the images below it, or pattern of their paths such as `scans/{case}_{channel}.nii.gz`.
        labels: The same for label maps.
        channel_names: Names of the channels; proposed by default.
        label_names: Names of the labels but the background, by ascending value; proposed by default.
        force: Overwrite an existing dataset.json.
        workers: Threads; all CPUs by default.
        review: Called with the proposal; what it returns is written, nothing if that is None.

    Raises:
        SegwrightError: something cannot be decided or `check` would refuse the dataset (a `ProblemReport` lists all),
            or there is a dataset.json.

    Examples:
        >>> init("scans", channel_names=["MRI"], label_names=["anterior", "posterior"])  # doctest: +SKIP
    """
    place = Path(os.path.abspath(require_text_path(Path(folder))))
    if wrong := path_problem(place, "folder"):
        raise WorkspaceError(f"{place}: {wrong}; give the folder that holds images and label maps")
    file = place / DATASET_JSON
    if file.exists() and not force:
        raise WorkspaceError(f"{file}: exists; check it with 'segwright check', or overwrite it with --force")
    require_writable_folder(place)
    matching = find_cases(place, images=images, labels=labels)
    proposal = propose(place, matching, channel_names=channel_names, label_names=label_names, workers=workers)
    if matching.test:
        count, first = len(matching.test), matching.test[0].identifier
        logger.warning("%s: %d cases without a label map or for tests are not listed (first %s)", place, count, first)
    for note in proposal.notes:
        logger.warning("%s", note)
    chosen = proposal if review is None else review(proposal)
    if chosen is not None:
        description = DatasetDescription.model_validate(chosen.document())
        if problems := scan(place, description=description).problems:  # of the names that `review` chose
            raise ProblemReport(problems)
        sweep_leftovers(place, {DATASET_JSON})
        write_json(file, chosen.document(), indent=4)
    return chosen
