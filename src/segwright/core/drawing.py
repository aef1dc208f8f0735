"""Draw figures to PNG files with matplotlib's default settings; a `matplotlibrc` in the current folder is ignored.

matplotlib reads it when it is imported, and `text.usetex` in it would start LaTeX.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segwright.core.files.atomic_io import atomic_path


@contextmanager
def figure_file(path: Path, *, size_inches: tuple[float, float], dpi: int) -> Iterator[Figure]:
    """Yield an empty figure to draw on, then write it atomically; global state is changed only within the block."""
    with style.context("default"):
        figure = Figure(figsize=size_inches, dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
