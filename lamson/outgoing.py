"""Mail that is tried again until it is delivered, or its time is over: `RetryQueue`.

    def attempt(message):               # deliver it to message.To; whom it did not reach, and why
        return {"b@example.com": Failure("451 Come back later")}

    def give_up(message, reason):       # called once for what will never be delivered
        undeliverable.push(message, reason=reason)

    retries = RetryQueue("run/outgoing", attempt, give_up)
    retries.push(message, "451 Come back later")        # on disk when it returns; tried in about a minute
    retries.start()                                     # a thread does the rest

An entry is a file of a Maildir, as `lamson.queue` writes it: the last reason, the recipients it is still for, the
sender, and the message. The time of the file (its mtime) is when it is due, the time in its name is when it came in.
`lamson queue` lists and shows entries, and removing the file removes the entry.

The time to the next attempt grows with the age of the entry: about a minute after the first failure, then twice as long
each time, an hour at most, and some of it by chance, so that the mail of a bad hour does not come back all at once.
After five days, or at once when a failure is permanent, a recipient is given up.

Several processes and threads may work on one queue: whoever tries an entry holds a lock of the operating system's on
its file. When a process dies, its entries are as they were before its last attempt. An attempt that had succeeded by
then is made again, so in that one case a recipient gets a message twice; there is none in which one gets it never.
"""

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lamson.logs import printable
from lamson.mail import MailRequest
from lamson.queue import Maildir, join_envelope, key_of, split_envelope

log = logging.getLogger(__name__)

# All in seconds.
LIFETIME = 5 * 24 * 3600
FIRST_WAIT = 60
LONGEST_WAIT = 3600
LOOK = 30  # at least that often for entries of other processes
BREATH = 5  # between two looks at least
CLOSE_TIME = 30  # that close() gives to attempts

LONGEST_REASON = 1000  # characters


class Failure(NamedTuple):
    """Why a recipient did not get a message. A `permanent` failure is not tried again."""

    reason: str
    permanent: bool = False


