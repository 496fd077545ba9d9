"""What a notice of a failed delivery says in words, for the many mail servers that do not say it in fields.

A notice has an introduction, the addresses that failed with what is the matter with each, and often the message that
did not arrive:

    >>> text, original = split('''I could not deliver your message to the following addresses:
    ...
    ... <zoe@example.com>:
    ... 192.0.2.1 said: 550 5.1.1 No such user
    ...
    ... --- Below this line is a copy of the message.
    ...
    ... From: me@example.org
    ... To: zoe@example.com
    ... Subject: Hi
    ... ''')
    >>> notice = Notice(text)
    >>> notice.failed_addresses(own={"me@example.org"})
    ['zoe@example.com']
    >>> notice.about("zoe@example.com")
    '192.0.2.1 said: 550 5.1.1 No such user'
    >>> verdict("192.0.2.1 said: 550 5.1.1 No such user")
    '5.1.1'
    >>> original.splitlines()[1]
    'To: zoe@example.com'

Everything here takes text that a stranger wrote: nothing raises, and nothing takes long.
"""

import functools
import html
import re
from collections.abc import Collection, Iterable

from lamson import bouncewords, dsn

# How much is looked at, in characters: of a notice; of its beginning, which says what it is; of one of its lines; and
# of what stands before an address in a line. A diagnostic is cut to so many.
MAX_TEXT = 32_000
MAX_HEAD = 3_000
MAX_LINE = 1_000
MAX_BEFORE = 100
MAX_DIAGNOSTIC = 1_000
# How many lines of a notice are looked at, and how many addresses in it; those that fail by the thousand are in fields.
MAX_LINES = 1_000
MAX_ADDRESSES = 500
# At how many places one address is looked at.
MAX_PLACES = 5

# A reply of an SMTP server (RFC 5321 section 4.2), in a place where no other number is to be expected.
_CODE = r"[45](?:[0-5]\d|7[01])"
REPLY = re.compile(
    rf"""(?:^ | [\[\]()'"] | <<< | :[ ]
      | \b(?:said|says|respond\w*|response|returned|error|code|reason|status|reply|was|with|smtp|host|message)\b)
    [^\w\n]{{0,6}}(?P<code>{_CODE})(?=[ :;'"#)\]-])(?!,\d)
    | (?<![\w.])(?P<enhanced>{_CODE})[ -](?=\#?[45]\.\d{{1,3}}\.\d)""",
    re.I | re.M | re.X,
)
_FIRST_CODE = re.compile(rf"\W*({_CODE})(?![\d.])")

# A line between the notice and the message that is sent back: one drawn across the page with words in it, or one that
# announces it, and says nothing else.
_DRAWN = re.compile(
    r"[-=_*+#~]{2,}[ >]*[^\n]{0,60}?\b(?:original|returned|undelivered|unsent|failed|old|message|mail|header)s?\b"
    r"|[-=_*+#]{2,}\W*(?:元のメール|オリジナル|原文|ursprüngliche|исходное)",
    re.I,
)
_DRAWN_WORDS = re.compile(
    r"below|follow|copy|original|returned|unsent|header|begin|start|enclosed|attached|text|info", re.I
)
_ANNOUNCED = re.compile(
    r"\b(?:original|returned|undelivered|unsent|old)(?: \w+)? (?:message|mail|e-mail|header)s?\b"
    r"|\bcopy of (?:the|your)\b"
    r"|\b(?:message|mail)(?: headers?| text| contents?| details)?(?: is| are)? (?:follow|below|attached|reads)"
    r"|\b(?:message|mail) headers?\b",
    re.I,
)
_ANNOUNCED_MORE = re.compile(
    r"recipient|deliver|address|fail|error|reason|received at|could|n't|\bnot\b|subject|identifier",
    re.I,
)
_HEADER = re.compile(r"[ \t>]{0,8}([A-Za-z][A-Za-z0-9-]{1,60}):(?:[ \t]|$)")
_HEADER_NAMES = {"from", "to", "subject", "date", "message-id", "received", "return-path", "mime-version", "sender"}

