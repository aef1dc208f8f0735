"""The card of a model: which licenses it may name, what its Markdown says, and its head for the Hugging Face Hub."""

from __future__ import annotations

import json
from typing import Any

import pytest

from segwright.core.errors import ConfigError
from segwright.deploy.model_card import MemberFacts, ModelCard, Score, checked_license, is_known_license, to_markdown

MEMBER = MemberFacts(
    name="Trainer__nnUNetPlans__2d", configuration="2d", folds=("0", "1"), network="PlainConvUNet",
    spacing=(0.5, 0.75), patch_size=(64, 48), batch_size=4, epochs=9, pretrained="Liver", model_hash="ab" * 32,
)  # fmt: skip


def card(**changes: Any) -> ModelCard:
    values = {"name": "Liver", "license": "CC-BY-NC-4.0", "dataset": "Dataset003_Liver", "channels": ("CT",)}
    scores = (Score(name="mean", dice=0.81234, interval=(0.7, 0.9)), Score(name="tumour", dice=None))
    shown = {"labels": ("background", "tumour"), "num_training": 7, "num_scored": 5, "scores": scores}
    return ModelCard(**{**values, **shown, "members": (MEMBER,), **changes})


def head(text: str) -> dict[str, Any]:
    """Return the YAML head; values are JSON or plain words."""
    _, lines, _ = text.split("---\n", 2)
    pairs = (line.split(": ", 1) for line in lines.splitlines())
    return {key: json.loads(value) if value[0] in '["' else value for key, value in pairs}


def test_the_card_says_what_users_must_know() -> None:
    text = to_markdown(card(intended_use="research on\nCT <b>alone</b>", shortcoming="2 training steps"))
    for line in (
        "- License of the weights: CC-BY-NC-4.0",
        "- License of the code (Segwright): Apache-2.0",
        "- Intended use: research on\\nCT &lt;b&gt;alone&lt;/b&gt;",
        "- Training data: unknown",
        "**Not usable:** 2 training steps",
        "| mean | 0.8123 | 0.7000 to 0.9000 |",
        "| tumour | - | - |",
        "- Spacing: 0.5 x 0.75 mm",
        "- Started from: Liver",
        f"- Hash: {'ab' * 32}",
        "This is not a medical device.",
    ):
        assert f"\n{line}\n" in text


def test_the_hub_reads_license_library_and_results() -> None:
    found = head(to_markdown(card()))
    assert (found["license"], found["library_name"], found["pipeline_tag"]) == (
        *("cc-by-nc-4.0", "segwright"),
        "image-segmentation",
    )
    [result] = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "dice", "name": "Dice, mean", "value": 0.8123}]
    own = head(to_markdown(card(license="LicenseRef-Clinic", license_url="https://clinic.org/license")))
    assert (own["license"], own["license_name"]) == ("other", "licenseref-clinic")
    assert own["license_link"] == "https://clinic.org/license"
    assert head(to_markdown(card(license="GPL-3.0-or-later")))["license"] == "gpl-3.0"


@pytest.mark.parametrize("text", ["CC-BY-4.0", "cc-by-4.0", " CC-by-4.0 "])
def test_a_license_gets_the_spelling_of_spdx(text: str) -> None:
    assert checked_license(text) == "CC-BY-4.0"


@pytest.mark.parametrize("text", ["", "CC-BY", "free", "LicenseRef-", "LicenseRef-two words"])
def test_an_unknown_license_is_refused(text: str) -> None:
    assert not is_known_license(text)
    with pytest.raises(ConfigError, match="is not a known SPDX identifier.*write LicenseRef-NAME"):
        checked_license(text)
