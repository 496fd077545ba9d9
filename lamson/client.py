"""The wire side of a relay: a `Connection` to a server, and `Connections` that stay open for the next message.

    connection = Connection("mx.example.com", "192.0.2.1", 25)
    refused = connection.transfer("me@example.com", ["a@example.org", "b@example.org"], content)
    # {} when the server has the message for all of them, or {"b@example.org": (550, b"5.1.1 Nobody by that name")}

A server with PIPELINING (RFC 2920) gets sender, recipients and DATA in one go, so a message takes two round trips.
Nothing here waits for ever: see the times below.

Only one moment is in doubt: when a connection ends after the whole message was sent and before the server has answered,
the server may have it or not. All earlier ends raise `NotSent`: nobody has it, and it may be sent elsewhere.
"""

import contextlib
import functools
import os
import re
import smtplib
import socket
import ssl
import struct
import threading
import time
import weakref
from typing import Any, NoReturn

from lamson.wire import address_on_the_wire, needs_smtputf8, on_the_wire

# How long a server may take, in seconds. RFC 5321 section 4.5.3.2 gives it five minutes for a command. A handler that
# relays waits for all of it, so it gets less here. The answer to a message gets the ten minutes of the RFC: to give up
# on that one makes duplicates.
CONNECT_TIME = 30
COMMAND_TIME = 120
BLOCK_TIME = 180  # for each block of a message
END_TIME = 600
FAREWELL_TIME = 2

# A reply that takes no longer than this, in seconds, is waited for without going to sleep the next time.
QUICK = 0.0002

IDLE_TIME = 10  # seconds that a connection stays open for the next message
IDLE_CONNECTIONS = 10  # at most, that stay open to one address

_BLOCK = 1 << 16  # bytes
_RECEIVED = 1 << 12  # bytes at a time: replies are short
_LONGEST_REPLY = 1 << 16  # bytes, all its lines together

# RFC 5321 section 4.2.1: lines with a hyphen after the code, and then one without.
_REPLY = re.compile(rb"((?:\d{3}-[^\n]*\n)*)(\d{3})(?:[^-\n]([^\n]*))?\n")
_BEGINNING_OF_REPLY = re.compile(rb"(?:\d{3}-[^\n]*\n)*[^\n]*")

Reply = tuple[int, bytes]


class NotSent(smtplib.SMTPServerDisconnected):
    """The connection ended, and the server does not have the message."""


