"""What strangers wrote, made fit for a line of the log or of a reply: no line ends, no terminal controls, no novels."""

import re
from typing import Any

LONGEST = 200  # characters

_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r?\n[ \t]+)?(\S+)", re.IGNORECASE | re.MULTILINE)
_SEARCHED = 1 << 16  # bytes from the beginning


def printable(value: object) -> str:
    r"""Return the text of `value` in printable ASCII, the rest escaped and what is too long cut off.

    >>> printable("zed@example.com\r\nfaked: line")
    'zed@example.com\\r\\nfaked: line'
    """
    text = str(value)
    if len(text) > LONGEST:
        text = text[:LONGEST] + "..."
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one.isprintable() and one.isascii() else ascii(one)[1:-1] for one in text)


def message_id(message: Any) -> str:
    """How the log names a message: its Message-ID. Of a request no header is decoded for that."""
    original = getattr(message, "original", None)
    if isinstance(original, bytes):
        found = _MESSAGE_ID.search(original, 0, _SEARCHED)
        name = found.group(1).decode("latin-1") if found else None
    else:
        name = message["Message-ID"]
    return printable(name or "a message without Message-ID")
