"""Mail in, clean Unicode out; Unicode in, clean mail out.

This is the one place where bytes become text and text becomes bytes. What comes in may be anything: `from_string`
never raises, and writes down in `MailBase.defects` what it had to put up with. What goes out is as simple as mail
can be: ASCII where it fits, UTF-8 where it does not, in headers, names in addresses, file names and bodies alike.

    >>> mail = from_string(b"Subject: =?iso-8859-1?q?caf=E9?=\\nReceived: a\\nReceived: b\\n\\nHi.\\n")
    >>> mail["subject"], mail.get_all("received"), mail.body
    ('café', ['a', 'b'], 'Hi.\\n')
    >>> print(to_string(mail), end="")
    Subject: =?utf-8?b?Y2Fmw6k=?=
    Received: a
    Received: b
    <BLANKLINE>
    Hi.

`MailBase` is a message or a part of one. The functions turn it from and into bytes, text, files and Python's own
`email.message`, and do the same for single headers.
"""

import email.parser
import email.policy
import io
import re
from collections.abc import Callable
from email.charset import Charset
from email.message import Message
from email.mime.base import MIMEBase
from typing import IO, Any

from lamson import headers as header_values
from lamson import transfer
from lamson.charsets import attempt_decoding, guess_encoding_and_decode
from lamson.defects import Defect
from lamson.errors import EncodingError
from lamson.fields import CONTENT_KEYS, Headers, normalize_header
from lamson.headers import HeaderError
from lamson.mime import MAX_DEPTH, MailBase

__all__ = [
    "CONTENT_ENCODING_KEYS", "CONTENT_ENCODING_REMOVED_PARAMS", "VALUE_IS_EMAIL_ADDRESS", "Defect", "EncodingError",
    "HeaderError", "Headers", "MIMEPart", "MailBase", "apply_charset_to_header", "attempt_decoding", "from_file",
    "from_message", "from_string", "guess_encoding_and_decode", "header_from_mime_encoding", "header_to_mime_encoding",
    "normalize_header", "parse_parameter_header", "properly_decode_header", "properly_encode_header", "to_file",
    "to_message", "to_string",
]  # fmt: skip

CONTENT_ENCODING_KEYS = set(CONTENT_KEYS)
CONTENT_ENCODING_REMOVED_PARAMS = ["boundary"]
VALUE_IS_EMAIL_ADDRESS: Callable[[str], bool] = lambda value: "@" in value  # noqa: E731 - Lamson's name for it


class MIMEPart(MIMEBase):
    """An `email.message` part, as `to_message` gives; also to be made and filled by hand, for `from_message`."""

    def __init__(self, type: str | None = None, *, policy: email.policy.Policy = email.policy.compat32, **params: str):
        if type is None:
            Message.__init__(self, policy)
            return
        maintype, _, subtype = type.partition("/")
        super().__init__(maintype, subtype, policy=policy, **params)

    def add_text(self, content: str) -> None:
        """Makes `content` the payload: in ASCII if it fits, else in UTF-8."""
        self.set_payload(content, "us-ascii" if content.isascii() else "utf-8")

    def extract_payload(self, mail: MailBase) -> None:
        """Makes the body of `mail` the payload, with its type, name and disposition."""
        made = to_message(mail)
        self.set_payload(made.get_payload())
        for key in ("Content-Type", "Content-Disposition", "Content-Transfer-Encoding"):
            del self[key]
            if key in made:
                self[key] = made[key]


# Whole messages


def from_string(data: str | bytes) -> MailBase:
    """The message in `data`, whatever that is. Never raises."""
    return MailBase.parse(to_bytes(data))


def to_string(mail: MailBase, envelope_header: bool = False) -> str:
    """The canonical text of `mail`, its lines ending in \\n; with `envelope_header` after the line an mbox starts
    a message with. Raises `HeaderError` when a header has a line break in it."""
    text = mail.as_string()
    return f"From nobody\n{text}" if envelope_header else text


def from_file(fileobj: IO[Any]) -> MailBase:
    """The message in an open file, text or binary."""
    return from_string(fileobj.read())


def to_file(mail: MailBase, fileobj: IO[Any]) -> None:
    """Writes the canonical text of `mail` to an open file, text or binary."""
    text = to_string(mail)
    fileobj.write(text if isinstance(fileobj, io.TextIOBase) else text.encode("utf-8"))


def from_message(message: Message) -> MailBase:
    """`message` as a `MailBase`."""
    try:
        return from_string(message.as_bytes())
    except (UnicodeError, LookupError):
        # A payload that is text but says no charset, or one that it is not in.
        return from_string(message.as_string())


