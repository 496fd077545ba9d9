"""A conversation with an SMTP server, as people want to read it: what was said, and why a mail was not taken.

    relay = Relay(host, port, debug=1)
    try:
        with redirect_stderr(Conversation(sys.stdout, sys.stderr)):
            relay.deliver(message)                  # prints: send: mail FROM:<me@example.com>
    except (OSError, ValueError) as error:
        temporary, why = reason(error, relay)       # True, "cannot send to localhost:25: Connection refused"

Passwords are never shown.
"""

import ast
import io
import smtplib
import ssl
from typing import TextIO

from lamson.server import Relay


class Conversation(io.TextIOBase):
    r"""Takes what smtplib writes to stderr, and writes the lines of the conversation to `output`.

        send: 'ehlo me\r\n'                          ->   send: ehlo me
        reply: b'250-SIZE 1000\r\n'                  ->   reply: 250-SIZE 1000
        send: 'AUTH PLAIN AHoAcw==\r\n'              ->   send: AUTH PLAIN (secret)

    What is none of it goes to `other`. Of a long message only the beginning is shown.
    """

    LINES = 40

    def __init__(self, output: TextIO, other: TextIO):
        self.output = output
        self.other = other
        self.rest = ""
        self.secret = False

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.show(line)
        return len(text)

    def show(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "send:":
            self.show_sent(_unquoted(rest))
        elif word == "reply:" and rest.startswith(("b'", 'b"')):
            reply = _unquoted(rest)
            self.secret = self.secret and reply.startswith("334")
            self.show_lines("reply: ", reply.splitlines())
        elif word == "connect:" and rest.startswith("to "):
            self.output.write(line.rpartition(" ")[0] + "\n")
        elif word not in ("reply:", "connect:", "data:"):
            self.other.write(line + "\n")

    def show_sent(self, text: str) -> None:
        verb, mechanism, *_ = [*text.split(" "), ""]
        if verb.upper() == "AUTH":
            self.secret = True
            text = f"{verb} {mechanism} (secret)"
        elif self.secret:
            text = "(secret)"
        self.show_lines("send: ", text.splitlines())

    def show_lines(self, prefix: str, lines: list[str]) -> None:
        for line in lines[: self.LINES]:
            self.output.write(f"{prefix}{line}\n")
        if len(lines) > self.LINES:
            self.output.write(f"{prefix}({len(lines) - self.LINES} more lines)\n")


def reason(error: Exception, relay: Relay | None = None) -> tuple[bool, str]:
    """Return whether it may go better later, and what to tell: what the server said, or why it cannot be reached."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        replies = list(error.recipients.values())
        told = (f"{address}: {_reply(*reply)}" for address, reply in error.recipients.items())
        return all(code < 500 for code, _ in replies), f"refused: {'; '.join(told)}"
    if isinstance(error, smtplib.SMTPResponseException):
        return error.smtp_code < 500, f"refused: {_reply(error.smtp_code, error.smtp_error)}"
    if isinstance(error, smtplib.SMTPException):
        return not isinstance(error, smtplib.SMTPNotSupportedError), str(error)
    if isinstance(error, OSError) and relay is not None and error.filename is None:
        where = f"{relay.hostname}:{relay.port}"
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return False, f"cannot send to {where}: it does not begin with TLS. Leave out -ssl, or try -starttls"
        hint = f". Is the server running on port {relay.port}?" if isinstance(error, ConnectionRefusedError) else ""
        return True, f"cannot send to {where}: {error.strerror or error}{hint}"
    if isinstance(error, OSError) and error.filename is not None:
        return False, f"{error.filename}: {error.strerror}"
    return False, str(error)


def _reply(code: int, text: bytes | str) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return f"{code} {' '.join(text.split())}"


def _unquoted(literal: str) -> str:
    value = ast.literal_eval(literal)
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
