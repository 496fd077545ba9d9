"""The commands that send mail to a server: send, sendmail and blast. See `lamson.commands`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

from lamson import args
from lamson.args import Port
from lamson.mailboxes import mails_in
from lamson.terminal import misused, refuse, with_progress

NOBODY = ("", "<>")  # the sender of bounces
TEMPORARY_FAILURE, UNAVAILABLE, USAGE = 75, 69, 64  # what sendmail exits with, from <sysexits.h>


def send_command(
    port: Port = 8825,
    host: str = "127.0.0.1",
    username: str | None = None,
    password: str | None = None,
    ssl: bool = False,
    starttls: bool = False,
    debug: int = 1,
    *,
    sender: str,
    to: str,
    subject: str = "",
    body: str = "",
    attach: str | None = None,
) -> None:
    """Sends one mail to a server, and shows what the two say to each other.

    Options:
        -port NUMBER: the server's port
        -host HOST: the server's host
        -username NAME: log in with this name
        -password WORD: log in with this password
        -ssl: speak TLS from the start
        -starttls: change to TLS before anything else is said; any certificate will do
        -debug LEVEL: 0 shows nothing
        -sender ADDRESS: who the mail is from
        -to ADDRESS: who it is for, several separated by commas
        -subject TEXT: its subject
        -body TEXT: its text
        -attach FILE: a file to go with it
    """
    import mimetypes

    from lamson import addresses
    from lamson.conversation import reason
    from lamson.errors import LamsonError
    from lamson.mail import MailResponse
    from lamson.relay import Relay, unverified_context

    if not addresses.bare(sender) and sender not in NOBODY:
        misused("send", f"-sender takes an address, not {sender!r}")
    if not addresses.bare(to):
        misused("send", f"-to takes an address, not {to!r}")
    # Made for trying a server of one's own, whose certificate nobody has signed.
    tls = unverified_context() if ssl or starttls else False
    relay = Relay(host, port, username, password, ssl and tls, starttls and tls, _smtplib_level(debug))
    try:
        message = MailResponse(To=to, From=sender, Subject=subject, Body=body)
        if attach:
            kind = mimetypes.guess_type(attach)[0] or "application/octet-stream"
            message.attach(filename=attach, content_type=kind, disposition="attachment")
        with _conversation():
            relay.deliver(message)
    except (OSError, ValueError, LamsonError) as error:
        refuse(reason(error, relay)[1])


def sendmail_command(
    port: Port = 8825,
    host: str = "127.0.0.1",
    debug: int = 0,
    TRAILING: Sequence[str] = (),
    f: str | None = None,
    t: bool = False,
) -> None:
    """Sends the mail on standard input to a server, as the program sendmail does.

    Name it in your muttrc: set sendmail="lamson sendmail -port 8825 -host 127.0.0.1". Sendmail's other options that
    mail programs use (-i, -oi, -oem, -B8BITMIME, -F NAME and so on) are accepted, and change nothing.

    The mail is sent as it is, only without its Bcc header. Exits as sendmail does: with 0 when the server has taken the
    mail, 75 when it may take it later, 69 when it refuses it, 64 when there is no recipient.

    Options:
        -port NUMBER: the server's port
        -host HOST: the server's host
        -debug LEVEL: 1 shows the conversation
        -- RECIPIENT ...: who it is for
        -f ADDRESS: who it is from, when not the one in its From header
        -t: send it to those in its To, Cc and Bcc headers
    """
    import re
    from email.utils import getaddresses, parseaddr

    from lamson.conversation import reason
    from lamson.mail import MailRequest
    from lamson.server import Relay

    # A program on this machine writes the line ends of files. SMTP has no others than these (RFC 5321 section 2.3.8).
    content = re.sub(rb"\r\n|\n|\r", b"\r\n", sys.stdin.buffer.read())
    headers = MailRequest("sendmail", None, None, content)
    recipients = list(TRAILING)
    if t:
        fields = [value for name in ("To", "Cc", "Bcc") if (value := headers[name])]
        recipients += [address for _, address in getaddresses(fields) if address]
    if not recipients:
        refuse("there is no recipient", USAGE)
    sender = parseaddr(headers["From"] or "")[1] if f is None else f.strip("<>")
    message = MailRequest("sendmail", sender, recipients, content)
    if "Bcc" in message:
        del message["Bcc"]
    relay = Relay(host, port, debug=_smtplib_level(debug))
    try:
        with _conversation():
            relay.deliver(message, To=recipients, From=sender)
    except (OSError, ValueError) as error:
        temporary, why = reason(error, relay)
        refuse(why, TEMPORARY_FAILURE if temporary else UNAVAILABLE)


def rewrite_sendmail(argv: Sequence[str]) -> list[str]:
    """Take sendmail's own options out of a command line for `sendmail_command`, and part those it keeps from values."""
    known = args.options_of(sendmail_command)
    kept: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        letter, value = token[1:2], token[2:]
        if token == "--":
            return [*kept, token, *tokens]
        if not token.startswith("-") or token.lstrip("-").partition("=")[0] in known:
            kept.append(token)
        elif letter in ("f", "r"):
            kept += ["-f", value or (tokens.pop(0) if tokens else "")]
        elif letter in ("F", "N", "R", "V", "X") and not value:
            del tokens[:1]
        elif set(token[1:]) <= set("itmnv"):
            kept += ["-t"] if "t" in token else []
        elif letter not in ("F", "N", "R", "V", "X", "o", "b", "B", "e", "q"):
            kept.append(token)
    return kept


def blast_command(input: str, host: str = "127.0.0.1", port: Port = 8823, debug: int = 0) -> None:
    """Sends every mail of a Maildir or mbox to a server.

    A mail goes to the recipients it was queued for, or else to those in its To, Cc and Bcc headers. Exits with 1 when
    some were refused, after sending the others.

    Options:
        -input DIR: the Maildir, or the file in mbox format
        -host HOST: the server's host
        -port NUMBER: the server's port
        -debug LEVEL: 1 shows the conversations
    """
    from smtplib import SMTPException

    from lamson.conversation import reason
    from lamson.server import Relay

    relay = Relay(host, port, debug=_smtplib_level(debug))
    sent, refused = 0, 0
    for key, message in with_progress(*mails_in(input)):
        try:
            with _conversation():
                relay.deliver(message)
            sent += 1
        except (SMTPException, ValueError) as error:
            refused += 1
            print(f"lamson: {key}: {reason(error)[1]}", file=sys.stderr)
        except OSError as error:
            refuse(f"{reason(error, relay)[1]} ({sent} mails had been sent)")
    print(f"Sent {sent} mails to {host}:{port}.")
    if refused:
        refuse(f"{refused} mails were refused")


@contextmanager
def _conversation() -> Iterator[None]:
    """Print what a relay with debug 1 says and is told, for people, without passwords."""
    from lamson.conversation import Conversation

    with redirect_stderr(Conversation(sys.stdout, sys.stderr)):
        yield


def _smtplib_level(debug: int) -> int:
    return min(debug, 1)  # the higher levels of smtplib only add the time to each line
