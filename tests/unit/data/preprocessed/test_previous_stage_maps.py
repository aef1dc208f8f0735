from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segwright.core.errors import WorkspaceError
from segwright.core.files.json_documents import with_checksum
from segwright.data.preprocessed.previous_stage import StageMaps


@pytest.mark.parametrize("change", [{"dtype": ["x"]}, {"dtype": {"a": 1}}, {"shape": 5}, {"shape": None}])
def test_a_damaged_document_of_a_map_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    maps = StageMaps(tmp_path)
    maps.save("a", np.ones((3, 4, 5), np.uint8), (4, 4, 4), "0")
    path = tmp_path / "a.json"
    document = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
    path.write_text(json.dumps(with_checksum({**document, **change})))
    with pytest.raises(WorkspaceError, match="no prediction of the previous stage"):
        maps.load("a")


@pytest.mark.parametrize("text", ["[]", '"x"', "5"])
def test_a_document_that_is_no_object_is_not_fresh(tmp_path: Path, text: str) -> None:
    maps = StageMaps(tmp_path)
    maps.save("a", np.ones((3, 4, 5), np.uint8), (4, 4, 4), "0")
    (tmp_path / "a.json").write_text(text)
    assert not maps.is_fresh("a", (3, 4, 5), "0")
    with pytest.raises(WorkspaceError, match="no prediction of the previous stage"):
        maps.load("a")
