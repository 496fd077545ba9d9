"""Sending mail on: `Relay`.

    relay = Relay("localhost", 25)
    relay.deliver(message)              # the other server has it when this returns, or it raises

    relay = Relay("localhost", 25, queue="run/outgoing")
    relay.deliver(message)              # the other server has it, or it is on disk and will be tried again

With `queue`, there are three outcomes for each recipient. The other server takes the message; or it cannot now, and the
message waits in the queue (see `lamson.outgoing`); or it never will, and the message goes to the undeliverable queue
with the reason. `deliver` raises only when there is no undeliverable queue, or a disk does not take a message.

A request that nobody changed leaves as the bytes that came in.
"""

import contextlib
import logging
import os
import smtplib
import ssl as tls
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lamson import addresses
from lamson.client import Connection, Connections, NotSent, Reply
from lamson.errors import QueueError
from lamson.hosts import MailHosts, NoMailHost, Ourselves, is_one_of
from lamson.logs import message_id, printable
from lamson.mail import MailRequest, MailResponse
from lamson.outgoing import Failure, RetryQueue
from lamson.routing import Router

log = logging.getLogger(__name__)

RECIPIENTS = 100  # in one transaction: so many every server has to take (RFC 5321 section 4.5.3.1.8)
ADDRESSES = 5  # of one domain's hosts, that are tried for one message
REST_TIME = 60  # seconds for which a host that timed out is not asked again, when there is a queue
RETRY_THREADS = 4  # a slow host holds one, and the mail for others goes on
COPIES = 1 << 24  # bytes that one message may take on disk, to have an entry of its own for each domain
DIRECT_THREADS = 16  # where all mail is sent by these, to hosts that anybody may have made slow

# A reply to these is about the message; one to STARTTLS or AUTH is about the relay's settings and may change.
_REPLIES_ABOUT_THE_MESSAGE = (
    smtplib.SMTPConnectError,
    smtplib.SMTPHeloError,
    smtplib.SMTPSenderRefused,
    smtplib.SMTPDataError,
)


class _Unreachable(Exception):
    """A host could not be reached, or went away before it had the message; the cause says how."""


class _Failed(NamedTuple):
    """What kept a message from one recipient."""

    destination: str
    error: Exception
    reply: Reply
    failure: Failure


