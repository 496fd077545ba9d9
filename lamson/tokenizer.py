"""The tokens of a message: what a spam filter learns from, sorted by the aspect of the message they tell about.

    >>> from lamson.encoding import from_string
    >>> found = tokenize(from_string(b"From: zoe@mail.example.com\\nSubject: Free tea\\n\\nGet FREE tea!\\n"))
    >>> sorted(found["words"])
    ['free', 'get', 'tea!']
    >>> sorted(found["form"])
    ['case:FREE', 'case:Get', 'content-type:text/plain', 'parts:text/plain', 'shouts:7']

The aspects are those of `ASPECTS`. A token is a word of the text as it is, or has a prefix that says where it stood:
``subject:free``, ``url:example``, ``from:addr:example.com``. Where SpamBayes has a token of the same meaning it is
spelled the same, so that what SpamBayes was trained with can be imported.

Nothing raises, whatever the message is. Of a message that is longer than the limits below only the beginning counts.
"""

import html
import re
import string
from collections.abc import Iterator

from lamson import addresses, charsets
from lamson.mime import MailBase

# What there is to a message; `lamson.classifier` asks each of them by itself. What comes together is one aspect: a
# newsletter that is wanted has HTML, many links and large letters, as an advertisement has.
ASPECTS = ("subject", "address", "route", "stamp", "headers", "words", "form")

# Characters of text (all parts together), parts, and headers of one name that are looked at.
MAX_TEXT = 60_000
MAX_PARTS = 100
MAX_REPEATS = 30

# Characters of a word: of longer ones only the length counts. A longer e-mail address is taken apart, and what else a
# sender wrote is cut off.
SHORTEST, LONGEST = 3, 20
LONGEST_ADDRESS = 12
MAX_VALUE = 40

Tokens = dict[str, set[str]]

# Headers that other filters, mailboxes and mail programs add later. They tell what somebody made of the message, which
# is not to be learned from, since the next message will not have it yet.
_ADDED_LATER = re.compile(
    r"x-(?:spam|bogosity|virus|status|uid|keywords|mozilla|evolution|gnus|sieve|mailscanner|folder|original-to)"
    r"|(?:status|lines|xref|delivered-to|delivery-date|return-path|envelope-to|authentication-results|arc-)"
)
_SUBJECT_WORD = re.compile(r"[\w$.%]+")
_PUNCTUATION = re.compile(r"[^\w\s]+|\s\s+")
_NAME_WORD = re.compile(r"\w+")
_PRIVATE_IP = re.compile(r"127\.|10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|169\.254\.")
_DOTTED = re.compile(r"[a-z0-9_.-]++")
_REMARK = re.compile(r"\(([a-z]+(?: [a-z]+)+)\)")
_PROTOCOL = re.compile(r" with (\S+)")
_ZONE = re.compile(r"([+-]\d{4})?\s*(?:\(([^()]{1,20})\))?\s*([A-Z]{2,5})?\s*$")
_HOUR = re.compile(r"\b(\d\d):\d\d")
_MAILER_WORD = re.compile(r"[\w.@/:+-]+")
_LINK = re.compile(r"://([^\s<>\"']{1,500})")
_MAILTO = re.compile(r"mailto:([^\s<>\"']{1,500})")
_WWW = re.compile(r"www\.[^\s<>\"']{1,500}")
_SCHEME = re.compile(r"[a-z]+\Z")
_LINK_PIECE = re.compile(r"[;?:@&=+,$./]+")
_MARKUP = re.compile(r"<(?:html|body|table|br|p|a|font|img|div|span)\b", re.I)
_TAG = re.compile(r"<(/?[a-z][a-z0-9]{0,15}+|!doctype)\b[^<>]*+>", re.I)
_BLOCKS = frozenset("p br div td tr th table h1 h2 h3 h4 h5 h6 li ul ol dl dt dd center hr".split())
_MONEY = re.compile(r"[$£€]\s?\d[\d,.]*")
_CAPITALS = string.ascii_uppercase.encode()
_DIGIT = re.compile(r"\d")
_SHAPES = ((re.compile(r"[0-9]+"), "9"), (re.compile(r"[A-Z]+"), "A"), (re.compile(r"[a-z]+"), "a"))


