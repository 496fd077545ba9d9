"""Bounces: is this message a report that mail did not arrive, whose mail, why, and will it help to try again?

    >>> from lamson.mail import MailRequest
    >>> message = MailRequest("127.0.0.1", "", "me@example.org", '''\\
    ... From: MAILER-DAEMON@example.com
    ... To: me@example.org
    ... Subject: failure notice
    ...
    ... Sorry, I could not deliver your message to the following address.
    ...
    ... <zoe@example.com>:
    ... 192.0.2.1 said: 550 5.1.1 No such user
    ... ''')
    >>> message.is_bounce(), message.bounce.is_hard(), message.bounce.error_for_humans()
    (True, True, 'Permanent Failure, Addressing Status, Bad destination mailbox address')
    >>> [(each.address, each.status) for each in message.bounce.recipients]
    [('zoe@example.com', '5.1.1')]

In a handler module, a bounce goes to a function of its own, and never reaches the others:

    @route("(anything)@(host)", anything=".+", host=".+")
    @bounce_to(soft=SOFT_BOUNCED, hard=HARD_BOUNCED)
    def START(message, **kw):
        ...

Reports with fields (RFC 3464) are read by `lamson.dsn`, those in words by `lamson.bouncetext`, and what neither
understands by the detectors of flufl.bounce. Automatic replies, read receipts (RFC 8098), complaints (RFC 5965) and
reports of success are no bounces; `BounceAnalyzer.kind` tells which of them a message is.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lamson.bouncemail import PROBABLE, BounceMail, gravity, judge
from lamson.dsn import Recipient
from lamson.encoding import MailBase
from lamson.errors import MisuseError
from lamson.status import COMBINED_STATUS_CODES, PRIMARY_STATUS_CODES, SECONDARY_STATUS_CODES

__all__ = [
    "BOUNCE_MATCHERS", "COMBINED_STATUS_CODES", "PRIMARY_STATUS_CODES", "SECONDARY_STATUS_CODES", "BounceAnalyzer",
    "Recipient", "bounce_to", "detect",
]  # fmt: skip

# The fields that `BounceAnalyzer.headers` has, and what their values are made of: their type, where they have one, and
# what follows it.
BOUNCE_MATCHERS = {
    "Action": re.compile(r"\s*(\w+)"),
    "Content-Description": re.compile(r"\s*(.+)"),
    "Diagnostic-Code": re.compile(r"\s*(?:([\w.-]+)\s*;\s*)?([2-5]\d\d[-.\d]*|[245]\.\d+\.\d+)?\s*(.*)", re.S),
    "Final-Recipient": re.compile(r"\s*(?:([\w.-]+)\s*;\s*)?(.+)"),
    "Original-Recipient": re.compile(r"\s*(?:([\w.-]+)\s*;\s*)?(.+)"),
    "Remote-Mta": re.compile(r"\s*(?:([\w.-]+)\s*;\s*)?(\S+)"),
    "Reporting-Mta": re.compile(r"\s*(?:([\w.-]+)\s*;\s*)?(\S+)"),
    "Status": re.compile(r"\s*([245])\.(\d{1,3})\.(\d{1,3})"),
}


class BounceAnalyzer:
    """What a message says about mail that did not arrive. Made by `detect`; `MailRequest.bounce` is one.

    * `score`: from 0.0, it is no bounce, to 1.0, it is a complete report. `probable` compares it.
    * `kind`: ``bounce``; or what it is instead: ``delivered`` (a report of success), ``receipt`` (somebody's mailer
      says that it was displayed or deleted), ``complaint`` (somebody pressed "spam"), ``auto-reply`` (somebody is away,
      or a program has answered); "" for mail.
    * `recipients`: a `lamson.dsn.Recipient` for each address that failed, with its own verdict.
    * `primary_status`, `secondary_status`, `combined_status`: class, subject, and subject with detail of the gravest
      recipient's RFC 3463 status, each as ``(number, text)``; ``(None, None)`` when there is none.
    * `action`, `final_recipient`, `remote_mta`: that recipient's, None when not known.
    * `diagnostic_codes`: ``[code, text]``, what was said about it; ``[None, None]`` when nothing.
    * `reporting_mta`: who reports.
    * `notification`: the part of the message that is for people. `report`: the blocks of fields, as in
      `lamson.encoding.MailBase`. `original`: the message that did not arrive, or its headers. None (`report`: []) when
      it has none.
    * `content_parts`: the parts by what they are described as, in lower case.
    * `headers`: the report's fields, each name with its values, as they stand there.
    """

    def __init__(
        self,
        headers: Mapping[str, Any] | None = None,
        score: float = 0.0,
        kind: str = "",
        recipients: Iterable[Recipient] = (),
    ):
        self.headers = dict(headers or {})
        self.score = score
        self.kind = kind
        found = list(recipients)
        self.recipients = [each for each in found if each.address and each.action in ("failed", "delayed")]
        self.content_parts: dict[str, MailBase] = self.headers.get("Content-Description-Parts", {})
        self.notification: MailBase | None = None
        self.report: list[MailBase] = []
        self.original: MailBase | None = None
        self.reporting_mta: str | None = None
        self.remote_mta: str | None = None
        self.final_recipient: str | None = None
        self.action: str | None = None
        self.diagnostic_codes: list[str | None] = [None, None]
        self.primary_status: tuple[int | None, str | None] = (None, None)
        self.secondary_status: tuple[int | None, str | None] = (None, None)
        self.combined_status: tuple[int | None, str | None] = (None, None)
        if found:
            self._take(min(found, key=gravity))

    def _take(self, recipient: Recipient) -> None:
        self.action = recipient.action
        self.final_recipient = recipient.address or None
        self.remote_mta = recipient.remote_mta or None
        if recipient.diagnostic:
            found = BOUNCE_MATCHERS["Diagnostic-Code"].fullmatch(recipient.diagnostic)
            self.diagnostic_codes = [found[2], found[3]] if found else [None, recipient.diagnostic]
        numbers = recipient.status.split(".")
        if len(numbers) == 3:
            primary, secondary, detail = numbers
            self.primary_status = int(primary), PRIMARY_STATUS_CODES.get(primary, f"Unknown class {primary}")
            self.secondary_status = (
                int(secondary),
                SECONDARY_STATUS_CODES.get(secondary, f"Unknown subject {secondary}"),
            )
            combined = secondary + detail
            # Two digits are a code of RFC 3463, unless the subject has two of them.
            known = COMBINED_STATUS_CODES.get(combined) if len(secondary) == 1 else None
            self.combined_status = int(combined), known or f"Code {recipient.status}"

    def probable(self, threshold: float = PROBABLE) -> bool:
        """True when the score is over `threshold`."""
        return self.score > threshold

    def is_hard(self) -> bool:
        """True for a bounce that trying again will not help with. With several recipients, when that is true of one."""
        return self.probable() and (self.primary_status[0] or 0) >= 5

    def is_soft(self) -> bool:
        """True for a bounce that is not hard."""
        return self.probable() and not self.is_hard()

    def error_for_humans(self) -> str:
        """What went wrong, in a line of English."""
        if self.primary_status[0] is None:
            return "No status codes found in bounce message."
        return ", ".join(filter(None, (self.primary_status[1], self.secondary_status[1], self.combined_status[1])))

    def __repr__(self) -> str:
        return f"<BounceAnalyzer {self.kind or 'no bounce'} {self.score:.2f} of {self.final_recipient}>"


def detect(msg: Any) -> BounceAnalyzer:
    """What `msg`, a `MailRequest` or a `MailBase`, says about mail that did not arrive. Never raises for what a
    stranger sent."""
    base: MailBase = getattr(msg, "base", msg)
    sender, recipients = getattr(msg, "envelope", (None, None))
    mail = BounceMail(base, sender, recipients or ())
    finding = judge(mail)
    fields = finding.report.fields
    headers: dict[str, Any] = {name: fields[name.lower()] for name in BOUNCE_MATCHERS if name.lower() in fields}
    if mail.described:
        headers["Content-Description"] = [part["Content-Description"] for part in mail.described.values()]
    headers["Content-Description-Parts"] = mail.described
    analyzer = BounceAnalyzer(headers, finding.score, finding.kind, finding.recipients)
    analyzer.reporting_mta = finding.report.reporting_mta or None
    if finding.kind or finding.score:
        analyzer.notification = mail.notification
        analyzer.original = mail.original
        analyzer.report = [block for part in mail.reports for block in part.parts]
    return analyzer


# Routing


def bounce_to(
    soft: Callable[..., Any] | None = None, hard: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let bounces run `soft` or `hard` in place of the decorated function. Goes under `@route`.

    Both are called as the decorated function would have been, captures included, and what they return is the next
    state, as with any function. They need no decorators of their own.
    """
    if not callable(soft) or not callable(hard):
        raise MisuseError(f"@bounce_to needs two functions: soft, which is {soft!r}, and hard, which is {hard!r}.")

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        if getattr(func, "_lamson_settings", {}).get("routes"):
            raise MisuseError(
                f"On {func.__name__} @bounce_to stands above @route. Put @route on top, @bounce_to under it."
            )

        @functools.wraps(func)
        def route_bounce(message: Any, *args: Any, **captures: Any) -> Any:
            if not message.is_bounce():
                return func(message, *args, **captures)
            return (soft if message.bounce.is_soft() else hard)(message, *args, **captures)

        return route_bounce

    return decorate
