"""Locks: held by one at a time, waited for with one line, taken over from those that are gone."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from segwright.core.errors import WorkspaceError
from segwright.core.files import locks
from segwright.core.files.locks import Holder, LockHeldError, holder, locked
from segwright.core.interrupt import EXIT_RESUMABLE

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say when a process started")

SOURCE = Path(__file__).parents[4] / "src"
HOLD = """
import signal, sys, time
from pathlib import Path
from segwright.core.files.locks import locked
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have switched off
with locked(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    monkeypatch.setattr(locks, "UNTOUCHED_S", 0.02)


def left_by(path: Path, **changes: object) -> None:
    """Write the lock of this process, changed, as a process that was killed leaves it."""
    with locked(path, "training"):
        document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "key": f"{1:016x}", **changes}))


def make_old(path: Path) -> None:
    old = path.stat().st_mtime - locks.STALE_S - 60
    os.utime(path, (old, old))


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
        assert str(found).startswith("preprocessing is under way on ")
        assert f", pid {os.getpid()}, since " in str(found)
        assert found.is_this_process
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
    lines = [message for message in caplog.messages if message.endswith("; waiting")]
    assert len(lines) == 1
    assert lines[0].startswith("first is under way on ")


def test_without_waiting_the_holder_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, "first"):
        content = path.read_text()
        message = r"^first is under way on .*, pid \d+, since .*--no-wait"
        with pytest.raises(LockHeldError, match=message) as caught, locked(path, "second", wait=False):
            pass
        assert path.read_text() == content
    assert caught.value.exit_code == EXIT_RESUMABLE
    with locked(path, "second", wait=False):
        assert "second" in path.read_text()
    left_by(path, machine="elsewhere")
    make_old(path)
    with locked(path, "third", wait=False):
        assert "third" in path.read_text()


def test_a_lock_of_a_process_that_is_gone_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".lock"
    left_by(path, process=ended_process())
    assert holder(path) is None
    with caplog.at_level(logging.INFO), locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"
    assert "its holder has ended" in caplog.text


@on_linux
def test_a_process_id_that_was_given_again_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    left_by(path, process_start="1")
    with locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"


def start_holder(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_a_process_that_waits(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, "first"):
        content = path.read_text()
        with start_holder(path) as child:
            assert child.stderr is not None
            assert child.stderr.readline().endswith("; waiting\n")
            child.send_signal(signal.SIGINT)
            assert child.wait(10) == -signal.SIGINT
        assert path.read_text() == content


@on_linux
def test_a_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with start_holder(path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LockHeldError, match=f", pid {child.pid},"), locked(path, "next", wait=False):
            pass
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        with locked(path, "next", wait=False):
            assert json.loads(path.read_text())["what"] == "next"


@pytest.mark.parametrize("changes", [{"machine": "other boot/pid:[1]"}, {"machine": ""}, {"process_start": ""}])
def test_a_lock_of_another_machine_counts_while_it_is_touched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, str]
) -> None:
    path = tmp_path / ".lock"
    left_by(path, **changes)
    assert holder(path) is not None
    make_old(path)
    assert holder(path) is None
    with locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"
    assert "training is under way on" in caplog.text
    assert "without a sign of life" in caplog.text


