"""batchgenerators' helpers for files and folders; folders and files are strings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from segwright.core.errors import ConfigError
from segwright.core.files.atomic_io import write_text
from segwright.core.files.json_documents import read_json

PathLike = str | os.PathLike[str]

join = os.path.join
isfile = os.path.isfile
isdir = os.path.isdir
makedirs = os.makedirs
remove = os.remove
listdir = os.listdir
dirname = os.path.dirname
basename = os.path.basename


def maybe_mkdir_p(directory: PathLike) -> None:
    """Make a folder and its parents, where they do not exist."""
    os.makedirs(directory, exist_ok=True)


def subfiles(
    folder: PathLike,
    join: bool = True,
    prefix: str | tuple[str, ...] | list[str] | None = None,
    suffix: str | tuple[str, ...] | list[str] | None = None,
    sort: bool = True,
) -> list[str]:
    """Return the files of a folder.

    Args:
        folder: the folder.
        join: return paths instead of names.
        prefix: with which names must begin; a list: with any of them.
        suffix: with which names must end; a list: with any of them.
        sort: by name.
    """
    return _entries(folder, os.path.isfile, join, prefix, suffix, sort)


def subdirs(
    folder: PathLike,
    join: bool = True,
    prefix: str | tuple[str, ...] | list[str] | None = None,
    suffix: str | tuple[str, ...] | list[str] | None = None,
    sort: bool = True,
) -> list[str]:
    """Return the folders of a folder; arguments as of `subfiles`."""
    return _entries(folder, os.path.isdir, join, prefix, suffix, sort)


def nifti_files(folder: PathLike, join: bool = True, sort: bool = True) -> list[str]:
    """Return the `.nii.gz` files of a folder."""
    return subfiles(folder, join=join, suffix=".nii.gz", sort=sort)


def load_json(file: PathLike) -> Any:
    """Read a JSON file."""
    return read_json(Path(file))


def save_json(obj: Any, file: PathLike, indent: int = 4, sort_keys: bool = True) -> None:
    """Write a JSON file, atomically."""
    write_text(Path(file), json.dumps(obj, indent=indent, sort_keys=sort_keys))


def load_pickle(file: PathLike, mode: str = "rb") -> NoReturn:
    """Refuse to read a pickle.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"{file}: pickles are not read, since they can run any code; the mode '{mode}' was asked for")


def write_pickle(obj: Any, file: PathLike, mode: str = "wb") -> NoReturn:
    """Refuse to write a pickle.

    Raises:
        ConfigError: always.
    """
    del obj, mode
    raise ConfigError(f"{file}: pickles are not written; save the object as JSON with save_json")


def split_path(path: PathLike) -> list[str]:
    """Return the parts of a path between separators."""
    return os.fspath(path).split(os.sep)


def _entries(
    folder: PathLike,
    is_wanted: Callable[[str], bool],
    with_folder: bool,
    prefix: str | tuple[str, ...] | list[str] | None,
    suffix: str | tuple[str, ...] | list[str] | None,
    sort: bool,
) -> list[str]:
    begins = tuple(prefix) if isinstance(prefix, list) else prefix
    ends = tuple(suffix) if isinstance(suffix, list) else suffix
    names = [
        name
        for name in os.listdir(folder)
        if is_wanted(os.path.join(folder, name))
        and (begins is None or name.startswith(begins))
        and (ends is None or name.endswith(ends))
    ]
    found = [os.path.join(folder, name) for name in names] if with_folder else names
    return sorted(found) if sort else found
