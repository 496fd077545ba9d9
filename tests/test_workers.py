"""Several processes that serve together, and the one that looks after them."""

import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from lamson.pidfile import find_server
from processes import Shell, alive, eventually, stand_still

# Every message moves its sender one state further, round and round, and writes down where it was.
ROUND = """
import os
from lamson.routing import route, route_like

def note(message, state):
    line = f"{message.route_from} {state} {os.getpid()}\\n".encode()
    with open("run/notes", "ab", buffering=0) as notes:
        notes.write(line)

@route("(address)@(host)", address=".+")
def START(message, address=None, host=None):
    note(message, 0)
    return FIRST

@route_like(START)
def FIRST(message, address=None, host=None):
    note(message, 1)
    return SECOND

@route_like(START)
def SECOND(message, address=None, host=None):
    note(message, 2)
    return START
"""

SLOW = """
import time
from lamson.routing import route, stateless

@route("(address)@(host)", address=".+")
@stateless
def START(message, address=None, host=None):
    open("run/begun", "w").close()
    time.sleep(1)
    open("run/done", "w").close()
"""


WAIT = """

class Waiting(SQLAlchemyStorage):
    def prepare(self):
        import os, time
        with open("run/starting", "w") as file:
            file.write(str(os.getpid()))
        while not os.path.exists("run/go-on"):
            time.sleep(0.02)
        super().prepare()

Router.STATE_STORE = Waiting(settings.database)
"""

# By all the ways that there are: a storage, the pool, and a session that is left open.
READS = """
import sqlalchemy
Router.STATE_STORE.set("app.handlers.sample", "zed@example.com", "FIRST")
with settings.database.engine.connect() as connection:
    connection.execute(sqlalchemy.text("SELECT * FROM lamson_state")).all()
settings.database.session.execute(sqlalchemy.text("SELECT * FROM lamson_state")).all()
"""


def holders(path: Path) -> set[int]:
    """The processes that have a lock of this file (proc_locks(5))."""
    locks = map(str.split, Path("/proc/locks").read_text().splitlines())
    return {int(words[4]) for words in locks if words[5].endswith(f":{path.stat().st_ino}")}


CERTIFICATES = Path(__file__).parent / "certs"


def certificate_in(path: Path) -> bytes:
    pem = re.search("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", path.read_text(), re.DOTALL)
    return ssl.PEM_cert_to_DER_cert(pem[0])


class Project:
    """A generated project with two workers. `pid` is the parent's, `workers` are the pids of the others."""

    def __init__(self, shell: Shell, handler: str = ROUND):
        self.shell = shell
        shell.run("lamson gen -project project")
        shell.run("cd project")
        self.folder = shell.folder
        (self.folder / "app/handlers/sample.py").write_text(handler)
        settings = self.folder / "config/settings.py"
        settings.write_text(settings.read_text().replace('"port": 8823', '"port": 0'))

    def start(self, *options: str) -> "Project":
        said = self.shell.run(" ".join(["lamson start -workers 2", *options]))
        found = re.search(r"^Lamson listens on localhost:(\d+), pid (\d+), with 2 workers\.$", said, re.MULTILINE)
        assert found, said
        self.port, self.pid = int(found[1]), int(found[2])
        return self

    @property
    def workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def has_replaced(self, worker: int) -> bool:
        """Whether there are two workers again, and this one is none of them. Of one look, for they come and go."""
        workers = self.workers
        return len(workers) == 2 and worker not in workers

    def log(self) -> str:
        return (self.folder / "logs/lamson.log").read_text()

    def send(self, sender: str = "a@example.org", count: int = 1) -> None:
        for _ in range(count):
            client = smtplib.SMTP("127.0.0.1", self.port, timeout=60)
            client.sendmail(sender, ["list@test.com"], b"Subject: Hi\r\n\r\nHello.\r\n")
            client.close()  # a server that stops does not wait for QUIT

    def certificate(self) -> bytes:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with smtplib.SMTP("127.0.0.1", self.port, timeout=60) as client:
            client.starttls(context=context)
            return client.sock.getpeercert(binary_form=True)

    def use_certificate(self, name: str) -> Path:
        """Lets the server offer TLS. Returns where its certificate is."""
        key = self.folder / "key.pem"
        key.write_bytes((CERTIFICATES / name).read_bytes())
        settings = self.folder / "config/settings.py"
        settings.write_text(settings.read_text().replace('"port": 0', '"port": 0, "certificate": "key.pem"'))
        return key

    def wait_in_start(self) -> None:
        """Lets a worker wait before it serves, for the file run/go-on."""
        boot = self.folder / "config/boot.py"
        boot.write_text(boot.read_text() + WAIT)

    def starting(self) -> int:
        """The pid of the worker that waits in its start; 0 for none."""
        path = self.folder / "run/starting"
        return int(path.read_text() or 0) if path.exists() else 0

    def parent(self) -> int:
        return find_server(str(self.folder / "run/smtp.pid")).number

    def notes(self) -> list[list[str]]:
        path = self.folder / "run/notes"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def project(shell):
    return Project(shell)


