"""The envelope of a queued message: who sent it, who shall get it, and why it is in the queue.

    >>> join_envelope("zed@example.com", ["list@example.org"], b"Subject: hi\\n\\nHello\\n")
    b'Delivered-To: list@example.org\\nReturn-Path: <zed@example.com>\\nSubject: hi\\n\\nHello\\n'

In front of the bytes that came in stands one line for each recipient and one for the sender, in the standard headers
for them, so that any mail program shows them. Reading takes exactly these lines off again.
"""

from lamson.addresses import bare_address
from lamson.errors import QueueError

_RECIPIENT = b"Delivered-To: "
_SENDER = b"Return-Path: <"
_REASON = b"X-Lamson-Reason: "


def join_envelope(sender: str, recipients: list[str], content: bytes, reason: str | None = None) -> bytes:
    """Put the envelope in front of a message. Raises QueueError for an address with a line end in it.

    `reason` says why the message is where it is, and stands first. The sender stands last and so ends the block: what
    follows belongs to the message, whatever it looks like.
    """
    end = b"\r\n" if content[: content.find(b"\n") + 1].endswith(b"\r\n") else b"\n"
    lines = [_RECIPIENT + _address(recipient) for recipient in recipients] + [_SENDER + _address(sender) + b">"]
    if reason:
        lines.insert(0, _REASON + to_bytes(" ".join(reason.split())))
    # In one join, during which Python lets other threads run when the message is large.
    return b"".join([*(line + end for line in lines), content])


def split_envelope(raw: bytes) -> tuple[str | None, list[str] | None, bytes]:
    """Return ``(sender, recipients, message)`` of what `join_envelope` made; ``(None, None, raw)`` of anything else."""
    recipients, start = [], 0
    if raw.startswith(_REASON):
        start = raw.find(b"\n") + 1
    while raw.startswith(_RECIPIENT, start):
        end = raw.find(b"\n", start)
        if end < 0:
            return None, None, raw
        recipients.append(_text(raw[start + len(_RECIPIENT) : end].removesuffix(b"\r")))
        start = end + 1
    end = raw.find(b"\n", start)
    last = raw[start:end].removesuffix(b"\r")
    if not recipients or end < 0 or not last.startswith(_SENDER) or not last.endswith(b">"):
        return None, None, raw
    return _text(last[len(_SENDER) : -1]), recipients, raw[end + 1 :]


def envelope_reason(raw: bytes) -> str | None:
    """Return the reason that `join_envelope` wrote in front of a message, None when there is none."""
    if not raw.startswith(_REASON) or split_envelope(raw)[1] is None:
        return None
    return _text(raw[len(_REASON) : raw.find(b"\n")].removesuffix(b"\r"))


def to_bytes(text: str) -> bytes:
    """Return text as it stands in a queue: UTF-8, and bytes that were none when it was read as they were."""
    return text.encode("utf-8", "surrogateescape")


def _address(address: str) -> bytes:
    address = bare_address(address)
    if "\r" in address or "\n" in address:
        raise QueueError(f"The address {address!r} has a line end in it and cannot be queued.")
    return to_bytes(address)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
