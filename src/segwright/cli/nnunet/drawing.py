"""nnU-Net's command that draws label maps over images."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from segwright import api
from segwright.cli.nnunet import folders, names
from segwright.cli.nnunet.options import Command, Values, flag, value
from segwright.cli.options import environment
from segwright.core.files.atomic_io import require_writable_folder
from segwright.data.dataset import load

_RAW_ONLY: Final = "the raw images are drawn, with the right aspect"


def plot_overlay_pngs(arguments: Values) -> None:
    """Draw the reference label maps over the images, one picture for each case."""
    workspace = folders.preparing_workspace()
    raw = folders.raw_dataset(workspace, arguments.text("-d"))
    target = arguments.path("-o")
    require_writable_folder(target)
    with TemporaryDirectory(prefix="segwright-overlay-") as scratch:
        for case in load(raw, environment=environment()).cases:
            [sheet] = api.overlay(
                raw,
                scratch,
                cases=[case.identifier],
                slices=1,
                channel=arguments.number("-channel_idx"),
                workspace=workspace,
                environment=environment(),
            )
            sheet.rename(sheet.with_name(f"{case.identifier}.png"))
        target.mkdir(parents=True, exist_ok=True)
        for picture in sorted(Path(scratch).glob("*.png")):
            shutil.move(picture, target / picture.name)


COMMANDS: Final = {
    "plot_overlay_pngs": Command(
        function=plot_overlay_pngs,
        options=(
            value("-d", about="Id or name of the dataset.", is_required=True),
            value("-o", about="Folder of the pictures.", is_required=True),
            value("-np", about="", kind=int, no_effect="cases are drawn one after the other"),
            value("-channel_idx", about="Index of the channel to draw.", default=0, kind=int),
            flag("--use_raw", about="The raw images are always drawn."),
            value("-p", about="", no_effect=_RAW_ONLY, default=names.PLANS),
            value("-c", about="", no_effect=_RAW_ONLY),
            value("-overlay_intensity", about="", kind=float, no_effect="colours have the report's intensity"),
        ),
    ),
}
