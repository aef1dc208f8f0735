"""The Python API: every command of the command line as a function.

Each function is imported on first use, so that prediction does not wait for the imports of training and reports.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # what `_MODULES` says, for type checkers; tests/unit/api/test_public_names.py compares the two
    from segwright.api.checks.cost import ConfigurationCost as ConfigurationCost
    from segwright.api.checks.cost import training_costs as training_costs
    from segwright.api.checks.machine import MachineReport as MachineReport
    from segwright.api.checks.machine import doctor as doctor
    from segwright.api.cluster.distributing import run_task as run_task
    from segwright.api.cluster.distributing import tasks as tasks
    from segwright.api.cluster.sbatch import SlurmOptions as SlurmOptions
    from segwright.api.cluster.slurm import cancel as cancel
    from segwright.api.cluster.slurm import queued_tasks as queued_tasks
    from segwright.api.cluster.slurm import submit as submit
    from segwright.api.combining import accumulate_crossval as accumulate_crossval
    from segwright.api.combining import apply_postprocessing as apply_postprocessing
    from segwright.api.combining import determine_postprocessing as determine_postprocessing
    from segwright.api.combining import ensemble as ensemble
    from segwright.api.datasets.converting import convert as convert
    from segwright.api.datasets.describing import init as init
    from segwright.api.drawing.overlaying import overlay as overlay
    from segwright.api.drawing.previewing import preview_augmentation as preview_augmentation
    from segwright.api.evaluating import compare as compare
    from segwright.api.evaluating import evaluate as evaluate
    from segwright.api.models.exchange import import_model as import_model
    from segwright.api.models.exporting import export_model as export_model
    from segwright.api.models.installing import InstalledModel as InstalledModel
    from segwright.api.models.installing import install as install
    from segwright.api.models.installing import installed_models as installed_models
    from segwright.api.models.packing import model_info as model_info
    from segwright.api.models.packing import pack as pack
    from segwright.api.models.segments import segments as segments
    from segwright.api.models.serving import serve as serve
    from segwright.api.plans.making import PlanOptions as PlanOptions
    from segwright.api.plans.transfer import move_plans as move_plans
    from segwright.api.predicting import load_model as load_model
    from segwright.api.predicting import predict as predict
    from segwright.api.preparing import check as check
    from segwright.api.preparing import explain as explain
    from segwright.api.preparing import fingerprint as fingerprint
    from segwright.api.preparing import plan as plan
    from segwright.api.preparing import plan_from_fingerprint as plan_from_fingerprint
    from segwright.api.preparing import preprocess as preprocess
    from segwright.api.reporting import find_fingerprint as find_fingerprint
    from segwright.api.reporting import find_plan as find_plan
    from segwright.api.reporting import find_scores as find_scores
    from segwright.api.reporting import write_report as write_report
    from segwright.api.running import demo as demo
    from segwright.api.running import run as run
    from segwright.api.selecting import select as select
    from segwright.api.training import keyword_values as keyword_values
    from segwright.api.training import train as train
    from segwright.api.watching import FoldStatus as FoldStatus
    from segwright.api.watching import status as status

_MODULES: Final = {
    "checks.cost": ("ConfigurationCost", "training_costs"),
    "checks.machine": ("MachineReport", "doctor"),
    "cluster.distributing": ("run_task", "tasks"),
    "cluster.sbatch": ("SlurmOptions",),
    "cluster.slurm": ("cancel", "queued_tasks", "submit"),
    "combining": ("accumulate_crossval", "apply_postprocessing", "determine_postprocessing", "ensemble"),
    "datasets.converting": ("convert",),
    "datasets.describing": ("init",),
    "drawing.overlaying": ("overlay",),
    "drawing.previewing": ("preview_augmentation",),
    "evaluating": ("compare", "evaluate"),
    "models.exchange": ("import_model",),
    "models.exporting": ("export_model",),
    "models.installing": ("InstalledModel", "install", "installed_models"),
    "models.packing": ("model_info", "pack"),
    "models.segments": ("segments",),
    "models.serving": ("serve",),
    "plans.making": ("PlanOptions",),
    "plans.transfer": ("move_plans",),
    "predicting": ("load_model", "predict"),
    "preparing": ("check", "explain", "fingerprint", "plan", "plan_from_fingerprint", "preprocess"),
    "reporting": ("find_fingerprint", "find_plan", "find_scores", "write_report"),
    "running": ("demo", "run"),
    "selecting": ("select",),
    "training": ("keyword_values", "train"),
    "watching": ("FoldStatus", "status"),
}
"""The public names, by the module that defines them."""

__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
