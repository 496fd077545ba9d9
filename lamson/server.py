"""Servers: what brings mail in from the wire, `SMTPReceiver` and `LMTPReceiver`.

    receiver = SMTPReceiver("127.0.0.1", 8823)
    receiver.start()                            # serving when this returns
    ...
    receiver.close()                            # what is being handled gets finished first

A receiver makes a `MailRequest` of each message and gives it to the `Router`. It takes responsibility for a message,
with the reply 250, only once each recipient's copy was handled or is on disk (`lamson.settling`).

`QueueReceiver`, which takes mail out of a queue, and `Relay`, which sends mail on, have modules of their own and are
found here, too.
"""

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamson.errors import SMTPError
from lamson.limits import Limits
from lamson.logs import message_id, printable
from lamson.mail import MailRequest
from lamson.outgoing import RetryQueue
from lamson.pool import HandlerPool
from lamson.protocol import LMTPProtocol, SMTPProtocol
from lamson.queuereceiver import QueueReceiver
from lamson.relay import Relay
from lamson.routing import Router
from lamson.settling import (
    FAILED,
    give_up,
    no_room,
    reply_for,
    reply_lines,
    route_again,
    settle,
    undeliverable_message,
)
from lamson.threads import beside
from lamson.tls import server_context

try:
    from uvloop import new_event_loop
except ImportError:  # it does not exist for every system; asyncio's own loop does the same, slower
    from asyncio import new_event_loop  # type: ignore[assignment]

__all__ = ["LMTPReceiver", "QueueReceiver", "Relay", "SMTPError", "SMTPReceiver", "undeliverable_message"]

log = logging.getLogger(__name__)

SHUTDOWN_TIME = 30  # seconds that handlers get when a server stops
HANDLER_THREADS = 32
BACKLOG = 1024  # connections that wait to be accepted

