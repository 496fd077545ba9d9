"""The pages on confirmations, HTML mail, state machines and deferred queues do what they say."""

import importlib
import re
import sys
import types
from pathlib import Path

import pytest

from lamson import view
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import Router
from lamson.server import QueueReceiver, Relay, SMTPError
from lamson.testing import QueueRelay, RouterConversation

HERE = Path(__file__).parent.parent
LOGGING = (HERE / "templates/project/config/logging.conf").read_text()


def blocks(name, language="python"):
    text = (HERE / "docs" / name).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for its_language, block in found if its_language == language]


@pytest.fixture
def project(app, monkeypatch):
    """A project's folder, with what config.settings has in it."""
    for folder in ("app/handlers", "app/templates/mail", "config", "logs", "run"):
        (app / folder).mkdir(parents=True)
    for package in ("app", "app/handlers", "config"):
        (app / package / "__init__.py").write_text("")
    (app / "config/logging.conf").write_text(LOGGING)
    (app / "config/settings.py").write_text("database_config = {'url': 'sqlite://'}\n")
    settings = importlib.import_module("config.settings")
    settings.relay = QueueRelay("run/queue")
    monkeypatch.setattr(view, "LOADER", None)
    monkeypatch.setattr("logging.config.fileConfig", lambda *_, **__: None)
    Router.LOG_EXCEPTIONS = False
    Router.defaults(host=r"test\.com|oneshotblog\.test")
    yield app
    for name in [name for name in sys.modules if name.partition(".")[0] in ("app", "config")]:
        del sys.modules[name]


def run(text, name="doc", **variables):
    module = types.ModuleType(name)
    sys.modules[name] = module
    vars(module).update(variables)
    exec(compile(text, name, "exec"), vars(module))
    return module


def test_the_list_of_the_page_on_confirmations_subscribes_nobody_else(project, capsys):
    handlers, boot, failing = blocks("confirmations.md")
    (project / "app/templates/mail/confirm.msg").write_text(blocks("confirmations.md", "")[0])
    view.LOADER = view.jinja2_loader(dir="app", module="templates")
    run(boot, "doc_boot")
    run(handlers)

    client = RouterConversation("zed@example.com", "Cats")
    client.say("cats-subscribe@test.com", "Let me in.", expect="cats-confirm-")
    question = client.say("cats-subscribe@test.com", "Let me in!", expect="cats-confirm-[a-z0-9]+@test.com")
    assert question.body().endswith(f"Answer this mail if it was you: {question['From']}\n")
    with pytest.raises(SMTPError, match="550 5.7.1 There is nothing to confirm"):
        client.say("cats-confirm-0@test.com", "Yes.")
    client.say(question["Reply-To"], "Yes.")
    client.say("cats@test.com", "Meow.")
    assert capsys.readouterr().out == "zed@example.com has subscribed to cats\nposting to cats\n"

    published = []
    settings = sys.modules["config.settings"]
    failing_page = run(
        failing, confirmation=settings.confirmation, SMTPError=SMTPError, publish=published.append, POSTING="POSTING"
    )
    secret = settings.confirmation.register("post", MailRequest("", "zed@example.com", "x@test.com", "\nHi\n"))
    secret = secret.rpartition("-")[2]
    answer = MailRequest("", "zed@example.com", f"post-confirm-{secret}@test.com", "\nYes\n")
    assert failing_page.CONFIRMING(answer, id_number=secret, host="test.com") == "POSTING"
    assert [original.body() for original in published] == ["Hi\n"]


def test_the_newsletter_of_the_page_on_html_mail_goes_out(project):
    folder = project / "app/templates/mail"
    (folder / "style.css").write_text(blocks("html_mail.md", "css")[0])
    (folder / "page.html").write_text(blocks("html_mail.md", "html")[0])
    (folder / "news.md").write_text(blocks("html_mail.md", "")[-1])
    (folder / "tom.jpg").write_bytes(b"\xff\xd8not much of a picture")
    view.LOADER = view.jinja2_loader(dir="app", module="templates")

    newsletter, escape = blocks("html_mail.md")
    name = run(escape).name
    run(newsletter).send_news(QueueRelay("run/queue"), name=name, address="zed@example.com", host="test.com")
    mail = Queue("run/queue").pop()[1]
    assert (mail["To"], mail["From"]) == ("zed@example.com", "cats@test.com")
    assert "# News for [Click here](http://evil.example) <b>now</b>\n" in mail.text()
    assert "\nTom\n" in mail.text()
    assert '<p style="color: green;">The <strong>cats</strong>' in mail.html()
    assert 'evil.example"' not in mail.html()
    assert [each.name for each in mail.attachments()] == ["tom.jpg"]
    assert re.search(r'src="cid:\w+@lamson"', mail.html())


def test_the_machine_of_the_page_on_state_machines_goes_round(project, capsys):
    run(blocks("state_machines.md")[0])
    client = RouterConversation("zed@example.com", "x")
    for to in ("one", "two", "post-confirm-abc", "three"):
        client.say(f"{to}@oneshotblog.test", "x")
    assert capsys.readouterr().out == (
        "asking whether it was them\nasking whether it was them\npublishing\npublishing three at once\n"
    )


def test_the_queue_of_the_page_on_deferred_queues_is_worked_off(project):
    handler, boot, _ = blocks("deferred_queues.md")
    (project / "app/handlers/index.py").write_text(
        "from lamson.routing import route, stateless\nseen = []\n"
        '@route("(name)@(host)", name=".+")\n@stateless\n'
        "def START(message, name=None, host=None):\n    seen.append(name)\n"
    )
    run(handler)
    Router.deliver(MailRequest("", "zed@example.com", "hello@oneshotblog.test", b"Subject: x\n\nHi\n"))
    assert Queue("run/posts").count() == 1

    Router.clear_routes()  # the second server is another process
    run(boot, "doc_boot")
    sys.modules["config.settings"].receiver.start(one_shot=True)
    assert sys.modules["app.handlers.index"].seen == ["hello"]
    assert Queue("run/posts").count() == 0


def test_the_forwarder_of_the_page_on_deferred_queues_drains_the_queue(project):
    Queue("run/undeliverable").push(MailRequest("", "zed@example.com", "old@test.com", b"Subject: x\n\nHi\n"))
    run(blocks("deferred_queues.md")[2], "doc_boot")
    settings = sys.modules["config.settings"]
    assert isinstance(settings.relay, Relay) and isinstance(settings.receiver, QueueReceiver)
    settings.relay = QueueRelay("run/queue")
    settings.receiver.start(one_shot=True)
    assert Queue("run/queue").pop()[1].To == ["old@test.com"]
    assert Queue("run/undeliverable").count() == 0
