"""A running server with a small model, in a thread of the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running_server import Served, serving

from tests.unit.inference.conftest import small_plan, write_images, write_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    model = write_model(folder, small_plan(), 0, seed=6)  # predicts three labels
    images = write_images(folder / "images")
    with serving(model, folder / "jobs") as address:
        yield Served(address, model, images, folder / "jobs")
