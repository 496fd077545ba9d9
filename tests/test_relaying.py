"""What docs/relaying.md says, as somebody meets it who has generated a project: real processes, real servers."""

import contextlib
import os
import re
import smtplib
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from lamson import queue
from lamson.mail import MailRequest
from lamson.outgoing import FIRST_WAIT, LIFETIME
from lamson.queue import envelope_reason, split_envelope
from lamson.relay import Relay
from lamson.routing import Router
from processes import Shell, eventually, needs, taken
from sink import Host

PAGE = Path(__file__).parent.parent / "docs/relaying.md"
HANDLERS, PROGRAM, TLS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)

RAW = b"From: zed@example.com\r\nTo: you@test.com\r\nSubject: hi\r\nMessage-ID: <1@example.com>\r\n\r\n.\r\nHello\r\n"


class Project:
    """A generated project whose server runs, and the port that it relays to."""

    def __init__(self, shell):
        self.shell = shell
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.port, self.relay_port = one.getsockname()[1], other.getsockname()[1]
        shell.run("lamson gen -project mine")
        shell.run("cd mine")
        settings = shell.folder / "config/settings.py"
        text = settings.read_text().replace("8823", str(self.port)).replace("8825", str(self.relay_port))
        settings.write_text(text)

    def send(self, *recipients):
        """Send one mail, and return once the server has said 250."""
        with smtplib.SMTP("localhost", self.port, timeout=60) as client:
            client.sendmail("zed@example.com", recipients or ["you@test.com"], RAW)

    def files(self, name):
        return list(queue.Maildir(self.shell.folder / "run" / name).files())

    def taken_out(self, name):
        """(recipients, content, reason) of all that is in a queue, which is empty then."""
        found = []
        for path in self.files(name):
            raw = path.read_bytes()
            found.append((*split_envelope(raw)[1:], envelope_reason(raw)))
            os.unlink(path)
        return found

    def try_again(self):
        """What the page says: `touch -d now`, and here a start, at which the server looks at once."""
        self.shell.run("lamson stop")
        for path in self.files("outgoing"):
            self.shell.run(f"touch -d now '{path}'")
        self.shell.run("lamson start")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with Shell(tmp_path_factory.mktemp("relaying")) as shell:
        project = Project(shell)
        shell.run("lamson start")
        yield project
        shell.run("lamson stop")


@contextlib.contextmanager
def smtp_sink(port, *options):
    """Postfix's server for tests, which fails as its options say."""
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([needs("smtp-sink"), *user, *options, f"127.0.0.1:{port}", "10"])
    try:
        eventually(lambda: taken(port), "that smtp-sink listens")
        yield
    finally:
        process.terminate()
        process.wait()


