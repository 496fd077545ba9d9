"""Tests for lamson.conversation: what is shown of a conversation with a server."""

import io
import smtplib

import pytest

from lamson.conversation import Conversation, reason
from lamson.server import Relay


def shown(*lines):
    output, other = io.StringIO(), io.StringIO()
    conversation = Conversation(output, other)
    for line in lines:
        print(line, file=conversation)
    return output.getvalue().splitlines(), other.getvalue()


def test_commands_and_replies_are_shown_as_they_went_over_the_wire():
    lines, other = shown(
        "connect: to ('127.0.0.1', 8823) None",
        "connect: ('127.0.0.1', 8823)",
        "reply: b'220 here\\r\\n'",
        "reply: retcode (220); Msg: b'here'",
        "connect: b'here'",
        "send: 'ehlo me\\r\\n'",
        "reply: b'250-here\\r\\n'",
        'reply: b"250 it\'s me\\r\\n"',
        "data: (250, b'OK')",
    )
    assert lines == [
        "connect: to ('127.0.0.1', 8823)",
        "reply: 220 here",
        "send: ehlo me",
        "reply: 250-here",
        "reply: 250 it's me",
    ]
    assert other == ""


def test_a_message_is_shown_line_by_line_and_a_long_one_is_cut():
    body = b"Subject: \xc3\xa9\r\n" + b"x\r\n" * 50 + b".\r\n"
    lines, _ = shown(f"send: {body!r}")
    assert lines[0] == "send: Subject: é"
    assert len(lines) == Conversation.LINES + 1
    assert lines[-1] == "send: (12 more lines)"


def test_passwords_are_not_shown():
    lines, _ = shown(
        "send: 'AUTH PLAIN AHpAcw==\\r\\n'",
        "reply: b'535 no\\r\\n'",
        "send: 'AUTH LOGIN emVk\\r\\n'",
        "reply: b'334 UGFzc3dvcmQ6\\r\\n'",
        "send: 'c2VjcmV0\\r\\n'",
        "reply: b'235 welcome\\r\\n'",
        "send: 'mail FROM:<a@b.c>\\r\\n'",
    )
    assert [line for line in lines if line.startswith("send")] == [
        "send: AUTH PLAIN (secret)",
        "send: AUTH LOGIN (secret)",
        "send: (secret)",
        "send: mail FROM:<a@b.c>",
    ]


def test_what_is_no_conversation_goes_on_to_stderr():
    assert shown("a warning") == ([], "a warning\n")


@pytest.mark.parametrize(
    ("error", "temporary", "text"),
    [
        (smtplib.SMTPRecipientsRefused({"a@b": (550, b"5.1.1 no\nnever")}), False, "refused: a@b: 550 5.1.1 no never"),
        (smtplib.SMTPRecipientsRefused({"a@b": (450, b"later")}), True, "refused: a@b: 450 later"),
        (smtplib.SMTPRecipientsRefused({"a": (450, b"x"), "b": (550, b"y")}), False, "refused: a: 450 x; b: 550 y"),
        (smtplib.SMTPDataError(554, b"spam"), False, "refused: 554 spam"),
        (smtplib.SMTPSenderRefused(451, b"busy", "a@b"), True, "refused: 451 busy"),
        (smtplib.SMTPServerDisconnected("Connection lost"), True, "Connection lost"),
        (smtplib.SMTPNotSupportedError("no AUTH"), False, "no AUTH"),
        (FileNotFoundError(2, "No such file", "x.txt"), False, "x.txt: No such file"),
        (TimeoutError("timed out"), True, "cannot send to mx:25: timed out"),
        (
            ConnectionRefusedError(111, "refused"),
            True,
            "cannot send to mx:25: refused. Is the server running on port 25?",
        ),
        (ValueError("no recipient"), False, "no recipient"),
    ],
)
def test_the_reason_is_one_line_and_says_whether_it_may_go_better_later(error, temporary, text):
    assert reason(error, Relay("mx", 25)) == (temporary, text)
