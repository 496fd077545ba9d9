"""The paths of MAIL and RCPT: RFC 5321 section 4.1.2, as strict as it is and a little more forgiving where mail is.

    >>> split_path("<@relay.example:list@example.com> SIZE=100")
    ('list@example.com', 'SIZE=100')
    >>> split_path("<li st@example.com>")

More forgiving: the angle brackets may be missing, dots may stand anywhere in the local part (there are mobile phone
companies...), it may be long, it may be Unicode whether SMTPUTF8 was said or not, and the domain may be missing.
Source routes are read and ignored (appendix C). Comments, and quoted strings in pieces, are of RFC 5322 and refused.
"""

import ipaddress
import re

# What is not printable was refused before: a command has nothing of that kind.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-\x80-\U0010ffff]"
_QUOTED = r'"(?:[^"\\]|\\[ -~])*"'
_DOMAIN = r"[A-Za-z0-9_\-\x80-\U0010ffff]+(?:\.[A-Za-z0-9_\-\x80-\U0010ffff]+)*"
_LITERAL = r"\[(?:IPv6:)?[0-9A-Fa-f:.]+\]"
_MAILBOX = rf"(?P<local>{_ATOM}+|{_QUOTED})(?P<domain>@(?:{_DOMAIN}|{_LITERAL}))?"

_PLAIN = re.compile(r"<([A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)>(?: +(.*))?")
_BRACKETED = re.compile(rf"<(?:@{_DOMAIN}(?:,@{_DOMAIN})*:)?{_MAILBOX}>(?: +(?P<rest>.*))?")
_BARE = re.compile(rf"{_MAILBOX}(?: +(?P<rest>.*))?")
_NULL = re.compile(r"<>(?: +(?P<rest>.*))?")


def split_path(text: str) -> tuple[str, str] | None:
    """Return the address and what follows it, or None when there is no address. The null path is ``<>``.

    The local part is quoted only where it has to be: ``"list"@example.com`` is ``list@example.com``.
    """
    found = _PLAIN.fullmatch(text)
    if found:
        return found[1], found[2] or ""
    if found := _NULL.fullmatch(text):
        return "<>", found["rest"] or ""
    found = (_BRACKETED if text.startswith("<") else _BARE).fullmatch(text)
    if found is None:
        return None
    local, domain = found["local"], found["domain"] or ""
    if domain.startswith("@[") and not _is_address_literal(domain[2:-1]):
        return None
    if local.startswith('"'):
        local = _requoted(local)
    return local + domain, found["rest"] or ""


def _requoted(quoted: str) -> str:
    text = re.sub(r"\\(.)", r"\1", quoted[1:-1])
    return text if re.fullmatch(f"{_ATOM}+", text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _is_address_literal(text: str) -> bool:
    try:
        if text.startswith("IPv6:"):
            ipaddress.IPv6Address(text.removeprefix("IPv6:"))
        else:
            ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
