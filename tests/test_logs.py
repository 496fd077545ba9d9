"""What strangers wrote, in the log."""

import pytest

from lamson.logs import message_id, printable
from lamson.mail import MailRequest, MailResponse


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("zed@example.com", "zed@example.com"),
        ("a\r\nb\x1b[2J\x00\x7f", r"a\r\nb\x1b[2J\x00\x7f"),
        ("я\udcff\u2028", r"\u044f\udcff\u2028"),
        ("x" * 300, "x" * 200 + "..."),
        (None, "None"),
    ],
)
def test_printable(text, line):
    assert printable(text) == line


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"Subject: x\r\nmessage-ID:  <a@b>\r\n\r\n", "<a@b>"),
        (b"Message-ID:\r\n <a@b>\r\n\r\n", "<a@b>"),
        (b"Message-ID: <\x1b\xff>\r\n\r\n", r"<\x1b\xff>"),
        (b"Message-ID: <" + b"x" * 100_000 + b">\r\n\r\n", "<" + "x" * 199 + "..."),
        (b"", "a message without Message-ID"),
    ],
)
def test_message_id_of_a_request_is_found_without_decoding_it(raw, name):
    message = MailRequest("", "a@b.c", "d@e.f", raw)
    assert message_id(message) == name
    assert message._base is None


def test_message_id_of_a_response():
    message = MailResponse(To="a@b.c", From="d@e.f", Subject="s", Body="b")
    message["Message-ID"] = "<1@b.c>"
    assert message_id(message) == "<1@b.c>"
