"""Commands that make raw datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import print_json, print_line


def convert(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help="msd (Medical Segmentation Decathlon) or nnunet-v1.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the dataset; it is never changed.")],
    target: Annotated[Path, typer.Argument(metavar="DEST", help="New dataset folder, or the folder it is put into.")],
    link: Annotated[bool, typer.Option("--link", help="Make hard links instead of copies.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Convert a dataset of another layout into a raw dataset; start it again to continue it."""
    from segwright import api

    converted = api.convert(kind, source, target, link=link)
    assert converted is not None  # nobody was asked
    if as_json:
        print_json({"dataset": converted.dataset, "written": converted.num_written, "kept": converted.num_kept})
    else:
        print_line(f"{converted.dataset}: {converted.num_written} files written, {converted.num_kept} kept")
        print_line(f"next: segwright check {converted.dataset}")
