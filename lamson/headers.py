"""Header values: from what is on the wire to clean Unicode, and back.

    >>> decode_words("=?iso-8859-1?q?Andr=E9?= Pirard")
    'André Pirard'
    >>> encode_words("André Pirard")
    '=?utf-8?b?QW5kcsOp?= Pirard'
    >>> parse_parameters("attachment; filename*=utf-8''caf%C3%A9.txt")
    ('attachment', {'filename': 'café.txt'})

Encoded words are those of RFC 2047, parameters those of RFC 2045 and RFC 2231. What is decoded came from strangers,
so nothing here raises for it; whatever is wrong is told to the `note` given. What goes out is ours, so a line
break in it, which would let somebody write headers of their own, raises `HeaderError`.
"""

import binascii
import re
import string
from urllib.parse import unquote_to_bytes

from lamson import charsets, transfer
from lamson.defects import NO_NOTE, Note
from lamson.errors import MisuseError

# Headers whose value is a list of addresses, where only names and comments may have encoded words.
ADDRESS_HEADERS = frozenset(
    {
        "Bcc", "Cc", "Delivered-To", "Disposition-Notification-To", "Errors-To", "From", "Mail-Followup-To",
        "Mail-Reply-To", "Reply-To", "Resent-Bcc", "Resent-Cc", "Resent-From", "Resent-Reply-To", "Resent-Sender",
        "Resent-To", "Return-Path", "Sender", "To", "X-Original-To",
    }
)  # fmt: skip

# RFC 5322 section 2.1.1, RFC 2047 section 2: lengths of lines and of one encoded word.
FOLD_AT = 78
MAX_WORD = 75

# An encoded word may have spaces and a few question marks where it should not, but not the beginning of another one:
# a header made of nothing but beginnings is not to be searched to its end from each of them.
_WORD = re.compile(
    r"=\?([^?\s]{0,64})\?([bBqQ])\?((?:[^?=]|=(?!\?(?!=)))*+(?:\?(?!=)(?:[^?=\s]|=(?!\?(?!=)))*+){0,8})\?="
)
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_NEEDS_WORDS = re.compile(r"[^\t -~]|=\?")
# What may stand unescaped in an encoded word anywhere, RFC 2047 section 5.3.
_Q_SAFE = frozenset((string.ascii_letters + string.digits + "!*+-/").encode())
_Q = [chr(code) if code in _Q_SAFE else "_" if code == 32 else f"={code:02X}" for code in range(256)]
_B64_STEP = 45
# Parts of an address list: quoted string, comment, route, separator, space, anything else.
ADDRESS_PIECES = re.compile(
    r'"(?:[^"\\]++|\\.)*+"?|\((?:[^()\\]++|\\.)*+\)?|<[^<>]*+>?|\[[^\[\]]*+\]?|[,;:]|[ \t]++|[^"(<\[,;: \t]++|.', re.S
)
_SEGMENTS = re.compile(r'(?:[^;"]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))++', re.S)
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)', re.S)
_ESCAPED = re.compile(r'\\(["\\])')
_NAME = re.compile(r"[!-9;-~]+")
_TOKEN = re.compile(r"[A-Za-z0-9!#$&+.^_`{|}~-]+")
_TYPE = re.compile(r"[A-Za-z0-9!#$&+.^_`{|}~-]+/[A-Za-z0-9!#$&+.^_`{|}~-]+")
_CONTINUATION = re.compile(r"([^*]+)\*(?:(\d{1,9})(\*)?)?")
# RFC 2231 section 7, attribute-char.
_PERCENT_SAFE = frozenset((string.ascii_letters + string.digits + "!#$&+-.^_`{|}~").encode())


class HeaderError(MisuseError, ValueError):
    """A header's name or value cannot be sent as it is, and would do harm if it were."""


# In


def unfold(value: str) -> str:
    """A header's value as one line (RFC 5322 section 2.2.3); a lone carriage return becomes a space."""
    if "\n" in value:
        value = value.replace("\r\n", "").replace("\n", "")
    if "\r" in value:
        value = value.rstrip("\r").replace("\r", " ")
    return value.strip(" \t")


