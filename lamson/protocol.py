"""SMTP on the wire: `aiosmtpd.smtp.SMTP` with the parts replaced that are slow, lax or tell strangers too much.

What differs from aiosmtpd, each in one method:

* DATA is read in chunks, with one search for its end, and lines may be as long as real mail has them. Only
  CRLF.CRLF ends it (RFC 5321 section 4.1.1.4); a bare LF or CR is part of the message and never a line end.
* The clock of a connection stands still while a handler has the message, and starts again with each piece of DATA.
* An error of ours is a 451 without its text: the client keeps the message, and the log has the traceback.
* `shut_down` says 421 (RFC 5321 section 3.8) to a client that waits, and to one whose message is being handled after
  the answer to that.
"""

import asyncio
import collections
import logging

from aiosmtpd import smtp

log = logging.getLogger(__name__)

# aiosmtpd logs several lines per command at INFO. Ask for them with its logger's own level.
if smtp.log.level == logging.NOTSET:
    smtp.log.setLevel(logging.WARNING)

_END_OF_DATA = b"\r\n.\r\n"
COMMAND_SIZE_LIMIT = 1024  # bytes; RFC 5321 section 4.5.3.1.4 wants 512 and more for each extension
_CHUNK = 1 << 18  # bytes read at once; the transport seldom has more


class SMTPProtocol(smtp.SMTP):
    """One client's connection. `handler` is asked by aiosmtpd's hooks (`handle_RCPT`, `handle_DATA`)."""

    # aiosmtpd's word for the reader's buffer: below this the transport is not told to pause.
    line_length_limit = 1 << 16

    def __init__(self, handler, **kwargs):
        super().__init__(handler, enable_SMTPUTF8=True, **kwargs)
        # aiosmtpd shares one dictionary among all connections and lets every EHLO add to it.
        self.command_size_limits = collections.defaultdict(lambda: COMMAND_SIZE_LIMIT)
        self._connections: set[SMTPProtocol] = handler.connections
        self._handling = False
        self._shutting_down = False

    # the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        super().connection_lost(error)

    def shut_down(self) -> None:
        """Say goodbye with 421 and close, now or after the answer to the message that is being handled."""
        self._shutting_down = True
        if not self._handling:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self._writer.write(f"421 4.3.2 {self.hostname} is shutting down\r\n".encode())
            self._writer.close()

    def abort(self) -> None:
        """Cut the connection without a word."""
        if self.transport is not None:
            self._writer.transport.abort()

    async def handle_exception(self, error: Exception) -> str:
        assert self.session is not None
        log.error("failed: while talking to %s", self.session.peer, exc_info=error)
        return "451 4.3.0 Internal error, try again later"

    # DATA

    @smtp.syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        assert self.envelope is not None
        if not self.envelope.rcpt_tos:
            await self.push("503 Error: need RCPT command")
            return
        if arg:
            await self.push("501 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        content = await self._read_data()
        if content is None:
            await self.push("552 5.3.4 Error: Too much mail data")
            self._set_post_data_state()
            return
        self.envelope.content = self.envelope.original_content = content
        del content
        status = await self._handle_data()
        self._set_post_data_state()
        await self.push(status)
        if self._shutting_down:
            self._say_goodbye()

    async def _handle_data(self) -> str:
        # How long a handler takes is not the client's doing, so its clock stands still.
        assert self._timeout_handle is not None
        self._timeout_handle.cancel()
        self._handling = True
        try:
            return await self._call_handler_hook("DATA")
        finally:
            self._handling = False
            if self.transport is not None:
                self._reset_timeout()

    async def _read_data(self) -> bytes | None:
        """Return the message without the dots of transparency, or None when it is over `data_size_limit` bytes."""
        limit = self.data_size_limit
        too_much = False
        buffer = bytearray(b"\r\n")  # so that the end is found in an empty message, too, where no line stands before it
        while True:
            chunk = await self._reader.read(_CHUNK)
            if not chunk:
                raise ConnectionResetError("the client went away in the middle of DATA")
            self._reset_timeout()
            seen = max(0, len(buffer) - len(_END_OF_DATA) + 1)
            buffer += chunk
            end = buffer.find(_END_OF_DATA, seen)
            if end >= 0:
                break
            if limit and len(buffer) > limit + 2:
                # Read on to the end, for that is where the client listens again, but keep only what may be part of it.
                too_much = True
                del buffer[: -len(_END_OF_DATA)]
        rest = bytes(buffer[end + len(_END_OF_DATA) :])
        if rest:  # the client pipelines: these are its next commands
            self._reader._buffer[:0] = rest  # type: ignore[attr-defined]
        del buffer[end + 2 :]
        if too_much or (limit and len(buffer) - 2 > limit):
            return None
        if b"\r\n." in buffer:  # RFC 5321 section 4.5.2
            buffer = buffer.replace(b"\r\n.", b"\r\n")
        return bytes(memoryview(buffer)[2:])
