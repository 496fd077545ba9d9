"""`Source`: where in the bytes of a message its header section ends, and where its parts are.

    >>> source = Source(b"Subject: x\\n\\n--b\\n\\none\\n--b\\n\\ntwo\\n--b--\\n")
    >>> bytes(source.head()), source.eol
    (b'Subject: x\\n', '\\n')
    >>> spans, complaint = source.split("b")
    >>> [source.raw[start:end] for start, end in spans], complaint
    ([b'\\none', b'\\ntwo'], None)

Nothing is copied and nothing decoded: a source is a span of one buffer, which all parts of a message share. Each of
its questions takes time in proportion to the size of the span, whatever a stranger put into it.
"""

import re

# How many parts a message may have in all. What is left is kept whole, as one more.
MAX_PARTS = 10_000

_HEAD_END = re.compile(rb"\n\r*\n")
_EMPTY_LINE = re.compile(rb"\r*\n")
# Something that looks like a header, perhaps after lines that an mbox or a careless program put there.
_HEAD_START = re.compile(rb"(?:>?From [^\n]*+\n|[ \t:][^\n]*+\n)*+[!-9;-~]{1,900}+[ \t]*+:")
_BOUNDARY_END = re.compile(rb"(--)?[ \t]*+\r*+(?:\n|\Z)")


class Source:
    """The bytes of a message or a part: ``raw[start:end]``, in which the header section goes on to `head_end` and
    the body begins at `body_start`, after an empty line. `eol` is how its lines end."""

    __slots__ = ("body_start", "end", "eol", "head_end", "raw", "start")

    def __init__(self, raw: bytes, start: int = 0, end: int | None = None):
        self.raw = raw
        self.start = start
        self.end = end = len(raw) if end is None else end
        self.head_end = self.body_start = start
        empty = _EMPTY_LINE.match(raw, start, end)
        if empty is not None:
            self.body_start = empty.end()
        elif _HEAD_START.match(raw, start, end):
            found = _HEAD_END.search(raw, start, end)
            self.head_end = end if found is None else found.start() + 1
            self.body_start = end if found is None else found.end()
        line_end = raw.find(b"\n", start, end)
        self.eol = "\r\n" if line_end > start and raw[line_end - 1] == 13 else "\n"

    def head(self) -> memoryview:
        """The header section, without the empty line after it."""
        return memoryview(self.raw)[self.start : self.head_end]

    def body(self) -> memoryview:
        """Everything after the empty line."""
        return memoryview(self.raw)[self.body_start : self.end]

    def whole(self) -> memoryview:
        """Head and body."""
        return memoryview(self.raw)[self.start : self.end]

    def end_head_at(self, size: int) -> None:
        """Tells that only the first `size` bytes of the head are headers; what follows is the body."""
        if self.start + size != self.head_end:
            self.head_end = self.body_start = self.start + size

    def split(self, boundary: str, most: int = MAX_PARTS) -> tuple[list[tuple[int, int]], str | None]:
        """The spans between the lines of `boundary` (RFC 2046 section 5.1.1), and what was wrong with them.

        After `most` of them what is left is one more.
        """
        raw, end = self.raw, self.end
        delimiter = b"--" + boundary.encode("utf-8", "surrogateescape")
        spans: list[tuple[int, int]] = []
        begin = -1
        position = self.body_start
        while True:
            found = raw.find(delimiter, position, end)
            if found < 0:
                complaint = "multipart that is cut off" if begin >= 0 else "multipart whose boundary never comes"
                break
            position = found + len(delimiter)
            tail = _BOUNDARY_END.match(raw, position, end)
            if tail is None or (found > self.body_start and raw[found - 1] != 10):
                continue
            # Boundaries on lines that follow each other have no part between them.
            if 0 <= begin != found:
                spans.append((begin, self._before_line_end(begin, found)))
            begin = tail.end()
            position = max(begin - 1, position)
            if tail[1] is not None:
                return spans, None
            if len(spans) == most:
                complaint = f"more than {MAX_PARTS} parts"
                break
        if begin >= 0:
            spans.append((begin, end))
        return spans, complaint

    def _before_line_end(self, start: int, end: int) -> int:
        """`end` without the line end before it, which belongs to the boundary's line."""
        if end > start and self.raw[end - 1] == 10:
            end -= 1
            if end > start and self.raw[end - 1] == 13:
                end -= 1
        return end


def blocks(content: bytes, most: int = MAX_PARTS) -> list[tuple[int, int]]:
    """The first `most` spans of `content` between empty lines, as in a delivery status (RFC 3464 section 2)."""
    spans: list[tuple[int, int]] = []
    position = begin = 0
    for line in [*content.split(b"\n"), b""]:
        if line.strip():
            position += len(line) + 1
            continue
        if position > begin and len(spans) < most:
            spans.append((begin, min(position, len(content))))
        position += len(line) + 1
        begin = position
    return spans
