"""The documents and the examples do what they say."""

import re
import smtplib
import sys
import types
from pathlib import Path

import pytest

from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import Router
from lamson.server import Relay
from lamson.testing import QueueRelay

HERE = Path(__file__).parent.parent
DOCUMENTS = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md")), HERE / "examples/README.md"]
DOCUMENTS.append(HERE / "examples/stores/README.md")


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_a_document_is_python(path):
    for block in blocks(path, "python"):
        compile(block, str(path), "exec")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


@pytest.fixture
def settings(app, monkeypatch):
    """A module config.settings as handlers import it, with a relay that drops mail into run/queue."""
    module = types.ModuleType("config.settings")
    module.relay = QueueRelay("run/queue")
    monkeypatch.setitem(sys.modules, "config", types.ModuleType("config"))
    monkeypatch.setitem(sys.modules, "config.settings", module)
    Router.LOG_EXCEPTIONS = False
    Router.defaults(host="test.com|example.com")
    return module


def run_block(name, text):
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(text, name, "exec"), vars(module))
    return module


def test_the_list_of_the_routing_page_takes_a_sender_through_its_states(settings, monkeypatch, capsys):
    first, generator = blocks(HERE / "docs/routing.md", "python")[:2]
    run_block("doc_lists", first + generator)

    def say(to, subject="x"):
        Router.deliver(MailRequest("", "zed@x.org", to, f"Subject: {subject}\n\n".encode()))
        message = MailRequest("", "zed@x.org", to, b"")
        message.recipient = to
        return Router.get_state("doc_lists", message)

    key = "python@example.com"
    assert say("python-subscribe@example.com") == "CONFIRMING"
    assert "asking zed@x.org to confirm python" in capsys.readouterr().out
    assert say(key) == "START", "a state per address, as the generator makes it"
    with pytest.raises(Exception, match="550 Nobody reads this address."):
        say("python-owner@example.com")


def test_the_handler_of_getting_started_answers(settings, app):
    run_block("doc_hello", blocks(HERE / "docs/getting_started.md", "python")[0])
    Router.deliver(MailRequest("", "zed@x.org", "hello@test.com", b"From: zed@x.org\nSubject: Hi\n\nAnybody?\n"))
    answer = Queue("run/queue").pop()[1]
    assert (answer["to"], answer["from"], answer["subject"]) == ("zed@x.org", "hello@test.com", "Re: Hi")
    assert answer.body() == "Hello! You wrote:\n\nAnybody?\n"


def test_the_echo_example_echoes(app):
    sys.path.insert(0, str(HERE / "examples"))
    try:
        import echo
    finally:
        sys.path.pop(0)
    answers = []

    class Catcher(Relay):
        def _send(self, host, sender, recipients, content):
            answers.append(MailRequest("", sender, recipients, content))

    echo.Relay = Catcher
    receiver = echo.serve(0, 1)
    try:
        with smtplib.SMTP("127.0.0.1", receiver.port) as client:
            client.sendmail("a@x.org", "any@test.com", b"From: a@x.org\r\nSubject: Hi\r\n\r\nHello, echo.\r\n")
            client.sendmail(
                "a@x.org", "any@test.com", b"From: a@x.org\r\nAuto-Submitted: auto-replied\r\n\r\nVacation\r\n"
            )
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail("a@x.org", "any@elsewhere.org", b"")
    finally:
        receiver.close()
    assert [(answer.To, answer["subject"], answer.body()) for answer in answers] == [
        (["a@x.org"], "Re: Hi", "Hello, echo.\n")
    ]
