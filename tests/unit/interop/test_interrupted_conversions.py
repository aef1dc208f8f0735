"""Conversions that are killed at any moment: nothing is damaged, and the next run finishes them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import pytest

import segwright
from segwright.core.errors import SegwrightError
from segwright.core.files import atomic_io
from segwright.interop.datasets import conversion
from tests.unit.interop.made_folders import mixed_in_one_folder, tree_state
from tests.unit.interop.test_decathlon import declare, make_task


def killed(work: Callable[[], object], count: int) -> bool:
    """Do work in a child process that kills itself when it is about to finish file number `count`, half written.

    Returns:
        Whether it was killed; otherwise it ended before.
    """
    child = os.fork()
    if child:
        return bool(os.waitpid(child, 0)[1])
    left = iter(range(count))
    replace = os.replace

    def die(source: Any, target: Any) -> None:
        if next(left, None) is None:
            if Path(source).stat().st_nlink == 1:
                os.truncate(source, Path(source).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    atomic_io.os.replace = die  # type: ignore[assignment, attr-defined]
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize(("kind", "link"), [("msd", False), ("folders", True)])
def test_a_killed_conversion_is_finished_by_the_next(tmp_path: Path, kind: str, link: bool) -> None:
    source = tmp_path / "Task01_X"
    if kind == "msd":
        make_task(source)
    else:
        source.mkdir()
        mixed_in_one_folder(source)
    before = tree_state(source)

    def convert() -> object:
        return segwright.convert(kind, source, tmp_path / "new", link=link, workers=1)

    segwright.convert(kind, source, tmp_path / "whole", link=link)
    whole = contents(tmp_path / "whole")
    num_finished = 0
    while killed(convert, num_finished):
        assert tree_state(source) == before
        assert not (tmp_path / "new" / "dataset.json").exists()
        found = contents(tmp_path / "new")
        assert {name: whole[name] for name in found} == found
        convert()
        assert contents(tmp_path / "new") == whole
        assert not [file for file in (tmp_path / "new").rglob("*") if file.name.startswith(".")]
        shutil.rmtree(tmp_path / "new")
        num_finished += 2
    assert num_finished > len(whole)
    assert tree_state(source) == before


def contents(folder: Path) -> dict[str, str]:
    """Return the content of every visible file but the record, which holds paths."""
    return {
        name: content
        for name, (content, _) in tree_state(folder).items()
        if content and not Path(name).name.startswith(".") and name != conversion.CONVERSION_JSON
    }


def test_a_file_cut_off_by_a_power_failure_is_written_again(tmp_path: Path) -> None:
    task, new = make_task(tmp_path / "Task01_X"), tmp_path / "new"
    segwright.convert("msd", task, new)
    (new / "labelsTr" / "BRATS_000.nii.gz").write_bytes(b"")
    (new / "imagesTr" / "BRATS_001_0000.nii.gz").write_bytes(b"")
    again = segwright.convert("msd", task, new)
    assert again is not None
    assert again.num_written == 3


def test_a_file_that_changed_in_the_source_is_converted_again(tmp_path: Path) -> None:
    task, new = make_task(tmp_path / "Task01_X"), tmp_path / "new"
    segwright.convert("msd", task, new)
    os.utime(task / "imagesTr" / "BRATS_001.nii.gz")
    again = segwright.convert("msd", task, new)
    assert again is not None
    assert (again.num_written, again.num_kept) == (2, 4)


def test_other_names_and_other_options_are_not_mixed_with_the_old(tmp_path: Path) -> None:
    (source := tmp_path / "mine").mkdir()
    mixed_in_one_folder(source)
    segwright.convert("folders", source, tmp_path / "new")
    before = tree_state(tmp_path / "new")
    with pytest.raises(SegwrightError, match="new: was converted with other names of labels or channels"):
        segwright.convert("folders", source, tmp_path / "new", label_names=["a", "b"])
    with pytest.raises(SegwrightError, match="new: was converted with other options; delete the folder"):
        segwright.convert("folders", source, tmp_path / "new", link=True)
    assert tree_state(tmp_path / "new") == before


def test_a_killed_description_is_written_by_the_next(tmp_path: Path) -> None:
    (source := tmp_path / "mine").mkdir()
    mixed_in_one_folder(source)
    before = tree_state(source)
    assert killed(lambda: segwright.init(source), 0)
    assert not (source / "dataset.json").exists()
    segwright.init(source)
    after = tree_state(source)
    assert after.pop("dataset.json")
    assert {**after, ".": before["."]} == before


def test_nothing_stays_where_no_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(tmp_path / "Task01_X", num_channels=1)
    for file in (task / "imagesTr").glob("BRATS*"):
        nibabel.save(nibabel.funcs.squeeze_image(nibabel.load(file)), file)
    declare(task, modality={"0": "FLAIR"})

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(conversion.os, "link", refuse)
    with pytest.raises(SegwrightError, match="cannot be a hard link .* convert without --link, which copies"):
        segwright.convert("msd", task, tmp_path / "new", link=True)
    monkeypatch.undo()
    assert [*tmp_path.iterdir()] == [task]
    assert segwright.convert("msd", task, tmp_path / "new") is not None
