"""The handler modules that come with Lamson."""

import logging
import sys
import types

import pytest

from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import Router, route, stateless
from lamson.server import QueueReceiver

RAW = b"From: a@example.com\r\nSubject: hi \x1b[2J\r\n\r\nHello\r\n"


@pytest.fixture
def request_to():
    return lambda *to: MailRequest("peer", "zed@example.com", list(to), RAW)


def test_log_logs_every_message_and_its_text_only_at_debug(app, caplog, request_to):
    Router.load(["lamson.handlers.log"])
    caplog.set_level(logging.INFO)
    Router.deliver(request_to("Any.Body@anywhere.example"))
    assert "MESSAGE to any.body@anywhere.example from zed@example.com" in caplog.text
    assert "Hello" not in caplog.text and "\x1b" not in caplog.text


def test_queue_pushes_each_recipients_copy_once(app, request_to):
    Router.load(["lamson.handlers.queue"])
    Router.deliver(request_to("One@a.example", "two@b.example", "three@c.example"))
    assert Queue("run/queue").count() == 3
    handled = []
    Router.clear_routes()

    @route(".+")
    @stateless
    def SEEN(message):
        handled.append(message.To)

    QueueReceiver("run/queue").start(one_shot=True)
    assert sorted(handled) == [["One@a.example"], ["three@c.example"], ["two@b.example"]]


def test_forward_relays_each_recipients_copy_with_its_envelope_and_its_bytes(app, monkeypatch, request_to):
    sent = []

    class Relay:
        def deliver(self, message):
            sent.append((message.envelope, message.as_bytes()))

    settings = types.ModuleType("config.settings")
    settings.relay = Relay()
    package = types.ModuleType("config")
    package.settings = settings
    monkeypatch.setitem(sys.modules, "config", package)
    monkeypatch.setitem(sys.modules, "config.settings", settings)
    Router.load(["lamson.handlers.forward"])
    Router.deliver(request_to("Zed.Shaw@test.com", "two@b.example"))
    assert sorted(sent) == [
        (("zed@example.com", ["Zed.Shaw@test.com"]), RAW),
        (("zed@example.com", ["two@b.example"]), RAW),
    ]
