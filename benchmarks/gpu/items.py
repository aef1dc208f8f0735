"""The measurements of the GPU benchmark, the most important first."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from benchmarks import oracle
from benchmarks.gpu.job import Job
from benchmarks.gpu.modes import MODES, settings_of, why_not_available
from benchmarks.gpu.schedule import Figures, Item, Measure, run_program
from benchmarks.gpu.tasks import DATASET, TASKS
from segwright.core.device import CPU
from segwright.workspace import DATASET_JSON, PLANS_JSON

SMALL_S: Final = 10.0
"""Estimate for a measurement with tiny shapes, in seconds."""
NNUNET_STEP_S: Final = 75.0
"""Estimate for a step of nnU-Net, which compiles its network, in seconds."""
LOADER_S: Final = 25.0
PREDICT_S: Final = 30.0
CT_S: Final = 60.0
TIMED_STEPS: Final = 20
TIMED_S: Final = 3.0
"""Steps that are timed at least, and seconds for which they are."""
NNUNET_WARM_UP: Final = 8
TINY_STEPS: Final = 2
"""Steps of tiny shapes to warm up, and to time."""
LOADER_STEPS: Final = 120
"""Steps of an epoch with the loader; the training tries its ways to compute steps in the first."""
MAKE_CASES: Final = Path(__file__).parents[1] / "our_side" / "make_loader_cases.py"


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images to predict, with the model of a task."""

    task: str
    number: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


