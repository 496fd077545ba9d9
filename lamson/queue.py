"""Queues of mail in a Maildir: a folder that any mail program can read, and that survives a power cut.

    >>> from lamson.queue import Queue
    >>> pending = Queue("run/pending")
    >>> key = pending.push(message)         # on disk when push returns, or it raises
    >>> key, message = pending.pop()        # the oldest one; (None, None) when there is none

A message in a queue keeps its envelope. In front of the bytes that came in, `push` writes one line for each recipient
and one for the sender, and reading takes exactly these lines off again:

    Delivered-To: listmaster@example.com
    Return-Path: <zed@example.com>

`pop` forgets the message before you have done your work. Work that must not be lost is claimed instead:

    with pending.claim() as claim:          # None when there is nothing to do
        if claim:
            handle(claim.message)
            claim.done()                    # without this, and after a crash, somebody else may claim it

A claim is a lock of the operating system's, which ends with the process, and a rename, which counts: the flags of the
file's name say how often a message was claimed before, in the letters a to z that Maildir leaves to programs.

Several processes may push to, pop from and claim in one queue at the same time.
"""

import collections
import fcntl
import itertools
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lamson.errors import QueueError
from lamson.mail import MailRequest, bare_address

log = logging.getLogger(__name__)

# One for the process, since two objects may write into one folder within the same microsecond.
_counter = itertools.count()

_RECIPIENT = b"Delivered-To: "
_SENDER = b"Return-Path: <"
_HEAD = 1 << 16  # bytes that are read of a message to list it
_REASON = b"X-Lamson-Reason: "


# --- the folder --------------------------------------------------------------------------------------------------


