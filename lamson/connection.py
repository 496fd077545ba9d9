"""`Connection`: the bytes that come from one client and go to it, and its clock. `protocol.py` has the commands.

It is the lower half of our `aiosmtpd.smtp.SMTP`, and replaces what is slow or lax there:

* aiosmtpd's constructor, which looks through the whole handler for its hooks, runs once for each receiver. `fork` makes
  a connection out of that one.
* Bytes go from the transport to a buffer and from there to the command loop, or piece by piece into a `MailData`,
  without a task being woken for each line.
* A reply goes to the transport, and only when a client does not read is there something to wait for. Replies to
  commands of an envelope that came together go there together.
* A connection has one timer. Moving a deadline back costs an addition, not a new timer.
* A client that has closed its side gets the answers to all that it has sent. aiosmtpd drops it at once.
* `shut_down` says 421 (RFC 5321 section 3.8) to a client that waits, and to one whose message is being handled after
  the answer to that.
"""

import asyncio
import contextlib
import logging
import math
from asyncio.streams import FlowControlMixin
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from aiosmtpd import smtp
from aiosmtpd.proxy_protocol import get_proxy

from lamson.limits import Limits, neighbourhood
from lamson.logs import printable
from lamson.maildata import MailData, Room

log = logging.getLogger(__name__)

# aiosmtpd logs several lines per command at INFO. Ask for them with its logger's own level.
if smtp.log.level == logging.NOTSET:
    smtp.log.setLevel(logging.WARNING)

LONGEST_LINE = 12288  # bytes: what a client may answer to AUTH (RFC 4954 section 4.5); commands may be shorter only
PROXY_TIMEOUT = 5  # seconds; a proxy sends its header at once
HANDSHAKE_TIMEOUT = 60  # seconds
GOODBYE_TIMEOUT = 10  # seconds for a client to take the last reply, before the connection is cut
_BUFFERED = 1 << 16  # bytes of commands that are taken before they are needed
_FULL_READ = 1 << 17  # bytes: behind so many there are more to be read
_LARGE = 1 << 22  # bytes of a message that is put together outside of the event loop
_JOINER = ThreadPoolExecutor(1, "lamson-join")  # where: one after the other, or they take the processors from the loop


class ClientGone(Exception):
    """The client has closed the connection, and all that it had sent was answered."""


class Refusal(Exception):
    """What the client wants is not done. Its text is the reply."""


class LastRefusal(Refusal):
    """One after which the connection is closed."""


