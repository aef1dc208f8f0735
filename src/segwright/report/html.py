"""Fill the HTML templates of reports, and encode styles and pictures for pages without external files."""

from __future__ import annotations

import io
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

_TEMPLATES = "templates"


def fill_template(name: str, **values: Any) -> str:
    """Return a template filled with values, which are escaped unless they are `Markup`; a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segwright.report", _TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def template_text(name: str) -> str:
    """Return a file beside the templates, such as the style sheet, as it is."""
    return (files("segwright.report") / _TEMPLATES / name).read_text(encoding="utf-8")


def csp_hash(text: str) -> str:
    """Return the hash by which a page's content security policy allows an inline style or script."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode('ascii')}"


def png_base64(pixels: npt.NDArray[np.uint8]) -> str:
    """Encode pixels (Y, X, 3) as base64 of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return b64encode(stream.getvalue()).decode("ascii")
