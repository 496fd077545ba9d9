"""Confirmations: a message is kept until its sender has answered a mail that only the owner of the address can read.

    confirmation = ConfirmationEngine("run/pending", ConfirmationStorage())

    @route("(list_name)-subscribe@(host)")
    def START(message, list_name=None, host=None):
        confirmation.send(relay, list_name, message, "mail/confirm.msg", locals())
        return CONFIRMING

    @route("(list_name)-confirm-(id_number)@(host)", id_number="[a-z0-9]+")
    def CONFIRMING(message, list_name=None, id_number=None, host=None):
        original = confirmation.verify(list_name, message, id_number)   # the message that START was given, or None

What is promised:

* A secret is drawn by the operating system, 129 bits long, good for one target and one sender, once, for `max_age`.
* Whoever asks again gets a new secret and takes the place of what was waiting: one pending message for each sender and
  target, however often somebody writes.
* An automatic reply confirms nothing, as long as `verify` is given the message (RFC 3834).
* Mail from robots, and from ``<>``, is refused where it would have to be confirmed.

"The sender" is that of the envelope (`MailRequest.route_from`), as it is for states: the question goes there and
nowhere else, so that the answer proves what the Router goes by. Let your handlers go by it as well. The From header may
name anybody.
"""

import hmac
import logging
import re
import secrets
import shelve
import string
import threading
import time
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from lamson import addresses, view
from lamson.errors import MisuseError, QueueError, SMTPError
from lamson.logs import printable
from lamson.mail import MailRequest, MailResponse
from lamson.queue import Queue

log = logging.getLogger(__name__)

MAX_AGE = 7 * 24 * 3600
"""Seconds for which a confirmation can be answered, unless the engine is told otherwise."""

# Letters and digits, as `id_number="[a-z0-9]+"` in a route has them, and in lower case, as the Router gives addresses
# to handlers. 25 of 36 make 129 bits; with "-confirm-" in front they leave 30 of the 64 characters that RFC 5321
# section 4.5.3.1.1 gives to the part before the @.
SECRET_CHARACTERS = string.ascii_lowercase + string.digits
SECRET_LENGTH = 25

# How often another process may be quicker. One that reads what was there when its transaction began never sees why.
REPLACE_ATTEMPTS = 20

# A queue is looked through for what is too old this often, in seconds: a listing of many files takes its time.
SWEEP_INTERVAL = 3600


class ConfirmationStorage:
    """Which secret confirms what, in any mapping: a dictionary, which ends with the process, or a shelf.

    `lamson.database.SQLAlchemyConfirmationStorage` keeps it in a database, for several processes. For anything else
    give a class of your own these methods. `forget` may be missing, and then entries of people who never answered stay;
    so may `replace`, and then two processes that ask for one sender at once leave a message too many in the queue.
    """

    def __init__(self, db: MutableMapping[str, Any] | None = None):
        self.confirmations: MutableMapping[str, Any] = {} if db is None else db
        self._access = threading.Lock()  # no dbm module, which is what a shelf is in, is safe in threads
        dbm = getattr(db, "dict", None)  # of a shelf
        if isinstance(db, shelve.Shelf) and not hasattr(dbm, "sync"):
            log.warning(
                "A shelf in %s keeps what is stored to itself until it is closed: a server that is killed forgets who "
                "was asked. Use lamson.database.SQLAlchemyConfirmationStorage, or have Python's dbm.gnu installed.",
                type(dbm).__module__,
            )

    def get(self, target: str, from_address: str) -> tuple[str, str] | tuple[None, None]:
        """Returns ``(secret, pending_id)``, or ``(None, None)`` when nothing waits to be confirmed."""
        with self._access:
            return self.confirmations.get(self.key(target, from_address), (None, None))

    def store(self, target: str, from_address: str, secret: str, pending_id: str) -> None:
        """Remembers the secret and the key of the pending message, in place of what was there."""
        with self._changing() as confirmations:
            confirmations[self.key(target, from_address)] = (secret, pending_id)

    def replace(self, target: str, from_address: str, former: str | None, secret: str, pending_id: str) -> bool:
        """Stores as `store` does, if the pending message there is still `former`, None for none. Returns whether."""
        with self._changing() as confirmations:
            key = self.key(target, from_address)
            if confirmations.get(key, (None, None))[1] != former:
                return False
            confirmations[key] = (secret, pending_id)
            return True

    def delete(self, target: str, from_address: str) -> bool:
        """Forgets an entry. Returns whether there was one: of two that delete it at once, one is told so."""
        with self._changing() as confirmations:
            return confirmations.pop(self.key(target, from_address), None) is not None

    def forget(self, pending_ids: Collection[str]) -> None:
        """Forgets the entries of these pending messages, which were too old."""
        with self._changing() as confirmations:
            for key in [key for key, (_, pending_id) in confirmations.items() if pending_id in pending_ids]:
                del confirmations[key]

    def clear(self) -> None:
        """Forgets everything."""
        with self._changing() as confirmations:
            confirmations.clear()

    @staticmethod
    def key(target: str, from_address: str) -> str:
        """The key of an entry: text that any mapping takes, and no two entries have the same."""
        return ascii((target, from_address))

    @contextmanager
    def _changing(self) -> Iterator[MutableMapping[str, Any]]:
        with self._access:
            yield self.confirmations
            # A shelf writes to its file when it is told to, and a server may end without a word.
            if hasattr(self.confirmations, "sync"):
                self.confirmations.sync()


