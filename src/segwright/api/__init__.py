"""The product: every verb of the command line as a function.

A verb is imported at its first use, with what it needs: a prediction waits for no training, report or plan.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segwright.api.combining import accumulate_crossval, apply_postprocessing, determine_postprocessing, ensemble
    from segwright.api.evaluating import compare, evaluate
    from segwright.api.exchange import export_model, import_model
    from segwright.api.predicting import load_model, predict
    from segwright.api.preparing import (
        PlanOptions,
        check,
        explain,
        fingerprint,
        plan,
        plan_from_fingerprint,
        preprocess,
    )
    from segwright.api.previewing import preview_augmentation
    from segwright.api.reporting import find_fingerprint, find_plan, find_scores, write_report
    from segwright.api.running import demo, run
    from segwright.api.selecting import select
    from segwright.api.training import keyword_values, train
    from segwright.api.transfer import move_plans
    from segwright.api.watching import FoldStatus, status

__all__ = [
    "FoldStatus",
    "PlanOptions",
    "accumulate_crossval",
    "apply_postprocessing",
    "check",
    "compare",
    "demo",
    "determine_postprocessing",
    "ensemble",
    "evaluate",
    "explain",
    "export_model",
    "find_fingerprint",
    "find_plan",
    "find_scores",
    "fingerprint",
    "import_model",
    "keyword_values",
    "load_model",
    "move_plans",
    "plan",
    "plan_from_fingerprint",
    "predict",
    "preprocess",
    "preview_augmentation",
    "run",
    "select",
    "status",
    "train",
    "write_report",
]

_MODULES = {
    "exchange": (
        "export_model",
        "import_model",
    ),
    "running": (
        "demo",
        "run",
    ),
    "evaluating": (
        "compare",
        "evaluate",
    ),
    "training": (
        "keyword_values",
        "train",
    ),
    "predicting": (
        "load_model",
        "predict",
    ),
    "combining": (
        "accumulate_crossval",
        "apply_postprocessing",
        "determine_postprocessing",
        "ensemble",
    ),
    "preparing": (
        "PlanOptions",
        "check",
        "explain",
        "fingerprint",
        "plan",
        "plan_from_fingerprint",
        "preprocess",
    ),
    "previewing": ("preview_augmentation",),
    "reporting": (
        "find_fingerprint",
        "find_plan",
        "find_scores",
        "write_report",
    ),
    "selecting": ("select",),
    "transfer": ("move_plans",),
    "watching": (
        "FoldStatus",
        "status",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
