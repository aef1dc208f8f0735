"""Run the tasks of a run on the workers of a Dask scheduler; needs the extra `cluster`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segwright.api.cluster.execution import RunTask
from segwright.api.cluster.tasks import WITHOUT_GPU, AnyGraph, TaskResult, graph_of_one
from segwright.core.device import CPU
from segwright.core.errors import ConfigError
from segwright.core.extensions.extras import imports_of
from segwright.core.process_tuning import gc_paused

if TYPE_CHECKING:
    from distributed import Client

logger = getLogger(__name__)

CONNECT_S: Final = 10
"""Seconds until an address without a scheduler is reported."""
FIRST_WORKER_S: Final = 60
"""Seconds until a scheduler without workers is reported."""
RETRIES: Final = 2
"""After an unexpected error of a task. Lost workers are counted by the scheduler (`allowed-failures`, 3)."""
GPU: Final = "GPU"
"""Resource of a worker that has a GPU: `dask worker --resources GPU=1`."""


@contextmanager
def dask_executor(address: str, *, device: str = "auto") -> Iterator[DaskExecutor]:
    """Connect to a Dask scheduler and yield an executor for `run`; each worker runs one training at a time.

    Args:
        address: of the scheduler, such as `tcp://host:8786`, or its scheduler file, whose name ends with `.json`.
        device: of the tasks. Unless it is cpu, and if a worker offers the resource GPU, tasks that compute on a GPU run
            on such workers only.

    Raises:
        ConfigError: the package is missing, no scheduler or worker answers, or a worker would run several trainings at
            once.
    """
    with _connected(address) as client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            logger.info("Dask scheduler %s has no worker; waiting up to %d s for the first", address, FIRST_WORKER_S)
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError as error:
            raise ConfigError(
                f"Dask scheduler {address}: has no worker after {FIRST_WORKER_S} s; start some, for instance "
                "dask worker ADDRESS --nthreads 1"
            ) from error
        executor = DaskExecutor(client, uses_gpus=_uses_gpus(client, address, device))
        try:
            yield executor
        finally:
            executor.shutdown()


class DaskExecutor(Executor):
    """Runs tasks on Dask's workers; made by `dask_executor`.

    Only the function's name and JSON text travel. A task whose worker was lost runs again on another one.
    """

    def __init__(self, client: Client, *, uses_gpus: bool) -> None:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        self.size: Final = sum(GPU in worker["resources"] or not uses_gpus for worker in workers)
        """Number of workers that train and predict, when it was made."""
        options = {"pure": False, "retries": RETRIES}
        self._anywhere: Executor = client.get_executor(**options)
        self._on_gpus: Executor = client.get_executor(**options, resources={GPU: 1}) if uses_gpus else self._anywhere
        self._topic = f"segwright-{client.id}"
        self._futures: dict[str, _TaskFuture] = {}
        client.subscribe_topic(self._topic, self._note_start)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a task, as `run_graph` does.

        Args:
            function: runs a task, and is defined in a module.
            args: settings of the graph, and the task.
            kwargs: none.
        """
        run, task = args
        future = self._futures[task.name] = _TaskFuture()
        engine = self._anywhere if task.verb in WITHOUT_GPU else self._on_gpus
        inner = engine.submit(run_on_worker, function, graph_of_one(run, task).model_dump_json(), self._topic)
        inner.add_done_callback(partial(_pass_on, future))
        return future

    def _note_start(self, event: tuple[float, str]) -> None:
        self._futures[event[1]].start()


class _TaskFuture(Future[TaskResult]):
    """The result of a task, which is running since its worker says so."""

    def start(self) -> None:
        """Note that the task has begun, perhaps again."""
        if not (self.running() or self.done()):
            self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Return False: a worker may have begun the task, and Dask ends no thread. A stop file stops it."""
        return False


def run_on_worker(function: RunTask, graph: str, topic: str) -> str:
    """Run a task in a worker of Dask.

    Args:
        function: runs it.
        graph: of this task alone, as JSON.
        topic: of the event that says that it has begun.

    Returns:
        Its result as JSON.
    """
    from distributed import get_worker

    parsed = AnyGraph.model_validate_json(graph)
    [task] = parsed.tasks
    get_worker().log_event(topic, task.name)
    return function(parsed.run, task).model_dump_json()


def _pass_on(outer: _TaskFuture, inner: Future[str]) -> None:
    """Set the result of a task, or an error; errors of Dask itself mean that the task was lost."""
    outer.start()
    try:
        outer.set_result(TaskResult.model_validate_json(inner.result()))
    except CancelledError:
        outer.set_exception(BrokenExecutor("the connection to the Dask scheduler was lost"))
    except Exception as error:
        is_lost = type(error).__module__.split(".")[0] == "distributed"
        outer.set_exception(BrokenExecutor(str(error)) if is_lost else error)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    with imports_of("cluster"):
        from distributed import Client
    connect: Callable[..., Client] = partial(Client, timeout=CONNECT_S, set_as_default=False)
    if address.endswith(".json"):
        if not Path(address).is_file():
            raise ConfigError(f"Dask scheduler file {address}: no such file; dask scheduler --scheduler-file writes it")
        connect = partial(connect, scheduler_file=address)
    else:
        connect = partial(connect, address)
    try:
        with gc_paused():  # a client that failed before takes a lock when it is collected, which this one may hold
            client = connect()
    except (OSError, ValueError, MemoryError) as error:  # Dask reads another protocol's first bytes as a length
        raise ConfigError(
            f"Dask scheduler {address}: does not answer ({error}); expected a running dask scheduler, given as "
            "tcp://HOST:PORT or as its scheduler file"
        ) from error
    with client:
        yield client


def _uses_gpus(client: Client, address: str, device: str) -> bool:
    """Return whether tasks demand the resource GPU, after checking that no worker runs several trainings at once.

    Raises:
        ConfigError: a worker does.
    """
    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    gpus = {name: int(worker["resources"].get(GPU, 0)) for name, worker in workers.items()}
    uses_gpus = device != CPU and any(gpus.values())
    for name, worker in workers.items():
        at_once = min(worker["nthreads"], gpus[name]) if uses_gpus else worker["nthreads"]
        if at_once > 1:
            raise ConfigError(
                f"Dask scheduler {address}: worker {name} would run {at_once} trainings at once in one process; start "
                f"one worker for each with --nthreads 1{f' --resources {GPU}=1' if uses_gpus else ''}"
            )
    if device != CPU and not uses_gpus:
        logger.info("no worker offers the resource GPU (dask worker --resources GPU=1): each may run any task")
    return uses_gpus
