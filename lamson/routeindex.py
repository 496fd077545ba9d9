r"""Which of many regular expressions may match an address, without trying them all.

    >>> index = RouteIndex([r"(?P<name>[a-z]+)-join@lists\.example\.com", r"help@.+", r".+@example\.org"])
    >>> index.candidates("help@example.com")
    [1]

Most expressions have text in them that has to stand in the whole address: ``-join@lists.example.com``
above. Of that text the index knows one piece of up to four characters, the one that the fewest other expressions have,
and it looks up the pieces of an address. So a thousand routes cost an address little more than ten.

What the index does not understand it always names: a candidate may fail to match, but nothing that matches is missing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

PIECE = 4  # characters


class RouteIndex:
    """Made for a list of formats, as they stand in `RouteTable.order`."""

    def __init__(self, formats: Iterable[str]):
        wanted = [set(_pieces(texts)) for texts in map(required_texts, formats)]
        popularity = Counter(piece for pieces in wanted for piece in pieces)
        self._always: list[int] = []
        self._by_piece: dict[str, list[int]] = {}
        for number, pieces in enumerate(wanted):
            if pieces:
                # Of those that are equally rare the longest says most, and the last rule makes it the same every time.
                rarest = min(pieces, key=lambda piece: (popularity[piece], -len(piece), piece))
                self._by_piece.setdefault(rarest, []).append(number)
            else:
                self._always.append(number)
        self._lengths = sorted({len(piece) for piece in self._by_piece})
        self._all = list(range(len(wanted)))

    def candidates(self, address: str) -> list[int]:
        """Return the numbers of the formats that may match, in their order."""
        if not address.isascii():
            return self._all  # in Unicode, letters that look different may be the same but for their case
        text = address.lower()
        get = self._by_piece.get
        found = set()
        for length in self._lengths:
            for start in range(len(text) - length + 1):
                numbers = get(text[start : start + length])
                if numbers is not None:
                    found.update(numbers)
        return sorted([*self._always, *found]) if found else self._always


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        length = min(len(text), PIECE)
        for start in range(len(text) - length + 1):
            yield text[start : start + length]


def required_texts(format: str) -> list[str]:
    r"""Return texts, in lower case and ASCII, that are in everything that the expression matches.

    >>> required_texts(r"(?P<list>[a-z]+)-(?P<action>join|leave)@example\.com")
    ['-', '@example.com']
    """
    # The parser is Python's own, and no public part of it. Whatever it turns into: nothing is required then.
    parser: Any = getattr(re, "_parser", None)
    try:
        parsed = parser.parse(format, re.IGNORECASE)
    except Exception:
        return []
    texts = [""]
    _collect(parsed, texts)
    return [text for text in texts if text]


def _collect(parsed: Any, texts: list[str]) -> None:
    """Add what one sequence requires: to the last text what follows on it at once, after a gap a new one."""
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL" and argument < 128:
            texts[-1] += chr(argument).lower()
        elif name == "SUBPATTERN":
            _collect(argument[-1], texts)
        elif name == "AT":
            continue  # ^ and $ take no room
        else:
            texts.append("")
            if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and argument[0] > 0:
                _collect(argument[-1], texts)
                texts.append("")