def decode_bytes(value: bytes, note: Note = NO_NOTE) -> str:
    """The text of a raw header value: UTF-8 if it can be (RFC 6532), otherwise what detection says."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        text, complaint = charsets.decode(value, None, note.detect)
        note(complaint or "8-bit header")
        return _one_line(text)


def decode_words(value: str, note: Note = NO_NOTE, phrase: bool = False) -> str:
    """`value` with its encoded words decoded. Line breaks that were hidden in them become spaces.

    With `phrase` the value is a list of addresses: a decoded name is quoted where a reader of addresses would
    otherwise take it apart, as in ``"Doe, John" <john@example.com>``.
    """
    if "=?" not in value:
        return value
    decoded: list[str] = []
    words: list[tuple[str, bytes]] = []
    position = 0
    quotes = 0
    for word in _WORD.finditer(value):
        between = value[position : word.start()]
        if words and between.strip(" \t"):
            decoded.append(_phrase(_join_words(words, note), quotes) if phrase else _join_words(words, note))
            words = []
        if not words:
            decoded.append(between)
            quotes += between.count('"')
        words.append((word[1].partition("*")[0], _decode_word(word[2], word[3], note)))
        position = word.end()
    if words:
        decoded.append(_phrase(_join_words(words, note), quotes) if phrase else _join_words(words, note))
    decoded.append(value[position:])
    return "".join(decoded)


def _decode_word(encoding: str, text: str, note: Note) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if encoding in "qQ":
        return transfer.decode_q(data)
    decoded, complaint = transfer.decode_base64(data)
    if complaint is not None:
        note(complaint)
    return decoded


def _join_words(words: list[tuple[str, bytes]], note: Note) -> str:
    """The text of encoded words that follow each other. Mailers split them inside a character, so words of one
    charset are put together before they are decoded, unless that makes things worse."""
    texts: list[str] = []
    start = 0
    while start < len(words):
        charset = words[start][0]
        end = start
        while end < len(words) and words[end][0].lower() == charset.lower():
            end += 1
        data = [data for _, data in words[start:end]]
        text, complaint = charsets.decode(b"".join(data), charset, note.detect)
        if complaint is not None:
            note(complaint)
            text = "".join(charsets.decode(each, charset, note.detect)[0] for each in data)
        texts.append(text)
        start = end
    joined = "".join(texts)
    if "\n" in joined or "\r" in joined:
        note("line break in an encoded word")
    return _one_line(joined)


def _one_line(text: str) -> str:
    """`text` with spaces for line breaks, which somebody may have hidden in it."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _phrase(text: str, quotes: int) -> str:
    """`text` as part of a display name, escaped when it stands inside quotes, quoted when it has to be."""
    if quotes % 2:
        return text.replace("\\", "\\\\").replace('"', '\\"')
    return quote_name(text)


def quote_name(name: str) -> str:
    """A display name as RFC 5322 wants it: quoted when it has any of the characters with a meaning in addresses."""
    if any(letter in '()<>[]:;@\\,"' for letter in name):
        return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return name


def parse_parameters(text: str, note: Note = NO_NOTE) -> tuple[str, dict[str, str]]:
    """The value of a header such as Content-Type, in lower case, and its parameters, decoded, names in lower case.

    Of a parameter given twice the first counts, and the RFC 2231 form before the plain one. A value cut into
    pieces is put together again.
    """
    segments = _SEGMENTS.findall(text)
    if not segments:
        return "", {}
    value = segments[0].strip()
    if "=" in value and not value.startswith(("=", '"')):
        # "Content-Type: text/plain charset=us-ascii", or no value at all, only a parameter.
        value, _, first = value.rpartition(" ") if "=" in value.rpartition(" ")[2] else ("", "", value)
        segments[0] = first
    else:
        segments[0] = ""
    parameters: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[bool, str]]] = {}
    for segment in segments:
        name, equals, content = segment.partition("=")
        name = name.strip().lower()
        if not equals or not name.isascii():
            continue
        content = unquote(content.strip())
        continued = _CONTINUATION.fullmatch(name)
        if continued is not None and _TOKEN.fullmatch(continued[1]):
            index, encoded = int(continued[2] or 0), continued[2] is None or continued[3] is not None
            pieces.setdefault(continued[1], {}).setdefault(index, (encoded, content))
            parameters.setdefault(continued[1], "")
        elif _TOKEN.fullmatch(name):
            parameters.setdefault(name, _clean(decode_words(content, note), note))
    for name, numbered in pieces.items():
        parameters[name] = _clean(_join_pieces(numbered, note), note)
    return value.strip().lower(), parameters


def unquote(content: str) -> str:
    """`content` without the quotes around it, if there are any."""
    if not content.startswith('"'):
        return content
    content = _QUOTED.match(content)[1]  # type: ignore[index]
    # Only these two are unescaped: what Windows mailers send as "C:\dir\file" is no escape.
    return _ESCAPED.sub(r"\1", content) if "\\" in content else content


