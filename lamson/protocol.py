"""SMTP and LMTP on the wire: `aiosmtpd.smtp.SMTP` with what is slow, lax or tells strangers too much replaced.

    template = SMTPProtocol(receiver, Limits(size_limit=1000), hostname="mail.example.com", loop=loop)
    await loop.create_server(template.fork, "127.0.0.1", 8823)

The receiver is asked by aiosmtpd's hooks, `handle_RCPT` and `handle_DATA` among them. What differs from aiosmtpd:

* A command is a line of printable UTF-8 that ends in CRLF. Everything else is refused before it is understood.
* DATA takes lines of any length, and only CRLF.CRLF ends it: see `MailData`. For addresses see `split_path`.
* `Limits` holds for everything that a client could do too often, too slowly, or too much of.
* An error of ours is a 451 without its text: the client keeps the message, and the log has the traceback.
"""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from aiosmtpd import smtp

from lamson.authentication import Authentication
from lamson.connection import ClientGone, LastRefusal, Refusal
from lamson.limits import Limits
from lamson.logs import printable
from lamson.maildata import MailData, header_section, in_a_loop
from lamson.paths import split_path

log = logging.getLogger(__name__)

COMMAND_SIZE_LIMIT = 1024  # bytes; RFC 5321 section 4.5.3.1.4 wants 512 and more for each extension
LONGEST_NAME = 64  # bytes; a reply of ours has at most 512 (RFC 5321 section 4.5.3.1.5), and it names the command
BEFORE_TLS = ("NOOP", "EHLO", "LHLO", "STARTTLS", "QUIT")  # RFC 3207 section 4
GROUPED = ("MAIL", "RCPT", "RSET")  # RFC 2920 section 3.2 (2)
PATIENCE = 64  # commands of one client that were sent at once, before the others get their turn

_PARAMETER = re.compile(r"([A-Z0-9][A-Z0-9-]*)(?:=([^= ]+))?")

Command = Callable[[Any, str | None], Awaitable[None]]


