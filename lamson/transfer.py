"""Content-Transfer-Encodings (RFC 2045 section 6): what a body looks like on the wire.

`decode` takes off whatever encoding the body has, as well as a broken one can be taken off, and never raises.
`encode` and `encode_text` put on the one that makes the body shorter, so that no line is longer than 76 bytes:

    >>> decode(b"Y2Fmw6k=", "base64")
    (b'caf\\xc3\\xa9', None)
    >>> encode(b"Tea and cake, and more\\n")
    ('quoted-printable', b'Tea and cake, and more=0A')

`encode` keeps every byte, line ends too, since they may belong to somebody's file. `encode_text` keeps lines as
lines, which stay readable and are given the line ends of whatever carries the message.
"""

import binascii
import contextlib
import re

# RFC 5322 section 2.1.1: without the line end.
MAX_LINE = 998

IDENTITY = {"", "7bit", "8bit", "binary", "7-bit", "8-bit", "7bits", "8bits"}
UUENCODED = {"x-uuencode", "uuencode", "x-uue", "uue"}

# Text that may travel as it is: lines of ASCII without NUL, with line ends that are all of one kind.
_LINE = rb"[\x01-\x09\x0b\x0c\x0e-\x7f]{0,%d}+" % MAX_LINE
_PLAIN = re.compile(_LINE + rb"(?:\n" + _LINE + rb")*+")
_PLAIN_CRLF = re.compile(_LINE + rb"(?:\r\n" + _LINE + rb")*+")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=\s]")
_PADDING = re.compile(rb"=(?:\s*+=)?\s*+")
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_UU_BEGIN = re.compile(rb"(?:\A|\n)begin [0-7]{3,4}[ \t][^\n]*\n")
# What quoted-printable leaves as it is; everything else takes it three bytes.
_QP_SAFE = bytes(code for code in range(32, 127) if code != ord("="))


def decode(data: bytes | memoryview, encoding: str | None) -> tuple[bytes | memoryview, str | None]:
    """`data` without its transfer encoding, and what was wrong with it (None: nothing).

    `encoding` is the value of Content-Transfer-Encoding, in lower case. An encoding nobody knows leaves `data` as
    it is.
    """
    if encoding is None or encoding in IDENTITY:
        return data, None
    if encoding == "base64":
        return decode_base64(data)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(data), None
    if encoding in UUENCODED:
        return decode_uu(bytes(data))
    return data, f"unknown transfer encoding {encoding[:40]!r}"


def is_known(encoding: str | None) -> bool:
    """True for an encoding that `decode` can take off."""
    return encoding in ("base64", "quoted-printable") or encoding in UUENCODED


def decode_base64(data: bytes | memoryview) -> tuple[bytes, str | None]:
    """Every byte that can be got out of base64 (RFC 2045 section 6.8) with characters missing or added."""
    try:
        decoded = binascii.a2b_base64(data)
        complaint = None
    except binascii.Error:
        return _salvage_base64(bytes(data)), "base64 with characters missing"
    # a2b_base64 stops at the padding. Some mailers pad in the middle and go on; what list software adds below
    # the padding is no base64, and stays out.
    padding = _PADDING.search(data)
    if padding is not None:
        more = _after_padding(bytes(data[padding.end() :]))
        if more is not None:
            return decoded + more, "base64 that goes on after its padding"
    if complaint is None and _NOT_BASE64.search(data):
        complaint = "base64 with other characters in it"
    return decoded, complaint


def _salvage_base64(data: bytes) -> bytes:
    """What can be had of base64 that has no whole number of bytes. A line that lost or won a character must not spoil
    those after it, so each is decoded for itself when they are lines as `encode_base64` writes them."""
    lines = [line.strip() for line in data.splitlines()]
    whole = [line for line in lines if _BASE64_LINE.fullmatch(line)]
    if sum(len(line) % 4 == 0 for line in whole) * 2 < len(lines):
        whole = [_NOT_BASE64.sub(b"", data).translate(None, b"=\r\n\t \v\f")]
    decoded = []
    for line in whole:
        letters = line.rstrip(b"=")
        # Three letters left over are two bytes, two are one byte, one is less than a byte.
        letters = letters[: len(letters) - (len(letters) % 4 == 1)]
        decoded.append(binascii.a2b_base64(letters + b"=" * (-len(letters) % 4)))
    return b"".join(decoded)


