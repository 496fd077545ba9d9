"""Sending mail on: `Relay`.

    relay = Relay("localhost", 25)
    relay.deliver(message)                      # the other server has it when this returns, or it raises

A request that nobody changed leaves as the bytes that came in. Only where these would be dangerous are they touched: a
dot that follows a line end of half a CRLF. Another server might take it for the end of the message, and what follows
for commands (SMTP smuggling), so the whole CRLF is sent there.
"""

import contextlib
import email.utils
import logging
import re
import smtplib
from collections.abc import Iterator
from typing import Any

import dns.exception
import dns.resolver

from lamson.logs import message_id
from lamson.mail import MailRequest, MailResponse, bare_address

log = logging.getLogger(__name__)

RELAY_TIMEOUT = 60  # seconds that a relay may keep silent

_HALF_LINE_END_AND_DOT = re.compile(rb"(?:(?<!\r)\n|\r(?!\n))(?=\.)")


class Relay:
    """Sends mail on to another server: a smart host, or the domain's own when `host` is None.

    `ssl` speaks TLS from the first byte, `starttls` asks for it; `username` and `password` log in. `debug` 1 prints the
    conversation to stderr.
    """

    def __init__(
        self,
        host: str | None = "127.0.0.1",
        port: int = 25,
        username: str | None = None,
        password: str | None = None,
        ssl: bool = False,
        starttls: bool = False,
        debug: int = 0,
    ):
        self.hostname = host
        self.port = port
        self.username = username
        self.password = password
        self.ssl = ssl
        self.starttls = starttls
        self.debug = debug

    def __repr__(self) -> str:
        return f"<Relay to ({self.hostname}:{self.port})>"

    def deliver(self, message: Any, To: str | list[str] | None = None, From: str | None = None) -> None:
        """Send a MailRequest, MailResponse or `email.message.Message`. Returns when the other server has taken it.

        Without `To` a request goes to the recipient it is being handled for, or to those of its envelope, and anything
        else to its To, Cc and Bcc headers. Without `From` the sender is that of the envelope or the From header.
        Raises `smtplib.SMTPException` (the server refused; SMTPRecipientsRefused names those it did not take) or
        OSError (it could not be reached).
        """
        recipients = _recipients(message, To)
        sender = _sender(message, From)
        if not recipients:
            raise ValueError("The message has no recipient: give To, or a message with a To header.")
        content = _content(message)
        if self.hostname:
            self._send(self.hostname, sender, recipients, content)
        else:
            for recipient in recipients:
                self._send(self.resolve_relay_host(recipient), sender, [recipient], content)
        log.info("relayed: %s from <%s> to %s", message_id(message), sender, recipients)

    def _send(self, host: str, sender: str, recipients: list[str], content: bytes) -> None:
        with self._connect(host) as connection:
            options = []
            if not content.isascii() and connection.has_extn("8bitmime"):
                options.append("BODY=8BITMIME")
            if connection.has_extn("smtputf8"):
                if _needs_smtputf8(sender, recipients, content):
                    options.append("SMTPUTF8")
            else:
                sender, *recipients = map(_in_ascii, [sender, *recipients])
            refused = connection.sendmail(sender, recipients, content, options)
        if refused:
            raise smtplib.SMTPRecipientsRefused(refused)

    @contextlib.contextmanager
    def _connect(self, host: str) -> Iterator["_Connection"]:
        connection = (_TLSConnection if self.ssl else _Connection)(timeout=RELAY_TIMEOUT)
        connection.set_debuglevel(self.debug)
        try:
            connection._host = host  # type: ignore[attr-defined]  # connect() does not set the name that TLS checks
            code, text = connection.connect(host, self.port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, text)
            connection.ehlo_or_helo_if_needed()
            if self.starttls:
                connection.starttls()
                connection.ehlo()
            if self.username:
                connection.login(self.username, self.password or "")
            yield connection
            # The message is taken: a server that is gone before QUIT changes nothing about that.
            with contextlib.suppress(smtplib.SMTPException, OSError):
                connection.quit()
        finally:
            connection.close()

    def resolve_relay_host(self, To: str) -> str:
        """Return the host that takes mail for the address `To` (RFC 5321 section 5.1): its best MX, or its domain.

        Raises OSError when the name service cannot be asked, or says that the domain takes no mail (RFC 7505).
        """
        domain = email.utils.parseaddr(To)[1].rpartition("@")[2]
        if domain.lower() == "localhost":  # RFC 6761: never asked for in the name service
            return domain
        try:
            answer = dns.resolver.resolve(domain, "MX")
        except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
            return domain
        except dns.exception.DNSException as error:
            raise OSError(f"cannot find out which host takes mail for {domain}: {error}") from error
        best = min(answer, key=lambda record: record.preference).exchange.to_text(omit_final_dot=True)
        if best in ("", "."):
            raise OSError(f"{domain} takes no mail")
        return best

    def send(self, To: str, From: str, Subject: str, Body: str) -> None:
        """Send a plain text. Raises as `deliver` does."""
        self.deliver(MailResponse(To=To, From=From, Subject=Subject, Body=Body))

    def reply(self, original: MailRequest, From: str, Subject: str, Body: str) -> None:
        """Send a plain text to the sender of `original`. Raises as `deliver` does."""
        self.send(To=original["from"] or "", From=From, Subject=Subject, Body=Body)