def tokenize(message: MailBase) -> Tokens:
    """The tokens of `message` by aspect; an aspect that it has nothing of is an empty set."""
    found: Tokens = {aspect: set() for aspect in ASPECTS}
    _subject(message, found["subject"])
    _addresses(message, found["address"])
    _route(message, found["route"])
    _stamp(message, found["stamp"])
    _headers(message, found["headers"])
    text = "\n".join(_texts(message, found["form"]))
    _words(text, found["words"], found["form"])
    _form(text, found["form"])
    return found


# --- the header section ------------------------------------------------------------------------------------------


def _subject(message: MailBase, found: set[str]) -> None:
    subject = (message["Subject"] or "")[:1000]
    words = [word.lower()[:LONGEST] for word in _SUBJECT_WORD.findall(subject)]
    found.update([f"subject:{word}" for word in words])
    # Two words say more than each of them, and the first and the last one more than those in between.
    found.update([f"subject:{first} {second}" for first, second in zip(["^", *words], [*words, "$"], strict=True)])
    found.update([f"subject:{run[:10]}" for run in _PUNCTUATION.findall(subject)])


def _addresses(message: MailBase, found: set[str]) -> None:
    for header in ("from", "to", "cc", "reply-to"):
        values = message.get_all(header)[:MAX_REPEATS]
        mailboxes = [mailbox for value in values for mailbox in addresses.parse(value[:5000])]
        if not mailboxes:
            found.add(f"{header}:none")
            continue
        found.add(f"{header}:2**{len(mailboxes).bit_length()}")
        for name, address in mailboxes[:MAX_REPEATS]:
            local, _, host = address.lower().rpartition("@")
            found.add(f"{header}:addr:{local[:MAX_VALUE]}")
            found.update(_with_parents(f"{header}:addr:", host))
            if header != "from":
                found.update([f"{header}:name:{word[:LONGEST]}" for word in _NAME_WORD.findall(name.lower())[:10]])
            if not name:
                found.add(f"{header}:no real name")


def _route(message: MailBase, found: set[str]) -> None:
    hops = "\n".join([hop[:1000].partition(";")[0] for hop in message.get_all("Received")[:MAX_REPEATS]]).lower()
    for name in {word.strip(".-") for word in set(_DOTTED.findall(hops)) if "." in word}:
        if not name.replace(".", "").isdigit():
            found.update(_with_parents("received:", name))
        elif _PRIVATE_IP.match(name):
            found.add("received:private")
        elif name.count(".") == 3:
            network, _, _ = name.rpartition(".")
            found.update([f"received:{network}", f"received:{network.rpartition('.')[0]}"])
            found.add(f"received:{network.partition('.')[0]}")
    found.update([f"received:({remark})" for remark in _REMARK.findall(hops)])
    found.update([f"received:with {protocol[:20]}" for protocol in _PROTOCOL.findall(hops)])


def _stamp(message: MailBase, found: set[str]) -> None:
    """Message-ID and Date, which tell much of the program that wrote them."""
    local, _, host = (message["Message-Id"] or "").strip(" <>").rpartition("@")
    found.add(f"message-id:{_shape(local)}")
    found.update(_with_parents("message-id:@", host.lower()))
    date = (message["Date"] or "")[:100]
    zone = _ZONE.search(date)
    if zone is not None:
        found.add(f"date:zone:{zone[1]} {zone[2] or zone[3]}")
    hour = _HOUR.search(date)
    if hour is not None:
        found.add(f"date:hour:{hour[1]}")
    found.add(f"date:{_shape(date)}")


