"""The models of the tests of prediction, to export."""

from tests.unit.inference.conftest import images, make_model, plan

__all__ = ["images", "make_model", "plan"]
