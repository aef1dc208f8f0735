from __future__ import annotations

from pathlib import Path

import pytest

from segwright.core.errors import ModelError
from segwright.report.sources import read_fold


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ("5", "expected a JSON object"),
        ('{"notes": 5}', "'notes' is a int"),
        ('{"config": []}', "'config' is a list"),
        ('{"cases": "x"}', "'cases' is a str"),
    ],
)
def test_a_damaged_record_of_a_training_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ModelError, match=rf"train\.json: {message}"):
        read_fold(tmp_path)