def _headers(message: MailBase, found: set[str]) -> None:
    """Which headers there are, and what those say that programs write."""
    names = [name.lower() for name in message]
    found.update([f"header:{name[:MAX_VALUE]}" for name in names if not _ADDED_LATER.match(name)])
    for name in ("x-mailer", "user-agent"):
        mailer = (message[name] or "").lower()
        if mailer:
            found.add(f"x-mailer:{mailer[:60]}")
            found.update([f"x-mailer:{word[:LONGEST]}" for word in _MAILER_WORD.findall(mailer)[:12]])
    for name in ("x-priority", "x-msmail-priority", "importance", "precedence"):
        value = message[name]
        if value is not None:
            found.add(f"{name}:{value[:LONGEST].lower()}")
    version = message.content_encoding["Mime-Version"][0]
    found.add(f"mime-version:{(version or 'none')[:LONGEST]}")


# --- the body ----------------------------------------------------------------------------------------------------


def _texts(message: MailBase, found: set[str]) -> Iterator[str]:
    """Yield what a reader sees of each text part, and collect what there is to say about the parts and their links."""
    kinds = []
    room = MAX_TEXT
    for part in _parts(message):
        kind = part.content_type[:MAX_VALUE]
        kinds.append(kind)
        found.update(_about_part(part, kind))
        if part.parts:
            continue
        if not (kind.startswith(("text/", "multipart/")) and room > 0):
            size = len(part.source.body()) if part.source is not None else len(part.content)
            found.add(f"size:{kind} {size.bit_length()}")
            continue
        # What the text says of its charset is good enough; detecting another one takes longer than all the rest.
        charset = part.content_encoding["Content-Type"][1].get("charset")
        text = charsets.decode(part.content[: 4 * room], charset, detect=False)[0][:room]
        room -= len(text)
        found.update(_links(text.lower()))
        if "<" in text and (kind == "text/html" or _MARKUP.search(text)):
            text = _without_markup(text, found)
        yield text
    found.add("parts:" + " ".join(kinds)[:100])


def _parts(message: MailBase) -> Iterator[MailBase]:
    """The message and the parts in it, as many as are looked at."""
    yield message
    for number, part in enumerate(message.walk(), 2):
        if number > MAX_PARTS:
            return
        yield part


def _about_part(part: MailBase, kind: str) -> Iterator[str]:
    encoding = part.content_encoding
    yield f"content-type:{kind}"
    for name, value in encoding["Content-Type"][1].items():
        if name == "charset":
            yield f"charset:{value[:MAX_VALUE].lower()}"
        elif name != "name":
            yield f"content-type:{name[:LONGEST]}={value[:LONGEST].lower()}"
    if part.boundary:
        yield f"boundary:{_shape(part.boundary)}"
    disposition = encoding["Content-Disposition"][0]
    if disposition:
        yield f"content-disposition:{disposition[:LONGEST]}"
    if part.filename:
        name = part.filename.lower()[:200]
        yield f"filename:{name[:MAX_VALUE]}"
        for piece in _NAME_WORD.findall(name)[:8]:
            yield f"fname piece:{piece[:LONGEST]}"
        yield f"fname type:{name.rpartition('.')[2][:10]}"


def _links(text: str) -> set[str]:
    """The tokens of all links in `text`, which is in lower case."""
    found: set[str] = set()
    targets = set()
    for link in _LINK.finditer(text):
        scheme = _SCHEME.search(text, max(0, link.start() - 10), link.start())
        found.add(f"proto:{scheme[0] if scheme else 'unknown'}")
        targets.add(link[1])
    targets.update([link[0] for link in _WWW.finditer(text) if text[link.start() - 1 : link.start()] != "/"])
    for link in _MAILTO.finditer(text):
        found.add("proto:mailto")
        found.update([f"url:{piece[:LONGEST]}" for piece in _LINK_PIECE.split(link[1])[:30]])
    hosts = set()
    for target in targets:
        target = target.rstrip(".:?!/)>,")
        found.update([f"url:{piece[:LONGEST]}" for piece in _LINK_PIECE.split(target)[:30]])
        host, _, path = target.partition("/")
        if "@" in host:
            found.add("url:has user")
            host = host.rpartition("@")[2]
        host, colon, port = host.partition(":")
        if colon:
            found.add(f"url:port {port[:6]}")
        hosts.add(host)
        if "%" in target:
            found.add(f"url:%{target.count('%').bit_length()}")
        found.add(f"url:type {path.partition('?')[0].rpartition('/')[2].rpartition('.')[2][:6]}")
    for host in hosts:
        if host.replace(".", "").isdigit():
            found.add("url:ip addr")
        else:
            found.update(_with_parents("url:", host))
    return found


