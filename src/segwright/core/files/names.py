"""Check names from documents that become file names, and keep the paths made of them inside their folder."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator

from segwright.core.errors import SegwrightError, WorkspaceError
from segwright.core.text import printable

MAX_NAME_BYTES: Final = 200
"""Of a name in bytes; file systems allow 255, and endings, labels and the prefix of temporary files are added."""
MAX_FILE_NAME_BYTES: Final = 235
"""Of a file name made of such names, in bytes; temporary files add up to 19."""
NAME_REMEDY: Final = "use a plain name without path separators, of at most 200 bytes, such as 'patient_01'"
NO_TEXT: Final = "is not UTF-8 text"
NO_FILE: Final = "no such file"

ON_WINDOWS: Final = sys.platform == "win32"
IGNORES_CASE: Final = sys.platform in ("win32", "darwin")
"""Whether names that differ in case only are those of one file, as on Windows and macOS."""

_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
"""What Windows opens as a device, in any folder and with any ending."""
_REFUSED_BY_WINDOWS: Final = re.compile(r'.*(?:[<>:"|?*]|[. ]$)')
_SHOWN: Final = 60
"""Characters of a name that a message shows."""


def name_problem(name: str, *, longest: int = MAX_NAME_BYTES) -> str:
    """Return why a text cannot be a file name in one folder; empty if it can.

    >>> name_problem("../x"), name_problem("patient_01")
    ("holds the path separator '/'", '')
    """
    if not name:
        return "is empty"
    if name.strip(".") == "" and len(name) < 3:
        return "is the name of a folder"
    for separator in "/\\":
        if separator in name:
            return f"holds the path separator '{separator}'"
    if ON_WINDOWS and _DEVICE.fullmatch(name):
        return "is the name of a device on Windows"
    if ON_WINDOWS and _REFUSED_BY_WINDOWS.match(name):
        return "has a character that Windows does not allow there"
    if not name.isprintable() and any(ord(char) < 32 or 127 <= ord(char) < 160 for char in name):
        return "holds a control character"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return NO_TEXT
    if name.startswith("."):
        return "starts with a dot, as hidden and temporary files do"
    return f"has {size} bytes, more than {longest}" if size > longest else ""


def require_name(name: str, what: str, *, error: type[SegwrightError] = SegwrightError) -> str:
    """Return a name after checking that it can be a file name.

    Args:
        name: from a file or a command line.
        what: what it names, for the message: "case id".
        error: type to raise if it cannot.
    """
    wrong = name_problem(name)
    if wrong:
        raise error(f"{what} {shown_name(name)} {wrong}; {NAME_REMEDY}")
    return name


def shown_name(name: str) -> str:
    """Return a name for a message, in quotes, shortened if it is long."""
    text = printable(name)
    return f"'{text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'}'"


def require_ending(ending: str) -> str:
    """Return a file ending after checking that it begins with a dot and can end a file name.

    Raises:
        SegwrightError: it does not, or cannot.
    """
    if not ending.startswith(".") or not ending.strip("."):
        raise SegwrightError(f"is {shown_name(ending)}, expected an ending with its dot, such as '.nii.gz'")
    wrong = name_problem(f"x{ending}")
    if wrong:
        raise SegwrightError(
            f"is {shown_name(ending)}, which {wrong}; expected an ending with its dot, such as '.nii.gz'"
        )
    return ending


def require_text_path(path: Path) -> Path:
    """Return a path after checking that UTF-8 can encode it, as the libraries that read and write images need.

    Given another path they abort the process, or fail with a message of their own.

    Raises:
        WorkspaceError: it cannot; the message says what to do.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise WorkspaceError(f"{printable(path)}: {NO_TEXT}; {encoding_remedy(path)}") from error
    return path


def encoding_remedy(path: Path | str) -> str:
    """Return what to do about a path that UTF-8 cannot encode: the locale may be wrong, or the name."""
    try:
        os.fsencode(path).decode()
    except UnicodeError:
        return "rename it with letters of ASCII or UTF-8"
    return "the locale reads it as ASCII: set PYTHONUTF8=1 or LC_ALL=C.UTF-8"


def below(folder: Path, *parts: str) -> Path:
    """Return the path of `parts` below a folder; for every file whose name comes from a document.

    A link in place of the file itself is replaced when the file is written (`atomic_io.atomic_path`); a link that
    leads to a folder outside is refused.

    Args:
        folder: the work or output folder, or a path below it that this function returned.
        parts: names of folders, then of the file, without separators.

    Raises:
        WorkspaceError: a part cannot be a file name, or a link leads out of the folder.
    """
    require_text_path(folder)
    for part in parts:
        wrong = name_problem(part.removeprefix("."), longest=MAX_FILE_NAME_BYTES)
        if wrong:
            raise WorkspaceError(f"{shown_name(part)} below {printable(folder)}: {wrong}; {NAME_REMEDY}")
    path = folder.joinpath(*parts)
    try:
        root = folder.resolve()
        place = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:
        raise WorkspaceError(f"{printable(path)}: cannot be followed ({error}); remove the link") from error
    if not place.is_relative_to(root):
        raise WorkspaceError(
            f"{printable(path)}: leads out of {printable(folder)} to {printable(place)} through a link, and is not "
            "written to; remove the link"
        )
    return path


def require_output_outside_input(input_folder: Path, output_folder: Path) -> None:
    """Check that the output folder is not in the input folder.

    Raises:
        WorkspaceError: it is.
    """
    source, target = input_folder.resolve(), output_folder.resolve()
    if target == source or source in target.parents:
        raise WorkspaceError(
            f"{output_folder}: the output folder is or lies in the input folder {input_folder}, "
            "which is never written to; choose another one"
        )


def path_problem(path: Path, wanted: Literal["file", "folder"] = "file") -> str:
    """Return what is wrong if there is no regular file (or folder) at `path`; empty if there is one."""
    try:
        is_there = path.is_file() if wanted == "file" else path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return f"cannot be accessed ({error.strerror})"
    if is_there:
        return ""
    if path.is_symlink() and not path.exists():
        return broken_link_problem(path)
    if wanted == "folder":
        return "is a file, expected its folder" if path.exists() else "no such folder"
    if path.is_dir():
        return "is a folder, expected a file"
    return "is a pipe, socket or device, expected a file" if path.exists() else NO_FILE


def broken_link_problem(path: Path) -> str:
    """Return what is wrong with a link whose target does not exist."""
    return f"is a link to {printable(_target(path))}, which does not exist"


def path_remedy(path: Path, usual: str) -> str:
    """Return what to do about a missing file: `usual`, or to fetch it if git-annex or DataLad manages it."""
    is_annexed = path.is_symlink() and ".git/annex/" in _target(path)
    return "fetch it with 'git annex get' or 'datalad get'" if is_annexed else usual


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "somewhere"


def _file_name(name: str) -> str:
    wrong = name_problem(name)
    if wrong:
        raise ValueError(f"{shown_name(name)} {wrong}; {NAME_REMEDY}")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
"""A field of a document whose value becomes the name of a file or folder."""