_ADDRESS = re.compile(dsn.ADDRESS)
# What stands before an address that is not one that failed,
_OTHER_ADDRESS = re.compile(
    r"""(?:\b(?:from|(?:sent|written|submitted)\ by|sender(?:\ address)?|reply-?to|contact\w*|mailto|message-?id|id
      |envelope-from|return-?path|behalf\ of|e-?mail\ (?:us|me)(?:\ at|\ to)?|write\ to|questions?(?:\ to)?|help|support
      |(?:send|forward\w*)\ (?:it\ |mail\ |a\ mail\ |this\ |it\ )?to|please\ (?:use|try)|moved\ to
      |new\ (?:e-?mail\ )?address(?:\ is)?|via|(?<!your\ )(?<!the\ )mail\ to|von|de|cc|you|user-agent
      |http\S*) | \bx-\w[\w-]{0,40})
    [\s:<(='"\[]*$""",
    re.I | re.X,
)
# and what follows one,
_INSTEAD = re.compile(r"""[>)\]'"*]*,?\ instead\b""", re.I)
# before one that a list or an alias made another one of, which failed,
_GENERATED = re.compile(r"\bgenerated from[\s<]*$", re.I)
# and before one that did itself.
_LABEL = re.compile(
    r"""(?:\brecipients?(?:\ address)?(?:\(?e?s\)?)? | rcpt[ _]to | \baddress(?:ee|es|\(es\))? | \berror-for
      |\b(?:user|mailbox|account|is\ full|allowed\ size|attempts|failed|to|for|an|à|para|aan|till)
      |\b(?:failed|original|undeliverable|intended|final|invalid|bad|unknown|bounced|destination|following|delivery|target
        |expanded|rejected|user's)(?:\ \w+)?\ (?:recipient|address(?:es|\(es\))?|user|mailbox|from)
      |\b(?:deliver|message|mail|sent|addressed|delivery|delivered|generated|expanded|received)(?:\ \w+){0,2}\ by
      |宛先|送信先|受信者|收件人|받는\ 사람)
    [\s:,<(='"\[→-]*(?:smtp:|rfc822;|mailto:)?$""",
    re.I | re.X,
)
_ROBOT = re.compile(
    r"(?:post-?master|mailer-daemon|abuse|support|help(?:desk)?|info|no-?reply|admin\w*|webmaster|noc|security|contact)@",
    re.I,
)
# What is around an address in a list of them.
_BEFORE_ENTRY = re.compile(r"[\s<>*|\"'(\[•·#-]*(?:\d{1,3}[.)]\s*)?[<\"'(\[]?")
_AFTER_ENTRY = re.compile(r"[>)\]'\"\s]*(?:$|[:;,\[(<|]|\.\.\.|--?\s|=>)")
_QUOTED_HEADER = re.compile(r"[\s*>|•-]*(?:to|cc|an|à|para|aan|till|宛先)\s*:", re.I)
_PREFIX = re.compile(r"(?:smtp|mailto|rfc822)[=:]", re.I)
_RULE = re.compile(r"\s*[-=_*]{4,}")


def generated_from(text: str) -> str:
    """The address that the one which `text` is about was made of by a list or an alias; "" when it does not say."""
    found = re.search(rf"\bgenerated from\s{{1,9}}<?({dsn.ADDRESS})", text, re.I)
    return found[1] if found else ""


def from_html(markup: str) -> str:
    """The text in HTML, block by block on lines of its own. Good enough to look for words and addresses."""
    markup = re.sub(r"(?is)<(script|style|head|title)\b.*?(?:</\1\s*>|\Z)", " ", markup)
    markup = re.sub(r"(?i)<(?:br|/?p|/?div|/?tr|/?li|/?h\d|/?table|/?pre|hr)\b[^<>]{0,2000}>", "\n", markup)
    text = html.unescape(re.sub(r"<[A-Za-z/!][^<>]{0,4000}>", " ", markup))
    return re.sub(r"[ \t\xa0]+", " ", text)


def plain(text: str) -> str:
    """`text` as `lamson.bouncewords` expects it."""
    return " ".join(re.sub(r"""[<>()\[\]{}"“”„*|=_~#]+""", " ", text[:MAX_TEXT]).lower().replace("’", "'").split())


# Where the notice ends


def split(text: str) -> tuple[str, str]:
    """A notice without the message it returns, and that message from its first header on; "" when it has none."""
    for start, end in _ends(text):
        if says_something(text[:start]) or "final-recipient" in text[:start].lower():
            return text[:start], text[end:].lstrip("\r\n")
    return text, ""


def _ends(text: str) -> Iterable[tuple[int, int]]:
    """Where the notice may end and the original begin, in order; the first few places."""
    position, found = 0, 0
    begin: int | None = None
    names: set[str] = set()
    opens = True
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        header = _HEADER.match(line)
        if header and header[1].lower() not in dsn.FIELDS:
            # Lines that look like the headers of a message, and are no fields of a report.
            begin = start if begin is None else begin
            names.add(header[1].lower())
            if len(names) >= 3 and len(names & _HEADER_NAMES) >= 2 and ("message-id" in names or "received" in names):
                yield begin, begin
                return
        elif begin is None or line[:1] not in " \t" or not line.strip():
            begin, names = None, set()
        if found < 5 and _is_marker(line.strip(), opens):
            found += 1
            yield start, position
        opens = not line.strip()