class RetryQueue:
    """A queue in the Maildir `queue_dir`, which is made when it is not there.

    `attempt` is called with a MailRequest for the recipients in its `To`. It returns a Failure for each of those whom
    the message did not reach, spelled as in `To`, and an exception is a failure for all of them. `give_up` is called
    with a MailRequest for the recipients that failed for good, and the reason; while it raises, the entry stays.
    `lifetime` and the numbers that `clock` returns are seconds. `threads` is how many attempts `start` makes at a time.
    """

    def __init__(
        self,
        queue_dir: str | os.PathLike,
        attempt: Callable[[MailRequest], dict[str, Failure]],
        give_up: Callable[[MailRequest, str], Any],
        lifetime: float = LIFETIME,
        threads: int = 1,
        clock: Callable[[], float] = time.time,
    ):
        self.dir = os.fspath(queue_dir)
        self.mbox = Maildir(queue_dir)
        self.attempt = attempt
        self.give_up = give_up
        self.lifetime = lifetime
        self.threads = threads
        self.clock = clock
        # What could not be noted on disk, because it is full: recipients of an entry that are done with.
        self._settled: dict[str, set[str]] = {}
        self._guard = threading.Lock()
        self._due: deque[Path] = deque()
        self._look_at = 0.0
        self._closing = threading.Event()
        self._running: list[threading.Thread] = []

    def push(self, message: MailRequest, reason: str) -> str:
        """Keep a message for its recipients, who did not get it for this `reason`, and try again in about a minute.

        Returns its key. It is on disk when this returns. Raises OSError.
        """
        sender, recipients = message.envelope
        key = self.mbox.add(join_envelope(sender or "", recipients or [], message.as_bytes(), reason))
        self._date(self.mbox.path / "new" / key, self.clock() + _with_chance(FIRST_WAIT))
        return key

    def retry(self) -> int:
        """Try everything that is due now, in this thread. Returns how many entries that were."""
        return sum(self._try(path) for path in self._entries_due()[0])

    # the thread

    def start(self) -> None:
        """Try entries when they are due, in threads, until `close`."""
        if self._running:
            return
        self._closing.clear()
        self._look_at = 0.0
        for number in range(self.threads):
            thread = threading.Thread(target=self._work, name=f"lamson-retry-{number + 1}", daemon=True)
            self._running.append(thread)
            thread.start()
        log.info("retrying: queue %s", self.dir)

    def close(self) -> None:
        """Start no more attempts, and return when those in hand have ended, after 30 seconds at most.

        One that takes longer ends with the process; its entry stays.
        """
        self._closing.set()
        deadline = time.monotonic() + CLOSE_TIME
        for thread in self._running:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                log.warning("gave up: an attempt of queue %s has not ended; it will be made again", self.dir)
        self._running.clear()

    def _work(self) -> None:
        while not self._closing.is_set():
            path = self._next()
            if path is None:
                self._closing.wait(max(self._look_at - time.monotonic(), BREATH))
            else:
                self._try(path)

    def _next(self) -> Path | None:
        """Return the file of an entry that was due, None when there is nothing to do now."""
        with self._guard:
            if not self._due and time.monotonic() >= self._look_at:
                due, soonest = self._entries_due()
                self._due.extend(due)
                self._look_at = time.monotonic() + min(max(soonest - self.clock(), BREATH), LOOK)
            return self._due.popleft() if self._due else None

    def _entries_due(self) -> tuple[list[Path], float]:
        """Return the files of all entries that are due, the longest due first, and when the next of the others is."""
        now = self.clock()
        dated = []
        try:
            for path in self.mbox.files():
                with contextlib.suppress(FileNotFoundError):  # somebody was done with it just now
                    dated.append((path.stat().st_mtime, path))
        except OSError:
            log.exception("failed: the queue %s cannot be read", self.dir)
        dated.sort()
        return [path for due, path in dated if due <= now], min(
            (due for due, _ in dated if due > now), default=now + LOOK
        )

    # one entry

    def _try(self, path: Path) -> bool:
        """Make one attempt at an entry. Returns whether it was made: somebody else may have been faster."""
        try:
            with self._held(path) as file:
                if file is None:
                    return False
                self._handle(path, file)
                return True
        except OSError:
            # The disk is full, or worse. The entry stays as it is.
            log.exception("failed: %s cannot be tried", path)
            with contextlib.suppress(OSError):
                self._date(path, self.clock() + FIRST_WAIT)
            return True

    @contextlib.contextmanager
    def _held(self, path: Path) -> Iterator[Any]:
        """Give the file, locked, or None when the entry is not there any more, not due any more, or in other hands."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            yield None
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            # Whoever had the lock before may have taken it away or written it anew since it was opened.
            status = os.fstat(file.fileno())
            yield file if _number(path) == status.st_ino and status.st_mtime <= self.clock() else None

    def _handle(self, path: Path, file: Any) -> None:
        key = key_of(path)
        sender, recipients, content = split_envelope(file.read())
        if sender is None or recipients is None:  # somebody put it here without an envelope: its headers count
            message = MailRequest("queue", None, None, content)
            sender, recipients = message.route_from or "", sorted(message.route_to)
        if not recipients:
            if self._gave_up(sender, [], content, "it has no recipient"):
                self._remove(path, file)
            else:
                self._date(path, self.clock() + LONGEST_WAIT)
            return
        wanted = [each for each in recipients if each not in self._settled.get(key, ())]
        age = self.clock() - _born(key)
        failures = self._attempt(sender, wanted, content) if wanted else {}
        groups: dict[Failure, list[str]] = {}  # what one reason keeps from several recipients is told once
        for recipient in wanted:
            if recipient in failures:
                groups.setdefault(failures[recipient], []).append(recipient)
        left: dict[str, str] = {}
        for failure, group in groups.items():
            final = failure.permanent or age >= self.lifetime
            if not final or not self._gave_up(sender, group, content, failure.reason):
                left.update(dict.fromkeys(group, failure.reason))
        self._settled[key] = set(recipients) - left.keys()
        if not left:
            self._remove(path, file)
        else:
            self._defer(path, file, join_envelope(sender, list(left), content, _joined(left)), age)
            log.info("deferred: %s for %s: %s", key, printable(", ".join(left)), printable(_joined(left)))
        del self._settled[key]

    def _attempt(self, sender: str, recipients: list[str], content: bytes) -> dict[str, Failure]:
        try:
            return self.attempt(MailRequest("queue", sender, list(recipients), content))
        except Exception as error:
            log.exception("failed: an attempt of the queue %s", self.dir)
            return dict.fromkeys(recipients, Failure(str(error) or type(error).__name__))

    def _gave_up(self, sender: str, recipients: list[str], content: bytes, reason: str) -> bool:
        try:
            self.give_up(MailRequest("queue", sender, recipients, content), reason)
        except Exception:
            log.exception("failed: %s cannot be given up and stays in the queue %s", printable(recipients), self.dir)
            return False
        return True

    def _defer(self, path: Path, file: Any, entry: bytes, age: float) -> None:
        """Write the entry anew, due later."""
        wait = _with_chance(min(max(age, FIRST_WAIT), LONGEST_WAIT))
        if age < self.lifetime:
            wait = min(wait, self.lifetime - age)  # the last attempt is made when its time is over
        here = self._where(path, file)
        if here is None:  # somebody has removed it meanwhile, and so it shall be
            return
        names = os.fstat(file.fileno()).st_nlink
        self.mbox.replace(here, entry)
        self._date(here, self.clock() + wait)
        if os.fstat(file.fileno()).st_nlink == names:
            # It was moved in this very moment, and there are two now.
            self._remove(here, file)

    def _remove(self, path: Path, file: Any) -> None:
        here = self._where(path, file)
        if here is not None:
            here.unlink(missing_ok=True)
            handle = os.open(here.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _where(self, path: Path, file: Any) -> Path | None:
        """Return the path of the open file, which mail programs move and rename; None when somebody removed it."""
        number = os.fstat(file.fileno()).st_ino
        if _number(path) == number:
            return path
        key = key_of(path)
        return next((each for each in self.mbox.files() if key_of(each) == key and _number(each) == number), None)

    def _date(self, path: Path, due: float) -> None:
        # A process that dies before this, or another one that is faster, makes an attempt early. That harms nobody.
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (due, due))


def hurry(queue_dir: str | os.PathLike, key: str) -> bool:
    """Make an entry due now, for whichever process works on the queue. Returns whether there is one of that key."""
    path = Maildir(queue_dir).find(key)
    if path is None:
        return False
    try:
        os.utime(path, (0, 0))
    except FileNotFoundError:
        return False
    return True


def _number(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _born(key: str) -> float:
    """When an entry came in, in seconds since 1970. One whose name does not tell is too old to be tried twice."""
    seconds = key.partition(".")[0]
    return float(seconds) if seconds.isdecimal() else 0.0


def _joined(reasons: dict[str, str]) -> str:
    return "; ".join(dict.fromkeys(reasons.values()))[:LONGEST_REASON]


def _with_chance(seconds: float) -> float:
    return seconds * random.uniform(0.75, 1.25)
