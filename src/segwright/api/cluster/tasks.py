"""The steps of a run as frozen values that any process can read as JSON, and which step needs which.

preprocess(configuration) -> train(configuration, fold) -> select -> predict(part); a cascade's first stage is trained
before its second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from segwright.core.errors import ConfigError, did_you_mean
from segwright.data.plan import Plan
from segwright.workspace import Workspace

SCHEMA_VERSION: Final = 1

Verb = Literal["preprocess", "train", "select", "predict"]

WITHOUT_GPU: Final[tuple[Verb, ...]] = ("preprocess",)
"""Tasks that compute on the CPU alone."""


class Task(BaseModel):
    """One step of a run.

    Attributes:
        name: unique in its graph, such as `train 3d_fullres fold 0`.
        verb: what is done.
        needs: names of the tasks that must be finished before.
        configuration: that is preprocessed or trained.
        fold: that is trained.
        for_next_stage: the fold is only trained because the second stage of a cascade needs its predictions; it is not
            validated.
        part: index of the part that is predicted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    verb: Verb
    needs: tuple[str, ...] = ()
    configuration: str | None = None
    fold: int | None = None
    for_next_stage: bool = False
    part: int | None = None


class Prediction(BaseModel):
    """A folder of images that the selected model predicts, in parts.

    Attributes:
        images: the folder of images.
        output: the folder for label maps.
        parts: number of tasks that the cases are divided among.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Path
    output: Path
    parts: int = Field(default=1, ge=1)


class RunSettings(BaseModel):
    """What all tasks of a run share: paths and settings, no objects.

    Attributes:
        dataset: folder of the raw dataset.
        raw: tree of raw datasets, as `Workspace.raw`.
        preprocessed: tree of preprocessed datasets, as `Workspace.preprocessed`.
        results: tree of results, as `Workspace.results`.
        work: the folder with these three trees, as `Workspace.work`; None if they lie apart.
        plans: name of the plans.
        configurations: that are trained and compared.
        folds: that are trained and compared.
        model_name: first part of the name of model folders.
        settings: fields of `TrainConfig`.
        trainer: reference of the trainer class; None: `Trainer`.
        nnunet_trainer: `FILE.py:Class`, a file with a subclass of nnU-Net's trainer.
        device: auto, cpu, mps or a GPU.
        workers: threads.
        environment: variables that paths in file lists contain.
        trust_all: whether references in files may be imported.
        trusted: references that may be imported.
        code_folder: where modules that are not installed are searched.
        prediction: what the selected model predicts.
        stop_file: trainings save and end when this file exists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Path
    raw: Path
    preprocessed: Path
    results: Path
    work: Path | None = None
    plans: str
    configurations: tuple[str, ...]
    folds: tuple[int, ...]
    model_name: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    trainer: str | None = None
    nnunet_trainer: str | None = None
    device: str = "auto"
    workers: int | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    trust_all: bool = False
    trusted: tuple[str, ...] = ()
    code_folder: Path | None = None
    prediction: Prediction | None = None
    stop_file: Path | None = None

    @property
    def workspace(self) -> Workspace:
        """The trees in which the tasks read and write."""
        return Workspace(raw=self.raw, preprocessed=self.preprocessed, results=self.results, work=self.work)

    @property
    def names_code(self) -> bool:
        """Whether a task may import code that these settings name."""
        return bool(self.trust_all or self.trusted or self.nnunet_trainer)

    def folder_of(self, task: Task) -> Path:
        """Return the folder that a task writes: of the fold, preprocessed dataset, its results or predictions."""
        name = self.dataset.name
        if task.verb == "preprocess":
            return self.workspace.preprocessed_dataset(name)
        if task.verb == "select":
            return self.workspace.selected_folder(name).parent
        if task.verb == "predict":
            assert self.prediction is not None, "the graph of a prediction says of what"
            return self.prediction.output
        assert task.configuration is not None, f"{task.name}: has a configuration"
        assert task.fold is not None, f"{task.name}: has a fold"
        model = self.workspace.model_folder(name, self.model_name, self.plans, task.configuration)
        return Workspace.fold_folder(model, task.fold)

    def log_of(self, task: Task) -> Path:
        """Return the file for the log of a task that has a process of its own, in the folder in which it writes."""
        return self.folder_of(task) / _log_name(task)