def test_workers_share_the_port_and_every_senders_state_is_exact(project):
    project.start()
    assert len(project.workers) == 2
    senders = [f"{name}@example.org" for name in "abcdef"]
    # Two clients for each sender, so that one sender's messages come to both workers at once.
    threads = [threading.Thread(target=project.send, args=[sender, 30]) for sender in senders * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    notes = project.notes()
    for sender in senders:
        assert [int(state) for who, state, _ in notes if who == sender] == [number % 3 for number in range(60)]
    assert set(Counter(pid for *_, pid in notes)) == set(map(str, project.workers)), "both have worked"
    assert project.shell.run("lamson status") == f"Lamson is running, pid {project.pid} (./run/smtp.pid).\n"
    workers = project.workers
    project.shell.run("lamson stop")
    assert not any(map(alive, [project.pid, *workers])) and not (project.folder / "run/smtp.pid").exists()
    assert "ERROR" not in project.log() and "stopped: all workers on localhost" in project.log()


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(project):
    project.start()
    killed, other = project.workers
    os.kill(killed, signal.SIGKILL)
    project.send(count=5)
    eventually(lambda: project.has_replaced(killed), "another worker")
    assert other in project.workers
    assert f"died: the worker with pid {killed}, by SIGKILL" in project.log()
    eventually(lambda: project.log().count("started: localhost") == 3, project.log)
    new = next(pid for pid in project.workers if pid != other)

    def works() -> bool:
        project.send()
        return any(pid == str(new) for *_, pid in project.notes())

    eventually(works, "mail for the new worker")


def test_a_worker_that_dies_again_and_again_is_started_less_and_less_often(project):
    project.start()
    for _ in range(3):
        killed = project.workers[0]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: project.has_replaced(killed), "another worker")  # noqa: B023
    pauses = re.findall(r"another one starts in (\d+) seconds", project.log())
    assert pauses == ["0", "1", "2"]


def test_stop_lets_every_worker_finish_what_it_is_handling(shell):
    project = Project(shell, SLOW).start()
    sending = threading.Thread(target=project.send)
    sending.start()
    eventually((project.folder / "run/begun").exists, "the handler begins")
    project.shell.run("lamson stop")
    assert (project.folder / "run/done").exists()
    sending.join()


def test_workers_end_when_their_parent_is_killed_and_finish_what_they_have_in_hand(shell):
    project = Project(shell, SLOW).start()
    workers = project.workers
    sending = threading.Thread(target=project.send)
    sending.start()
    eventually((project.folder / "run/begun").exists, "the handler begins")
    os.kill(project.pid, signal.SIGKILL)
    assert find_server(str(project.folder / "run/smtp.pid")), "as long as a worker lives, no other server starts"
    eventually(lambda: not any(map(alive, workers)), "the end of the workers")
    assert (project.folder / "run/done").exists()
    sending.join()
    project.start()


def test_stop_with_kill_ends_the_workers_as_well(shell):
    project = Project(shell, SLOW).start()
    workers = project.workers
    project.shell.run("lamson stop -KILL")
    assert not any(map(alive, [project.pid, *workers]))


