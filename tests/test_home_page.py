"""The code on Lamson's home page, run as it is printed there, with the imports and names around it that it needs.

The transcripts of the page are gone through in test_introduction.py.
"""

import importlib
import sys
import types

import jinja2
import pytest

from homepage import BOUNCE, CONFIRMING, FIRST, HELP, HELP_FOR_START, POSTING, SECOND, SPAM, TEXTS, boxes
from lamson import view
from lamson.confirm import ConfirmationEngine, ConfirmationStorage
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import Router
from lamson.spam import Filter
from lamson.testing import QueueRelay

ZED = "zed@example.com"


@pytest.mark.skipif(not TEXTS.is_dir(), reason="the texts are not beside this checkout")
def test_nothing_else_is_in_the_boxes_of_the_texts():
    samples = [POSTING, CONFIRMING, SPAM, BOUNCE]
    assert boxes() == [*(sample.lstrip() for sample in samples), FIRST, HELP, HELP_FOR_START, SECOND]


@pytest.fixture
def settings(app, monkeypatch):
    """What a project's config.settings has for the handlers on the page, and calls that remember what came of them."""
    module = types.ModuleType("config.settings")
    module.relay = QueueRelay("run/queue")
    module.confirmation = ConfirmationEngine("run/pending", ConfirmationStorage())
    module.verified = []
    verify = module.confirmation.verify

    def remembering(*arguments):
        module.verified.append(verify(*arguments))
        return module.verified[-1]

    module.confirmation.verify = remembering
    monkeypatch.setitem(sys.modules, "config", types.ModuleType("config"))
    monkeypatch.setitem(sys.modules, "config.settings", module)
    templates = {"mail/confirm.msg": "Answer to {{ confirm_address }}@{{ host }} to post {{ post_name }}.\n"}
    monkeypatch.setattr(view, "LOADER", jinja2.Environment(loader=jinja2.DictLoader(templates)))
    Router.LOG_EXCEPTIONS = False
    Router.defaults(host=r"oneshotblog\.test", post_name="[a-z0-9.]+")
    return module


def load(app, code):
    (app / "home_page.py").write_text(code)
    return importlib.import_module("home_page")


def say(to, sender=ZED, headers="", body="Hello."):
    message = MailRequest("localhost", sender, to, f"From: Zed <{ZED}>\nTo: {to}\n{headers}\n{body}\n")
    Router.deliver(message)
    return message


def state(message):
    return Router.get_state("home_page", message)


def test_posting_and_confirming(app, settings):
    parsed = []
    settings.parseaddr = parsed.append
    imports = """
from email.utils import parseaddr as really_parseaddr
from config.settings import confirmation, relay
from config.settings import parseaddr as remember
from lamson.routing import route

def parseaddr(value):
    remember(value)
    return really_parseaddr(value)
"""
    page = load(app, imports + POSTING + CONFIRMING)

    post = say("hello@oneshotblog.test", headers="Subject: First\n")
    assert state(post) == "CONFIRMING"
    _, question = Queue("run/queue").pop()
    assert question["To"] == f"Zed <{ZED}>"
    assert question["From"].startswith("post-confirm-")
    assert question.body() == f"Answer to {question['From']} to post hello."

    say(question["Reply-To"], sender="eve@example.com")
    assert settings.verified == [], "she is not in CONFIRMING"
    say(question["Reply-To"], headers="Auto-Submitted: auto-replied\n")
    say("post-confirm-0@oneshotblog.test")
    assert settings.verified == [None, None]
    say(question["Reply-To"])
    original = settings.verified[-1]
    assert (original["X-Post-Name"], original["Subject"], original.body()) == ("hello", "First", "Hello.\n")
    assert settings.confirmation.pending.count() == 0
    assert state(post) == "CONFIRMING", "what stands in place of the dots would return POSTING"

    Router.set_state("home_page", post, page.POSTING.__name__)
    say("second@oneshotblog.test")
    say("second-delete@oneshotblog.test")
    assert parsed == [f"Zed <{ZED}>"] * 2
    assert state(post) == "POSTING"


def test_bounces(app, settings):
    imports = """
from lamson.bounce import bounce_to
from lamson.routing import route

bounced = []

def SOFT_BOUNCED(message, **kw):
    bounced.append(("soft", kw["anything"]))

def HARD_BOUNCED(message, **kw):
    bounced.append(("hard", kw["anything"]))
"""
    page = load(app, imports + BOUNCE)
    report = (
        "Subject: Delivery report\nMIME-Version: 1.0\n"
        "Content-Type: multipart/report; report-type=delivery-status; boundary=b\n\n"
        "--b\n\nIt did not arrive.\n\n--b\nContent-Type: message/delivery-status\n\n"
        "Reporting-MTA: dns; mx.example.com\n\nFinal-Recipient: rfc822; joe@example.com\n"
        "Action: failed\nStatus: {}\n\n--b--\n"
    )
    say("me@oneshotblog.test")
    for to, status in (("one", "5.1.1"), ("two", "4.2.2")):
        Router.deliver(MailRequest("", "", f"{to}@oneshotblog.test", report.format(status)))
    assert page.bounced == [("hard", "one"), ("soft", "two")]


def test_spam(app, settings):
    imports = """
from lamson.routing import route, route_like
from lamson.spam import spam_filter

ham_db = "run/spamdb"
handled = []

def SPAMMING(message, **kw):
    pass
"""
    (app / "tests").mkdir()
    (app / "tests/.hammierc").write_text("[Categorization]\nspam_cutoff: 0.90\n")
    # Four dots are no Python, in no version of it. Three are, and do nothing, so this counts instead.
    page = load(app, imports + SPAM.replace("....", "handled.append(message['subject'])"))

    say("me@oneshotblog.test", headers="Subject: Ham\n")
    assert page.handled == ["Ham"], "an untrained filter lets everything through"

    spam, ham = "Cheap casino watches, unlimited bonus money", "The minutes of the meeting about routing are attached"
    with Filter("run/spamdb", "tests/.hammierc") as known:
        for number in range(10):
            known.train_spam(f"Subject: {number}\n\n{spam} {number}\n")
            known.train_ham(f"Subject: {number}\n\n{ham} {number}\n")
    good = say("me@oneshotblog.test", headers="Subject: Good\n", body=ham)
    assert (page.handled, state(good)) == (["Ham", "Good"], "START")
    bad = say("me@oneshotblog.test", headers="Subject: Bad\n", body=spam)
    assert (page.handled, state(bad)) == (["Ham", "Good"], "SPAMMING")
    _, caught = Queue("run/queue").pop()
    assert caught["Subject"] == "Bad"
    assert caught["X-Spambayes-Classification"].startswith("spam")
