from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from segwright.core.errors import DatasetError, SegwrightError, WorkspaceError
from segwright.core.files.atomic_io import append_text
from segwright.core.files.names import (
    FileName,
    below,
    name_problem,
    path_problem,
    require_ending,
    require_name,
    require_text_path,
)

HOSTILE = [
    "",
    ".",
    "..",
    "...",
    "/etc/passwd",
    "../up",
    "a/../../b",
    "sub-01/ses-1",
    "..\\up",
    "C:\\x",
    "a\nb",
    "a\x00b",
    "\x1b[31m",
    "a\x9bb",
    ".hidden",
    "x" * 201,
    "\u00fc" * 101,
    "Gr\udcfcn",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_a_path_or_cannot_be_written_is_refused(name: str) -> None:
    assert name_problem(name)
    with pytest.raises(DatasetError, match="^case id '.*plain name"):
        require_name(name, "case id", error=DatasetError)


@pytest.mark.parametrize("name", [*HOSTILE[:-5], "Gr\udcfcn"])
def test_a_hostile_part_never_becomes_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="plain name"):
        below(tmp_path, "case", name)


@pytest.mark.parametrize(
    "name", ["patient_01", "-o", "1.2.840.113619.2", "100%s {x} $HOME ~", "\U0001f9e0", "a*b?c|d<e>", "a..b", "x" * 200]
)
def test_other_names_are_taken(name: str, tmp_path: Path) -> None:
    assert require_name(name, "case id") == name
    assert below(tmp_path, f"{name}.nii.gz") == tmp_path / f"{name}.nii.gz"


def test_a_message_shows_a_hostile_name_short_and_on_one_line() -> None:
    with pytest.raises(SegwrightError) as caught:
        require_name("a\n" * 500, "case id")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("ending", ["nii.gz", "", ".", "..", "./../x", ".\\x", "./x", ".a\nb", "/etc"])
def test_an_ending_is_a_dot_and_letters(ending: str) -> None:
    with pytest.raises(SegwrightError, match="with its dot"):
        require_ending(ending)
    assert require_ending(".nii.gz") == ".nii.gz"


def test_a_field_of_a_document_is_checked() -> None:
    class Document(BaseModel):
        plans_name: FileName

    assert Document(plans_name="nnUNetPlans").plans_name == "nnUNetPlans"
    with pytest.raises(ValidationError, match="path separator"):
        Document(plans_name="../x")


def test_a_link_to_another_folder_is_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "work", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    for parts in (("link",), ("link", "case.nii.gz")):
        with pytest.raises(WorkspaceError, match="through a link"):
            below(inside, *parts)


def test_a_link_in_the_place_of_a_file_is_the_writers_to_replace(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "outside.txt").touch()
    (tmp_path / "work" / "case.nii.gz").symlink_to(tmp_path / "outside.txt")
    assert below(tmp_path / "work", "case.nii.gz") == tmp_path / "work" / "case.nii.gz"


def test_the_folder_itself_may_be_a_link_and_need_not_be_there(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "work").symlink_to(tmp_path / "real")
    assert below(tmp_path / "work", "a", "b") == tmp_path / "work" / "a" / "b"
    assert below(tmp_path / "new", "a") == tmp_path / "new" / "a"


def test_links_in_a_circle_are_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(WorkspaceError):
        below(tmp_path, "a", "case")


@pytest.mark.parametrize(("name", "remedy"), [(b"Gr\xfcn", "rename it"), ("Gr\u00fcn".encode(), "PYTHONUTF8=1")])
def test_a_path_that_is_no_text_is_refused_with_what_to_do(name: bytes, remedy: str) -> None:
    path = Path("/data") / name.decode("ascii", "surrogateescape")
    with pytest.raises(WorkspaceError, match=remedy) as caught:
        require_text_path(path)
    str(caught.value).encode()
    assert require_text_path(Path(os.fsdecode(b"/data/x"))) == Path("/data/x")


def test_text_is_appended_to_a_file_but_never_through_a_link(tmp_path: Path) -> None:
    append_text(tmp_path / "new" / "log", "a\n")
    append_text(tmp_path / "new" / "log", "b \udcfc\n")
    assert (tmp_path / "new" / "log").read_text() == "a\nb \\udcfc\n"
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(WorkspaceError, match="is a link, which is not followed"):
        append_text(tmp_path / "link", "x")
    assert (tmp_path / "precious").read_text() == "precious"


def test_what_is_missing_is_reported_by_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (path_problem(tmp_path / "file"), path_problem(tmp_path, "folder")) == ("", "")
    assert path_problem(tmp_path / "nothing") == "no such file"
    assert path_problem(tmp_path / "nothing", "folder") == "no such folder"
    assert path_problem(tmp_path) == "is a folder, expected a file"
    assert path_problem(tmp_path / "file", "folder") == "is a file, expected its folder"
    assert "cannot be accessed" in path_problem(tmp_path / ("x" * 300))