class ConfirmationEngine:
    """Sends what asks for a confirmation, keeps the message meanwhile, and gives it out to the right answer.

    `pending_queue` is a `Queue` or the folder of one. `storage` is a `ConfirmationStorage` or something like it.
    `max_age` is how long an answer is waited for, in seconds; what is older is taken out of the queue.
    """

    def __init__(self, pending_queue: Any, storage: Any, max_age: float = MAX_AGE):
        self.pending = pending_queue if hasattr(pending_queue, "push") else Queue(pending_queue)
        self.storage = storage
        self.max_age = max_age
        self._access = threading.RLock()
        self._swept = float("-inf")

    # asking

    def send(self, relay: Any, target: str, message: MailRequest, template: str, vars: Mapping[str, Any]) -> None:
        """Keeps `message` and asks its sender to confirm it, with the text of the template called `template`.

        The mail is from, and is to be answered to, ``TARGET-confirm-SECRET@host``, with `host` from `vars`. The
        template gets `vars` (a handler's ``locals()`` will do), `target`, `message`, and `confirm_address`, which is
        what stands in front of the @.

        Raises `SMTPError` 550 for mail that no person wrote (`MailRequest.is_auto_reply`), since nobody or a robot
        would answer; `MisuseError` when there is no host; and what the template or the relay raises. Then nothing is
        kept.
        """
        host = vars.get("host")
        if not host:
            raise MisuseError(
                f"There is no host in the variables for {template!r}. Give send() the locals() of a handler whose "
                "route has (host), or a dictionary with 'host'."
            )
        if message.route_from is None or message.is_auto_reply():
            raise SMTPError(550, "5.7.1 This has to be confirmed, and automatic mail cannot be")
        confirm_address = self.register(target, message)
        try:
            variables = {**vars, "target": target, "message": message, "confirm_address": confirm_address}
            relay.deliver(_question(message, f"{confirm_address}@{host}", view.render(variables, template)))
        except BaseException:
            self.cancel(target, message.route_from, confirm_address.rpartition("-")[2])
            raise

    def register(self, target: str, message: MailRequest) -> str:
        """Keeps `message` and returns ``TARGET-confirm-SECRET`` for it. What its sender had waiting there is dropped.

        Raises `MisuseError` for a message from ``<>``.
        """
        target, sender = target.lower(), message.route_from
        if sender is None:
            raise MisuseError(f"Nobody could confirm {message!r}: it is from <>.")
        secret = self.make_random_secret()
        with self._access:
            self._sweep()
            pending_id = self.push_pending(message)
            try:
                former = self._put(target, sender, secret, pending_id)
            except BaseException:
                self.delete_pending(pending_id)
                raise
            if former is not None:
                self.delete_pending(former)
        return f"{target}-confirm-{secret}"

    def _put(self, target: str, sender: str, secret: str, pending_id: str) -> str | None:
        """Store an entry. Returns the key of the message whose place it has taken, None for none."""
        if hasattr(self.storage, "replace"):
            for _ in range(REPLACE_ATTEMPTS):
                _, former = self.storage.get(target, sender)
                if self.storage.replace(target, sender, former, secret, pending_id):
                    return former
        _, former = self.storage.get(target, sender)
        self.storage.store(target, sender, secret, pending_id)
        return former

    # the answer

    def verify(
        self, target: str | MailRequest, from_address: str | MailRequest, secret: str | None = None
    ) -> MailRequest | None:
        """Returns the message that `secret` confirms, and forgets it; None when it confirms nothing.

        There are three ways to call it. The first two know an automatic reply when they see one:

            verify(message, id_number)                      target: what stands before -confirm- in its recipient
            verify("post", message, id_number)
            verify("post", message.route_from, id_number)   you have asked message.is_auto_reply() yourself

        The message is yours from then on, whatever happens. For work that may fail see `confirmed`.
        """
        with self.confirmed(target, from_address, secret) as original:
            return original

    @contextmanager
    def confirmed(
        self, target: str | MailRequest, from_address: str | MailRequest, secret: str | None = None
    ) -> Iterator[MailRequest | None]:
        """As `verify`, for a ``with`` around the work that was confirmed.

            with confirmation.confirmed(message, id_number) as original:
                if original is not None:
                    subscribe(original)

        When the block raises, all is as before and the same answer confirms again: the server keeps an answer that a
        handler failed on. Meanwhile nobody else gets the message, and after a power cut it is still in the queue.
        """
        target, sender, secret = _answer(target, from_address, secret)
        pending_id = self._take(target, sender, secret)
        try:
            yield None if pending_id is None else self.get_pending(pending_id)
        except BaseException:
            if pending_id is not None:
                self._give_back(target, sender, secret, pending_id)
            raise
        if pending_id is not None:
            self.delete_pending(pending_id)

    def cancel(self, target: str, from_address: str, expect_secret: str) -> None:
        """Drops a message that waits to be confirmed with this secret; with another one, nothing happens."""
        target, sender, secret = _answer(target, from_address, expect_secret)
        pending_id = self._take(target, sender, secret)
        if pending_id is not None:
            self.delete_pending(pending_id)

    def _take(self, target: str, sender: str, secret: str) -> str | None:
        """Forget the entry that this secret is right for, and return the key of its message; None for a wrong one."""
        with self._access:
            expected, pending_id = self.storage.get(target, sender)
            if expected is None or not hmac.compare_digest(_bytes(expected), _bytes(secret)):
                log.info("refused: no %s waits for <%s> with this secret", printable(target), printable(sender))
                return None
            # Of two processes that come this far with one secret, only one gets to delete the entry. A storage of
            # somebody's own may not tell, and return None.
            if self.storage.delete(target, sender) is False:
                return None
            if self._is_old(pending_id):
                log.info("refused: <%s> confirms %s too late", printable(sender), printable(target))
                self.delete_pending(pending_id)
                return None
            return pending_id

    def _give_back(self, target: str, sender: str, secret: str, pending_id: str) -> None:
        with self._access:
            if self.storage.get(target, sender) == (None, None):
                self.storage.store(target, sender, secret, pending_id)
            else:  # the sender has asked for something else since
                self.delete_pending(pending_id)

    # what waits

    def get_pending(self, pending_id: str) -> MailRequest | None:
        """Returns a message that waits, and leaves it where it is; None when there is none of that key."""
        return self.pending.get(pending_id)

    def push_pending(self, message: MailRequest) -> str:
        """Puts a message into the pending queue and returns its key there."""
        return self.pending.push(message)

    def delete_pending(self, pending_id: str) -> None:
        """Takes a message out of the pending queue. It is no error when it is gone."""
        with suppress(QueueError, FileNotFoundError):
            self.pending.remove(pending_id)

    def make_random_secret(self) -> str:
        """Returns a new secret that nobody can guess: letters and digits, as routes match them."""
        return "".join(secrets.choice(SECRET_CHARACTERS) for _ in range(SECRET_LENGTH))

    def clear(self) -> None:
        """Forgets everything, and empties the pending queue. For tests."""
        self.pending.clear()
        self.storage.clear()

    def _sweep(self) -> None:
        """Drop what nobody has confirmed in time."""
        if time.monotonic() - self._swept < SWEEP_INTERVAL:
            return
        self._swept = time.monotonic()
        old = {pending_id for pending_id in self.pending.keys() if self._is_old(pending_id)}
        for pending_id in old:
            self.delete_pending(pending_id)
        if old and hasattr(self.storage, "forget"):
            self.storage.forget(old)

    def _is_old(self, pending_id: str) -> bool:
        # The name of a file in a Maildir starts with the second of its writing.
        written = re.match(r"\d+", pending_id)
        return written is not None and time.time() - int(written[0]) > self.max_age


