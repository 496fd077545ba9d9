"""A Maildir: a folder of messages that any mail program can read and change, and that survives a power cut.

    >>> folder = Maildir("run/pending")
    >>> key = folder.add(b"Subject: hi\\n\\nHello\\n")       # on disk when add returns, or it raises
    >>> for held in folder.held():                          # the oldest first, locked
    ...     handle(held.read())
    ...     held.remove()

`tmp` has what is being written, `new` and `cur` have the messages, one file each. A key is a file's name without the
flags that mail programs append after a colon. Names sort by the time of their writing. The format:
https://cr.yp.to/proto/maildir.html

To hold a message is to hold a lock of the operating system's on its file (flock), which ends with the process at the
latest. How often a message was claimed is in its flags, as the letters a, b, c … that Maildir leaves to programs.

What one message costs does not depend on how many there are: a folder is listed once for all the messages that were in
it by then, and a file whose name a mail program has changed is looked for under the names that it is likely to have.
"""

import collections
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
import string
from collections.abc import Callable, Generator, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from lamson.keys import SAFE_NAME, born, host_name, key_of, new_key

log = logging.getLogger(__name__)

# Bytes that have to be free beside a message: the file system needs some for itself, and others write meanwhile.
ROOM = 1 << 17

# Errors of open that say nothing about the file: this process or the system has too much open.
_OUR_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# Flags that a file may have when it was claimed so often, seen by a mail program, or both: the likely ones first.
_LIKELY = [
    ":2," + seen + claims
    for claims in ("", "a", "ab", "abc")
    for seen in ("", "S", "RS", "FS", "ST", "F", "R", "T", "PS", "FRS", "PRS", "RST")
]