class Connection(smtplib.SMTP):
    """A connection to `host` at `address`, ready for messages, for one thread at a time.

    `host` is the name that the server's certificate has to have. `tls` is for a server that speaks TLS from the first
    byte; `starttls` is for one that is asked to (RFC 3207). An `opportunistic` one may do without and may fail at it.
    `user` is a name and a password to log in with. Raises OSError, of which smtplib.SMTPException is a kind.
    """

    def __init__(
        self,
        host: str,
        address: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        starttls: ssl.SSLContext | None = None,
        opportunistic: bool = False,
        user: tuple[str, str] | None = None,
        debug: int = 0,
    ):
        super().__init__(local_hostname=own_name(), timeout=CONNECT_TIME)
        self.set_debuglevel(debug)
        self.host = host
        self.address = address
        self._tls = tls
        self._received = b""  # and not yet read
        self._limited = 0.0  # seconds; 0 is not known
        self._quick: dict[float, bool] = {}  # by patience, as replies to commands and to messages differ
        try:
            self._open(address, port)
            if starttls is not None and (self.has_extn("starttls") or not opportunistic):
                try:
                    self._start_tls(starttls)
                except OSError:  # smtplib.SMTPException is one, too
                    if not opportunistic:
                        raise
                    self.close()
                    self._open(address, port)
            if user is not None:
                self.login(*user)
        except BaseException:
            self.close()
            raise

    # connecting

    def _open(self, address: str, port: int) -> None:
        self._forget_greeting()
        code, text = self.connect(address, port)
        if code != 220:
            raise smtplib.SMTPConnectError(code, text)
        self.ehlo_or_helo_if_needed()

    def _forget_greeting(self) -> None:
        self._received = b""
        self._limited = 0.0
        self.helo_resp = self.ehlo_resp = None
        self.esmtp_features = {}
        self.does_esmtp = False

    def _get_socket(self, host, port, timeout):  # what smtplib calls to connect
        plain = super()._get_socket(host, port, timeout)  # type: ignore[misc]
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if self._tls is None else self._encrypted(plain, self._tls)

    def _encrypted(self, plain: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        plain.settimeout(COMMAND_TIME)
        try:
            return context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def _start_tls(self, context: ssl.SSLContext) -> None:
        if not self.has_extn("starttls"):
            raise smtplib.SMTPNotSupportedError("The server does not offer STARTTLS")
        code, text = self.docmd("STARTTLS")
        if code != 220:
            raise smtplib.SMTPResponseException(code, text)
        if self._received:
            raise smtplib.SMTPServerDisconnected(
                "The server, or somebody between, talked on in the clear after STARTTLS"
            )
        assert self.sock is not None
        self.sock = self._encrypted(self.sock, context)
        self._forget_greeting()  # it may have been somebody else's (RFC 3207 section 4.2)
        self.ehlo_or_helo_if_needed()

    # talking: smtplib's own methods with limits of time and size

    def send(self, s):
        """Send bytes, or a command as str. Each block of it has to be through in time, not the whole."""
        if self.debuglevel > 0:
            self._show("send:", repr(s))
        if self.sock is None:
            raise NotSent("The connection is closed")
        data = s.encode(self.command_encoding) if isinstance(s, str) else s
        try:
            if isinstance(self.sock, ssl.SSLSocket):
                self._limit(BLOCK_TIME)
            if len(data) <= _BLOCK:
                self.sock.sendall(data)
            else:
                whole = memoryview(data)
                for start in range(0, len(data), _BLOCK):
                    self.sock.sendall(whole[start : start + _BLOCK])
        except (TimeoutError, BlockingIOError):
            self.close()
            raise TimeoutError("The server did not read in time") from None
        except OSError as error:
            self._hear_last_words()
            self.close()
            raise smtplib.SMTPServerDisconnected(f"The connection broke: {error}") from error

    def getreply(self, patience: float | None = None) -> Reply:
        """Return a reply's code and text. Raises TimeoutError when it takes more than `patience` (COMMAND_TIME), and
        SMTPServerDisconnected when the server is gone or speaks no SMTP."""
        found = _REPLY.match(self._received) or self._wait(COMMAND_TIME if patience is None else patience)
        self._received = self._received[found.end() :]
        lines, number, text = found.groups(b"")
        code = int(number)
        if lines:
            text = b"\n".join(line[4:].strip() for line in found[0].splitlines())
        if self.debuglevel > 0:
            for line in found[0].splitlines(keepends=True):
                self._show("reply:", repr(line))
            self._show(f"reply: retcode ({code}); Msg: {text!a}")
        return code, text.strip()

    def _wait(self, patience: float) -> re.Match[bytes]:
        """Receive until there is a whole reply."""
        begun = time.monotonic()
        left, look = patience, self._quick.get(patience, False)
        while True:
            self._receive(left, look)
            now = time.monotonic()
            found = _REPLY.match(self._received)
            if found is not None:
                self._quick[patience] = now < begun + QUICK
                return found
            left, look = begun + patience - now, False
            if left <= 0:
                self.close()
                raise TimeoutError("The server did not answer in time")

    def _receive(self, seconds: float, look: bool) -> None:
        """Take in what the server says next, if it says something in time. `look` is whether that may be at once."""
        try:
            if self.sock is None:
                raise smtplib.SMTPServerDisconnected("The connection is closed")
            speaks_smtp = not self._received or _BEGINNING_OF_REPLY.fullmatch(self._received)
            if not speaks_smtp or len(self._received) > _LONGEST_REPLY:
                raise smtplib.SMTPServerDisconnected(f"The server speaks no SMTP: {self._received[:80]!r}")
            self._limit(min(seconds, COMMAND_TIME))
            received = _look(self.sock) if look else None
            if received is None:
                received = self.sock.recv(_RECEIVED)
            if not received:
                raise smtplib.SMTPServerDisconnected("The server closed the connection")
            self._received += received
        except (TimeoutError, BlockingIOError):
            return
        except smtplib.SMTPServerDisconnected:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise smtplib.SMTPServerDisconnected(f"The connection broke: {error}") from error

    def _hear_last_words(self) -> None:
        """Take in what a server has said before it hung up, such as that a message is too big for it."""
        assert self.sock is not None
        with contextlib.suppress(OSError):
            self._limit(FAREWELL_TIME)
            self._received += self.sock.recv(_RECEIVED)

    def _limit(self, seconds: float) -> None:
        """Let the next `recv` take so long; then it raises TimeoutError or BlockingIOError."""
        if seconds == self._limited:
            return
        assert self.sock is not None
        self._limited = seconds
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(seconds)
            return
        # The system's own limits: with Python's, every call would be two, and a message is no more than four.
        if self.sock.gettimeout() is not None:
            self.sock.settimeout(None)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _time_value(BLOCK_TIME))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _time_value(seconds))

    def _show(self, *words: Any) -> None:
        self._print_debug(*words)  # type: ignore[attr-defined]  # smtplib's way to write its conversations

    # sending a message

    def transfer(self, sender: str, recipients: list[str], content: bytes) -> dict[str, Reply]:
        """Send one message. Returns the recipients that the server did not take, and what it said to each.

        Raises NotSent, or what the server said: SMTPSenderRefused, SMTPRecipientsRefused (all of them, each with what
        was said to it), SMTPDataError. Then it does not have the message. After another SMTPException or OSError it may
        have it.
        """
        offers = self.esmtp_features
        utf8 = "smtputf8" in offers
        refused: dict[str, Reply] = {}
        written: dict[str, str] = {}  # each recipient's command
        for recipient in recipients:
            try:
                written[recipient] = f"rcpt TO:<{address_on_the_wire(recipient, utf8)}>"
            except ValueError as error:
                refused[recipient] = 553, str(error).encode("utf-8", "backslashreplace")
        commands = [self._mail(sender, recipients, content, utf8), *written.values(), "data"]
        if not written:
            raise smtplib.SMTPRecipientsRefused(refused)
        try:
            if "pipelining" in offers:
                self._command("\r\n".join(commands))
                text, end = on_the_wire(content)  # meanwhile the server reads
                replies = self._answers(len(commands))
            else:
                replies = self._one_by_one(commands)
                text, end = on_the_wire(content)
            for recipient, reply in zip(written, replies[1:-1], strict=True):
                if not _taken(reply):
                    refused[recipient] = reply
            if not _taken(replies[0]) or replies[-1][0] != 354 or refused.keys() >= set(recipients):
                self._refuse(sender, recipients, refused, replies)
        except (NotSent, smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused):
            raise
        except OSError as error:  # SMTPServerDisconnected is one, too
            raise NotSent(str(error)) from error
        try:
            if len(text) <= _BLOCK:
                self.send(text + end)
            else:  # not copied
                self.send(text)
                self.send(end)
        except OSError as error:  # the end of the message was not sent, so nobody has it
            self._give_last_reply(recipients, refused)
            raise NotSent(str(error)) from error
        reply = self.getreply(END_TIME)
        if not _taken(reply):
            raise _message_refused(reply, recipients, refused)
        return refused

    def _mail(self, sender: str, recipients: list[str], content: bytes, utf8: bool) -> str:
        try:
            command = f"mail FROM:<{address_on_the_wire(sender, utf8)}>"
        except ValueError as error:
            raise smtplib.SMTPSenderRefused(553, str(error).encode("utf-8", "backslashreplace"), sender) from error
        if "size" in self.esmtp_features:
            command += f" SIZE={len(content)}"
        if not content.isascii() and "8bitmime" in self.esmtp_features:
            command += " BODY=8BITMIME"
        if utf8 and needs_smtputf8(sender, recipients, content):
            command += " SMTPUTF8"
        return command

    def _one_by_one(self, commands: list[str]) -> list[Reply]:
        """Say MAIL, RCPT and DATA to a server without PIPELINING, as far as it makes sense. Returns a reply to each."""
        unsaid = 503, b"Not said"
        replies: list[Reply] = []
        for command in commands:
            if not replies or (_taken(replies[0]) and (command != "data" or any(map(_taken, replies[1:])))):
                self._command(command)
                replies += self._answers(1)
            else:
                replies.append(unsaid)
        return replies

    def _refuse(self, sender: str, recipients: list[str], refused: dict[str, Reply], replies: list[Reply]) -> NoReturn:
        """Raise what the replies to MAIL, RCPT and DATA say when they do not let the message through to anybody."""
        mail, data = replies[0], replies[-1]
        nobody = refused.keys() >= set(recipients)
        if nobody and data[0] == 354:
            # It waits for a message to nobody, and gets an empty one (RFC 2920 section 3.1).
            self.send(b".\r\n")
            self.getreply(END_TIME)
        if not _taken(mail):
            if data[0] == 354:
                self.close()  # it would send an empty message to those it has taken, from whomever
            raise smtplib.SMTPSenderRefused(*mail, sender)
        if nobody:
            raise smtplib.SMTPRecipientsRefused(refused)
        raise _message_refused(data, recipients, refused)

    def _give_last_reply(self, recipients: list[str], refused: dict[str, Reply]) -> None:
        """Raise what a server has said about the message before it hung up; return when that was nothing."""
        found = _REPLY.match(self._received)
        if found is not None and found[2] != b"421" and not found[2].startswith(b"2"):
            raise _message_refused(self.getreply(), recipients, refused)

    def _command(self, line: str) -> None:
        self.send(f"{line}\r\n".encode("utf-8", "surrogateescape"))

    def _answers(self, count: int) -> list[Reply]:
        replies = []
        for _ in range(count):
            reply = self.getreply()
            if reply[0] == 421:  # with that it closes the connection (RFC 5321 section 3.8)
                self.close()
                raise NotSent(f"421 {reply[1].decode('utf-8', 'backslashreplace')}")
            replies.append(reply)
        return replies

    def reset(self) -> None:
        """Make it ready for the next message after one that was refused. Raises SMTPException or OSError."""
        code, text = self.rset()
        if code != 250:
            raise smtplib.SMTPResponseException(code, text)

    def leave(self) -> None:
        """Say QUIT, and close the connection whatever the answer is: there is no message in it."""
        with contextlib.suppress(OSError):
            if self.sock is not None:
                self.putcmd("QUIT")
                self.getreply(FAREWELL_TIME)
        self.close()


