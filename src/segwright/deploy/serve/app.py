"""The HTTP interface of a server: routes, their documents, and answers to errors."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from logging import getLogger
from typing import IO, Any, Final

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import segwright
from segwright.core.errors import SegwrightError
from segwright.core.resources import resource_error
from segwright.deploy.serve.gate import Gate
from segwright.deploy.serve.inputs import IMAGE, case_files, choose_model, choose_output
from segwright.deploy.serve.inputs import OUTPUTS as DOCUMENTED_OUTPUTS
from segwright.deploy.serve.jobs import INPUTS, OUTPUTS, VIEW_JSON, Failure, Job, State
from segwright.deploy.serve.limits import ServeLimits
from segwright.deploy.serve.models import ServedModel
from segwright.deploy.serve.queue import JobQueue
from segwright.deploy.serve.refusals import Refusal, refusal_of
from segwright.deploy.serve.upload import receive_form, too_large

logger = getLogger(__name__)

_POLL_S: Final = 0.1
_BLOCK: Final = 1 << 20

_FORM: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [IMAGE],
                    "properties": {
                        IMAGE: {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "One image file for each channel, in the order of /v1/models; or one zip "
                            "file with all of them, or with a DICOM study. Fields may be named after channels instead.",
                        },
                        "model": {"type": "string", "description": "Name of the model; not needed if there is one."},
                        "output": {"type": "string", "enum": [*DOCUMENTED_OUTPUTS], "default": "nifti"},
                        "view": {"type": "boolean", "description": "Also make what the page draws."},
                    },
                }
            }
        },
    }
}


class JobStatus(BaseModel):
    """A job as clients see it.

    Attributes:
        id: of the job.
        model: name of the model.
        state: queued, running, done or failed.
        place: place in the queue, from 1; None if the job does not wait.
        progress: share of the tiles that are predicted, from 0 to 1.
        warnings: what is unusual about the image or the prediction.
        expected_dice: estimate from held-out cases; None for a model without one.
        confidence: mean Dice that the model's own probabilities predict; None without foreground.
        error: why the job failed.
        created: time of the upload, in seconds since 1970.
        expires: time at which everything of the job is deleted; None before it has ended.
    """

    id: str
    model: str
    state: State
    place: int | None = None
    progress: float = 0.0
    warnings: tuple[str, ...] = ()
    expected_dice: float | None = None
    confidence: float | None = None
    error: Failure | None = None
    created: float
    expires: float | None = None


class ModelInfo(BaseModel):
    """A model as clients see it.

    Attributes:
        name: by which jobs choose it.
        channels: in the order in which images are sent.
        labels: names by label value.
        endings: file endings of images that it reads.
        result_ending: file ending of the label maps.
    """

    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    endings: tuple[str, ...]
    result_ending: str


class Routes:
    """The functions behind the routes.

    Args:
        models: in the order of `/v1/models`.
        queue: of the jobs.
        limits: of the server.
        is_ready: whether jobs are predicted.
        page: HTML of `/`, and its content security policy; None without a page.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        queue: JobQueue,
        limits: ServeLimits,
        *,
        is_ready: Callable[[], bool],
        page: tuple[str, str] | None,
    ) -> None:
        self._models = models
        self._queue = queue
        self._limits = limits
        self._is_ready = is_ready
        self._page = page

    def root(self) -> Response:
        """Return the page."""
        if self._page is None:
            raise Refusal(404, "this server has no page", expected="/v1/models, /v1/jobs; see /openapi.json")
        html, policy = self._page
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    def healthz(self) -> dict[str, str]:
        """Answer that the server runs."""
        return {"status": "alive"}

    def readyz(self) -> dict[str, str]:
        """Answer that the models are loaded and jobs are accepted; status 503 if not."""
        if self._queue.is_closed or not self._is_ready():
            raise Refusal(503, "the server is about to end, or its worker has ended", remedy="use another server")
        return {"status": "ready"}

    def list_models(self) -> list[ModelInfo]:
        """List the models with their channels and labels."""
        return [
            ModelInfo(
                name=model.name,
                channels=model.channels,
                labels=model.label_names,
                endings=model.endings,
                result_ending=model.description.file_ending,
            )
            for model in self._models
        ]

    async def submit(self, request: Request) -> JobStatus:
        """Upload a case; answers with status 202 and the job as soon as it waits."""
        return self._status(await self._receive(request))

    def status(self, job: str) -> JobStatus:
        """Return state, place in the queue, progress, warnings and expected Dice of a job."""
        return self._status(self._queue.get(job))

    def result(self, job: str) -> Response:
        """Download the result of a job that is done."""
        return self._file(self._finished(job))

    def view(self, job: str) -> Response:
        """Return what the page draws of a job that was sent with `view`."""
        path = self._queue.folders.folder(self._finished(job).id) / OUTPUTS / VIEW_JSON
        try:
            return Response(path.read_bytes(), media_type="application/json")
        except FileNotFoundError as error:
            raise Refusal(
                409, "the job was sent without field view", expected="view=true", remedy="send it again"
            ) from error

    def delete(self, job: str) -> dict[str, str]:
        """Cancel a job, or delete its result; its files are deleted."""
        self._queue.cancel(job)
        return {"id": job, "state": "cancelled"}

    async def predict(self, request: Request) -> Response:
        """Upload a case, wait, and download the result; then everything of it is deleted.

        If the client closes the connection, the job is cancelled.
        """
        job = await self._receive(request)
        try:
            while not job.is_finished:
                if await request.is_disconnected():
                    return Response(status_code=400)
                if self._queue.is_closed and job.state == "queued":
                    raise Refusal(503, "the server is about to end", remedy="send the case again, later")
                await asyncio.sleep(_POLL_S)
                job = self._queue.get(job.id)
            return self._file(self._finished(job.id))
        finally:
            await asyncio.to_thread(self._queue.discard, job.id)

    async def _receive(self, request: Request) -> Job:
        """Receive a case and put it into the queue.

        Raises:
            Refusal: it is refused.
        """
        limits, folders = self._limits, self._queue.folders
        with self._queue.place():
            length = request.headers.get("content-length", "")
            if length.isdecimal() and int(length) > limits.upload_bytes:
                raise too_large(int(length), limits.upload_bytes)
            job = secrets.token_hex(16)
            try:
                folder = folders.new_upload(job)
                form = await receive_form(
                    self._while_open(request.stream()),
                    request.headers.get("content-type", ""),
                    folder / INPUTS,
                    max_bytes=limits.upload_bytes,
                    stall_s=limits.stall_s,
                )
                model, output = choose_model(form, self._models), choose_output(form)
                files = await asyncio.to_thread(
                    case_files,
                    form,
                    model,
                    job,
                    folder,
                    max_bytes=limits.upload_bytes,
                    max_voxels=limits.voxels,
                )
                view = form.values.get("view", "").lower() in ("true", "1", "on")
                accepted = Job(
                    id=job, model=model.name, output=output, view=view, files=tuple(files), created=time.time()
                )
                await asyncio.to_thread(self._queue.add, accepted)
            except BaseException:
                folders.wipe(job)
                raise
        logger.info("job %s: accepted for model %s", job, model.name)
        return accepted

    async def _while_open(self, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the blocks of an upload, unless the server is about to end."""
        async for block in blocks:
            self._queue.require_open()
            yield block

    def _status(self, job: Job) -> JobStatus:
        shares = {"queued": 0.0, "done": 1.0}
        return JobStatus(
            id=job.id,
            model=job.model,
            state=job.state,
            place=self._queue.position(job.id),
            progress=shares.get(job.state, self._queue.progress(job.id)),
            warnings=job.warnings,
            expected_dice=job.expected_dice,
            confidence=job.confidence,
            error=job.failure,
            created=job.created,
            expires=None if job.finished is None else job.finished + self._limits.retention_s,
        )

    def _finished(self, job: str) -> Job:
        """Return a job that is done.

        Raises:
            Refusal: it has failed (422), or waits or runs (409).
        """
        found = self._queue.get(job)
        if found.failure is not None:
            raise Refusal(422, found.failure.what, remedy=found.failure.remedy)
        if found.state != "done":
            raise Refusal(
                409,
                f"the job is {found.state}",
                expected="a job that is done",
                remedy=f"ask GET /v1/jobs/{job} until its state is done",
                headers={"Retry-After": "1"},
            )
        return found

    def _file(self, job: Job) -> Response:
        """Return the result of a job; its file may be deleted while it is sent."""
        path = self._queue.folders.folder(job.id) / OUTPUTS / job.result
        try:
            stream = path.open("rb")
        except FileNotFoundError as error:
            raise Refusal(404, "the result was deleted", remedy="send the images again") from error
        ending = job.result.removeprefix(job.id).removeprefix("_")
        ending = ending if ending.startswith(".") else f"-{ending}"
        headers = {
            "Content-Length": str(path.stat().st_size),
            "Content-Disposition": f'attachment; filename="segmentation{ending}"',
            "X-Job-Id": job.id,
        }
        return StreamingResponse(_blocks(stream), media_type="application/octet-stream", headers=headers)


def make_app(routes: Routes, *, token: str | None) -> Gate:
    """Return the application."""
    app = FastAPI(
        title="Segwright",
        version=segwright.__version__,
        description="Predicts medical images. Requests are answered as described in docs/how-to/serve.md.",
        docs_url=None,  # both load scripts from other servers
        redoc_url=None,
    )
    bearer = [Depends(HTTPBearer(auto_error=False))]
    error = {"description": "Refused: what is wrong, what was expected, and what to do.", "content": {
        "application/json": {"example": Refusal(422, "what", expected="...", remedy="...").to_json()}
    }}  # fmt: skip
    refused: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 408, 413, 415, 422, 429, 503), error)
    missing: dict[int | str, dict[str, Any]] = dict.fromkeys((401, 403, 404), error)
    early: dict[int | str, dict[str, Any]] = {**missing, 409: error, 422: error}
    binary: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}
    add = app.add_api_route
    add("/", routes.root, methods=["GET"], include_in_schema=False)
    add("/healthz", routes.healthz, methods=["GET"])
    add("/readyz", routes.readyz, methods=["GET"], responses={503: error})
    add("/v1/models", routes.list_models, methods=["GET"], dependencies=bearer)
    add(
        "/v1/jobs",
        routes.submit,
        methods=["POST"],
        status_code=202,
        responses=refused,
        openapi_extra=_FORM,
        dependencies=bearer,
    )
    add("/v1/jobs/{job}", routes.status, methods=["GET"], responses=missing, dependencies=bearer)
    add("/v1/jobs/{job}", routes.delete, methods=["DELETE"], responses=missing, dependencies=bearer)
    add(
        "/v1/jobs/{job}/result",
        routes.result,
        methods=["GET"],
        responses={**early, **binary},
        response_class=Response,
        dependencies=bearer,
    )
    add("/v1/jobs/{job}/view", routes.view, methods=["GET"], responses=early, dependencies=bearer)
    add(
        "/v1/predict",
        routes.predict,
        methods=["POST"],
        responses={**refused, **binary},
        response_class=Response,
        openapi_extra=_FORM,
        dependencies=bearer,
    )
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)
    return Gate(_WithoutBugs(app), token=token)


class _WithoutBugs:
    """Answers unexpected errors, so that nothing else logs them: their messages may hold names."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            lines = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s: unexpected %s\n%s", scope.get("method"), type(error).__name__, lines)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while block := stream.read(_BLOCK):
            yield block


