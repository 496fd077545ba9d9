"""`MailBase`: a message, or one part of it.

Reading is lazy. Making a `MailBase` from bytes finds its header section; a header is decoded when it is asked for,
the body is split into parts when somebody looks at `parts`, and a part is decoded when somebody reads its `body`.

    >>> mail = MailBase.parse(b"Content-Type: multipart/mixed; boundary=b\\n\\n--b\\n\\nHi.\\n--b\\n\\nYou.\\n--b--\\n")
    >>> [part.body for part in mail.parts]
    ['Hi.', 'You.']

Writing comes in two kinds: `as_bytes` leaves everything as it came that nobody changed, `as_string` writes
everything anew in its canonical form. `lamson.writer` tells how.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lamson import charsets, transfer
from lamson.defects import Defect, Defects, Note
from lamson.errors import MisuseError
from lamson.fields import CONTENT_KEYS, ContentEncoding, Headers, copy_encoding, header_text, normalize_header
from lamson.headers import check_value, format_parameters, is_type, parse_parameters, unfold
from lamson.source import MAX_PARTS, Source, blocks
from lamson.writer import MESSAGES, REPORTS, Writer

# How deep parts may lie within parts; Postfix allows 100. What lies deeper is not taken apart, and is kept whole.
MAX_DEPTH = 64

# Bodies of up to this many bytes are decoded once, larger ones each time, so that a large message is not held in
# memory both as it came and decoded.
MAX_KEPT = 1_000_000


class Found:
    """How many parts of a message were found; all of its parts share this."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts = 0


