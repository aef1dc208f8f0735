"""Locks: held by one at a time, waited for with one line, taken over from those that are gone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from segwright.core.errors import WorkspaceError
from segwright.core.files import locks
from segwright.core.files.locks import holder, locked


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.01)


def left_by(path: Path, **changes: object) -> None:
    """Write the lock of this process, changed, as a process that was killed leaves it."""
    with locked(path, "training"):
        document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "key": "other", **changes}))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_names_its_holder_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / ".lock"
    with locked(path, "preprocessing"):
        document = json.loads(path.read_text())
        assert document["process"] == os.getpid()
        assert document["what"] == "preprocessing"
        found = holder(path)
        assert found is not None
        assert f"process {os.getpid()} on " in str(found)
    assert holder(path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_lock_stays_if_something_was_written_into_it(tmp_path: Path) -> None:
    with locked(tmp_path / "folder" / ".lock", "x"):
        (tmp_path / "folder" / "result").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["result"]


def test_a_second_one_waits_with_one_line_until_the_first_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".lock"
    order: list[str] = []
    waits = threading.Event()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waits.set()

    def second() -> None:
        with locked(path, "second"):
            order.append("second")

    handler = Seen()
    logging.getLogger("segwright.core.files.locks").addHandler(handler)
    thread = threading.Thread(target=second)
    try:
        with locked(path, "first"):
            thread.start()
            assert waits.wait(10)
            order.append("first")
        thread.join(10)
    finally:
        logging.getLogger("segwright.core.files.locks").removeHandler(handler)
    assert order == ["first", "second"]
    lines = [message for message in caplog.messages if message.startswith("waiting for process")]
    assert len(lines) == 1
    assert "(first)" in lines[0]


def test_a_lock_of_a_process_that_is_gone_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".lock"
    left_by(path, process=ended_process(), process_start="long ago")
    assert holder(path) is None
    with caplog.at_level(logging.INFO), locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"
    assert "its holder has ended" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell when a process started")
def test_a_number_that_another_process_got_since_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    left_by(path, process_start="another boot/1")
    with locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"


def test_a_lock_of_another_machine_counts_while_it_is_touched(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    left_by(path, host="elsewhere", process=ended_process())
    assert holder(path) is not None
    old = path.stat().st_mtime - locks.STALE_S - 60
    os.utime(path, (old, old))
    assert holder(path) is None
    with locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"


@pytest.mark.parametrize("text", ["", "[]", "no json", '{"host": 3}'])
def test_an_unreadable_lock_is_taken_over_when_it_is_old(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(text)
    os.utime(path, (1, 1))
    with locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"


def test_a_lock_replaced_since_it_was_judged_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, "living"):
        content = path.read_text()
        locks._remove_stale(path, None)
        assert path.read_text() == content


def test_the_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    path = tmp_path / ".lock"
    touched = threading.Event()
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda *arguments: (utime(*arguments), touched.set()))
    with locked(path, "x"):
        assert touched.wait(10)


def test_without_links_the_file_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / ".lock"
    with locked(path, "x"):
        assert json.loads(path.read_text())["what"] == "x"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="the lock cannot be written"), locked(tmp_path / "file" / ".lock", "x"):
        pass