def test_an_old_lock_that_is_touched_while_it_is_watched_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a file server was away, every lock is old for a moment."""
    path = tmp_path / ".lock"
    left_by(path, machine="elsewhere")
    make_old(path)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch, mine = locks._Watch(), locks._new_holder("next")
    assert not locks._try_lock(path, mine, watch)
    now[0] = locks.UNTOUCHED_S / 2
    os.utime(path, (path.stat().st_mtime + 1,) * 2)
    assert not locks._try_lock(path, mine, watch)
    now[0] = locks.UNTOUCHED_S
    assert not locks._try_lock(path, mine, watch)
    now[0] = locks.UNTOUCHED_S * 2
    assert locks._try_lock(path, mine, watch)


def test_clocks_that_differ_do_not_end_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    left_by(path, machine="elsewhere", started=0.0)
    now = time.time()
    for skew in (-1e6, 1e6):
        monkeypatch.setattr("time.time", lambda skew=skew: now + skew)
        assert holder(path) is not None
        with pytest.raises(LockHeldError), locked(path, "next", wait=False):
            pass


@pytest.mark.parametrize("text", ["", "[]", "no json", '{"host": 3}'])
def test_an_unreadable_lock_is_taken_over_when_it_is_old(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(text)
    os.utime(path, (1, 1))
    with locked(path, "next"):
        assert json.loads(path.read_text())["what"] == "next"


def test_a_lock_replaced_since_it_was_judged_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first judges a stale lock and pauses; a second takes it over and ends, a third takes the free lock."""
    path = tmp_path / ".lock"
    left_by(path, process_start="1", machine=locks._machine() or "elsewhere")
    stale = locks._read(path)
    with locked(path, "second"):
        pass
    third = locks._new_holder("third")
    assert locks._try_lock(path, third, locks._Watch())
    read = locks._read
    answers = [stale]
    monkeypatch.setattr(locks, "_read", lambda place: answers.pop() if place == path and answers else read(place))
    monkeypatch.setattr(locks, "_is_stale", lambda *arguments: True)
    assert not locks._try_lock(path, locks._new_holder("first"), locks._Watch())
    assert holder(path) == third
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@on_linux
def test_exactly_one_of_several_takes_over(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for trial in range(20):
        left_by(path, process_start="1")
        mine = [locks._new_holder(f"{trial} {number}") for number in range(4)]
        start = threading.Barrier(len(mine))

        def attempt(own: Holder, start: threading.Barrier = start) -> bool:
            start.wait(10)
            return any(locks._try_lock(path, own, locks._Watch()) for _ in range(3))

        with ThreadPoolExecutor(len(mine)) as pool:
            won = list(pool.map(attempt, mine))
        assert sum(won) == 1
        assert holder(path) == mine[won.index(True)]
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]
        path.unlink()


@on_linux
def test_a_process_killed_while_it_takes_over_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    left_by(path, process_start="1")
    lock = locks._read(path)
    assert lock is not None
    left_by(path.with_name(f"{path.name}.{lock.key}"), process_start="1", key=f"{2:016x}")
    with locked(path, "next", wait=False):
        assert sorted(file.name for file in tmp_path.iterdir()) == [".lock"]


def test_a_folder_that_the_last_holder_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / ".lock"
    make, removed = Path.mkdir, list[Path]()

    def make_and_remove(folder: Path, **options: Any) -> None:
        make(folder, **options)
        if not removed:
            removed.append(folder)
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", make_and_remove)
    with locked(path, "x"):
        assert path.is_file()


def test_a_link_that_leads_nowhere_is_replaced_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.symlink_to(tmp_path / "nothing")
    os.utime(path, (1, 1), follow_symlinks=False)
    with locked(path, "next"):
        assert not path.is_symlink()


def test_a_holder_whose_lock_was_taken_over_says_so_and_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    path = tmp_path / ".lock"
    with locked(path, "first"):
        locks._replace(path, locks._new_holder("second"))
        deadline = time.monotonic() + 10
        while "it has taken over" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "second is under way on" in caplog.text
    assert json.loads(path.read_text())["what"] == "second"


def test_the_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    path = tmp_path / ".lock"
    touched = threading.Event()
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda *arguments: (utime(*arguments), touched.set()))
    with locked(path, "x"):
        assert touched.wait(10)


def test_a_link_that_was_made_although_its_answer_was_lost_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats such a request, which then fails because of the first one."""
    link = os.link

    def repeat(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeat)
    path = tmp_path / ".lock"
    with locked(path, "x", wait=False):
        assert json.loads(path.read_text())["what"] == "x"


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
