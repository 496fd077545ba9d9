"""Queues of mail: in a folder that any mail program can read, or over a message broker that several machines share.

    >>> from lamson.queue import Queue
    >>> pending = Queue("run/pending")      # or Queue("amqp://guest:guest@localhost//?queue=pending")
    >>> key = pending.push(message)         # on disk when push returns, or it raises
    >>> key, message = pending.pop()        # the oldest one; (None, None) when there is none

A message in a queue keeps its envelope: see `lamson.envelope`.

`pop` forgets the message before you have done your work. Work that must not be lost is claimed instead:

    with pending.claim() as claim:          # None when there is nothing to do
        if claim:
            handle(claim.message)
            claim.done()                    # without this, and after a crash, somebody else may claim it

Several processes may push to, pop from and claim in one queue at the same time. What a folder does is in
`lamson.maildir`, what a broker does in `lamson.broker`.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from lamson.envelope import envelope_reason, join_envelope, split_envelope, to_bytes
from lamson.errors import QueueError
from lamson.keys import key_of
from lamson.mail import MailRequest
from lamson.maildir import Maildir, SafeMaildir

__all__ = [
    "Claim",
    "Entry",
    "Maildir",
    "Queue",
    "SafeMaildir",
    "envelope_reason",
    "is_url",
    "join_envelope",
    "key_of",
    "split_envelope",
]

log = logging.getLogger(__name__)

_HEAD = 1 << 16  # bytes that are read of a message to list it


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

    def __init__(self, held: Any, count: int):
        self.key = held.key
        self.count = count
        self.message = _request(held.read())
        self._held = held

    def narrow(self, recipients: list[str], reason: str | None = None) -> None:
        """Forget all recipients but these: the others have been handled, and shall not be again. Raises OSError."""
        sender = self.message.envelope[0]
        sender = self.message.route_from or "" if sender is None else sender
        self._held.replace(join_envelope(sender, recipients, _content(self.message.original), reason))

    def done(self) -> None:
        """The message has been handled: take it out of the queue. Raises OSError."""
        self._held.remove()

    def set_aside(self, reason: str) -> bool:
        """Give the message up, where the queue has a place for that: a broker has, a folder has not.

        Returns whether it was moved there, with the reason. Raises OSError.
        """
        return self._held.set_aside(_entry(self.message, reason))


class Queue:
    """A queue of mail in the Maildir `queue_dir`, which is made when it is not there, or over the broker of that URL.

    `safe=True` keeps the host's name out of the keys. `pop` never returns a message over `pop_limit` bytes (0: no
    limit): it moves such a message to the queue `oversize_dir`, or drops it when there is none. `dir` is `queue_dir`,
    without the password if there is one in it.
    """

    def __init__(
        self,
        queue_dir: str | os.PathLike,
        safe: bool = False,
        pop_limit: int = 0,
        oversize_dir: str | os.PathLike | None = None,
    ):
        self.pop_limit = pop_limit
        self.oversize_dir = oversize_dir
        self.mbox = _store(os.fspath(queue_dir), safe)
        self.dir = str(self.mbox) if is_url(queue_dir) else os.fspath(queue_dir)
        self._oversized = _store(os.fspath(oversize_dir), safe) if oversize_dir else None

    def push(self, message: Any, reason: str | None = None) -> str:
        """Put a message in and return its key. It is on disk, file and folder, when this returns, or the broker has it.

        Takes a MailRequest (with its envelope, and exactly the bytes that came in when nobody changed it), a
        MailResponse, an `email.message.Message`, str or bytes. Raises QueueError for anything else, OSError when the
        disk or the broker does not take it. `reason` says why the message is here; it is kept with an envelope only.
        """
        return self.mbox.add(_entry(message, reason))

    def check_room(self, size: int) -> None:
        """Raise OSError when a message of `size` bytes could not be pushed, because the disk is full or read-only."""
        self.mbox.check_room(size)

    def pop(self) -> tuple[str, MailRequest] | tuple[None, None]:
        """Take the oldest message out and return ``(key, message)``, or ``(None, None)`` when the queue is empty."""
        with contextlib.closing(self._held()) as found:
            for held in found:
                message = _request(held.read())
                held.remove()
                return held.key, message
        return None, None

    @contextmanager
    def claim(self, wanted: Callable[[str], bool] | None = None) -> Iterator[Claim | None]:
        """Give the oldest message that nobody is working on, or None. It stays in the queue until `Claim.done`.

        `wanted` is asked with each key whether it may be this one. The claim ends with this process at the latest.
        """
        with contextlib.closing(self._held(wanted)) as found:
            for held in found:
                try:
                    count = held.count()
                except FileNotFoundError:  # a mail program has moved it just now; it is found again in the next round
                    continue
                yield Claim(held, count)
                return
        yield None

    def _held(self, wanted: Callable[[str], bool] | None = None) -> Generator[Any, None, None]:
        """Yield messages that nobody else works on, and move those that are too large."""
        with contextlib.closing(self.mbox.held(wanted)) as found:
            for held in found:
                if not self.pop_limit or held.size <= self.pop_limit:
                    yield held
                elif self._oversized is None:
                    held.remove()
                    log.warning("dropped: %s is over the limit of %d bytes", held.key, self.pop_limit)
                else:
                    held.move_to(self._oversized)
                    log.warning("moved: %s is over the limit of %d bytes", held.key, self.pop_limit)

    def get(self, key: str) -> MailRequest | None:
        """Return the message and leave it in the queue; None when there is none of that key."""
        content = self.mbox.read(key)
        return None if content is None else _request(content)

    def remove(self, key: str) -> None:
        """Take a message out. Raises QueueError when there is none of that key."""
        if not self.mbox.remove(key):
            raise QueueError(f"There is no message {key!r} in {self.dir}.")

    def entries(self) -> Iterator[Entry]:
        """What there is to know about each message without reading it whole, the oldest first."""
        for key, size, came, head in self.mbox.heads(_HEAD):
            sender, recipients, rest = split_envelope(head)
            if recipients is None:
                message = MailRequest("queue", None, None, rest)
                sender, recipients = message.route_from, sorted(message.route_to)
            age = max(0.0, time.time() - came)
            yield Entry(key, sender or "", recipients, size, age, envelope_reason(head) or "")

    def keys(self) -> list[str]:
        """The keys of all messages, the oldest first."""
        return self.mbox.keys()

    def count(self) -> int:
        """How many messages there are."""
        return self.mbox.count()

    def clear(self) -> None:
        """Take every message out."""
        self.mbox.clear()

    def oversize(self, key: str) -> bool:
        """Whether the message is over `pop_limit`."""
        return bool(self.pop_limit and (self.mbox.size(key) or 0) > self.pop_limit)


def is_url(queue_dir: str | os.PathLike) -> bool:
    """Whether a queue is over a broker, and not in a folder."""
    return "://" in os.fspath(queue_dir)


def _store(queue_dir: str, safe: bool) -> Any:
    if not is_url(queue_dir):
        return SafeMaildir(queue_dir) if safe else Maildir(queue_dir)
    from lamson.broker import Broker  # few need it

    return Broker(queue_dir, safe)


def _entry(message: Any, reason: str | None) -> bytes:
    """What is kept of a message: its envelope, when it has one, and its bytes."""
    content = _content(message)
    sender, recipients = message.envelope if isinstance(message, MailRequest) else (None, None)
    if not recipients:
        return content
    return join_envelope(message.route_from or "" if sender is None else sender, recipients, content, reason)


def _content(message: Any) -> bytes:
    if isinstance(message, str):
        return to_bytes(message)
    if isinstance(message, bytes):
        return message
    if hasattr(message, "as_bytes"):
        return message.as_bytes()
    raise QueueError(f"Cannot queue {message!r}: it is no message, str or bytes.")


def _request(raw: bytes) -> MailRequest:
    sender, recipients, content = split_envelope(raw)
    return MailRequest("queue", sender, recipients, content)