def _join_pieces(numbered: dict[int, tuple[bool, str]], note: Note) -> str:
    """The value of a parameter in RFC 2231 form: ``utf-8'en'caf%C3%A9``, perhaps in several pieces."""
    charset = None
    data: list[bytes] = []
    for _, (encoded, content) in sorted(numbered.items()):
        if encoded and not data and content.count("'") >= 2:
            charset, _, content = content.split("'", 2)
        data.append(unquote_to_bytes(content) if encoded else content.encode("utf-8", "surrogateescape"))
    text, complaint = charsets.decode(b"".join(data), charset or "utf-8", note.detect)
    if complaint is not None:
        note(complaint)
    # RFC 2047 inside RFC 2231 is wrong, and sent.
    return decode_words(text, note)


def _clean(content: str, note: Note) -> str:
    if "\n" in content or "\r" in content:
        note("line break in a parameter")
    return _one_line(content)


# Out


def check_value(name: str, value: str) -> str:
    """`value`; raises `HeaderError` when it has a line break in it."""
    if "\n" in value or "\r" in value:
        raise HeaderError(f"The value of {name} has a line break in it: {value[:80]!r}. A header is one line.")
    return value


def check_name(name: str) -> str:
    """`name`; raises `HeaderError` when it cannot be the name of a header (RFC 5322 section 3.6.8)."""
    if not _NAME.fullmatch(name):
        raise HeaderError(f"{name[:80]!r} cannot be the name of a header: ASCII letters, digits and - can.")
    return name


def encode_words(text: str, room: int = MAX_WORD) -> str:
    """`text` in ASCII: words that need it become encoded words, q or b by which is shorter.

    `room` is the space for the first of them, when it has to stand on the line of the header's name.
    """
    if not _NEEDS_WORDS.search(text):
        return text
    tokens = re.split(r"([ \t]+)", text)
    needing = [index for index in range(0, len(tokens), 2) if _NEEDS_WORDS.search(tokens[index])]
    encoded: list[str] = []
    done = 0
    position = 0
    while position < len(needing):
        first = last = needing[position]
        while position + 1 < len(needing) and needing[position + 1] == last + 2:
            position += 1
            last = needing[position]
        position += 1
        encoded.extend(tokens[done:first])
        encoded.append(_encode_run("".join(tokens[first : last + 1]), MAX_WORD if first else room))
        done = last + 1
    encoded.extend(tokens[done:])
    return "".join(encoded)


