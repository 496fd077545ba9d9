"""Tests for lamson.queuecommands: the command queue. For cleanse see test_mailboxes.py."""

import os
import subprocess
from pathlib import Path

import pytest

from commandline import LAMSON, refused, run
from lamson import commands
from lamson.mail import MailRequest
from lamson.outgoing import RetryQueue
from lamson.queue import Queue
from sink import Sink

MAILS = [b"From: me@x.com\nTo: a@x.com\nSubject: one\n\nHi.\n", b"From: me@x.com\nTo: b@x.com\n\nHo.\n"]


@pytest.fixture
def queued(folder):
    queue = Queue("run/queue")
    return [queue.push(MailRequest(None, "me@x.com", ["a@x.com"], content)) for content in MAILS]


def test_queue_counts_lists_and_prints(queued):
    assert run("queue", "-count").stdout == "2\n"
    assert run("queue", "-keys").stdout == "".join(f"{key}\n" for key in sorted(queued))
    assert run("queue", "-get", queued[0], text=False).stdout == MAILS[0]
    assert run("queue", "-count").stdout == "2\n"


def test_queue_pops_the_oldest(queued):
    assert run("queue", "-pop", text=False).stdout == MAILS[0]
    assert run("queue", "-pop", text=False).stdout == MAILS[1]
    assert "run/queue is empty" in refused("queue", "-pop")


def test_queue_keeps_a_mail_that_it_could_not_print(queued):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*LAMSON, "queue", "-pop"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "lamson: No space left on device.\n")
    assert run("queue", "-count").stdout == "2\n"


def test_queue_removes_and_clears(queued):
    run("queue", "-remove", queued[0])
    assert run("queue", "-keys").stdout == f"{queued[1]}\n"
    run("queue", "-clear")
    assert run("queue", "-count").stdout == "0\n"
    assert run("queue", "-keys").stdout == ""


def test_queue_refuses_keys_and_queues_that_are_not_there(queued):
    assert "no mail x in run/queue" in refused("queue", "-get", "x")
    assert "no message 'x'" in refused("queue", "-remove", "x")
    assert "there is no queue in run/other" in refused("queue", "-count", "-name", "run/other")
    assert not Path("run/other").exists()


def test_queue_lists_who_wrote_to_whom_and_why_it_is_there(queued):
    Queue("run/queue").push(MailRequest(None, "", ["b@x.com", "c\x1b@x.com"], b""), reason="550 No.")
    printed = run("queue", "-list").stdout
    assert f"{queued[0]}\n    from <me@x.com> to a@x.com, " in printed
    assert "    from <> to b@x.com, c\\x1b@x.com, " in printed and printed.endswith(" old\n    550 No.\n")


def test_queue_retry_gives_undeliverable_mail_to_the_handlers_once_more(folder):
    commands.gen_command("p")
    os.chdir("p")
    handler = Path("app/handlers/sample.py")
    works = handler.read_text()
    undeliverable = Queue("run/undeliverable")
    keys = [undeliverable.push(MailRequest(None, "me@x.com", [f"{n}@test.com"], MAILS[0])) for n in "ab"]
    handler.write_text(
        works + "\n\ndef deliver(message):\n    raise ValueError('still no luck')\n\nrelay.deliver = deliver\n"
    )
    answer = run("queue", "-name", "run/undeliverable", "-retry", "ALL", code=1)
    assert answer.stdout == "0 of 2 mails were handled.\n"
    assert f"{keys[0]} stays: still no luck" in answer.stderr
    assert (
        undeliverable.keys() == keys and "still no luck" in run("queue", "-list", "-name", "run/undeliverable").stdout
    )
    done = "\n\ndef deliver(message):\n    open('done', 'a').write(message.recipient)\n\nrelay.deliver = deliver\n"
    handler.write_text(works + done)
    assert run("queue", "-name", "run/undeliverable", "-retry", keys[1]).stdout == "1 of 1 mails were handled.\n"
    assert Path("done").read_text() == "b@test.com" and undeliverable.keys() == keys[:1]
    answer = run("queue", "-name", "run/undeliverable", "-retry", "no-such-key", code=1)
    assert answer.stderr == "no-such-key stays: it is not there, or another program is handling it\n"


