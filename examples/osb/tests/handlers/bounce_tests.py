"""Bounces, and answers that come too late or from the wrong one."""

from config import settings
from tests.blog import HOST, ZED, ask, begin

from lamson.mail import MailRequest
from lamson.routing import Router
from lamson.server import SMTPError
from lamson.testing import RouterConversation, assert_equal, assert_in_state, assert_raises_regex

BOUNCE = """From: Mail Delivery System <MAILER-DAEMON@example.com>
To: {to}
Subject: Delivery report
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b

The mail system could not deliver your message.

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.com

Final-Recipient: rfc822; {address}
Action: {action}
Status: {status}
Diagnostic-Code: smtp; {code} {status} told so

--b--
"""
HARD = {"action": "failed", "status": "5.1.1", "code": 550}
SOFT = {"action": "failed", "status": "4.2.2", "code": 452}


def bounce(to, address=ZED, kind=HARD):
    Router.deliver(MailRequest("localhost", "", to, BOUNCE.format(to=to, address=address, **kind)))


def test_what_is_asked_at_an_address_that_does_not_exist_is_dropped():
    begin()
    question = ask()
    bounce(question["From"])
    assert_equal(settings.confirmation.pending.count(), 0)


def test_whose_mail_is_forwarded_is_known_by_the_address_that_was_asked():
    begin()
    bounce(ask()["From"], address=f"zed@elsewhere.example\nOriginal-Recipient: rfc822; {ZED}")
    assert_equal(settings.confirmation.pending.count(), 0)


def test_what_did_not_arrive_yet_is_waited_for():
    begin()
    question = ask()
    bounce(question["From"], kind=SOFT)
    assert_equal(settings.confirmation.pending.count(), 1)
    RouterConversation(ZED, "x").say(question["Reply-To"], "Yes.")


def test_a_bounce_about_somebody_else_drops_nothing():
    begin()
    bounce(ask()["From"], address="joe@example.com")
    assert_equal(settings.confirmation.pending.count(), 1)


def test_a_bounce_moves_no_sender_on():
    begin()
    bounce(ask()["From"])
    assert_in_state("app.handlers.post", f"hello@{HOST}", ZED, "CONFIRMING")


def test_other_mail_that_bounces_is_only_logged():
    bounce(f"no-reply@{HOST}")
    bounce(f"no-reply@{HOST}", kind=SOFT)


def test_nobody_reads_what_is_sent_to_no_reply():
    with assert_raises_regex(SMTPError, "550"):
        RouterConversation(ZED, "Hello").say(f"no-reply@{HOST}", "Anybody?")


def test_automatic_mail_is_not_asked_to_confirm():
    begin()
    with assert_raises_regex(SMTPError, "550 5.7.1 .* automatic mail cannot be"):
        bounce(f"hello@{HOST}")
    assert_equal(settings.confirmation.pending.count(), 0)
