"""Pack a model with its card into one zip file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from segwright.core.files.atomic_io import atomic_path, sweep_leftovers, temporary_folder, write_text
from segwright.core.files.hashing import file_hash
from segwright.core.files.json_documents import read_json, write_checked_json, write_json
from segwright.core.files.zip_files import write_zip
from segwright.deploy.card_facts import describe_model, members_of
from segwright.deploy.model_card import CARD_JSON, CARD_MD, ModelCard, to_markdown
from segwright.deploy.unpacked import listed_files
from segwright.inference.export.postprocessing import POSTPROCESSING_JSON
from segwright.inference.models.selected import MEMBERS, SELECTION_JSON, copy_model, is_selected
from segwright.inference.reliability.calibration import CALIBRATION_JSON
from segwright.inference.reliability.expected_dice import QUALITY_JSON
from segwright.workspace import DATASET_JSON, SEGMENTS_JSON

_OF_SELECTION: Final = (SELECTION_JSON, POSTPROCESSING_JSON, QUALITY_JSON, CALIBRATION_JSON)
_NAMES_CASES: Final = ("dataset", "groups", "training", "test")
"""Keys of a dataset.json that name cases, files or patients; prediction does not need them."""


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
        files = {path.relative_to(root).as_posix(): file_hash(path) for path in listed_files(root)}
        card = card.model_copy(update={"files": files})
        write_checked_json(root / CARD_JSON, card.to_json())
        write_zip(scratch, temporary, compress=False)  # weights hardly shrink
    return card
