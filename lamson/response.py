"""`MailResponse`: a message to send, of text, HTML and attachments. `lamson.mail` has it too."""

import email.utils
import functools
import mimetypes
import os
import re
import time
from email.message import Message
from typing import Any

from lamson import addresses, encoding
from lamson.encoding import MailBase
from lamson.errors import MisuseError
from lamson.fields import copy_encoding
from lamson.message import WithHeaders

_DOMAIN = re.compile(r"[a-z0-9.-]+")


class MailResponse(WithHeaders):
    """A message to send: headers used as in a dictionary, `Body` (plain text), `Html`, and attachments.

    Whatever it is given is kept as it is until the message is written, which may be done again and again and gives
    the same each time. Date and Message-ID are added when they are missing. Headers and file names with a line break
    in them are refused with `lamson.encoding.HeaderError`: they would let somebody write headers of their own.
    """

    def __init__(
        self,
        To: str | list[str] | None = None,
        From: str | None = None,
        Subject: str | None = None,
        Body: str | None = None,
        Html: str | None = None,
    ):
        self.Body = Body
        self.Html = Html
        self.base = MailBase([("To", To), ("From", From), ("Subject", Subject)])
        self.attachments: list[MailBase] = []
        self._written_as: str | None = (
            None  # the kind of multipart that it was the last time, when nobody asked for one
        )

    @property
    def multipart(self) -> bool:
        """True when the message will have parts."""
        return bool(self.attachments) or (self.Body is not None and self.Html is not None)

    def update(self, message: Any) -> None:
        """Takes over the headers of another message or dictionary."""
        for name in message.keys():
            value = message[name]
            # A header of email.message still has the line breaks it was folded with.
            unfolded = encoding.properly_decode_header(str(value)) if isinstance(message, Message) else value
            self.base[name] = unfolded

    # Attachments

    def attach(
        self,
        filename: str | os.PathLike[str] | None = None,
        content_type: str | None = None,
        data: str | bytes | None = None,
        disposition: str | None = None,
    ) -> None:
        """Attaches a file, or text without a name.

        With `data`, `filename` is only the name it gets; without, it is the path of the file, which is read now.
        The content type is guessed from the name when it is not given. `disposition` is ``attachment`` unless it is
        given as ``inline``. Raises `MisuseError` when the file is not there or cannot be read, when neither is given,
        or when the content type cannot be guessed; `HeaderError` for a name with a line break.
        """
        if filename is None and data is None:
            raise MisuseError("Nothing to attach: give attach() a filename, or data.")
        name = os.path.basename(os.fspath(filename)) if filename is not None else None
        if data is None and filename is not None:
            try:
                with open(filename, "rb") as file:
                    data = file.read()
            except OSError as error:
                raise MisuseError(
                    f"Cannot attach {os.fspath(filename)!r}, and no data was given: {error.strerror}"
                ) from error
        if content_type is None:
            content_type = mimetypes.guess_type(name or "")[0]
        if content_type is None:
            raise MisuseError(f"Cannot tell the type of {name!r} from its name: give attach() a content_type.")
        holder = MailBase()
        if name:
            holder.attach_file(name, data or b"", content_type, disposition)
        else:
            holder.attach_text(data or b"", content_type)
        self.attachments += holder.parts

    def attach_part(self, part: MailBase) -> None:
        """Attaches a part of another message, as `MailRequest.all_parts` gives them."""
        self.attachments.append(part)

    def attach_all_parts(self, mail_request: Any) -> None:
        """Attaches all parts of a message, and takes over what kind of multipart it was."""
        for part in mail_request.all_parts():
            self.attach_part(part)
        self.base.content_encoding = copy_encoding(mail_request.base.content_encoding)
        self._written_as = None

    def clear(self) -> None:
        """Takes off all attachments, and keeps the rest."""
        self.attachments.clear()
        self.base.parts.clear()

    def all_parts(self) -> list[MailBase]:
        """The parts the message will be written with."""
        return self._built().parts

    # Writing

    def to_message(self) -> encoding.MIMEPart:
        """The message as Python's `email.message`."""
        return encoding.to_message(self._built())

    def as_bytes(self) -> bytes:
        """What goes on the wire or the disk, its lines ending in CRLF."""
        return self._built().as_bytes()

    def __str__(self) -> str:
        """The text of the message, its lines ending in \\n."""
        return encoding.to_string(self._built())

    def _built(self) -> MailBase:
        """`base` with everything in its place."""
        base = self.base
        if "Date" not in base:
            base["Date"] = _date(int(time.time()))
        if "Message-Id" not in base:
            sender = next(iter(addresses.bare(base["From"] or "")), "")
            domain = sender.rpartition("@")[2]
            base["Message-ID"] = email.utils.make_msgid(domain=domain if _DOMAIN.fullmatch(domain) else "localhost")
        texts = [(self.Body, "text/plain"), (self.Html, "text/html")]
        given = [_text_part(text, kind) for text, kind in texts if text is not None]
        content_type, parameters = base.content_encoding["Content-Type"]
        multipart = content_type if content_type and content_type.startswith("multipart/") else None
        if not self.attachments and len(given) < 2:
            base.parts = []
            base.body = given[0].body if given else None
            if given:
                kind = given[0].content_type
                base.content_encoding["Content-Type"] = (kind, {} if multipart else parameters)
            elif multipart:
                base.content_encoding["Content-Type"] = (None, {})
            return base
        if multipart == self._written_as:
            multipart = None  # it may have got its first attachment since
        base.body = None
        if len(given) == 2:
            if self.attachments:
                both = MailBase()
                both.content_encoding["Content-Type"] = ("multipart/alternative", {})
                both.parts = given
                given = [both]
            else:
                multipart = "multipart/alternative"
        elif given:
            multipart = "multipart/mixed"
        multipart = multipart or "multipart/mixed"
        if multipart != content_type:
            base.content_encoding["Content-Type"] = (multipart, {})
            self._written_as = multipart
        base.parts = [*given, *self.attachments]
        return base


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    """The Date of all messages of one second, which is costly to write."""
    return email.utils.formatdate(second, localtime=True)


def _text_part(text: str | bytes, kind: str) -> MailBase:
    part = MailBase()
    part.body = text if isinstance(text, str) else encoding.attempt_decoding("utf-8", text)
    part.content_encoding["Content-Type"] = (kind, {})
    return part
