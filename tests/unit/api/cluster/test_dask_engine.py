"""Tasks on Dask's workers: what travels, which worker is asked for, and what is refused. Only two tests need Dask."""

from __future__ import annotations

import ast
import socket
import sys
import threading
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segwright.api.cluster import dask_engine
from segwright.api.cluster.dask_engine import RETRIES, DaskExecutor, dask_executor, run_on_worker
from segwright.api.cluster.tasks import RunSettings, Settings, Task, TaskResult, graph_of_one
from segwright.core.errors import ConfigError

ROOT = Path(__file__).parents[4]
TRAIN = Task(name="train 3d_fullres fold 0", verb="train", configuration="3d_fullres", fold=0)
PREPROCESS = Task(name="preprocess 3d_fullres", verb="preprocess", configuration="3d_fullres")
RUN = RunSettings(
    dataset=Path("/raw/Dataset001_Tiny"), raw=Path("/raw"), preprocessed=Path("/p"), results=Path("/r"),
    plans="nnUNetPlans", configurations=("3d_fullres",), folds=(0,), model_name="Trainer",
)  # fmt: skip


class KilledWorker(Exception):
    __module__ = "distributed.scheduler"


class Engine(Executor):
    """Stands for Dask's executor: keeps what is submitted."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.submitted: list[tuple[Any, ...]] = []
        self.futures: list[Future[Any]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted.append((function, *args))
        self.futures.append(Future())
        return self.futures[-1]


class Client:
    """Stands for Dask's client."""

    id = "client-1"

    def __init__(self, **workers: dict[str, Any]) -> None:
        self.workers = workers
        self.engines: list[Engine] = []
        self.handlers: dict[str, Any] = {}

    def get_executor(self, **options: Any) -> Engine:
        self.engines.append(Engine(options))
        return self.engines[-1]

    def subscribe_topic(self, topic: str, handler: Any) -> None:
        self.handlers[topic] = handler

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        assert n_workers == -1, "all workers"
        return {"workers": self.workers}


def worker(threads: int = 1, **resources: float) -> dict[str, Any]:
    return {"nthreads": threads, "resources": resources}


def run_task(run: Settings, task: Task) -> TaskResult:
    assert run == RUN
    return TaskResult(name=task.name, is_new=True)


def test_only_a_function_and_text_travel_and_a_worker_says_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    executor = DaskExecutor(client, uses_gpus=False)  # type: ignore[arg-type]
    future = executor.submit(run_task, RUN, TRAIN)
    [engine] = client.engines
    [(function, *arguments)] = engine.submitted
    assert (function, arguments[0]) == (run_on_worker, run_task)
    assert all(isinstance(each, str) for each in arguments[1:])
    assert not future.running()
    assert not future.cancel()
    [(topic, handler)] = client.handlers.items()
    logged = SimpleNamespace(log_event=lambda name, message: handler((0.0, message)) if name == topic else None)
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(get_worker=lambda: logged))
    answer = function(*arguments)
    assert future.running()
    handler((0.0, TRAIN.name))  # again, after a lost worker
    engine.futures[0].set_result(answer)
    assert future.result(timeout=0) == TaskResult(name=TRAIN.name, is_new=True)
    handler((0.0, TRAIN.name))  # an event that comes late


def test_tasks_that_compute_on_a_gpu_demand_one() -> None:
    client = Client(a=worker(GPU=1), b=worker())
    executor = DaskExecutor(client, uses_gpus=True)  # type: ignore[arg-type]
    executor.submit(run_task, RUN, PREPROCESS)
    executor.submit(run_task, RUN, TRAIN)
    assert {each.submitted[0][2]: each.options for each in client.engines} == {
        graph_of_one(RUN, PREPROCESS).model_dump_json(): {"pure": False, "retries": RETRIES},
        graph_of_one(RUN, TRAIN).model_dump_json(): {"pure": False, "retries": RETRIES, "resources": {"GPU": 1}},
    }


@pytest.mark.parametrize(("uses_gpus", "size"), [(True, 1), (False, 2)])
def test_as_many_tasks_run_at_once_as_there_are_workers_for_them(uses_gpus: bool, size: int) -> None:
    client = Client(a=worker(GPU=1), b=worker())
    assert DaskExecutor(client, uses_gpus=uses_gpus).size == size  # type: ignore[arg-type]


def test_a_lost_task_is_no_bug_of_ours() -> None:
    client = Client()
    executor = DaskExecutor(client, uses_gpus=False)  # type: ignore[arg-type]
    killed, gone, wrong = (executor.submit(run_task, RUN, TRAIN) for _ in range(3))
    first, second, third = client.engines[0].futures
    first.set_exception(KilledWorker("died on 4 workers"))
    second.cancel()
    second.set_running_or_notify_cancel()
    third.set_exception(ZeroDivisionError())
    with pytest.raises(BrokenExecutor, match="died on 4 workers"):
        killed.result(timeout=0)
    with pytest.raises(BrokenExecutor, match="connection to the Dask scheduler was lost"):
        gone.result(timeout=0)
    with pytest.raises(ZeroDivisionError):
        wrong.result(timeout=0)


@pytest.mark.parametrize(
    ("workers", "device", "expected"),
    [
        ({"a": worker()}, "cpu", False),
        ({"a": worker(GPU=1)}, "cpu", False),
        ({"a": worker(8, GPU=1), "b": worker(8)}, "auto", True),
        ({"a": worker()}, "auto", False),
    ],
)
def test_a_gpu_is_demanded_where_workers_offer_one(
    workers: dict[str, Any], device: str, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "segwright")
    assert dask_engine._uses_gpus(Client(**workers), "x:1", device) is expected  # type: ignore[arg-type]
    assert ("no worker offers the resource GPU" in caplog.text) is (device == "auto" and not expected)


@pytest.mark.parametrize(
    ("workers", "device", "message"),
    [
        (
            {"a": worker(), "b": worker(4)},
            "cpu",
            "x:1: worker b would run 4 trainings at once .*--nthreads 1$",
        ),
        ({"a": worker(4)}, "auto", "worker a would run 4 trainings"),
        ({"a": worker(4, GPU=2)}, "cuda", "worker a would run 2 trainings at once .*--nthreads 1 --resources GPU=1$"),
    ],
)
def test_a_worker_that_would_train_several_at_once_is_refused(
    workers: dict[str, Any], device: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dask_engine._uses_gpus(Client(**workers), "x:1", device)  # type: ignore[arg-type]


def test_without_dask_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r'distributed is not installed; pip install "segwright\[cluster\]"$'):
        dask_executor("x:1").__enter__()


def test_only_this_module_imports_dask_and_only_extras_install_it() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [each for each in project["dependencies"] if "dask" in each or "distributed" in each]
    assert project["optional-dependencies"]["cluster"][0].startswith("dask[distributed]")
    importers = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & {"dask", "distributed"}:
                importers.add(path.name)
    assert importers == {"dask_engine.py"}


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "htp://x:1"])
def test_an_address_without_a_scheduler_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(dask_engine, "CONNECT_S", 0.5)
    with pytest.raises(ConfigError, match=f"Dask scheduler {address}: does not answer .*; expected a running dask sch"):
        dask_executor(address).__enter__()


def test_a_server_of_another_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(dask_engine, "CONNECT_S", 5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request")
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"Dask scheduler {address}: does not answer"):
            dask_executor(address).__enter__()
        thread.join()


def test_a_missing_scheduler_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(ConfigError, match=r"Dask scheduler file .*none.json: no such file; dask scheduler --"):
        dask_executor(str(tmp_path / "none.json")).__enter__()