def _answer(refusal: Refusal) -> Response:
    return JSONResponse(refusal.to_json(), status_code=refusal.status, headers=refusal.headers)


async def _answer_refusal(_: Request, refusal: Refusal) -> Response:
    return _answer(refusal)


async def _answer_error(_: Request, error: SegwrightError) -> Response:
    return _answer(refusal_of(error, 422))


async def _answer_disconnect(_: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _answer_http(_: Request, error: HTTPException) -> Response:
    """Answer an unknown path or method."""
    known = {404: "there is no such address", 405: "this address does not take the method"}
    what = known.get(error.status_code, str(error.detail))
    headers: Mapping[str, str] = error.headers or {}
    return _answer(Refusal(error.status_code, what, expected="one of those in /openapi.json", headers=headers))


async def _answer_bug(_: Request, error: Exception) -> Response:
    known = resource_error(error)
    if known is not None:
        return _answer(refusal_of(known, 503))
    return _answer(Refusal(500, "internal error, see the server's log", remedy="report it to the project"))


_ANSWERS: Final[dict[Any, Any]] = {
    Refusal: _answer_refusal,
    SegwrightError: _answer_error,
    ClientDisconnect: _answer_disconnect,
    HTTPException: _answer_http,
    Exception: _answer_bug,
}
