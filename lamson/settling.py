"""What becomes of the copies of a message, once the handlers have had it: the reply to the client, or the queue.

    refusal = settle(message, Router.deliver_each(message), retries)     # None to accept it, or an SMTPError

`Router` says of each recipient's copy what became of it (`Outcome`). A receiver has one reply for all of them, or one
for each, and must not say that it took what nobody has.
"""

import errno
import logging
from typing import Any

from lamson.errors import QueueError, SMTPError
from lamson.logs import printable
from lamson.mail import MailRequest
from lamson.outgoing import Failure, RetryQueue
from lamson.routing import Outcome, Router

log = logging.getLogger(__name__)

FAILED = "451 4.3.0 The message could not be handled, try again later"


def undeliverable_message(raw: Any, failure_type: str) -> str | None:
    """Push `raw` to `Router.UNDELIVERABLE_QUEUE` and log why. Returns its key; None when there is no such queue."""
    if Router.UNDELIVERABLE_QUEUE is None:
        return None
    key = Router.UNDELIVERABLE_QUEUE.push(raw, reason=failure_type)
    log.warning("undeliverable: %s, kept as %s", printable(failure_type), key)
    return key


def settle(message: MailRequest, outcomes: list[Outcome], retries: RetryQueue | None = None) -> SMTPError | None:
    """Return the one reply for all recipients of a message: None to accept it, or the error to refuse it with.

    When some copies are safe and others are not, the message is accepted: were it refused, the client would send the
    safe ones a second time. The others go to the `retries` when a handler wants them later, and to the undeliverable
    queue otherwise. The same is true when handlers refused some copies for good and want others later, with no safe one
    among them: a client that came again for these would come with those, and the handlers that refused would run again.
    """
    unsafe = [outcome for outcome in outcomes if not outcome.safe]
    unsafe.sort(key=is_temporary)
    later = sum(map(is_temporary, unsafe))
    torn = 0 < later < len(unsafe) and retries is not None and Router.UNDELIVERABLE_QUEUE is not None
    if torn or len(unsafe) < len(outcomes):
        unsafe = [
            outcome for outcome in unsafe if not (_deferred(message, outcome, retries) or Router.keep(message, outcome))
        ]
    errors = [reply_for(outcome) for outcome in unsafe]
    # When in doubt the client shall try again: of several replies a temporary one wins.
    return min(errors, key=lambda error: error.code, default=None)


def _deferred(message: MailRequest, outcome: Outcome, retries: RetryQueue | None) -> bool:
    """Keep a copy that a handler wants later. Returns whether it is on disk."""
    if retries is None or not is_temporary(outcome):
        return False
    sender, recipients = message.envelope
    given = [each for each in recipients or () if each.lower() == outcome.recipient] or [outcome.recipient]
    try:
        key = retries.push(MailRequest(message.Peer, sender, given, message.original), str(outcome.error))
    except OSError:
        log.exception("failed: cannot keep <%s> for later", printable(outcome.recipient))
        return False
    log.info("deferred: <%s> as %s: %s", printable(outcome.recipient), key, printable(outcome.error))
    return True


def route_again(message: MailRequest) -> dict[str, Failure]:
    """Route a deferred copy, and return who did not get it: the attempt of the receiver's `RetryQueue`."""
    spelled = {recipient.lower(): recipient for recipient in message.To}
    replies = {spelled[each.recipient]: reply_for(each) for each in route_synced(message) if not each.safe}
    return {recipient: Failure(str(reply), permanent=reply.code >= 500) for recipient, reply in replies.items()}


def route_synced(message: MailRequest) -> list[Outcome]:
    """Route a message, and return when the senders' states are on disk."""
    outcomes = Router.deliver_each(message)
    Router.STATE_STORE.sync()
    return outcomes


def give_up(message: MailRequest, reason: str) -> None:
    """Set a message aside for good. Raises QueueError when there is no undeliverable queue to hold it."""
    if undeliverable_message(message, reason) is None:
        raise QueueError("Router.UNDELIVERABLE_QUEUE is not set, so there is no place for what cannot be delivered.")


def is_temporary(outcome: Outcome) -> bool:
    """Whether a handler said that it may take this copy later."""
    return isinstance(outcome.error, SMTPError) and 400 <= outcome.error.code < 500


def reply_for(outcome: Outcome) -> SMTPError:
    if isinstance(outcome.error, SMTPError):
        if 400 <= outcome.error.code <= 599:
            return outcome.error
        log.error("failed: a handler raised %s, and %d refuses nothing", outcome.error, outcome.error.code)
    if outcome.error is None and next(Router.match(outcome.recipient), None) is None:
        return SMTPError(550, f"5.1.1 <{printable(outcome.recipient)}>: no such recipient here")
    if isinstance(outcome.error, OSError) and outcome.error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SMTPError(452, "4.3.1 No space left for mail, try again later")
    return SMTPError(451, FAILED.removeprefix("451 "))


def no_room(size: int) -> SMTPError | None:
    """Return the error for `size` bytes of mail that could not be kept if handlers failed on it, or else None.

    It is asked before any handler runs: what cannot be kept is not begun.
    """
    check = getattr(Router.UNDELIVERABLE_QUEUE, "check_room", None)
    try:
        if check is not None:
            check(size)
    except OSError as error:
        log.error("refused: there is no place for what may fail: %s", error)
        return reply_for(Outcome("", error=error))
    return None


def reply_lines(error: SMTPError) -> str:
    """The error as a reply of one or more lines (RFC 5321 section 4.2.1), whatever is in its text."""
    *more, last = error.message.splitlines() or [""]
    return "\r\n".join([f"{error.code}-{printable(line)}" for line in more] + [f"{error.code} {printable(last)}"])
