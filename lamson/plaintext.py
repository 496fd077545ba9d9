"""A message as somebody reads it who has no program for HTML: its texts, without its files."""

import re
from collections.abc import Iterable

from lamson.mime import MailBase


def leaves(base: MailBase) -> Iterable[MailBase]:
    """The parts that have content of their own; messages inside the message are one each."""
    stack = [base]
    while stack:
        part = stack.pop()
        if part.parts and not part.content_type.startswith("message/"):
            stack.extend(reversed(part.parts))
        else:
            yield part


def text_of(part: MailBase, top: bool = False) -> str:
    """The text of a message or part: what was written as text, or else its HTML as text; "" when there is none.

    Attachments are left out, unless a text is all that a message is (`top`).
    """
    kind = part.content_type
    if part.parts and kind.startswith("message/"):
        return ""
    if part.parts:
        texts = [(each.content_type, text) for each in part.parts if (text := text_of(each)).strip()]
        if kind == "multipart/alternative":
            # The best form comes last (RFC 2046 section 5.1.4), but text that was written as text beats it.
            texts = [each for each in texts if each[0] == "text/plain"] or texts[-1:]
            texts = texts[:1]
        return "\n".join(text for _, text in texts)
    if part.is_attachment and not (top and kind.startswith("text/")):
        return ""
    return html_to_text(str(part.body)) if kind == "text/html" else str(part.body)


def html_to_text(html: str) -> str:
    """What somebody who looks at `html` would read."""
    import html_text  # it loads lxml, which takes longer than all of Lamson

    return html_text.extract_text(_REFERENCE.sub(_allowed_reference, _NOT_IN_XML.sub("", html)))


# The characters that lxml raises for: those that XML has not (https://www.w3.org/TR/xml/#charsets).
_NOT_IN_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_REFERENCE = re.compile(r"&#(?:x0*([0-9a-f]{1,6})(?![0-9a-f])|0*([0-9]{1,7})(?!\d));?", re.I)


def _allowed_reference(found: re.Match[str]) -> str:
    number = int(found[1], 16) if found[1] else int(found[2])
    # As browsers show it. With nothing in its place, what stands around it could become another one.
    return "\ufffd" if number > 0x10FFFF or _NOT_IN_XML.match(chr(number)) else found[0]
