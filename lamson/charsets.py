"""Bytes to text when nobody can be trusted to say what the bytes are.

Senders declare charsets that do not exist (``X-UNKNOWN``, ``DEFAULT``), that are not theirs (Latin-1 sent as
``us-ascii``), or none. `decode` always gives text, and says what was wrong:

    >>> decode(b"caf\\xc3\\xa9", "utf-8")
    ('café', None)
    >>> decode(b"caf\\xc3\\xa9", "x-unknown")
    ('café', "unknown charset 'x-unknown', read as utf-8")

The order is: the declared charset; the larger charset that senders of the declared one often mean; UTF-8, which
other charsets are almost never mistaken for; statistical detection; and last Latin-1, which gives each byte a
character and so loses nothing.

`attempt_decoding` and `guess_encoding_and_decode` are the old Lamson functions. They raise `EncodingError` where
`decode` would go on to Latin-1.
"""

import codecs
import encodings
import encodings.aliases
import functools
import pkgutil

import chardet

from lamson.errors import EncodingError

# Names that mail uses and Python has no codec of that name for.
ALIASES = {
    "ansi_x3.110_1983": "latin_1",  # what Lotus and old Windows mailers call Latin-1
    "cp_850": "cp850",
    "iso_2022_jp_ms": "iso2022_jp_ext",
    "iso_8859_6_e": "iso8859_6",
    "iso_8859_6_i": "iso8859_6",
    "iso_8859_8_e": "iso8859_8",
    "iso_8859_8_i": "iso8859_8",
    "ks_c_5601": "cp949",
    "ks_c_5601_1987": "cp949",
    "macintosh": "mac_roman",
    "unicode_1_1_utf_7": "utf_7",
    "unicode_1_1_utf_8": "utf_8",
    "windows_31j": "cp932",
    "windows_874": "cp874",
    "x_big5": "cp950",
    "x_cp1251": "cp1251",
    "x_cp1252": "cp1252",
    "x_euc_jp": "euc_jp",
    "x_gbk": "gb18030",
    "x_mac_roman": "mac_roman",
    "x_sjis": "cp932",
    "x_x_big5": "cp950",
}

# Mailers that say the first often send the second, which has all its characters and some more.
SUPERSETS = {
    "ascii": "utf-8",
    "big5": "cp950",
    "euc_jp": "euc_jis_2004",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso2022_jp": "iso2022_jp_ext",
    "iso8859-9": "cp1254",
    "shift_jis": "cp932",
    "tis-620": "cp874",
}

# Text codecs of Python's that are not charsets. A stranger who could choose them could make us spend minutes on
# one header: punycode and idna take time in the square of the length.
NOT_CHARSETS = {"idna", "punycode", "raw_unicode_escape", "unicode_escape", "undefined", "mbcs", "oem"}

# Other codecs may give halves of surrogate pairs, which are no characters.
_NO_SURROGATES = {"ascii", "utf-8", "iso8859-1", "cp1252"}

_ASCII = bytes(range(32, 127)).replace(b"\\", b"").replace(b"~", b"")  # Shift JIS has others for these two

# Detection reads at most this much (bytes) of what is not ASCII; more makes it slower and hardly more certain.
DETECTION_SAMPLE = 2048


@functools.lru_cache(maxsize=1)
def known_charsets() -> frozenset[str]:
    """The names `codecs.lookup` may be asked for. It imports modules by name, and remembers every name for ever
    that it could not find, so names out of messages go to it only when they are known here."""
    modules = (module.name for module in pkgutil.iter_modules(encodings.__path__))
    return frozenset([*encodings.aliases.aliases, *modules]) - NOT_CHARSETS


@functools.lru_cache(maxsize=256)
def find_codec(charset: str) -> str | None:
    """Python's name of the codec for a charset's name in any of its spellings; None for what is no charset."""
    name = charset.strip(" \t\r\n\"'").lower()[:64]
    name = "".join(letter if letter.isascii() and letter.isalnum() or letter == "." else "_" for letter in name)
    name = ALIASES.get(name, name).replace(".", "_")
    if name not in known_charsets():
        return None
    try:
        codec = codecs.lookup(name)
    except LookupError:
        return None
    # base64, zlib and kin are codecs from bytes to bytes.
    return codec.name if codec._is_text_encoding and codec.name not in NOT_CHARSETS else None  # type: ignore[attr-defined]


