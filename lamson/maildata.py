r"""`MailData`: a message as it comes in after DATA, piece by piece.

    >>> data = MailData(limit=1000)
    >>> data.feed(b"Subject: hi\r\n\r\n..\r\n."), data.feed(b"\r\nQUIT\r\n")
    (False, True)
    >>> data.content(), data.rest
    (b'Subject: hi\r\n\r\n.\r\n', b'QUIT\r\n')

Only CRLF.CRLF ends it (RFC 5321 section 4.1.1.4); a bare LF or CR is part of the message and never a line end. The dots
of transparency are taken off (section 4.5.2). Lines may have any length. The work for a piece does not depend on how
much came before it, so that a large message does not keep the others waiting.

`Room` is the memory that all messages have together which are here at the same time.
"""

import re

_END = b"\r\n.\r\n"
_DOT = re.compile(rb"\r\n\.")  # three times as fast as bytes.find, for whatever reason
_NO_FIELD = re.compile(rb"^(?![!-9;-~]+[ \t]*:|[ \t])", re.MULTILINE)
_PIECE = 1 << 14  # bytes; what is less is held until there is more, lest a message be kept in a million pieces


class MailData:
    """Collects up to `limit` bytes (0: any number); of a larger message it finds the end, and keeps nothing.

    The same happens to one that is `crowded_out` of the `room`. Whoever has given it a room calls `release` in the end.
    """

    def __init__(self, limit: int = 0, room: "Room | None" = None):
        self.limit = limit
        self.crowded_out = False
        self.kept = 0  # bytes, which the room counts
        self._room = room or Room()
        self.size = -2  # bytes, without the dots; the CRLF in front of the first line does not count
        self.rest = b""  # what came behind the end: the next commands of a client that pipelines
        self._pieces: list[bytes] = []
        self._held = b"\r\n"  # so that the end is found in an empty message, too, where no line stands before it

    @property
    def too_large(self) -> bool:
        return 0 < self.limit < self.size

    def feed(self, chunk: bytes) -> bool:
        """Take what has come in. Returns whether that was the end; then `rest` is what came behind it."""
        held = self._held + chunk
        # Of what is held for more to come, only the last four bytes may be a part of the end.
        start = max(0, len(self._held) - len(_END) + 1) if len(held) < _PIECE else 0
        dot = _DOT.search(held, start)
        end = held.find(_END, dot.start()) if dot else -1
        if end >= 0:
            self._keep(held[: end + 2], may_have_dots=True)
            self._room.arrived(self)
            self.rest = held[end + len(_END) :]
            self._held = b""
            return True
        if len(held) < _PIECE:
            self._held = held
            return False
        # Not in the middle of what may be the end, nor of what may be CRLF and a dot.
        cut = len(held) - len(_END) + 1
        if held.endswith(b"\r\n", 0, cut):
            cut -= 2
        elif held.endswith(b"\r", 0, cut):
            cut -= 1
        self._keep(held[:cut], may_have_dots=dot is not None)
        self._held = held[cut:]
        return False

    def _keep(self, piece: bytes, may_have_dots: bool) -> None:
        if may_have_dots:
            piece = piece.replace(b"\r\n.", b"\r\n")
        self.size += len(piece)
        if self.crowded_out:
            return
        if self.too_large:
            self.release()
            return
        self._pieces.append(piece)
        self._room.take(self, len(piece))

    def crowd_out(self) -> None:
        """Keep nothing of the message, neither of what has come nor of what is still to come."""
        self.crowded_out = True
        self.release()

    def release(self) -> None:
        """Give the memory back. What `content` has returned is to be forgotten as well."""
        self._pieces.clear()
        self._room.give_back(self)

    def content(self) -> bytes:
        """Return the message. For more than a megabyte Python lets other threads run meanwhile."""
        if self._pieces:
            self._pieces[0] = self._pieces[0].removeprefix(b"\r\n")
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class Room:
    """The memory for all messages that are coming in or being handled: `limit` bytes (0: any number).

    When it is full, the largest of those that are still coming in is crowded out. So whoever fills it loses their own
    messages. Small ones have room even when handlers that are slow have so many large ones that there is none left: as
    many as there may be connections, they take little.
    """

    SMALL = 1 << 16  # bytes

    def __init__(self, limit: int = 0):
        self.limit = limit
        self.taken = 0  # bytes
        self._coming: set[MailData] = set()

    def take(self, data: MailData, size: int) -> None:
        """A message that is coming in keeps so many more bytes. It may be crowded out by that, or others."""
        data.kept += size
        self.taken += size
        self._coming.add(data)
        while 0 < self.limit < self.taken and self._coming:
            largest = max(self._coming, key=lambda each: each.kept)
            if largest.kept <= self.SMALL:
                return
            largest.crowd_out()

    def arrived(self, data: MailData) -> None:
        """A message has come in whole, and is not crowded out any more."""
        self._coming.discard(data)

    def give_back(self, data: MailData) -> None:
        """A message keeps nothing any more."""
        self._coming.discard(data)
        self.taken -= data.kept
        data.kept = 0


def header_section(content: bytes, limit: int = 0) -> bytes | None:
    """Return the header section of a message, in lower case and with a line end before its first field.

    None: it is longer than `limit` bytes (0: any number).
    """
    if content.startswith((b"\r\n", b"\n")):
        return b""
    last = limit or len(content)
    end = content.find(b"\r\n\r\n", 0, last + 4)
    bare = content.find(b"\n\n", 0, end if end >= 0 else last + 2)
    if bare >= 0:
        end = bare
    if end < 0:
        # Without an empty line it goes as far as there are fields.
        found = _NO_FIELD.search(content, 0, last)
        end = found.start() if found else len(content)
    return b"\n" + content[:end].lower() if end <= last else None


def in_a_loop(header: bytes, recipients: list[str], hops: int = 0) -> bool:
    """Whether a message with this `header_section` runs in a circle (RFC 5321 section 6.3).

    That is so when more than `hops` servers (0: any number) have had it, or when it was delivered to one of these
    recipients already, as a field Delivered-To says.
    """
    if hops and header.count(b"\nreceived:") > hops:
        return True
    if b"\ndelivered-to:" not in header:
        return False
    ours = {recipient.lower().encode() for recipient in recipients}
    fields = header.split(b"\ndelivered-to:")[1:]
    return any(field.partition(b"\n")[0].strip().strip(b"<>") in ours for field in fields)