def test_queue_retry_sends_what_is_in_the_queue_of_the_relay(folder):
    commands.gen_command("p")
    os.chdir("p")
    with Sink() as server:
        settings = Path("config/settings.py")
        settings.write_text(settings.read_text().replace("8825", str(server.port)))
        outgoing = RetryQueue("run/outgoing", None, None)
        message = MailRequest(None, "me@x.com", ["a@x.com", "b@x.com", "gone@x.com"], MAILS[0])
        keys = [outgoing.push(message, "450 Later") for _ in range(3)]
        server.refuse = {"b@x.com": "450 4.2.1 Still later", "gone@x.com": "550 5.1.1 Gone"}

        answer = run("queue", "-name", "run/outgoing", "-retry", keys[1], code=1)
        assert answer.stdout == "0 of 1 mails were handled.\n"
        assert (
            f"{keys[1]} stays: localhost said: 450 4.2.1 Still later; localhost said: 550 5.1.1 Gone\n" == answer.stderr
        )
        assert [recipients for _, recipients, *_ in server.got] == [["a@x.com"]]
        assert [entry.recipients for entry in Queue("run/undeliverable").entries()] == [["gone@x.com"]]
        left = {entry.key: (entry.recipients, entry.reason) for entry in Queue("run/outgoing").entries()}
        assert left[keys[1]] == (["b@x.com"], "localhost said: 450 4.2.1 Still later") and len(left) == 3

        server.refuse = {"gone@x.com": "550 5.1.1 Gone"}
        answer = run("queue", "-name", "./run/outgoing", "-retry", "ALL", code=1)
        assert answer.stdout == "1 of 3 mails were handled.\n"
        assert answer.stderr.splitlines() == [
            f"{key} is undeliverable: localhost said: 550 5.1.1 Gone" for key in (keys[0], keys[2])
        ]
        assert Queue("run/outgoing").count() == 0 and Queue("run/undeliverable").count() == 3
    answer = run("queue", "-name", "run/outgoing", "-retry", keys[0], code=1)
    assert answer.stderr == f"{keys[0]} stays: it is not there, or another program is handling it\n"


def test_queue_retry_routes_what_a_handler_wanted_later(folder):
    commands.gen_command("p")
    os.chdir("p")
    deliver = """

def deliver(message):
    if message.recipient == "no@test.com":
        raise SMTPError(550, "5.1.1 No longer")
    open("done", "a").write(message.recipient)


from lamson.server import SMTPError
relay.deliver = deliver
"""
    with Path("app/handlers/sample.py").open("a") as handler:
        handler.write(deliver)
    deferred = RetryQueue("run/deferred", None, None)
    key = deferred.push(MailRequest(None, "me@x.com", ["a@test.com", "no@test.com"], MAILS[0]), "450 Later")
    answer = run("queue", "-name", "run/deferred", "-retry", "ALL", code=1)
    assert answer.stderr == f"{key} is undeliverable: 550 5.1.1 No longer\n"
    assert Path("done").read_text() == "a@test.com" and Queue("run/deferred").count() == 0
    assert [entry.recipients for entry in Queue("run/undeliverable").entries()] == [["no@test.com"]]


def test_queue_retry_says_where_the_project_cannot_be_loaded(folder):
    commands.gen_command("p")
    os.chdir("p")
    Queue("run/queue")
    Path("config/settings.py").write_text("a = 1\nand so on\n")
    assert "config/settings.py:2: SyntaxError" in refused("queue", "-retry", "ALL")


def test_queue_wants_one_thing_to_do(queued):
    assert "say one thing to do" in refused("queue", code=2)
    assert "say one thing to do" in refused("queue", "-pop", "-clear", code=2)
    assert run("queue", "-count").stdout == "2\n"