def to_message(mail: MailBase) -> MIMEPart:
    """The canonical form of `mail` as Python's `email.message`. When there are too many parts, or they lie so deep in
    parts that its recursion could fail, the payload is the text they are in."""
    text = mail.as_string()
    if not mail.is_too_much:
        try:
            message = email.parser.Parser(_class=MIMEPart).parsestr(text)  # type: ignore[arg-type]
            for part in message.walk():
                _make_printable(part)
            if _depth(message) <= 2 * MAX_DEPTH:
                return message  # type: ignore[return-value]
        except RecursionError:
            pass  # deeper still
    return email.parser.HeaderParser(_class=MIMEPart).parsestr(text)  # type: ignore[arg-type,return-value]


# What Python's email takes for line ends in a header when it writes one, and nobody else does.
_OTHER_LINE_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def _make_printable(part: Message) -> None:
    """Let Python's email write the part: it refuses headers of a message in the message that seem to have line ends."""
    headers = [(name, str(value)) for name, value in part.items()]
    if any(_OTHER_LINE_ENDS.search(value) for _, value in headers):
        for name, _ in headers:
            del part[name]
        for name, value in headers:
            part[name] = _OTHER_LINE_ENDS.sub(" ", value)


def _depth(message: Message) -> int:
    depth = 0
    level = [message]
    while level := [part for each in level if each.is_multipart() for part in each.get_payload()]:  # type: ignore[misc]
        depth += 1
    return depth


def to_bytes(data: str | bytes) -> bytes:
    """A message as bytes, however it was given. Text is UTF-8, and bytes that Python had to smuggle through text
    are what they were."""
    if not isinstance(data, str):
        return bytes(data)
    try:
        return data.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return data.encode("utf-8", "replace")


# Single headers


def parse_parameter_header(message: Message | MailBase, header: str) -> tuple[str | None, dict[str, str]]:
    """The value of a header such as Content-Type and its parameters, without the boundary; ``(None, {})`` when
    `message` has no such header."""
    text = message[header]
    if text is None:
        return None, {}
    value, parameters = header_values.parse_parameters(header_values.unfold(str(text)))
    for name in CONTENT_ENCODING_REMOVED_PARAMS:
        parameters.pop(name, None)
    return value, parameters


def header_from_mime_encoding(header: Any) -> Any:
    """A header's value as it came, decoded; a list of values as a list; None as None. Never raises."""
    if header is None:
        return None
    if isinstance(header, list | tuple):
        return [properly_decode_header(value) for value in header]
    return properly_decode_header(header)


def header_to_mime_encoding(value: Any, not_email: bool = False) -> str:
    """A header's value for the wire, without folding. Lists are joined with commas; nothing is "". `not_email` tells
    that a value with an @ is no address."""
    if not value:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(header_to_mime_encoding(each, not_email) for each in value)
    return properly_encode_header(str(value), None, not_email)


def properly_decode_header(header: str | bytes) -> str:
    """A header's value on one line, its encoded words (RFC 2047) decoded."""
    text = header_values.decode_bytes(header) if isinstance(header, bytes) else str(header)
    text = header_values.unfold(text)
    return header_values.decode_words(text, phrase=VALUE_IS_EMAIL_ADDRESS(text))


def properly_encode_header(value: str, encoder: Charset | None = None, not_email: bool = False) -> str:
    """`value` in ASCII, by `encoder` where it is not: that of `email.charset`, or None for UTF-8 as short as it gets.
    Of an e-mail address only the name is encoded, unless `not_email`. Raises `HeaderError` for a line break."""
    header_values.check_value("the header", value)
    if value.isascii() and "=?" not in value:
        return value
    if not not_email and VALUE_IS_EMAIL_ADDRESS(value):
        return header_values.encode_addresses(value)
    return header_values.encode_words(value) if encoder is None else encoder.header_encode(value)


def apply_charset_to_header(charset: str, encoding: str, data: str | bytes) -> str:
    """The text of one encoded word, given in its three pieces. Raises `EncodingError` when `encoding` is neither q
    nor b, or the charset is unknown or wrong and no other is detected."""
    raw = to_bytes(data)
    if encoding in ("q", "Q"):
        return attempt_decoding(charset, transfer.decode_q(raw))
    if encoding in ("b", "B"):
        return attempt_decoding(charset, transfer.decode_base64(raw)[0])
    raise EncodingError(f"{encoding!r} is no encoding of header words: only q and b are, RFC 2047 section 4.")
