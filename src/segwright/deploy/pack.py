"""Pack a model with its card into one zip file, and check what was unpacked against the card."""

from __future__ import annotations

import shutil
from logging import getLogger
from pathlib import Path
from typing import Final

from segwright.core.errors import ModelError
from segwright.core.files.atomic_io import atomic_path, sweep_leftovers, temporary_folder, write_text
from segwright.core.files.hashing import file_hash
from segwright.core.files.json_documents import read_json, write_checked_json, write_json
from segwright.core.files.zip_files import write_zip
from segwright.deploy.card_facts import describe_model, members_of
from segwright.deploy.model_card import CARD_JSON, CARD_MD, ModelCard, is_known_license, read_card, to_markdown
from segwright.inference.export.postprocessing import POSTPROCESSING_JSON
from segwright.inference.models.selected import MEMBERS, SELECTION_JSON, copy_model, is_selected
from segwright.inference.reliability.calibration import CALIBRATION_JSON
from segwright.inference.reliability.expected_dice import QUALITY_JSON
from segwright.workspace import DATASET_JSON, SEGMENTS_JSON

logger = getLogger(__name__)

_OF_SELECTION: Final = (SELECTION_JSON, POSTPROCESSING_JSON, QUALITY_JSON, CALIBRATION_JSON)
_NAMES_CASES: Final = ("dataset", "groups", "training", "test")
"""Keys of a dataset.json that name cases, files or patients; prediction does not need them."""
_OF_SYSTEMS: Final = ("__MACOSX", ".DS_Store", "Thumbs.db")
"""Files that systems add to folders."""


def write_pack(model: Path, target: Path, *, name: str, **given: str) -> ModelCard:
    """Write a zip file with what prediction needs of a model, and its card; names of cases are left out.

    Args:
        model: a selected model, or a model folder; the final checkpoints of its folds are packed.
        target: the new zip file.
        name: of the model.
        given: what its authors say; see `describe_model`.

    Raises:
        ModelError: the model is of nnU-Net, needs code of its folder, or lacks a file.
        SegwrightError: a document is damaged, or the file cannot be written.
    """
    folder = target.with_suffix(".folder")
    sweep_leftovers(target.parent, {target.name, folder.name})
    members = members_of(model)
    with atomic_path(target) as temporary, temporary_folder(folder) as scratch:
        root = scratch / (name if is_selected(model) else model.name)  # which names the configuration
        root.mkdir()
        for member in members:
            place = root / MEMBERS / member.source.folder.name if is_selected(model) else root
            copy_model(member.source, place, with_records=False)
        for document in (*(_OF_SELECTION if is_selected(model) else ()), SEGMENTS_JSON):
            if (model / document).is_file():
                shutil.copyfile(model / document, root / document)
        for file in sorted(root.rglob(DATASET_JSON)):
            content = read_json(file)
            write_json(file, {key: value for key, value in content.items() if key not in _NAMES_CASES}, indent=4)
        card = describe_model(model, name, members_of(root), **given)  # with the hashes of the packed models
        write_text(root / CARD_MD, to_markdown(card))
        files = {path.relative_to(root).as_posix(): file_hash(path) for path in _files(root)}
        card = card.model_copy(update={"files": files})
        write_checked_json(root / CARD_JSON, card.to_json())
        write_zip(scratch, temporary, compress=False)  # weights hardly shrink
    return card


def find_packs(root: Path) -> list[Path]:
    """Return the folders, at or below one, that hold a packed model."""
    return [file.parent for file in sorted(root.rglob(CARD_JSON)) if "__MACOSX" not in file.parts]


def checked_card(folder: Path) -> ModelCard | None:
    """Check the files of an unpacked model against its card, and return the card; None if it has none.

    Only `MODEL_CARD.md` may differ, with a warning. A warning also names a license that nobody knows.

    Raises:
        ModelError: a file is missing, was changed or added, or the card has no license.
    """
    card = read_card(folder)
    if card is None:
        return None
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name in sorted(card.files.keys() | found.keys()):
        if name not in found:
            raise ModelError(f"{folder / name}: is missing, but {CARD_JSON} lists it; download the pack again")
        if name not in card.files:
            raise ModelError(f"{folder / name}: is not listed in {CARD_JSON}; the pack was changed, download it again")
        if file_hash(found[name]) == card.files[name]:
            continue
        if name != CARD_MD:
            raise ModelError(
                f"{folder / name}: its SHA-256 is not that in {CARD_JSON}; it is damaged or was changed, download the "
                "pack again"
            )
        logger.warning("%s: was changed since the model was packed; %s holds what was packed", CARD_MD, CARD_JSON)
    if not is_known_license(card.license):
        logger.warning(
            "license '%s' is no SPDX identifier that Segwright knows; ask the authors what it allows", card.license
        )
    return card


def _files(folder: Path) -> list[Path]:
    """Return the files that a card lists: all but the card itself and those that systems add."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / CARD_JSON and not {*path.relative_to(folder).parts} & {*_OF_SYSTEMS}
    ]