def _without_markup(text: str, found: set[str]) -> str:
    """What a browser shows of HTML, roughly, and in `found` the tags it is written with."""
    for start, end in (("<!--", "-->"), ("<style", "</style"), ("<script", "</script")):
        text = _cut(text, start, end)
    # Text, tag, text, tag, ..., text.
    pieces = _TAG.split(text)
    tags = [tag.lower() for tag in pieces[1::2]]
    found.update([f"tag:{tag}" for tag in set(tags)])
    # Inside a word there may be tags that nobody sees.
    pieces[1::2] = [" " if tag.lstrip("/") in _BLOCKS else "" for tag in tags]
    return html.unescape("".join(pieces))


def _cut(text: str, start: str, end: str) -> str:
    """`text` without what begins with `start`, in any case, and goes until `end`; without an end it stays.

    An end that is a tag stays as well, as a tag like any other.
    """
    lower = text.lower()
    begin = lower.find(start)
    if begin < 0 or len(lower) != len(text):  # a few letters are longer in lower case, and move the others
        return text
    kept = []
    position = 0
    while begin >= 0:
        stop = lower.find(end, begin + len(start))
        if stop < 0:
            break
        kept.append(text[position:begin])
        position = stop if end[0] == "<" else stop + len(end)
        begin = lower.find(start, position)
    return "".join([*kept, text[position:]])


def _words(text: str, words: set[str], form: set[str]) -> None:
    written = set(text.split())
    plain = {word.lower() for word in written}
    words.update([word for word in plain if SHORTEST <= len(word) <= LONGEST])
    form.update([f"case:{word}" for word in written - plain if len(word) <= LONGEST])
    for word in [word for word in plain if len(word) > LONGEST_ADDRESS and (len(word) > LONGEST or "@" in word)]:
        if "@" in word and len(word) <= 2 * MAX_VALUE:
            name, _, host = word.strip("<>()[],;:.!?\"'").rpartition("@")
            words.update([f"email name:{name}", f"email addr:{host}"])
            continue
        form.add(f"skip:{word[0]} {min(len(word) // 10 * 10, 200)}")
        if not word.isascii():
            # Languages that put no spaces between words: two characters make something like one.
            words.update([word[start : start + 2] for start in range(min(len(word) - 1, 200))])


def _form(text: str, form: set[str]) -> None:
    """How the text is written, whatever it says."""
    if "$" in text or "£" in text or "€" in text:
        form.update([f"money:{_DIGIT.sub('9', amount)[:12]}" for amount in _MONEY.findall(text)])
    latin = text.encode("ascii", "ignore")
    capitals = len(latin) - len(latin.translate(None, _CAPITALS))
    letters = capitals + len(latin) - len(latin.translate(None, _CAPITALS.lower()))
    if letters > 20:
        form.add(f"capitals:{20 * capitals // letters * 5}%")
    if text:
        form.add(f"shouts:{(1000 * text.count('!') // len(text)).bit_length()}")
    if len(latin) < len(text):
        form.add(f"8bit%:{10 * (len(text) - len(latin)) // len(text)}")


# --- names -------------------------------------------------------------------------------------------------------


def _with_parents(prefix: str, host: str) -> list[str]:
    """A host and the domains above it: ``mail.example.com`` is in ``example.com``, too, and in ``com``."""
    labels = host[:100].split(".")
    return [prefix + ".".join(labels[-number:]) for number in range(1, min(len(labels), 4) + 1)]


def _shape(text: str) -> str:
    """What `text` looks like: ``20020826.F21B@pobox`` is ``9.A9A@a``. It differs from program to program."""
    text = text[:100]
    for letters, one in _SHAPES:
        text = letters.sub(one, text)
    return text[:60]
