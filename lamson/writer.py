"""`Writer`: a `MailBase` as the bytes that go out.

It writes in two ways. As it is: what nobody changed goes out as the bytes that came in. Canonical: everything is
written anew, clean and in the shortest form (RFC 2045), except for two things that must stay whole: what is signed,
and messages and reports inside the message, as long as they are clean enough to travel anywhere. What cannot be
decoded is not cleaned either, since that could only make it worse.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from lamson import transfer
from lamson.fields import ContentEncoding, Headers, copy_encoding
from lamson.headers import format_header, format_parameters, is_token, is_type
from lamson.source import Source

Chunk = bytes | bytearray | memoryview

MESSAGES = ("message/rfc822", "message/global", "message/news")
REPORTS = ("message/delivery-status", "message/global-delivery-status")

# RFC 2046 section 5.1.1.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")


class Part(Protocol):
    """What a writer asks of a message or a part; `lamson.mime.MailBase` says what the answers mean."""

    headers: Headers
    source: Source | None
    boundary: str | None
    default_type: str

    @property
    def parts(self) -> "Sequence[Part]": ...
    @property
    def content_encoding(self) -> ContentEncoding: ...
    @property
    def content_type(self) -> str: ...
    @property
    def content(self) -> bytes: ...
    @property
    def filename(self) -> str | None: ...
    def is_changed(self) -> bool: ...
    def is_content_changed(self) -> bool: ...
    def decoded(self) -> tuple[bytes | memoryview, bool]: ...
    def text_to_write(self) -> str | None: ...
    def parts_to_write(self) -> "Sequence[Part]": ...


class Writer:
    """Writes one message into `chunks`; `eol` ends the lines that are written anew."""

    def __init__(self, base: Part, canonical: bool, eol: str):
        self.canonical = canonical
        self.eol = eol.encode("ascii")
        self.chunks: list[Chunk] = []
        self._write(base, top=True)

    def _write(self, base: Part, top: bool = False) -> None:
        source = base.source
        if source is not None and not self.canonical:
            if not base.is_changed():
                self.chunks.append(source.whole())
                return
            if not base.is_content_changed():
                self._write_new_head(base, source)
                return
        encoding = copy_encoding(base.content_encoding)
        place = len(self.chunks)
        self.chunks.append(b"")
        transfer_encoding = self._write_content(base, encoding)
        content_lines = self._content_lines(encoding, transfer_encoding, top) + "\n"
        if source is not None and not self.canonical:
            self.chunks[place] = base.headers.raw(source.eol, content=False).encode("latin-1")
            self.chunks.insert(place + 1, self._ours(content_lines.encode("utf-8")))
        else:
            head = "".join([*base.headers.canonical(), content_lines])
            self.chunks[place] = self._ours(head.encode("utf-8", "replace"))

    def _write_new_head(self, base: Part, source: Source) -> None:
        head = base.headers.raw(source.eol).encode("latin-1")
        between = source.raw[source.head_end : source.body_start]
        if not between:
            # The header section was not ended by an empty line. The new one has to be.
            between = b"" if head.endswith(b"\n") or not head else source.eol.encode("ascii")
            if source.body_start < source.end:
                between += source.eol.encode("ascii")
        self.chunks += [head, between, source.body()]

    def _ours(self, text: bytes | bytearray) -> bytes | bytearray:
        """Lines we wrote, which end in \\n, with the line ends that are wanted."""
        return text if self.eol == b"\n" else text.replace(b"\n", self.eol)

    def _as_it_is(self, plain: Chunk) -> None:
        self.chunks.append(self._ours(bytes(plain).replace(b"\r\n", b"\n")))

    def _content_lines(self, encoding: ContentEncoding, transfer_encoding: str, top: bool) -> str:
        lines = []
        value, parameters = encoding["Content-Type"]
        if value is not None or parameters:
            lines.append(format_parameters("Content-Type", str(value) if is_type(value) else "text/plain", parameters))
        value, parameters = encoding["Content-Disposition"]
        if not is_token(value):
            # Parameters without a value: it is a file when it has a name.
            value = None if not parameters else "attachment" if "filename" in parameters else "inline"
        if value is not None:
            lines.append(format_parameters("Content-Disposition", value, parameters))
        if transfer_encoding != "7bit":
            lines.append(f"Content-Transfer-Encoding: {transfer_encoding}\n")
        version = encoding["Mime-Version"][0]
        if version is not None or (top and lines):
            lines.insert(0, format_header("MIME-Version", version or "1.0"))
        return "".join(lines)

    def _write_content(self, base: Part, encoding: ContentEncoding) -> str:
        """Writes what comes after the head, corrects `encoding` to say what it is, returns the transfer encoding."""
        kind = base.content_type
        content: Chunk = b""
        if kind.startswith("multipart/") and base.parts:
            return self._write_parts(base, encoding, kind)
        if not base.is_content_changed():
            content, was_decoded = base.decoded()
            if (kind.startswith("multipart/") or base.parts) and transfer.is_plain(content):
                # A message inside the message, a report, or a multipart whose parts cannot be found.
                if kind.startswith("multipart/") and base.boundary:
                    encoding["Content-Type"][1]["boundary"] = base.boundary
                self._as_it_is(content)
                return "7bit"
            if not was_decoded and base.source is not None and transfer.is_plain(base.source.body()):
                self._as_it_is(base.source.body())
                return str(encoding["Content-Transfer-Encoding"][0])
        if base.parts and kind in MESSAGES:
            self._write_whole(base.parts[0])
            return "7bit"
        if base.parts and kind not in REPORTS:
            return self._write_parts(base, encoding, "multipart/mixed")
        return self._write_leaf(base, encoding, kind, content or base.content)

    def _write_whole(self, part: Part) -> None:
        """Writes a part exactly as it came, if it may stay so."""
        if part.source is not None and not part.is_changed() and transfer.is_plain(part.source.whole()):
            self._as_it_is(part.source.whole())
        else:
            self._write(part)

    def _write_parts(self, base: Part, encoding: ContentEncoding, kind: str) -> str:
        written: list[list[Chunk]] = []
        outer, self.chunks = self.chunks, []
        for number, part in enumerate(base.parts_to_write()):
            if number == 0 and kind == "multipart/signed":
                # The signature is for these very bytes (RFC 1847 section 2.1).
                self._write_whole(part)
            else:
                self._write(part)
            written.append(self.chunks)
            self.chunks = []
        self.chunks = outer
        boundary = _choose_boundary(base.boundary, written)
        encoding["Content-Type"] = (kind, {**encoding["Content-Type"][1], "boundary": boundary})
        for number, chunks in enumerate(written):
            self.chunks.append(self._ours(f"{'' if number == 0 else chr(10)}--{boundary}\n".encode("ascii")))
            self.chunks += chunks
        self.chunks.append(self._ours(f"\n--{boundary}--\n".encode("ascii")))
        if self.canonical or all(bytes(chunk).isascii() for chunks in written for chunk in chunks):
            return "7bit"
        return "8bit"

    def _write_leaf(self, base: Part, encoding: ContentEncoding, kind: str, data: Chunk) -> str:
        declared, parameters = encoding["Content-Type"]
        is_text = kind.startswith(("text/", "multipart/"))
        kind = "text/plain" if kind.startswith("multipart/") else kind
        if declared is not None or kind != "text/plain":
            encoding["Content-Type"] = (kind, parameters)
        # Text becomes ASCII or UTF-8. A file that came in stays what it is, to the byte.
        is_file = base.filename is not None or encoding["Content-Disposition"][0] == "attachment"
        text = base.text_to_write() if base.is_content_changed() or (is_text and not is_file) else None
        if text is not None:
            charset = "us-ascii" if text.isascii() else "utf-8"
            if is_text and (declared is not None or charset != "us-ascii" or base.default_type != "text/plain"):
                encoding["Content-Type"] = (kind, {**parameters, "charset": charset})
            data = text.encode("utf-8", "replace")
            is_text = is_text and not is_file
            # Large messages are not to be there in more forms than one at a time.
            del text
        else:
            is_text = False
        if is_text or kind.startswith("message/"):
            name, encoded = transfer.encode_text(bytes(data))
        else:
            name, encoded = transfer.encode(data)
        self.chunks.append(self._ours(encoded))
        return name


def _choose_boundary(boundary: str | None, written: list[list[Chunk]]) -> str:
    """The boundary the message came with, when it can stay; otherwise one made from a hash of everything it must not
    occur in, so that nobody can write a part that holds it."""
    if boundary is not None and _BOUNDARY.fullmatch(boundary):
        delimiter = b"--" + boundary.encode("ascii")
        if not any(delimiter in bytes(chunk) for chunks in written for chunk in chunks):
            return boundary
    digest = hashlib.blake2b(digest_size=12)
    for chunks in written:
        for chunk in chunks:
            digest.update(chunk)
    # "=_" can stand in neither base64 nor quoted-printable (RFC 2045 section 6.7).
    return f"=_{digest.hexdigest()}"