class PredictSettings(BaseModel):
    """What the parts of a prediction without a run share.

    Attributes:
        models: paths of the models, which are averaged.
        images: a folder of images, or the files of the channels of one case.
        output: the folder for label maps.
        parts: number of tasks that the cases are divided among.
        options: further arguments of `predict`.
        device: auto, cpu, mps or a GPU.
        trust_all: whether references in files may be imported.
        trusted: references that may be imported.
        code_folder: where modules that are not installed are searched.
        stop_file: parts end when this file exists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[Path, ...]
    images: tuple[Path, ...]
    output: Path
    parts: int = Field(ge=1)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    device: str = "auto"
    trust_all: bool = False
    trusted: tuple[str, ...] = ()
    code_folder: Path | None = None
    stop_file: Path | None = None

    @property
    def names_code(self) -> bool:
        """Whether a task may import code that these settings name."""
        return bool(self.trust_all or self.trusted)

    def folder_of(self, task: Task) -> Path:
        """Return the folder that a task writes."""
        return self.output

    def log_of(self, task: Task) -> Path:
        """Return the file for the log of a task that has a process of its own."""
        return self.output / _log_name(task)


Settings = RunSettings | PredictSettings
"""What the tasks of a graph share."""


class AnyGraph(BaseModel):
    """Tasks of a run, or of a prediction.

    Attributes:
        run: what the tasks share.
        tasks: each after those that it needs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    run: Settings
    tasks: tuple[Task, ...]

    def task(self, name: str) -> Task:
        """Return a task by name.

        Raises:
            ConfigError: there is none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(f"no task is named '{name}'{did_you_mean(name, [task.name for task in self.tasks])}")

    @model_validator(mode="after")
    def _require_order(self) -> AnyGraph:
        known: set[str] = set()
        for task in self.tasks:
            if task.name in known:
                raise ValueError(f"task '{task.name}' occurs twice")
            if missing := [name for name in task.needs if name not in known]:
                raise ValueError(f"task '{task.name}' needs '{missing[0]}', which does not come before it")
            known.add(task.name)
        return self


class TaskGraph(AnyGraph):
    """All tasks of a run.

    Attributes:
        run: what the tasks share.
    """

    run: RunSettings


class PredictGraph(AnyGraph):
    """The parts of a prediction.

    Attributes:
        run: what the tasks share.
    """

    run: PredictSettings


def graph_of_one(run: Settings, task: Task) -> AnyGraph:
    """Return a graph of one task, those that it needs being finished; its JSON text travels to another process."""
    return AnyGraph(run=run, tasks=(task.model_copy(update={"needs": ()}),))


class TaskResult(BaseModel):
    """How a task ended.

    Attributes:
        name: of the task.
        is_new: whether anything was missing; False if it was finished before.
        error: lines of the error that ended it; empty if it is finished.
        exit_code: of that error, as the command line would end.
        seconds: that it took in its process; 0 where unknown.
        records: of the cases that a part of a `PredictGraph` predicted or kept: fields of `CaseRecord`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    is_new: bool = False
    error: tuple[str, ...] = ()
    exit_code: int = 0
    seconds: float = 0.0
    records: tuple[dict[str, JsonValue], ...] = ()


def build_graph(run: RunSettings, plan: Plan, *, num_folds: int) -> TaskGraph:
    """Return the tasks of a run.

    Args:
        run: paths and settings.
        plan: the plan of that name.
        num_folds: of the dataset's splits. The second stage of a cascade needs all of them of its first stage: each
            case is predicted by the fold that holds it out.
    """
    preprocessing = _preprocessing(plan, run.configurations)
    training: dict[str, Task] = {}
    for configuration in run.configurations:
        for fold in run.folds:
            _add_training(
                training, plan, configuration, fold, run=run, num_folds=num_folds, preprocessing=preprocessing
            )
    validated = [task.name for task in training.values() if not task.for_next_stage]
    select = Task(name="select", verb="select", needs=tuple(validated))
    predicting = [] if run.prediction is None else parts_of_prediction(run.prediction.parts, needs=(select.name,))
    return TaskGraph(run=run, tasks=(*dict.fromkeys(preprocessing.values()), *training.values(), select, *predicting))


def parts_of_prediction(parts: int, needs: tuple[str, ...] = ()) -> list[Task]:
    """Return the tasks that predict each one part of the cases; each needs the same tasks."""
    return [
        Task(name=f"predict part {part} of {parts}", verb="predict", needs=needs, part=part) for part in range(parts)
    ]


def _preprocessing(plan: Plan, configurations: Sequence[str]) -> dict[str, Task]:
    """Return the task that preprocesses the cases of each configuration; several configurations may share one.

    One task needs the one before it: each uses all processors, and they share a lock.
    """
    tasks: dict[str, Task] = {}
    by_data: dict[str, Task] = {}
    for name in dict.fromkeys(stage for each in configurations for stage in _stages(plan, each)):
        data = plan.configuration(name).data_identifier
        if data not in by_data:
            before = tuple(task.name for task in list(by_data.values())[-1:])
            by_data[data] = Task(name=f"preprocess {name}", verb="preprocess", needs=before, configuration=name)
        tasks[name] = by_data[data]
    return tasks


def _stages(plan: Plan, configuration: str) -> Iterator[str]:
    """Yield the previous stages of a configuration, the first one first, and the configuration."""
    previous = plan.configuration(configuration).previous_stage
    if previous is not None:
        yield from _stages(plan, previous)
    yield configuration


def _add_training(
    training: dict[str, Task],
    plan: Plan,
    configuration: str,
    fold: int,
    *,
    run: RunSettings,
    num_folds: int,
    preprocessing: dict[str, Task],
) -> str:
    """Add the training of a fold and, before it, of the folds of its previous stage; return its name."""
    name = f"train {configuration} fold {fold}"
    if name in training:
        return name
    previous = plan.configuration(configuration).previous_stage
    before: list[str] = []
    if previous is not None:
        before = [
            _add_training(training, plan, previous, number, run=run, num_folds=num_folds, preprocessing=preprocessing)
            for number in range(num_folds)
        ]
    training[name] = Task(
        name=name,
        verb="train",
        needs=(preprocessing[configuration].name, *before),
        configuration=configuration,
        fold=fold,
        for_next_stage=configuration not in run.configurations or fold not in run.folds,
    )
    return name


def _log_name(task: Task) -> str:
    return f"{task.name.replace(' ', '_')}.log"