class Connections:
    """Connections that nobody uses at the moment, kept for some seconds. Threads may share them; processes may not."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._process = os.getpid()
        self._idle: dict[tuple[str, str], list[tuple[float, Connection]]] = {}
        self._timer: threading.Timer | None = None
        # At the end of the process too, so that no server has to find out by itself.
        weakref.finalize(self, _leave_all, self._idle, self._process)

    def take(self, host: str, address: str) -> Connection | None:
        """Return a connection that was used before, which the server may have closed meanwhile. None: there is none."""
        with self._guard:
            if self._process != os.getpid():  # in a child that was forked they are the parent's
                self._process = os.getpid()
                self._idle.clear()
                self._timer = None
            kept = self._idle.get((host, address))
            return kept.pop()[1] if kept else None

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next message."""
        with self._guard:
            kept = self._idle.setdefault((connection.host, connection.address), [])
            room = len(kept) < IDLE_CONNECTIONS and self._is_watched()
            if room:
                kept.append((time.monotonic(), connection))
        if not room:
            connection.leave()

    def _is_watched(self) -> bool:
        """See to it that there is a timer. Returns False when the system gives no thread for one."""
        if self._timer is None:
            timer = threading.Timer(IDLE_TIME, self._expire)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:
                return False
            self._timer = timer
        return True

    def _expire(self) -> None:
        deadline = time.monotonic() - IDLE_TIME
        expired = []
        with self._guard:
            self._timer = None
            for key, kept in list(self._idle.items()):
                expired += [connection for since, connection in kept if since <= deadline]
                kept[:] = [(since, connection) for since, connection in kept if since > deadline]
                if not kept:
                    del self._idle[key]
            if self._idle and not self._is_watched():
                expired += [connection for kept in self._idle.values() for _, connection in kept]
                self._idle.clear()
        for connection in expired:
            connection.leave()

    def close(self) -> None:
        """Close them all."""
        with self._guard:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            kept = dict(self._idle)
            self._idle.clear()
        _leave_all(kept, self._process)


