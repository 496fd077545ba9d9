"""A message looked at as a bounce: its parts, who seems to have sent it, and what all of it amounts to.

`judge` goes from what is certain to what is likely. A report in fields (RFC 3464) speaks for itself. Without one, two
things have to come together: the message looks as if a mail server had written it, and it tells of mail that did not
arrive. Either alone is not enough: people write about bounces, and mail servers write about other things.

    >>> mail = BounceMail(MailBase.parse(b"From: postmaster@example.com\\nSubject: Undeliverable: Hi\\n\\n"
    ...     b"Your message to zoe@example.com could not be delivered: mailbox full.\\n"))
    >>> finding = judge(mail)
    >>> finding.kind, finding.score > 0.3, [(each.address, each.status) for each in finding.recipients]
    ('bounce', True, [('zoe@example.com', '5.2.2')])
"""

import email
import functools
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lamson import bouncetext, bouncewords, dsn, encoding
from lamson.dsn import Recipient, Report
from lamson.encoding import MailBase

log = logging.getLogger(__name__)

# How many parts of a message are looked at, how many characters of its texts and of a header. No server writes more.
MAX_PARTS = 100
MAX_TEXT = 4 * bouncetext.MAX_TEXT
MAX_HEADER = 10_000
# How many attached files are looked into for the fields of a report.
MAX_FILES = 5
# How much of a message goes to flufl.bounce, in bytes.
MAX_FLUFL = 32_000

# Over which score a message is called a bounce.
PROBABLE = 0.3

# What `sender_score` is at least for a mail server by its name, or for what calls itself a report.
LIKELY = 0.5

_ORIGINALS = ("message/rfc822", "message/global", "message/news", "text/rfc822-headers", "message/global-headers")
_ADDRESS = re.compile(dsn.ADDRESS)
_DOMAIN = re.compile(r"@[^\s<>()\",]*")
# What is in mail that people wrote, or a list sent, and not in what a mail server did.
_PERSONAL_HEADERS = ("In-Reply-To", "References", "User-Agent", "List-Id", "List-Post", "X-Mailing-List")


@dataclass
class Finding:
    """What a message is, how sure that is when it is a bounce (from 0.0 to 1.0), whom it is about, and the fields that
    this is taken from. See `lamson.bounce.BounceAnalyzer.kind` for the kinds. A recipient may have no address."""

    kind: str = ""
    score: float = 0.0
    recipients: list[Recipient] = field(default_factory=list)
    report: Report = field(default_factory=Report)


