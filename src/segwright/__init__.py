"""Segwright: from a folder of medical images with labels to a trained, evaluated, deployable segmentation model.

The verbs are functions: `check, fingerprint, plan, preprocess, train, select, predict, evaluate, run, demo` and others,
and `load_model`; `tune_process` makes training and prediction on the CPU faster. `Trainer` is the class to derive one's
own from, `TrainConfig`, `PlanOptions` and `Workspace` hold its settings, those of planning, and the folders. All are
imported at first use, so that `import segwright` costs next to nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # importing typing could find a file of the current folder: `cli.search_path` comes later
if TYPE_CHECKING:
    from typing import Any

    from segwright.api import (
        accumulate_crossval,
        apply_postprocessing,
        check,
        convert,
        demo,
        determine_postprocessing,
        doctor,
        ensemble,
        evaluate,
        fingerprint,
        init,
        install,
        load_model,
        overlay,
        plan,
        plan_from_fingerprint,
        predict,
        preprocess,
        preview_augmentation,
        run,
        select,
        train,
        write_report,
    )
    from segwright.api.plans.making import PlanOptions
    from segwright.core.process_tuning import tune_process
    from segwright.training.config import TrainConfig
    from segwright.training.trainer import Trainer
    from segwright.workspace import Workspace

__all__ = [
    "PlanOptions",
    "TrainConfig",
    "Trainer",
    "Workspace",
    "accumulate_crossval",
    "apply_postprocessing",
    "check",
    "convert",
    "demo",
    "determine_postprocessing",
    "doctor",
    "ensemble",
    "evaluate",
    "fingerprint",
    "init",
    "install",
    "load_model",
    "overlay",
    "plan",
    "plan_from_fingerprint",
    "predict",
    "preprocess",
    "preview_augmentation",
    "run",
    "select",
    "train",
    "tune_process",
    "write_report",
]

__version__: str


_ELSEWHERE = {
    "PlanOptions": "segwright.api.plans.making",
    "TrainConfig": "segwright.training.config",
    "Trainer": "segwright.training.trainer",
    "Workspace": "segwright.workspace",
    "tune_process": "segwright.core.process_tuning",
}
"""Modules of the public names that are not in `segwright.api`."""


def __getattr__(name: str) -> "Any":
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name]), name)
    if name in __all__:
        return getattr(import_module("segwright.api"), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("segwright")
        except PackageNotFoundError:  # the same source without torch
            return version("segwright-runtime")
    raise AttributeError(f"module 'segwright' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
