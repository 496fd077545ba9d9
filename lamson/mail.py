"""The two sides of a conversation by mail: `MailRequest` is what came in, `MailResponse` is what goes out.

A handler is given a `MailRequest` and mostly asks it for headers and text. Nothing of it is decoded before somebody
asks, and nothing is changed in it that nobody changed: forwarding it sends the bytes that arrived.

    >>> raw = b"From: Zoe <zoe@example.com>\\nTo: list@example.org\\nSubject: =?utf-8?q?caf=C3=A9?=\\n\\nHi.\\n"
    >>> request = MailRequest("127.0.0.1", "zoe@example.com", "list@example.org", raw)
    >>> request["subject"], request.body(), request.route_to
    ('café', 'Hi.\\n', {'list@example.org'})
    >>> request.as_bytes() == raw
    True

A `MailResponse` is made of a plain body, an HTML body, both, and attachments, and knows how to be sent.

    >>> response = request.reply(Body="Hello.\\n")
    >>> response["To"], response["Subject"]
    ('Zoe <zoe@example.com>', 'Re: café')
    >>> response.attach("menu.txt", data="Tea: 2 €\\n")
"""

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from lamson import addresses, encoding
from lamson.encoding import MailBase
from lamson.message import WithHeaders
from lamson.plaintext import leaves, text_of
from lamson.response import MailResponse

if TYPE_CHECKING:
    from lamson.bounce import BounceAnalyzer

__all__ = ["MAX_REFERENCES", "ROUTABLE_TO_HEADER", "Attachment", "MailRequest", "MailResponse"]

# The header that recipients are taken from when there is no envelope. Mail that another server delivered into a
# maildir has them in 'Delivered-To'.
ROUTABLE_TO_HEADER = "to"

# How many Message-IDs a reply refers to: the first, and the last ones. Threads can be endless, headers cannot.
MAX_REFERENCES = 30

_REPLY_PREFIX = re.compile(r"(?:re|aw|sv|antw|vs)(?:\[\d+\])?\s*:", re.I)
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")


class Attachment(NamedTuple):
    """A file in a message: its name (None when it has none), its content type, its bytes."""

    name: str | None
    type: str
    data: bytes


