"""A header section: a dictionary to whoever uses it, and the exact bytes that came in to whoever forwards it.

    >>> headers, size = Headers.parse("Received: a\\nSUBJECT:  =?utf-8?q?caf=C3=A9?=\\nReceived: b\\n", Defects(), "")
    >>> headers["subject"], headers.get_all("received")
    ('café', ['a', 'b'])
    >>> headers["Subject"] = "tea"
    >>> headers.raw("\\n")
    'Received: a\\nSUBJECT: tea\\nReceived: b\\n'

Names are found in any case. A header that comes several times is kept every time, in order: ``headers[name]`` is the
first, `get_all` gives them all, `add` adds one more, and assigning makes it one again. Values are decoded when they
are first asked for. Only headers that were assigned or added are written anew, the others go out as they came in.

The four headers that say how the body is encoded (`CONTENT_KEYS`) are not among the keys; `MailBase` looks after
them.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from lamson.defects import Defects, Note
from lamson.headers import (
    ADDRESS_HEADERS,
    check_name,
    check_value,
    decode_bytes,
    decode_words,
    format_header,
    unfold,
)

CONTENT_KEYS = frozenset({"Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Mime-Version"})

# What they say: ``{"Content-Type": ("text/plain", {"charset": "utf-8"}), ...}``.
ContentEncoding = dict[str, tuple[str | None, dict[str, str]]]

# A header: a name that fits on a line, which obsolete syntax lets spaces follow (RFC 5322 section 4.5.3), and lines
# that go on with space.
_FIELD = re.compile(r"^(([!-9;-~]{1,900}+)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)(?:\n|\Z))", re.M)
# One that is as canonical as we would write it ourselves.
_CANONICAL = re.compile(r"[!-9;-~]++:(?:(?=[^\n]*[!-~])[\t -~]{1,78}\r?\n)++")


@functools.lru_cache(maxsize=1024)
def normalize_header(name: str) -> str:
    """A header's name in the one spelling it has as a key: ``message-ID`` is ``Message-Id``."""
    return "-".join([word.capitalize() for word in name.split("-")])


def header_text(name: str, value: Any) -> str:
    """What was assigned to a header as text: lists joined with commas, bytes decoded, anything else as str() has it.

    Raises `HeaderError` for a line break.
    """
    if isinstance(value, bytes):
        value = decode_bytes(value)
    elif isinstance(value, list | tuple | set | frozenset):
        value = ", ".join(header_text(name, each) for each in value)
    return check_value(name, str(value))


def copy_encoding(encoding: ContentEncoding) -> ContentEncoding:
    """`encoding` with dictionaries of its own, to be changed."""
    return {key: (value, dict(parameters)) for key, (value, parameters) in encoding.items()}


class Field:
    """One header. `raw` is what stood in the message, Latin-1 for bytes, "" for a header that is not to be sent;
    None for one that was written here."""

    __slots__ = ("name", "raw", "value")

    def __init__(self, name: str, raw: str | None, value: str | None):
        self.name = name
        self.raw = raw
        self.value = value


