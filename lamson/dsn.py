"""What a delivery report says in fields: RFC 3464, wherever they stand, and the JSON of Amazon SES.

A delivery status is blocks of fields. The first is about the message, each of the others about one recipient:

    >>> report = from_text('''
    ... Reporting-MTA: dns; mx.example.org
    ...
    ... Final-Recipient: rfc822; zoe@example.com
    ... Action: failed
    ... Status: 5.1.1
    ... Diagnostic-Code: smtp; 550 5.1.1 <zoe@example.com>... User unknown
    ... ''')
    >>> report.reporting_mta, [(each.address, each.action, each.status) for each in report.recipients]
    ('mx.example.org', [('zoe@example.com', 'failed', '5.1.1')])

That is the theory. Reports come without the empty lines, with the fields in any order, with comments in them, with
HTML around them, and as plain text that somebody's gateway took out of its part, so all of this is read. Nothing
here raises: what cannot be read is left out.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from lamson.encoding import MailBase, attempt_decoding

# An address in running text, to be looked for with `search`. Local parts may be quoted, and both sides may be in any
# script (RFC 6531), though not in its punctuation, which stands around an address where there are no spaces.
_FOREIGN_PUNCTUATION = "，、。；：｜（）＜＞［］【】「」『』《》“”‘’„«»"
ADDRESS = (
    r"""(?:"[^"\s@]{1,64}(?:[ ][^"\s@]{1,64}){0,4}"|"""
    rf"""[^\s<>()\[\]{{}}",;:@|\\`{_FOREIGN_PUNCTUATION}]{{1,256}})@[^\W_](?:[\w.-]{{0,253}}[^\W_])?"""
)

# An enhanced status code (RFC 3463), which is no part of an IP address or a version.
STATUS = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?!\d|\.\d)")

# Fields about the message and fields about one recipient (RFC 3464 sections 2.2 and 2.3).
_MESSAGE_FIELDS = ("reporting-mta", "dsn-gateway", "received-from-mta", "arrival-date", "original-envelope-id")
_RECIPIENT_FIELDS = (
    "final-recipient", "original-recipient", "action", "status", "remote-mta", "diagnostic-code",
    "last-attempt-date", "final-log-id", "will-retry-until", "x-actual-recipient",
)  # fmt: skip
_ADDRESS_FIELDS = ("final-recipient", "original-recipient", "x-actual-recipient")

FIELDS = frozenset((*_MESSAGE_FIELDS, *_RECIPIENT_FIELDS))

_ADDRESS = re.compile(ADDRESS)
_TYPED = re.compile(r"\s*[A-Za-z0-9_-]{1,40}\s*;\s*")
_FIELD = re.compile(r"[ \t>*|]{0,8}([A-Za-z][A-Za-z-]{3,40})[ \t]*:[ \t]*(.*)")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
# A character as RFC 6533 section 3 has it where only ASCII may stand.
_UNICODE = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")
# How many recipients of a report are read, and how many characters of a field.
MAX_RECIPIENTS = 10_000
MAX_FIELD = 2_000


@dataclass
class Recipient:
    """What became of one recipient.

    `address` is the one the message was for at last; `original`, the one it was sent to, when the report says so and
    it was another. `action` is ``failed``, ``delayed``, ``delivered``,
    ``relayed`` or ``expanded``. `status` is an RFC 3463 code such as ``5.1.1``. `diagnostic` is what the other server
    or the reporting one said, in its own words, and `remote_mta` the name of the other one; "" when not known.
    """

    address: str
    action: str = "failed"
    status: str = ""
    diagnostic: str = ""
    remote_mta: str = ""
    original: str = ""

    @property
    def sent_to(self) -> str:
        """The address the message was sent to, as far as is known: the one to look for among your own."""
        return self.original or self.address

    def is_hard(self) -> bool:
        """True when trying again will not help."""
        return self.action == "failed" and self.status.startswith("5")

    def is_soft(self) -> bool:
        """True when trying again, later, may help."""
        return self.action == "delayed" or (self.action == "failed" and self.status.startswith("4"))


@dataclass
class Report:
    """The fields of a delivery status. `fields` has their values as they stand there, by name in lower case."""

    reporting_mta: str = ""
    recipients: list[Recipient] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)


def from_parts(blocks: Iterable[MailBase]) -> Report:
    """The report in the blocks that a part of type message/delivery-status consists of."""
    return _read([[(name.lower(), value) for name, value in block.items()] for block in blocks])


def from_text(text: str) -> Report:
    """The report whose fields stand somewhere in `text`; one without recipients when there are none."""
    blocks: list[list[tuple[str, str]]] = []
    fields: list[tuple[str, str]] = []
    for line in text.splitlines():
        found = _FIELD.match(line)
        name = found[1].lower() if found else ""
        if found and (name in FIELDS or (fields and name.startswith("x-"))):
            fields.append((name, found[2].strip()))
        elif fields and line[:1] in " \t" and line.strip():
            fields[-1] = (fields[-1][0], f"{fields[-1][1]} {line.strip()}")
        elif fields:
            blocks.append(fields)
            fields = []
    blocks.append(fields)
    return _read(blocks)


