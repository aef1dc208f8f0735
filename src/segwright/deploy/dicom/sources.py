"""Open folders, files and zip files of DICOM; recognise them among other inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from segwright.core.errors import ImageError, ModelError, replaced_in_errors
from segwright.core.files.names import path_problem
from segwright.data.unmatched_files import entries
from segwright.deploy.dicom.headers import dicom_files
from segwright.interop.archive import extract

ZIP_ENDING: Final = ".zip"


def is_dicom_input(place: Path, file_ending: str) -> bool:
    """Whether an input of `predict` is DICOM: a DICOM file, a zip file, or a folder of DICOM files and no images.

    Args:
        place: what the user gave.
        file_ending: of the model's images; a folder with such a file is not DICOM.
    """
    if place.is_file():
        return _is_zip(place) or (not place.name.endswith(file_ending) and any(dicom_files(place)))
    if not place.is_dir() or any(entry.name.endswith(file_ending) for entry in entries(place)):
        return False
    return any(dicom_files(place))


@contextmanager
def opened(place: Path, *, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a folder or DICOM file as it is, or a zip file unpacked into a temporary folder.

    Errors in the block name the zip file instead of the temporary folder.

    Args:
        place: folder, DICOM file or zip file; the latter is untrusted, see `interop.archive`.
        scratch: where the temporary folder is made.

    Raises:
        ImageError: there is no such file, or the zip file is damaged or unsafe to unpack.
    """
    if not place.is_dir() and (wrong := path_problem(place)):
        raise ImageError(f"{place}: {wrong}; give a folder, a zip file or a file of DICOM")
    if place.is_dir() or not _is_zip(place):
        yield place
        return
    with TemporaryDirectory(prefix="segwright-dicom-", dir=scratch) as folder:
        root = Path(folder) / place.stem
        root.mkdir()
        try:
            extract(place, root)
        except ModelError as error:
            raise ImageError(str(error)) from error
        changed = place.stat().st_mtime_ns
        for file in root.rglob("*"):  # by which a second run recognises a case
            os.utime(file, ns=(changed, changed))
        with replaced_in_errors(root, place):
            yield root


def _is_zip(file: Path) -> bool:
    return file.name.lower().endswith(ZIP_ENDING)
