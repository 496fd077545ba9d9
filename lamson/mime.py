"""`MailBase`: a message or one part of it, read from bytes when it is asked, and written as bytes again.

Reading is lazy. Making a `MailBase` from bytes finds its header section; a header is decoded when it is asked for,
the body is split into parts when somebody looks at `parts`, and a part is decoded when somebody reads its `body`.
All parts look at the one buffer the message came in.

Writing comes in two kinds (`MailBase.as_bytes` and `MailBase.as_string`):

* as it is: everything that nobody changed goes out as the bytes that came in, so that signatures survive;
* canonical: everything is decoded and written anew, headers and text in ASCII or UTF-8, each part in the shorter
  of quoted-printable and base64, no line over 998 bytes. Only what is signed or encrypted, and messages inside the
  message, are taken over as they are, when they are clean enough.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lamson import charsets, transfer
from lamson.defects import Defect, Defects, Note
from lamson.errors import MisuseError
from lamson.fields import CONTENT_KEYS, Headers, normalize_header
from lamson.headers import HeaderError, format_parameters, is_token, is_type, parse_parameters, unfold

# How deep parts may lie within parts, and how many one part may have; Postfix's limit for the first is 100. What
# lies deeper, and the part past the last, is not taken apart, and is kept whole.
MAX_DEPTH = 64
MAX_PARTS = 10_000

# Bodies of up to this many bytes are decoded once, larger ones each time, so that a large message is not held in
# memory both as it came and decoded.
MAX_KEPT = 1_000_000

ContentEncoding = dict[str, tuple[str | None, dict[str, str]]]

_HEAD_END = re.compile(rb"\n\r*\n")
_EMPTY_HEAD = re.compile(rb"\r*\n")
_HEAD_START = re.compile(rb"(?:>?From [^\n]*+\n|[ \t:][^\n]*+\n)*+[!-9;-~]++[ \t]*+:")
_BOUNDARY_END = re.compile(rb"(--)?[ \t]*+\r*+(?:\n|\Z)")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_BLOCK = re.compile(rb"(?:[ \t]*+\r*+\n)*+([^\n]*[^\s][^\n]*(?:\n[^\n]*[^\s][^\n]*)*+\n?)")

_MESSAGES = ("message/rfc822", "message/global", "message/news")
_REPORTS = ("message/delivery-status", "message/global-delivery-status")
_SEALED = ("multipart/signed", "multipart/encrypted")


class MailBase:
    """A message, or a part of one: headers, and either a `body` or `parts`.

    Headers are used as in a dictionary, in any case; one that is not there is None. `content_encoding` holds what
    the other headers say about the body, as ``{"Content-Type": ("text/plain", {"charset": "utf-8"}), ...}``.
    """

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()):
        self.headers = Headers(items)
        self.defects: list[Defect] = Defects()
        self.default_type = "text/plain"
        self._raw: bytes | None = None
        self._start = self._head_end = self._body_start = self._end = 0
        self._where = ""
        self._depth = 0
        self._eol = "\n"
        self._content_encoding: ContentEncoding | None = {key: (None, {}) for key in sorted(CONTENT_KEYS)}
        self._parts: list[MailBase] | None = []
        self._parsed_parts: tuple[MailBase, ...] | None = None
        self._boundary: str | None = None
        self._body: str | bytes | None = None
        self._body_known = True
        self._body_changed = True

    @classmethod
    def parse(cls, data: bytes) -> "MailBase":
        """The message in `data`, whatever that is. Nothing but its header section is looked at yet."""
        base = cls.__new__(cls)
        # A message with nothing but carriage returns is one saved by an old Macintosh.
        raw = data.replace(b"\r", b"\n") if b"\n" not in data and b"\r" in data else data
        base._read(raw, 0, len(raw), Defects(), "", 0, "text/plain")
        return base

    def _read(
        self, raw: bytes, start: int, end: int, defects: Defects, where: str, depth: int, default_type: str
    ) -> None:
        self.defects = defects
        self.default_type = default_type
        self._raw, self._start, self._end = raw, start, end
        self._where = where
        self._depth = depth
        self._content_encoding = self._parts = self._parsed_parts = self._boundary = self._body = None
        self._body_known = self._body_changed = False
        self._find_head()

    def _find_head(self) -> None:
        raw, start, end = self._raw or b"", self._start, self._end
        empty = _EMPTY_HEAD.match(raw, start, end)
        block = ""
        head_end = start
        self._body_start = empty.end() if empty is not None else start
        if empty is None and _HEAD_START.match(raw, start, end):
            found = _HEAD_END.search(raw, start, end)
            head_end = end if found is None else found.start() + 1
            self._body_start = end if found is None else found.end()
            block = str(raw[start:head_end], "latin-1")
        self.headers, size = Headers.parse(block, self._all_defects, self._where)
        if start + size != head_end:
            head_end = self._body_start = start + size
        self._head_end = head_end
        line = raw.find(b"\n", start, end)
        self._eol = "\r\n" if line > start and raw[line - 1] == 13 else "\n"

    @property
    def _all_defects(self) -> Defects:
        return self.defects  # type: ignore[return-value]

    def _note(self, place: str) -> Note:
        return Note(self._all_defects, f"{self._where}{place}")

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
        elif "\n" in str(value) or "\r" in str(value):
            raise HeaderError(f"The value of {name} has a line break in it: {str(value)[:80]!r}.")
        else:
            self.content_encoding[key] = _without_boundary(parse_parameters(str(value)))

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

    def _content_header(self, key: str) -> str | None:
        value, parameters = self.content_encoding[key]
        if value is None and not parameters:
            return None
        return unfold(format_parameters(key, value or "", parameters).partition(":")[2])

    @property
    def content_encoding(self) -> ContentEncoding:
        """What Content-Type, Content-Disposition, Content-Transfer-Encoding and Mime-Version say: for each of them
        ``(value, parameters)``, the value in lower case or None. The boundary is not among the parameters."""
        if self._content_encoding is None:
            self._content_encoding = self._parse_content_encoding()
        return self._content_encoding

    @content_encoding.setter
    def content_encoding(self, value: ContentEncoding) -> None:
        self._content_encoding = value

    def _parse_content_encoding(self) -> ContentEncoding:
        encoding: ContentEncoding = {}
        for key in ("Content-Type", "Content-Disposition", "Content-Transfer-Encoding", "Mime-Version"):
            text = self.headers.content_value(key)
            if text is None:
                encoding[key] = (None, {})
                continue
            value, parameters = parse_parameters(text, self._note(f"header {key}"))
            if key == "Content-Type" and "boundary" in parameters:
                self._boundary = parameters["boundary"].rstrip()
            encoding[key] = _without_boundary((value, parameters))
        return encoding

    # What it is

    @property
    def content_type(self) -> str:
        """What the content is to be taken for, such as ``text/plain``, also when the header is missing or senseless
        (RFC 2045 section 5.2)."""
        value = self.content_encoding["Content-Type"][0]
        if value is None:
            if self.default_type != "text/plain" or not self._made_here:
                return self.default_type
            if self._parts:
                return "multipart/mixed"
            return "application/octet-stream" if isinstance(self._body, bytes) else "text/plain"
        return value if is_type(value) else "text/plain"

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
        kind = self.content_type
        return kind.startswith("text/") or (kind.startswith("message/") and kind not in _MESSAGES) or self._is_opaque

    @property
    def _is_opaque(self) -> bool:
        """True for a multipart that has no parts to be found in it."""
        return self.content_type.startswith("multipart/") and not self.parts

    @property
    def _made_here(self) -> bool:
        return self._raw is None

    # Content

    @property
    def parts(self) -> list["MailBase"]:
        """The parts of a multipart; the message in a message/rfc822; the blocks of fields in a delivery status.
        Empty for anything else. The list may be changed."""
        if self._parts is None:
            self._parts = self._find_parts()
            self._parsed_parts = tuple(self._parts)
        return self._parts

    @parts.setter
    def parts(self, value: list["MailBase"]) -> None:
        self._parts = value

    @property
    def content(self) -> bytes:
        """The bytes of the content without its transfer encoding: of a file, exactly what was attached. Of
        something that has parts, the bytes they are in."""
        if self._body_changed:
            return self._body if isinstance(self._body, bytes) else _encoded(self._body or "")[0]
        return bytes(self._decoded_content())

    @property
    def body(self) -> str | bytes | None:
        """The content: str for text, its lines ending in \\n; bytes for anything else; None when there are parts."""
        if self._body_known:
            return self._body
        if self.parts:
            return None
        body: str | bytes
        if self._is_text:
            body = self._decoded_text()
            if "\r" in body:
                body = body.replace("\r\n", "\n")
        else:
            body = bytes(self._decoded_content())
        if self._end - self._body_start <= MAX_KEPT:
            self._body, self._body_known = body, True
        return body

    @body.setter
    def body(self, value: str | bytes | None) -> None:
        self._body = value
        self._body_known = self._body_changed = True

    def _raw_body(self) -> memoryview:
        return memoryview(self._raw or b"")[self._body_start : self._end]

    def _decoded_content(self) -> bytes | memoryview:
        encoding = self.content_encoding["Content-Transfer-Encoding"][0]
        kind = self.content_type
        if kind.startswith("multipart/") or (kind in _MESSAGES and encoding != "base64"):
            # RFC 2045 section 6.4 allows these no encoding, and what claims one mostly has none.
            if encoding is not None and encoding not in transfer.IDENTITY:
                self._note("header Content-Transfer-Encoding")(f"{encoding[:40]} on {kind[:40]}")
            return self._raw_body()
        content, complaint = transfer.decode(self._raw_body(), encoding)
        if complaint is not None:
            self._note("body")(complaint)
        return content

    def _decoded_text(self) -> str:
        """The text as it was sent, with whatever line ends it has."""
        note = self._note("body")
        charset = self.content_encoding["Content-Type"][1].get("charset") or None
        text, complaint = charsets.decode(self._decoded_content(), charset, note.detect)
        if complaint is not None:
            note(complaint)
        return text

    # Parts

    def _find_parts(self) -> list["MailBase"]:
        kind = self.content_type
        if kind.startswith("multipart/"):
            if self._depth < MAX_DEPTH:
                return self._split()
        elif kind in _MESSAGES:
            if self._depth < MAX_DEPTH:
                return [self._message_inside()]
        elif kind in _REPORTS:
            return self._blocks()
        else:
            return []
        self._note("body")(f"parts in parts more than {MAX_DEPTH} deep")
        return []

    def _child(self, raw: bytes, start: int, end: int, number: int, default_type: str = "text/plain") -> "MailBase":
        path = self._where.removeprefix("part ").rstrip()
        where = f"part {path}.{number} " if path else f"part {number} "
        child = MailBase.__new__(MailBase)
        child._read(raw, start, end, self._all_defects, where, self._depth + 1, default_type)
        return child

    def _message_inside(self) -> "MailBase":
        content = self._decoded_content()
        if self.content_encoding["Content-Transfer-Encoding"][0] == "base64":
            return self._child(bytes(content), 0, len(content), 1)
        return self._child(self._raw or b"", self._body_start, self._end, 1)

    def _blocks(self) -> list["MailBase"]:
        """RFC 3464 section 2: blocks of fields, with empty lines between them."""
        content = bytes(self._decoded_content())
        return [
            self._child(content, *block.span(1), number)
            for number, block in enumerate(_BLOCK.finditer(content), 1)
            if number <= MAX_PARTS
        ]

    def _split(self) -> list["MailBase"]:
        """The parts between the boundary's lines (RFC 2046 section 5.1.1)."""
        raw = self._raw or b""
        note = self._note("body")
        self._decoded_content()
        if not self._boundary:
            note("multipart without a boundary")
            return []
        delimiter = b"--" + self._boundary.encode("utf-8", "surrogateescape")
        children_are = "message/rfc822" if self.content_type == "multipart/digest" else "text/plain"
        spans: list[tuple[int, int]] = []
        begin = None
        position = self._body_start
        while True:
            found = raw.find(delimiter, position, self._end)
            if found < 0:
                note("multipart that is cut off" if begin is not None else "multipart whose boundary never comes")
                last = self._end
                break
            position = found + len(delimiter)
            tail = _BOUNDARY_END.match(raw, position, self._end)
            if tail is None or (found > self._body_start and raw[found - 1] != 10):
                continue
            if begin is not None:
                spans.append((begin, _before_line_end(raw, begin, found)))
            begin = tail.end()
            position = max(begin - 1, position)
            if tail[1] is not None:
                last = None
                break
            if len(spans) == MAX_PARTS:
                note(f"more than {MAX_PARTS} parts")
                last = self._end
                break
        if begin is not None and last is not None:
            spans.append((begin, last))
        return [self._child(raw, *span, number, children_are) for number, span in enumerate(spans, 1)]

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
        if not is_type(ctype):
            raise MisuseError(f"{ctype!r} is not a content type such as 'image/png', for the file {filename!r}.")
        part = MailBase()
        part.body = data
        part.content_encoding["Content-Type"] = (ctype.lower(), {"name": filename})
        part.content_encoding["Content-Disposition"] = (disposition or "attachment", {"filename": filename})
        self.parts.append(part)

    def attach_text(self, data: str | bytes, ctype: str) -> None:
        """Adds a part without a name, such as the text of a message, of type `ctype`."""
        if not is_type(ctype):
            raise MisuseError(f"{ctype!r} is not a content type such as 'text/plain'.")
        part = MailBase()
        part.body = data
        part.content_encoding["Content-Type"] = (ctype.lower(), {})
        self.parts.append(part)

    # Writing

    def as_bytes(self) -> bytes:
        """The message for the wire or the disk. What was not changed since it was read is exactly as it was read;
        a message made here is canonical, its lines ending in CRLF."""
        if not self._made_here and not self._changed():
            return bytes(memoryview(self._raw or b"")[self._start : self._end])
        return b"".join(_Writer(self, canonical=self._made_here, eol="\r\n" if self._made_here else self._eol).chunks)

    def as_string(self) -> str:
        """The message in its canonical form, its lines ending in \\n."""
        chunks = _Writer(self, canonical=True, eol="\n").chunks
        chunks.reverse()
        texts = []
        while chunks:
            # One by one, so that a large message is never there twice in both forms.
            texts.append(str(chunks.pop(), "utf-8", "replace"))
        return "".join(texts)

    def _changed(self) -> bool:
        return self.headers.changed or self._content_changed()

    def _content_changed(self) -> bool:
        if self._body_changed:
            return True
        if self._content_encoding is not None and self._content_encoding != self._parse_content_encoding():
            return True
        if self._parts is None:
            return False
        if self._parsed_parts is None or tuple(map(id, self._parts)) != tuple(map(id, self._parsed_parts)):
            return True
        return any(part._made_here or part._changed() for part in self._parts)