class MailRequest(WithHeaders):
    """A message that came in.

    `Peer` is whoever delivered it, `From` and `To` are the envelope's sender and recipient (one, or a list), or None
    to take them from the headers; an empty `From` is the sender of bounces, ``<>``. `Data` is the message, bytes or
    text, and stays as `original`. None of it has to make sense: a request never raises for what a stranger sent.
    """

    def __init__(self, Peer: Any, From: str | None, To: str | list[str] | None, Data: str | bytes):
        self.Peer = Peer
        self.original = Data
        self._from = From
        self._to = To
        self._base: MailBase | None = None
        # The address that the Router is running handlers for at the moment, bare and in lower case.
        self.recipient: str | None = None

    @property
    def envelope(self) -> tuple[str | None, list[str] | None]:
        """The sender and the recipients of the envelope, as they were given; None for what was not.

        Handlers run once for each recipient. While they do, it is the envelope of that one's copy: what they queue or
        relay is nobody else's.
        """
        recipients = [self._to] if isinstance(self._to, str) else self._to and list(self._to)
        if self.recipient is not None:
            own = [each for each in recipients or () if addresses.bare_address(each).lower() == self.recipient]
            recipients = own or [self.recipient]
        return self._from, recipients

    # Headers

    @property
    def base(self) -> MailBase:  # type: ignore[override]
        """The message as `lamson.encoding.MailBase`. It has From and To, if need be those of the envelope."""
        if self._base is None:
            base = self._base = encoding.from_string(self.original or b"")
            if self._from is not None and "From" not in base.headers:
                base.headers.fill("From", self._from)
            if self._to is not None and "To" not in base.headers and ROUTABLE_TO_HEADER not in base.headers:
                recipients = self._to if isinstance(self._to, str) else ", ".join(map(str, self._to))
                base.headers.fill(encoding.normalize_header(ROUTABLE_TO_HEADER), recipients)
        return self._base

    def changed_addresses(self, name: str) -> list[str]:
        """The addresses that somebody has put into a header since the message came in, as a handler of a mailing list
        does with To. Empty when the header names those that it came with, or nobody."""
        if self._base is None or not self._base.headers.is_set(name):
            return []
        found = [address for _, address in addresses.parse(self._base[name] or "") if address]
        came = encoding.from_string(self.original or b"")[name] or ""
        return found if set(addresses.bare(came)) != {address.lower() for address in found} else []

    # Routing

    @property
    def From(self) -> str | None:
        """The envelope's sender as it was given; the From header when none was."""
        return self.base["from"] if self._from is None else self._from

    @From.setter
    def From(self, value: str | None) -> None:
        self._from = value

    @property
    def To(self) -> Any:
        """The envelope's recipients as they were given; the header called `ROUTABLE_TO_HEADER` when none were."""
        if self._to is not None:
            return self._to
        values = self.base.get_all(ROUTABLE_TO_HEADER)
        return ", ".join(values) if values else None

    @To.setter
    def To(self, value: str | list[str] | None) -> None:
        self._to = value

    @property
    def route_to(self) -> set[str]:
        """The recipients as bare addresses in lower case."""
        recipients = self.To
        if isinstance(recipients, str):
            return set(addresses.bare(recipients))
        return {addresses.bare_address(str(recipient)).lower() for recipient in recipients or ()} - {""}

    @property
    def route_from(self) -> str | None:
        """The sender as one bare address in lower case; None when there is none, as for bounces."""
        if self._from is not None:
            return addresses.bare_address(self._from).lower() or None
        found = addresses.bare(self.From or "")
        return found[0] if found else None

    # Content

    def body(self) -> str | bytes | None:
        """The text of the message: its body, or of a message with parts the first text in them that is no file.

        When there is no text, it is the body of the first part, which may be bytes; None when there is nothing.
        """
        if not self.base.parts:
            return self.base.body
        parts = [part for part in leaves(self.base) if not part.parts] or list(self.walk())
        texts = (part for part in parts if not part.is_attachment)
        first = next(texts, parts[0] if parts else None)
        return None if first is None else first.body

    def all_parts(self) -> list[MailBase]:
        """The parts the message consists of, each of which may have `parts` of its own; empty when it has none."""
        return self.base.parts

    def walk(self) -> Iterator[MailBase]:
        """Every part of the message, and their parts."""
        return self.base.walk()

    def text(self) -> str:
        """The message as plain text, whatever it was sent as: the plain text in it, or else its HTML as text.
        Attachments are left out; "" when there is no text."""
        return text_of(self.base, top=True)

    def html(self) -> str | None:
        """The HTML of the message; None when it has none."""
        for part in leaves(self.base):
            if part.content_type == "text/html" and not part.is_attachment:
                return str(part.body)
        return None

    def attachments(self) -> list[Attachment]:
        """The files in the message. A message that is attached is one file, with its own files inside."""
        return [
            Attachment(part.filename, part.content_type, part.content)
            for part in leaves(self.base)
            if part.is_attachment
        ]

    # Answering

    def reply(self, Body: str | None = None, Html: str | None = None, From: str | None = None) -> "MailResponse":
        """A `MailResponse` to whoever wants the answer (Reply-To, or else From), in the same thread, RFC 5322 section
        3.6.4. It is from the address this message was sent to, unless `From` says otherwise. To is missing when
        the message names nobody to answer; ask `is_auto_reply` before you answer anyone."""
        recipient = next((value for value in (self["Reply-To"], self["From"]) if addresses.bare(value or "")), None)
        if From is None:
            routes = self.route_to
            named = addresses.bare(self["To"] or "") + addresses.bare(self["Cc"] or "")
            named = [address for address in [*named, *sorted(routes)] if address in routes]
            From = self.recipient or next(iter(named), None)
        subject = self["Subject"] or ""
        if not _REPLY_PREFIX.match(subject):
            subject = f"Re: {subject}".strip()
        response = MailResponse(To=recipient, From=From, Subject=subject, Body=Body, Html=Html)
        message_id = next(iter(_MESSAGE_ID.findall(self["Message-Id"] or "")), None)
        references = _MESSAGE_ID.findall(self["References"] or self["In-Reply-To"] or "")
        references = [each for each in references if each != message_id]
        if message_id is not None:
            response["In-Reply-To"] = message_id
            references.append(message_id)
        if references:
            response["References"] = " ".join(dict.fromkeys([references[0], *references[1:][-MAX_REFERENCES + 1 :]]))
        return response

    @functools.cached_property
    def bounce(self) -> "BounceAnalyzer":
        """What the message says about mail that did not arrive; see `lamson.bounce`."""
        from lamson import bounce  # most mail is never asked

        return bounce.detect(self)

    def is_bounce(self, threshold: float = 0.3) -> bool:
        """True when the message reports that mail did not arrive: its `bounce` scores more than `threshold`."""
        return self.bounce.probable(threshold)

    def is_auto_reply(self) -> bool:
        """True for mail that no person wrote: bounces, vacation notices and other automatic answers (RFC 3834), and
        bulk mail. Answering it could make two robots answer each other for ever."""
        if self._from is not None and not addresses.bare(self._from):
            return True
        if any(not addresses.bare(path) for path in self.get_all("Return-Path")):
            return True
        if any(value.partition(";")[0].strip().lower() not in ("", "no") for value in self.get_all("Auto-Submitted")):
            return True
        if (self["Precedence"] or "").strip().lower() in ("bulk", "junk", "auto_reply", "auto-reply"):
            return True
        if any(name in self for name in _ROBOT_HEADERS):
            return True
        if _ANSWER_SUPPRESSED.search(self["X-Auto-Response-Suppress"] or ""):
            return True
        if self.base.content_type == "multipart/report":
            return True
        return (self.route_from or "").partition("@")[0] in _ROBOTS

    # Writing

    def as_bytes(self) -> bytes:
        """What goes on the wire or the disk: the bytes that came in. After a header was changed they differ in that
        header only; what was changed of the body is written anew."""
        if self._base is None or not self._base.is_changed():
            return encoding.to_bytes(self.original or b"")
        return self._base.as_bytes()

    def to_message(self) -> encoding.MIMEPart:
        """The canonical form of the message as Python's `email.message`."""
        return encoding.to_message(self.base)

    def __str__(self) -> str:
        """The canonical text of the message: decoded and written anew, lines ending in \\n."""
        return encoding.to_string(self.base)

    def __repr__(self) -> str:
        return f"<MailRequest from {self._from!r} to {self._to!r}, {len(self.original or b'')} long>"


_ROBOT_HEADERS = (
    "X-Autoreply", "X-Auto-Reply", "X-Autorespond", "X-Autoresponder", "X-Autoreply-From", "X-Mail-Autoreply",
    "X-Autogenerated", "X-Vacation", "X-Fc-Machinegenerated", "X-Cron-Env", "X-Failed-Recipients",
)  # fmt: skip
_ANSWER_SUPPRESSED = re.compile(r"\b(?:all|oof|autoreply)\b", re.I)
_ROBOTS = {"mailer-daemon", "postmaster-daemon", "double-bounce"}