def test_states_that_only_one_process_knows_are_refused(project):
    boot = project.folder / "config/boot.py"
    memory = "\nfrom lamson.routing import MemoryStorage\nRouter.STATE_STORE = MemoryStorage()\n"
    boot.write_text(boot.read_text() + memory)
    said = project.shell.run("lamson start -workers 2", code=1)
    assert "Several workers need one place for the senders' states, and MemoryStorage is for one process." in said
    assert project.shell.run("lamson start").startswith("Lamson listens on")


@pytest.mark.parametrize("options", ["-workers 0", "-workers 2 -debug"])
def test_numbers_of_workers_that_make_no_sense_are_refused(project, options):
    assert "workers make no sense" in project.shell.run(f"lamson start {options}", code=1)


def test_a_worker_that_cannot_serve_stops_the_start(project):
    settings = project.folder / "config/settings.py"
    settings.write_text(settings.read_text().replace("app/data/lamson.db", "nowhere/lamson.db"))
    said = project.shell.run("lamson start -workers 2", code=1)
    assert "The state storage cannot be prepared" in said and "nowhere" in said
    eventually(lambda: not project.shell.left(), "the end of all processes")
    assert not (project.folder / "run/smtp.pid").exists()


def test_a_limit_of_connections_is_one_for_all_workers_together(project):
    settings = project.folder / "config/settings.py"
    settings.write_text(settings.read_text().replace('"port": 0', '"port": 0, "connection_limit": 4'))
    project.start()
    clients, refused = [], 0
    try:
        for _ in range(40):
            client = smtplib.SMTP(timeout=60)
            clients.append(client)
            refused += client.connect("127.0.0.1", project.port)[0] == 421
        assert len(clients) - refused <= 4 and refused
    finally:
        for client in clients:
            client.close()


def test_a_hangup_reaches_every_worker_and_those_that_come_later(project):
    key = project.use_certificate("one.pem")
    project.start()
    workers = project.workers
    key.write_bytes((CERTIFICATES / "two.pem").read_bytes())
    os.kill(project.pid, signal.SIGHUP)
    eventually(lambda: project.log().count("reloaded: the certificate") == 3, project.log)  # the parent did, too
    assert project.workers == workers
    key.unlink()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    eventually(lambda: project.log().count("started: localhost") == 4, project.log)
    assert project.certificate() == project.certificate() == certificate_in(CERTIFICATES / "two.pem")


def test_a_hangup_while_a_worker_starts_neither_ends_it_nor_is_lost(project):
    project.use_certificate("one.pem")
    project.wait_in_start()
    starting = project.shell.popen("lamson start -workers 2")
    try:
        first = eventually(project.starting, "the first worker begins")
        for pid in (project.parent(), first):  # as for `kill -HUP -PGID`
            os.kill(pid, signal.SIGHUP)
        (project.folder / "run/go-on").touch()
        assert starting.communicate(timeout=60)[0].endswith("with 2 workers.\n"), project.log()
        # The first one has two: its own, and what the parent passes on when all serve.
        eventually(lambda: project.log().count("reloaded: the certificate") == 4, project.log)
        assert "died" not in project.log()
    finally:
        starting.wait(60)


def test_a_server_whose_workers_do_not_come_to_serve_can_be_stopped(project):
    project.wait_in_start()
    starting = project.shell.popen("lamson start -workers 2")
    eventually(project.starting, "the first worker begins")
    parent = project.parent()
    assert project.shell.run("lamson stop") == f"Stopped pid {parent} (./run/smtp.pid).\n"
    assert "It was told to stop before it served." in starting.communicate(timeout=60)[0]
    assert starting.returncode == 1 and not project.shell.left()