def _encode_run(text: str, room: int) -> str:
    data = text.encode("utf-8", "surrogatepass")
    quoted = [_Q[byte] for byte in data]
    short = sum(map(len, quoted)) <= (len(data) + 2) // 3 * 4
    room = max(room, 24)
    words: list[str] = []
    start = 0
    while start < len(data):
        end = min(start + _B64_STEP, len(data))
        available = (room if start == 0 else MAX_WORD) - len("=?utf-8?q??=")
        if short:
            end = start
            used = 0
            while end < len(data) and used + len(quoted[end]) <= available:
                used += len(quoted[end])
                end += 1
        else:
            end = min(start + available // 4 * 3, len(data))
        # Not inside a character: RFC 2047 section 5.
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        if short:
            words.append("=?utf-8?q?" + "".join(quoted[start:end]) + "?=")
        else:
            words.append("=?utf-8?b?" + binascii.b2a_base64(data[start:end], newline=False).decode("ascii") + "?=")
        start = end
    return " ".join(words)


def encode_addresses(text: str, room: int = MAX_WORD) -> str:
    """A list of addresses with encoded words for names and comments. Addresses stay as they are (RFC 6531)."""
    if not _NEEDS_WORDS.search(text):
        return text
    encoded: list[str] = []
    phrase: list[str] = []

    def end_phrase(before_route: bool) -> None:
        joined = "".join(phrase)
        # A bare address has no name in front of it.
        if not _NEEDS_WORDS.search(joined) or (not before_route and "@" in joined and '"' not in joined):
            encoded.append(joined)
        else:
            inner = joined.strip(" \t")
            lead = joined[: len(joined) - len(joined.lstrip(" \t"))]
            trail = joined[len(joined.rstrip(" \t")) :]
            name = "".join(unquote(piece) if piece.startswith('"') else piece for piece in phrase).strip(" \t")
            encoded.append(lead + _encode_run(name, MAX_WORD if encoded or lead else room) + trail if inner else joined)
        phrase.clear()

    addresses = (piece for piece in ADDRESS_PIECES.findall(text) if "@" in piece and piece[0] not in '("')
    if "=?" not in text and not all(piece.isascii() for piece in addresses):
        # An address that is not ASCII needs UTF-8 headers (RFC 6532), which then do for the names as well.
        return text
    for piece in ADDRESS_PIECES.findall(text):
        if piece[0] in "<,;:":
            end_phrase(piece[0] == "<")
            encoded.append(piece)
        elif piece[0] == "(":
            end_phrase(False)
            inner = piece[1:-1] if piece.endswith(")") else piece[1:]
            encoded.append(f"({_encode_run(inner, MAX_WORD - 2)})" if _NEEDS_WORDS.search(inner) else piece)
        else:
            phrase.append(piece)
    end_phrase(False)
    return "".join(encoded)


def format_header(name: str, value: str) -> str:
    """The lines of a header, in ASCII wherever the standards allow, each ending in \\n, folded at 78 characters.

    Raises `HeaderError` for line breaks in the value or a name that is none.
    """
    check_name(name)
    if len(name) + len(value) < FOLD_AT - 2 and value.isascii() and value.isprintable() and "=?" not in value:
        return f"{name}: {value.strip(' ')}\n"  # as most are
    check_value(name, value)
    value = value.strip(" \t")
    is_addresses = name.title() in ADDRESS_HEADERS
    room = FOLD_AT - len(name) - 2
    encoded = encode_addresses(value, room) if is_addresses else encode_words(value, room)
    # Some programs take more characters for line ends than mail does, so none of them goes out in an address either.
    folded = fold(f"{name}: {encoded}") if not _CONTROLS.search(encoded) else ""
    if folded is None and is_addresses:
        # Lists of addresses may be folded at their commas.
        pieces = ADDRESS_PIECES.findall(encoded)
        folded = fold(f"{name}: " + "".join(piece + " " if piece == "," else piece for piece in pieces))
    # A run without a space longer than a line may be: only encoded words can be cut.
    return folded or fold(f"{name}: {_encode_run(value, room)}") or ""


def fold(line: str) -> str | None:
    """A header line folded at 78 characters where it has spaces; None when a line would be over 998 bytes."""
    if len(line) <= FOLD_AT:
        return line + "\n"
    tokens = re.findall(r"[ \t]*[^ \t]+", line)
    lines: list[str] = []
    current = tokens[0] + (tokens[1] if len(tokens) > 1 else "")
    length = len(current)
    pieces = [current]
    for token in tokens[2:]:
        if length + len(token) > FOLD_AT:
            lines.append("".join(pieces))
            pieces, length = [], 0
        pieces.append(token)
        length += len(token)
    lines.append("".join(pieces))
    if any(len(each.encode("utf-8", "surrogatepass")) > transfer.MAX_LINE for each in lines):
        return None
    return "\n".join(lines) + "\n"


def format_parameters(name: str, value: str, parameters: dict[str, str]) -> str:
    """The lines of a header with parameters, as `format_header`. Values that are not ASCII go out as RFC 2231."""
    check_value(name, value)
    lines = [f"{name}: {value}"]
    for key, content in parameters.items():
        if content is None:
            continue
        content = str(content)
        if not _TOKEN.fullmatch(key):
            raise HeaderError(f"{key[:80]!r} cannot be a parameter of {name}.")
        check_value(f"{name} ({key})", content)
        for piece in _format_parameter(key, content):
            lines[-1] += ";"
            if len(lines[-1]) + 1 + len(piece) <= FOLD_AT - 1:
                lines[-1] += " " + piece
            else:
                lines.append(" " + piece)
    return "\n".join(lines) + "\n"


def _format_parameter(key: str, content: str) -> list[str]:
    if all(" " <= letter <= "~" for letter in content) and "=?" not in content:
        if _TOKEN.fullmatch(content) and len(key) + len(content) < FOLD_AT - 4:
            return [f"{key}={content}" if key != "charset" else f'{key}="{content}"']
        quoted = '"' + content.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if len(key) + len(quoted) < FOLD_AT - 4 or key == "boundary":
            return [f"{key}={quoted}"]
    data = content.encode("utf-8", "surrogatepass")
    percent = [chr(byte) if byte in _PERCENT_SAFE else f"%{byte:02X}" for byte in data]
    whole = f"{key}*=utf-8''" + "".join(percent)
    if len(whole) < FOLD_AT - 3:
        return [whole]
    pieces: list[str] = []
    current = f"{key}*0*=utf-8''"
    for letters in percent:
        if len(current) + len(letters) > FOLD_AT - 4:
            pieces.append(current)
            current = f"{key}*{len(pieces)}*="
        current += letters
    pieces.append(current)
    return pieces


def is_type(value: str | None) -> bool:
    """True for ``text/plain`` and its like: two tokens and a slash (RFC 2045 section 5.1)."""
    return value is not None and _TYPE.fullmatch(value) is not None


def is_token(value: str | None) -> bool:
    """True for a word that may stand in a header without quotes (RFC 2045 section 5.1)."""
    return value is not None and _TOKEN.fullmatch(value) is not None
