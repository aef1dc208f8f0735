"""Run a server: take the jobs folder, listen, predict until a stop is requested, and end without losing a job."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from logging import getLogger
from pathlib import Path
from typing import Final

import uvicorn

from segwright.core.errors import ConfigError
from segwright.core.files.locks import locked
from segwright.core.interrupt import StopRequest
from segwright.deploy.serve.app import Routes, make_app
from segwright.deploy.serve.gate import MAX_HEADER_BYTES
from segwright.deploy.serve.jobs import JobFolders
from segwright.deploy.serve.limits import ServeLimits, is_loopback, require_token
from segwright.deploy.serve.models import DrawView, ServedModel
from segwright.deploy.serve.queue import JobQueue
from segwright.deploy.serve.worker import Workers

logger = getLogger(__name__)

_TICK_S: Final = 0.2
_SWEEP_S: Final = 1.0
_ABORT_S: Final = 60.0
"""Seconds in which a running job ends after its forward pass, when the server is to end at once."""


def serve_models(
    models: Sequence[ServedModel],
    folder: Path,
    *,
    host: str,
    port: int,
    token: str | None,
    limits: ServeLimits,
    page: tuple[str, str] | None = None,
    draw_view: DrawView | None = None,
    stop: StopRequest | None = None,
    on_start: Callable[[str], None] = lambda address: None,
) -> None:
    """Predict uploaded cases until a stop is requested; a running job is finished first.

    Jobs that wait then are kept in `folder` and predicted by the next server. So are all jobs of a server that was
    killed.

    Args:
        models: loaded, with different names.
        folder: holds the jobs; one server uses it at a time.
        host: address to listen at.
        port: TCP port; 0 for any free one.
        token: bearer token that requests need.
        limits: on requests and jobs.
        page: HTML of `/`, and its content security policy.
        draw_view: makes what the page draws.
        stop: request to end; without one, the server runs until an exception such as KeyboardInterrupt.
        on_start: is called with the address once it listens.

    Raises:
        ConfigError: the address is in use or not of this machine, or other machines can reach it without a token.
        LockHeldError: another server uses the folder.
        WorkspaceError: the folder cannot be written to.
    """
    require_token(host, token)
    wanted = StopRequest() if stop is None else stop
    with (
        locked(folder / ".lock", f"serving with jobs in {folder}", wait=False),
        closing(_listen(host, port)) as listening,
    ):
        folders = JobFolders(folder)
        folders.prepare()
        workers_of = len(models[0].predictors)
        queue = JobQueue(folders, size=limits.queue, workers=workers_of, retention_s=limits.retention_s)
        queue.restore(frozenset(model.name for model in models))
        workers = Workers(queue, {model.name: model for model in models}, draw_view)
        app = make_app(Routes(models, queue, limits, is_ready=workers.are_alive, page=page), token=token)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # its messages may hold addresses of clients and lines of our code
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            h11_max_incomplete_event_size=8 * MAX_HEADER_BYTES,  # below that the answer says what is wrong
        )
        server = uvicorn.Server(config)
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="segwright-http")
        workers.start()
        try:
            with wanted.watched():
                serving.start()  # not in the main thread, where it would replace the handlers of signals
                on_start(_address(listening, host))
                _wait(wanted, serving, queue, workers)
            queue.close()
            server.should_exit = True
            logger.info("%s: the running jobs are finished, then the server ends", wanted.reason or "server ended")
            while serving.is_alive() or not workers.join(_TICK_S):
                serving.join(_TICK_S)
            if not wanted.reason:
                raise RuntimeError("a thread of the server has ended; the log says why")
        finally:
            queue.abort()
            server.should_exit = server.force_exit = True
            if serving.ident is not None:
                serving.join(_ABORT_S)
            workers.join(_ABORT_S)


def _wait(stop: StopRequest, serving: threading.Thread, queue: JobQueue, workers: Workers) -> None:
    """Wait for a stop request, or the end of a thread, and delete old jobs meanwhile."""
    last = 0.0
    while not stop.reason and serving.is_alive() and workers.are_alive():
        time.sleep(_TICK_S)
        if time.monotonic() - last > _SWEEP_S:
            queue.wipe_old()
            last = time.monotonic()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: the address is in use, or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host {host}: {error.strerror or error}; give an address of this machine") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host}, port {port}: cannot be listened at ({error.strerror or error}); choose another --port, or an "
            "address of this machine"
        ) from error
    listening.setblocking(False)
    return listening


def _address(listening: socket.socket, host: str) -> str:
    """Return the address of a server for the log."""
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    where = "" if is_loopback(host) else " (of all machines that reach this one)"
    return f"http://{shown}:{port}{where}"
