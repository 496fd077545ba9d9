"""Locks that hold across the processes of one machine, and that the kernel gives back when a process dies.

    locks = FileLocks(lambda: "app/data/lamson.db-lock")
    locks.acquire(number)       # 0 <= number < locks.count; waits for other processes, for as long as it takes
    locks.acquire(number, 10)   # or for ten seconds, and raises LockTimeout then
    locks.release(number)

Threads of one process do not keep each other out: `lamson.states.KeyedLocks` does that, and asks for these after it.
There is no other detection of deadlocks. The file stays empty, and nothing is written to it.

On Linux a lock is one byte's range of one file, held by its open file description (``F_OFD_SETLKW`` in fcntl(2)): one
open file for a process, any number of locks, and unlike with POSIX locks, closing some other descriptor of the file
does not give them away. Elsewhere it is flock(2) on one of a few files, `STRIPES` of them, so that two senders may have
to wait for each other who would not have to.
"""

import fcntl
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from lamson.states import LockTimeout

STRIPES = 64

_OFD_SETLKW = getattr(fcntl, "F_OFD_SETLKW", None)

_instances: weakref.WeakSet[Any] = weakref.WeakSet()


def file_locks(path: Callable[[], str]) -> "FileLocks | FlockLocks":
    """Returns the locks that this system has, in the file that `path` names when the first one is taken."""
    return FlockLocks(path) if _OFD_SETLKW is None else FileLocks(path)


class FileLocks:
    """One lock for each byte that a file could have."""

    count = 1 << 62

    def __init__(self, path: Callable[[], str]):
        self._path = path
        self._descriptor: int | None = None
        self._opening = threading.Lock()
        _instances.add(self)

    def acquire(self, number: int, patience: float | None = None) -> None:
        """Waits until no other process holds the lock. Raises OSError; LockTimeout after `patience` seconds."""
        descriptor = self._descriptor
        if descriptor is None:
            with self._opening:
                if self._descriptor is None:
                    self._descriptor = _open(self._path())
                descriptor = self._descriptor
        wanted = _range(fcntl.F_WRLCK, number)
        if patience is None:
            fcntl.fcntl(descriptor, _OFD_SETLKW, wanted)  # type: ignore[arg-type]
        else:
            _try(lambda: fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted), patience)  # type: ignore[attr-defined,arg-type]

    def release(self, number: int) -> None:
        """Gives the lock back."""
        descriptor = self._descriptor
        if descriptor is not None:  # None in the child of a process that held it, which holds nothing
            fcntl.fcntl(descriptor, _OFD_SETLKW, _range(fcntl.F_UNLCK, number))  # type: ignore[arg-type]

    def close(self) -> None:
        """Gives all of this process' locks back. The next `acquire` opens the file again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _after_fork(self) -> None:
        # The child has the parent's open file description: with it, it would hold the parent's locks too, even after
        # the parent's death. Closing our copy of the descriptor takes none of them from the parent.
        self._opening = threading.Lock()
        self.close()

    def __del__(self) -> None:
        self.close()


class FlockLocks:
    """The same for other systems: few locks, and an open file for each that is held."""

    count = STRIPES

    def __init__(self, path: Callable[[], str]):
        self._path = path
        self._held: dict[int, int] = {}  # number -> descriptor
        _instances.add(self)

    def acquire(self, number: int, patience: float | None = None) -> None:
        """Waits until no other process holds the lock. Raises OSError; LockTimeout after `patience` seconds."""
        descriptor = _open(f"{self._path()}.{number}")
        try:
            if patience is None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            else:
                _try(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), patience)
        except BaseException:
            os.close(descriptor)
            raise
        self._held[number] = descriptor

    def release(self, number: int) -> None:
        """Gives the lock back."""
        descriptor = self._held.pop(number, None)
        if descriptor is not None:  # None in the child of a process that held it, which holds nothing
            os.close(descriptor)

    def close(self) -> None:
        """Gives all of this process' locks back."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _after_fork(self) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _try(lock: Callable[[], Any], patience: float) -> None:
    """Try again and again. The kernel's own waiting knows no limit of time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            lock()
            return
        except BlockingIOError:  # EAGAIN: somebody else has it
            if time.monotonic() > deadline:
                raise LockTimeout from None
            time.sleep(0.01)


def _open(path: str) -> int:
    # Never removed: a process that opens a new file of the name would not see who holds a lock of the old one.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _range(kind: int, number: int) -> bytes:
    # struct flock: l_type, l_whence, l_start, l_len, l_pid (0 for locks of an open file description), and padding
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, number, 1, 0)


def _close_what_the_parent_opened() -> None:
    for locks in list(_instances):
        locks._after_fork()


os.register_at_fork(after_in_child=_close_what_the_parent_opened)
