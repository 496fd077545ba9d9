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
import re

# RFC 5322 section 2.1.1: without the line end.
MAX_LINE = 998

IDENTITY = {"", "7bit", "8bit", "binary", "7-bit", "8-bit", "7bits", "8bits"}
UUENCODED = {"x-uuencode", "uuencode", "x-uue", "uue"}

# Text that may travel as it is: ASCII without NUL, with line ends that are all of one kind.
_PLAIN = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x7f]*+(?:\n[\x01-\x09\x0b\x0c\x0e-\x7f]*+)*+")
_PLAIN_CRLF = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x7f]*+(?:\r\n[\x01-\x09\x0b\x0c\x0e-\x7f]*+)*+")
_LONG_LINE = re.compile(rb"[^\n]{%d}" % (MAX_LINE + 1))
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=\s]")
_BASE64_LEFT_OVER = re.compile(rb"(?:[A-Za-z0-9+/]\s*){4,}+(?:=\s*){0,2}+\Z|\s*\Z")
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


def decode_base64(data: bytes | memoryview) -> tuple[bytes, str | None]:
    """Every byte that can be got out of base64 (RFC 2045 section 6.8) with characters missing or added."""
    try:
        decoded = binascii.a2b_base64(data)
        complaint = None
    except binascii.Error:
        complaint = "base64 that is cut off"
        letters = _NOT_BASE64.sub(b"", bytes(data)).translate(None, b"=\r\n\t \v\f")
        # Three letters left over are two bytes, two are one byte, one is less than a byte.
        letters = letters[: len(letters) - 1] if len(letters) % 4 == 1 else letters
        decoded = binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))
    # a2b_base64 stops at the padding. Some mailers pad in the middle and go on; what list software adds below
    # the padding is no base64, and stays out.
    if len(decoded) * 4 // 3 + 4 < len(data):
        more = _after_padding(bytes(data))
        if more is not None:
            return decoded + more[0], "base64 that goes on after its padding"
    if complaint is None and _NOT_BASE64.search(data):
        complaint = "base64 with other characters in it"
    return decoded, complaint


def _after_padding(data: bytes) -> tuple[bytes, str | None] | None:
    """What follows the first padding, decoded; None when nothing does or it is no base64."""
    pieces: list[bytes] = []
    position = data.find(b"=")
    while position >= 0:
        while data[position : position + 1] in (b"=", b"\r", b"\n", b" ", b"\t") and position < len(data):
            position += 1
        end = data.find(b"=", position)
        piece = data[position : len(data) if end < 0 else end].translate(None, b"\r\n\t ")
        position = end
        if not piece:
            break
        if _NOT_BASE64.search(piece) or len(piece) % 4 == 1 or (end < 0 and len(piece) % 4):
            return None
        pieces.append(binascii.a2b_base64(piece + b"=" * (-len(piece) % 4)))
    return (b"".join(pieces), None) if pieces else None


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
            try:
                decoded.append(binascii.a2b_uu(line[: letters + 1]))
            except binascii.Error:
                pass  # the complaint above says it
    else:
        complaint = complaint or "uuencoded text without an end line"
    return b"".join(decoded), complaint


def is_plain(data: bytes | memoryview) -> bool:
    """True for text that needs no encoding: ASCII, no NUL, whole line ends of one kind, lines within `MAX_LINE`."""
    return bool(_PLAIN.fullmatch(data) or _PLAIN_CRLF.fullmatch(data)) and not _LONG_LINE.search(data)


def encode(data: bytes | memoryview) -> tuple[str, bytes]:
    """The name of the shorter encoding and `data` in it: every byte, line ends included. Lines end in \\n."""
    unsafe = len(data) - _safe(data)
    if _quoted_length(len(data), unsafe) < _base64_length(len(data)):
        return "quoted-printable", binascii.b2a_qp(bytes(data), istext=False)
    return "base64", encode_base64(data)


def encode_text(text: bytes) -> tuple[str, bytes]:
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


def encode_base64(data: bytes | memoryview) -> bytes:
    """Base64 in lines of 76 characters."""
    view = memoryview(data)
    encoded = binascii.b2a_base64(view, newline=False)
    return b"\n".join([encoded[start : start + 76] for start in range(0, len(encoded), 76)])


def _safe(data: bytes | memoryview) -> int:
    """How many bytes of `data` quoted-printable leaves alone."""
    return len(data) - len(bytes(data).translate(None, _QP_SAFE))


def _quoted_length(size: int, unsafe: int) -> int:
    length = size + 2 * unsafe
    return length + length // 75 * 2


def _base64_length(size: int) -> int:
    length = (size + 2) // 3 * 4
    return length + length // 76
