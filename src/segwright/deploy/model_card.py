"""The card of a shared model: who may use it for what, what it was trained on, how well it segments."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.errors import ConfigError, ModelError, SegwrightError, did_you_mean
from segwright.core.files.json_documents import parse_document
from segwright.core.text import printable

CARD_JSON: Final = "model_card.json"
CARD_MD: Final = "MODEL_CARD.md"
UNKNOWN: Final = "unknown"
CODE_LICENSE: Final = "Apache-2.0"
"""License of Segwright itself; that of the weights is another matter."""

LICENSES: Final = (
    *("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0"),
    *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "MPL-2.0", "EUPL-1.2", "ODC-By-1.0", "ODbL-1.0", "PDDL-1.0"),
    *("GPL-3.0-only", "GPL-3.0-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "AGPL-3.0-only", "AGPL-3.0-or-later"),
)
"""SPDX identifiers of licenses that weights usually have."""
OWN_LICENSE: Final = "LicenseRef-"
"""First letters of the SPDX identifier of any other license."""

_HUB_SUFFIXES: Final = ("-only", "-or-later")
"""Of identifiers which the Hugging Face Hub writes without them."""

Text = Annotated[str, Field(min_length=1)]


class Score(BaseModel):
    """The Dice of held-out cases.

    Attributes:
        name: of the class, or `mean`.
        dice: mean over the cases; None if no case has the class.
        interval: 95 % interval of the mean; None with few cases.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    dice: float | None
    interval: tuple[float, float] | None = None


class MemberFacts(BaseModel):
    """One trained model, of those that are averaged.

    Attributes:
        name: of its folder.
        configuration: such as 3d_fullres.
        folds: number or `all` of each trained fold.
        network: its class or function.
        spacing: voxel size in mm, in array axis order.
        patch_size: in voxels.
        batch_size: of the training.
        epochs: of the fold that was trained for the fewest.
        pretrained: name of the model whose weights it started from; empty if it started from random weights.
        model_hash: of its weights, plan and dataset.json.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    configuration: str
    folds: tuple[str, ...]
    network: str
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    epochs: int | None = None
    pretrained: str = ""
    model_hash: str


class ModelCard(BaseModel):
    """The card of a model; `model_card.json` in its folder.

    Attributes:
        name: of the model.
        license: of the weights, an SPDX identifier; `unknown` for a model that was not packed.
        license_url: where the text of the license is; empty if it was not given.
        code_license: of Segwright.
        intended_use: what the model is for and what not, in the words of its authors.
        training_data: where the training cases are from, in the words of its authors.
        dataset: name of the dataset.
        channels: of the images, in order.
        labels: names of the classes.
        num_training: training cases.
        num_scored: held-out cases that the scores are from.
        scores: mean and classes.
        members: the models that are averaged.
        shortcoming: why the model is not usable; empty if it is.
        versions: of the packages that packed it.
        files: SHA-256 of every file of the pack, by path in the model folder; empty if it was not packed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    name: Text
    license: Text
    license_url: str = ""
    code_license: str = CODE_LICENSE
    intended_use: Text = UNKNOWN
    training_data: Text = UNKNOWN
    dataset: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    num_training: int
    num_scored: int = 0
    scores: tuple[Score, ...] = ()
    members: tuple[MemberFacts, ...]
    shortcoming: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def terms(self) -> str:
        """What a user must know before each use, as one line."""
        url = f" ({self.license_url})" if self.license_url else ""
        return printable(f"license of the weights: {self.license}{url}; intended use: {self.intended_use}")

    def to_json(self) -> dict[str, Any]:
        """Return the card as one JSON object."""
        return self.model_dump(mode="json")


def read_card(folder: Path) -> ModelCard | None:
    """Return the card of a model folder; None if it has none.

    Raises:
        ModelError: it is damaged, or lacks a field such as the license.
    """
    file = folder / CARD_JSON
    try:
        return parse_document(ModelCard, file) if file.is_file() else None
    except SegwrightError as error:
        raise ModelError(f"{error}; a packed model needs a whole card with the license of its weights") from error


def checked_license(text: str) -> str:
    """Return the SPDX identifier of a license as SPDX spells it.

    Raises:
        ConfigError: it is none of `LICENSES`, and does not begin with `LicenseRef-`.

    >>> checked_license("cc-by-4.0"), checked_license("LicenseRef-Clinic-2")
    ('CC-BY-4.0', 'LicenseRef-Clinic-2')
    """
    known = {each.lower(): each for each in LICENSES}
    word = text.strip()
    if word.lower() in known:
        return known[word.lower()]
    if is_known_license(word):
        return word
    raise ConfigError(
        f"license '{printable(text)}': is not a known SPDX identifier{did_you_mean(word, LICENSES)}; for any other "
        f"license write {OWN_LICENSE}NAME"
    )