def _recipients(message: Any, To: str | list[str] | None) -> list[str]:
    if To is None and isinstance(message, MailRequest):
        To = message.envelope[1]
    if To is None:
        To = ", ".join(message[name] for name in ("To", "Cc", "Bcc") if message[name])
    if isinstance(To, str):
        To = [address for _, address in email.utils.getaddresses([To]) if address]
    return list(dict.fromkeys(map(bare_address, To)))


def _sender(message: Any, From: str | None) -> str:
    if From is None and isinstance(message, MailRequest):
        From = message.envelope[0]
    return email.utils.parseaddr(str(message["From"] or ""))[1] if From is None else bare_address(From)


def _content(message: Any) -> bytes:
    """The bytes to send: those of the message, without the Bcc that only its writer is to see."""
    content = message.as_bytes()
    if not isinstance(message, MailRequest) and message["Bcc"]:
        copy = MailRequest("relay", None, None, content)
        del copy["Bcc"]
        content = copy.as_bytes()
    return content


class _Connection(smtplib.SMTP):
    """smtplib's client, but it sends the bytes it is given."""

    def data(self, msg: Any) -> tuple[int, bytes]:
        self.putcmd("data")
        code, text = self.getreply()
        if code != 354:
            raise smtplib.SMTPDataError(code, text)
        self.send(on_the_wire(msg))
        return self.getreply()


class _TLSConnection(smtplib.SMTP_SSL, _Connection):
    pass


def on_the_wire(content: bytes) -> bytes:
    """The message as it follows DATA: lines of CRLF, the dots of transparency (RFC 5321 section 4.5.2), and the end.

    Text with the line ends of files (LF and no CRLF) gets those of the wire. Otherwise line ends stay as they are, but
    for those in front of a dot, see above.
    """
    if b"\r\n" not in content:
        content = content.replace(b"\n", b"\r\n")
    if b"\n." in content or b"\r." in content or content.startswith(b"."):
        content = _HALF_LINE_END_AND_DOT.sub(b"\r\n", content).replace(b"\r\n.", b"\r\n..")
        if content.startswith(b"."):
            content = b"." + content
    return content + (b".\r\n" if content.endswith(b"\r\n") or not content else b"\r\n.\r\n")


def _needs_smtputf8(sender: str, recipients: list[str], content: bytes) -> bool:
    """Whether addresses or headers are in UTF-8 (RFC 6531 section 3.4); headers in some 8-bit charset are not."""
    if not all(map(str.isascii, [sender, *recipients])):
        return True
    headers = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0]
    if headers.isascii():
        return False
    try:
        headers.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _in_ascii(address: str) -> str:
    """The address for a server without SMTPUTF8: its domain in ASCII (RFC 5890). There is no such local part."""
    local, at, domain = address.rpartition("@")
    try:
        address = local + at + (domain if domain.isascii() else domain.encode("idna").decode("ascii"))
    except UnicodeError as error:
        raise ValueError(f"The domain of {address!r} cannot be written in ASCII: {error}") from error
    if not address.isascii():
        raise smtplib.SMTPNotSupportedError(f"The relay does not speak SMTPUTF8, which the address {address} needs.")
    return address
