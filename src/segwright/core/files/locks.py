"""Lock files for folders that several processes may write; a process waits for the holder, or replaces a stale lock.

The file names host and process, and a thread of the holder touches it every `HEARTBEAT_S`. A lock is stale when its
process is known to have ended, on the same machine since the same boot. Otherwise it is stale when its file is older
than `STALE_S` by the clock of the file system and was not touched while the waiting process watched it for
`UNTOUCHED_S`. So neither differing clocks nor a file server that was away for minutes make a lock stale.

Only operations that NFS makes atomic are used: link and rename.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.errors import SegwrightError, WorkspaceError
from segwright.core.files.atomic_io import temporary_beside
from segwright.core.files.json_documents import parse_document
from segwright.core.interrupt import EXIT_RESUMABLE

logger = getLogger(__name__)

HEARTBEAT_S: Final = 5.0
STALE_S: Final = 30.0
UNTOUCHED_S: Final = 15.0
"""How long a process that waits watches an old lock before it takes it over."""
POLL_S: Final = 0.5
"""Between two attempts to take a lock that another process holds."""
_PAUSE_S: Final = 0.01
"""Before the next attempt after a lock was released."""
_PROC: Final = Path("/proc")
_ENDED_STATES: Final = ("Z", "X", "x")
"""Of a process that ended and was not collected by its parent yet, as the kernel names them."""


class LockHeldError(SegwrightError):
    """Another process holds a lock, and the caller does not want to wait."""

    exit_code = EXIT_RESUMABLE


class Holder(BaseModel):
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        machine: boot of the machine and its process namespace, in which process ids are unique; empty where unknown.
        process: process id.
        process_start: start of the process in ticks since boot; empty where unknown.
        started: time at which the lock was taken, in seconds since 1970 by the clock of the host.
        what: what is being done, such as 'preprocessing Dataset001_X'.
        key: unique to this lock.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    machine: str = ""
    process: int
    process_start: str = ""
    started: float
    what: str
    key: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"{self.what} is under way on {self.host}, pid {self.process}, since {since}"

    @property
    def is_this_process(self) -> bool:
        """Whether this process holds the lock."""
        return (self.machine, self.host, self.process) == (_machine(), platform.node(), os.getpid())


@contextmanager
def locked(path: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock `path` for the block; wait for another holder, with one log line.

    Folders that were made for the lock file are removed again if they stay empty.

    Args:
        path: the lock file, beside what is written.
        what: what is done, such as 'preprocessing Dataset001_X'.
        wait: wait for another holder; otherwise raise an error.

    Raises:
        LockHeldError: another process holds the lock, and `wait` is False.
        WorkspaceError: the file cannot be written.
    """
    made = _missing_folders(path.parent)
    mine = _new_holder(what)
    _acquire(path, mine, wait=wait)
    done = threading.Event()
    heartbeat = threading.Thread(target=_send_heartbeats, args=(path, mine, done), name="segwright-lock", daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        done.set()
        heartbeat.join()  # or it might touch the file of the next holder
        if _read_holder(path) == mine:  # it may have been taken over
            path.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # no longer empty
                folder.rmdir()


def holder(path: Path, *, now: float | None = None) -> Holder | None:
    """Return who holds a lock now; None if it is free or stale.

    Args:
        path: the lock file.
        now: the time; by default that of the file system, which is found by writing a temporary file. Readers that must
            not write give that of this machine.
    """
    lock = _read(path)
    if lock is None or lock.holder is None or lock.has_ended:
        return None
    if lock.has_ended is None:
        now = _file_system_time(path) if now is None else now
        if lock.is_old(now):
            return None
    return lock.holder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lock:
    """A lock file as it was read.

    Attributes:
        holder: None if it cannot be read.
        touched: its modification time.
    """

    holder: Holder | None
    touched: float

    @property
    def key(self) -> str:
        return "unreadable" if self.holder is None else self.holder.key

    @property
    def has_ended(self) -> bool | None:
        """Whether the holder has ended; None if that is not known on this machine."""
        return None if self.holder is None else _has_ended(self.holder)

    def is_old(self, now: float) -> bool:
        return now - self.touched > STALE_S


@dataclass(slots=True)
class _Watch:
    """For how long lock files have not changed, by the clock of this process."""

    seen: dict[Path, tuple[_Lock, float]] = field(default_factory=dict)

    def untouched_s(self, path: Path, lock: _Lock) -> float:
        """Return for how many seconds `path` has been as it is now."""
        now = time.monotonic()
        before, since = self.seen.get(path, (None, now))
        if before != lock:
            since = now
        self.seen[path] = (lock, since)
        return now - since


def _acquire(path: Path, mine: Holder, *, wait: bool) -> None:
    watch = _Watch()
    is_logged = False
    while not _try_lock(path, mine, watch):
        lock = _read(path)
        if lock is None:  # released meanwhile
            time.sleep(_PAUSE_S)
            continue
        is_old = lock.has_ended is None and lock.is_old(_file_system_time(path))
        what = lock.holder or f"{path}: held by another process"
        if not (wait or is_old or lock.has_ended):
            raise LockHeldError(f"{what}; run this again when it has ended, or without --no-wait to wait for it")
        if not is_logged:
            remark = f", without a sign of life for {STALE_S:.0f} s" if is_old else ""
            logger.warning("%s%s; waiting", what, remark)
            is_logged = True
        time.sleep(POLL_S)


def _try_lock(path: Path, mine: Holder, watch: _Watch) -> bool:
    """Try once to make a lock, or to take over a stale one; return whether it is held now.

    The right to replace a stale lock is a lock too, named after the key of the stale one. So of all processes that
    judged the same lock only one acts on it, and none on a lock that has replaced it since.
    """
    lock = _read(path)
    if lock is None:
        return _try_create(path, mine)
    if not _is_stale(path, lock, watch):
        return False
    claim = path.with_name(f"{path.name}.{lock.key}")
    if not _try_lock(claim, mine, watch):
        return False
    try:
        current = _read(path)
        if current is None or current.key != lock.key:
            return False  # another process was faster
        _replace(path, mine)
    finally:
        claim.unlink(missing_ok=True)
    name = "" if lock.holder is None else f", pid {lock.holder.process} on {lock.holder.host}"
    logger.info("%s: its holder has ended%s; taken over", path, name)
    return True


def _is_stale(path: Path, lock: _Lock, watch: _Watch) -> bool:
    if lock.has_ended is not None:
        return lock.has_ended
    return watch.untouched_s(path, lock) >= UNTOUCHED_S and lock.is_old(_file_system_time(path))


def _new_holder(what: str) -> Holder:
    return Holder(
        host=platform.node(),
        machine=_machine(),
        process=os.getpid(),
        process_start=(_process_status(os.getpid()) or ("", ""))[1],
        started=time.time(),
        what=what,
        key=os.urandom(8).hex(),
    )


def _try_create(path: Path, mine: Holder) -> bool:
    """Create a lock file with its content in one step; return False if there is one already."""
    temporary = temporary_beside(path)
    with _lock_errors(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(mine.model_dump_json(), encoding="utf-8")
        except FileNotFoundError:  # a holder that had made the folder removed it just now
            return False
        try:
            os.link(temporary, path)
        except FileExistsError:
            return _was_linked(temporary)
        except OSError:  # a file system without links
            if _was_linked(temporary):
                return True
            try:
                with path.open("x", encoding="utf-8") as stream:
                    stream.write(mine.model_dump_json())
            except FileExistsError:
                return False
    return True


def _replace(path: Path, mine: Holder) -> None:
    temporary = temporary_beside(path)
    with _lock_errors(path, temporary):
        temporary.write_text(mine.model_dump_json(), encoding="utf-8")
        try:
            os.replace(temporary, path)
        except FileNotFoundError:  # NFS repeats a request whose answer was lost
            if _read_holder(path) != mine:
                raise


def _was_linked(temporary: Path) -> bool:
    """Return whether a link was made although an error was reported: NFS repeats a request whose answer was lost."""
    return temporary.stat().st_nlink > 1


@contextmanager
def _lock_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Convert errors of writing a lock, and remove the temporary file."""
    try:
        yield
    except OSError as error:
        raise WorkspaceError(
            f"{path}: the lock cannot be written ({error.strerror}); choose a folder you may write to"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _file_system_time(path: Path) -> float:
    """Return the time by the clock that sets the modification times beside `path`; this machine's if nothing can be
    written there."""
    temporary = temporary_beside(path)
    try:
        temporary.touch()
        return temporary.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _has_ended(found: Holder) -> bool | None:
    """Return whether the process of a holder has ended; None if that is not known on this machine."""
    if not found.machine or found.machine != _machine():
        return None
    try:
        os.kill(found.process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # of another user
        pass
    now = _process_status(found.process)
    if now is None or not found.process_start:
        return None
    state, start = now
    return state in _ENDED_STATES or start != found.process_start


def _machine() -> str:
    """Return what tells the process ids of this machine from those of others; empty where the system does not say.

    The name of the host does not: machines may share it, and containers of one machine number processes separately.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink(_PROC / 'self/ns/pid')}"
    except (OSError, UnicodeDecodeError):
        return ""


def _process_status(process: int) -> tuple[str, str] | None:
    """Return state and start time, in ticks since boot, of a process; None if the system does not say."""
    try:
        text = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # the name of the program before it may contain anything
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def _read(path: Path) -> _Lock | None:
    """Read a lock file; None if there is none."""
    found = _read_holder(path)  # opens the file, so that NFS brings its attributes up to date
    try:
        return _Lock(holder=found, touched=path.lstat().st_mtime)  # of a link itself, which may lead nowhere
    except OSError:
        return None


def _read_holder(path: Path) -> Holder | None:
    try:
        return parse_document(Holder, path)
    except SegwrightError:
        return None


def _send_heartbeats(path: Path, mine: Holder, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S):
        current = _read_holder(path)
        if current is not None and current.key != mine.key:
            logger.warning(
                "%s: %s; it has taken over, since this process could not touch its lock for %.0f s",
                *(path, current, STALE_S),
            )
            return
        with suppress(OSError):
            os.utime(path)


def _missing_folders(folder: Path) -> list[Path]:
    """Return the folders that have to be made for a folder, innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]