class BounceMail:
    """The message in `base`. `sender` and `recipients` are those of the envelope, if it is known."""

    def __init__(self, base: MailBase, sender: str | None = None, recipients: Iterable[str] = ()):
        self.base = base
        self.sender = sender
        self._recipients = list(recipients)
        self.types: set[str] = set()
        # The parts by what they are described as, in lower case.
        self.described: dict[str, MailBase] = {}
        # The parts that are delivery statuses, and those that are dispositions (read receipts).
        self.reports: list[MailBase] = []
        self.dispositions: list[MailBase] = []
        self._texts: list[MailBase] = []
        self._pages: list[MailBase] = []
        self._files: list[MailBase] = []
        self._enclosed: MailBase | None = None
        for part in _parts(base):
            self._sort(part)

    def _sort(self, part: MailBase) -> None:
        kind = part.content_type
        self.types.add(kind)
        description = part["Content-Description"]
        if description:
            self.described.setdefault(description.lower(), part)
        if kind in ("message/delivery-status", "message/global-delivery-status"):
            self.reports.append(part)
        elif kind in ("message/disposition-notification", "message/global-disposition-notification"):
            self.dispositions.append(part)
        elif kind in _ORIGINALS:
            if self._enclosed is None:
                self._enclosed = part.parts[0] if part.parts else encoding.from_string(part.content)
        elif not part.parts and (kind == "text/plain" or kind.startswith("multipart/")):
            self._texts.append(part)
        elif kind == "text/html":
            self._pages.append(part)
        elif not part.parts and (kind.startswith("text/") or kind == "application/octet-stream") and _is_short(part):
            self._files.append(part)

    # What is in it

    @property
    def notification(self) -> MailBase | None:
        """The part that is for people."""
        return next(iter([*self._texts, *self._pages]), None)

    @functools.cached_property
    def text(self) -> str:
        """What people are to read, with the original when that stands there, too."""
        texts = [str(part.body)[:MAX_TEXT] for part in self._texts if part.body]
        if not "".join(texts).strip():
            texts = [bouncetext.from_html(str(part.body)[:MAX_TEXT]) for part in self._pages]
        return "\n".join(texts)[:MAX_TEXT]

    @property
    def attached_fields(self) -> str:
        """The fields of a report that is attached as a file, for want of its type; "" when there is none."""
        for part in self._files[:MAX_FILES]:
            text = part.content.decode("utf-8", "replace")
            if "final-recipient:" in text.lower():
                return text
        return ""

    @functools.cached_property
    def _split(self) -> tuple[str, str]:
        return bouncetext.split(self.text)

    @functools.cached_property
    def notice(self) -> bouncetext.Notice:
        """What people are to read, without the original."""
        return bouncetext.Notice(self._split[0])

    @functools.cached_property
    def original(self) -> MailBase | None:
        """The message that did not arrive, or its headers, whether it is a part or stands in the text."""
        if self._enclosed is None and self._split[1]:
            return encoding.from_string(self._split[1])
        return self._enclosed

    @property
    def report_type(self) -> str:
        return self.base.content_encoding["Content-Type"][1].get("report-type", "").lower()

    # Whom it names

    @functools.cached_property
    def named(self) -> list[str]:
        """The addresses that failed, by a header that says so."""
        return _addresses(self.base, "X-Failed-Recipients", "X-Bounced-Address")

    @functools.cached_property
    def own(self) -> set[str]:
        """The addresses that the message is for, in lower case: those of whoever sent the original."""
        own = [*_addresses(self.base, "To", "Delivered-To", "X-Original-To"), *self._recipients]
        return {address.lower() for address in own}

    @property
    def addressee(self) -> list[str]:
        """Whom the original was for, if that is one address, and no list on which another one failed."""
        original = self.original
        if original is None or "List-Id" in original or "List-Post" in original:
            return []
        found = _addresses(original, "X-Envelope-To", "To", "Cc")
        return found if len(found) == 1 else []

    # Who sent it

    @functools.cached_property
    def sender_score(self) -> float:
        """How much the message looks as if a mail server had written it, from 0.0 to 1.0, whatever it says."""
        score = 0.0
        if self.base["From"] is not None:
            sender = _DOMAIN.sub("@", self.base["From"][:MAX_HEADER]).lower()
            if bouncewords.DAEMON.search(sender):
                score += 0.7
            elif bouncewords.ROBOT.search(sender):
                score += 0.5
            elif bouncewords.ADMINISTRATOR.search(sender):
                score += 0.3
        if self.named:
            score += 0.5
        if self.report_type == "delivery-status" or self.reports:
            score += 0.5
        if self._is_called_bounce():
            if score:
                score += 0.3
            elif not any(name in self.base for name in _PERSONAL_HEADERS):
                # People write about bounces, too; but they do not return what they write about.
                score += 0.3 if self.original is None else 0.5
        if self.sender in ("", "<>") or any(path.strip() in ("", "<>") for path in self.base.get_all("Return-Path")):
            # From nobody; with a message that comes back in it, as only bounces have, that is enough.
            score += 0.3 if self._enclosed is None else LIKELY
        if (self.base["Auto-Submitted"] or "no").strip().lower() != "no":
            score += 0.1
        return min(score, 1.0)

    @property
    def subject(self) -> str:
        """The Subject in lower case, as `lamson.bouncewords` expects it."""
        return (self.base["Subject"] or "")[:MAX_HEADER].lower()

    def is_called(self, words: re.Pattern[str]) -> bool:
        """Whether the subject has one of `words`, before it has any that notices are called: a notice may be about mail
        that was called so."""
        found, notice = words.search(self.subject), bouncewords.SUBJECT.search(self.subject)
        return found is not None and (notice is None or found.start() <= notice.start())

    def _is_called_bounce(self) -> bool:
        return bool(bouncewords.SUBJECT.search(self.subject)) and not bouncewords.REPLY.match(self.subject)


def _parts(base: MailBase) -> Iterator[MailBase]:
    """The message and the parts of it, without those of messages that are in it."""
    stack = [base]
    for _ in range(MAX_PARTS):
        if not stack:
            return
        part = stack.pop()
        yield part
        if part.content_type.startswith("multipart/"):
            stack.extend(reversed(part.parts[:MAX_PARTS]))


def _is_short(part: MailBase) -> bool:
    """Whether it may be a report. To decode what else is attached would take its time."""
    return part.source is None or len(part.source.body()) <= MAX_TEXT


def _addresses(base: MailBase, *names: str) -> list[str]:
    values = [value[:MAX_HEADER] for name in names for value in base.get_all(name)]
    return list(dict.fromkeys(_ADDRESS.findall(", ".join(values)[: 10 * MAX_HEADER])))


def judge(mail: BounceMail) -> Finding:
    """What kind of message it is, and all that can be found out about the mail that did not arrive."""
    if "message/feedback-report" in mail.types or mail.report_type == "feedback-report":
        return Finding("complaint")
    report = dsn.from_parts([block for part in mail.reports for block in part.parts])
    if report.recipients:
        return _of_report(mail, report, 1.0)
    if mail.dispositions and not _is_rejection(mail):
        return Finding("receipt")
    kind, recipients = dsn.from_json(mail.text)
    if kind == "bounce":
        return Finding(kind, 1.0 if recipients else 0.0, recipients)
    if kind:
        return Finding("complaint" if kind == "complaint" else "delivered")
    other = _other_kind(mail)
    if mail.sender_score == 0:
        return other
    report = dsn.from_text(mail.notice.text)
    if not report.recipients and mail.report_type == "delivery-status":
        # Its parts could not be told from each other, nor where the notice ends.
        report = dsn.from_text(mail.text)
    if not report.recipients:
        report = dsn.from_text(mail.attached_fields)
    if report.recipients:
        return _of_report(mail, report, min(1.0, mail.sender_score + 0.5))
    if not mail.named:
        if mail.is_called(bouncewords.AUTO_REPLY_SUBJECT):
            return other
        if mail.is_called(bouncewords.OTHER_SUBJECT):
            return Finding()
    if mail.sender_score < LIKELY and not bouncetext.REPLY.search(mail.notice.text):
        return other
    found = _of_text(mail)
    return found if found.kind or found.score else other


