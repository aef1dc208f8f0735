"""Optional packages, which an extra of this package installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from segwright.core.errors import ConfigError


def install_line(extra: str) -> str:
    """Return the command that installs an extra.

    >>> install_line("dicom")
    'pip install "segwright[dicom]"'
    """
    return f'pip install "segwright[{extra}]"'


@contextmanager
def imports_of(extra: str) -> Iterator[None]:
    """Import packages of an extra inside this context, so that a missing one is named with what installs it.

    Args:
        extra: its name in `pyproject.toml`, e.g. "dicom".

    Raises:
        ConfigError: A package is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise ConfigError(f"{package} is not installed; {install_line(extra)}") from error