# What smtp-sink does, where the mail is afterwards, and with which reason.
FAULTS = {
    "-r mail": ("outgoing", "localhost said: 450 4.3.0 Error: command failed"),
    "-r rcpt": ("outgoing", "localhost said: 450 4.3.0 Error: command failed"),
    "-r data": ("outgoing", "localhost said: 450 4.3.0 Error: command failed"),
    "-r .": ("outgoing", "localhost said: 450 4.3.0 Error: command failed"),
    "-f mail": ("undeliverable", "localhost said: 500 5.3.0 Error: command failed"),
    "-f rcpt": ("undeliverable", "localhost said: 500 5.3.0 Error: command failed"),
    "-f data": ("undeliverable", "localhost said: 500 5.3.0 Error: command failed"),
    "-f .": ("undeliverable", "localhost said: 500 5.3.0 Error: command failed"),
    "-q ehlo": ("outgoing", "cannot send to localhost: The server closed the connection"),
    "-q rcpt": ("outgoing", "cannot send to localhost: The server closed the connection"),
    "-q .": ("outgoing", "cannot send to localhost: The server closed the connection"),
    "-Q rcpt": ("outgoing", "cannot send to localhost: 421 4.0.0 Server closing connection"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_other_server_does_not_take_is_on_disk_before_the_client_hears_250(project, fault):
    with smtp_sink(project.relay_port, *fault.split()):
        project.send()
        where, reason = FAULTS[fault]
        other = "outgoing" if where == "undeliverable" else "undeliverable"
        assert project.files(other) == []
        assert project.taken_out(where) == [(["you@test.com"], RAW, reason)]


def test_nobody_listens(project):
    project.send()
    assert project.taken_out("outgoing") == [(["you@test.com"], RAW, "cannot send to localhost: Connection refused")]


def test_mail_that_the_other_server_takes_is_in_no_queue(project):
    with Host().listen(project.relay_port) as host:
        project.send("one@test.com", "two@test.com")
        assert sorted(host.got) == [("zed@example.com", [f"{each}@test.com"], RAW) for each in ("one", "two")]
    assert project.files("outgoing") == project.files("undeliverable") == []


def test_each_recipient_has_an_outcome_of_its_own(project):
    with Host().listen(project.relay_port) as host:
        host.answers["RCPT TO:<later@test.com>"] = "450 4.2.1 Later"
        host.answers["RCPT TO:<never@test.com>"] = "550 5.1.1 Nobody"
        project.send("later@test.com", "never@test.com", "now@test.com")
        assert [got[1] for got in host.got] == [["now@test.com"]]
    assert project.taken_out("outgoing") == [(["later@test.com"], RAW, "localhost said: 450 4.2.1 Later")]
    assert project.taken_out("undeliverable") == [(["never@test.com"], RAW, "localhost said: 550 5.1.1 Nobody")]


def test_the_server_tries_again_waits_longer_each_time_and_gives_up_after_five_days(project):
    recipients = ["one@test.com", "two@test.com", "old@test.com"]
    project.send(*recipients)
    assert sorted(
        each for path in project.files("outgoing") for each in split_envelope(path.read_bytes())[1]
    ) == sorted(recipients)
    born = time.time() - LIFETIME - 1
    with Host().listen(project.relay_port) as host:
        host.answers["RCPT TO:<two@test.com>"] = "450 4.2.1 Not yet"
        host.answers["RCPT TO:<old@test.com>"] = "451 4.7.1 Not today either"
        for path in project.files("outgoing"):
            if b"old@test.com" in path.read_bytes():  # as if it had come in five days ago
                path.rename(path.with_name(f"{born:.0f}.{path.name.partition('.')[2]}"))
        project.try_again()
        eventually(lambda: len(project.files("outgoing")) == 1, "that one is sent, and one is given up")
        assert host.got == [("zed@example.com", ["one@test.com"], RAW)]
        (path,) = project.files("outgoing")
        eventually(lambda: b"Not yet" in path.read_bytes(), "the reply in the entry")
        assert path.stat().st_mtime > time.time() + FIRST_WAIT / 2
        assert project.taken_out("undeliverable") == [
            (["old@test.com"], RAW, "localhost said: 451 4.7.1 Not today either")
        ]
        del host.answers["RCPT TO:<two@test.com>"]
        project.try_again()
        eventually(lambda: not project.files("outgoing"), "that the last one is sent")
        assert [got[1] for got in host.got] == [["one@test.com"], ["two@test.com"]]


def test_the_commands_of_the_page_show_and_remove_what_waits(project):
    project.send()
    (path,) = project.files("outgoing")
    listed = project.shell.run("lamson queue -name run/outgoing -list")
    assert "you@test.com" in listed and "Connection refused" in listed and queue.key_of(path) in listed
    with Host().listen(project.relay_port) as host:
        project.shell.run(f"lamson queue -name run/outgoing -retry {queue.key_of(path)}")
        assert [got[1] for got in host.got] == [["you@test.com"]]
    assert project.files("outgoing") == []
    project.send()
    (path,) = project.files("outgoing")
    project.shell.run(f"lamson queue -name run/outgoing -remove {queue.key_of(path)}")
    assert project.files("outgoing") == []


def test_without_a_queue_the_handler_fails_and_the_mail_is_kept_where_people_look(tmp_path):
    with Shell(tmp_path) as shell:
        project = Project(shell)
        settings = shell.folder / "config/settings.py"
        assert ', "queue": "run/outgoing"' in settings.read_text(), "the queue is on in a generated project"
        settings.write_text(settings.read_text().replace(', "queue": "run/outgoing"', ""))
        shell.run("lamson start")
        project.send()
        ((recipients, content, reason),) = project.taken_out("undeliverable")
        assert (recipients, content) == (["you@test.com"], RAW) and "Connection refused" in reason
        assert not Path(shell.folder / "run/outgoing").exists()
        shell.run("lamson stop")


# --- the samples of the page ---------------------------------------------------------------------------------------


def test_the_handlers_of_the_page(monkeypatch):
    settings = types.ModuleType("config.settings")
    monkeypatch.setitem(sys.modules, "config", types.ModuleType("config"))
    monkeypatch.setitem(sys.modules, "config.settings", settings)
    Router.defaults(host="test.com")
    with Host() as host:
        settings.relay = Relay("127.0.0.1", host.port)
        module = types.ModuleType("handlers_of_the_page")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(HANDLERS, module.__name__, "exec"), vars(module))
        Router.deliver(MailRequest("", "joe@x.org", "forward@test.com", RAW))
        Router.deliver(MailRequest("", "joe@x.org", "hello@test.com", RAW))
        assert host.got[0] == ("joe@x.org", ["zed@example.com"], RAW)
        assert host.got[1][:2] == ("hello@test.com", ["zed@example.com"]) and b"Hello to you." in host.got[1][2]


def test_the_program_of_the_page(tmp_path):
    with Host() as host:
        program = PROGRAM.replace("25,", f"{host.port},")
        assert program != PROGRAM
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
        assert [got[:2] for got in host.got] == [("me@example.com", ["zed@example.com"])]
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)  # nobody listens now
    (path,) = queue.Maildir(tmp_path / "run/outgoing").files()
    assert split_envelope(path.read_bytes())[:2] == ("me@example.com", ["zed@example.com"])


def test_the_settings_of_the_page_make_a_relay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(TLS, made)
    assert repr(Relay(**made["relay_config"])) == "<Relay to (mail.example.com:465)>"