def _without_boundary(parsed: tuple[str, dict[str, str]]) -> tuple[str, dict[str, str]]:
    parsed[1].pop("boundary", None)
    return parsed


def _before_line_end(raw: bytes, start: int, end: int) -> int:
    """`end` without the line end before it, which belongs to the boundary's line."""
    if end > start and raw[end - 1] == 10:
        end -= 1
        if end > start and raw[end - 1] == 13:
            end -= 1
    return end


def _encoded(text: str) -> tuple[bytes, str]:
    """`text` in ASCII if it fits, else in UTF-8, and which of them it is."""
    if text.isascii():
        return text.encode("ascii"), "us-ascii"
    return text.encode("utf-8", "replace"), "utf-8"


class _Writer:
    """Writes one `MailBase` as `chunks`. `canonical` tells whether to keep the bytes of what nobody changed."""

    def __init__(self, base: MailBase, canonical: bool, eol: str):
        self.canonical = canonical
        self.eol = eol.encode("ascii")
        self.chunks: list[bytes | memoryview] = []
        self._write(base, top=True)

    def _write(self, base: MailBase, top: bool = False) -> None:
        if not self.canonical and not base._made_here:
            if not base._changed():
                self.chunks.append(memoryview(base._raw or b"")[base._start : base._end])
                return
            if not base._content_changed():
                self._write_new_head(base)
                return
        encoding = {key: (value, dict(parameters)) for key, (value, parameters) in base.content_encoding.items()}
        start = len(self.chunks)
        self.chunks.append(b"")
        transfer_encoding = self._write_content(base, encoding)
        lines = self._content_lines(base, encoding, transfer_encoding, top)
        if self.canonical or base._made_here:
            head = self._ours("".join([*base.headers.canonical(), *lines, "\n"]).encode("utf-8", "replace"))
        else:
            head = base.headers.raw(base._eol, content=False).encode("latin-1") + self._ours("".join([*lines, "\n"]).encode())
        self.chunks[start] = head

    def _write_new_head(self, base: MailBase) -> None:
        raw = base._raw or b""
        head = base.headers.raw(base._eol).encode("latin-1")
        between = raw[base._head_end : base._body_start]
        if not between or base._start == base._end:
            eol = base._eol.encode()
            between = (b"" if not head or head.endswith(b"\n") else eol) + (eol if base._body_start < base._end else b"")
        self.chunks += [head, between, memoryview(raw)[base._body_start : base._end]]

    def _ours(self, text: bytes) -> bytes:
        """Lines we wrote, which end in \\n, with the line ends that are wanted."""
        return text if self.eol == b"\n" else text.replace(b"\n", self.eol)

    def _content_lines(self, base: MailBase, encoding: ContentEncoding, transfer_encoding: str, top: bool) -> list[str]:
        lines = []
        value, parameters = encoding["Content-Type"]
        if value is not None or parameters:
            lines.append(format_parameters("Content-Type", value or "text/plain", parameters))
        value, parameters = encoding["Content-Disposition"]
        if value is not None:
            lines.append(format_parameters("Content-Disposition", value if is_token(value) else "attachment", parameters))
        if transfer_encoding != "7bit":
            lines.append(f"Content-Transfer-Encoding: {transfer_encoding}\n")
        version = encoding["Mime-Version"][0]
        if version is not None or (top and lines):
            lines.insert(0, format_parameters("MIME-Version", version or "1.0", {}))
        return lines

    def _write_content(self, base: MailBase, encoding: ContentEncoding) -> str:
        """Writes what comes after the head, corrects `encoding` to say what it is, returns the transfer encoding."""
        kind = base.content_type
        if kind.startswith("multipart/") and base.parts:
            return self._write_parts(base, encoding, kind)
        if base.parts and not base._made_here and not base._content_changed():
            content = base._decoded_content()
            if transfer.is_plain(content):
                self.chunks.append(self._ours(bytes(content).replace(b"\r\n", b"\n")))
                return "7bit"
        if base.parts and kind in _MESSAGES:
            self._write(base.parts[0])
            return "7bit"
        if base.parts and base._body_changed and kind not in _REPORTS:
            return self._write_parts(base, encoding, "multipart/mixed")
        return self._write_leaf(base, encoding, kind)

    def _write_parts(self, base: MailBase, encoding: ContentEncoding, kind: str) -> str:
        parameters = encoding["Content-Type"][1]
        unchanged = not base._made_here and not base._content_changed()
        if kind in _SEALED and unchanged and _legal(base._boundary) and transfer.is_plain(base._raw_body()):
            encoding["Content-Type"] = (kind, {**parameters, "boundary": base._boundary or ""})
            self.chunks.append(self._ours(bytes(base._raw_body()).replace(b"\r\n", b"\n")))
            return "7bit"
        start = len(self.chunks)
        ends = []
        if base._body_changed and base._body:
            text = MailBase()
            text.body = base._body
            self._write(text)
            ends.append(len(self.chunks))
        for part in base.parts:
            self._write(part)
            ends.append(len(self.chunks))
        written = self.chunks[start:]
        del self.chunks[start:]
        boundary = self._choose_boundary(base, written)
        encoding["Content-Type"] = (kind, {**parameters, "boundary": boundary})
        position = 0
        for end in ends:
            self.chunks.append(self._ours(f"{'' if position == 0 else chr(10)}--{boundary}\n".encode()))
            self.chunks += written[position : end - start]
            position = end - start
        self.chunks.append(self._ours(f"\n--{boundary}--\n".encode()))
        return "7bit" if self.canonical or all(bytes(chunk).isascii() for chunk in written) else "8bit"

    def _choose_boundary(self, base: MailBase, written: list[bytes | memoryview]) -> str:
        """The boundary the message came with, when it can stay; otherwise one made from a hash of everything it must
        not occur in, so that nobody can write a part that holds it."""
        boundary = base._boundary
        if _legal(boundary) and boundary is not None:
            delimiter = b"--" + boundary.encode("ascii")
            if not any(delimiter in bytes(chunk) for chunk in written):
                return boundary
        digest = hashlib.blake2b(digest_size=12)
        for chunk in written:
            digest.update(chunk)
        # "=_" can stand in neither base64 nor quoted-printable (RFC 2045 section 6.7).
        return f"=_{digest.hexdigest()}"

    def _write_leaf(self, base: MailBase, encoding: ContentEncoding, kind: str) -> str:
        parameters = encoding["Content-Type"][1]
        declared = encoding["Content-Type"][0] is not None
        body = base._body if base._body_changed else None
        inline = base._is_text and not (base.filename or encoding["Content-Disposition"][0] == "attachment")
        if kind.startswith("multipart/"):
            kind, declared = "text/plain", True
        if base._body_changed and isinstance(body, bytes):
            inline = False
        if inline or (base._body_changed and isinstance(body, str)):
            text = (body or "") if base._body_changed else base._decoded_text()
            data, charset = _encoded(text)  # type: ignore[arg-type]
            if kind.startswith("text/") and (declared or charset != "us-ascii" or base.default_type != "text/plain"):
                parameters["charset"] = charset
                encoding["Content-Type"] = (kind, parameters)
        else:
            data = base.content
            charset = ""
            if declared or kind != "text/plain":
                encoding["Content-Type"] = (kind, parameters)
        if inline or kind.startswith("message/"):
            name, written = transfer.encode_text(data)
        else:
            name, written = transfer.encode(data)
        self.chunks.append(self._ours(written))
        return name


def _legal(boundary: str | None) -> bool:
    return boundary is not None and _BOUNDARY.fullmatch(boundary) is not None