class Maildir:
    """The folder `path`, which is made when it is not there."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        for folder in ("tmp", "new", "cur"):
            (self.path / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._base = os.fspath(self.path)
        self._waiting: collections.deque[str] = collections.deque()

    def host(self) -> str:
        """The part of a file name that keeps the names of several machines apart."""
        return host_name()

    # messages by key

    def add(self, content: bytes, key: str | None = None) -> str:
        """Write a message so that it is there after a power cut, and return its key. Raises OSError."""
        key = key or new_key(self.host())
        temporary = self._write(key, content)
        try:
            os.rename(temporary, f"{self._base}/new/{key}")
        except OSError:
            os.unlink(temporary)
            raise
        _sync_folder(f"{self._base}/new")
        return key

    def check_room(self, size: int) -> None:
        """Raise OSError when a message of `size` bytes could not be added: the disk is full or read-only."""
        disk = os.statvfs(self._base)
        if disk.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self._base)
        if disk.f_bavail * disk.f_frsize < size + ROOM or (disk.f_files and not disk.f_favail):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._base)

    def replace(self, path: str | os.PathLike, content: bytes) -> None:
        """Write a message's file anew: after a power cut there is the old or the new one. Raises OSError."""
        temporary = self._write(f"{key_of(path)}.{secrets.token_hex(4)}", content)
        os.rename(temporary, path)
        _sync_folder(os.path.dirname(path))

    def _write(self, name: str, content: bytes) -> str:
        temporary = f"{self._base}/tmp/{name}"
        with open(temporary, "xb", buffering=0) as file:
            try:
                _write_all(file.fileno(), content)
                os.fsync(file.fileno())
            except OSError:
                os.unlink(temporary)
                raise
        return temporary

    def find(self, key: str) -> Path | None:
        """The file of a message, or None."""
        found = self.locate(key)
        return None if found is None else Path(found)

    def locate(self, key: str) -> str | None:
        """As `find`, as a string."""
        if not key or "/" in key or ":" in key or key.startswith("."):
            return None
        new, cur = f"{self._base}/new/{key}", f"{self._base}/cur/{key}"
        if os.path.exists(new):
            return new
        likely = next((cur + flags for flags in ("", *_LIKELY) if os.path.exists(cur + flags)), None)
        if likely is not None:
            return likely
        return next((f"{self._base}/{name}" for name in self._list("cur") if key_of(name) == key), None)

    def read(self, key: str) -> bytes | None:
        """The content of a message, or None when there is none of that key."""
        while (path := self.locate(key)) is not None:
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # it was renamed just now: once more
                return file.read()
        return None

    def size(self, key: str) -> int | None:
        """How many bytes the message has, or None when there is none of that key."""
        while (path := self.locate(key)) is not None:
            with contextlib.suppress(FileNotFoundError):
                return os.stat(path).st_size
        return None

    def remove(self, key: str) -> bool:
        """Take a message out. Returns whether there was one of that key."""
        while (path := self.locate(key)) is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                return True
        return False

    # all of them

    def _list(self, folder: str) -> list[str]:
        return [f"{folder}/{name}" for name in os.listdir(f"{self._base}/{folder}") if not name.startswith(".")]

    def names(self) -> list[str]:
        """Every message's file, as ``new/NAME`` or ``cur/NAME``, the oldest first."""
        names = self._list("new") + self._list("cur")
        names.sort(key=itemgetter(slice(4, None)))
        return names

    def files(self) -> list[Path]:
        """Every message's file, the oldest first."""
        return [self.path / name for name in self.names()]

    def keys(self) -> list[str]:
        """The keys of all messages, the oldest first."""
        return [key_of(name) for name in self.names()]

    def count(self) -> int:
        """How many messages there are."""
        return len(self._list("new")) + len(self._list("cur"))

    def clear(self) -> None:
        """Take every message out."""
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._base}/{name}")

    def heads(self, size: int) -> Iterator[tuple[str, int, float, bytes]]:
        """Yield ``(key, size, time, head)`` of each message, the oldest first.

        That is its size in bytes, when it came in, in seconds since 1970, and its first `size` bytes. One that has been
        taken meanwhile is left out, and one that cannot be read, which `held` deals with.
        """
        for name in self.names():
            try:
                with open(f"{self._base}/{name}", "rb") as file:
                    status, head = os.fstat(file.fileno()), file.read(size)
            except OSError:
                continue
            key = key_of(name)
            yield key, status.st_size, born(key) or status.st_mtime, head

    # one after the other

    def held(self, wanted: Callable[[str], bool] | None = None) -> Generator["Held", None, None]:
        """Yield messages that nobody holds, the oldest first, each held until the next one is asked for.

        `wanted` is asked with each key whether it may be this one. One listing serves many calls: a message that was
        there in any call's beginning is yielded once, or was taken by somebody else.
        """
        for name in self._next_names():
            if wanted is not None and not wanted(key_of(name)):
                continue
            with self.hold(f"{self._base}/{name}") as held:
                if held is not None:
                    yield held

    def _next_names(self) -> Iterator[str]:
        listed = False
        while True:
            try:
                yield self._waiting.popleft()
            except IndexError:
                if listed:
                    return
                self._waiting.extend(self.names())
                listed = True

    @contextlib.contextmanager
    def hold(self, path: str) -> Iterator["Held | None"]:
        """Give a message, held; None when it is not there, or in other hands, or nothing that can be read.

        What cannot be read is moved to the folder `unreadable`, where a person may look at it.
        """
        handle = self._open(path)
        if handle is None:
            yield None
            return
        try:
            yield self._lock(path, handle)
        finally:
            os.close(handle)

    def _open(self, path: str) -> int | None:
        try:
            # A pipe that somebody put there would block otherwise.
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _OUR_OWN:
                raise
            log.exception("failed: %s cannot be read", path)
            self._set_aside(path)
            return None

    def _lock(self, path: str, handle: int) -> "Held | None":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        # Whoever had the lock before may have taken the file away or written it anew since it was opened.
        status = os.fstat(handle)
        if not status.st_nlink:
            return None
        if not stat.S_ISREG(status.st_mode):
            log.error("failed: %s cannot be read, it is no file", path)
            self._set_aside(path)
            return None
        return Held(self, path, handle, status)

    def _set_aside(self, path: str) -> None:
        aside = self.path / "unreadable"
        try:
            aside.mkdir(exist_ok=True, mode=0o700)
            os.rename(path, aside / os.path.basename(path))
        except OSError:
            log.exception("failed: %s cannot be moved to %s either", path, aside)