def _leave_all(idle: dict[tuple[str, str], list[tuple[float, Connection]]], process: int) -> None:
    if process == os.getpid():
        for kept in idle.values():
            for _, connection in kept:
                connection.leave()


def _look(sock: socket.socket) -> bytes | None:
    """Return what a server says in less than `QUICK`, without going to sleep until then. None: it says nothing yet.

    Going to sleep and being woken takes longer than a server next door needs for its reply.
    """
    if isinstance(sock, ssl.SSLSocket):
        return None
    deadline = time.monotonic() + QUICK
    while time.monotonic() < deadline:
        try:
            return sock.recv(_RECEIVED, socket.MSG_DONTWAIT)
        except BlockingIOError:
            os.sched_yield()  # the server may need this very processor
    return None


@functools.cache
def own_name() -> str:
    """The name this machine gives itself in EHLO (RFC 5321 section 4.1.1.1): its full name, or else its address."""
    name = socket.getfqdn()
    if "." in name:
        return name
    try:
        return f"[{socket.gethostbyname(socket.gethostname())}]"
    except OSError:
        return "[127.0.0.1]"


def _time_value(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))


def _message_refused(reply: Reply, recipients: list[str], refused: dict[str, Reply]) -> smtplib.SMTPException:
    """What to raise when a message is not taken that was for `recipients`, of whom some were `refused` before.

    What the server says about the message is not about these: one whom it wanted later is to be tried later.
    """
    if not refused:
        return smtplib.SMTPDataError(*reply)
    return smtplib.SMTPRecipientsRefused(dict.fromkeys(recipients, reply) | refused)


def _taken(reply: Reply) -> bool:
    return reply[0] // 100 == 2
