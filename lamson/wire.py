"""What SMTP makes of a message and its addresses on the wire, where only some bytes may be sent as they are."""

import re

_HALF_LINE_END_AND_DOT = re.compile(rb"(?:(?<!\r)\n|\r(?!\n))(?=\.)")
_DOT_FIRST = re.compile(rb"\.(?<![^\r\n]\.)")  # finds dots and looks back: five times as fast as to look for line ends
_HEADERS_END = re.compile(rb"\r?\n\r?\n")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def on_the_wire(content: bytes) -> tuple[bytes, bytes]:
    """What follows DATA: the message, in lines of CRLF with the dots of transparency (RFC 5321 section 4.5.2), and the
    end. Of a message that needs nothing done no copy is made.

    Text with the line ends of files (LF and no CRLF) gets those of the wire. Otherwise line ends stay as they are, but
    for those in front of a dot. Another server might take a dot after half a CRLF for the end of the message, and what
    follows for commands (SMTP smuggling), so the whole CRLF is sent there.
    """
    if b"\r\n" not in content:
        content = content.replace(b"\n", b"\r\n")
    if _DOT_FIRST.search(content):
        content = _HALF_LINE_END_AND_DOT.sub(b"\r\n", content).replace(b"\r\n.", b"\r\n..")
        if content.startswith(b"."):
            content = b"." + content
    return content, b".\r\n" if content.endswith(b"\r\n") or not content else b"\r\n.\r\n"


def address_on_the_wire(address: str, utf8: bool) -> str:
    """The address as it is sent, to a server without SMTPUTF8 with its domain in ASCII (RFC 5890).

    Raises ValueError with the status that such a server would give (RFC 3463, RFC 6531) when it cannot be sent.
    """
    if address.isascii() and address.isprintable():
        return address
    if _CONTROL.search(address):
        raise ValueError(f"5.1.3 {address!r} has a control character in it")
    if utf8:
        return address
    local, at, domain = address.rpartition("@")
    if not local.isascii():
        raise ValueError(f"5.6.7 The server does not speak SMTPUTF8, which the address {address} needs")
    try:
        return local + at + domain.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"5.1.2 The domain of {address} cannot be written in ASCII: {error}") from error


def needs_smtputf8(sender: str, recipients: list[str], content: bytes) -> bool:
    """Whether addresses or headers are in UTF-8 (RFC 6531 section 3.4); headers in some 8-bit charset are not."""
    if not all(map(str.isascii, [sender, *recipients])):
        return True
    if content.isascii():
        return False
    end = _HEADERS_END.search(content)
    headers = content[: end.start()] if end else content
    if headers.isascii():
        return False
    try:
        headers.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
