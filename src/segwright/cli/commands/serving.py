"""The command `serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.signals import stop_on_signals
from segwright.cli.tables import print_line

TOKEN_VARIABLE = "SEGWRIGHT_TOKEN"
_GIB = 2**30


def serve(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL ...", help="Model folders, zips or names, as of predict; NAME=MODEL names one."),
    ],
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any free one.")] = 8477,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help=f"Bearer token, mode 0600 (or variable {TOKEN_VARIABLE})."),
    ] = None,
    jobs: Annotated[
        Path | None, typer.Option("--jobs", metavar="DIR", help="Folder of uploads and results (default WORK/serve).")
    ] = None,
    retention: Annotated[
        str, typer.Option("--retention", metavar="TIME", help="Results are deleted after it, e.g. 90s, 10m, 1h.")
    ] = "1h",
    queue: Annotated[int, typer.Option("--queue", metavar="N", min=1, help="Jobs that may wait.")] = 16,
    max_upload: Annotated[
        float, typer.Option("--max-upload", metavar="GIB", help="Largest upload, also of a zip file unpacked.")
    ] = 2.0,
    max_voxels: Annotated[
        int, typer.Option("--max-voxels", metavar="N", min=1, help="Largest image (default 2^29).")
    ] = 2**29,
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="0,1|all", help="Folds to average (default: all).")
    ] = None,
    no_mirroring: Annotated[bool, typer.Option("--no-mirroring", help="Faster, a little less accurate.")] = False,
    precision: Annotated[
        str, typer.Option("--precision", metavar="P", help="fp32, bf16, fp16, or auto (fastest).")
    ] = "auto",
    network: options.TrustedNetwork = None,
    trust_code: options.TrustCode = False,
    device: Annotated[
        str, typer.Option("--device", "--devices", metavar="NAME", help="auto, cpu, mps, cuda:1, or cuda:0,cuda:1.")
    ] = "auto",
) -> None:
    """Predict images that clients upload over HTTP; ends after the running job on SIGTERM."""
    from segwright import api
    from segwright.api.budgeting import parse_duration
    from segwright.deploy.serve.limits import ServeLimits, read_token

    retention_s = parse_duration(retention, "--retention")
    assert retention_s is not None, "the option has a default"
    limits = ServeLimits(upload_bytes=int(max_upload * _GIB), voxels=max_voxels, queue=queue, retention_s=retention_s)
    token = read_token(token_file) if token_file is not None else os.environ.get(TOKEN_VARIABLE) or None
    with stop_on_signals("finishing the running job") as stop:
        api.serve(
            models,
            host=host,
            port=port,
            token=token,
            jobs=jobs,
            limits=limits,
            folds=options.fold_numbers(folds),
            mirroring=not no_mirroring,
            precision=precision,
            device=device,
            trust_code=options.code_trust(trust_code, network),
            stop=stop,
            on_start=_print_address,
            workspace=options.workspace_of(context),
        )


def _print_address(address: str) -> None:
    print_line(f"listening at {address}")
    sys.stdout.flush()  # programs that start a server read the port here