def _is_marker(line: str, opens: bool) -> bool:
    """Whether a line, which opens a paragraph or does not, stands between the notice and the original."""
    if len(line) > 120:
        return False
    if _DRAWN.match(line):
        return _DRAWN_WORDS.search(line) is not None
    if not opens or len(line) > 80 or not line.endswith((":", ".", "-", "follows", "below")):
        return False
    return _ANNOUNCED.search(line) is not None and not _ANNOUNCED_MORE.search(line)


# What is the matter


@functools.lru_cache(maxsize=64)
def meaning(text: str) -> str | None:
    """RFC 3463's subject and detail for what `text` says in words: ``2.2`` for a full mailbox; None when nothing."""
    words = plain(text)
    return next((detail for detail, pattern in bouncewords.MEANINGS if pattern.search(words)), None)


def says_something(text: str) -> bool:
    """Whether `text` is about mail that did not arrive."""
    words = plain(text)
    return bool(
        REPLY.search(text[:MAX_TEXT])
        or bouncewords.FAILED.search(words)
        or bouncewords.DELAYED.search(words)
        or bouncewords.TEMPORARY.search(words)
        or any(pattern.search(words) for _, pattern in bouncewords.MEANINGS)
    )


def is_delay(text: str) -> bool:
    """Whether `text` says that the server goes on trying."""
    return bouncewords.DELAYED.search(plain(text)) is not None


def is_success(text: str) -> bool:
    """Whether `text` says that the mail arrived."""
    return bouncewords.DELIVERED.search(plain(text)) is not None


# Statuses that say no more than their class.
_VAGUE = ("", "0.0", "5.0")


def verdict(text: str, status: str = "", delayed: bool = False) -> str:
    """The RFC 3463 status in `text`: as it stands there, or else made of the reply code and the words.

    `status` is what the field of that name says. It counts, unless it says nothing beyond its class. `delayed` is for
    a server that goes on trying, whose status is 4.x.x whatever it says.
    """
    stated, reply = _codes(text)
    number, _, detail = ("" if status.startswith("2") else status).partition(".")
    if detail in _VAGUE:
        said = stated.partition(".")[2]
        number = stated[:1] or reply or number
        detail = said if said not in _VAGUE else meaning(text) or said or detail or "0.0"
        number = number or _class_of(text, detail)
    return f"{'4' if delayed else number}.{detail}"


def has_code(text: str) -> bool:
    """Whether a reply code or a status stands in `text`."""
    return any(_codes(text))


def is_vague(status: str) -> bool:
    """Whether `status` says no more than its class."""
    return status.partition(".")[2] in _VAGUE


def is_refusal(text: str) -> bool:
    """Whether `text` has a reply that means never (RFC 5321 section 4.2.1), or none, and says that there is nobody."""
    stated, reply = _codes(text)
    return (stated or reply).startswith("5") or (not stated and not reply and meaning(text) in ("1.1", "1.6"))


def _codes(text: str) -> tuple[str, str]:
    """The status that says most among those in `text`, and the class of its first reply code; "" for none."""
    statuses = [
        f"{first}.{int(second)}.{int(third)}" for first, second, third in dsn.STATUS.findall(text) if first != "2"
    ]
    telling = [each for each in statuses if not each.endswith(".0.0") and each[2:4] != "5."] or statuses
    found = REPLY.search(text) or _FIRST_CODE.match(text)
    reply = next(filter(None, found.groups())) if found else ""
    return (telling[0] if telling else ""), reply[:1]


def _class_of(text: str, detail: str) -> str:
    """For a server that gave up and names no number: whether it may help to try again later."""
    words = plain(text)
    if bouncewords.TEMPORARILY.search(words):
        return "4"
    if bouncewords.TEMPORARY.search(words) and "permanent" not in words:
        return "4"
    if detail == "4.7" and "attempts" not in words:
        return "4"
    return "5"


# Whom it is about


