"""Find the cases to predict: all of a folder, or one case whose files are given, one for each channel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from segwright.core.errors import ConfigError, DatasetError, ImageError, Problem, WorkspaceError
from segwright.core.files.names import name_problem, path_problem, require_output_outside_input, require_text_path
from segwright.data.cases import Case
from segwright.data.dataset import usable_cases
from segwright.data.description import DatasetDescription
from segwright.data.images.image_io import READERS, read_header

Images = Path | Sequence[Path]
"""A folder, a file, or the files of the channels of one case."""

_ENDINGS = tuple(sorted({ending for reader in READERS.values() for ending in reader.endings}, key=len, reverse=True))
"""Of image files, the longest first: .nii.gz before .gz."""
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)


def files_of(images: Images) -> tuple[Path, ...]:
    """Return the files that are given; none for a folder, or a path that does not look like that of an image.

    Raises:
        ConfigError: the list of files is empty.
    """
    if not isinstance(images, Path):
        if not images:
            raise ConfigError("the list of image files is empty; give a folder, or the files of one case")
        return tuple(images)
    is_file = images.is_file() or (not images.is_dir() and images.name.lower().endswith(_ENDINGS))
    return (images,) if is_file else ()


def find_cases(
    images: Images, description: DatasetDescription, reader: str
) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    """Return the cases to predict, and the problems of those of a folder that cannot be used.

    Args:
        images: a folder of `CASE_0000.ENDING` files, or the files of one case in order of the model's channels. The
            case is named after the first file, without its ending and its channel number `_0000`.
        description: the model's dataset.json.
        reader: the model's.

    Raises:
        ProblemReport: the folder is missing or holds no usable case, or channels are missing or too many.
        SegwrightError: files are missing, or are not the channels of one case.
    """
    files = files_of(images)
    if not files:
        assert isinstance(images, Path), "a sequence is one of files"
        return usable_cases(images, description.file_ending, len(description.channel_names))
    names = [_name_of(file, description.file_ending) for file in files]
    _require_channels(files, tuple(description.channel_names.values()), reader)
    identifier = _case_name(names)
    if wrong := name_problem(identifier):
        raise DatasetError(f"{files[0]}: the name of the case {wrong}; rename the file")
    return (Case(identifier=identifier, images=files),), ()


def require_other_folder(images: Images, output_folder: Path) -> None:
    """Check that the output folder is not in the input folder, nor the folder of an input file.

    Raises:
        WorkspaceError: it is.
        ConfigError: it has the name of an image file.
    """
    files = files_of(images)
    if not files:
        assert isinstance(images, Path), "a sequence is one of files"
        require_output_outside_input(images, output_folder)
    elif files_of(output_folder):
        raise ConfigError(f"{output_folder}: expected a folder; the label map is written into it, with its documents")
    for folder in {file.parent for file in files}:
        if output_folder.resolve() == folder.resolve():
            raise WorkspaceError(
                f"{output_folder}: is the folder of the image, which is never written to; choose another one"
            )


def _name_of(file: Path, file_ending: str) -> str:
    """Return the name of an image file without its ending.

    Raises:
        ImageError: there is no such file, or it has no ending of an image.
    """
    if wrong := path_problem(require_text_path(file)):
        what = "give one folder, or the files of one case" if file.is_dir() else "correct the path"
        raise ImageError(f"{file}: {wrong}; {what}")
    for ending in (file_ending, *_ENDINGS):
        if file.name.lower().endswith(ending.lower()):
            return file.name[: -len(ending)]
    raise ImageError(f"{file}: is no image file; the model was trained with {file_ending} files, convert it to that")


def _require_channels(files: Sequence[Path], channels: Sequence[str], reader: str) -> None:
    """Check that the files hold as many channels as the model needs.

    Raises:
        ConfigError: they do not.
    """
    found = sum(read_header(file, reader).num_channels for file in files)
    if found == len(channels):
        return
    remedy = "for several cases give their folder"
    if len(channels) > 1:
        remedy = "give one file for each channel in this order, -i A_0000.nii.gz -i A_0001.nii.gz (in Python a list)"
    raise ConfigError(
        f"{', '.join(map(str, files))}: {found} channel{'s' * (found > 1)} of one case, the model needs "
        f"{len(channels)} ({', '.join(channels)}); {remedy}"
    )


def _case_name(names: Sequence[str]) -> str:
    """Return the name of the case whose files have these names without ending, in order of the channels.

    >>> _case_name(["anna_0000", "anna_0001"]), _case_name(["t1", "t2"])
    ('anna', 't1')

    Raises:
        ConfigError: the names have channel numbers of several cases, or in another order.
    """
    matches = [_CHANNEL.fullmatch(name) for name in names]
    parts = [(match["case"], int(match["channel"])) for match in matches if match is not None]
    if len(parts) < len(names):
        return names[0]
    cases, numbers = dict.fromkeys(case for case, _ in parts), [number for _, number in parts]
    if len(cases) > 1 and numbers == list(range(len(numbers))):
        raise ConfigError(f"{', '.join(names)}: files of {len(cases)} cases; give those of one, or a folder")
    if len(cases) == 1 and numbers != sorted(numbers):
        raise ConfigError(f"{', '.join(names)}: the channels are not in the order of their numbers; sort them")
    return parts[0][0] if numbers[0] == 0 else names[0]