class Maildir:
    """The folder: `tmp` for what is being written, `new` and `cur` for messages.

    A key is a message's file name without the flags that mail programs append after a colon. File names sort by the
    time of their writing: https://cr.yp.to/proto/maildir.html.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        for folder in ("tmp", "new", "cur"):
            (self.path / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._waiting: collections.deque[Path] = collections.deque()

    def host(self) -> str:
        """The part of a file name that keeps the names of several machines apart."""
        return socket.gethostname().replace("/", "\\057").replace(":", "\\072")

    def add(self, content: bytes) -> str:
        """Write a message so that it is there after a power cut, and return its key. Raises OSError."""
        now = time.time()
        seconds, micros = int(now), int(now % 1 * 1e6)
        name = f"{seconds}.M{micros:06}P{os.getpid()}Q{next(_counter)}.{self.host()}"
        temporary = self._write(name, content)
        try:
            os.rename(temporary, self.path / "new" / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self.path / "new")
        return name

    def replace(self, path: Path, content: bytes) -> None:
        """Write a message's file anew: after a power cut there is the old or the new one. Raises OSError."""
        temporary = self._write(f"{key_of(path)}.{secrets.token_hex(4)}", content)
        os.rename(temporary, path)
        _sync_folder(path.parent)

    def _write(self, name: str, content: bytes) -> Path:
        temporary = self.path / "tmp" / name
        with open(temporary, "xb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        return temporary

    def set_aside(self, path: Path) -> None:
        """Move what cannot be read to the folder `unreadable`, where a person may look at it."""
        aside = self.path / "unreadable"
        try:
            aside.mkdir(exist_ok=True, mode=0o700)
            os.rename(path, aside / path.name)
        except OSError:
            log.exception("failed: %s cannot be moved to %s either", path, aside)

    def files(self) -> list[Path]:
        """Every message's file, the oldest first."""
        found = []
        for folder in ("new", "cur"):
            with os.scandir(self.path / folder) as entries:
                found += [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
        return sorted(found, key=lambda path: path.name)

    def waiting(self) -> Iterator[Path]:
        """Yield files that may be taken, the oldest first. A listing serves many calls; a file may be gone by now."""
        listed = False
        while True:
            try:
                yield self._waiting.popleft()
            except IndexError:
                if listed:
                    return
                self._waiting.extend(self.files())
                listed = True

    def count_claim(self, path: Path) -> tuple[Path, int]:
        """Note in a file's name that it was claimed once more. Returns the file and how often that was by now."""
        base, _, info = path.name.partition(":2,")
        flags = "".join(flag for flag in info if not flag.islower())
        count = sum(1 for flag in info if flag.islower()) + 1
        letters = "abcdefghijklmnopqrstuvwxyz"[:count]
        renamed = self.path / "cur" / f"{base}:2,{flags}{letters}"
        os.rename(path, renamed)
        return renamed, len(letters)

    def find(self, key: str) -> Path | None:
        """The file of a message, or None."""
        if not key or "/" in key or key.startswith("."):
            return None
        new = self.path / "new" / key
        if new.exists():
            return new
        with os.scandir(self.path / "cur") as entries:
            return next((Path(entry.path) for entry in entries if key_of(entry.name) == key), None)


class SafeMaildir(Maildir):
    """A Maildir whose file names do not tell the host's name, for keys that strangers get to see."""

    _token = secrets.token_hex(8)

    def host(self) -> str:
        return self._token


def key_of(name: str | os.PathLike) -> str:
    """The key in a file's name: what stands before the flags."""
    return os.path.basename(name).partition(":")[0]


def _unlink(maildir: Maildir, path: Path) -> None:
    """Take a message's file away, which a mail program may have moved from `new` to `cur` in the meantime."""
    moved = path if path.exists() else maildir.find(key_of(path))
    if moved is not None:
        moved.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- the envelope ------------------------------------------------------------------------------------------------


def join_envelope(sender: str, recipients: list[str], content: bytes, reason: str | None = None) -> bytes:
    """Put the envelope in front of a message. Raises QueueError for an address with a line end in it.

    `reason` says why the message is where it is, and stands first. The sender stands last and so ends the block: what
    follows belongs to the message, whatever it looks like.
    """
    end = b"\r\n" if content[: content.find(b"\n") + 1].endswith(b"\r\n") else b"\n"
    lines = [_RECIPIENT + _address(recipient) for recipient in recipients] + [_SENDER + _address(sender) + b">"]
    if reason:
        lines.insert(0, _REASON + _bytes(" ".join(reason.split())))
    return b"".join(line + end for line in lines) + content


def split_envelope(raw: bytes) -> tuple[str | None, list[str] | None, bytes]:
    """Return ``(sender, recipients, message)`` of what `join_envelope` made; ``(None, None, raw)`` of anything else."""
    recipients, start = [], 0
    if raw.startswith(_REASON):
        start = raw.find(b"\n") + 1
    while raw.startswith(_RECIPIENT, start):
        end = raw.find(b"\n", start)
        if end < 0:
            return None, None, raw
        recipients.append(_text(raw[start + len(_RECIPIENT) : end].removesuffix(b"\r")))
        start = end + 1
    end = raw.find(b"\n", start)
    last = raw[start:end].removesuffix(b"\r")
    if not recipients or end < 0 or not last.startswith(_SENDER) or not last.endswith(b">"):
        return None, None, raw
    return _text(last[len(_SENDER) : -1]), recipients, raw[end + 1 :]


def envelope_reason(raw: bytes) -> str | None:
    """Return the reason that `join_envelope` wrote in front of a message, None when there is none."""
    if not raw.startswith(_REASON) or split_envelope(raw)[1] is None:
        return None
    return _text(raw[len(_REASON) : raw.find(b"\n")].removesuffix(b"\r"))


def _address(address: str) -> bytes:
    address = bare_address(address)
    if "\r" in address or "\n" in address:
        raise QueueError(f"The address {address!r} has a line end in it and cannot be queued.")
    return _bytes(address)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


# --- the queue ---------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One message as a list of the queue shows it: `size` in bytes, `age` in seconds, why it is here."""

    key: str
    sender: str
    recipients: list[str]
    size: int
    age: float
    reason: str


class Claim:
    """A message that is this process's to handle. It is nobody's again when the claim ends without `done`.

    `count` is how often it was claimed, this time included.
    """

    def __init__(self, maildir: Maildir, path: Path, count: int, message: MailRequest):
        self.key = key_of(path)
        self.count = count
        self.message = message
        self._maildir = maildir
        self._path = path

    def narrow(self, recipients: list[str], reason: str | None = None) -> None:
        """Forget all recipients but these: the others have been handled, and shall not be again. Raises OSError."""
        sender = self.message.envelope[0]
        sender = self.message.route_from or "" if sender is None else sender
        self._maildir.replace(self._path, join_envelope(sender, recipients, _content(self.message.original), reason))

    def done(self) -> None:
        """The message has been handled: take it out of the queue for good."""
        _unlink(self._maildir, self._path)
        _sync_folder(self._path.parent)


class Queue:
    """A queue of mail in the Maildir `queue_dir`, which is made when it is not there.

    `safe=True` keeps the host's name out of the keys. `pop` never returns a message over `pop_limit` bytes (0: no
    limit): it moves such a message to the Maildir `oversize_dir`, or drops it when there is none.
    """

    def __init__(
        self,
        queue_dir: str | os.PathLike,
        safe: bool = False,
        pop_limit: int = 0,
        oversize_dir: str | os.PathLike | None = None,
    ):
        self.dir = os.fspath(queue_dir)
        self.pop_limit = pop_limit
        self.oversize_dir = oversize_dir
        self.mbox = SafeMaildir(queue_dir) if safe else Maildir(queue_dir)
        self._oversized = Maildir(oversize_dir) if oversize_dir else None

    def push(self, message: Any, reason: str | None = None) -> str:
        """Put a message in and return its key. It is on disk, file and folder, when this returns.

        Takes a MailRequest (with its envelope, and exactly the bytes that came in when nobody changed it), a
        MailResponse, an `email.message.Message`, str or bytes. Raises QueueError for anything else, OSError when the
        disk does not take it. `reason` says why the message is here; it is kept with an envelope only.
        """
        content = _content(message)
        if isinstance(message, MailRequest):
            sender, recipients = message.envelope
            if recipients:
                content = join_envelope(
                    message.route_from or "" if sender is None else sender, recipients, content, reason
                )
        return self.mbox.add(content)

    def pop(self) -> tuple[str, MailRequest] | tuple[None, None]:
        """Take the oldest message out and return ``(key, message)``, or ``(None, None)`` when the queue is empty."""
        for path, file in self._held():
            message = _read(file)
            _unlink(self.mbox, path)
            return key_of(path), message
        return None, None

    @contextmanager
    def claim(self, wanted: Callable[[str], bool] | None = None) -> Iterator[Claim | None]:
        """Give the oldest message that nobody is working on, or None. It stays in the queue until `Claim.done`.

        `wanted` is asked with each key whether it may be this one. The claim is a lock of the operating system's on the
        message's file, so it ends with this process at the latest.
        """
        for path, file in self._held(wanted):
            try:
                path, count = self.mbox.count_claim(path)
            except FileNotFoundError:  # a mail program has moved it just now; it is found again in the next round
                continue
            yield Claim(self.mbox, path, count, _read(file))
            return
        yield None

    def _held(self, wanted: Callable[[str], bool] | None = None) -> Iterator[tuple[Path, Any]]:
        """Yield messages' files, each open and locked until the next one is asked for."""
        for path in self.mbox.waiting():
            if wanted is not None and not wanted(key_of(path)):
                continue
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            except OSError:
                log.exception("failed: %s cannot be read", path)
                self.mbox.set_aside(path)
                continue
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                # Whoever had the lock before may have taken the file away since it was opened.
                status = os.fstat(file.fileno())
                if not status.st_nlink:
                    continue
                if self.pop_limit and status.st_size > self.pop_limit:
                    self._move_oversized(path)
                    continue
                yield path, file

    def _move_oversized(self, path: Path) -> None:
        if self._oversized is None:
            path.unlink()
            log.warning("dropped: %s is over the limit of %d bytes", key_of(path), self.pop_limit)
        else:
            shutil.move(path, self._oversized.path / "new" / key_of(path))
            log.warning("moved: %s is over the limit of %d bytes", key_of(path), self.pop_limit)

    def get(self, key: str) -> MailRequest | None:
        """Return the message and leave it in the queue; None when there is none of that key."""
        path = self.mbox.find(key)
        if path is None:
            return None
        with open(path, "rb") as file:
            return _read(file)

    def remove(self, key: str) -> None:
        """Take a message out. Raises QueueError when there is none of that key."""
        path = self.mbox.find(key)
        if path is None:
            raise QueueError(f"There is no message {key!r} in {self.dir}.")
        path.unlink()

    def entries(self) -> Iterator[Entry]:
        """What there is to know about each message without reading it whole, the oldest first."""
        for path in self.mbox.files():
            try:
                with path.open("rb") as file:
                    status, head = os.fstat(file.fileno()), file.read(_HEAD)
            except OSError:  # it has been handled meanwhile, or cannot be read, which `pop` and `claim` deal with
                continue
            sender, recipients, rest = split_envelope(head)
            if recipients is None:
                message = MailRequest("queue", None, None, rest)
                sender, recipients = message.route_from, sorted(message.route_to)
            seconds = path.name.partition(".")[0]  # another program's files may be called anything
            age = max(0.0, time.time() - (int(seconds) if seconds.isdecimal() else status.st_mtime))
            yield Entry(key_of(path), sender or "", recipients, status.st_size, age, envelope_reason(head) or "")

    def keys(self) -> list[str]:
        """The keys of all messages, the oldest first."""
        return [key_of(path) for path in self.mbox.files()]

    def count(self) -> int:
        """How many messages there are."""
        return len(self.mbox.files())

    def clear(self) -> None:
        """Take every message out."""
        for path in self.mbox.files():
            path.unlink(missing_ok=True)

    def oversize(self, key: str) -> bool:
        """Whether the message is over `pop_limit`."""
        path = self.mbox.find(key)
        return bool(self.pop_limit and path and path.stat().st_size > self.pop_limit)


def _content(message: Any) -> bytes:
    if isinstance(message, str):
        return _bytes(message)
    if isinstance(message, bytes):
        return message
    if hasattr(message, "as_bytes"):
        return message.as_bytes()
    raise QueueError(f"Cannot queue {message!r}: it is no message, str or bytes.")


def _read(file: Any) -> MailRequest:
    sender, recipients, content = split_envelope(file.read())
    return MailRequest("queue", sender, recipients, content)
