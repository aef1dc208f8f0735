"""Lock files for folders that several processes may write; a process waits for the holder, or replaces a stale lock.

The file names host, process and start time. On the same machine a lock is stale when its process has ended; elsewhere,
or where processes cannot be listed, when its file has not been touched for `STALE_S`: a thread of the holder touches it
every `HEARTBEAT_S`.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from segwright.core.errors import SegwrightError, WorkspaceError
from segwright.core.files.atomic_io import temporary_beside
from segwright.core.files.json_documents import parse_document

logger = getLogger(__name__)

HEARTBEAT_S: Final = 15.0
STALE_S: Final = 180.0
POLL_S: Final = 0.5
"""Between two attempts to take a lock that another process holds."""

_STARTED: Final = time.time()
"""Start of this process, near enough for a message."""
_PROC: Final = Path("/proc")


class Holder(BaseModel):
    """Who holds a lock.

    Attributes:
        host: name of the machine, and its process namespace: containers number their processes separately.
        process: process id.
        process_start: start time as the kernel counts it; empty where unknown.
        started: start time in seconds since 1970.
        what: what is being done, for the log line of processes that wait.
        key: unique to this lock.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    process: int
    process_start: str = ""
    started: float
    what: str
    key: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.process} on {self.host.partition('/')[0]}, started {since} ({self.what})"


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock `path` for the block; wait for another holder, with one log line.

    Folders that were made for the lock file are removed again if they stay empty.

    Args:
        path: the lock file, beside what is written.
        what: what is done, such as 'preprocessing Dataset001_X'.

    Raises:
        WorkspaceError: the file cannot be written.
    """
    made = _missing_folders(path.parent)
    mine = _acquire(path, what)
    done = threading.Event()
    heartbeat = threading.Thread(target=_send_heartbeats, args=(path, done), name="segwright-lock", daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        done.set()
        heartbeat.join()  # or it might touch the file of the next holder
        if _read_holder(path) == mine:
            path.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # no longer empty
                folder.rmdir()


def holder(path: Path) -> Holder | None:
    """Return who holds a lock now; None if it is free or stale."""
    found = _read_holder(path)
    return None if found is None or _is_stale(path, found, time.time()) else found


def _acquire(path: Path, what: str) -> Holder:
    mine = Holder(
        host=_host(),
        process=os.getpid(),
        process_start=_process_start(os.getpid()),
        started=_STARTED,
        what=what,
        key=os.urandom(8).hex(),
    )
    is_logged = False
    while True:
        now = _try_create(path, mine)
        if now is None:
            return mine
        other = _read_holder(path)
        if _is_stale(path, other, now):
            _remove_stale(path, other)
            if other is not None:
                logger.info("%s: its holder has ended, %s; taken over", path, other)
            continue
        if not is_logged:
            logger.warning("waiting for %s, which holds %s", other or "another process", path)
            is_logged = True
        time.sleep(POLL_S)


def _try_create(path: Path, mine: Holder) -> float | None:
    """Create the lock file atomically; if there is one already, return the time by the clock of the file system."""
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(mine.model_dump_json(), encoding="utf-8")
        now = temporary.stat().st_mtime
        try:
            os.link(temporary, path)
        except FileExistsError:
            return now
        except OSError:  # a file system without links
            try:
                with path.open("x", encoding="utf-8") as stream:
                    stream.write(mine.model_dump_json())
            except FileExistsError:
                return now
    except OSError as error:
        raise WorkspaceError(
            f"{path}: the lock cannot be written ({error.strerror}); choose a folder you may write to"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return None


def _remove_stale(path: Path, judged: Holder | None) -> None:
    """Remove a stale lock unless another process has replaced it since it was judged."""
    aside = temporary_beside(path)
    try:
        os.rename(path, aside)
    except OSError:  # another process was faster
        return
    if _read_holder(aside) != judged:
        with suppress(OSError):
            os.link(aside, path)  # another lock by now: put it back
    aside.unlink(missing_ok=True)


def _is_stale(path: Path, found: Holder | None, now: float) -> bool:
    if found is not None and found.host == _host() and _can_list_processes():
        return not _is_alive(found)
    try:
        return now - path.stat().st_mtime > STALE_S
    except OSError:  # removed meanwhile: try again
        return False


def _is_alive(found: Holder) -> bool:
    try:
        os.kill(found.process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    start = _process_start(found.process)
    return not (start and found.process_start) or start == found.process_start


def _can_list_processes() -> bool:
    return sys.platform != "win32"  # where signal 0 would end the process


def _process_start(process: int) -> str:
    """Return the start time of a process in ticks since boot, with the id of the boot; empty where unknown."""
    try:
        fields = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f"{boot}/{fields.split()[19]}"


def _host() -> str:
    try:
        return f"{platform.node()}/{os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return platform.node()


def _read_holder(path: Path) -> Holder | None:
    try:
        return parse_document(Holder, path)
    except SegwrightError:
        return None


def _send_heartbeats(path: Path, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(path)


def _missing_folders(folder: Path) -> list[Path]:
    """Return the folders that have to be made for a folder, innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]