IMAGES: Final = {
    "20-cases": Images(task="hippocampus", number=20, shape=(36, 50, 35)),
    "ct": Images(task="plain-128", number=1, shape=(300, 512, 512), spacing=(1.0, 0.8, 0.8)),
}
TINY_IMAGES: Final = {
    "20-cases": Images(task="hippocampus", number=2, shape=(16, 16, 16)),
    "ct": Images(task="plain-128", number=1, shape=(20, 24, 24), spacing=(1.0, 0.8, 0.8)),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements share.

    Attributes:
        device: of torch.
        small: tiny shapes.
        scratch: folder for files.
        nnunet: interpreter with nnU-Net; None without one.
    """

    device: str
    small: bool
    scratch: Path
    nnunet: Path | None = None
    _models: dict[str, Job] = field(default_factory=dict)

    def items(self) -> list[Item]:
        """Return all measurements in order: first what a training does by itself, on each side, then each way alone."""
        first, rest = (("hippocampus",), ()) if self.small else (("hippocampus", "plain-128"), ("resenc-m", "2d"))
        return [
            *(self._step(task, "eager") for task in TASKS),
            *(self._step(task, "default") for task in first),
            *(self._nnunet_step(task) for task in first),
            *(self._loader(cache) for cache in (("ram",) if self.device == CPU else ("ram", "device"))),
            *(self._predict(name) for name in IMAGES),
            *(self._step(task, "default") for task in rest),
            *(self._step(task, mode) for mode in MODES if mode not in ("eager", "default") for task in TASKS),
            *(self._nnunet_predict(name) for name in IMAGES),
            *(self._nnunet_step(task) for task in rest),
        ]

    def _item(self, name: str, estimate_s: float, measure: Measure, not_available: str = "") -> Item:
        is_quick = self.small and not name.startswith("nnunet")  # its programs take most of their time to start
        estimate = SMALL_S if is_quick else estimate_s
        return Item(name=name, estimate_s=estimate, measure=measure, not_available=not_available)

    def _step(self, task: str, mode_name: str) -> Item:
        mode, name = MODES[mode_name], f"step/{task}/{mode_name}"

        def measure(end: float) -> Figures:
            job = replace(self._job("step", task, name), settings=settings_of(mode))
            return _run(self._timed(job, mode.warm_up, TIMED_STEPS, TIMED_S), end)

        return self._item(name, mode.estimate_s, measure, why_not_available(mode, self.device))

    def _loader(self, cache: str) -> Item:
        task, name = "hippocampus", f"loader/hippocampus/{cache}"

        def measure(end: float) -> Figures:
            folder, sizes = self.scratch / "cases", TASKS[task].sizes(small=self.small).shape
            patch = TASKS[task].plan(small=self.small).configuration(TASKS[task].configuration).patch_size
            shapes = ["x".join(map(str, each)) for each in (sizes, patch)]
            run_program([sys.executable, str(MAKE_CASES), str(folder), *shapes], end=end)
            job = replace(self._job("loader", task, name), cases=str(folder / "ours"), settings={"cache": cache})
            return _run(self._timed(job, LOADER_STEPS, LOADER_STEPS, 0.0), end)

        return self._item(name, LOADER_S, measure)

    def _predict(self, images: str) -> Item:
        name = f"predict/{images}"

        def measure(end: float) -> Figures:
            made = self._model(images, end)
            return _run(replace(made, what="predict", output=self._folder(name)), end)

        return self._item(name, CT_S if images == "ct" else PREDICT_S, measure)

    def _nnunet_step(self, task: str) -> Item:
        name = f"nnunet-step/{task}"

        def measure(end: float) -> Figures:
            folder = Path(self._folder(name))
            job = replace(self._job("step", task, name), model=_write_nnunet_task(folder, task, small=self.small))
            job = self._timed(job, NNUNET_WARM_UP, TIMED_STEPS, TIMED_S)
            program = [str(self.nnunet), str(oracle.HERE / "gpu_step.py"), job.to_json(), TASKS[task].configuration]
            return run_program(program, end=end, environment=_nnunet_environment(folder))

        return self._item(name, NNUNET_STEP_S, measure, self._without_nnunet)

    def _nnunet_predict(self, images: str) -> Item:
        name = f"nnunet-predict/{images}"

        def measure(end: float) -> Figures:
            made, folder = self._model(images, end), Path(self._folder(name))
            arguments = [made.nnunet_model, made.images, str(folder / "output"), self.device]
            program = [str(self.nnunet), str(oracle.HERE / "predict.py"), *arguments]
            return run_program(program, end=end, environment=_nnunet_environment(folder))

        return self._item(name, 3 * CT_S if images == "ct" else 2 * PREDICT_S, measure, self._without_nnunet)

    def _job(self, what: str, task: str, folder: str) -> Job:
        return Job(what=what, task=task, device=self.device, small=self.small, folder=self._folder(folder))

    def _timed(self, job: Job, warm_up: int, min_steps: int, min_s: float) -> Job:
        if self.small:
            return replace(job, warm_up=TINY_STEPS, min_steps=TINY_STEPS)
        return replace(job, warm_up=warm_up, min_steps=min_steps, min_s=min_s)

    def _model(self, images: str, end: float) -> Job:
        """Return a job with the folders of images and of the model for them, in both formats; they are made once."""
        if images not in self._models:
            chosen = (TINY_IMAGES if self.small else IMAGES)[images]
            job = replace(
                self._job("make_model", chosen.task, f"model-{images}"),
                images=self._folder(f"images-{images}"),
                nnunet_model=self._folder(f"nnunet-model-{images}"),
                num_images=chosen.number,
                image_shape=chosen.shape,
                image_spacing=chosen.spacing,
            )
            self._models[images] = replace(job, model=str(_run(job, end)["model"]))
        return self._models[images]

    def _folder(self, name: str) -> str:
        return str(self.scratch / name.replace("/", "-"))

    @property
    def _without_nnunet(self) -> str:
        return "" if self.nnunet else "nnU-Net's packages were not found or not asked for; see --nnunet"


def _run(job: Job, end: float) -> Figures:
    return run_program([sys.executable, "-m", "benchmarks.gpu.measure", job.to_json()], end=end)


def _write_nnunet_task(folder: Path, name: str, *, small: bool) -> str:
    """Write plan and description of a task for nnU-Net's trainer; return their folder."""
    task = TASKS[name]
    plan = task.plan(small=small)
    cases = folder / "preprocessed" / DATASET / plan.configuration(task.configuration).data_identifier
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()  # the trainer chooses its storage class by the suffix only
    plan.save(folder / PLANS_JSON)
    (folder / DATASET_JSON).write_text(json.dumps(task.description(small=small).raw()), encoding="utf-8")
    return str(folder)


def _nnunet_environment(folder: Path) -> dict[str, str]:
    """Return the environment of nnU-Net's programs, with their folders; whether they compile is their choice."""
    folders = {f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")}
    for each in folders.values():
        Path(each).mkdir(parents=True, exist_ok=True)
    return {name: value for name, value in os.environ.items() if name != "nnUNet_compile"} | folders
