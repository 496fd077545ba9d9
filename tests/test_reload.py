"""Handler files that are edited while a server runs and mail comes in."""

import os
import re
import smtplib
import threading
import time

import pytest

from processes import eventually

HANDLER = """
from lamson.routing import Router, route, stateless
Router.LOCKING = "sender"

def note(word, message):
    with open("run/notes", "ab", buffering=0) as notes:
        notes.write(f"{word} {message['Subject']}\\n".encode())

@route("first@test.com")
@stateless
def FIRST(message):
    note("VERSION", message)

@route("second@test.com")
@stateless
def SECOND(message):
    note("VERSION", message)
"""


class Senders:
    """Two clients that send numbered messages to both addresses, one after the other, until they are stopped."""

    def __init__(self, port: int):
        self.port = port
        self.stopping = threading.Event()
        self.accepted: list[str] = []
        self.replies: list[object] = []
        self.threads = [threading.Thread(target=self.send, args=[name]) for name in ("first", "second")]
        for thread in self.threads:
            thread.start()

    def send(self, name: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=60) as client:
            number = 0
            while not self.stopping.is_set():
                number += 1
                subject = f"{name}-{number}"
                try:
                    client.sendmail(f"{name}@example.org", [f"{name}@test.com"], f"Subject: {subject}\r\n\r\n")
                    self.accepted.append(subject)
                except smtplib.SMTPException as error:
                    self.replies.append(error)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def project(shell):
    shell.run("lamson gen -project project")
    shell.run("cd project")
    (shell.folder / "app/handlers/sample.py").write_text(HANDLER.replace("VERSION", "old"))
    settings = shell.folder / "config/settings.py"
    settings.write_text(settings.read_text().replace('"port": 8823', '"port": 0, "message_limit": 0'))
    boot = shell.folder / "config/boot.py"
    boot.write_text(boot.read_text().replace("RELOAD = False", "RELOAD = True"))
    return shell


def test_no_edit_of_a_handler_loses_mail_or_takes_a_working_route_away(project):
    port = int(re.search(r":(\d+), pid", project.run("lamson start"))[1])
    handler, notes, log = (project.folder / name for name in ("app/handlers/sample.py", "run/notes", "logs/lamson.log"))
    senders = Senders(port)
    try:
        eventually(lambda: len(senders.accepted) > 20, "mail is handled")
        good = HANDLER.replace("VERSION", "old")
        broken_files = [
            "def half(:\n",
            good + "\n1 / 0\n",
            good.replace("def note", "def nothing") + "\nnote()\n",
        ]
        for times, broken in enumerate(broken_files, 1):
            handler.write_text(broken)
            eventually(lambda: log.read_text().count("its old routes go on") == times, log.read_text)  # noqa: B023
            seen = len(senders.accepted)
            eventually(lambda: len(senders.accepted) > seen + 10, log.read_text)  # noqa: B023
        # An editor that writes in pieces, each of which is Python, with routes missing in the first ones.
        new = HANDLER.replace("VERSION", "new")
        for end in (0, new.index("@route"), new.index('@route("second'), len(new)):
            with open(handler, "r+" if end else "w") as file:
                file.write(new[:end])
            time.sleep(0.02)
        eventually(lambda: "new first" in notes.read_text() and "new second" in notes.read_text(), notes.read_text)
        # And one that puts a whole file in its place.
        beside = handler.with_suffix(".tmp")
        beside.write_text(HANDLER.replace("VERSION", "newest"))
        os.replace(beside, handler)
        for word in ("newest first", "newest second"):
            eventually(lambda: word in notes.read_text(), notes.read_text)  # noqa: B023
    finally:
        senders.stop()
    assert not senders.replies
    handled = [line.split()[1] for line in notes.read_text().splitlines()]
    assert sorted(handled) == sorted(senders.accepted), "each message once, by one version or another"
    assert not list((project.folder / "run/undeliverable/new").iterdir())
    assert log.read_text().count("its old routes go on serving") == 3, "once for each broken file"