def decode(data: bytes | memoryview, charset: str | None, detect: bool = True) -> tuple[str, str | None]:
    """The text of `data`, and what was wrong with the charset it was declared to have (None: nothing).

    `charset` is None when none was declared, which for mail means ASCII. Never raises. `detect=False` leaves out
    the statistical detection, whose cost a hostile message could otherwise multiply.
    """
    codec = find_codec(charset or "ascii")
    if codec is not None:
        text = _decoded(data, codec)
        if text is not None:
            return text, None
    for guess in _guesses(bytes(data), codec, detect):
        text = _decoded(data, guess)
        if text is not None:
            return text, _complaint(charset, codec, guess)
    return str(data, "latin-1"), _complaint(charset, codec, "latin-1")


def attempt_decoding(charset: str | None, data: bytes | str) -> str:
    """The text of `data`, which is declared to be in `charset`; detected when it is not or there is no such charset.

    A str is returned as it is. Raises `EncodingError` when detection finds no charset for it either.
    """
    if isinstance(data, str):
        return data
    codec = find_codec(charset or "ascii")
    text = _decoded(data, codec) if codec is not None else None
    return guess_encoding_and_decode(charset, data) if text is None else text


def guess_encoding_and_decode(original: str | None, data: bytes, errors: str = "strict") -> str:
    """The text of `data` in the charset that detection finds. `original` is the charset that was claimed for it,
    which is only named in the `EncodingError` raised when nothing is found or what was found does not fit."""
    found = detect_charset(data)
    if found is None:
        raise EncodingError(f"The charset was claimed to be {original!r}, and detection found no other.")
    try:
        return str(data, found, errors)
    except UnicodeError as error:
        raise EncodingError(
            f"The charset was claimed to be {original!r} and detected as {found!r}, but it is neither: {error}"
        ) from error


def detect_charset(data: bytes) -> str | None:
    """The codec of the charset that `data` most likely is in, None when that cannot be told."""
    if _decoded(data, "utf-8") is not None:
        return "utf-8"
    # Only lines that are not ASCII tell anything.
    telling, size = [], 0
    for line in data.splitlines() if len(data) > DETECTION_SAMPLE else [data]:
        if not line.isascii():
            telling.append(line)
            size += len(line)
            if size >= DETECTION_SAMPLE:
                break
    return _detected(b"\n".join(telling)[:DETECTION_SAMPLE])


@functools.lru_cache(maxsize=64)
def _detected(sample: bytes) -> str | None:
    """Detection takes milliseconds, and the same text is often read twice: to be looked at, and to be written."""
    found = chardet.detect(sample)["encoding"]
    codec = find_codec(found) if found else None
    # Whatever it looks like, mail is not sent in EBCDIC.
    is_plausible = codec is not None and (codec.startswith("utf") or _decoded(_ASCII, codec) == _ASCII.decode("ascii"))
    return codec if is_plausible else None


def _guesses(data: bytes, codec: str | None, detect: bool):
    """Codecs to try, best first, for bytes that are not in the declared `codec`."""
    superset = SUPERSETS.get(codec or "")
    if superset is not None:
        yield superset
    yield "utf-8"
    found = detect_charset(data) if detect else None
    if found is not None:
        yield found


def _decoded(data: bytes | memoryview, codec: str) -> str | None:
    try:
        text = str(data, codec)
        if codec not in _NO_SURROGATES:
            text.encode("utf-8")
    except (UnicodeError, ValueError, LookupError):
        return None
    return text


def _complaint(charset: str | None, codec: str | None, used: str) -> str:
    if charset is None:
        return f"8-bit text without a charset, read as {used}"
    if codec is None:
        return f"unknown charset {charset[:40]!r}, read as {used}"
    return f"text is not in its charset {charset[:40]!r}, read as {used}"