class Relay:
    """Sends mail on to another server: a smart host, or the recipients' own mail servers when `host` is None.

    `ssl` speaks TLS from the first byte, `starttls` asks for it. Both want a certificate for the host's name that the
    system trusts, or that an `ssl.SSLContext` trusts that is given in place of True. ``starttls='opportunistic'`` takes
    TLS where it is offered, from anybody. `username` and `password` log in. `debug` 1 prints conversations to stderr.

    `queue` is the folder of the queue for what cannot be delivered now. Between `start` and `close` it is tried again;
    `lamson start` calls these. With the `host` None all mail goes through it then, so that nobody waits for strangers'
    servers. Threads may share a relay, which keeps connections open for the next message.
    """

    def __init__(
        self,
        host: str | None = "127.0.0.1",
        port: int = 25,
        username: str | None = None,
        password: str | None = None,
        ssl: bool | tls.SSLContext = False,
        starttls: bool | str | tls.SSLContext = False,
        debug: int = 0,
        queue: str | os.PathLike | None = None,
    ):
        self.hostname = host
        self.port = port
        self.username = username
        self.password = password
        self.ssl = ssl
        self.starttls = starttls
        self.debug = debug
        self.outgoing: RetryQueue | None = None
        if queue is not None:
            threads = RETRY_THREADS if host else DIRECT_THREADS
            self.outgoing = RetryQueue(queue, self._try_again, self._give_up, threads=threads)
        self.hosts = MailHosts()
        self.ourselves: list[tuple[str, int]] = []  # addresses and ports where this server takes mail itself
        self.clock: Callable[[], float] = time.monotonic
        self._tls = _context("ssl", ssl)
        self._starttls = unverified_context() if starttls == "opportunistic" else _context("starttls", starttls)
        self._connections = Connections()
        self._resting: dict[str, tuple[float, str]] = {}  # addresses that timed out, until when, and with which words

    def __repr__(self) -> str:
        return f"<Relay to ({self.hostname}:{self.port})>"

    def start(self) -> None:
        """Try again what is in the queue, in threads of its own, until `close`. Without a queue this does nothing."""
        if self.outgoing is not None:
            self.outgoing.start()

    def close(self) -> None:
        """Finish the attempts in hand, for 30 seconds at most, and close the connections. `deliver` still works."""
        if self.outgoing is not None:
            self.outgoing.close()
        self._connections.close()

    def deliver(self, message: Any, To: str | list[str] | None = None, From: str | None = None) -> None:
        """Send a MailRequest, MailResponse or `email.message.Message`.

        Without `To` a request goes to the recipient it is being handled for, or to those of its envelope; but to those
        in its To header when somebody has changed that since it came in. Anything else goes to its To, Cc and Bcc
        headers. Without `From` the sender is that of the envelope, or in its From header when that was changed or there
        is no envelope. A bounce, which has the null sender, keeps it.

        Returns when the other server has taken the message for each recipient or, with a queue, the disk has. Raises
        `smtplib.SMTPException` (the server refused; SMTPRecipientsRefused names those it did not take) or OSError (it
        could not be reached). With a queue it raises these only for recipients that were refused for good while
        `Router.UNDELIVERABLE_QUEUE` is None, or when the disk fails.
        """
        recipients = _recipients(message, To)
        sender = _sender(message, From)
        if not recipients:
            raise ValueError("The message has no recipient: give To, or a message with a To header.")
        content = _content(message)
        if not self.hostname and self.outgoing is not None and self.outgoing.running:
            self._hand_over(self.outgoing, message, sender, recipients, content)
            return
        failed = self._deliver(message, sender, recipients, content)
        if failed and self.outgoing is not None:
            failed = self._keep(message, sender, content, failed)
        if failed:
            _raise(failed)

    def _hand_over(self, queue: RetryQueue, message: Any, sender: str, recipients: list[str], content: bytes) -> None:
        """Let the queue's threads send it: for a stranger's server a handler would wait as long as that one likes."""
        groups = [group for _, group in self._groups(recipients)]
        if len(groups) * len(content) > COPIES:
            groups = [recipients]  # then one slow domain keeps the others of this message waiting
        for group in groups:
            key = queue.hand_over(MailRequest("relay", sender, group, content))
            log.info("queued: %s to %s as %s", message_id(message), printable(", ".join(group)), key)

    def send(self, To: str, From: str, Subject: str, Body: str) -> None:
        """Send a plain text. Raises as `deliver` does."""
        self.deliver(MailResponse(To=To, From=From, Subject=Subject, Body=Body))

    def reply(self, original: MailRequest, From: str, Subject: str, Body: str) -> None:
        """Send a plain text to the sender of `original`, the first one its From header names. Raises as `deliver`."""
        # One, however many addresses a stranger has put there.
        self.send(To=_first_address(original["from"] or ""), From=From, Subject=Subject, Body=Body)

    def resolve_relay_host(self, To: str) -> str:
        """Return the host to try first for mail to the address `To`: the relay's own, or the domain's best MX, or the
        domain itself when it has no MX (RFC 5321 section 5.1).

        Raises OSError when the name service cannot be asked, or says that the domain takes no mail.
        """
        return self.hostname or self.hosts.of(_domain(_first_address(To)))[0]

    # each recipient's outcome

    def _deliver(self, message: Any, sender: str, recipients: list[str], content: bytes) -> dict[str, _Failed]:
        """Send one message, several recipients of one destination at a time. Returns those whom it did not reach."""
        failed: dict[str, _Failed] = {}
        for destination, group in self._groups(recipients):
            try:
                self._send(destination, sender, group, content)
            except (smtplib.SMTPException, OSError) as error:
                failed.update(_failures(destination, error, group))
            if log.isEnabledFor(logging.INFO):
                reached = [recipient for recipient in group if recipient not in failed]
                if reached:
                    who = printable(", ".join(reached))
                    log.info("relayed: %s from <%s> to %s", message_id(message), printable(sender), who)
        return failed

    def _groups(self, recipients: list[str]) -> list[tuple[str, list[str]]]:
        """Return destinations, the smart host or domains, and their recipients, as many as one transaction takes."""
        if self.hostname and len(recipients) <= RECIPIENTS:
            return [(self.hostname, recipients)]
        groups: dict[str, list[str]] = {}
        for recipient in recipients:
            groups.setdefault(self.hostname or _domain(recipient), []).append(recipient)
        return [
            (destination, group[start : start + RECIPIENTS])
            for destination, group in groups.items()
            for start in range(0, len(group), RECIPIENTS)
        ]

    def _keep(self, message: Any, sender: str, content: bytes, failed: dict[str, _Failed]) -> dict[str, _Failed]:
        """Put the copies that were not delivered on disk. Returns those for which there is no queue. Raises OSError."""
        assert self.outgoing is not None
        left = {}
        waiting: dict[str, dict[str, str]] = {}  # an entry for each destination, so that each waits for no other
        refused: dict[str, list[str]] = {}
        for recipient, (destination, _, _, failure) in failed.items():
            if not failure.permanent:
                waiting.setdefault(destination, {})[recipient] = failure.reason
            elif Router.UNDELIVERABLE_QUEUE is not None:
                refused.setdefault(failure.reason, []).append(recipient)
            else:
                left[recipient] = failed[recipient]
        for reasons in waiting.values():
            reason = "; ".join(dict.fromkeys(reasons.values()))
            key = self.outgoing.push(MailRequest("relay", sender, list(reasons), content), reason)
            who = printable(", ".join(reasons))
            log.info("queued: %s to %s as %s: %s", message_id(message), who, key, printable(reason))
        for reason, group in refused.items():
            self._give_up(MailRequest("relay", sender, group, content), reason)
        return left

    def _try_again(self, message: MailRequest) -> dict[str, Failure]:
        """What the queue calls when an entry is due."""
        sender, recipients = message.envelope
        failed = self._deliver(message, sender or "", recipients or [], message.as_bytes())
        return {recipient: each.failure for recipient, each in failed.items()}

    def _give_up(self, message: MailRequest, reason: str) -> None:
        """Keep what cannot be delivered where people look. Raises OSError, and QueueError without such a queue."""
        if Router.UNDELIVERABLE_QUEUE is None:
            raise QueueError("Router.UNDELIVERABLE_QUEUE is None, so there is nowhere to put undeliverable mail.")
        key = Router.UNDELIVERABLE_QUEUE.push(message, reason=reason)
        who = printable(", ".join(message.To))
        log.warning("undeliverable: kept %s to %s as %s: %s", message_id(message), who, key, printable(reason))

    # on the wire

    def _send(self, host: str, sender: str, recipients: list[str], content: bytes) -> None:
        """Send one message to recipients at one destination: the smart host, or a domain.

        Raises SMTPRecipientsRefused for those whom it did not reach, another SMTPException or OSError when for all.
        """
        errors: list[BaseException] = []
        for name, address in [(host, host)] if self.hostname else self._addresses(host, errors):
            if not self.hostname and is_one_of(address, self.port, self.ourselves):
                # Nor to those who are worse, who would bring it here.
                errors.append(Ourselves(f"the mail for {host} would come back to this server"))
                break
            try:
                refused = self._send_to(name, address, sender, recipients, content)
            except _Unreachable as error:
                assert error.__cause__ is not None
                errors.append(error.__cause__)
                continue
            if refused:
                raise smtplib.SMTPRecipientsRefused(refused)
            return
        # As long as one host may take it later, it is not refused for good.
        raise next((error for error in reversed(errors) if not _is_permanent(error)), errors[-1])

    def _addresses(self, domain: str, errors: list[BaseException]) -> Iterator[tuple[str, str]]:
        """Yield a domain's hosts and their addresses to try in turn. Those without one are noted among the `errors`."""
        tried = 0
        for name in self.hosts.of(domain):
            try:
                addresses = self.hosts.addresses(name)
            except OSError as error:
                errors.append(error)
                continue
            for address in addresses[: ADDRESSES - tried]:
                tried += 1
                yield name, address

    def _send_to(self, name: str, address: str, sender: str, recipients: list[str], content: bytes) -> dict[str, Reply]:
        """Send one message over an open connection or a new one. Returns whom the server refused, and how."""
        connection = self._connections.take(name, address)
        if connection is not None:
            try:
                return self._transfer(connection, sender, recipients, content)
            except (NotSent, smtplib.SMTPSenderRefused) as error:
                # That may be about its past: it is dead, or has had enough messages.
                log.debug("a kept connection to %s did not serve: %s", address, error)
        try:
            return self._transfer(self._connect(name, address), sender, recipients, content)
        except NotSent as error:
            self._rest(address, error.__cause__)
            raise _Unreachable from error

    def _connect(self, name: str, address: str) -> Connection:
        until, words = self._resting.get(address, (0.0, ""))
        if self.outgoing is not None and until > self.clock():
            raise _Unreachable from TimeoutError(words)
        user = (self.username, self.password or "") if self.username else None
        opportunistic = self.starttls == "opportunistic"
        try:
            return Connection(name, address, self.port, self._tls, self._starttls, opportunistic, user, self.debug)
        except (smtplib.SMTPException, OSError) as error:
            self._rest(address, error)
            raise _Unreachable from error

    def _rest(self, address: str, error: BaseException | None) -> None:
        """Note a host that timed out, so that not everybody waits for it."""
        if isinstance(error, TimeoutError):
            now = self.clock()
            self._resting = {each: rest for each, rest in self._resting.items() if rest[0] > now}
            self._resting[address] = now + REST_TIME, str(error)

    def _transfer(self, connection: Connection, sender: str, recipients: list[str], content: bytes) -> dict[str, Reply]:
        try:
            refused = connection.transfer(sender, recipients, content)
        except (smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError):
            with contextlib.suppress(smtplib.SMTPException, OSError):
                connection.reset()
                self._release(connection)
            raise
        except smtplib.SMTPSenderRefused:
            connection.leave()
            raise
        except BaseException:
            connection.close()
            raise
        self._release(connection)
        return refused

    def _release(self, connection: Connection) -> None:
        if self.debug:
            connection.leave()  # so that what is printed is a whole conversation
        else:
            self._connections.keep(connection)