def _read(blocks: list[list[tuple[str, str]]]) -> Report:
    report = Report()
    group: dict[str, str] = {}
    groups = []
    for block in blocks:
        names = {name for name, _ in block}
        # A block that names nobody goes on with the one before it, if that still lacks what this one says.
        goes_on = names.isdisjoint(_ADDRESS_FIELDS) and names.isdisjoint(group)
        if not goes_on and not names.isdisjoint(_RECIPIENT_FIELDS):
            group = {}
        for name, value in block:
            report.fields.setdefault(name, []).append(value)
            if name in _RECIPIENT_FIELDS:
                if name in group and name != "diagnostic-code":
                    group = {}
                if not group:
                    groups.append(group)
                group[name] = f"{group.get(name, '')} {value}"[:MAX_FIELD].lstrip()
    report.reporting_mta = host_of(report.fields.get("reporting-mta", [""])[0])
    for each in groups[:MAX_RECIPIENTS]:
        if not {"action", "status"}.isdisjoint(each) or "final-recipient" in each:
            report.recipients.append(_recipient(each))
    return report


def _recipient(group: dict[str, str]) -> Recipient:
    original = address_of(group.get("original-recipient", ""))
    final = address_of(group.get("final-recipient", "")) or address_of(group.get("x-actual-recipient", ""))
    status = STATUS.search(group.get("status", ""))
    return Recipient(
        address=final or original,
        action=_action(group.get("action", ""), status[1] if status else ""),
        status=".".join(str(int(number)) for number in status.groups()) if status else "",
        diagnostic=_diagnostic(group.get("diagnostic-code", "")),
        remote_mta=host_of(group.get("remote-mta", "")),
        original=original,
    )


def _diagnostic(text: str) -> str:
    text = " ".join(untyped(text).split())
    if "\x1b$" in text:
        # Japanese servers write their own charset into fields as it is.
        return attempt_decoding("iso-2022-jp", text.encode("utf-8"))
    return text


def _action(text: str, status_class: str) -> str:
    """One of RFC 3464's five actions (section 2.3.3), from what was written instead."""
    word = text.strip().lower()
    for start, action in _ACTIONS:
        if word.startswith(start):
            return action
    return "delivered" if status_class == "2" else "failed"


_ACTIONS = (
    ("delay", "delayed"), ("deferr", "delayed"), ("warn", "delayed"), ("transient", "delayed"), ("retry", "delayed"),
    ("deliver", "delivered"), ("success", "delivered"), ("relay", "relayed"), ("expand", "expanded"),
)  # fmt: skip


def address_of(text: str) -> str:
    """The address in a field such as ``rfc822; zoe@example.com``; "" when there is none."""
    text = untyped(text)
    route = re.fullmatch(r"\s*<?@[^:\s]+:(.+)", text)
    if route:
        text = route[1]
    if "@" not in text and "+40" in text:
        # Still in the xtext (RFC 3461 section 4) of the SMTP command.
        text = _XTEXT.sub(lambda found: chr(int(found[1], 16)), text)
    if "\\x{" in text:
        text = _UNICODE.sub(_character, text)
    found = _ADDRESS.search(text)
    return found[0] if found else ""


def _character(found: re.Match[str]) -> str:
    number = int(found[1], 16)
    # Half a surrogate pair is no character, and could not be written anywhere.
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number < 0xE000 else found[0]


def untyped(text: str) -> str:
    """A field's value without the type in front of it: ``smtp; 550 no`` is ``550 no``."""
    return _TYPED.sub("", text, count=1) if _TYPED.match(text) else text


def host_of(text: str) -> str:
    """The name in a field such as ``dns; mx.example.com (a comment)``."""
    words = untyped(text).split()
    return words[0].strip("<>()").rstrip(".") if words else ""


# Amazon SES by way of SNS


def from_json(text: str) -> tuple[str, list[Recipient]]:
    """What the Amazon SES notification in `text` is about, ``bounce``, ``complaint`` or ``delivery``, and who bounced;
    ``("", [])`` when it is none."""
    text = text.lstrip()
    if not text.startswith("{"):
        return "", []
    notice = _load(text)
    if isinstance(notice, dict) and isinstance(notice.get("Message"), str):
        notice = _load(notice["Message"])
    if not isinstance(notice, dict):
        return "", []
    kind = str(notice.get("notificationType") or notice.get("eventType")).lower()
    details = notice.get(kind)
    if kind not in ("bounce", "complaint", "delivery") or not isinstance(details, dict):
        return "", []
    recipients = details.get("bouncedRecipients") if kind == "bounce" else ()
    lasting = str(details.get("bounceType", "")).lower() != "transient"
    found = [_from_json(each, lasting) for each in recipients or () if isinstance(each, dict)]
    return kind, [each for each in found if each.address]


def _from_json(fields: dict, lasting: bool) -> Recipient:
    status = STATUS.search(str(fields.get("status", "")))
    return Recipient(
        address=address_of(str(fields.get("emailAddress", ""))),
        status=status[0] if status else ("5.0.0" if lasting else "4.0.0"),
        diagnostic=untyped(str(fields.get("diagnosticCode") or "")),
    )


def _load(text: str) -> object:
    """The JSON value that `text` begins with; None when it is none. Lines may have been folded on the way."""
    for attempt in (text, re.sub(r"\r?\n[ \t]?", "", text)):
        try:
            return json.JSONDecoder(strict=False).raw_decode(attempt)[0]
        except (ValueError, RecursionError):
            continue
    return None
