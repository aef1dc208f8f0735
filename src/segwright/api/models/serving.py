"""Serve models over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segwright.core.errors import ConfigError
from segwright.core.extensions.extras import imports_of
from segwright.core.extensions.trust import TrustCode
from segwright.core.files.names import name_problem
from segwright.core.interrupt import StopRequest
from segwright.workspace import Workspace

if TYPE_CHECKING:
    from segwright.deploy.serve.limits import ServeLimits
    from segwright.deploy.serve.models import ServedModel

logger = getLogger(__name__)

DEFAULT_PORT = 8477


def serve(
    models: Path | str | Sequence[Path | str],
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    jobs: Path | str | None = None,
    limits: ServeLimits | None = None,
    folds: Sequence[int] | Literal["all"] | None = None,
    checkpoint: str = "final",
    mirroring: bool = True,
    precision: str = "auto",
    device: str = "auto",
    trust_code: TrustCode = False,
    stop: StopRequest | None = None,
    on_start: Callable[[str], None] | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Predict images that clients upload, with models that are loaded once, until a stop is requested.

    Needs the extra `serve`. Addresses and statuses: `docs/how-to/serve.md`.

    Args:
        models: Models as of `load_model`; each may have a name for clients in front, `NAME=MODEL`. By default that of
            its folder, or the name under which it is installed.
        host: Address to listen at; others than those of this machine alone need a token.
        port: TCP port; 0 for any free one.
        token: Bearer token that every request needs; at least 16 visible ASCII characters.
        jobs: Folder for uploaded images and results, deleted after the retention of `limits`; `serve` in the work
            folder by default.
        limits: On requests and jobs; see `ServeLimits`.
        folds: Folds to average; all trained folds by default.
        checkpoint: final, best or latest.
        mirroring: Test-time augmentation by mirroring.
        precision: fp32, bf16, fp16, or auto: the fastest of the device.
        device: auto, cpu, mps, a GPU, or several GPUs separated by commas, each of which predicts one job at a time.
        trust_code: Whether to import code that the models name; as for `load_model`.
        stop: Request to end from another thread or a signal handler; the running jobs are finished first.
        on_start: Is called with the address once the server listens.
        workspace: Where models and results are; `./segwright-work` by default.

    Raises:
        ConfigError: The extra is missing, an option is invalid, two models have the same name, or the address is in
            use.
        LockHeldError: Another server uses the folder of jobs.
        SegwrightError: A model cannot be loaded.
    """
    with imports_of("serve"):
        from segwright.deploy.serve.server import serve_models
    from segwright.deploy.serve.limits import ServeLimits, checked_token, require_token
    from segwright.report.upload_page import upload_page

    place = Workspace.default() if workspace is None else workspace
    checked = None if token is None else checked_token(token, "token")
    require_token(host, checked)
    given = [models] if isinstance(models, Path | str) else list(models)
    options: dict[str, Any] = {
        "folds": folds,
        "checkpoint": checkpoint,
        "mirroring": mirroring,
        "precision": precision,
        "trust_code": trust_code,
        "workspace": place,
    }
    loaded = _load(given, [name.strip() for name in device.split(",")], options)
    serve_models(
        loaded,
        place.served_jobs if jobs is None else Path(jobs).absolute(),
        host=host,
        port=port,
        token=checked,
        limits=ServeLimits() if limits is None else limits,
        page=upload_page(needs_token=checked is not None),
        draw_view=_draw_view,
        stop=stop,
        on_start=_log_address if on_start is None else on_start,
    )


def _load(given: Sequence[Path | str], devices: Sequence[str], options: dict[str, Any]) -> list[ServedModel]:
    """Load each model on each device.

    Raises:
        ConfigError: none is given, or two have the same name.
        SegwrightError: one cannot be loaded.
    """
    from segwright.api.predicting import load_model
    from segwright.deploy.serve.models import ServedModel

    named = [_named(each) for each in given]
    names = [name for name, _ in named]
    twins = sorted({name for name in names if names.count(name) > 1})
    if not named or twins:
        what = f"two models are named '{twins[0]}'" if twins else "no model is given"
        raise ConfigError(f"{what}; give each as NAME=MODEL with a name of its own")
    loaded = []
    for name, model in named:
        predictors = tuple(load_model(model, device=device, **options) for device in devices)
        loaded.append(ServedModel(name=name, predictors=predictors))
    return loaded


def _draw_view(model: ServedModel, images: Sequence[Path], label_map: Path) -> dict[str, Any]:
    """Return what the page of the server draws of a predicted case."""
    from segwright.report.upload_page import prediction_view

    first = model.predictors[0]
    return prediction_view(images, label_map, reader=first.reader, labels=first.labels, channels=model.channels)


def _named(model: Path | str) -> tuple[str, Path | str]:
    """Return the name of a model for clients, and the model.

    Raises:
        ConfigError: the name cannot be one.
    """
    name, equals, rest = str(model).partition("=")
    if not equals or Path(model).exists():
        name, rest = Path(model).absolute().name.removesuffix(".zip"), str(model)
    if wrong := name_problem(name):
        raise ConfigError(f"model '{model}': its name {wrong}; give it as NAME=MODEL")
    return name, rest


def _log_address(address: str) -> None:
    logger.info("listening at %s", address)
