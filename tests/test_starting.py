"""`lamson start` when the moment is bad: somebody interrupts it, or the system has nothing to give."""

import contextlib
import os
import re
import signal
import smtplib
import socket

import pytest

from brokers import free_ports
from lamson.queue import Queue
from processes import Shell, eventually, needs

# `lamson start`, to which a signal comes in the moment in which its daemon is born.
INTERRUPTED = """
import os, signal, sys
from lamson.__main__ import main

front, fork = os.getpid(), os.fork

def interrupted():
    child = fork()
    if os.getpid() == front:
        os.kill(front, signal.{name})
    return child

os.fork = interrupted
sys.exit(main(["start"]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("moment", ["at once", "while it waits"])
def test_a_start_that_is_interrupted_starts_nothing(tmp_path, name, code, moment):
    with Shell(tmp_path) as shell:
        shell.run("lamson gen -project mine")
        shell.run("cd mine")
        settings = shell.folder / "config/settings.py"
        settings.write_text(
            settings.read_text() + "\nimport os, time\nwhile os.path.exists('wait'):\n    time.sleep(0.01)\n"
        )
        (shell.folder / "wait").touch()
        if moment == "at once":
            (shell.folder / "start.py").write_text(INTERRUPTED.format(name=name))
            shell.run("python start.py", code=code)
        else:
            with shell.popen("exec lamson start") as front:
                pid = shell.folder / "run/smtp.pid"
                eventually(lambda: pid.exists() and pid.read_text().strip(), "the daemon's number")
                os.kill(front.pid, getattr(signal, name))
                front.communicate(timeout=60)
                assert front.returncode == code
        assert shell.left() == {}
        assert not (shell.folder / "run/smtp.pid").exists()


@pytest.fixture
def project(tmp_path):
    """A generated project; its port, and the shell it is to be started in."""
    (port,) = free_ports(1)
    with Shell(tmp_path) as shell:
        shell.run("lamson gen -project mine")
        shell.run("cd mine")
        settings = shell.folder / "config/settings.py"
        settings.write_text(settings.read_text().replace('"port": 8823', f'"port": {port}'))
        yield port, shell


def send(port, number):
    """The code with which a mail is answered."""
    with smtplib.SMTP("localhost", port, timeout=30) as client:
        client.ehlo()
        client.mail(f"a{number}@example.com")
        client.rcpt("b@test.com")
        return client.data(f"Subject: {number}\r\n\r\nHello\r\n")[0]


def test_clients_leave_some_files_to_the_handlers_however_few_there_are(project):
    port, shell = project
    said = shell.run("ulimit -n 63; lamson start", code=1)
    assert "The system allows 63 open files (ulimit -n), and a server needs 64 and more." in said
    assert not (shell.folder / "run/smtp.pid").exists()
    shell.run("ulimit -n 64; lamson start")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("localhost", port))) for _ in range(32)]
        for client in clients[:-1]:
            assert client.recv(100).startswith(b"220")
        with socket.create_connection(("localhost", port)) as client:
            assert client.recv(100).startswith(b"421"), "half of the files are for the handlers"
        clients.pop().close()
        assert eventually(lambda: _answer(port), "room for one more") == 250
    for number in range(10):
        assert eventually(lambda: _answer(port), "that it serves") == 250, number
    shell.run("lamson stop")
    assert Queue(shell.folder / "run/outgoing").count() == 11


def _answer(port):
    try:
        return send(port, 1)
    except (smtplib.SMTPConnectError, smtplib.SMTPServerDisconnected):  # a client that has left is still counted
        return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who has no other processes")
def test_a_system_without_threads_lets_none_start_that_could_not_serve(project):
    port, shell = project
    # Somebody of whom there is no other process, and who may read everything, as Python may be at root's home.
    rights = "+dac_override,+dac_read_search"
    somebody = (
        f"{needs('setpriv')} --reuid 54321 --regid 54321 --clear-groups --inh-caps={rights} --ambient-caps={rights}"
    )
    shell.run("chown -R 54321 .")
    served = 0
    for processes in range(1, 20):
        with shell.popen(f"{somebody} sh -c 'ulimit -u {processes}; exec lamson start'") as start:
            said, _ = start.communicate(timeout=60)
        if start.returncode:
            assert re.search(r"The server cannot be started: |Failed (first|second) fork: ", said), said
            eventually(lambda: not shell.left(), "that nothing is left")
            continue
        served += 1
        assert [send(port, number) for number in range(3)] == [250] * 3
        shell.run("lamson stop")
        if served == 3:
            break
    assert served == 3
    assert Queue(shell.folder / "run/outgoing").count() == 9
    log = (shell.folder / "logs/lamson.log").read_text()
    assert log.count("stopped: ") == 3 and "Traceback" not in (shell.folder / "logs/lamson.err").read_text()