# --- failures ----------------------------------------------------------------------------------------------------


def _failures(destination: str, error: Exception, recipients: list[str]) -> dict[str, _Failed]:
    """Return what an error means for each recipient that it is about."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return {
            recipient: _Failed(destination, error, reply, Failure(_said(destination, reply), reply[0] >= 500))
            for recipient, reply in error.recipients.items()
        }
    permanent = _is_permanent(error)
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error if isinstance(error.smtp_error, bytes) else error.smtp_error.encode()
        reply = (error.smtp_code, text)
        reason = _said(destination, reply)
    else:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        reason = why if isinstance(error, NoMailHost) else f"cannot send to {destination}: {why}"
        reply = (550 if permanent else 451, reason.encode("utf-8", "backslashreplace"))
    return {recipient: _Failed(destination, error, reply, Failure(reason, permanent)) for recipient in recipients}


def _is_permanent(error: BaseException) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, _REPLIES_ABOUT_THE_MESSAGE):
        return error.smtp_code >= 500
    return isinstance(error, NoMailHost)


def _said(destination: str, reply: Reply) -> str:
    return f"{destination} said: {reply[0]} {' '.join(reply[1].decode('utf-8', 'backslashreplace').split())}"


def _raise(failed: dict[str, _Failed]) -> None:
    """Raise what says best why these recipients did not get the message."""
    errors = [each.error for each in failed.values()]
    if isinstance(errors[0], smtplib.SMTPRecipientsRefused) or any(error is not errors[0] for error in errors):
        raise smtplib.SMTPRecipientsRefused({name: each.reply for name, each in failed.items()}) from errors[0]
    raise errors[0]


# --- what there is to send ---------------------------------------------------------------------------------------


def _recipients(message: Any, To: str | list[str] | None) -> list[str]:
    # What the server took as one address stays one: a comma or a carriage return in its quotes makes no second one.
    if To is None and isinstance(message, MailRequest):
        To = message.envelope[1]
        if To is not None:
            # Of one that came in the envelope counts, or else mail to lists and in Bcc would come back. Handlers
            # of Lamson 1.x, where only headers counted, changed To to send a message elsewhere.
            To = message.changed_addresses("To") or To
    if To is None:
        To = ", ".join(str(value) for value in map(message.__getitem__, ("To", "Cc", "Bcc")) if value)
    if isinstance(To, str):
        To = [address for _, address in addresses.parse(To) if address]
    return list(dict.fromkeys(addresses.bare_address(str(address)) for address in To))


def _sender(message: Any, From: str | None) -> str:
    if From is None and isinstance(message, MailRequest):
        From = message.envelope[0]
        if From:  # the null sender stays, or two servers might send each other bounces of bounces for ever
            From = next(iter(message.changed_addresses("From")), From)
    return _first_address(str(message["From"] or "")) if From is None else addresses.bare_address(From)


def _first_address(text: str) -> str:
    return next((address for _, address in addresses.parse(text) if address), "")


def _content(message: Any) -> bytes:
    """The bytes to send: those of the message, without the Bcc that only its writer is to see."""
    content = message.as_bytes()
    if not isinstance(message, MailRequest) and message["Bcc"]:
        copy = MailRequest("relay", None, None, content)
        del copy["Bcc"]
        content = copy.as_bytes()
    return content


def _domain(address: str) -> str:
    return address.rpartition("@")[2].lower()


def _context(name: str, setting: bool | str | tls.SSLContext | None) -> tls.SSLContext | None:
    """Return the SSLContext that a setting stands for, None for one that is off."""
    if isinstance(setting, tls.SSLContext):
        return setting
    if setting not in (True, False, None):
        raise ValueError(
            f"{name} is {setting!r}. It has to be True, False, an SSLContext or (starttls) 'opportunistic'."
        )
    return tls.create_default_context() if setting else None


def unverified_context() -> tls.SSLContext:
    """Return a context for TLS that takes any certificate: nobody can listen, but anybody may be at the other end."""
    # Whoever could fake a certificate could as well take the offer of STARTTLS away, so nothing is asked (RFC 7435).
    context = tls.create_default_context()
    context.check_hostname = False
    context.verify_mode = tls.CERT_NONE
    return context