def _question(message: MailRequest, address: str, text: str) -> MailResponse:
    """The mail that asks the sender of `message` to answer to `address`."""
    question = message.reply(Body=text, From=address)  # in the same thread
    named, sender = message["From"] or "", message.route_from
    # Not to where Reply-To or From say, unless it is the same: that might be somebody else, who would confirm.
    question["To"] = named if addresses.bare(named) == [sender] else sender
    question["Subject"] = "Confirmation required"
    question["Reply-To"] = address
    question["Auto-Submitted"] = "auto-replied"  # robots that know RFC 3834 leave it alone then
    return question


def _answer(target: str | MailRequest, from_address: str | MailRequest, secret: str | None) -> tuple[str, str, str]:
    """The target, sender and secret of an answer, which `verify` takes in three ways; "" for what it does not have."""
    if isinstance(target, MailRequest):
        message, from_address, secret = target, target, str(from_address if secret is None else secret)
        recipient = message.recipient or next(iter(message.route_to), "")
        local, suffix = recipient.rpartition("@")[0], f"-confirm-{secret}".lower()
        target = local.removesuffix(suffix) if local.endswith(suffix) else ""
    if secret is None:
        raise MisuseError(
            "There is no secret to verify. Write verify(message, secret) or verify(target, message, secret)."
        )
    if not isinstance(from_address, MailRequest):
        sender = next(iter(addresses.bare(from_address)), "")
    elif from_address.is_auto_reply():
        log.info("refused: an automatic reply of <%s> confirms nothing", printable(from_address.route_from or ""))
        sender = ""  # who is not asked for anything
    else:
        sender = from_address.route_from or ""
    return target.lower(), sender, secret.lower()


def _bytes(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogatepass")  # compare_digest takes text in ASCII only
