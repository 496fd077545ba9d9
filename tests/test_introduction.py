"""The thirty-second introduction of Lamson's home page, in both its versions: each line, as it is, does what it says.

Servers, tests and mutt are real, in a folder of their own; only the first line is left out, Lamson being installed.
The texts say which ports are used. When others have them, the test is skipped.
"""

import fcntl
import os
import re
import tempfile
import time
from pathlib import Path

import pytest

from homepage import FIRST, HELP, HELP_FOR_START, SECOND
from lamson.queue import Queue
from processes import Shell, Terminal, alive, eventually, needs, taken

README = Path(__file__).parent.parent / "README.md"
PORTS = (8823, 8825, 8899)


# --- walking through it ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ports():
    """The ports of the texts, for this run alone."""
    with open(Path(tempfile.gettempdir()) / f"lamson-introduction-{os.getuid()}.lock", "w") as lock:
        deadline = time.monotonic() + 120
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pytest.skip("another run of this test keeps the ports")
                time.sleep(0.1)
        others = [port for port in PORTS if taken(port)]
        if others:
            pytest.skip(f"somebody else listens on port {' and '.join(map(str, others))}")
        yield


class Walk:
    """Goes through a transcript line by line. The test says how the line begins that it expects next."""

    def __init__(self, transcript: str, shell: Shell):
        self.shell = shell
        self.lines = transcript.removeprefix("$ ").removesuffix("\n").split("\n$ ")
        assert self.lines.pop(0) == "easy_install lamson"

    def line(self, beginning: str) -> str:
        line = self.lines.pop(0)
        assert line.startswith(beginning)
        return line

    def run(self, beginning: str) -> str:
        """Runs the next line, and returns what it printed."""
        return self.shell.run(self.line(beginning))

    def terminal(self, beginning: str) -> Terminal:
        """Runs the next line in a terminal."""
        return self.shell.terminal(self.line(beginning))

    def mails(self, name: str) -> list:
        """The mails in a queue of the project, the oldest first."""
        mails = Queue(self.shell.folder / name)
        return [mails.get(key) for key in mails.keys()]

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.shell.folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def shell(tmp_path, ports):
    for program in ("less", "mutt", "tmux"):
        needs(program)
    with Shell(tmp_path) as shell:
        shell.environment["EDITOR"] = str(tmp_path / "editor")
        # mutt has put the mail that is answered into the file; an editor writes below that.
        (tmp_path / "editor").write_text("#!/bin/sh\necho 'Hi back.' >> \"$1\"\n")
        (tmp_path / "editor").chmod(0o755)
        yield shell


def listens(said: str, place: str) -> int:
    """Returns the pid of a server that said, when it was started, that it listens at `place`."""
    found = re.search(rf"listens on {place}, pid (\d+)\.$", said, re.MULTILINE)
    assert found, said
    assert alive(int(found[1]))
    assert taken(int(place.partition(":")[2]))
    return int(found[1])


def try_and_send(walk: Walk) -> None:
    """The lines that both texts have in the middle."""
    tested = walk.run("nosetests")
    assert "Ran 2 tests" in tested and tested.endswith("OK\n")
    explained = walk.run("lamson help -for send")
    assert explained.startswith("Usage: lamson send -sender ADDRESS -to ADDRESS ")
    for option in "-port -host -username -password -ssl -starttls -debug -sender -to -subject -body -attach".split():
        assert re.search(rf"^  {option}\b", explained, re.MULTILINE), option
    said = walk.run("lamson send ").lower().splitlines()  # newer Pythons write commands in upper case
    places = [
        said.index(line)
        for line in (
            "reply: 220 localhost lamson",
            "send: rcpt to:<test@test.com>",
            "send: data",
            "send: from: me@mydomain.com",
            "send: subject: my test.",
            "send: hi there.",
            "send: .",
            "reply: 221 bye",
        )
    ]
    assert places == sorted(places)
    assert said[places[-2] + 1] == "reply: 250 ok"


def read_and_answer(walk: Walk) -> None:
    """Reads the one mail there is, answers it to its sender, who is refused, and then to somebody at test.com."""
    with walk.terminal("mutt") as mutt:
        mutt.shows("Msgs:1 New:1", "me@mydomain.com", "My test.")
        mutt.press("Enter")
        mutt.shows("From: me@mydomain.com", "To: test@test.com", "Subject: My test.", "\n\nHi there.")
        assert "^M" not in mutt.screen(), "line ends of the wire are not for reading"
        mutt.type("r")
        mutt.shows("To: me@mydomain.com")
        mutt.press("Enter")
        mutt.shows("Subject: Re: My test.")
        mutt.press("Enter")
        mutt.shows("Include message in reply?")
        mutt.type("y")
        mutt.shows("Mutt: Compose", "To: me@mydomain.com")
        mutt.type("y")  # send it
        mutt.shows("550 5.1.1 <me@mydomain.com>: no such recipient here", "child exited 69")
        mutt.type("q")
        mutt.shows("Mutt: Compose", "Subject: Re: My test.")  # nothing that was written is gone
        mutt.type("t")
        mutt.shows("Mutt: Compose", "\nTo: me@mydomain.com")
        mutt.press("C-u")
        mutt.type("tester@test.com")
        mutt.press("Enter")
        mutt.shows("      To: tester@test.com")
        mutt.type("y")
        mutt.shows("Mail sent.")
        mutt.type("q")  # leaves the mail
        mutt.shows("r:Reply  g:Group")
        mutt.type("q")  # leaves mutt
        mutt.ends()


