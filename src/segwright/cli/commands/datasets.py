"""Commands that make raw datasets."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import print_json, print_line, print_table
from segwright.core.text import listed

if TYPE_CHECKING:
    from segwright.interop.datasets.conversion import Conversion
    from segwright.interop.datasets.proposal import Proposal

MAX_PREVIEWED = 20
"""Cases that a table shows."""

Images = Annotated[
    str | None,
    typer.Option("--images", metavar="DIR|PATTERN", help="Where images are, e.g. 'scans/{case}_{channel}.nii.gz'."),
]
LabelMaps = Annotated[
    str | None, typer.Option("--labels", metavar="DIR|PATTERN", help="Where label maps are, e.g. 'masks/{case}.png'.")
]
ChannelNames = Annotated[
    list[str] | None, typer.Option("--channel-names", metavar="A,B", help="Names of the channels, e.g. CT.")
]
LabelNames = Annotated[
    list[str] | None,
    typer.Option("--label-names", metavar="A,B", help="Names of the labels by value, background left out."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that holds images and label maps.")],
    images: Images = None,
    labels: LabelMaps = None,
    channel_names: ChannelNames = None,
    label_names: LabelNames = None,
    yes: Yes = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing dataset.json.")] = False,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Look at a folder of images and label maps and write its dataset.json."""
    from segwright import api

    asks = _asks(yes, as_json)
    written = api.init(
        folder,
        images=images,
        labels=labels,
        channel_names=options.split_list(channel_names) or None,
        label_names=options.split_list(label_names) or None,
        force=force,
        workers=workers,
        review=_ask_names if asks else None,
    )
    if written is None:
        raise typer.Abort
    if as_json:
        print_json({"file": folder / "dataset.json", **_shown_proposal(written)})
        return
    if not asks:
        _print_proposal(written)
    print_line(f"written: {folder / 'dataset.json'}")
    print_line(f"next: segwright check {folder}")


def convert(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="msd (Medical Segmentation Decathlon), nnunet-v1, folders (of images and label maps, or a CSV), "
            "dicom (series with SEG or RTSTRUCT), or nnunet (one of Segwright's, for nnU-Net itself).",
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder or CSV file; it is never changed.")],
    target: Annotated[Path, typer.Argument(metavar="DEST", help="New dataset folder, or the folder it is put into.")],
    link: Annotated[bool, typer.Option("--link", help="Make hard links instead of copies.")] = False,
    images: Images = None,
    labels: LabelMaps = None,
    channel_names: ChannelNames = None,
    label_names: LabelNames = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--names", metavar="NAME=LABEL", help="dicom: names in SEG or RTSTRUCT, or a JSON file of them."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option("--series", metavar="SERIES", help="dicom: series of the channels, as in predict."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    yes: Yes = False,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Convert a dataset of another layout into a raw dataset; started again it continues."""
    from segwright import api

    seen: list[tuple[Conversion, Path]] = []

    def review(conversion: Conversion, new: Path) -> bool:
        seen.append((conversion, new))
        if not as_json:
            _print_cases(conversion, new)
        return not dry_run and (not _asks(yes, as_json) or typer.confirm(f"Write {new}?", default=True, err=True))

    converted = api.convert(
        kind,
        source,
        target,
        link=link,
        images=images,
        labels=labels,
        channel_names=options.split_list(channel_names) or None,
        label_names=options.split_list(label_names) or None,
        names=names or (),
        series=series or (),
        workers=workers,
        environment=options.environment(),
        review=review,
    )
    [(conversion, new)] = seen
    if as_json:
        counts = {"written": converted.num_written, "kept": converted.num_kept} if converted else {}
        files = [{"from": source, "to": list(names)} for source, names in conversion.files()]
        print_json({"dataset": new, **counts, "files": files, "dataset_json": dict(conversion.document)})
    elif converted is not None:
        print_line(f"{new}: {converted.num_written} files written, {converted.num_kept} kept")
        print_line(f"next: segwright check {new}")
    elif not dry_run:
        raise typer.Abort


def _asks(yes: bool, as_json: bool) -> bool:
    """Whether to ask: on a terminal, unless told not to."""
    return not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty()


def _print_cases(conversion: Conversion, new: Path) -> None:
    """Print which files make up each case."""
    root = conversion.source if conversion.source.is_dir() else conversion.source.parent
    rows = []
    for part, cases in conversion.cases.items():
        for case in cases:
            files = (*case.images, *([case.label] if case.label is not None else []))
            names = [str(file.relative_to(root)) if file.is_relative_to(root) else str(file) for file in files]
            label = names.pop() if case.label is not None else "-"
            rows.append([case.identifier, f"images{part}", ", ".join(names), label])
    print_table(f"{len(rows)} cases for {new}", ["case", "folder", "images", "label map"], rows[:MAX_PREVIEWED])
    if len(rows) > MAX_PREVIEWED:
        print_line(f"... and {len(rows) - MAX_PREVIEWED} more cases")
    document = conversion.document
    print_line(f"channels: {', '.join(document['channel_names'].values())}")
    print_line(f"labels: {', '.join(f'{name} {value}' for name, value in document['labels'].items())}")
    changes = Counter(rewrite.change for rewrite in conversion.rewrites.values())
    if changes:
        shown = listed([f"{change} in {count} files" for change, count in changes.most_common()])
        print_line(f"changed: {shown}")
    if "label_map" in document:
        print_line(f"label_map: {', '.join(f'{old} -> {new}' for old, new in document['label_map'].items())}")


def _print_proposal(proposal: Proposal) -> None:
    """Print the channels, and each label with the values that stand for it."""
    cases = proposal.matching.cases
    print_line(f"{len(cases)} cases with {proposal.file_ending} files, first {cases[0].identifier}")
    rows = [[str(index), name] for index, name in enumerate(proposal.channels)]
    print_table("channels", ["channel", "name"], rows)
    rows = [
        [label.name, str(label.value), str(label.stored), f"{label.num_cases} of {len(cases)}"]
        for label in proposal.labels
    ]
    print_table("labels", ["label", "value", "in files", "cases"], rows)


def _shown_proposal(proposal: Proposal) -> dict[str, object]:
    """Return the proposal for --json."""
    return {
        "cases": len(proposal.matching.cases),
        "test": [case.identifier for case in proposal.matching.test],
        "labels": [
            {"name": label.name, "value": label.value, "stored": label.stored, "cases": label.num_cases}
            for label in proposal.labels
        ],
        "notes": [str(note) for note in proposal.notes],
        "dataset_json": proposal.document(),
    }


def _ask_names(proposal: Proposal) -> Proposal | None:
    """Ask for the names of channels and labels, and whether to write them."""
    _print_proposal(proposal)
    channels = [
        typer.prompt(f"Name of channel {index}", default=name, err=True) for index, name in enumerate(proposal.channels)
    ]
    labels = [
        typer.prompt(f"Name of label {label.stored}", default=label.name, err=True)
        for label in sorted(proposal.labels[1:], key=lambda label: label.stored)
    ]
    named = proposal.with_names(channels=channels, labels=labels)
    return named if typer.confirm(f"Write {proposal.folder / 'dataset.json'}?", default=True, err=True) else None
