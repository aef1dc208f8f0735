"""Pack a model with its card to share it, and read the card of a model."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Final

from segwright.api.models.exchange import only_model, unpacked
from segwright.api.models.finding import find_model
from segwright.core.errors import ConfigError, ModelError
from segwright.core.files.names import require_name
from segwright.deploy.card_facts import describe_model, members_of
from segwright.deploy.model_card import UNKNOWN, ModelCard, checked_license, read_card
from segwright.deploy.pack import write_pack
from segwright.deploy.unpacked import checked_card
from segwright.inference.models.selected import find_selected
from segwright.workspace import Workspace

logger = getLogger(__name__)

_ENDING: Final = ".zip"


def pack(
    model: Path | str,
    target: Path | str,
    *,
    license: str,  # noqa: A002  the name of the field
    license_url: str = "",
    intended_use: str = UNKNOWN,
    training_data: str = UNKNOWN,
    workspace: Workspace | None = None,
) -> ModelCard:
    """Pack a model into a zip file with its card, for `install`; names of cases and patients are left out.

    Args:
        model: Selected model, model folder, name of an installed model, or name or id of a dataset.
        target: New file, `NAME.zip`; the model is named after it.
        license: Of the weights, an SPDX identifier such as `CC-BY-4.0`; `LicenseRef-NAME` for any other.
        license_url: Where the text of the license is.
        intended_use: What the model is for, and what not.
        training_data: Where the training cases are from.
        workspace: Where models and results are; `./segwright-work` by default.

    Returns:
        The card. It lists the SHA-256 of every file.

    Raises:
        SegwrightError: the license is unknown, the model cannot be packed, or the file exists.

    Examples:
        >>> pack("model", "Liver.zip", license="CC-BY-4.0", intended_use="research")  # doctest: +SKIP
    """
    file = Path(target)
    if file.suffix.lower() != _ENDING:
        raise ConfigError(f"{file}: expected a name that ends with {_ENDING}")
    if file.exists():
        raise ConfigError(f"{file}: exists already; remove it or choose another name")
    given = {"license": checked_license(license), "license_url": license_url}
    for name, text in (("intended_use", intended_use), ("training_data", training_data)):
        if not text.strip():
            raise ConfigError(f"{name}: is empty; describe it, or leave it out")
        if text == UNKNOWN:
            logger.warning("%s is not described; the card says '%s'", name.replace("_", " "), UNKNOWN)
        given[name] = text
    place = find_model(model, workspace)
    if not place.is_dir():
        what = "is a file; install it, and pack the installed model" if place.is_file() else "no such model"
        raise ModelError(f"{place}: {what}")
    name = require_name(file.name[: -len(_ENDING)], "model name", error=ConfigError)
    return write_pack(find_selected(place) or only_model(place, place), file, name=name, **given)


def model_info(model: Path | str, *, workspace: Workspace | None = None) -> ModelCard:
    """Return the card of a model; for a model without one, what its files say.

    Args:
        model: Model folder, folder written by `select`, zip file, name of an installed model, or name or id of a
            dataset.
        workspace: Where models and results are; `./segwright-work` by default.

    Raises:
        SegwrightError: there is no such model, or its card or a document is damaged.

    Examples:
        >>> model_info("Liver").license  # doctest: +SKIP
    """
    found = find_model(model, workspace)
    with unpacked(found) as place:
        folder = find_selected(place) or only_model(place, found)
        card = checked_card(folder) if found.is_file() else read_card(folder)
        return card or describe_model(folder, found.name, members_of(folder))