# From Python 3.13 on, a loop removes the file of a Unix socket that it closes. Other workers may serve there.
_KEEP_SOCKET: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class SMTPReceiver:
    """An SMTP server that gives every message to the Router and replies when its handlers are done.

    `port` 0 takes any free port; the attribute `port` has its number after `bind`. `unknown_recipients` says what
    becomes of a recipient that no route matches: ``'refuse'`` answers RCPT with 550, ``'queue'`` takes the message
    and leaves it to the undeliverable queue. `retry_queue` is the folder for copies that a handler refused for now
    (4xx) while it took those of other recipients: they are routed again later, for up to five days. `limits` are what a
    client may do and how it may come in: the fields of `lamson.limits.Limits`.
    """

    name = "SMTP"
    protocol: type[SMTPProtocol] = SMTPProtocol

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8825,
        unknown_recipients: str = "queue",
        retry_queue: str | None = None,
        **limits: Any,
    ):
        if unknown_recipients not in ("refuse", "queue"):
            raise ValueError(f"unknown_recipients is {unknown_recipients!r}. It has to be 'refuse' or 'queue'.")
        if not isinstance(port, int):
            raise TypeError(f"port is {port!r}. It has to be a number.")
        known = [field.name for field in dataclasses.fields(Limits)]
        for name in limits:
            if name not in known:
                options = ", ".join(["host", "port", "unknown_recipients", "retry_queue", *known])
                raise TypeError(f"A receiver has no option {name!r}. It has {options}.")
        self.host = host
        self.port = port
        self.unknown_recipients = unknown_recipients
        self.limits = Limits(**limits)
        self.workers = 1  # processes that share the port, and so the number of connections
        self._tls_context: ssl.SSLContext | None = None
        self._template: SMTPProtocol | None = None
        self.retries = RetryQueue(retry_queue, route_again, give_up) if retry_queue else None
        self.connections: set[SMTPProtocol] = set()
        self._hostname = socket.getfqdn()
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.AbstractServer] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: HandlerPool | None = None

    @property
    def where(self) -> str:
        """What clients connect to, for people."""
        return f"{self.host}:{self.port}"

    @property
    def places(self) -> list[tuple[str, int]]:
        """The addresses and ports where it takes mail, once they are bound. A Unix socket has none."""
        return [sock.getsockname()[:2] for sock in self._sockets if sock.family != socket.AF_UNIX]

    def bind(self) -> None:
        """Bind the port, on every address that `host` has. Raises OSError that names host and port.

        `start` does this, too. It stands alone for servers that bind a low port as root and then drop privileges.
        """
        if self._sockets:
            return
        self._read_certificate()
        failure: OSError | None = None
        try:
            found = socket.getaddrinfo(self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {self.host}:{self.port}: {error.strerror}") from error
        for family, kind, proto, _, address in found:
            try:
                self._sockets.append(_listen(family, kind, proto, (address[0], self.port, *address[2:])))
            except OSError as error:
                failure = error
                if error.errno == errno.EADDRNOTAVAIL:  # IPv6 is in the name service and not in the system
                    continue
                break
            self.port = self._sockets[-1].getsockname()[1]
        if failure and (failure.errno != errno.EADDRNOTAVAIL or not self._sockets):
            self._close_sockets()
            raise OSError(failure.errno, f"cannot listen on {self.host}:{self.port}: {failure.strerror}") from failure

    def start(self) -> None:
        """Serve in a thread of its own. Returns when clients can connect; raises OSError when the port is taken."""
        self.bind()
        self._loop = new_event_loop()
        self._pool = HandlerPool(HANDLER_THREADS, self._loop, _unsynced, _sync)
        try:
            self._pool.start()
        except RuntimeError:
            self._loop.close()
            self._loop = self._pool = None
            raise
        try:
            self._in_loop(self._serve())
        except BaseException:
            self.close()
            raise
        if self.retries:
            self.retries.start()
        log.info("listening: %s on %s", self.name, self.where)

    async def _serve(self) -> None:
        assert self._loop is not None
        self._template = self.protocol(
            self,
            self.limits,
            hostname=self._hostname,
            ident="Lamson",
            tls_context=self._tls_context,
            loop=self._loop,
        )
        for sock in self._sockets:
            self._servers.append(await self._listen_at(sock, self._template.fork))

    async def _listen_at(self, sock: socket.socket, factory: Callable[[], SMTPProtocol]) -> asyncio.AbstractServer:
        assert self._loop is not None
        if sock.family == socket.AF_UNIX:
            return await self._loop.create_unix_server(factory, sock=sock, backlog=BACKLOG, **_KEEP_SOCKET)
        return await self._loop.create_server(factory, sock=sock, backlog=BACKLOG)

    def reload_certificate(self) -> None:
        """Read the certificate's files again, for the connections that come. May be called from any thread.

        Before `start` it is for that: processes that are forked from this one later begin with what was read last.
        Raises OSError when they cannot be used; then the old certificate stays.
        """
        if self.limits.certificate:
            self._read_certificate()
            if self._template is not None:
                self._template.tls_context = self._tls_context
            log.info("reloaded: the certificate %s", self.limits.certificate)

    def _read_certificate(self) -> None:
        if self.limits.certificate:
            self._tls_context = server_context(self.limits.certificate, self.limits.key)

    def _in_loop(self, coroutine: Any) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Take no more mail, finish what is being handled (30 seconds at most), and return."""
        if self._loop is None or self._pool is None:
            self._close_sockets()
            return
        retrying = beside(self.retries.close) if self.retries else None
        self._in_loop(self._stop_serving())
        if retrying is not None:
            retrying()
        self._pool.close()
        self._loop.close()
        self._loop = self._pool = None
        self._servers.clear()
        self._close_sockets()  # of which the loop has closed all that it was given

    async def _stop_serving(self) -> None:
        assert self._loop is not None and self._pool is not None
        for server in self._servers:
            server.close()
        deadline = self._loop.time() + SHUTDOWN_TIME
        while (self.connections or self._pool.pending) and self._loop.time() < deadline:
            for connection in list(self.connections):  # every time: some were accepted just before the end
                connection.shut_down()
            await asyncio.sleep(0.01)
        if self._pool.pending:
            log.error("gave up: %d messages are still being handled; their clients keep them", self._pool.pending)
        for connection in list(self.connections):
            connection.abort()

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    # what aiosmtpd asks

    async def handle_EHLO(self, server, session, envelope, hostname: str, responses: list[str]) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_RCPT(self, server, session, envelope, address: str, options: list[str]) -> str:
        if self.unknown_recipients == "refuse" and not self.knows_recipient(address):
            sender = printable(envelope.mail_from)
            log.info("refused: <%s> from <%s> at %s: no route takes it", printable(address), sender, session.peer)
            return f"550 5.1.1 <{printable(address)}>: no such recipient here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope) -> Any:
        reply = await self._in_a_thread(self.process_message, session, envelope)
        return "250 OK" if reply is None else reply

    async def _in_a_thread(self, process: Callable[..., Any], session: Any, envelope: Any) -> Any:
        assert self._pool is not None
        sender = "" if envelope.mail_from == "<>" else envelope.mail_from
        # Messages of one sender wait for each other in any case: here they do it without holding a thread.
        turn = sender.lower() if Router.LOCKING == "sender" and sender else None
        # A client that goes away does not take its message out of the handlers' hands.
        return await self._pool.run(turn, process, session.peer, sender, list(envelope.rcpt_tos), envelope.content)

    def knows_recipient(self, address: str) -> bool:
        """Whether mail for this address is taken when unknown recipients are refused. Asks the Router; override it."""
        if Router.RELOAD:
            Router.reload()
        return next(Router.match(address.lower()), None) is not None

    def process_message(self, Peer: Any, From: str, To: str | list[str], Data: bytes | str) -> str | None:
        """Route one message. Returns None when it was taken, or else the reply line that refuses it."""
        try:
            message = MailRequest(Peer, From, To, Data)
            log.info("received: %s from <%s> to %s at %s", message_id(message), printable(From), To, Peer)
            refusal = no_room(len(Data) * len(message.route_to))  # each recipient's copy is kept by itself
            refusal = refusal or settle(message, Router.deliver_each(message), self.retries)
        except BaseException:  # whatever a handler raises, KeyboardInterrupt as well, it must not end the event loop
            log.exception("failed: a message from <%s> to %s at %s", printable(From), To, Peer)
            return FAILED
        if refusal is None:
            return None
        log.info("refused: %s from <%s> to %s: %s", message_id(message), printable(From), To, printable(refusal))
        return reply_lines(refusal)


class LMTPReceiver(SMTPReceiver):
    """As SMTPReceiver, but it speaks LMTP (RFC 2033), which has a reply for each recipient: for a mail server in front.

    `host` may be the path of a Unix socket, with a slash in it; `port` means nothing then. A socket that a dead server
    left behind is replaced. Who may connect follows from the permissions of its folder.
    """

    name = "LMTP"
    protocol = LMTPProtocol

    def __init__(self, host: str = "127.0.0.1", port: int = 8824, **settings: Any):
        super().__init__(host, port, **settings)
        self._bound_by: int | None = None  # the process that has made the socket's file

    @property
    def where(self) -> str:
        """What clients connect to, for people."""
        return self.host if "/" in self.host else super().where

    def bind(self) -> None:
        """Bind the port or the socket. Raises OSError that names it."""
        if "/" not in self.host:
            super().bind()
        elif not self._sockets:
            self._read_certificate()
            try:
                self._sockets.append(_listen_on_path(self.host))
                self._bound_by = os.getpid()
            except OSError as error:
                raise OSError(error.errno, f"cannot listen on {self.host}: {error.strerror}") from error

    def close(self) -> None:
        """As SMTPReceiver, and the socket's file goes, when this process may remove it."""
        super().close()
        if self._bound_by == os.getpid():  # and not one worker of several, which another one may replace
            try:
                Path(self.host).unlink(missing_ok=True)
            except OSError as error:  # root has made it, and this process is not root any more
                log.warning("left behind: %s, which the next start replaces: %s", self.host, error.strerror)

    async def handle_DATA(self, server, session, envelope) -> list[str]:
        replies = await self._in_a_thread(self.process_each, session, envelope)
        return [replies.get(recipient.lower(), FAILED) for recipient in envelope.rcpt_tos]

    def process_each(self, Peer: Any, From: str, To: list[str], Data: bytes) -> dict[str, str]:
        """Route one message. Returns the reply for each recipient, by address in lower case."""
        message = MailRequest(Peer, From, To, Data)
        log.info("received: %s from <%s> to %s at %s", message_id(message), printable(From), To, Peer)
        refusal = no_room(len(Data) * len(message.route_to))
        if refusal is not None:
            return dict.fromkeys(message.route_to, reply_lines(refusal))
        try:
            outcomes = Router.deliver_each(message)
        except BaseException:  # whatever a handler raises, KeyboardInterrupt as well, it must not end the event loop
            log.exception("failed: a message from <%s> to %s at %s", printable(From), To, Peer)
            return {}
        return {each.recipient: "250 OK" if each.safe else reply_lines(reply_for(each)) for each in outcomes}


def _unsynced() -> bool:
    return Router.STATE_STORE.unsynced()


def _sync() -> None:
    Router.STATE_STORE.sync()


def _listen_on_path(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError), socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        Path(path).unlink(missing_ok=True)
        sock.bind(path)
        os.chmod(path, 0o666)  # whatever the umask: the folder is what keeps others out
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listen(family: int, kind: int, proto: int, address: tuple) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        # Whether the port is free only shows here when another server has it with SO_REUSEADDR, too.
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