class MailBase:
    """A message, or a part of one: headers, and either a `body` or `parts`.

    Headers are used as in a dictionary, in any case; one that is not there is None. `content_encoding` holds what
    the other headers say about the body, as ``{"Content-Type": ("text/plain", {"charset": "utf-8"}), ...}``.
    `source` is what it was read from, None for one that was made here. `boundary` is that of the source.
    """

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()):
        self.headers = Headers(items)
        self.source: Source | None = None
        self.boundary: str | None = None
        self.default_type = "text/plain"
        self._defects = Defects()
        self._found = Found()
        self._where = ""
        self._depth = 0
        self._macintosh = False
        self._declared_encoding: ContentEncoding | None = None
        self._content_encoding: ContentEncoding | None = _nothing_declared()
        self._parts: list[MailBase] | None = []
        self._parsed_parts: list[MailBase] = []
        self._body: str | bytes | None = None
        self._body_is_known = True
        self._body_is_ours = True

    @classmethod
    def parse(cls, data: bytes) -> "MailBase":
        """The message in `data`, whatever that is. Nothing but its header section is looked at yet."""
        # A message with nothing but carriage returns was saved by an old Macintosh.
        macintosh = b"\n" not in data and b"\r" in data
        base = cls()
        base._read(Source(data.replace(b"\r", b"\n") if macintosh else data))
        base._macintosh = macintosh
        return base

    def _read(self, source: Source) -> None:
        self.source = source
        self.headers, size = Headers.parse(str(source.head(), "latin-1"), self._defects, self._where)
        source.end_head_at(size)
        self._content_encoding = self._parts = None
        self._body_is_known = self._body_is_ours = False

    def _child(self, source: Source, number: int, default_type: str = "text/plain") -> "MailBase":
        path = self._where.removeprefix("part ").rstrip()
        child = MailBase()
        child.default_type = default_type
        child._defects = self._defects
        child._found = self._found
        child._where = f"part {path}.{number} " if path else f"part {number} "
        child._depth = self._depth + 1
        child._read(source)
        return child

    @property
    def defects(self) -> list[Defect]:
        """What was wrong with the message and all its parts, of what was read of it so far."""
        return self._defects

    @property
    def is_too_much(self) -> bool:
        """Whether there were more parts than are taken apart, as far as was read."""
        return self._found.parts >= MAX_PARTS

    def _note(self, place: str) -> Note:
        return Note(self._defects, f"{self._where}{place}")

    # Headers

    def __getitem__(self, name: str) -> str | None:
        key = normalize_header(name)
        if key in CONTENT_KEYS:
            return self._content_header(key)
        return self.headers.get(key)

    def __setitem__(self, name: str, value: Any) -> None:
        key = normalize_header(name)
        if key not in CONTENT_KEYS:
            self.headers[name] = value
        elif value is None:
            del self[key]
        else:
            text = header_text(name, value)
            content, parameters = (text, {}) if key == "Mime-Version" else parse_parameters(text)
            parameters.pop("boundary", None)
            self.content_encoding[key] = (content, parameters)

    def __delitem__(self, name: str) -> None:
        """Removes every header of that name; one that is not there is no error, as in `email.message`."""
        key = normalize_header(name)
        if key in CONTENT_KEYS:
            self.content_encoding[key] = (None, {})
        else:
            self.headers.pop(key, None)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self[name] is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def __bool__(self) -> bool:
        """True when there is anything in it: a header, a body or a part."""
        return bool(self.headers) or bool(self.parts) or self.body is not None

    def keys(self) -> list[str]:
        """The names of the headers, sorted, each once, without those in `content_encoding`."""
        return sorted(self.headers)

    def items(self) -> list[tuple[str, str]]:
        """Every header and its value, repeated ones each time, in the order of the message."""
        return list(self.headers.all_items())

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a header, `default` when it is not there."""
        value = self[name]
        return default if value is None else value

    def get_all(self, name: str) -> list[str]:
        """All values of a header that may be there several times, such as Received, in order."""
        key = normalize_header(name)
        if key in CONTENT_KEYS:
            value = self[key]
            return [] if value is None else [value]
        return self.headers.get_all(key)

    def add_header(self, name: str, value: Any) -> None:
        """Adds a header and keeps those of that name which are there."""
        self.headers.add(name, value)

    # What the headers say about the content

    @property
    def content_encoding(self) -> ContentEncoding:
        """What Content-Type, Content-Disposition, Content-Transfer-Encoding and Mime-Version say: for each of them
        ``(value, parameters)``, the value in lower case or None. The boundary is not among the parameters."""
        if self._content_encoding is None:
            self._content_encoding = copy_encoding(self._declared)
        return self._content_encoding

    @content_encoding.setter
    def content_encoding(self, value: ContentEncoding) -> None:
        self._content_encoding = value

    @property
    def _declared(self) -> ContentEncoding:
        """`content_encoding` as it was read, whatever was made of it since."""
        if self._declared_encoding is None:
            encoding = self._declared_encoding = _nothing_declared()
            for key in encoding:
                text = self.headers.content_value(key)
                if text is None:
                    continue
                if key == "Mime-Version":
                    encoding[key] = (text, {})
                    continue
                value, parameters = parse_parameters(text, self._note(f"header {key}"))
                boundary = parameters.pop("boundary", None)
                if key == "Content-Type" and boundary:
                    self.boundary = boundary.rstrip()
                encoding[key] = (value, parameters)
        return self._declared_encoding

    def _content_header(self, key: str) -> str | None:
        value, parameters = self.content_encoding[key]
        if value is None and not parameters:
            return None
        return unfold(format_parameters(key, value or "", parameters).partition(":")[2])

    @property
    def content_type(self) -> str:
        """What the content is to be taken for, such as ``text/plain``, also when the header is missing or senseless
        (RFC 2045 section 5.2)."""
        value = self.content_encoding["Content-Type"][0]
        if value is not None:
            return value if is_type(value) else "text/plain"
        if self.source is None and self._parts:
            return "multipart/mixed"
        if self.source is None and isinstance(self._body, bytes):
            return "application/octet-stream"
        return self.default_type

    @property
    def filename(self) -> str | None:
        """The name of the file in this part, from Content-Disposition or Content-Type; None when it has none."""
        encoding = self.content_encoding
        return encoding["Content-Disposition"][1].get("filename") or encoding["Content-Type"][1].get("name") or None

    @property
    def is_attachment(self) -> bool:
        """True for a part that is a file: it has a name, or says it is an attachment, or is not text."""
        if self.filename is not None or self.content_encoding["Content-Disposition"][0] == "attachment":
            return True
        return not self._is_text

    @property
    def _is_text(self) -> bool:
        """True for text, and for a multipart in which no parts are to be found."""
        kind = self.content_type
        return kind.startswith("text/") or (kind.startswith("multipart/") and not self.parts)

    # Content

    @property
    def body(self) -> str | bytes | None:
        """The content: str for text, its lines ending in \\n; bytes for anything else; None when there are parts."""
        if self._body_is_known:
            return self._body
        if self.parts:
            return None
        body: str | bytes
        if self._is_text or self.content_type.startswith("message/"):
            body = self._decoded_text()
            if "\r" in body:
                body = body.replace("\r\n", "\n")
        else:
            body = self.content
        if self.source is not None and len(self.source.body()) <= MAX_KEPT:
            self._body, self._body_is_known = body, True
        return body

    @body.setter
    def body(self, value: str | bytes | None) -> None:
        self._body = value
        self._body_is_known = self._body_is_ours = True

    @property
    def content(self) -> bytes:
        """The bytes of the content without its transfer encoding: of a file, exactly what was attached. Of
        something that has parts, the bytes they are in."""
        if self._body_is_ours:
            return self._body if isinstance(self._body, bytes) else (self._body or "").encode("utf-8", "replace")
        return bytes(self.decoded()[0])

    def decoded(self) -> tuple[bytes | memoryview, bool]:
        """What was read, without its transfer encoding, and whether all of that could be decoded."""
        data = self.source.body() if self.source is not None else b""
        encoding = self._declared["Content-Transfer-Encoding"][0]
        kind = self._declared["Content-Type"][0] or self.default_type
        if kind.startswith("multipart/") or (kind in MESSAGES and encoding != "base64"):
            # RFC 2045 section 6.4 allows these no encoding, and what claims one mostly has none.
            if encoding is not None and encoding not in transfer.IDENTITY:
                self._note("header Content-Transfer-Encoding")(f"{encoding[:40]} on {kind[:40]}")
            return data, True
        content, complaint = transfer.decode(data, encoding)
        if complaint is not None:
            self._note("body")(complaint)
        return content, complaint is None or not transfer.is_known(encoding)

    def _decoded_text(self) -> str:
        note = self._note("body")
        charset = self._declared["Content-Type"][1].get("charset") or None
        text, complaint = charsets.decode(self.decoded()[0], charset, note.detect)
        if complaint is not None:
            note(complaint)
        return text

    def text_to_write(self) -> str | None:
        """The text of a part that is not a file of bytes, with whatever line ends it came with."""
        if self._body_is_ours:
            return self._body if not isinstance(self._body, bytes) else None
        return self._decoded_text()

    # Parts

    @property
    def parts(self) -> list["MailBase"]:
        """The parts of a multipart; the message in a message/rfc822; the blocks of fields in a delivery status.
        Empty for anything else. The list may be changed."""
        if self._parts is None:
            self._parts = self._find_parts()
            self._parsed_parts = list(self._parts)
        return self._parts

    @parts.setter
    def parts(self, value: list["MailBase"]) -> None:
        self._parts = value

    def parts_to_write(self) -> list["MailBase"]:
        """The parts; before them, the text that was given as the body of something that has parts."""
        if not self._body_is_ours or not self._body:
            return self.parts
        text = MailBase()
        text.body = self._body
        return [text, *self.parts]

    def _find_parts(self) -> list["MailBase"]:
        kind = self.content_type
        source = self.source
        if source is None or not kind.startswith(("multipart/", *MESSAGES, *REPORTS)):
            return []
        if self._depth >= MAX_DEPTH:
            self._note("body")(f"parts in parts more than {MAX_DEPTH} deep")
            return []
        if self.is_too_much:
            self._note("body")(f"more than {MAX_PARTS} parts")
            return []
        children = self._children(kind, source, MAX_PARTS - self._found.parts)
        self._found.parts += len(children)
        return children

    def _children(self, kind: str, source: Source, most: int) -> list["MailBase"]:
        content, _ = self.decoded()
        if kind in MESSAGES:
            # What was in base64 is not in the bytes of the message.
            was_encoded = isinstance(content, bytes)
            return [
                self._child(
                    Source(bytes(content)) if was_encoded else Source(source.raw, source.body_start, source.end), 1
                )
            ]
        if kind in REPORTS:
            data = bytes(content)
            return [self._child(Source(data, *span), number) for number, span in enumerate(blocks(data, most), 1)]
        if not self.boundary:
            self._note("body")("multipart without a boundary")
            return []
        spans, complaint = source.split(self.boundary, most)
        if complaint is not None:
            self._note("body")(complaint)
        inner = "message/rfc822" if kind == "multipart/digest" else "text/plain"
        return [self._child(Source(source.raw, *span), number, inner) for number, span in enumerate(spans, 1)]

    def walk(self) -> Iterator["MailBase"]:
        """Every part below this one, a part before the parts within it."""
        stack = [iter(self.parts)]
        while stack:
            part = next(stack[-1], None)
            if part is None:
                stack.pop()
            else:
                yield part
                stack.append(iter(part.parts))

    def attach_file(self, filename: str, data: str | bytes, ctype: str, disposition: str | None) -> None:
        """Adds a part with a file: its name, its content, its type, and ``attachment`` or ``inline``."""
        if not filename:
            raise MisuseError("A file needs a name: give attach_file a filename, or use attach_text.")
        check_value("the file's name", filename)
        self.attach_text(data, ctype)
        encoding = self.parts[-1].content_encoding
        encoding["Content-Type"][1]["name"] = filename
        encoding["Content-Disposition"] = (disposition or "attachment", {"filename": filename})

    def attach_text(self, data: str | bytes, ctype: str) -> None:
        """Adds a part without a name, such as the text of a message, of type `ctype`."""
        if not is_type(ctype):
            raise MisuseError(f"{ctype!r} is not a content type such as 'text/plain' or 'image/png'.")
        part = MailBase()
        part.content_encoding["Content-Type"] = (ctype.lower(), {})
        if part.content_type in MESSAGES:
            # It may have no transfer encoding, so it has to be known from inside.
            part.parts = [MailBase.parse(data.encode("utf-8", "replace") if isinstance(data, str) else data)]
        else:
            part.body = data
        self.parts.append(part)

    # Writing

    def as_bytes(self) -> bytes:
        """The message for the wire or the disk. What was not changed since it was read is exactly as it was read;
        a message made here is canonical, its lines ending in CRLF."""
        if self.source is None:
            return b"".join(Writer(self, canonical=True, eol="\n").chunks).replace(b"\n", b"\r\n")
        written = b"".join(Writer(self, canonical=False, eol=self.source.eol).chunks)
        return written.replace(b"\n", b"\r") if self._macintosh else written

    def as_string(self) -> str:
        """The message in its canonical form, its lines ending in \\n."""
        chunks = Writer(self, canonical=True, eol="\n").chunks
        chunks.reverse()
        texts = []
        while chunks:
            # One by one, so that a large message is never there twice in both forms.
            texts.append(str(chunks.pop(), "utf-8", "replace"))
        return "".join(texts)

    def is_changed(self) -> bool:
        """True when anything was changed since it was read; always for one that was made here."""
        return self.headers.changed or self.is_content_changed()

    def is_content_changed(self) -> bool:
        """True when the body, a part, or what says how they are encoded was changed since it was read."""
        if self._body_is_ours or (self._content_encoding is not None and self._content_encoding != self._declared):
            return True
        if self._parts is None:
            return False
        if list(map(id, self._parts)) != list(map(id, self._parsed_parts)):
            return True
        return any(part.is_changed() for part in self._parts)


def _nothing_declared() -> ContentEncoding:
    keys = ("Content-Type", "Content-Disposition", "Content-Transfer-Encoding", "Mime-Version")
    return {key: (None, {}) for key in keys}
