"""What `pyproject.toml`, `CITATION.cff` and the package of nnU-Net's commands say is the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segwright import __version__

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["pyproject.toml", "packages/segwright-nnunet/pyproject.toml", "CITATION.cff"])
def test_every_file_has_the_version_of_the_installed_package(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"^version(?: =|:) \"?([^\"\s]+)\"?$", text, re.MULTILINE) == [__version__]


def test_pythons_are_the_same_in_both_packages() -> None:
    texts = [(ROOT / name / "pyproject.toml").read_text(encoding="utf-8") for name in ("", "packages/segwright-nnunet")]
    assert len({re.search(r"^requires-python = .*$", text, re.MULTILINE)[0] for text in texts}) == 1  # type: ignore[index]