def _after_padding(data: bytes) -> bytes | None:
    """Base64 that follows padding, perhaps with more padding, decoded; None when it is none."""
    pieces = []
    for piece in _PADDING.split(data.strip()):
        letters = piece.translate(None, b"\r\n\t ")
        if _NOT_BASE64.search(letters) or len(letters) % 4 == 1:
            return None
        pieces.append(binascii.a2b_base64(letters + b"=" * (-len(letters) % 4)))
    return b"".join(pieces) or None


def decode_q(data: bytes) -> bytes:
    """The bytes of an encoded word's q encoding (RFC 2047 section 4.2)."""
    return binascii.a2b_qp(data, header=True)


def decode_uu(data: bytes) -> tuple[bytes, str | None]:
    """The file in a uuencoded body; lines that cannot be decoded are decoded as far as they go."""
    begin = _UU_BEGIN.search(data)
    if begin is None:
        return data, "uuencoded text without a begin line"
    decoded, complaint = [], None
    for line in data[begin.end() :].split(b"\n"):
        line = line.rstrip(b"\r")
        if line.strip() == b"end":
            break
        if not line:
            continue
        try:
            decoded.append(binascii.a2b_uu(line))
        except binascii.Error:
            complaint = "uuencoded text with broken lines"
            # The first character tells how many bytes there should be, four characters carry three.
            letters = ((line[0] - 32 & 63) * 4 + 5) // 3
            with contextlib.suppress(binascii.Error):  # the complaint above says it
                decoded.append(binascii.a2b_uu(line[: letters + 1]))
    else:
        complaint = complaint or "uuencoded text without an end line"
    return b"".join(decoded), complaint


def is_plain(data: bytes | bytearray | memoryview) -> bool:
    """True for text that needs no encoding: ASCII, no NUL, whole line ends of one kind, lines within `MAX_LINE`."""
    return bool(_PLAIN.fullmatch(data) or _PLAIN_CRLF.fullmatch(data))


def encode(data: bytes | bytearray | memoryview) -> tuple[str, bytes | bytearray]:
    """The name of the shorter encoding and `data` in it: every byte, line ends included. Lines end in \\n."""
    unsafe = len(data) - _safe(data)
    if _quoted_length(len(data), unsafe) < _base64_length(len(data)):
        return "quoted-printable", binascii.b2a_qp(bytes(data), istext=False)
    return "base64", encode_base64(data)


def encode_text(text: bytes) -> tuple[str, bytes | bytearray]:
    """As `encode`, for lines of text: quoted-printable that keeps the lines, or base64. Plain text is left alone."""
    if is_plain(text):
        return "7bit", text.replace(b"\r\n", b"\n")
    if text.count(b"\r") == text.count(b"\r\n"):
        lines = text.replace(b"\r\n", b"\n")
        unsafe = len(lines) - _safe(lines) - lines.count(b"\n")
        # Lines with both kinds of line ends can only be kept exact in base64.
        one_kind = text.count(b"\r") in (0, lines.count(b"\n"))
        if one_kind and _quoted_length(len(lines), unsafe) < _base64_length(len(text)):
            return "quoted-printable", binascii.b2a_qp(lines, istext=True)
    return "base64", encode_base64(text)


def encode_base64(data: bytes | bytearray | memoryview) -> bytes | bytearray:
    """Base64 in lines of 76 characters."""
    size = (len(data) + 2) // 3 * 4
    lines = bytearray(size + max(size - 1, 0) // 76)
    position = 0
    # Some lines at a time, so that a large file is not there as a million of them.
    for start in range(0, len(data), 57 * 1024):
        encoded = binascii.b2a_base64(data[start : start + 57 * 1024], newline=False)
        block = b"\n".join([encoded[at : at + 76] for at in range(0, len(encoded), 76)])
        lines[position : position + len(block)] = block
        position += len(block) + 1
        if position <= len(lines):
            lines[position - 1] = 10
    return lines


def _safe(data: bytes | bytearray | memoryview) -> int:
    """How many bytes of `data` quoted-printable leaves alone."""
    return len(data) - len(bytes(data).translate(None, _QP_SAFE))


def _quoted_length(size: int, unsafe: int) -> int:
    length = size + 2 * unsafe
    return length + length // 75 * 2


def _base64_length(size: int) -> int:
    length = (size + 2) // 3 * 4
    return length + length // 76