class Connection(smtp.SMTP):
    """One client's connection. `handler` is the receiver; its set `connections`, if it has one, holds all of them."""

    # What every connection begins with.
    _waiter: asyncio.Future[None] | None = None  # somebody waits for the client to send
    _incoming: MailData | None = None  # where to bytes go during DATA
    _proxy_reader: asyncio.StreamReader | None = None  # and during the PROXY header
    _eof = False  # the client has closed its side
    _reading_paused = False
    _talking = False  # neither a PROXY header nor a TLS handshake is awaited
    _leaving = False  # the last reply was given
    _handling = False  # the message is in the handlers' hands
    _shutting_down = False
    _in_a_group = False  # the reply to this command may wait for those to the next ones
    _unsent = b""  # replies that wait
    _errors = 0  # since a message was taken
    _deadline = math.inf
    _timer_at = math.inf  # when the timer goes off; there is none when that is never
    _message_deadline = math.inf
    _counted_as = ""

    def __init__(self, handler: Any, limits: Limits | None = None, **options: Any):
        self.limits = limits or Limits()
        options.setdefault("data_size_limit", self.limits.size_limit or None)
        options.setdefault("timeout", self.limits.command_timeout or math.inf)
        options.setdefault("require_starttls", self.limits.require_tls)
        options.setdefault("proxy_protocol_timeout", PROXY_TIMEOUT if self.limits.proxy_hosts else None)
        options.setdefault("enable_SMTPUTF8", True)
        super().__init__(handler, **options)
        self._connections: set[Connection] = getattr(handler, "connections", set())
        self._workers: int = getattr(handler, "workers", 1)
        self._neighbours: dict[str, int] = {}
        # Each of several processes has its share, in which at least one message has room.
        memory = self.limits.memory_limit and max(self._share(self.limits.memory_limit), self.limits.size_limit)
        self._room = Room(memory)
        self._buffer = bytearray()

    def fork(self) -> Self:
        """Return a new connection with the settings of this one."""
        connection = object.__new__(type(self))
        connection.__dict__.update(self.__dict__)
        FlowControlMixin.__init__(connection, self.loop)  # type: ignore[call-arg]
        connection._buffer = bytearray()
        return connection

    # what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._writer = asyncio.StreamWriter(transport, self, None, self.loop)  # type: ignore[arg-type]
        self._begin_session(transport.get_extra_info("peername"))
        self._connections.add(self)
        self._reset_timeout()
        if self._expects_proxy() or self.limits.implicit_tls or transport.get_extra_info("sslcontext"):
            self._handler_coroutine = self.loop.create_task(self._handle_client())
        else:
            self._welcome(self._refusal())  # the task begins when the client has said something

    def _begin_session(self, peer: Any) -> None:
        self._set_rset_state()
        self.session = self._create_session()
        self.session.peer = peer

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is None:
            return
        if error is not None and not self._talking:
            assert self.session is not None
            log.info("refused: %s broke off the handshake: %s", self.session.peer, error)
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self.transport = None
        FlowControlMixin.connection_lost(self, error)  # type: ignore[arg-type]
        # Who leaves while their message is being handled counts until it was: or else somebody who sends, leaves, and
        # comes again could pile up messages without end.
        if not self._handling:
            self._forget()

    def _forget(self) -> None:
        """Let the connection count no more, and end its task."""
        if self not in self._connections:
            return
        self._connections.discard(self)
        self._count(-1)
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    def data_received(self, data: bytes) -> None:
        if self._incoming is not None:
            self._reset_timeout()
            if not self._incoming.feed(data):
                if len(data) >= _FULL_READ:
                    self._let_others_read()
                return
            self._buffer += self._incoming.rest
            self._incoming = None
        elif self._proxy_reader is not None:
            self._proxy_reader.feed_data(data)
            return
        else:
            self._buffer += data
            if len(self._buffer) > _BUFFERED and not self._reading_paused:
                self._reading_paused = True
                self.transport.pause_reading()  # type: ignore[union-attr]
        self._wake()

    def _let_others_read(self) -> None:
        """Read on in the loop's next turn. In one turn uvloop reads up to 8 MB of a client that is fast enough."""
        transport: Any = self.transport
        transport.pause_reading()
        self.loop.call_soon(lambda: transport.is_closing() or transport.resume_reading())

    def eof_received(self) -> bool:
        self._eof = True
        if self._proxy_reader is not None:
            self._proxy_reader.feed_eof()
        self._wake()
        # TLS has no half-closed connections.
        return self.session is not None and self.session.ssl is None

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(None)
        elif self._handler_coroutine is None:
            self._handler_coroutine = self.loop.create_task(self._handle_client())

    # the clock

    def _reset_timeout(self, duration: float | None = None) -> None:
        deadline = self.loop.time() + (duration or self._timeout_duration)
        if deadline > self._message_deadline:
            deadline = self._message_deadline
        self._deadline = deadline
        if self._timer_at > deadline:
            if self._timeout_handle is not None:
                self._timeout_handle.cancel()
            self._set_timer(deadline)

    def _set_timer(self, deadline: float) -> None:
        self._timer_at = deadline
        self._timeout_handle = None if deadline == math.inf else self.loop.call_at(deadline, self._timeout_cb)

    def _timeout_cb(self) -> None:
        self._timeout_handle, self._timer_at = None, math.inf
        if self._deadline > self.loop.time():
            self._set_timer(self._deadline)
        elif self._leaving:
            self.abort()
        else:
            assert self.session is not None
            log.info("refused: %s was too slow", self.session.peer)
            self._say_goodbye("4.4.2 Timeout, closing the connection")

    # what the client sends

    def _more(self) -> asyncio.Future[None]:
        """Return what comes true when the client has sent something. Raises ClientGone when it will not."""
        self._flush()
        if self._eof:
            raise ClientGone
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()  # type: ignore[union-attr]
        self._waiter = waiter = self.loop.create_future()
        return waiter

    async def _line(self) -> bytearray:
        """Return the next line without its end. Raises Refusal for one that has to be refused, and ClientGone.

        Only CRLF ends a line. Somebody who ends lines with LF alone gets an answer, but what came with such a line is
        dropped up to the next CRLF: an address with an LF in it, passed on by a careless client, is no second command.
        """
        buffer = self._buffer
        while (end := buffer.find(b"\n")) < 0:
            if len(buffer) > LONGEST_LINE + 1:
                await self._skip_line()
                raise Refusal("500 Command line too long")
            await self._more()
        if end > LONGEST_LINE + 1:
            await self._skip_line()
            raise Refusal("500 Command line too long")
        if not buffer.endswith(b"\r", 0, end):
            end = buffer.find(b"\r\n")
            del buffer[: end + 2 if end >= 0 else len(buffer)]
            raise Refusal("500 5.5.2 Error: lines end with CR and LF")
        line = buffer[: end - 1]
        del buffer[: end + 1]
        return line

    async def _skip_line(self) -> None:
        while (end := self._buffer.find(b"\r\n")) < 0:
            del self._buffer[:-1]  # its CR may have come already
            await self._more()
        del self._buffer[: end + 2]

    async def _receive(self) -> MailData:
        """Return what the client sends up to CRLF.CRLF, to be released. Raises ClientGone when it leaves before."""
        data = MailData(self.data_size_limit or self._room.limit, self._room)
        if self.limits.message_timeout:
            self._message_deadline = self.loop.time() + self.limits.message_timeout
        self._incoming = data
        try:
            self._reset_timeout()
            if self._buffer:
                sent = bytes(self._buffer)
                self._buffer.clear()
                self.data_received(sent)
            while self._incoming is not None:
                await self._more()
        except BaseException:
            data.release()
            raise
        finally:
            self._incoming = None
            self._message_deadline = math.inf
        return data

    async def _content_of(self, data: MailData) -> bytes:
        if data.size >= _LARGE:
            with contextlib.suppress(RuntimeError):  # the system gives no thread
                return await self.loop.run_in_executor(_JOINER, data.content)
        return data.content()

    # what it hears

    def _reply(self, status: str) -> None:
        """Send a reply, unless the last one was given. A task waits for `_read_by_client` before it goes on.

        One in a group waits while there is more of what the client has sent, for a turn of the loop at most (RFC 2920
        section 3.2): written one by one, each would wake the client.
        """
        if self._leaving:
            return
        if status.startswith("5"):
            self._errors += 1
        waiting = self._unsent
        self._unsent = waiting + f"{status}\r\n".encode()
        if not (self._in_a_group and self._buffer):
            self._flush()
        elif not waiting:
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._unsent and self.transport is not None:
            replies, self._unsent = self._unsent, b""
            self.transport.write(replies)  # type: ignore[attr-defined]

    async def _read_by_client(self) -> None:
        """Wait until the client has read most of what it was told. Raises ClientGone."""
        try:
            await self._drain_helper()  # type: ignore[attr-defined]
        except ConnectionError as error:
            raise ClientGone from error

    async def push(self, status: str | bytes) -> None:
        """As `_reply` and `_read_by_client`: what aiosmtpd's commands call. Raises ClientGone."""
        self._reply(status if isinstance(status, str) else status.decode())
        if self._paused:  # type: ignore[attr-defined]
            await self._read_by_client()

    def _leave(self) -> None:
        """Close the connection when the client has read the last reply; cut it when it does not."""
        self._leaving = True
        self._flush()
        self._writer.close()
        if self.transport is None:
            return
        # Under TLS there are more goodbyes to be said.
        if self._tls_protocol or self.transport.get_write_buffer_size():  # type: ignore[attr-defined]
            self._reset_timeout(GOODBYE_TIMEOUT)

    def _say_goodbye(self, reason: str) -> None:
        """Send a reply of 421, unless the client could not read it now, and close."""
        if not self._leaving and self.transport is not None:
            if self._talking:
                self._unsent += f"421 {reason}\r\n".encode()
            self._leave()

    def _hang_up(self, what: str) -> None:
        """Tell a client that it did something too often, and close."""
        assert self.session is not None
        if not self._leaving:
            log.info("refused: %s, after too many %s", self.session.peer, what)
            self._say_goodbye(f"4.7.0 Too many {what}, closing the connection")

    def shut_down(self) -> None:
        """Say goodbye with 421 and close, now or after the answer to the message that is being handled."""
        self._shutting_down = True
        if not self._handling:
            self._say_goodbye(f"4.3.2 {self.hostname} is shutting down")

    def abort(self) -> None:
        """Cut the connection without a word. A message that is being handled goes on without it."""
        handling, self._handling = self._handling, False
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]
        elif handling:
            self._forget()

    # how it begins

    async def _open(self) -> None:
        """Do all that comes before the greeting, and greet. Afterwards the connection may be closing."""
        assert self.session is not None
        if self._talking or self._leaving or self.transport is None:
            return
        if self._expects_proxy():
            await self._take_proxy_header()
        if self._leaving:
            return
        refusal = self._refusal()
        if self.transport.get_extra_info("sslcontext"):
            self._tls_started(self.transport)
        elif self.limits.implicit_tls:
            if refusal:  # which could be said under TLS only, and a handshake is what costs the most
                self._leave()
                return
            await self._start_tls()
            if self._leaving:
                return
        self._welcome(refusal)

    def _welcome(self, refusal: str | None) -> None:
        self._talking = True
        if refusal:
            self._say_goodbye(refusal)
        else:
            self._reply(f"220 {self.hostname} {self.__ident__}")

    def _refusal(self) -> str | None:
        """Count this connection. Returns what to say when it is one too many."""
        assert self.session is not None
        self._count(+1)
        limit = self._share(self.limits.connections_allowed(self._counted_as))
        if 0 < self._share(self.limits.connection_limit) < len(self._connections):
            log.warning("refused: %s, for there are %d connections", self.session.peer, len(self._connections) - 1)
            return "4.3.2 Too many connections, try again later"
        if 0 < limit < self._neighbours.get(self._counted_as, 0):
            log.info("refused: %s, which has %d connections already", self.session.peer, limit)
            return "4.7.0 Too many connections from you, try again later"
        return None

    def _share(self, limit: int) -> int:
        """What one of several processes grants of what there may be in all."""
        return -(-limit // self._workers)

    def _address(self) -> str:
        """The client's IP address; nothing for one that comes by a Unix socket."""
        assert self.session is not None
        return self.session.peer[0] if isinstance(self.session.peer, tuple) else ""

    def _count(self, step: int) -> None:
        if step > 0:
            self._counted_as = neighbourhood(self._address())
        if self._counted_as:
            there = self._neighbours.get(self._counted_as, 0) + step
            if there:
                self._neighbours[self._counted_as] = there
            else:
                del self._neighbours[self._counted_as]

    def _expects_proxy(self) -> bool:
        address = self._address()
        return bool(self._proxy_timeout and address and self.limits.is_proxy(address))

    async def _take_proxy_header(self) -> None:
        """Learn from the proxy in front who the client is."""
        assert self.session is not None
        reader = self._proxy_reader = asyncio.StreamReader(loop=self.loop)
        reader.feed_data(self._buffer)  # what was faster than this task
        self._buffer.clear()
        if self._eof:
            reader.feed_eof()
        self._reset_timeout(self._proxy_timeout)
        try:
            header = await get_proxy(reader)
        except EOFError as error:
            raise ClientGone from error
        finally:
            self._proxy_reader = None
        reader.feed_eof()
        self._buffer += await reader.read()
        self.session.proxy_data = header
        accepted = bool(header)
        if accepted and "PROXY" in self._handle_hooks:
            accepted = await self._call_handler_hook("PROXY", header)
        if not accepted:
            log.warning("refused: %s sent no valid PROXY header: %s", self.session.peer, printable(header.error))
            self._leave()
        elif header.src_addr is not None and header.src_port is not None:
            self.session.peer = (str(header.src_addr), header.src_port)  # type: ignore[assignment]

    async def _start_tls(self) -> None:
        """Shake hands, and forget what was said before (RFC 3207 section 4.2). Closes when that fails."""
        assert self.session is not None and self.transport is not None and self.tls_context is not None
        self._talking = False
        timeout = min(HANDSHAKE_TIMEOUT, self._timeout_duration)
        self._reset_timeout(timeout + GOODBYE_TIMEOUT)  # the handshake has a clock of its own
        raw: Any = self.transport
        handshake = self.loop.start_tls(raw, self, self.tls_context, server_side=True, ssl_handshake_timeout=timeout)
        task = self.loop.create_task(handshake)
        # What the client was so fast to send that it is here already goes to the handshake: after the task has prepared
        # it, and before it reads more. The loop does these in the order in which they were asked for.
        self.loop.call_soon(lambda: self.loop.call_soon(self._feed_handshake, raw))
        try:
            transport = await task
            if transport is None:
                # So asyncio's loop says that the client was gone before the handshake began.
                raise ConnectionResetError("the client has gone")
        except OSError as error:  # ssl.SSLError is one
            self._leaving = True
            self.connection_lost(error)  # does nothing when the loop has said so, as uvloop does
            return
        self._writer._transport = transport  # type: ignore[attr-defined]
        self._begin_session(self.session.peer)
        self._tls_started(transport)
        self._talking = True

    def _feed_handshake(self, raw: asyncio.Transport) -> None:
        if raw.is_closing():
            return
        protocol: Any = raw.get_protocol()
        if self._buffer:
            protocol.get_buffer(len(self._buffer))[: len(self._buffer)] = self._buffer
            protocol.buffer_updated(len(self._buffer))
            self._buffer.clear()
        if self._eof:
            protocol.eof_received()

    def _tls_started(self, transport: asyncio.BaseTransport) -> None:
        assert self.session is not None
        self.transport = transport
        self._tls_protocol = transport.get_extra_info("ssl_object")
        self.session.ssl = {name: transport.get_extra_info(name) for name in ("cipher", "peercert", "ssl_object")}
