"""Predict a folder with given models in parts, which any executor runs at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from segwright.api.cluster.distributing import run_task
from segwright.api.cluster.execution import run_graph
from segwright.api.cluster.tasks import PredictGraph, PredictSettings, parts_of_prediction
from segwright.api.models.finding import find_model
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.core.files.atomic_io import temporary_beside
from segwright.workspace import Workspace

if TYPE_CHECKING:
    from segwright.core.interrupt import StopRequest
    from segwright.inference.prediction import CaseRecord


def predict_in_parts(
    model: Path | str | Sequence[Path | str],
    images: Path | Sequence[Path],
    output: Path,
    *,
    executor: Executor,
    parts: int,
    device: str = "auto",
    trust_code: TrustCode = False,
    workspace: Workspace | None = None,
    stop: StopRequest | None = None,
    **options: Any,
) -> list[CaseRecord]:
    """Predict as `predict` does, in parts that run at once; the last one joins their logs to `prediction.json`.

    Args:
        model: as for `predict`.
        images: as for `predict`.
        output: as for `predict`.
        executor: where the parts run.
        parts: number of parts.
        device: of each part.
        trust_code: as for `predict`.
        workspace: where models and results are.
        stop: request to stop.
        options: further arguments of `predict`, as values that JSON holds.

    Raises:
        Interrupted: a stop was requested; the same call continues.
        TaskError: parts failed.
    """
    from segwright.inference.prediction import CaseRecord

    trust = CodeTrust.of(trust_code)
    models = [model] if isinstance(model, Path | str) else model
    settings = PredictSettings(
        models=tuple(find_model(each, workspace).absolute() for each in models),
        images=tuple(file.absolute() for file in ([images] if isinstance(images, Path) else images)),
        output=output.absolute(),
        parts=parts,
        options={name: [*value] if isinstance(value, tuple) else value for name, value in options.items()},
        device=device,
        trust_all=trust.everything,
        trusted=tuple(sorted(trust.references)),
        code_folder=trust.folder,
        stop_file=temporary_beside(output.absolute() / "stop"),
    )
    graph = PredictGraph(run=settings, tasks=tuple(parts_of_prediction(parts)))
    results = {result.name: result for result in run_graph(graph, run_task, executor, stop=stop)}
    adapter: TypeAdapter[list[CaseRecord]] = TypeAdapter(list[CaseRecord])
    of_parts = [adapter.validate_python([*results[task.name].records]) for task in graph.tasks]
    rows = itertools.zip_longest(*of_parts)  # part i of n has the cases i, i + n, ...
    return [record for row in rows for record in row if record is not None]