class Headers(dict[str, Any]):
    """The headers of a message or part. See the module."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()):
        super().__init__()
        self.changed = False
        self._fields: list[Field] = []
        self._content: dict[str, Field] = {}
        self._defects: Defects | None = None
        self._where = ""
        for name, value in items.items() if isinstance(items, Mapping) else items:
            self.add(name, value)

    @classmethod
    def parse(cls, block: str, defects: Defects, where: str) -> tuple["Headers", int]:
        """The headers in `block`, which is bytes as Latin-1, and how much of it they are: what is none ends them."""
        headers = cls()
        headers._defects = defects
        headers._where = where
        size = 0
        if block.startswith(("From ", ">From ")):
            # The line an mbox starts a message with.
            size = block.find("\n") + 1 or len(block)
            headers._append(Field("", block[:size], None), "")
        found = _FIELD.findall(block, size)
        if sum([len(field[0]) for field in found]) != len(block) - size:
            found = headers._find_slowly(block, size)
        for raw, name, value in found:
            size += len(raw)
            headers._append(Field(name, raw, None), value)
        return headers, size

    def _find_slowly(self, block: str, position: int) -> list[tuple[str, str, str]]:
        """The fields of a block that has other things in it, which become fields without a name."""
        found: list[tuple[str, str, str]] = []
        while position < len(block):
            field = _FIELD.match(block, position)
            if field is not None:
                found.append((field[1], field[2], field[3]))
            else:
                end = block.find("\n", position) + 1 or len(block)
                line = block[position:end]
                if line[0] not in " \t:" and not line.startswith(("From ", ">From ")):
                    self._note("")("no empty line between header and body")
                    break
                self._note("")("line without a header's name")
                found.append((line, "", ""))
            position += len(found[-1][0])
        return found

    def _note(self, name: str) -> Note:
        return Note(self._defects, f"{self._where}header {name[:80]}".strip())

    def _append(self, field: Field, raw_value: str) -> None:
        self._fields.append(field)
        if field.name:
            key = normalize_header(field.name)
            if key in CONTENT_KEYS:
                self._content.setdefault(key, field)
            else:
                dict.setdefault(self, key, []).append(field)

    # The dictionary

    def __getitem__(self, name: str) -> str:
        return self._text(dict.__getitem__(self, normalize_header(name))[0])

    def __setitem__(self, name: str, value: Any) -> None:
        """Makes `value` the one value of this header, where the first one was. None removes it."""
        key = normalize_header(name)
        if value is None:
            self.pop(key, None)
            return
        text = header_text(name, value)
        fields = dict.get(self, key)
        if fields is None:
            self.add(name, text)
            return
        self.changed = True
        fields[0].raw, fields[0].value = None, text
        self._remove(fields[1:])
        del fields[1:]

    def __delitem__(self, name: str) -> None:
        key = normalize_header(name)
        self._remove(dict.__getitem__(self, key))
        dict.__delitem__(self, key)
        self.changed = True

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and dict.__contains__(self, normalize_header(name))

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self)

    def get(self, name: str, default: Any = None) -> Any:
        fields = dict.get(self, normalize_header(name))
        return default if fields is None else self._text(fields[0])

    # Those of dict would hand out the fields.
    items = MutableMapping.items  # type: ignore[assignment]
    values = MutableMapping.values  # type: ignore[assignment]
    popitem = MutableMapping.popitem
    update = MutableMapping.update
    setdefault = MutableMapping.setdefault
    __eq__ = Mapping.__eq__
    __hash__ = None  # type: ignore[assignment]

    def pop(self, name: str, *default: Any) -> Any:
        """Removes a header and returns its value, of a repeated one the first; `default` when it is not there."""
        if name not in self and default:
            return default[0]
        value = self[name]
        del self[name]
        return value

    def copy(self) -> dict[str, str]:  # type: ignore[override]
        """The headers as a plain dictionary, of repeated ones the first."""
        return dict(self.items())

    def clear(self) -> None:
        for name in list(self):
            del self[name]

    def __repr__(self) -> str:
        return f"Headers({list(self.all_items())!r})"

    # What a dictionary has not

    def get_all(self, name: str) -> list[str]:
        """Every value of a header, in order; an empty list when there is none."""
        return [self._text(field) for field in dict.get(self, normalize_header(name), ())]

    def is_set(self, name: str) -> bool:
        """Whether a value of this header was set since the message was read."""
        return any(field.raw is None for field in dict.get(self, normalize_header(name), ()))

    def all_items(self) -> Iterator[tuple[str, str]]:
        """Every header with its name as a key, in the order of the message, repeated ones each time."""
        for field in self._fields:
            key = normalize_header(field.name)
            if field.name and key not in CONTENT_KEYS:
                yield key, self._text(field)

    def add(self, name: str, value: Any) -> None:
        """Adds a header at the end, also when there is one of that name. Adding None does nothing."""
        if value is None:
            return
        check_name(name)
        text = header_text(name, value)
        self._append(Field(normalize_header(name) if name.islower() else name, None, text), text)
        self.changed = True

    def fill(self, name: str, value: Any) -> None:
        """Adds a header that is read and written as canonical text, but not as raw bytes: nobody sent it."""
        text = unfold(str(value).replace("\n", " "))
        self._append(Field(name, "", text), text)

    # Reading and writing

    def content_value(self, key: str) -> str | None:
        """The value, on one line, of the first of the `CONTENT_KEYS` called `key`; None when there is none."""
        field = self._content.get(key)
        if field is None or field.raw is None:
            return None if field is None else field.value
        value = unfold(field.raw.partition(":")[2])
        return value if value.isascii() else decode_bytes(value.encode("latin-1"), self._note(field.name))

    def _text(self, field: Field) -> str:
        if field.value is None:
            value = unfold((field.raw or "").partition(":")[2])
            if not value.isascii():
                value = decode_bytes(value.encode("latin-1"), self._note(field.name))
            if "=?" in value:
                phrase = normalize_header(field.name) in ADDRESS_HEADERS
                value = decode_words(value, self._note(field.name), phrase)
            field.value = value
        return field.value

    def _remove(self, fields: list[Field]) -> None:
        if fields:
            gone = set(map(id, fields))
            self._fields = [field for field in self._fields if id(field) not in gone]

    def raw(self, eol: str, content: bool = True) -> str:
        """The header section for the wire, Latin-1 for bytes: what came in, and what was changed since in UTF-8,
        its lines ending in `eol`. Without `content`, the `CONTENT_KEYS` are left out."""
        lines = []
        for field in self._fields:
            if not content and normalize_header(field.name) in CONTENT_KEYS:
                continue
            if field.raw is not None:
                lines.append(field.raw)
                continue
            if lines and lines[-1] and not lines[-1].endswith("\n"):
                lines[-1] += eol
            text = format_header(field.name, field.value or "").replace("\n", eol)
            lines.append(text if text.isascii() else text.encode("utf-8").decode("latin-1"))
        return "".join(lines)

    def canonical(self) -> list[str]:
        """Each header, `CONTENT_KEYS` left out, as clean folded lines that end in \\n."""
        lines = []
        for field in self._fields:
            raw = field.raw
            if not field.name or normalize_header(field.name) in CONTENT_KEYS:
                continue
            if raw and "=?" not in raw and _CANONICAL.fullmatch(raw):
                lines.append(raw.replace("\r\n", "\n") if "\r" in raw else raw)
            else:
                lines.append(format_header(field.name, self._text(field)))
        return lines

    def __reduce__(self) -> tuple:
        fields = [(field.name, field.raw, field.value) for field in self._fields]
        return _restore, (type(self), fields, self.changed, self._defects, self._where)


def _restore(cls: type[Headers], fields: list, changed: bool, defects: Defects | None, where: str) -> Headers:
    headers = cls()
    headers.changed, headers._defects, headers._where = changed, defects, where
    for field in fields:
        headers._append(Field(*field), "")
    return headers