def shapes(log: str) -> list[str]:
    """The lines of a log without its numbers, and sorted: what several threads write has no order of its own."""
    return sorted(re.sub(r"[\d.:,-]*\d", "#", line) for line in log.splitlines())


def stop(walk: Walk, *pids: int) -> None:
    """The last line of both texts."""
    said = walk.run("lamson stop -ALL run")
    for pid in pids:
        assert f"Stopped pid {pid} " in said
        assert not alive(pid)
    assert not walk.lines
    assert walk.shell.left() == {}
    assert not list((walk.shell.folder / "run").glob("*.pid"))
    assert not any(map(taken, PORTS))


def test_the_first_introduction(shell):
    walk = Walk(FIRST, shell)
    assert "lamson start" in walk.run("lamson gen")
    walk.run("cd mymailserver")
    server = listens(walk.run("lamson start"), "localhost:8823")
    logger = listens(walk.run("lamson log"), "127.0.0.1:8825")
    try_and_send(walk)

    logged = walk.run("less logs/lamson.log")
    for event in ("received", "relayed"):
        assert re.search(rf"{event}: <\S+@mydomain.com> from <me@mydomain.com> to \[?'?test@test.com", logged), event
    told = README.read_text().split("$ cat logs/lamson.log\n")[1].split("\n\n")[0]
    assert shapes(logged) == shapes(told), "README.md shows what a server of today logs"
    assert "MESSAGE to test@test.com from me@mydomain.com: My test." in (shell.folder / "logs/logger.log").read_text()
    (mail,) = walk.mails("run/queue")
    assert (mail.From, mail.To, mail.body()) == ("me@mydomain.com", ["test@test.com"], "Hi there.\n")

    read_and_answer(walk)
    answer = eventually(lambda: walk.mails("run/queue")[1:], "the answer in run/queue")[0]
    assert (answer.From, answer.To) == ("me@localhost", ["tester@test.com"])
    assert answer["Subject"] == "Re: My test." and answer["In-Reply-To"] == mail["Message-ID"]
    assert answer.body().endswith("> Hi there.\nHi back.\n")
    assert f"relayed: {answer['Message-ID']} from" in (shell.folder / "logs/lamson.log").read_text()

    stop(walk, server, logger)
    assert walk.mails("run/undeliverable") == walk.mails("run/outgoing") == []


def test_the_second_introduction(shell):
    walk = Walk(SECOND, shell)
    assert "lamson start" in walk.run("lamson gen")
    walk.run("cd mymailserver")
    assert "lamson_state" in walk.run("lamson syncdb")
    server = listens(walk.run("lamson start"), "localhost:8823")
    said = walk.run("lamson log")
    logger = listens(said, "127.0.0.1:8899")
    # This text puts the logger where the project does not send its mail, and the command tells how to change that.
    assert "Note: config/settings.py relays to port 8825" in said
    assert "Give relay_config the port 8899 and run: lamson restart" in said
    try_and_send(walk)

    logged = walk.run("less logs/lamson.log")
    assert "Connection refused" in logged
    assert re.search(r"queued: <\S+@mydomain.com> to test@test.com as ", logged)
    (mail,) = walk.mails("run/outgoing")
    assert (mail.From, mail.To, mail.body()) == ("me@mydomain.com", ["test@test.com"], "Hi there.\n")
    assert walk.mails("run/queue") == []

    send = 'lamson send -debug 0 -sender me@mydomain.com -to test@test.com -subject "My test." -body "Hi there." -port '
    shell.run(send + "8899")
    assert [mail.body() for mail in walk.mails("run/queue")] == ["Hi there.\n"]
    read_and_answer(walk)
    answer = eventually(lambda: walk.mails("run/outgoing")[1:], "the answer in run/outgoing")[0]
    assert (answer["Subject"], answer.To) == ("Re: My test.", ["tester@test.com"])

    # What the note tells to do.
    walk.edit("config/settings.py", '"port": 8825', '"port": 8899')
    server = listens(shell.run("lamson restart"), "localhost:8823")
    shell.run(send + "8823")
    assert len(walk.mails("run/queue")) == 2

    stop(walk, server, logger)


def test_the_help_that_the_page_ends_with(tmp_path):
    with Shell(tmp_path) as shell:
        listed = shell.run(HELP.removeprefix("$ "))
        for name in re.findall(r"lamson (\w+)", FIRST + SECOND):
            assert re.search(rf"^  {name} +[A-Z]", listed, re.MULTILINE), name
        explained = shell.run(HELP_FOR_START.removeprefix("$ "))
        assert explained.startswith("Usage: lamson start [-pid FILE]")
