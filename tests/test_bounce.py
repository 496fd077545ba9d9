"""Bounces of all kinds, and what only looks like one."""

import doctest
import importlib
import sys
import time
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamson import bounce, bouncemail, bouncetext, bouncewords, dsn, status
from lamson.bounce import BounceAnalyzer, bounce_to, detect
from lamson.encoding import from_string
from lamson.errors import MisuseError
from lamson.mail import MailRequest
from lamson.routing import Router, lamson_setting, route, stateless


def ask(text, sender=None):
    """What there is to know about a message."""
    return MailRequest("peer", sender, "me@example.org", text.encode() if isinstance(text, str) else text).bounce


def verdicts(analyzer):
    return [(each.address, each.action, each.status) for each in analyzer.recipients]


@pytest.mark.parametrize(
    "module", [bounce, bouncemail, bouncetext, bouncewords, dsn], ids=lambda module: module.__name__
)
def test_the_examples_in_the_code_run(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


REPORT = """\
Return-Path: <>
From: MAILER-DAEMON@mx.example.org (Mail Delivery System)
To: me@example.org
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="=_b"

--=_b
Content-Description: Notification
Content-Type: text/plain

This is the mail system at host mx.example.org. Your message could not be delivered.

--=_b
Content-Description: Delivery Report
Content-Type: message/delivery-status

{fields}

--=_b
Content-Description: Undelivered Message
Content-Type: message/rfc822

From: me@example.org
To: zoe@example.com
Subject: Tea

At four.

--=_b--
"""

FIELDS = """\
Reporting-MTA: dns; mx.example.org
Arrival-Date: Thu, 1 Oct 2026 10:00:00 +0000

Final-Recipient: rfc822; zoe@example.com
Original-Recipient: rfc822;zoe@elsewhere.example.com
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.com
Diagnostic-Code: smtp; 550-5.1.1 The account that you tried to reach does not
    exist."""


def report(fields=FIELDS):
    return REPORT.format(fields=fields)


def notice(text, sender="MAILER-DAEMON@mx.example.com", subject="failure notice", more=""):
    return f"From: {sender}\nTo: me@example.org\nSubject: {subject}\n{more}\n{text}"


class TestReports:
    def test_everything_a_report_says(self):
        found = ask(report())
        assert (found.score, found.kind) == (1.0, "bounce")
        assert found.probable() and found.is_hard() and not found.is_soft()
        assert found.primary_status == (5, "Permanent Failure")
        assert found.secondary_status == (1, status.SECONDARY_STATUS_CODES["1"])
        assert found.combined_status == (11, "Bad destination mailbox address")
        assert found.reporting_mta == "mx.example.org"
        assert found.remote_mta == "mx.example.com"
        assert found.final_recipient == "zoe@example.com"
        assert found.action == "failed"
        assert found.diagnostic_codes == ["550-5.1.1", "The account that you tried to reach does not exist."]
        assert found.headers["Status"] == ["5.1.1"]
        assert found.headers["Content-Description-Parts"] is found.content_parts
        (recipient,) = found.recipients
        assert (recipient.address, recipient.original) == ("zoe@example.com", "zoe@elsewhere.example.com")
        assert recipient.sent_to == "zoe@elsewhere.example.com"
        assert recipient.is_hard() and not recipient.is_soft()
        assert recipient.diagnostic.startswith("550-5.1.1 The account")

    def test_the_parts_are_there(self):
        found = ask(report())
        assert sorted(found.content_parts) == ["delivery report", "notification", "undelivered message"]
        assert "could not be delivered" in found.notification.body
        assert [block["Action"] for block in found.report] == [None, "failed"]
        assert not any(block.body for block in found.report)
        assert found.original["subject"] == "Tea"
        assert found.original.body == "At four.\n"

    def test_headers_alone_are_an_original_too(self):
        headers = "Content-Type: text/rfc822-headers\n\nTo: zoe@example.com\nSubject: Tea"
        found = ask(report().replace("Content-Type: message/rfc822", headers))
        assert found.original["subject"] == "Tea"

    def test_a_mail_base_will_do(self):
        assert verdicts(detect(from_string(report()))) == [("zoe@example.com", "failed", "5.1.1")]

    def test_each_recipient_has_a_verdict_of_its_own(self):
        found = ask(
            report(
                """\
Reporting-MTA: dns; mx.example.org

Final-Recipient: rfc822; full@example.com
Action: failed
Status: 4.2.2

Final-Recipient: rfc822; gone@example.com
Action: failed
Status: 5.1.1

Final-Recipient: rfc822; slow@example.com
Action: delayed
Status: 4.4.1

Final-Recipient: rfc822; good@example.com
Action: relayed
Status: 2.0.0"""
            )
        )
        assert verdicts(found) == [
            ("full@example.com", "failed", "4.2.2"),
            ("gone@example.com", "failed", "5.1.1"),
            ("slow@example.com", "delayed", "4.4.1"),
        ]
        assert [each.is_hard() for each in found.recipients] == [False, True, False]
        assert [each.is_soft() for each in found.recipients] == [True, False, True]
        assert found.is_hard(), "one of them is"
        assert found.final_recipient == "gone@example.com"

    @pytest.mark.parametrize("key", status.COMBINED_STATUS_CODES)
    def test_every_status_of_rfc_3463_has_its_words(self, key):
        found = ask(report(FIELDS.replace("5.1.1\n", f"4.{key[0]}.{key[1]}\n").replace("550-5.1.1 ", "")))
        if key not in ("00", "50"):  # which say nothing, so the words of the diagnostic are taken
            assert found.secondary_status == (int(key[0]), status.SECONDARY_STATUS_CODES[key[0]])
        assert found.primary_status == (4, "Persistent Transient Failure")
        assert found.is_soft() and not found.is_hard()
        assert found.error_for_humans().startswith("Persistent Transient Failure, ")

    @pytest.mark.parametrize("code", ["5.1.351", "5.9.1", "5.77.123", "5.1.10", "5.12.1"])
    def test_a_status_that_rfc_3463_does_not_know_is_shown(self, code):
        found = ask(report(FIELDS.replace("Status: 5.1.1", f"Status: {code}")))
        assert found.recipients[0].status == code
        assert found.is_hard()
        assert code in found.error_for_humans()

    @pytest.mark.parametrize(
        "fields",
        [
            # A comment, and an order of their own.
            "Status: 5.1.1 (no such user)\nAction: failed (given up)\nFinal-Recipient: RFC822; <zoe@example.com>",
            # An empty line where none belongs.
            "Final-Recipient: rfc822;zoe@example.com\n\nAction: failed\nStatus: 5.1.1",
            # Several without any.
            "Reporting-MTA: dns;x\nFinal-Recipient: rfc822; zoe@example.com\nAction: failed\nStatus: 5.1.1\n"
            "Final-Recipient: rfc822; zoe@example.com\nAction: failed\nStatus: 5.1.1",
            # No type.
            "Final-Recipient: zoe@example.com\nAction: error\nStatus: 5.1.1",
            # A source route, and a type of the server's own.
            "Final-Recipient: local; @mx.example.org:zoe@example.com\nStatus: 5.01.01",
            # Still encoded as in the SMTP command.
            "Original-Recipient: rfc822;zoe+40example.com\nAction: failed\nStatus: 5.1.1",
            # A pipe that the address is an argument of.
            "Final-Recipient: rfc822;|/usr/bin/deliver zoe@example.com -x\nAction: failed\nStatus: 5.1.1",
            # Only the other server says anything.
            "Final-Recipient: rfc822; zoe@example.com\nAction: failed\nStatus: 5.0.0\nDiagnostic-Code: smtp; "
            "550 5.1.1 No",
            "Final-Recipient: rfc822; zoe@example.com\nAction: failed\nDiagnostic-Code: smtp; 550 User unknown",
        ],
    )
    def test_fields_are_read_however_they_come(self, fields):
        assert verdicts(ask(report(fields))) == [("zoe@example.com", "failed", "5.1.1")]

    def test_the_other_servers_reply_beats_a_status_that_says_nothing(self):
        fields = (
            "Final-Recipient: rfc822; zoe@example.com\nAction: failed\nStatus: 4.5.0\nDiagnostic-Code: "
            "smtp; 550 5.5.0 No"
        )
        assert ask(report(fields)).is_hard()
        fields = (
            "Final-Recipient: rfc822; zoe@example.com\nAction: failed\nStatus: 4.4.7\nDiagnostic-Code: "
            "smtp; 550 5.7.1 No"
        )
        assert ask(report(fields)).recipients[0].status == "4.4.7"

    def test_a_report_that_names_nobody_is_filled_from_the_rest(self):
        fields = "Action: failed\nStatus: 5.2.2"
        assert verdicts(ask(report(fields))) == [("zoe@example.com", "failed", "5.2.2")]

    def test_fields_in_the_text_are_fields(self):
        found = ask(notice(f"Technical report:\n\n{FIELDS}\n"))
        assert verdicts(found) == [("zoe@example.com", "failed", "5.1.1")]
        assert found.reporting_mta == "mx.example.org"
        assert found.remote_mta == "mx.example.com"

    def test_a_japanese_diagnostic_is_readable(self):
        said = "ユーザーが見つかりません".encode("iso-2022-jp").decode()
        fields = f"Final-Recipient: rfc822; zoe@example.com\nAction: failed\nDiagnostic-Code: X-Notes; {said}"
        (recipient,) = ask(report(fields)).recipients
        assert recipient.diagnostic == "ユーザーが見つかりません"
        assert recipient.status == "5.1.1"

    def test_a_delayed_message_is_a_soft_bounce(self):
        found = ask(report(FIELDS.replace("failed", "delayed").replace("Status: 5.1.1", "Status: 4.4.1")))
        assert found.probable() and found.is_soft() and not found.is_hard()
        assert found.recipients[0].is_soft()

    @pytest.mark.parametrize("action", ["delivered", "relayed", "expanded", "deliverable"])
    def test_a_report_of_success_is_no_bounce(self, action):
        found = ask(report(FIELDS.replace("failed", action).replace("Status: 5.1.1", "Status: 2.1.5")))
        assert (found.kind, found.score, found.recipients) == ("delivered", 0.0, [])
        assert not found.is_hard() and not found.is_soft()
        assert found.final_recipient == "zoe@example.com"

    def test_the_bounce_of_a_bounce_is_about_what_could_not_be_delivered_last(self):
        inner = report(FIELDS.replace("zoe@", "first@"))
        outer = report().replace("From: me@example.org\nTo: zoe@example.com\nSubject: Tea\n\nAt four.\n", inner)
        found = ask(
            outer.replace("=_b", "=_outer", 4).replace("--=_b--\n\n--=_b--", "--=_b--\n\n--=_outer--"), sender=""
        )
        assert verdicts(found) == [("zoe@example.com", "failed", "5.1.1")]
        assert verdicts(detect(found.original)) == [("first@example.com", "failed", "5.1.1")]

    @pytest.mark.parametrize(("more", "read"), [("", True), ("x" * bouncemail.MAX_TEXT, False)])
    def test_its_fields_are_read_in_an_attached_file_that_is_not_long(self, more, read):
        fields = f"Final-Recipient: rfc822; kim@example.com\nAction: failed\nStatus: 5.4.7\n\n{more}\n"
        found = ask(
            "From: <>\nTo: me@example.org\nSubject: Mail could not be delivered\nMIME-Version: 1.0\n"
            'Content-Type: multipart/mixed; boundary="b"\n\n--b\n\nSee the file.\n--b\n'
            'Content-Type: application/octet-stream\nContent-Disposition: attachment; filename="details.txt"\n\n'
            f"{fields}--b--\n"
        )
        assert verdicts(found) == ([("kim@example.com", "failed", "5.4.7")] if read else [])

    @pytest.mark.parametrize(
        ("field", "address"),
        [
            ("utf-8; \\x{7528}\\x{6237}@example.com", "用户@example.com"),
            ("utf-8; z\\x{F6}e@example.com", "zöe@example.com"),
            ("utf-8; zoe@example.com", "zoe@example.com"),
        ],
    )
    def test_an_address_in_the_escapes_of_rfc_6533_is_read(self, field, address):
        found = ask(report(f"Final-Recipient: {field}\nAction: failed\nStatus: 5.1.1\n"))
        assert [each.address for each in found.recipients] == [address]

    @pytest.mark.parametrize("field", ["\\x{D800}@example.com", "\\x{FFFFFF}@example.com", "\\x{@example.com"])
    def test_what_is_no_character_in_them_raises_nothing(self, field):
        found = ask(report(f"Final-Recipient: utf-8; {field}\nAction: failed\nStatus: 5.1.1\n"))
        assert found.is_hard()
        assert all(each.address.isascii() for each in found.recipients)


class TestNotices:
    """Those in words. Every MTA has its own."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            # qmail
            (
                "Hi. This is the qmail-send program at mx.example.com.\n"
                "I'm afraid I wasn't able to deliver your message to the following addresses.\n"
                "This is a permanent error; I've given up. Sorry it didn't work out.\n\n"
                "<zoe@example.com>:\n192.0.2.1 does not like recipient.\nRemote host said: 550 5.1.1 No such user\n"
                "Giving up on 192.0.2.1.\n\n<max@example.com>:\nSorry, the mailbox is over quota. (#4.2.2)\n\n"
                "--- Below this line is a copy of the message.\n\nReturn-Path: <me@example.org>\nTo: "
                "list@example.org\n",
                [("zoe@example.com", "5.1.1"), ("max@example.com", "4.2.2")],
            ),
            # Exim
            (
                "This message was created automatically by mail delivery software.\n\nA message that you sent "
                "could not be\n"
                "delivered to one or more of its recipients. This is a permanent error.\nThe following "
                "address(es) failed:\n\n"
                "  zoe@example.com\n    host mx.example.com [192.0.2.1]\n    SMTP error from remote mail "
                "server after\n"
                "    RCPT TO:<zoe@example.com>: 550 Unrouteable address\n  max@example.com\n    retry timeout "
                "exceeded\n",
                [("zoe@example.com", "5.1.1"), ("max@example.com", "4.4.7")],
            ),
            # sendmail
            (
                "The original message was received at Thu, 1 Oct 2026 10:00:00 GMT\nfrom me@example.org\n\n"
                "   ----- The following addresses had permanent fatal errors -----\n<zoe@example.com>\n"
                "    (reason: 553 5.3.0 <zoe@example.com>... Spammer go home)\n\n"
                "   ----- Transcript of session follows -----\n... while talking to mx.example.com.:\n>>> DATA\n"
                "<<< 553 5.3.0 <zoe@example.com>... Spammer go home\n",
                [("zoe@example.com", "5.3.0")],
            ),
            # OpenSMTPD
            (
                "    Hi!\n\n    This is the MAILER-DAEMON, please DO NOT REPLY to this e-mail.\n\n"
                "    An error has occurred while attempting to deliver a message for\n    the following list "
                "of recipients:\n\n"
                "zoe@example.com: 550 5.2.2 Mailbox full\n\n    Below is a copy of the original message:\n",
                [("zoe@example.com", "5.2.2")],
            ),
            # Postfix, with its report lost
            (
                "This is the mail system at host mx.example.org.\n\nI'm sorry to have to inform you that your "
                "message could\n"
                "not be delivered to one or more recipients.\n\n<zoe@example.com>: host "
                "mx.example.com[192.0.2.1] said: 552\n"
                "    5.3.4 Message size exceeds fixed limit (in reply to MAIL FROM command)\n",
                [("zoe@example.com", "5.3.4")],
            ),
            # Exchange
            (
                "Your message\n\n  To:      list@example.org\n  Subject: Tea\n  Sent:    Thu, 1 Oct 2026 "
                "10:00:00 -0000\n\n"
                "did not reach the following recipient(s):\n\nzoe@example.com on Thu, 1 Oct 2026 10:00:00 -0000\n"
                "    The recipient name is not recognized\n",
                [("zoe@example.com", "5.1.1")],
            ),
            # Domino
            (
                "Your message\n\n  Subject: Tea\n\nwas not delivered to:\n\n  zoe@example.com\n\nbecause:\n\n"
                "  User zoe (zoe@example.com) not listed in Domino Directory\n",
                [("zoe@example.com", "5.1.1")],
            ),
            # Gmail
            (
                "Delivery to the following recipient failed permanently:\n\n     zoe@example.com\n\nTechnical "
                "details of\n"
                "permanent failure:\nGoogle tried to deliver your message, but it was rejected by the "
                "recipient domain.\n"
                "The error that the other server returned was: 550 550 5.2.1 Mailbox disabled (state 14).\n",
                [("zoe@example.com", "5.2.1")],
            ),
            # Courier
            (
                "                           UNDELIVERABLE MAIL\n\nYour message to the following recipients "
                "cannot be delivered:\n\n"
                "<zoe@example.com>:\n    mx.example.com [192.0.2.1]:\n>>> RCPT TO:<zoe@example.com>\n<<< 550 "
                "User unknown.\n",
                [("zoe@example.com", "5.1.1")],
            ),
            # A sentence and nothing else
            ("Your message to zoe@example.com was not delivered because the domain could not be found.\n",
             [("zoe@example.com", "5.1.2")]),
            # No word of whom
            ("Unable to deliver your message: disk quota exceeded.\n", []),
        ],
    )  # fmt: skip
    def test_what_it_says_is_found(self, text, expected):
        found = ask(notice(text))
        assert found.probable()
        assert [(each.address, each.status) for each in found.recipients] == expected
        assert found.is_hard() is not found.is_soft()
        assert found.error_for_humans()

    @pytest.mark.parametrize(
        ("subject", "text", "expected"),
        [
            ("Unzustellbar: Tee", "Ihre Nachricht an zoe@example.com konnte nicht zugestellt werden.\n"
             "Das Postfach ist voll.\n", "5.2.2"),
            ("Non remis : thé", "Votre message n'a pas pu être remis à zoe@example.com :\ndestinataire "
            "inconnu\n", "5.1.1"),
            ("No se puede entregar: té", "No se pudo entregar el mensaje a zoe@example.com.\nEl usuario no "
            "existe.\n", "5.1.1"),
            ("Impossibile recapitare: tè", "Impossibile recapitare il messaggio a zoe@example.com:\n"
             "casella di posta piena\n", "5.2.2"),
            ("Não é possível entregar: chá", "Sua mensagem não foi entregue a zoe@example.com:\ncaixa postal "
            "cheia\n", "5.2.2"),
            ("Onbestelbaar: thee", "Uw bericht aan zoe@example.com kon niet worden bezorgd.\nGebruiker "
            "onbekend\n", "5.1.1"),
            ("Недоставленное сообщение", "Ваше сообщение не было доставлено: zoe@example.com\n"
             "Пользователь не найден\n", "5.1.1"),
            ("配信できませんでした", "下記のアドレスに配信できませんでした。\nzoe@example.com\n宛先不明\n", "5.1.1"),
            ("送信エラー", "送信先メールアドレスが見つかりません。\n<zoe@example.com>\n", "5.1.1"),
            ("系统退信", "您的邮件无法投递: zoe@example.com\n收件人不存在\n", "5.1.1"),
            ("반송: 메일", "메일을 배달할 수 없습니다: zoe@example.com\n사용자를 찾을 수 없습니다\n", "5.1.1"),
        ],
    )  # fmt: skip
    def test_servers_speak_many_languages(self, subject, text, expected):
        found = ask(notice(text, "postmaster@mx.example.com", subject))
        assert verdicts(found) == [("zoe@example.com", "failed", expected)]

    def test_the_other_servers_reply_counts_wherever_it_stands(self):
        text = (
            "Your message couldn't be delivered to zoe@example.com. Their inbox is full.\n\nThe response was:\n\n"
            "452 4.2.2 The account is over quota\n"
        )
        assert verdicts(ask(notice(text))) == [("zoe@example.com", "failed", "4.2.2")]
        two = f"{text}\nmax@example.com\n    550 5.1.1 No such user\n"
        assert ("max@example.com", "failed", "5.1.1") in verdicts(ask(notice(two)))

    @pytest.mark.parametrize(
        "advice",
        [
            "User has moved; please try <max@example.net>",
            "The user has moved to max@example.net.",
            "User unknown. The new address is max@example.net.",
            "No such user, write <max@example.net> instead",
        ],
    )
    def test_whom_to_write_to_instead_has_not_failed(self, advice):
        assert [each.address for each in ask(notice(f"<zoe@example.com>:\n551 {advice}\n")).recipients] == [
            "zoe@example.com"
        ]
        text = f"Your message to zoe@example.com could not be delivered.\n\n551 {advice}\n"
        assert [each.address for each in ask(notice(text)).recipients] == ["zoe@example.com"]

    def test_an_address_ends_at_the_punctuation_of_any_language(self):
        text = "您的邮件被退回来了。\n收件人：zoe@qq.com\n退信原因：收件人地址（zoe@qq.com）不存在，邮件无法送达。\n"
        assert verdicts(ask(notice(text))) == [("zoe@qq.com", "failed", "5.1.1")]

    def test_x_failed_recipients_says_whom(self):
        text = "could not be delivered\n\n  zoe\n    550 5.1.1 no\n"
        found = ask(notice(text, more="X-Failed-Recipients: zoe@example.com,\n  max@example.com\n"))
        assert [each.address for each in found.recipients] == ["zoe@example.com", "max@example.com"]
        assert found.is_hard()

    def test_a_notice_in_html_is_read(self):
        page = (
            "<html><style>p {}</style><p>Your message to <b>zoe@example.com</b> couldn&#39;t be "
            "delivered.<br>Mailbox full"
        )
        found = ask(notice(page, subject="Undeliverable: Tea", more="Content-Type: text/html\n"))
        assert verdicts(found) == [("zoe@example.com", "failed", "5.2.2")]

    def test_the_original_is_cut_out_of_the_text(self):
        text = (
            "could not deliver to:\n<zoe@example.com>:\n550 no such user\n\n--- Below this line is a copy of "
            "the message.\n\n"
            "From: me@example.org\nTo: zoe@example.com\nSubject: Tea\n\nmax@example.com 550 user unknown\n"
        )
        found = ask(notice(text))
        assert verdicts(found) == [("zoe@example.com", "failed", "5.1.1")]
        assert found.original["subject"] == "Tea"
        assert found.original.body == "max@example.com 550 user unknown\n"

    def test_an_original_without_a_line_before_it_is_found_by_its_headers(self):
        text = (
            "could not deliver to:\n<zoe@example.com>:\n550 no such user\n\n"
            "Received: from a by b\nMessage-Id: <1@a>\nFrom: me@example.org\nTo: max@example.com\nSubject: "
            "Tea\n\nHi\n"
        )
        found = ask(notice(text))
        assert [each.address for each in found.recipients] == ["zoe@example.com"]
        assert found.original["to"] == "max@example.com"

    def test_when_no_address_is_named_it_is_the_one_the_original_was_for(self):
        text = (
            "Sorry, the mailbox is full.\n\n-----Original message-----\nFrom: me@example.org\nTo: "
            "zoe@example.com\nSubject: Tea\n\n"
        )
        assert verdicts(ask(notice(text))) == [("zoe@example.com", "failed", "5.2.2")]
        to_a_list = text.replace("Subject:", "List-Id: <tea.example.org>\nSubject:")
        assert verdicts(ask(notice(to_a_list))) == [], "one of many on it"
        assert ask(notice(to_a_list)).is_hard()

    def test_who_sent_the_original_has_not_failed(self):
        text = "Your message from me@example.org to zoe@example.com could not be delivered. Contact help@example.com."
        assert [each.address for each in ask(notice(text)).recipients] == ["zoe@example.com"]

    def test_mail_to_oneself_can_fail_too(self):
        text = "could not deliver your message:\n\n<me@example.org>:\nRemote host said: 552 disk quota exceeded\n"
        assert verdicts(ask(notice(text))) == [("me@example.org", "failed", "5.2.2")]

    @pytest.mark.parametrize(
        "text",
        [
            "THIS IS A WARNING ONLY. YOU DO NOT NEED TO RESEND YOUR MESSAGE.\n\n<zoe@example.com>: connection "
            "refused\n",
            "A message that you sent has not yet been delivered to one or more of its\nrecipients after more "
            "than 24 hours.\n\n"
            "  zoe@example.com\n    Delay reason: 450 4.7.1 come back\n",
            "Delivery to zoe@example.com has been delayed. We will keep trying.\n",
        ],
    )
    def test_a_warning_is_soft_whatever_it_says_besides(self, text):
        found = ask(notice(text, subject="Warning: message delayed 24 hours"))
        assert [(each.address, each.action) for each in found.recipients] == [("zoe@example.com", "delayed")]
        assert found.is_soft()

    @pytest.mark.parametrize(
        ("text", "soft"),
        [("451 try again", True), ("550 no", False), ("temporarily unavailable", True), ("retry timeout "
        "exceeded", True),
         ("temporary failure", True), ("temporarily not, this is a permanent error", False), ("no idea", False)],
    )  # fmt: skip
    def test_without_a_status_the_reply_or_the_words_decide(self, text, soft):
        assert ask(notice(f"could not deliver to\n\n<zoe@example.com>:\n{text}\n")).is_soft() is soft

    def test_the_address_that_an_alias_stood_for_is_known(self):
        text = (
            "could not be delivered:\n\n  zoe@example.com\n    (ultimately generated from "
            "team@example.com)\n    550 no\n"
        )
        (recipient,) = ask(notice(text)).recipients
        assert (recipient.address, recipient.sent_to) == ("zoe@example.com", "team@example.com")
        text = (
            "could not be delivered:\n\n  an undisclosed address\n    (generated from team@example.com)\n    550 no\n"
        )
        assert verdicts(ask(notice(text))) == [("team@example.com", "failed", "5.0.0")]

    def test_flufl_bounce_is_asked_about_what_nobody_here_understands(self):
        text = (
            "Your mail to the following recipients could not be delivered because they are not accepting "
            "mail from me:\n\tzoe\n"
        )
        found = ask(notice(text, "Mail Delivery Subsystem <MAILER-DAEMON@AOL.com>", "Mail Delivery Problem"))
        assert [each.address for each in found.recipients] == ["zoe@aol.com"]


class TestAmazon:
    BOUNCE = (
        '{"notificationType":"Bounce","bounce":{"bounceType":"%s","bounceSubType":"General","bouncedRecipients":'
        '[{"emailAddress":"zoe@example.com"%s}]},"mail":{"destination":["zoe@example.com"]}}'
    )

    def ask(self, text):
        return ask(
            f"From: AWS Notifications <no-reply@sns.amazonaws.com>\nSubject: AWS Notification Message\n\n{text}\n"
        )

    def test_a_permanent_bounce(self):
        more = ',"action":"failed","status":"5.1.1","diagnosticCode":"smtp; 550 5.1.1 user unknown"'
        found = self.ask(self.BOUNCE % ("Permanent", more))
        assert verdicts(found) == [("zoe@example.com", "failed", "5.1.1")]
        assert found.is_hard()
        assert found.diagnostic_codes == ["550", "5.1.1 user unknown"]

    def test_a_transient_bounce(self):
        assert self.ask(self.BOUNCE % ("Transient", "")).is_soft()

    def test_what_sns_wraps_and_folds(self):
        import json

        wrapped = json.dumps({"Type": "Notification", "Message": self.BOUNCE % ("Permanent", "")})
        folded = "\n".join(wrapped[begin : begin + 70] for begin in range(0, len(wrapped), 70))
        assert verdicts(self.ask(folded)) == [("zoe@example.com", "failed", "5.0.0")]

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ('{"notificationType":"Complaint","complaint":{"complainedRecipients":[]}}', "complaint"),
            ('{"eventType":"Delivery","delivery":{"recipients":["zoe@example.com"]}}', "delivered"),
            ('{"notificationType":"Bounce","bounce":7}', ""),
            ('{"notificationType":"Bounce","bounce":{"bouncedRecipients":[1,{"emailAddress":null}]}}', "bounce"),
            ('{"notificationType":["Bounce"]}', ""),
            ('{"notificationType":', ""),
        ],
    )
    def test_anything_else_is_no_bounce(self, text, kind):
        found = self.ask(text)
        assert (found.kind, found.probable()) == (kind, False)


class TestWhatIsNoBounce:
    def test_ordinary_mail(self):
        found = ask("From: zed@example.com\nTo: me@example.org\nSubject: Tea\n\nAt four?\n", sender="zed@example.com")
        assert (found.score, found.kind, found.recipients) == (0.0, "", [])
        assert not found.probable() and not found.is_hard() and not found.is_soft()
        assert found.primary_status == found.secondary_status == found.combined_status == (None, None)
        assert (
            found.remote_mta is found.reporting_mta is found.final_recipient is found.action is found.original is None
        )
        assert found.diagnostic_codes == [None, None]
        assert found.report == []
        assert found.error_for_humans() == "No status codes found in bounce message."

    @pytest.mark.parametrize(
        "more",
        ["", "Auto-Submitted: auto-replied\n", "Return-Path: <>\n", "Return-Path: <>\nAuto-Submitted: auto-replied\n",
         "X-Failed: no\nPrecedence: bulk\n"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "subject",
        [
            "Automatic reply: Tea",
            "Out of Office",
            "Auto: Tea",
            "Abwesenheitsnotiz",
            "Réponse automatique : thé",
            "自動返信",
            "Re: Tea",
        ],
    )
    def test_somebody_is_away(self, subject, more):
        text = (
            "I am out of the office and cannot receive mail until Monday.\nYour message will not be "
            "forwarded. This address\n"
            "is no longer in use; write to max@example.com, or ask sales@example.com.\n"
        )
        found = ask(notice(text, "Zoe <zoe@example.com>", subject, more))
        assert not found.probable() and not found.is_hard() and not found.is_soft()

    def test_the_kind_of_an_automatic_reply(self):
        assert (
            ask(notice("Back soon.", "zoe@example.com", "Automatic reply: Tea", "Return-Path: <>\n")).kind
            == "auto-reply"
        )

    def test_a_feedback_report(self):
        text = (
            "From: <abuse@example.com>\nTo: me@example.org\nSubject: FW: Undeliverable: Tea\nMIME-Version: 1.0\n"
            'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\n\n'
            "--b\n\nThis is an abuse report.\n"
            "--b\nContent-Type: message/feedback-report\n\nFeedback-Type: abuse\nUser-Agent: Some/1.0\nVersion: 1\n"
            "Original-Rcpt-To: zoe@example.com\nReporting-MTA: dns; mx.example.com\n\n"
            "--b\nContent-Type: message/rfc822\n\nFrom: me@example.org\nTo: zoe@example.com\nSubject: "
            "Tea\n\nHi\n--b--\n"
        )
        found = ask(text, sender="")
        assert (found.kind, found.score, found.recipients) == ("complaint", 0.0, [])
        assert found.original["to"] == "zoe@example.com"

    MDN = (
        "Return-Path: <>\nFrom: {sender}\nTo: me@example.org\nSubject: {subject}\nMIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=disposition-notification; boundary="b"\n\n--b\n\n{text}\n'
        "--b\nContent-Type: message/disposition-notification\n\nFinal-Recipient: rfc822; zoe@example.com\n"
        "Disposition: {disposition}\n\n--b--\n"
    )

    def test_a_read_receipt(self):
        text = "Your message was displayed. There is no guarantee that it was read; delivery failed to nobody."
        for disposition in (
            "manual-action/MDN-sent-manually; displayed",
            "automatic-action/MDN-sent-automatically; deleted",
        ):
            found = ask(
                self.MDN.format(sender="zoe@example.com", subject="Read: Tea", text=text, disposition=disposition)
            )
            assert (found.kind, found.score) == ("receipt", 0.0)

    def test_a_read_receipt_that_is_a_rejection(self):
        text = (
            "Your message to <zoe@example.com> was automatically rejected:\nQuota exceeded (mailbox for user is full)"
        )
        disposition = "automatic-action/MDN-sent-automatically; deleted"
        sender, subject = "Mail Delivery Subsystem <postmaster@example.com>", "Rejected: Tea"
        found = ask(self.MDN.format(sender=sender, subject=subject, text=text, disposition=disposition))
        assert verdicts(found) == [("zoe@example.com", "failed", "5.2.2")]

    def test_a_notice_of_success(self):
        text = "Your message was successfully delivered to the following recipients:\n\n  zoe@example.com\n"
        assert ask(notice(text, subject="Delivery Notification")).kind == "delivered"

    @pytest.mark.parametrize(
        ("sender", "subject", "more"),
        [
            ("Zed <zed@example.com>", "Re: failure notice", ""),
            ("Zed <zed@example.com>", "Fwd: Undelivered Mail Returned to Sender", ""),
            ("Zed <zed@example.com>", "mail to zoe bounces", ""),
            ("Zed <zed@example.com>", "delivery failure, help!", "User-Agent: Mutt/2.2\n"),
            ("Zed <zed@example.com>", "delivery failure, help!", "List-Id: <exim.example.org>\n"),
        ],
    )
    def test_people_who_write_about_bounces(self, sender, subject, more):
        text = f"Look what I got:\n\n> <zoe@example.com>:\n> 550 5.1.1 User unknown\n\n{FIELDS}\n"
        assert not ask(notice(text, sender, subject, more), sender="zed@example.com").probable()

    def test_postmasters_write_about_other_things(self):
        text = "The mail server will be down on Monday, 10 to 12. Write to help@example.com with questions.\n"
        assert not ask(notice(text, "postmaster@example.com", "Maintenance")).probable()
        text = "Your mailbox me@example.org is almost full. Please delete old mail."
        found = ask(notice(text, "Postmaster <postmaster@example.com>", "Please clean up"))
        assert (found.probable(), found.kind) == (False, "")

    @pytest.mark.parametrize("sender", ["Mail Admin <admin@example.com>", "System Administrator <joe@example.com>"])
    @pytest.mark.parametrize(
        ("subject", "text"),
        [
            ("New mail server", "If mail to zoe@example.com fails, the old server has returned error 550."),
            ("Your password expires", "Your account zoe@example.com will be disabled unless you change it."),
            ("Your mailbox is full", "Dear me@example.org, your mailbox has exceeded its quota. Click here."),
        ],
    )
    def test_so_do_administrators(self, sender, subject, text):
        assert not ask(notice(text, sender, subject)).probable()

    def test_what_an_administrator_sends_back_is_a_bounce(self):
        text = "Your message did not reach some of the recipients:\n\n  zoe@example.com\n  The mailbox is full.\n"
        found = ask(notice(text, "System Administrator <postmaster@example.com>", "Undeliverable: Tea"))
        assert verdicts(found) == [("zoe@example.com", "failed", "5.2.2")]
        found = ask(notice(text, "System Administrator <admin@example.com>", "Undeliverable: Tea"))
        assert verdicts(found) == [("zoe@example.com", "failed", "5.2.2")]


class TestRequest:
    def test_is_bounce_compares_the_score(self):
        request = MailRequest("", "", "me@example.org", notice("zoe@example.com: mailbox full").encode())
        assert request.is_bounce()
        assert not request.is_bounce(threshold=0.95)
        assert request.bounce is request.bounce, "and it is analysed once"

    def test_the_analyzer_can_be_made_without_anything(self):
        nothing = BounceAnalyzer({}, 0)
        assert nothing.error_for_humans() == "No status codes found in bounce message."
        assert not nothing.probable() and not nothing.is_hard() and not nothing.is_soft()

    def test_the_status_can_be_overruled(self):
        found = ask(report())
        found.primary_status = (4, "Persistent Transient Failure")
        assert found.is_soft() and not found.is_hard()

    def test_the_status_tables_are_here_too(self):
        assert bounce.PRIMARY_STATUS_CODES is status.PRIMARY_STATUS_CODES
        assert bounce.SECONDARY_STATUS_CODES is status.SECONDARY_STATUS_CODES
        assert bounce.COMBINED_STATUS_CODES is status.COMBINED_STATUS_CODES
        assert bounce.BOUNCE_MATCHERS["Status"].match("5.1.1").groups() == ("5", "1", "1")
        assert bounce.BOUNCE_MATCHERS["Diagnostic-Code"].match("smtp; 550 No.").groups() == ("smtp", "550", "No.")


HANDLERS = '''
from lamson.bounce import bounce_to
from lamson.routing import route, route_like, stateless

ran = []

def SOFT_BOUNCED(message, **kw):
    ran.append(("soft", kw))

def HARD_BOUNCED(message, **kw):
    ran.append(("hard", kw))
    return END

@route("(anything)@(host)", anything=".+", host=".+")
@bounce_to(soft=SOFT_BOUNCED, hard=HARD_BOUNCED)
def START(message, **kw):
    """Takes everything."""
    ran.append(("start", kw))
    return END

@route_like(START)
def END(message, **kw):
    ran.append(("end", kw))
'''


class TestRouting:
    @pytest.fixture
    def handlers(self, app):
        (app / "bounce_handlers.py").write_text(HANDLERS)
        Router.LOG_EXCEPTIONS = False
        Router.load(["bounce_handlers"])
        return importlib.import_module("bounce_handlers")

    def deliver(self, text, sender="zed@example.com"):
        request = MailRequest("peer", sender, "list@test.com", text.encode())
        Router.deliver(request)
        return request

    CAPTURES = {"anything": "list", "host": "test.com"}

    def test_a_bounce_goes_to_its_function_and_anything_else_to_the_decorated_one(self, handlers):
        self.deliver(report(), sender="")
        self.deliver(report(FIELDS.replace("failed", "delayed")), sender="")
        self.deliver("Subject: Tea\n\nAt four?\n")
        assert handlers.ran == [("hard", self.CAPTURES), ("soft", self.CAPTURES), ("start", self.CAPTURES)]

    def test_the_function_keeps_its_name_its_module_and_its_settings(self, handlers):
        assert (handlers.START.__name__, handlers.START.__module__) == ("START", "bounce_handlers")
        assert handlers.START.__doc__ == "Takes everything."
        assert lamson_setting(handlers.START, "captures") == {"anything": ".+", "host": ".+"}

    def test_what_the_bounce_function_returns_is_the_next_state(self, handlers):
        request = self.deliver(report(), sender="mailer-daemon@example.com")
        assert Router.get_state("bounce_handlers", request) == "END"
        request = self.deliver(report(), sender="")
        assert Router.get_state("bounce_handlers", request) == "START", "the sender of bounces has no state"

    def test_a_soft_bounce_stays_when_its_function_returns_nothing(self, handlers):
        request = self.deliver(report(FIELDS.replace("failed", "delayed")), sender="mailer-daemon@example.com")
        assert Router.get_state("bounce_handlers", request) == "START"

    def test_it_goes_with_stateless(self):
        ran = []

        @route("a@test.com")
        @bounce_to(soft=lambda message: ran.append("soft"), hard=lambda message: ran.append("hard"))
        @stateless
        def START(message):
            ran.append("start")

        assert lamson_setting(START, "stateless")
        Router.deliver(MailRequest("", "", "a@test.com", report().encode()))
        Router.deliver(MailRequest("", "b@test.com", "a@test.com", b"Subject: x\n\n"))
        assert ran == ["hard", "start"]

    def test_above_route_it_says_where_it_belongs(self):
        with pytest.raises(MisuseError, match="Put @route on top"):

            @bounce_to(print, print)
            @route("a@test.com")
            def START(message):
                pass

    def test_it_wants_two_functions(self):
        with pytest.raises(MisuseError, match="hard, which is None"):
            bounce_to(soft=print, hard=None)
        with pytest.raises(AssertionError, match="hard, which is None"):
            bounce_to(soft=print)


class TestStrangers:
    PIECES = st.sampled_from(
        [*report().splitlines(keepends=True), *TestWhatIsNoBounce.MDN.splitlines(keepends=True), "zoe@example.com",
         "550 ", "\n",
         "Content-Type: message/delivery-status\n\n", "Content-Type: "
         "text/html\n\n", "<", ">:", "--=_b\n", "{", "\x00", "ß", "\r\n"]
    )  # fmt: skip

    @settings(max_examples=200, deadline=None)
    @given(st.lists(PIECES | st.text(max_size=20), max_size=60))
    def test_nothing_raises(self, pieces):
        found = ask("".join(pieces).encode("utf-8", "surrogatepass"), sender="")
        assert 0.0 <= found.score <= 1.0
        assert isinstance(found.error_for_humans(), str)
        assert not (found.is_hard() and found.is_soft())
        assert all("@" in each.address for each in found.recipients)

    @pytest.mark.parametrize(
        "text",
        [
            "could not be delivered " + " " * 500_000,
            "*" * 500_000,
            "user " * 100_000,
            "not deliver " * 50_000,
            "a@b.c " * 100_000,
            "a@b.c\n" * 100_000,
            ("a" * 900 + "@\n") * 500,
            "".join(f"<a{number}@b.c>: 550 no\n" for number in range(20_000)),
            "--- original message follows ---\n" * 20_000,
            "From: a\nTo: b\n" * 20_000,
            '{"notificationType":' + "[" * 100_000,
            "<p <style " * 50_000,
        ],
        ids=range(12),
    )
    def test_no_text_takes_long(self, text):
        begin = time.monotonic()
        ask(notice(text))
        ask(notice(text, more="Content-Type: text/html\n"))
        # Half a second on a slow machine; what repeats what repeats would take hours.
        assert time.monotonic() - begin < 15

    def test_a_report_on_very_many_is_read(self):
        group = "Final-Recipient: rfc822; a{0}@example.com\nAction: failed\nStatus: 5.1.1\n\n"
        found = ask(report("\n" + "".join(group.format(number) for number in range(3000))))
        assert len(found.recipients) == 3000


def test_the_example_in_the_document_works(capsys, monkeypatch):
    page = (Path(__file__).parent.parent / "docs/bounces.md").read_text()
    module = types.ModuleType("doc_bounces")
    monkeypatch.setitem(sys.modules, "doc_bounces", module)
    Router.defaults(host="test.com")
    exec(compile(page.split("```python\n")[1].split("```")[0], "docs/bounces.md", "exec"), vars(module))
    for text in (report(), report(FIELDS.replace("failed", "delayed")), "Subject: Tea\n\nAt four?\n"):
        Router.deliver(MailRequest("", "zed@example.com", "tea@test.com", text.encode()))
    assert module.gone == {"zoe@elsewhere.example.com"}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("try again later: Persistent Transient Failure")
    assert said[1] == "a message from a person, for tea"
