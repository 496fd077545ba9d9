"""Tests for lamson.mailboxes, by the commands that read them: blast and cleanse."""

import mailbox
import os
import sys

import pytest

from commandline import refused, run
from lamson import commands, terminal
from lamson.mail import MailRequest
from lamson.queue import Queue
from sink import Sink

MAILS = [b"From: me@x.com\nTo: a@x.com\nSubject: one\n\nHi.\n", b"From: me@x.com\nTo: b@x.com, c@x.com\n\nHo.\n"]


@pytest.fixture
def server():
    with Sink() as server:
        yield server


@pytest.fixture(params=["maildir", "mbox"])
def mails(folder, request):
    box = mailbox.Maildir("mails") if request.param == "maildir" else mailbox.mbox("mails")
    for content in MAILS:
        box.add(content)
    box.close()
    return box


def test_blast_sends_every_mail(mails, server):
    done = run("blast", "-input", "mails", "-port", str(server.port))
    assert done.stdout == f"Sent 2 mails to 127.0.0.1:{server.port}.\n"
    assert done.stderr == ""
    assert sorted(mail.recipients for mail in server.got) == [["a@x.com"], ["b@x.com", "c@x.com"]]


def test_blast_goes_on_after_a_refusal_and_names_it(mails, server):
    server.refuse["a@x.com"] = "550 no"
    done = run("blast", "-input", "mails", "-port", str(server.port), code=1)
    assert done.stdout.startswith("Sent 1 mails")
    first, last = done.stderr.splitlines()
    assert first.endswith("refused: a@x.com: 550 no") and last == "lamson: 1 mails were refused."


def test_blast_sends_queued_mail_to_those_it_was_queued_for(folder, server):
    Queue("mails").push(MailRequest(None, "bounce@x.com", ["hidden@x.com"], MAILS[0]))
    run("blast", "-input", "mails", "-port", str(server.port))
    assert [mail[:2] for mail in server.got] == [("bounce@x.com", ["hidden@x.com"])]


def test_blast_stops_when_nobody_listens(mails):
    assert "Connection refused" in refused("blast", "-input", "mails", "-port", "1")


def test_blast_and_cleanse_refuse_what_is_no_mailbox(folder):
    (folder / "text").write_text("just text\n")
    assert "there is no nowhere" in refused("blast", "-input", "nowhere")
    (folder / "new").mkdir()
    assert "new is neither a Maildir nor a file" in refused("blast", "-input", "new")
    (folder / "new").rmdir()
    assert "text is not in mbox format" in refused("cleanse", "-input", "text", "-output", "out")
    assert "another Maildir" in refused("cleanse", "-input", "text", "-output", "./text")
    assert sorted(os.listdir()) == ["text"]


def test_cleanse_writes_canonical_mail_into_another_maildir(mails):
    assert run("cleanse", "-input", "mails", "-output", "clean").stdout == "Cleansed 2 mails, 0 could not be.\n"
    clean = Queue("clean")
    texts = sorted(str(clean.get(key)) for key in clean.keys())
    assert texts == sorted(str(MailRequest(None, None, None, content)) for content in MAILS)


def test_cleanse_keeps_the_envelope_of_queued_mail(folder):
    Queue("mails").push(MailRequest(None, "bounce@x.com", ["hidden@x.com"], MAILS[0]))
    run("cleanse", "-input", "mails", "-output", "clean")
    _, message = Queue("clean").pop()
    assert (message.From, message.To) == ("bounce@x.com", ["hidden@x.com"])


def test_cleanse_counts_what_could_not_be(mails, monkeypatch, capsys):
    def broken(message):
        if message["subject"] == "one":
            raise ValueError("cannot be read")
        return "Subject: two\n\nHi.\n"

    monkeypatch.setattr(MailRequest, "__str__", broken)
    with pytest.raises(SystemExit) as caught:
        commands.cleanse_command("mails", "clean")
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == "Cleansed 1 mails, 1 could not be.\n"
    assert "cannot be cleansed: cannot be read" in printed.err
    assert Queue("clean").count() == 1


def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch):
    assert list(terminal.with_progress(iter("ab"), 2)) == ["a", "b"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(terminal.with_progress(iter("ab"), 2)) == ["a", "b"]
    assert capsys.readouterr().err == (
        "\r[                              ] 0/2"
        "\r[###############               ] 1/2"
        "\r[##############################] 2/2\n"
    )