class SafeMaildir(Maildir):
    """A Maildir whose file names do not tell the host's name, for keys that strangers get to see."""

    def host(self) -> str:
        return SAFE_NAME


class Held:
    """A message that nobody else gets now. `size` is in bytes, `date` is the time of its file (mtime).

    Mail programs know nothing of locks: they may rename it or take it away at any time.
    """

    def __init__(self, maildir: Maildir, path: str, handle: int, status: os.stat_result):
        self.key = key_of(path)
        self.size = status.st_size
        self.date = status.st_mtime
        self._maildir = maildir
        self._path = path
        self._handle = handle

    def read(self) -> bytes:
        """The whole content. Raises OSError."""
        content = os.pread(self._handle, self.size, 0)
        while len(content) < self.size and (more := os.pread(self._handle, self.size - len(content), len(content))):
            content += more
        return content

    def count(self) -> int:
        """Note on disk that the message was claimed once more, and return how often that was by now.

        Raises FileNotFoundError when a mail program has renamed it since it was listed.
        """
        folder, name = os.path.split(self._path)
        base, _, info = name.partition(":2,")
        flags = "".join(flag for flag in info if not flag.islower())
        count = len(info) - len(flags) + 1
        letters = string.ascii_lowercase[:count]
        renamed = f"{os.path.dirname(folder)}/cur/{base}:2,{flags}{letters}"
        os.rename(self._path, renamed)
        self._path = renamed
        return len(letters)

    def replace(self, content: bytes, due: float | None = None) -> bool:
        """Write the message anew, dated `due` if that is given. From here on it is in nobody's hands. Raises OSError.

        Returns False when somebody has removed it meanwhile, and so it shall be.
        """
        here = self._where()
        if here is None:
            return False
        names = os.fstat(self._handle).st_nlink
        self._maildir.replace(here, content)
        if due is not None:
            set_date(here, due)
        if os.fstat(self._handle).st_nlink == names and (old := self._where()) is not None:
            # It was renamed in this very moment, and there are two now.
            os.unlink(old)
        return True

    def remove(self, synced: bool = False) -> None:
        """Take the message out. It is no error when it is gone. Raises OSError.

        After a power cut it may be there again, which costs less than to wait for the disk: whoever handles what is in
        a queue has to expect a message twice. `synced` waits.
        """
        while True:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
                break
            here = self._where()
            if here is None:
                return
            self._path = here
        if synced:
            _sync_folder(os.path.dirname(self._path))

    def move_to(self, other: Any) -> None:
        """Move the message to another queue's store, where it has the same key. Raises OSError."""
        if isinstance(other, Maildir):
            target = f"{other.path}/new/{self.key}"
            try:
                os.rename(self._path, target)
                _sync_folder(os.path.dirname(target))
                return
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
        other.add(self.read(), self.key)
        self.remove()

    def set_aside(self, content: bytes) -> bool:
        """Returns False: a folder has no place of its own for messages that are given up, and the message stays."""
        return False

    def postpone(self, due: float) -> None:
        """Date the message `due`."""
        set_date(self._path, due)

    def _where(self) -> str | None:
        """The path that the file has now, None when somebody removed it."""
        number = os.fstat(self._handle).st_ino
        for path in (self._path, self._maildir.locate(self.key)):
            if path is not None and _number(path) == number:
                return path
        # There may be two files of this key, of which the other one was found.
        paths = (f"{self._maildir.path}/{name}" for name in self._maildir.names() if key_of(name) == self.key)
        return next((path for path in paths if _number(path) == number), None)


def set_date(path: str | os.PathLike, due: float) -> None:
    """Date a file. It is no error when it is gone."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, (due, due))


def _number(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _write_all(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _sync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
