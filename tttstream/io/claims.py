"""Locks: an exclusive lock on a folder or a file, which ends with the process that holds it."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from tttstream.errors import OutputError
from tttstream.io.names import clipped

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FOLDER_LOCK = ".tttstream.lock"
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)
PATIENCE_S = 1.0  # the holder writes its name right after it has taken the lock
BEYOND = 1 << 30  # bytes: on Windows locked bytes cannot be read, so the lock is behind the text
_open: dict[int, tuple[int, int]] = {}  # descriptors of the locks held here → (device, inode)


class Claim:
    """An exclusive lock on a folder or a file, until `release`, or until the process ends.

    It is a lock of the operating system on a small file in the same folder; the file names its holder and is removed at
    the end. A file that a killed process left behind is reused. The lock works between processes of one machine, and
    between machines on network file systems with locks (NFS, SMB); on a file system without locks there is a warning
    and no protection.

    lock: the small file. what: the locked folder or file, for the message.

    Raises OutputError, with the holder, if another run has the lock; OSError if the small file cannot be written.
    """

    def __init__(self, lock: Path, what: str) -> None:
        self._lock = lock
        descriptor = _take(lock, what)
        self._end = weakref.finalize(self, _release, descriptor, lock, os.getpid())

    @classmethod
    def on_folder(cls, folder: str | os.PathLike[str]) -> Claim:
        """Lock an existing folder."""
        return cls(Path(folder, FOLDER_LOCK), f"the folder {os.fspath(folder)}")

    @classmethod
    def on_file(cls, path: str | os.PathLike[str]) -> Claim:
        """Lock a file in an existing folder; the file may not exist yet."""
        with suppress(FileNotFoundError):
            os.stat(path)  # a name that is too long raises now, not at the end
        return cls(beside(path, ".lock"), f"the file {os.fspath(path)}")

    @property
    def held(self) -> bool:
        """Whether the lock is still held."""
        return self._end.alive

    def release(self) -> None:
        """Release the lock. Safe to call twice."""
        self._end()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def beside(path: str | os.PathLike[str], ending: str) -> Path:
    """The hidden file .NAME.ending in the folder of a file; a very long name is cut."""
    whole = Path(path)
    room = 255 - len(f".{ending}")  # bytes
    short = whole.name if len(os.fsencode(whole.name)) <= room else clipped(whole.name, room)
    return whole.with_name(f".{short}{ending}")


def _take(lock: Path, what: str) -> int:
    """Open and lock the small file, and write the holder into it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _try_lock(descriptor, lock, what)
            mine = os.fstat(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(mine, os.stat(lock)):
                    break
            os.close(descriptor)  # the last holder removed it in the meantime: begin again with a new one
        except BaseException:
            os.close(descriptor)
            raise
    _open[descriptor] = mine.st_dev, mine.st_ino
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(who).encode())
    return descriptor


def _try_lock(descriptor: int, lock: Path, what: str) -> None:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, BEYOND, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise OutputError(
                f"{what} is in use by another run{_holder(lock)}: wait until that ends, or choose another place"
            ) from error
        if error.errno not in UNSUPPORTED:
            raise
        text = f"{lock.parent} is on a file system without locks: make sure that no other run writes there"
        warnings.warn(text, stacklevel=2)


def _holder(lock: Path) -> str:
    """The writer named in the lock file, in brackets."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            who: dict[str, Any] = json.loads(lock.read_bytes())
            here = "" if who["host"] == socket.gethostname() else f" on {who['host']}"
            return f" (process {who['pid']}{here}, since {who['since']})"
        except (OSError, ValueError, TypeError, KeyError):
            if time.monotonic() > until:
                return ""
            time.sleep(0.02)


def _release(descriptor: int, lock: Path, process: int) -> None:
    if os.getpid() != process or descriptor not in _open:
        return
    del _open[descriptor]
    with suppress(OSError):  # Windows cannot remove an open file
        lock.unlink()
    os.close(descriptor)
    if sys.platform == "win32":
        with suppress(OSError):
            lock.unlink()


def _let_go() -> None:
    """In a forked process: the lock belongs to the parent, and must not outlive it."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