class Notice:
    """The text of a notice, line by line."""

    def __init__(self, text: str):
        self.text = text[:MAX_TEXT]
        self.lines = [line[:MAX_LINE] for line in self.text.splitlines()[:MAX_LINES]]
        self._told: dict[int, bool] = {}

    def _tells(self, number: int) -> bool:
        """Whether a line is about mail that did not arrive. It takes a while to say, and few lines are asked about."""
        if number not in self._told:
            self._told[number] = bool(self.lines[number].strip()) and says_something(self.lines[number])
        return self._told[number]

    @functools.cached_property
    def _found(self) -> list[tuple[int, int, int, str]]:
        """Every address: the number of its line, where it begins and ends there, and itself."""
        found = []
        for number, line in enumerate(self.lines):
            if "@" in line:
                found += [
                    (number, *each.span(), _PREFIX.sub("", each[0].strip("'*_"))) for each in _ADDRESS.finditer(line)
                ]
        return found[:MAX_ADDRESSES]

    def is_failure(self) -> bool:
        """Whether the notice tells of mail that did not arrive, and soon gets to it: a long text has most words."""
        words = plain(self.text[:MAX_HEAD])
        if REPLY.search(self.text[:MAX_HEAD]) or bouncewords.FAILED.search(words) or bouncewords.DELAYED.search(words):
            return True
        return len(self.text) <= MAX_HEAD and meaning(self.text) is not None

    def failed_addresses(self, own: Collection[str] = ()) -> list[str]:
        """The addresses that mail did not reach, as far as one can tell.

        `own` are the addresses the notice was sent to, in lower case: notices name them as the sender.
        """
        ranked: dict[str, tuple[int, str]] = {}
        for number, start, end, address in self._found:
            rank = self._rank(number, start, end, address.lower() in own)
            if rank > ranked.get(address.lower(), (0, ""))[0]:
                ranked[address.lower()] = (rank, address)
        best = max((rank for rank, _ in ranked.values()), default=0)
        chosen = [address for rank, address in ranked.values() if rank == best]
        return chosen if best >= 2 or len(chosen) == 1 else []

    def _rank(self, number: int, start: int, end: int, own: bool) -> int:
        """How sure it is that the address at this place is one that failed: 4 for an entry in a list of them, 3 for
        one in a line that tells of it, 2 for one next to such a line, 1 for one that just stands there, 0 for another.
        """
        line = self.lines[number]
        before = line[max(0, start - MAX_BEFORE) : start]
        previous = next((each for each in reversed(self.lines[max(0, number - 2) : number]) if each.strip()), "")
        alone = self._begins(line, start)
        entry = alone and self._ends(line, end)
        if _GENERATED.search(before):
            return 3
        if _OTHER_ADDRESS.search(before) or (alone and _OTHER_ADDRESS.search(previous.rstrip()[-MAX_BEFORE:])):
            return 0
        if _INSTEAD.match(line, end):
            return 0
        if _ROBOT.match(line, start):
            return 1 if alone else 0
        if own:
            return 2 if entry else 0
        if _QUOTED_HEADER.match(before):
            # Of the message that failed, which may have gone to a list that the address was one of.
            return 1
        if entry or (alone and previous.rstrip().endswith(":")) or _LABEL.search(before):
            return 4
        if self._tells(number):
            return 3
        near = range(max(0, number - 2), min(number + 3, len(self.lines)))
        return 2 if any(self._tells(each) for each in near) else 1

    @staticmethod
    def _begins(line: str, start: int) -> bool:
        """Whether nothing but decoration stands before an address."""
        return start < MAX_BEFORE and _BEFORE_ENTRY.fullmatch(line, 0, start) is not None

    @staticmethod
    def _ends(line: str, end: int) -> bool:
        """Whether an address is followed by what follows one in a list."""
        return _AFTER_ENTRY.match(line, end, end + MAX_BEFORE) is not None

    @functools.cached_property
    def _entries(self) -> set[int]:
        """The lines that begin with an address, as in a list of them."""
        lines = self.lines
        return {number for number, start, end, _ in self._found
                if self._begins(lines[number], start) and self._ends(lines[number], end)}  # fmt: skip

    def about(self, address: str) -> str:
        """What the notice says about an address, on one line: where it is listed, or else where it is named, or else
        everywhere. At most `MAX_DIAGNOSTIC` characters."""
        places = [(number, end) for number, _, end, each in self._found if each.lower() == address.lower()][:MAX_PLACES]
        for number, end in places:
            text = self._block(number, end)
            if says_something(text):
                return text
        named = dict.fromkeys(number for number, _ in places if self._tells(number))
        lines = [self.lines[number].strip() for number in named]
        return " ".join(lines)[:MAX_DIAGNOSTIC] or self.gist

    def _block(self, number: int, end: int) -> str:
        """The line of an address, without the address when it begins with it, and the lines up to the next empty
        one, rule, or address in the list."""
        line = self.lines[number]
        if _BEFORE_ENTRY.match(line) and "@" in line[:end].strip().split(" ")[0]:
            line = line[end:].lstrip(" \t>)]}:;,.'\"")
        said = [line.strip()]
        for each in range(number + 1, len(self.lines)):
            if not self.lines[each].strip() or each in self._entries or _RULE.match(self.lines[each]):
                break
            said.append(self.lines[each].strip())
            if sum(map(len, said)) > MAX_DIAGNOSTIC:
                break
        return " ".join(filter(None, said))[:MAX_DIAGNOSTIC]

    @functools.cached_property
    def gist(self) -> str:
        """The lines that say what is the matter; all of them when none does."""
        lines = [line.strip() for number, line in enumerate(self.lines) if self._tells(number)]
        return " ".join(" ".join(lines or self.lines).split())[:MAX_DIAGNOSTIC]