def is_known_license(text: str) -> bool:
    """Return whether a license is one of `LICENSES`, or is named as SPDX names all others."""
    name = text.removeprefix(OWN_LICENSE)
    is_own = name != text and bool(name) and all(each.isascii() and (each.isalnum() or each in ".-") for each in name)
    return text in LICENSES or is_own


def to_markdown(card: ModelCard) -> str:
    """Return the card as `MODEL_CARD.md`, with the head that the Hugging Face Hub reads."""
    return "\n".join([*_head(card), "", *describe(card)]) + "\n"


def describe(card: ModelCard) -> Iterator[str]:
    """Yield the lines of the card, as Markdown."""
    yield f"# {_inline(card.name)}"
    yield ""
    if card.shortcoming:
        yield f"**Not usable:** {_inline(card.shortcoming)}"
        yield ""
    url = f", {card.license_url}" if card.license_url else ""
    yield from _items(
        ("License of the weights", f"{card.license}{url}"),
        ("License of the code (Segwright)", card.code_license),
        ("Intended use", card.intended_use),
        ("Training data", card.training_data),
    )
    yield ""
    yield "This is not a medical device."
    yield ""
    yield "## Input and output"
    yield ""
    yield from _items(("Channels", ", ".join(card.channels)), ("Classes", ", ".join(card.labels)))
    yield ""
    yield "## Accuracy"
    yield ""
    yield from _scores(card)
    yield ""
    yield "## Training"
    yield ""
    yield from _items(("Dataset", card.dataset), ("Training cases", str(card.num_training)))
    yield ""
    for member in card.members:
        yield f"### {_inline(member.name)}"
        yield ""
        yield from _items(
            ("Configuration", member.configuration),
            ("Folds", ", ".join(member.folds)),
            ("Network", member.network),
            ("Spacing", f"{' x '.join(f'{size:g}' for size in member.spacing)} mm"),
            ("Patch", " x ".join(map(str, member.patch_size))),
            ("Batch", str(member.batch_size)),
            *([] if member.epochs is None else [("Epochs", str(member.epochs))]),
            *([("Started from", member.pretrained)] if member.pretrained else []),
            ("Hash", member.model_hash),
        )
        yield ""
    yield "## Use"
    yield ""
    yield "```"
    yield "segwright install NAME.zip"
    yield "segwright predict --model NAME -i IMAGES -o OUT"
    yield "```"
    yield ""
    yield f"Written with {', '.join(f'{name} {version}' for name, version in card.versions.items())}."


def _head(card: ModelCard) -> Iterator[str]:
    """Yield the lines of the YAML head; JSON texts are valid YAML."""
    yield "---"
    if card.license in LICENSES:
        hub = card.license.lower()
        for suffix in _HUB_SUFFIXES:
            hub = hub.removesuffix(suffix)
        yield f"license: {hub}"
    else:
        yield "license: other"
        yield f"license_name: {json.dumps(card.license.lower())}"
        if card.license_url:
            yield f"license_link: {json.dumps(card.license_url)}"
    yield "library_name: segwright"
    yield "pipeline_tag: image-segmentation"
    yield f"tags: {json.dumps(['medical', 'segmentation', 'segwright', 'nnunet'])}"
    metrics = [
        {"type": "dice", "name": f"Dice, {score.name}", "value": round(score.dice, 4)}
        for score in card.scores
        if score.dice is not None
    ]
    if metrics:
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"type": "private", "name": card.dataset, "split": "cross-validation"},
            "metrics": metrics,
        }
        yield f"model-index: {json.dumps([{'name': card.name, 'results': [result]}])}"
    yield "---"


def _scores(card: ModelCard) -> Iterator[str]:
    if not card.scores:
        yield "No held-out case was scored."
        return
    yield f"Dice of {card.num_scored} held-out cases of the training data (cross-validation), before post-processing."
    yield ""
    yield "| Class | Dice | 95 % interval |"
    yield "|---|---|---|"
    for score in card.scores:
        dice = "-" if score.dice is None else f"{score.dice:.4f}"
        interval = "-" if score.interval is None else f"{score.interval[0]:.4f} to {score.interval[1]:.4f}"
        yield f"| {_inline(score.name).replace('|', '/')} | {dice} | {interval} |"


def _items(*rows: tuple[str, str]) -> Iterator[str]:
    return (f"- {name}: {_inline(value)}" for name, value in rows)


def _inline(text: str) -> str:
    """Return a text as one line without HTML."""
    return html.escape(" ".join(printable(text).split()), quote=False)