def test_a_worker_that_ends_leaves_a_unix_socket_to_the_others(project):
    settings = project.folder / "config/boot.py"
    receiver = "\nfrom lamson.server import LMTPReceiver\nsettings.receiver = LMTPReceiver('./lmtp')\n"
    settings.write_text(settings.read_text() + receiver)
    assert "with 2 workers" in project.shell.run("lamson start -workers 2")
    project.pid = find_server(str(project.folder / "run/smtp.pid")).number
    ending, other = project.workers
    os.kill(ending, signal.SIGTERM)
    eventually(lambda: project.has_replaced(ending), "another worker")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(project.folder / "lmtp"))
        assert client.recv(100).startswith(b"220 ")
    project.shell.run("lamson stop")
    assert not (project.folder / "lmtp").exists()


def test_a_hangup_does_not_end_workers_that_have_nothing_to_read_again(project):
    boot = (project.folder / "config/boot.py").read_text()
    receiver = 'from lamson.server import QueueReceiver\nsettings.receiver = QueueReceiver("run/work", sleep=0.1)\n'
    (project.folder / "config/boot.py").write_text(boot + receiver)
    project.shell.run("lamson start -workers 2")
    project.pid = find_server(str(project.folder / "run/smtp.pid")).number
    workers = project.workers
    os.kill(workers[0], signal.SIGHUP)
    os.kill(workers[0], signal.SIGUSR1)  # which ends it; one that SIGHUP has ended says so instead
    eventually(lambda: f"died: the worker with pid {workers[0]}" in project.log(), project.log)
    assert project.log().count("died:") == 1 and "by SIGUSR1" in project.log()
    assert workers[1] in project.workers


def test_every_worker_holds_the_database_open_itself_whatever_the_boot_module_has_read(project):
    boot = project.folder / "config/boot.py"
    boot.write_text(boot.read_text() + READS)
    project.start()
    one, other = project.workers
    for worker, stopped in ((one, other), (other, one)):
        stand_still(stopped)
        try:
            project.send()
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert worker in holders(project.folder / "app/data/lamson.db")
    assert project.pid not in holders(project.folder / "app/data/lamson.db")


def test_queue_receivers_work_on_one_queue_together(project):
    boot = (project.folder / "config/boot.py").read_text()
    receiver = 'from lamson.server import QueueReceiver\nsettings.receiver = QueueReceiver("run/work", sleep=0.1)\n'
    (project.folder / "config/queue.py").write_text(boot + receiver)
    send = (
        "from lamson.mail import MailRequest; from lamson.queue import Queue; queue = Queue('run/work')\n"
        "for n in range(60): queue.push(MailRequest('q', f'{n % 6}@example.org', 'list@test.com', b'Hi.'))"
    )
    subprocess.run([sys.executable, "-c", send], cwd=project.folder, check=True)
    said = project.shell.run("lamson start -workers 2 -boot config.queue -pid run/queue.pid")
    assert "Lamson listens on queue run/work, pid" in said
    eventually(lambda: len(project.notes()) == 60, lambda: str(project.notes()))
    time.sleep(0.3)
    notes = project.notes()
    assert len(notes) == 60
    for number in range(6):
        states = [int(state) for who, state, _ in notes if who == f"{number}@example.org"]
        assert states == [step % 3 for step in range(10)]
    project.shell.run("lamson stop -pid run/queue.pid")


# The second worker gets a signal before it has done anything, as on a busy machine. The third one ends the test.
FORKS = """
import os, signal, sys, time
from lamson.workers import Workers

really, forks = os.fork, []

def fork():
    forks.append(1)
    pid = really()
    if pid and len(forks) == 2:
        os.kill(pid, signal.SIGTERM)
    elif not pid and len(forks) == 2:
        time.sleep(0.5)
    return pid

def say(text):
    os.write(1, f"{text}\\n".encode())  # in one piece, since parent and worker speak at the same time

def serve(ready):
    ready("here")
    say(f"worker {len(forks)}")
    if len(forks) == 1:
        sys.exit()
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()

os.fork = fork
Workers(1, serve, close=lambda: None, reload=lambda: None).run(ready=say)
"""


def test_a_signal_to_a_worker_that_was_just_forked_is_for_that_one_and_not_for_its_parent():
    done = subprocess.run([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == ["here", "worker 1", "worker 3"]
