"""Find models that were unpacked from a pack, and check their files against the card."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Final

from segwright.core.errors import ModelError
from segwright.core.files.hashing import file_hash
from segwright.deploy.model_card import CARD_JSON, CARD_MD, ModelCard, is_known_license, read_card

logger = getLogger(__name__)

_OF_SYSTEMS: Final = ("__MACOSX", ".DS_Store", "Thumbs.db")
"""Files that systems add to folders."""


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
    found = {path.relative_to(folder).as_posix(): path for path in listed_files(folder)}
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


def listed_files(folder: Path) -> list[Path]:
    """Return the files that a card lists: all but the card itself and those that systems add."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / CARD_JSON and not {*path.relative_to(folder).parts} & {*_OF_SYSTEMS}
    ]
