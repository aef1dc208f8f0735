"""Write a dataset of another layout as a raw dataset: copies or hard links, resumable, the source unchanged."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ImageError, Problem, ProblemReport, SegwrightError, WorkspaceError, problem_of
from segwright.core.files.atomic_io import atomic_path, sweep_leftovers
from segwright.core.files.json_documents import read_json, write_json
from segwright.core.files.names import below
from segwright.core.parallel import map_threads
from segwright.data.cases import Case
from segwright.data.description import DATASET_JSON
from segwright.data.images.readers.nifti_channels import require_undamaged, split_channels
from segwright.data.images.readers.nifti_header import is_nifti
from segwright.data.images.readers.tiff import is_tiff, spacing_file

CONVERSION_JSON: Final = "conversion.json"
SCHEMA_VERSION: Final = 1

DATASET_NAME: Final = re.compile(r"Dataset\d{3}_.+", re.DOTALL)
"""A folder that nnU-Net takes for a raw dataset."""

_TASK = re.compile(r"Task(\d+)_(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """How a file with other content is made of a source file.

    Attributes:
        change: what differs, for conversion.json.
        write: called with the source and the new file; writes the latter atomically.
    """

    change: str
    write: Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion will write; nothing has been written yet.

    Attributes:
        kind: the source's layout.
        source: its folder or table.
        cases: by part of nnU-Net's layout (`Tr`, `Ts`, `Val`); images in the order of the channels.
        num_split: number of channels of each NIfTI file of which every channel becomes a file, compressed or not as the
            new ending says.
        rewrites: of files that are neither copied nor split, by the name of the new file relative to the new dataset.
        unread: files whose voxels were not read yet; damaged ones are found before anything is written.
        file_ending: of all files that are written.
        document: the new dataset.json.
        notes: what was skipped or changed.
    """

    kind: str
    source: Path
    cases: Mapping[str, tuple[Case, ...]]
    file_ending: str
    document: Mapping[str, Any]
    num_split: Mapping[Path, int] = field(default_factory=dict)
    rewrites: Mapping[str, Rewrite] = field(default_factory=dict)
    unread: tuple[Path, ...] = ()
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
                    name = f"labels{part}/{case.identifier}{self.file_ending}"
                    yield case.label, (name,)
                    if name not in self.rewrites:  # which writes the spacing as well
                        yield from _spacing(case.label, f"labels{part}/{case.identifier}.json", is_label=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A finished conversion.

    Attributes:
        dataset: folder of the new dataset.
        num_written: number of files that were written.
        num_kept: number of files that an earlier run had written.
    """

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


def suggested_name(source: Path, kind: str) -> str | None:
    """Return the name that a new dataset gets in a folder of datasets: that of its task or dataset, if it has one."""
    if kind in ("folders", "dicom"):
        return None
    if kind == "nnunet":
        return source.name if DATASET_NAME.fullmatch(source.name) else None
    return dataset_name(source)


def require_own(target: Path) -> None:
    """Require that a folder is new or empty, or was started by a conversion.

    Raises:
        WorkspaceError: it holds something else.
    """
    if not target.exists() or (target / CONVERSION_JSON).is_file():
        return
    started = set(target.glob(f".*.tmp.{CONVERSION_JSON}"))  # left by a killed process
    if {*target.iterdir()} - started:
        raise WorkspaceError(f"{target}: exists and is no converted dataset; name a new folder")


def write_conversion(conversion: Conversion, target: Path, *, link: bool = False) -> Converted:
    """Write a conversion to a new folder, or continue an interrupted one; dataset.json comes last.

    Nothing is written if a file that has not been read yet is damaged, and nothing stays in a new folder if another
    one cannot be converted.

    Args:
        conversion: what to write.
        target: the new dataset.
        link: make hard links instead of copies; files with other content are always new files.

    Raises:
        WorkspaceError: the target holds something else, or the file system has no links.
        ProblemReport: source files are damaged.
    """
    document = _record(conversion, link=link)
    _require_same(target, document)
    files = [_task(target, source, names, conversion, link=link) for source, names in conversion.files()]
    left = [task for task in files if not task.is_done()]
    _require_undamaged(sorted({*conversion.unread} & {task.source for task in left}))
    with _emptied_on_errors(target):
        write_json(target / CONVERSION_JSON, document)
        for folder in {each.parent for task in files for each in task.targets}:
            sweep_leftovers(folder)
        results = map_threads(_FileTask.write, left, describe=lambda task: str(task.source), title="convert")
        if problems := [result for result in results if result is not None]:
            raise ProblemReport(problems)
        if not (target / DATASET_JSON).is_file():
            write_json(target / DATASET_JSON, conversion.document, indent=4)
    num_written, num_files = (sum(len(task.targets) for task in tasks) for tasks in (left, files))
    return Converted(dataset=target, num_written=num_written, num_kept=num_files - num_written)


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
        for index, name in enumerate(names):
            rewrite, is_split = conversion.rewrites.get(name), file in conversion.num_split
            how: dict[str, Any] = (
                {"change": rewrite.change} if rewrite is not None else {"channel": index} if is_split else {}
            )
            files.append({"from": shown, **how, "to": name})
    return {
        "schema_version": SCHEMA_VERSION,
        "segwright": version("segwright"),
        "format": conversion.kind,
        "source": str(source),
        "link": link,
        "files": files,
        "dataset_json": conversion.document,
        "notes": [str(note) for note in conversion.notes],
    }


def _require_same(target: Path, document: Mapping[str, Any]) -> None:
    """Require that a folder is new, empty, or was started by the same conversion."""
    require_own(target)
    sweep_leftovers(target, {CONVERSION_JSON, DATASET_JSON})
    if not (target / CONVERSION_JSON).is_file():
        return
    earlier = read_json(target / CONVERSION_JSON)
    keys = ("format", "source", "link", "files", "dataset_json")
    changed = [key for key in keys if not isinstance(earlier, dict) or earlier.get(key) != document[key]]
    if not changed:
        return
    what = "from another source, or from files that have changed since"
    if isinstance(earlier, dict) and changed in (["link"], ["dataset_json"]):
        what = "with other options" if changed == ["link"] else "with other names of labels or channels"
    raise WorkspaceError(f"{target}: was converted {what}; delete the folder, or name a new one")


@contextmanager
def _emptied_on_errors(target: Path) -> Iterator[None]:
    """Remove what was written into a new folder if the source cannot be converted, or if no file could be written.

    After any other error the files stay, so that the next run continues.
    """
    was_there = target.exists()
    try:
        yield
    except SegwrightError as error:
        written = [file for file in target.rglob("*") if file.is_file() and file.name != CONVERSION_JSON]
        if not was_there and (isinstance(error, ProblemReport) or not written):
            shutil.rmtree(target, ignore_errors=True)
        raise


def _require_undamaged(files: Sequence[Path]) -> None:
    """Require that files of NIfTI are complete, with the right checksums; others are not read.

    Raises:
        ProblemReport: some are not.
    """
    packed = [file for file in files if is_nifti(file)]
    checked = map_threads(_damage, packed, describe=str, title="checksums") if packed else []
    if problems := [problem for problem in checked if problem is not None]:
        raise ProblemReport(problems)


def _damage(file: Path) -> Problem | None:
    try:
        require_undamaged(file)
    except ImageError as error:
        return problem_of(error)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileTask:
    """A source file and what it becomes.

    Attributes:
        source: the file.
        targets: new files: one, or one for each channel.
        rewrite: how the content changes, if it does.
        is_split: whether channels become files.
        link: whether an unchanged file becomes a hard link.
    """

    source: Path
    targets: tuple[Path, ...]
    rewrite: Rewrite | None
    is_split: bool
    link: bool

    def is_done(self) -> bool:
        """Whether the targets were written before: each appears whole, then gets the source's time."""
        try:
            status, found = self.source.stat(), [target.stat() for target in self.targets]
        except OSError:
            return False
        if self.rewrite is not None or self.is_split:
            return all(each.st_mtime_ns == status.st_mtime_ns for each in found)
        if self.link:
            return os.path.samestat(found[0], status)
        return (found[0].st_mtime_ns, found[0].st_size) == (status.st_mtime_ns, status.st_size)

    def write(self) -> Problem | None:
        """Write the targets; return the problem of a source that is damaged."""
        target, status = self.targets[0], self.source.stat()
        try:
            if self.rewrite is not None:
                self.rewrite.write(self.source, target)
                _copy_time(status, target)
            elif self.is_split:
                split_channels(self.source, self.targets)
            elif self.link:
                _link(self.source, target)
            else:
                with atomic_path(target, size=status.st_size) as temporary:
                    shutil.copyfile(self.source, temporary)
                    _copy_time(status, temporary)
        except ImageError as error:
            return problem_of(error)
        return None


def _task(target: Path, source: Path, names: Sequence[str], conversion: Conversion, *, link: bool) -> _FileTask:
    return _FileTask(
        source=source,
        targets=tuple(below(target, *Path(name).parts) for name in names),
        rewrite=conversion.rewrites.get(names[0]),
        is_split=source in conversion.num_split,
        link=link,
    )


def _copy_time(status: os.stat_result, file: Path) -> None:
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _link(source: Path, target: Path) -> None:
    with atomic_path(target, durable=False) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError as error:
            raise WorkspaceError(
                f"{target}: cannot be a hard link to {source} ({error.strerror}); convert without --link, which copies"
            ) from error
