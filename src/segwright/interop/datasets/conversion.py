"""Write a dataset of another layout as a raw dataset: copies or hard links, resumable, the source unchanged."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ImageError, Problem, ProblemReport, WorkspaceError, problem_of
from segwright.core.files.atomic_io import atomic_path, sweep_leftovers
from segwright.core.files.json_documents import read_json, write_json
from segwright.core.files.names import below
from segwright.core.parallel import map_threads
from segwright.data.cases import Case
from segwright.data.description import DATASET_JSON
from segwright.data.images.readers.nifti_channels import split_channels
from segwright.data.images.readers.tiff import is_tiff, spacing_file

CONVERSION_JSON: Final = "conversion.json"
SCHEMA_VERSION: Final = 1

_TASK = re.compile(r"Task(\d+)_(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion will write; nothing has been written yet.

    Attributes:
        kind: the source's layout.
        source: its folder or table.
        cases: by part of nnU-Net's layout (`Tr`, `Ts`, `Val`); images in the order of the channels.
        num_split: number of channels of each 4D file that is split.
        file_ending: of all files that are written.
        document: the new dataset.json.
        name: `DatasetNNN_Name` as the source suggests; None without a suggestion.
        notes: what was skipped or changed.
    """

    kind: str
    source: Path
    cases: Mapping[str, tuple[Case, ...]]
    file_ending: str
    document: Mapping[str, Any]
    num_split: Mapping[Path, int] = field(default_factory=dict)
    name: str | None = None
    notes: tuple[Problem, ...] = ()

    def files(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yield each source file with the names of what it becomes, relative to the new dataset."""
        for part, cases in self.cases.items():
            for case in cases:
                channel = 0
                for image in case.images:
                    numbers = range(channel, channel + self.num_split.get(image, 1))
                    names = [f"images{part}/{case.identifier}_{number:04d}{self.file_ending}" for number in numbers]
                    yield image, tuple(names)
                    channel = numbers.stop
                yield from _spacing(case.images[0], f"images{part}/{case.identifier}.json", is_label=False)
                if case.label is not None:
                    yield case.label, (f"labels{part}/{case.identifier}{self.file_ending}",)
                    yield from _spacing(case.label, f"labels{part}/{case.identifier}.json", is_label=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A finished conversion: the new dataset, and the number of files written and kept from an earlier run."""

    dataset: Path
    num_written: int
    num_kept: int


def dataset_name(folder: Path) -> str | None:
    """Return the name in nnU-Net's layout of a folder `TaskNN_Name`; None if it has another name.

    >>> dataset_name(Path("Task04_Hippocampus"))
    'Dataset004_Hippocampus'
    """
    match = _TASK.fullmatch(folder.name)
    return None if match is None else f"Dataset{int(match[1]):03d}_{match[2]}"


def write_conversion(conversion: Conversion, target: Path, *, link: bool = False) -> Converted:
    """Write a conversion to a new folder, or continue an interrupted one; dataset.json comes last.

    Args:
        conversion: what to write.
        target: the new dataset.
        link: make hard links instead of copies; channels of 4D files are always new files.

    Raises:
        WorkspaceError: the target holds something else, or the file system has no links.
        ProblemReport: source files are damaged.
    """
    document = _record(conversion, link=link)
    _require_same(target, document)
    write_json(target / CONVERSION_JSON, document)
    for folder in {Path(name).parent for _, names in conversion.files() for name in names}:
        sweep_leftovers(below(target, *folder.parts))
    results = map_threads(
        lambda item: _write_file(item[0], [below(target, *Path(name).parts) for name in item[1]], link, conversion),
        [*conversion.files()],
        describe=lambda item: str(item[0]),
        title="convert",
    )
    problems = [result for result in results if isinstance(result, Problem)]
    if problems:
        raise ProblemReport(problems)
    if not (target / DATASET_JSON).is_file():
        write_json(target / DATASET_JSON, conversion.document, indent=4)
    written = [result for result in results if isinstance(result, int)]
    total = sum(len(names) for _, names in conversion.files())
    return Converted(dataset=target, num_written=sum(written), num_kept=total - sum(written))


def _spacing(file: Path, name: str, *, is_label: bool) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the JSON file with the spacing of a TIFF stack, if there is one, with its new name."""
    beside = spacing_file(file, is_label=is_label)
    if is_tiff(file) and beside.is_file():
        yield beside, (name,)


def _record(conversion: Conversion, *, link: bool) -> dict[str, Any]:
    """Return the content of conversion.json."""
    source = conversion.source
    root = source if source.is_dir() else source.parent
    files = []
    for file, names in conversion.files():
        shown = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
        is_split = file in conversion.num_split
        files += [
            {"from": shown, **({"channel": index} if is_split else {}), "to": name} for index, name in enumerate(names)
        ]
    return {
        "schema_version": SCHEMA_VERSION,
        "segwright": version("segwright"),
        "format": conversion.kind,
        "source": str(source),
        "link": link,
        "files": files,
        "notes": [str(note) for note in conversion.notes],
    }


def _require_same(target: Path, document: Mapping[str, Any]) -> None:
    """Require that a folder is new, empty, or was started by the same conversion."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / CONVERSION_JSON).is_file():
        raise WorkspaceError(f"{target}: exists and is no converted dataset; name a new folder")
    earlier = read_json(target / CONVERSION_JSON)
    keys = ("format", "source", "link", "files")
    if not isinstance(earlier, dict) or any(earlier.get(key) != document[key] for key in keys):
        raise WorkspaceError(
            f"{target}: was converted from another source, or from files that have changed since; delete the folder, "
            "or name a new one"
        )


def _write_file(source: Path, targets: Sequence[Path], link: bool, conversion: Conversion) -> int | Problem:
    """Write what one source file becomes; return the number of files written, 0 if all are there."""
    status, is_split = source.stat(), source in conversion.num_split
    if all(_is_done(target, source, status, is_split=is_split, link=link) for target in targets):
        return 0
    if is_split:
        try:
            split_channels(source, targets)
        except ImageError as error:
            return problem_of(error)
    elif link:
        _link(source, targets[0])
    else:
        with atomic_path(targets[0], size=status.st_size) as temporary:
            shutil.copyfile(source, temporary)
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    return len(targets)


def _is_done(target: Path, source: Path, status: os.stat_result, *, is_split: bool, link: bool) -> bool:
    """Whether a file was written from its source before: each appears whole, with the source's time."""
    try:
        found = target.stat()
    except OSError:
        return False
    if is_split:
        return found.st_mtime_ns == status.st_mtime_ns
    if link:
        return os.path.samestat(found, status)
    return (found.st_mtime_ns, found.st_size) == (status.st_mtime_ns, status.st_size)


def _link(source: Path, target: Path) -> None:
    with atomic_path(target, durable=False) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError as error:
            raise WorkspaceError(
                f"{target}: cannot be a hard link to {source} ({error.strerror}); convert without --link, which copies"
            ) from error
