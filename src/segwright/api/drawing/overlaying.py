"""Draw label maps or predictions over their images, many cases on a PNG sheet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from PIL import Image

from segwright.api.drawing.overlay_files import OverlayFiles, Places, find_files
from segwright.api.session import workspace_or_default
from segwright.core.errors import ConfigError, Problem, ProblemReport, SegwrightError, did_you_mean, problem_of
from segwright.core.files.atomic_io import atomic_path, require_writable_folder, sweep_leftovers
from segwright.core.files.names import require_output_outside_input
from segwright.core.log import progress
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.description import DatasetDescription
from segwright.report.colours import label_colour, legend
from segwright.report.overlays.blocks import LABELS, PREDICTION, Block, DrawOptions, draw_case
from segwright.report.overlays.sheets import SheetHeader, sheets
from segwright.report.overlays.shown_case import CaseSource, ReadOptions, read_case, shows_colours
from segwright.report.overlays.views import AUTO, require_plane
from segwright.workspace import Workspace

DEFAULT_SLICES: Final = 4
MAX_SLICES: Final = 16
DEFAULT_SIZE: Final = 256
SIZES: Final = (64, 1024)

_SHEET: Final = re.compile(r"overlay_\d{3,}\.png")


def overlay(
    target: str | Path,
    output: Path | str,
    *,
    reference: Path | str | None = None,
    images: Path | str | None = None,
    dataset_json: Path | str | None = None,
    cases: Sequence[str] | None = None,
    contours: bool = False,
    zoom: bool = False,
    plane: str = AUTO,
    slices: int = DEFAULT_SLICES,
    size: int = DEFAULT_SIZE,
    channel: int | str | None = None,
    workspace: Workspace | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> tuple[Path, ...]:
    """Draw labels or predictions over their images on PNG sheets, and return these.

    The sheets are `overlay_001.png` and so on; those of an earlier call in the folder are replaced.

    Args:
        target: Raw dataset (folder, name or id), one of its folders such as `imagesTs`, or a folder of predictions.
        output: Folder of the sheets.
        reference: Folder of other label maps of the same names, or raw dataset: drawn beside, to see where they differ.
        images: Folder of the images of predictions, or their raw dataset; by default that of the references, or the
            dataset of the predictions in the workspace.
        dataset_json: The dataset.json of predictions; by default searched in the folders and one level above.
        cases: Names of the cases to draw; all by default.
        contours: Draw contours only; those of references dashed in the same pictures.
        zoom: Draw the surroundings of the labels only.
        plane: axial, coronal, sagittal, or auto: across the axis of thick slices, else axial.
        slices: Largest number of slices of a case; those that show all classes, and differences, best.
        size: Pixels of the longer side of a picture.
        channel: Name or index of the channel to show; by default the colours of RGB pictures, else the first one.
        workspace: Where raw datasets are; `./segwright-work` by default.
        environment: Variables that paths in file lists may contain.

    Raises:
        ProblemReport: cases cannot be read; all are named, and no sheet is written.
        SegwrightError: a folder, file or case is missing, or an argument is invalid.

    Examples:
        >>> overlay("predictions", "sheets", reference="Dataset004_X", contours=True)  # doctest: +SKIP
    """
    _require_options(plane, slices, size)
    if cases is not None and not cases:
        raise ConfigError("cases: is empty; name some, or leave it out to draw all")
    places = Places(
        target=target,
        reference=None if reference is None else Path(reference),
        images=None if images is None else Path(images),
        dataset_json=None if dataset_json is None else Path(dataset_json),
        workspace=workspace_or_default(workspace),
        environment=environment,
    )
    files = find_files(places, None if cases is None else {*cases})
    folder = Path(output)
    for given in files.folders:
        require_output_outside_input(given, folder)
    require_writable_folder(folder)
    reading = replace(files.reading, channel=_channel_index(channel, files.reading.description))
    names = legend(files.reading.labels)
    ignored = files.reading.labels.ignore_label
    drawing = DrawOptions(
        names=[*names.values(), "not in dataset.json"],
        plane=plane,
        slices=slices,
        size=size,
        zoom=zoom,
        contours=contours,
        role=PREDICTION if files.are_predictions else LABELS,
        ignored=None if ignored is None else list(names).index(ignored) + 1,
    )
    blocks = _blocks(files.sources, reading, drawing)
    return _write(folder, sheets(blocks, _header(files, reading, drawing, is_compared=reference is not None)))


def _require_options(plane: str, slices: int, size: int) -> None:
    require_plane(plane)
    if not 1 <= slices <= MAX_SLICES:
        raise ConfigError(f"slices {slices}: expected 1 to {MAX_SLICES}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(f"size {size}: expected {SIZES[0]} to {SIZES[1]} pixels")


def _channel_index(channel: int | str | None, description: DatasetDescription) -> int | None:
    """Return the index of a channel given by index or name.

    Raises:
        ConfigError: there is no such channel.
    """
    names = list(description.channel_names.values())
    if channel is None or channel in names:
        return None if channel is None else names.index(str(channel))
    text = str(channel)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise ConfigError(f"no channel '{text}'{did_you_mean(text, names)}, or an index from 0 to {len(names) - 1}")


def _blocks(sources: Sequence[CaseSource], reading: ReadOptions, drawing: DrawOptions) -> Iterator[Block]:
    """Yield the drawn cases, one in memory at a time; after the first problem only look for others.

    Raises:
        ConfigError: an option does not suit a case.
        ProblemReport: cases cannot be read.
    """
    problems: list[Problem] = []
    for source in progress(sources, title="drawing", total=len(sources)):
        try:
            block = draw_case(read_case(source, reading), drawing)
        except ConfigError:
            raise
        except SegwrightError as error:
            problems += error.problems if isinstance(error, ProblemReport) else [problem_of(error)]
            continue
        if not problems:
            yield block
    if problems:
        raise ProblemReport(problems)


def _header(files: OverlayFiles, reading: ReadOptions, drawing: DrawOptions, *, is_compared: bool) -> SheetHeader:
    channels = list(reading.description.channel_names.values())
    is_coloured = all(shows_colours(source, reading) for source in files.sources)
    over = "the colours of the image" if is_coloured else channels[reading.channel or 0]
    if not is_compared:
        drawn = f"{drawing.role}, {'contours' if drawing.contours else 'filled'}"
    elif drawing.contours:
        drawn = f"{drawing.role}: contours in colour; reference: dashed contours, hidden where both agree"
    else:
        drawn = f"reference above, {drawing.role} below, the same slices"
    return SheetHeader(
        title=files.title,
        notes=[
            f"{drawn}; over {over}",
            "letters: directions of the body, the patient's right (R) is on the left; no letters: as in the file",
        ],
        legend=[(name, label_colour(position)) for position, name in enumerate(drawing.names, start=1)],
    )


def _write(folder: Path, drawn: Iterator[Image.Image]) -> tuple[Path, ...]:
    """Write sheets, all or none, and delete those of an earlier call."""
    is_new = not folder.exists()
    sweep_leftovers(folder, is_shared=True)
    pages: list[Path] = []
    try:
        with ExitStack() as stack:
            for number, sheet in enumerate(drawn, start=1):
                pages.append(folder / f"overlay_{number:03d}.png")
                sheet.save(stack.enter_context(atomic_path(pages[-1])), format="PNG")
    except BaseException:
        if is_new:
            with suppress(OSError):  # never made, or not empty
                folder.rmdir()
        raise
    for file in folder.iterdir():
        if _SHEET.fullmatch(file.name) and file not in pages:
            file.unlink()
    return tuple(pages)