def _other_kind(mail: BounceMail) -> Finding:
    """What the message is if it is neither a bounce nor a report of another kind."""
    if bouncewords.REPLY.match(mail.subject):
        return Finding()
    answered = any(
        value.partition(";")[0].strip().lower() == "auto-replied" for value in mail.base.get_all("Auto-Submitted")
    )
    if answered or mail.is_called(bouncewords.AUTO_REPLY_SUBJECT):
        return Finding("auto-reply")
    return Finding()


def _is_rejection(mail: BounceMail) -> bool:
    """Some servers reject mail with what claims to be a read receipt."""
    said = " ".join(str(part.body) for part in mail.dispositions).lower()
    automatic = "automatic-action" in said and "displayed" not in said
    return automatic and mail.sender_score >= LIKELY and "reject" in mail.notice.text.lower()


def _of_report(mail: BounceMail, report: Report, score: float) -> Finding:
    """What a report in fields amounts to, with what it does not say taken from the rest of the message."""
    failed = [each for each in report.recipients if each.action in ("failed", "delayed")]
    if not failed:
        return Finding("delivered", 0.0, report.recipients, report)
    for recipient in failed:
        if not recipient.address:
            found = mail.named or mail.notice.failed_addresses(mail.own) or mail.addressee
            recipient.address = found[0] if len(found) == 1 else ""
        delayed = recipient.action == "delayed"
        recipient.status = bouncetext.verdict(recipient.diagnostic, recipient.status, delayed)
        if bouncetext.is_vague(recipient.status):
            said = mail.notice.about(recipient.address)
            recipient.status = bouncetext.verdict(said, recipient.status, delayed)
    return Finding("bounce", score, _each_once(failed), report)


def _each_once(recipients: list[Recipient]) -> list[Recipient]:
    """Each address once, with the gravest verdict on it."""
    gravest: dict[str, Recipient] = {}
    for recipient in sorted(recipients, key=gravity):
        gravest.setdefault(recipient.address.lower(), recipient)
    return [each for each in recipients if gravest[each.address.lower()] is each]


def gravity(recipient: Recipient) -> tuple[bool, bool]:
    """Sorts the gravest first."""
    return not recipient.is_hard(), not recipient.is_soft()


def _of_text(mail: BounceMail) -> Finding:
    """What a message from what seems to be a mail server amounts to, when it has nothing but text."""
    notice = mail.notice
    delayed = bouncetext.is_delay(f"{mail.subject}\n{notice.text}")
    telling = delayed or notice.is_failure()
    if not telling and not mail.named and bouncetext.is_success(notice.text):
        return Finding("delivered")
    found = mail.named or notice.failed_addresses(mail.own)
    if not found:
        found, temporary = _from_flufl(mail.base)
        delayed = delayed or temporary
    certainty = 0.8 if found and telling else 0.45 if found or telling else 0.0
    if not found and mail.addressee:
        found = mail.addressee
        certainty += 0.15
    score = min(1.0, mail.sender_score * certainty)
    if score <= 0.1:
        return Finding()
    recipients = []
    for address in found or [""]:
        said = notice.about(address)
        if len(found) == 1 and not bouncetext.has_code(said) and bouncetext.has_code(notice.gist):
            said = notice.gist  # some say first that it failed, and what the other server said at the end
        # Nobody goes on trying after a reply that tells not to, whatever the other words are.
        waits = delayed and not bouncetext.is_refusal(said)
        status = bouncetext.verdict(said, delayed=waits)
        original = bouncetext.generated_from(said)
        recipients.append(Recipient(address, "delayed" if waits else "failed", status, said, original=original))
    return Finding("bounce" if score > PROBABLE else "", score, recipients)


def _from_flufl(base: MailBase) -> tuple[list[str], bool]:
    """The addresses that the detectors of flufl.bounce find, and whether all of them failed for the time being."""
    from flufl.bounce import all_failures  # most bounces do not need it

    # It logs an error for each of its detectors that fails on what a stranger sent.
    logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL)
    try:
        temporary, permanent = all_failures(email.message_from_bytes(base.as_bytes()[:MAX_FLUFL]))
    except Exception:
        log.debug("flufl.bounce cannot read a message", exc_info=True)
        return [], False
    found = sorted({address.decode("ascii", "replace") for address in (*temporary, *permanent)})
    return [address for address in found if "@" in address], bool(temporary) and not permanent