class SMTPProtocol(Authentication):
    """One client's SMTP connection."""

    greeting = "HELO"  # what a client has to say first

    # What every connection begins with.
    _commands = 0  # since a message was taken
    _unknown_commands = 0
    _messages = 0

    def __init__(self, handler: Any, limits: Limits | None = None, **options: Any):
        super().__init__(handler, limits, **options)
        self._by_name = _commands_of(type(self))

    # one command after the other

    async def _handle_client(self) -> None:
        try:
            await self._open()
            while not self._leaving:
                self._reset_timeout()
                self._in_a_group = False
                try:
                    command, argument = self._understand(await self._line())
                    await command(self, argument)
                except ClientGone:
                    raise
                except Refusal as refusal:
                    self._reply(str(refusal))
                    if isinstance(refusal, LastRefusal):
                        self._leave()
                except Exception as error:
                    self._reply(await self.handle_exception(error))
                if self._paused:  # type: ignore[attr-defined]
                    await self._read_by_client()
                self._commands += 1
                if self._shutting_down or self._errors or self._commands >= self.limits.command_limit:
                    self._check_limits()
                if not self._commands % PATIENCE:
                    await asyncio.sleep(0)
        except ClientGone:
            pass
        finally:
            if not self._leaving:
                self._leave()

    def _check_limits(self) -> None:
        if self._shutting_down:
            self.shut_down()
        elif 0 < self.limits.error_limit <= self._errors:
            self._hang_up("errors")
        elif 0 < self.limits.command_limit <= self._commands:
            self._hang_up("commands")

    def _understand(self, line: bytearray) -> tuple[Command, str | None]:
        """Return the command that the line gives, and its argument. Raises Refusal."""
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise Refusal("500 Error: bad syntax") from None
        name, _, argument = text.partition(" ")
        if not name or not name.isascii():
            raise Refusal("500 Error: bad syntax")
        if not text.isprintable():
            # NUL, bare CR, and the characters that make a log or a terminal show what is not there.
            raise Refusal("500 5.5.2 Error: control characters")
        name = name.upper()
        if len(line) > COMMAND_SIZE_LIMIT and name != "AUTH":
            raise Refusal("500 Command line too long")
        if self.require_starttls and not self._tls_protocol and name not in BEFORE_TLS:
            raise Refusal("530 Must issue a STARTTLS command first")
        command = self._by_name.get(name)
        if command is None:
            if len(name) > LONGEST_NAME:
                raise Refusal("500 Command line too long")
            self._refuse_unknown(name)
        self._in_a_group = name in GROUPED
        return command, argument.strip(" ") or None

    def _refuse_unknown(self, name: str) -> NoReturn:
        """So that no browser can be made to speak SMTP between its header lines, there may be a few of these only."""
        self._unknown_commands += 1
        if self._unknown_commands < smtp.BOGUS_LIMIT:
            raise Refusal(f'500 Error: command "{name}" not recognized')
        raise LastRefusal("502 5.5.1 Too many unrecognized commands, goodbye.")

    async def handle_exception(self, error: Exception) -> str:
        assert self.session is not None
        log.error("failed: while talking to %s", self.session.peer, exc_info=error)
        return "451 4.3.0 Internal error, try again later"

    # hello and goodbye

    @smtp.syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str | None) -> None:
        if not hostname:
            raise Refusal("501 Syntax: EHLO hostname")
        await self._greet(hostname)

    async def _greet(self, hostname: str) -> None:
        assert self.session is not None
        self._set_rset_state()
        self.session.extended_smtp = True
        lines = ["250-" + self.hostname, *self._extensions(), "250 HELP"]
        hook = self._handle_hooks.get("EHLO")
        if hook is None:
            self.session.host_name = hostname
        else:
            lines = await hook(self, self.session, self.envelope, hostname, lines)
        self._reply("\r\n".join(lines))

    def _extensions(self) -> list[str]:
        lines = ["250-8BITMIME", "250-SMTPUTF8"]
        if self.data_size_limit:
            lines.insert(0, f"250-SIZE {self.data_size_limit}")
        if self.tls_context and not self._tls_protocol:
            lines.append("250-STARTTLS")
        if self._may_log_in():
            lines.append("250-AUTH LOGIN PLAIN")
        return lines

    @smtp.syntax("QUIT")
    async def smtp_QUIT(self, arg: str | None) -> None:
        if arg:
            raise Refusal("501 Syntax: QUIT")
        self._reply(await self._call_handler_hook("QUIT") if "QUIT" in self._handle_hooks else "221 Bye")
        self._leave()

    @smtp.syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str | None) -> None:
        if arg:
            raise Refusal("501 Syntax: STARTTLS")
        if self._tls_protocol:
            raise Refusal("503 5.5.1 Error: TLS is on already")
        if not self.tls_context:
            raise Refusal("454 TLS not available")
        self._buffer.clear()  # what was sent in the clear behind this, perhaps by somebody on the way
        self._reply("220 Ready to start TLS")
        await self._start_tls()

    # envelopes

    @smtp.syntax("MAIL FROM: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        self._check_ready()
        assert self.envelope is not None
        address, parameters, options = self._split(arg, "FROM:", "MAIL FROM: <address>")
        if self.envelope.mail_from:
            raise Refusal("503 Error: nested MAIL command")
        if 0 < self.limits.message_limit <= self._messages:
            self._hang_up("messages")
            return
        if parameters:
            self._check_mail_parameters(parameters)
        if "MAIL" in self._handle_hooks:
            self._reply(await self._call_handler_hook("MAIL", address, options))
            return
        self.envelope.mail_from = address
        self.envelope.mail_options.extend(options)
        self._reply("250 OK")

    def _check_mail_parameters(self, parameters: dict[str, str | None]) -> None:
        assert self.envelope is not None
        if parameters.pop("BODY", "7BIT") not in ("7BIT", "8BITMIME"):
            raise Refusal("501 Error: BODY can only be one of 7BIT, 8BITMIME")
        if parameters.get("SMTPUTF8") is not None:
            raise Refusal("501 Error: SMTPUTF8 takes no arguments")
        self.envelope.smtp_utf8 = parameters.pop("SMTPUTF8", "") is None
        if "SIZE" in parameters:
            size = parameters.pop("SIZE") or ""
            if not re.fullmatch("[0-9]{1,20}", size):
                raise self._syntax_error("MAIL FROM: <address>")
            if self.data_size_limit and int(size) > self.data_size_limit:
                raise Refusal("552 Error: message size exceeds fixed maximum message size")
        if self._may_log_in():
            parameters.pop("AUTH", None)  # RFC 4954 section 5: to be understood, and not to be believed
        if parameters:
            raise Refusal("555 MAIL FROM parameters not recognized or not implemented")

    @smtp.syntax("RCPT TO: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        self._check_ready()
        assert self.envelope is not None
        if not self.envelope.mail_from:
            raise Refusal("503 Error: need MAIL command")
        address, parameters, options = self._split(arg, "TO:", "RCPT TO: <address>")
        if address == "<>":
            raise Refusal("553 5.1.3 Error: malformed address")
        if parameters:
            raise Refusal("555 RCPT TO parameters not recognized or not implemented")
        if 0 < self.limits.recipient_limit <= len(self.envelope.rcpt_tos):
            raise Refusal("452 4.5.3 Too many recipients")
        if "RCPT" in self._handle_hooks:
            self._reply(await self._call_handler_hook("RCPT", address, options))
            return
        self.envelope.rcpt_tos.append(address)
        self.envelope.rcpt_options.extend(options)
        self._reply("250 OK")

    def _check_ready(self) -> None:
        assert self.session is not None
        if not self.session.host_name:
            raise Refusal(f"503 Error: send {self.greeting} first")
        if self._auth_required and not self.session.authenticated:
            raise Refusal("530 5.7.0 Authentication required")

    def _split(self, arg: str | None, keyword: str, syntax: str) -> tuple[str, dict[str, str | None], list[str]]:
        """Return the address behind FROM: or TO:, its parameters by name, and those as they are. Raises Refusal."""
        assert self.session is not None
        if arg is None or arg[: len(keyword)].upper() != keyword:
            raise self._syntax_error(syntax)
        text = arg[len(keyword) :].strip(" ")
        if not text:
            raise self._syntax_error(syntax)
        found = split_path(text)
        if found is None:
            raise Refusal("553 5.1.3 Error: malformed address")
        address, rest = found
        if not rest:
            return address, {}, []
        parameters: dict[str, str | None] = {}
        options = rest.upper().split()
        for option in options:
            parameter = _PARAMETER.fullmatch(option)
            if parameter is None or not self.session.extended_smtp:
                raise self._syntax_error(syntax)
            parameters[parameter[1]] = parameter[2]
        return address, parameters, options

    def _syntax_error(self, syntax: str) -> Refusal:
        assert self.session is not None
        return Refusal(f"501 Syntax: {syntax}{' [SP <mail-parameters>]' if self.session.extended_smtp else ''}")

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # What aiosmtpd asks for VRFY.
        return split_path(arg) or (None, None)

    # DATA

    @smtp.syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:
        self._check_ready()
        assert self.envelope is not None
        if not self.envelope.rcpt_tos:
            raise Refusal("503 Error: need RCPT command")
        if arg:
            raise Refusal("501 Syntax: DATA")
        self._reply("354 End data with <CR><LF>.<CR><LF>")
        data = await self._receive()
        try:
            replies = self._replies(await self._outcome_of(data))
        except ClientGone:
            raise
        except Exception as error:  # here, and not where commands are: in LMTP each recipient hears of it
            replies = self._replies(await self.handle_exception(error))
        finally:
            data.release()
        if self.transport is None:
            raise ClientGone
        self._set_post_data_state()
        if any(reply.startswith("2") for reply in replies):
            self._commands = self._errors = 0
        self._messages += 1
        self._reply("\r\n".join(replies))

    async def _outcome_of(self, data: MailData) -> str | list[str]:
        assert self.session is not None
        if data.too_large:
            return "552 Error: Too much mail data"
        if data.crowded_out:
            log.warning("refused: %s sent %d bytes while the memory for mail was full", self.session.peer, data.size)
            return "452 4.3.1 Error: Too much mail at the same time, try again later"
        content = await self._content_of(data)
        if self._leaving:  # it was told with 421 meanwhile to send the message again: once is enough
            raise ClientGone
        return self._refusal_of(content) or await self._handle(content)

    def _refusal_of(self, content: bytes) -> str | None:
        assert self.envelope is not None
        header = header_section(content, self.limits.header_size_limit)
        if header is None:
            return "552 5.3.4 Error: The header section is too large"
        if in_a_loop(header, self.envelope.rcpt_tos, self.limits.hop_limit):
            sender, recipients = printable(self.envelope.mail_from), printable(self.envelope.rcpt_tos)
            log.warning("refused: a message from <%s> to %s runs in a loop", sender, recipients)
            return "554 5.4.6 Error: This message runs in a loop"
        return None

    async def _handle(self, content: bytes) -> str | list[str]:
        """Give the message to the receiver. Returns its reply."""
        assert self.envelope is not None
        self.envelope.content = self.envelope.original_content = content
        self._deadline = math.inf  # how long a handler takes is not the client's doing, so its clock stands still
        self._handling = True
        try:
            hook = self._handle_hooks.get("DATA")
            return "250 OK" if hook is None else await hook(self, self.session, self.envelope)
        finally:
            self._handling = False
            if self.transport is None:
                self._forget()  # which was put off until now
            else:
                self._reset_timeout()  # to take the reply is the client's doing again

    def _replies(self, outcome: str | list[str]) -> list[str]:
        assert isinstance(outcome, str), f"handle_DATA has to return one reply, not {outcome!r}"
        return [outcome]


class LMTPProtocol(SMTPProtocol):
    """One client's LMTP connection (RFC 2033). `handle_DATA` returns one reply for each of `envelope.rcpt_tos`."""

    greeting = "LHLO"

    @smtp.syntax("LHLO hostname")
    async def smtp_LHLO(self, hostname: str | None) -> None:
        if not hostname:
            raise Refusal("501 Syntax: LHLO hostname")
        await self._greet(hostname)

    async def smtp_HELO(self, hostname: str | None) -> None:
        self._refuse_unknown("HELO")

    async def smtp_EHLO(self, hostname: str | None) -> None:
        self._refuse_unknown("EHLO")

    def _replies(self, outcome: str | list[str]) -> list[str]:
        assert self.envelope is not None
        recipients = len(self.envelope.rcpt_tos)
        if isinstance(outcome, str):
            return [outcome] * recipients
        assert len(outcome) == recipients, f"handle_DATA returned {len(outcome)} replies for {recipients} recipients"
        return outcome


def _commands_of(cls: type) -> dict[str, Command]:
    return {name.removeprefix("smtp_"): getattr(cls, name) for name in dir(cls) if name.startswith("smtp_")}
