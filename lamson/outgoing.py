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
each time, an hour at most, and some of it by chance, so that the mail of a bad hour does not come back all at once. An
entry that is due much later than that was dated while the clock was ahead of the time, and is due now.
After five days, or at once when a failure is permanent, a recipient is given up.

Several processes and threads may work on one queue: whoever tries an entry holds a lock of the operating system's on
its file. When a process dies, its entries are as they were before its last attempt. An attempt that had succeeded by
then is made again, so in that one case a recipient gets a message twice; there is none in which one gets it never.
"""

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple

from lamson.envelope import join_envelope, split_envelope
from lamson.keys import born
from lamson.logs import printable
from lamson.mail import MailRequest
from lamson.maildir import Held, Maildir, set_date

log = logging.getLogger(__name__)

# All in seconds.
LIFETIME = 5 * 24 * 3600
FIRST_WAIT = 60
LONGEST_WAIT = 3600
FURTHEST = 2 * LONGEST_WAIT  # that an entry's date lies ahead at most, with some time for what chance adds
LOOK = 30  # that often for entries of other processes
BREATH = 0.1  # between two attempts at least, when nothing is due
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
        self._guard = threading.Condition()  # notified when there is something due at once, or nothing any more
        self._due: deque[tuple[float, str]] = deque()  # when, in seconds since 1970, and which file
        self._fresh: deque[tuple[float, str]] = deque()  # the same, of what was handed over
        self._look_at = 0.0
        self._closing = threading.Event()
        self._running: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        """Whether threads of this process try entries: it is between `start` and `close`."""
        return bool(self._running)

    def push(self, message: MailRequest, reason: str) -> str:
        """Keep a message for its recipients, who did not get it for this `reason`, and try again in about a minute.

        Returns its key. It is on disk when this returns. Raises OSError.
        """
        key = self._add(message, reason)
        # A process that dies before this makes an attempt early. That harms nobody.
        set_date(self.mbox.path / "new" / key, self.clock() + _with_chance(FIRST_WAIT))
        return key

    def hand_over(self, message: MailRequest) -> str:
        """As `push`, for a message that was not tried yet: a thread that is free tries it at once."""
        key = self._add(message, None)
        with self._guard:
            self._fresh.append((self.clock(), f"{self.mbox.path}/new/{key}"))
            self._guard.notify()
        return key

    def _add(self, message: MailRequest, reason: str | None) -> str:
        sender, recipients = message.envelope
        return self.mbox.add(join_envelope(sender or "", recipients or [], message.as_bytes(), reason))

    def retry(self) -> int:
        """Try everything that is due now, in this thread. Returns how many entries that were."""
        return sum(self._try(path) for _, path in self._entries(self.clock()))

    def retry_now(self, keys: Iterable[str]) -> dict[str, Failure]:
        """Try these entries now, due or not, in this thread. Returns why for those that were not delivered, by key.

        A permanent failure says that it was given up, any other that the entry is still here and is tried again when it
        is due. Raises OSError when the disk fails.
        """
        failures = {}
        for key in keys:
            path = self.mbox.locate(key)
            with self.mbox.hold(path) if path else contextlib.nullcontext() as held:
                failure = self._handle(held) if held else Failure("it is not there, or another program is handling it")
            if failure is not None:
                failures[key] = failure
        return failures

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
        with self._guard:
            self._guard.notify_all()
        deadline = time.monotonic() + CLOSE_TIME
        for thread in self._running:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                log.warning("gave up: an attempt of queue %s has not ended; it will be made again", self.dir)
        self._running.clear()

    def _work(self) -> None:
        while not self._closing.is_set():
            path = self._next()
            if path is not None:
                self._try(path)

    def _next(self) -> str | None:
        """Return the file of an entry that is due now, or None after a while without one.

        A look at the folder is a listing and a question to the system for each entry, however few of them are due. So
        it finds all that become due before the next look.
        """
        with self._guard:
            now = self.clock()
            look = self._look_at - time.monotonic()
            if look <= 0:
                look = LOOK
                self._look_at = time.monotonic() + look
                self._due = deque(self._entries(now + look))
            first = min((queue for queue in (self._due, self._fresh) if queue), key=itemgetter(0), default=None)
            wait = look if first is None else first[0][0] - now
            if first is not None and wait <= 0:
                return first.popleft()[1]
            if not self._closing.is_set():
                self._guard.wait(max(min(wait, look), BREATH))
        return None

    def _entries(self, until: float) -> list[tuple[float, str]]:
        """Return ``(due, path)`` of entries that are due by `until`, in seconds since 1970, the longest due first."""
        dated = []
        try:
            for name in self.mbox.names():
                path = f"{self.mbox.path}/{name}"
                try:
                    due = self._due_at(os.stat(path).st_mtime)
                except FileNotFoundError:  # somebody was done with it just now
                    continue
                if due <= until:
                    dated.append((due, path))
        except OSError:
            log.exception("failed: the queue %s cannot be read", self.dir)
        dated.sort()
        return dated

    def _due_at(self, date: float) -> float:
        """When an entry of this date is due, in seconds since 1970."""
        return date if date <= self.clock() + FURTHEST else 0.0

    # one entry

    def _try(self, path: str) -> bool:
        """Make one attempt at an entry. Returns whether it was made: somebody else may have been faster."""
        try:
            with self.mbox.hold(path) as held:
                # Somebody may have tried it since it was listed, so that it is not due any more.
                if held is None or self._due_at(held.date) > self.clock():
                    return False
                self._handle(held)
                return True
        except Exception:
            # The disk is full, or worse. The entry stays as it is, and does not end the thread that others wait for.
            log.exception("failed: %s cannot be tried", path)
            with contextlib.suppress(OSError):
                set_date(path, self.clock() + FIRST_WAIT)
            return True

    def _handle(self, held: Held) -> Failure | None:
        """Make an attempt. Returns None when it was delivered, or why not: `permanent` when it is not tried again."""
        key = held.key
        sender, recipients, content = split_envelope(held.read())
        if sender is None or recipients is None:  # somebody put it here without an envelope: its headers count
            message = MailRequest("queue", None, None, content)
            sender, recipients = message.route_from or "", sorted(message.route_to)
        if not recipients:
            failure = Failure("it has no recipient", self._gave_up(sender, [], content, "it has no recipient"))
            if failure.permanent:
                held.remove(synced=True)
            else:
                held.postpone(self.clock() + LONGEST_WAIT)
            return failure
        wanted = [each for each in recipients if each not in self._settled.get(key, ())]
        age = self.clock() - born(key)
        failures = self._attempt(sender, wanted, content) if wanted else {}
        left = self._give_up_what_failed_for_good(failures, age, sender, content)
        self._settled[key] = set(recipients) - left.keys()
        if not left:
            held.remove(synced=True)  # a power cut shall not send it twice
        else:
            held.replace(join_envelope(sender, list(left), content, _joined(left)), self.clock() + self._wait(age))
            log.info("deferred: %s for %s: %s", key, printable(", ".join(left)), printable(_joined(left)))
        del self._settled[key]
        return Failure(_joined({each: why.reason for each, why in failures.items()}), not left) if failures else None

    def _give_up_what_failed_for_good(
        self, failures: dict[str, Failure], age: float, sender: str, content: bytes
    ) -> dict[str, str]:
        """Return the recipients that stay, and why."""
        groups: dict[Failure, list[str]] = {}  # what one reason keeps from several recipients is told once
        for recipient, failure in failures.items():
            groups.setdefault(failure, []).append(recipient)
        left: dict[str, str] = {}
        for failure, group in groups.items():
            final = failure.permanent or age >= self.lifetime
            if not final or not self._gave_up(sender, group, content, failure.reason):
                left.update(dict.fromkeys(group, failure.reason))
        return left

    def _attempt(self, sender: str, recipients: list[str], content: bytes) -> dict[str, Failure]:
        try:
            failures = self.attempt(MailRequest("queue", sender, list(recipients), content))
            return {recipient: failures[recipient] for recipient in recipients if recipient in failures}
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

    def _wait(self, age: float) -> float:
        """How many seconds an entry waits that came in `age` seconds ago."""
        wait = _with_chance(min(max(age, FIRST_WAIT), LONGEST_WAIT))
        if age < self.lifetime:
            wait = min(wait, self.lifetime - age)  # the last attempt is made when its time is over
        return wait


def _joined(reasons: dict[str, str]) -> str:
    return "; ".join(dict.fromkeys(reasons.values()))[:LONGEST_REASON]


def _with_chance(seconds: float) -> float:
    return seconds * random.uniform(0.75, 1.25)
