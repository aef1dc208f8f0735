"""The page of a server, on which a case is dropped, predicted and looked at, and the document of its viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from markupsafe import Markup

import segwright
from segwright.data.images.image_io import read_images, read_label
from segwright.data.labels import Labels
from segwright.report.case_images import CaseImages, directions_of
from segwright.report.html import csp_hash, fill_template, template_text
from segwright.report.viewer import CaseInViewer, viewer_document
from segwright.report.volumes import pack

MAX_VIEW_BYTES: Final = 16 * 2**20
"""Of the compressed voxels that a browser gets; larger images are cropped to the labels, then averaged."""


def upload_page(*, needs_token: bool) -> tuple[str, str]:
    """Return the page and its content security policy.

    Args:
        needs_token: whether the page asks for a token.
    """
    style = template_text("report.css") + template_text("upload.css")
    script = template_text("viewer.js") + template_text("upload.js")
    html = fill_template(
        "upload.html",
        needs_token=needs_token,
        version=segwright.__version__,
        style=Markup(style),
        script=Markup(script),
    )
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src '{csp_hash(style)}'; "
        f"script-src '{csp_hash(script)}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def prediction_view(
    images: Sequence[Path], label_map: Path, *, reader: str, labels: Labels, channels: Sequence[str]
) -> dict[str, Any]:
    """Return the document from which the page draws a predicted case.

    Args:
        images: files of the case's channels.
        label_map: its prediction.
        reader: of both, as the plan names it.
        labels: of the model.
        channels: names of the channels.
    """
    volume = read_images(images, reader)
    predicted = read_label(label_map, reader, like=volume.header).array[0].astype(np.int32)
    case = CaseImages(
        identifier="case",
        image=volume.array,
        reference=np.zeros_like(predicted),
        prediction=predicted,
        spacing=volume.spacing,
        directions=directions_of(volume.properties),
        is_raw=True,
    )
    found = labels.foreground_labels
    packed = pack(case, found, max_bytes=MAX_VIEW_BYTES, windows=[None] * len(volume.array))
    shown = CaseInViewer(name="prediction", caption=f"prediction; {packed.remark}", packed=packed)
    return {"about": viewer_document([shown], labels, channels), "volume": packed.payload}
