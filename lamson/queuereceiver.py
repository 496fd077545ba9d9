"""`QueueReceiver`: takes mail out of a queue, and gives it to the Router.

    receiver = QueueReceiver("run/posts", sleep=1)
    receiver.start()            # blocks until close() is called from another thread

A message is claimed, handled, and then removed: one that dies with this process is another one's, or this one's again.
"""

import logging
import os
import threading
from collections.abc import Iterable

from lamson.logs import message_id, printable
from lamson.mail import MailRequest
from lamson.outgoing import Failure
from lamson.queue import Claim, Queue
from lamson.routing import Outcome, Router
from lamson.settling import is_temporary, no_room, reply_for, route_synced, settle, undeliverable_message

log = logging.getLogger(__name__)

MAX_CLAIMS = 3  # how often a message is tried


class QueueReceiver:
    """Takes messages out of a queue and gives them to the Router, as SMTPReceiver does with those from the wire.

    `queue_dir` is a folder, or the URL of a queue over a broker. Looks every `sleep` seconds. A recipient that a
    handler refuses with 4xx stays in the queue and is tried again, three times in all; what fails for good goes to the
    undeliverable queue, and so does a message that took the whole process with it three times. Without an
    undeliverable queue such messages stay in a folder, and go to the queue NAME.dead of a broker. Messages over
    `size_limit` bytes (0: none is) go to the queue `oversize_dir`, or are dropped when there is none.
    """

    def __init__(self, queue_dir: str, sleep: float = 10, size_limit: int = 0, oversize_dir: str | None = None):
        self.queue = Queue(queue_dir, pop_limit=size_limit, oversize_dir=oversize_dir)
        self.queue_dir = self.queue.dir
        self.sleep = sleep
        self._closing = threading.Event()

    @property
    def where(self) -> str:
        """Where mail comes from, for people."""
        return f"queue {self.queue_dir}"

    def bind(self) -> None:
        """A queue has no port, but it has to be there. Raises OSError when it is not."""
        self.queue.count()

    def start(self, one_shot: bool = False) -> None:
        """Handle what is in the queue, again and again until `close`, or once with `one_shot`. Blocks.

        A queue that cannot be read is logged and tried again; with `one_shot` that raises OSError.
        """
        log.info("listening: queue %s every %s seconds", self.queue_dir, self.sleep)
        while not self._closing.is_set():
            try:
                self._drain()
            except OSError:
                if one_shot:
                    raise
                log.exception("failed: the queue %s cannot be read", self.queue_dir)
            if one_shot or self._closing.wait(self.sleep):
                return

    def _drain(self) -> None:
        # What fails while the undeliverable queue is drained comes back to it, under another key and for the next time.
        only = set(self.queue.keys()) if self._drains_undeliverable() else None
        failed: set[str] = set()
        # Nothing is claimed for which there would be no place: it is not its fault, and does not count. Draining the
        # undeliverable queue makes room.
        while not self._closing.is_set() and (only is not None or not no_room(0)):
            with self.queue.claim(lambda key: key not in failed and (only is None or key in only)) as claim:
                if claim is None:
                    return
                try:
                    done = self._handle(claim)
                except Exception:
                    log.exception("failed: %s stays in the queue %s", claim.key, self.queue_dir)
                    done = False
                if done:
                    claim.done()
                else:
                    failed.add(claim.key)

    def retry(self, keys: Iterable[str]) -> dict[str, Failure]:
        """Handle these messages once more, and return for those that failed why, by key. They stay, with that reason.

        For messages of the undeliverable queue: what fails here is not pushed there a second time.
        """
        wanted, failures = set(keys), {}
        Router.UNDELIVERABLE_QUEUE = None
        while wanted:
            with self.queue.claim(wanted.__contains__) as claim:
                if claim is None:
                    break
                wanted.discard(claim.key)
                unsafe = [outcome for outcome in self._route(claim.message) if not outcome.safe]
                if unsafe:
                    why = reply_for(unsafe[0]) if unsafe[0].error is None else unsafe[0].error
                    failures[claim.key] = Failure(str(why) or type(why).__name__)
                    claim.narrow([outcome.recipient for outcome in unsafe], failures[claim.key].reason)
                else:
                    claim.done()
        return failures | dict.fromkeys(wanted, Failure("it is not there, or another program is handling it"))

    def _drains_undeliverable(self) -> bool:
        other = getattr(Router.UNDELIVERABLE_QUEUE, "dir", None)
        return other is not None and os.path.realpath(other) == os.path.realpath(self.queue.dir)

    def _handle(self, claim: Claim) -> bool:
        """Route a claimed message. Returns whether the queue may forget it."""
        if claim.count > MAX_CLAIMS:
            # It was claimed that often and never came to an end: it takes the process with it. Not once more.
            return self._set_aside(claim, f"{claim.count - 1} attempts to handle it did not end well")
        outcomes = self._route(claim.message)
        unsafe = [outcome for outcome in outcomes if not outcome.safe]
        later = [outcome for outcome in unsafe if is_temporary(outcome) and claim.count < MAX_CLAIMS]
        unsafe = [outcome for outcome in unsafe if outcome not in later and not Router.keep(claim.message, outcome)]
        left = [outcome.recipient for outcome in later + unsafe]
        if left and len(left) < len(outcomes):
            claim.narrow(left)
        return not left

    def _set_aside(self, claim: Claim, reason: str) -> bool:
        """Give a message up. Returns whether the queue may forget it."""
        if undeliverable_message(claim.message, f"{claim.key}: {reason}") is not None:
            return True
        if claim.set_aside(reason):
            log.warning("undeliverable: %s, moved out of the queue %s: %s", claim.key, self.queue_dir, reason)
        return False

    def _route(self, message: MailRequest) -> list[Outcome]:
        sender = printable(message.route_from)
        log.info("received: %s from <%s> to %s", message_id(message), sender, sorted(message.route_to))
        return route_synced(message)

    def process_message(self, msg: MailRequest) -> str | None:
        """Route one message. Returns None when all copies are handled or kept, or else the reply that tells why not."""
        refusal = settle(msg, self._route(msg))
        return None if refusal is None else str(refusal)

    def close(self) -> None:
        """Make `start` return after the message in hand. May be called from any thread."""
        self._closing.set()
