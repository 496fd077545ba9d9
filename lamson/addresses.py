"""Address lists, as people's mailers write them (RFC 5322 section 3.4, and worse).

    >>> parse('"Doe, John" <john@example.com>, friends: a@example.com;, b@example.com (Bob)')
    [('Doe, John', 'john@example.com'), ('', 'a@example.com'), ('Bob', 'b@example.com')]
    >>> bare("Joe <JOE@Example.Com>")
    ['joe@example.com']

Nothing raises: what has no address in it gives none. Names come out as they went in, decode them before.
"""

import re

from lamson.headers import ADDRESS_PIECES, unquote

_BARE = re.compile(r'[^\s<>()\[\],;:"\\@]+@[^\s<>()\[\],;:"\\@]+')


def parse(text: str) -> list[tuple[str, str]]:
    """The mailboxes in an address list as ``(name, address)``. Groups are taken apart, ``<>`` is no address."""
    if _BARE.fullmatch(text):
        return [("", text)]
    mailboxes: list[tuple[str, str]] = []
    phrase: list[str] = []
    comments: list[str] = []
    route: str | None = None
    depth = 0
    for piece in [*ADDRESS_PIECES.findall(text), ","]:
        first = piece[0]
        if first == "(":
            depth += not piece.endswith(")") or piece.endswith("\\)")
            comments.append(piece.strip("()"))
        elif depth and first != ",":
            # The rest of a comment that had a comment in it.
            depth -= piece.count(")")
            comments.append(piece.strip(")"))
        elif first in ",;":
            mailboxes.extend(_mailboxes(phrase, comments, route))
            phrase, comments, route, depth = [], [], None, 0
        elif first == ":" and route is None:
            # The name of a group, unless it has an address in it, which is more worth keeping.
            mailboxes.extend(_mailboxes(phrase, comments, None) if "@" in "".join(phrase) else [])
            phrase, comments = [], []
        elif first == "<" and (route is None or not route):
            route = piece.strip("<> \t").rpartition(":")[2] if piece.startswith("<@") else piece.strip("<> \t")
        else:
            phrase.append(piece)
    return mailboxes


def bare(text: str) -> list[str]:
    """The addresses in an address list, without names, in lower case, in order."""
    return [address.lower() for _, address in parse(text)]


def _mailboxes(phrase: list[str], comments: list[str], route: str | None) -> list[tuple[str, str]]:
    """What stood between two commas: usually one mailbox, several when somebody forgot the commas."""
    if route is not None:
        address = "".join(route.split())
        return [(_name(phrase, comments), address)] if address else []
    text = "".join(phrase).strip()
    if "@" not in text:
        # A local user, as in "To: postmaster".
        return [("", text)] if text and not re.search(r'[\s"]', text) else []
    if text.startswith('"') or " @" in text or "@ " in text:
        words = ["".join(phrase) if text.startswith('"') else "@".join(part.strip() for part in text.split("@"))]
    else:
        words = text.split()
    found = [word.strip() for word in words if "@" in word]
    name = "".join(comments).strip() if len(words) == 1 else " ".join(word for word in words if "@" not in word)
    return [(name, address) for address in found if address.strip("@")]


def _name(phrase: list[str], comments: list[str]) -> str:
    return " ".join("".join(map(unquote, phrase)).split()) or "".join(comments).strip()


def bare_address(path: str) -> str:
    """One address of an envelope, without the name that a person may have written in front of it.

    It is not looked into otherwise: what the server took as one address stays one, whatever is in its quotes.
    """
    path = path.strip(" \t")
    if path.endswith(">"):
        return next((address for _, address in parse(path) if address), "")
    return path
