"""What docs/reliability.md promises, tried on real servers that are killed at random moments and started again.

Numbered messages go from several senders to a generated project. Each is sent again until it is answered 250, as mail
servers do. Then every copy is looked for, everywhere: none may be missing, none may be damaged, and only such may be
there twice as were on their way when a process was killed.

More of it, and the same again:

    LAMSON_CRASH_ROUNDS=20 LAMSON_CRASH_MESSAGES=6000 LAMSON_CRASH_SEED=1 scripts/test -s tests/test_crashes.py
"""

import errno
import functools
import hashlib
import os
import random
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.relay import RETRY_THREADS
from processes import PATIENCE, Shell, alive, eventually, needs, stand_still, taken

HERE = Path(__file__).parent
ROUNDS = int(os.environ.get("LAMSON_CRASH_ROUNDS", 4))
MESSAGES = int(os.environ.get("LAMSON_CRASH_MESSAGES", 500))  # in the first test; half of them in the others
SEED = os.environ.get("LAMSON_CRASH_SEED", str(random.SystemRandom().randrange(10**6)))
SENDERS = 5


@pytest.fixture
def rng(request):
    """The test's own chance. What is printed makes it fall the same way again, as far as it is ours to say."""
    print(f"\nLAMSON_CRASH_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


# --- the servers -------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that stays free while its server is down: the system gives it to no client."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return next(port for port in iter(lambda: random.SystemRandom().randrange(10000, lowest), None) if not taken(port))


def gone(pid: int) -> bool:
    """Whether nothing is left of a process. Its first thread may end before others, which keep its locks until then."""
    try:
        return not alive(pid) and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except FileNotFoundError:
        return True


class Server:
    """A server, by the command that starts it."""

    def __init__(self, shell: Shell, command: str):
        self.shell = shell
        self.command = command
        self.kills = 0

    def start(self) -> "Server":
        found = re.search(r"pid (\d+)\.$", self.shell.run(self.command), re.MULTILINE)
        assert found
        self.pid = int(found[1])
        return self

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: gone(self.pid), f"the end of {self.pid}")
        self.kills += 1

    def stop(self) -> float:
        """Ends it as `lamson stop` does, and returns how many seconds that took."""
        return stop_all([self])


def stop_all(servers: Sequence[Server]) -> float:
    """Ends them all at once. Returns how many seconds that took."""
    started = time.monotonic()
    for server in servers:
        os.kill(server.pid, signal.SIGTERM)
    for server in servers:
        eventually(lambda: gone(server.pid), f"the end of {server.pid}", seconds=40)  # noqa: B023
    return time.monotonic() - started


# What is tried again is tried again soon. The real times are for a world in which servers are down for hours.
HURRY = """
import lamson.outgoing
lamson.outgoing.FIRST_WAIT = lamson.outgoing.BREATH = 0.1
lamson.outgoing.LONGEST_WAIT = lamson.outgoing.LOOK = 0.3
"""


class Project:
    """A generated project with the handlers of these tests. It relays to a log server, which is another process."""

    def __init__(self, shell: Shell, name: str = "project", outgoing: bool = False, boot: str = ""):
        shell.environment["PYTHONPATH"] = str(HERE.parent)
        shell.run(f"lamson gen -project {name}")
        shell.run(f"cd {name}")
        self.folder = shell.folder
        self.port, self.relay_port = free_port(), free_port()
        shutil.copy(HERE / "crash/handlers.py", self.folder / "app/handlers/crash.py")
        self._edit("config/settings.py", r'"port": 8823\b', f'"port": {self.port}')
        relay = {"host": "127.0.0.1", "port": self.relay_port, **({"queue": "run/outgoing"} if outgoing else {})}
        self._edit("config/settings.py", r"(?m)^relay_config = .*$", f"relay_config = {relay}")
        self._edit("config/settings.py", r"app\.handlers\.sample", "app.handlers.crash")
        self.boot(HURRY + boot)
        self.server = Server(shell, "lamson start")
        self.relay = Server(shell, f"lamson log -port {self.relay_port} -queue run/relayed")

    def _edit(self, name: str, old: str, new: str) -> None:
        text, count = re.subn(old, new, (self.folder / name).read_text())
        assert count == 1, f"{old} in {name}"
        (self.folder / name).write_text(text)

    def boot(self, lines: str) -> None:
        """Adds lines to the end of config/boot.py."""
        with open(self.folder / "config/boot.py", "a") as file:
            file.write(lines)

    def queue(self, name: str) -> Queue:
        return Queue(self.folder / "run" / name)

    def finish(self) -> None:
        """Waits until nothing waits to be tried again, and stops the server."""
        for name in ("outgoing", "deferred"):
            queue = self.queue(name)
            eventually(lambda: not queue.count(), lambda: f"that {queue.dir} is empty: {queue.keys()}")  # noqa: B023
        self.server.stop()

    def log(self) -> str:
        return (self.folder / "logs/lamson.log").read_text()


# --- the messages ------------------------------------------------------------------------------------------------


class Letter:
    """A message, and what its sender knows about it.

    `doubts` is how often it was sent without an answer, because the connection broke. Each of these times the server
    may have handled it; a sender that has no answer cannot know, and has to send it again.
    """

    def __init__(self, number: int, rng: random.Random, actions: Sequence[str]):
        self.number = number
        self.sender = f"sender-{number % SENDERS}@example.com"
        chosen = dict.fromkeys(rng.choices(actions, k=rng.choice((1, 1, 2, 3))))
        self.recipients = [f"{action}-{number}@test.com" for action in chosen]
        body = f"This is number {number}.\r\n".encode() + rng.randbytes(rng.choice((20, 2000, 30000))).hex().encode()
        self.content = b"From: %b\r\nX-Number: %d\r\n\r\n%b\r\n" % (self.sender.encode(), number, body)
        self.digest = digest_of(self.content)
        self.key = ""  # where it waits in a queue
        self.doubts = 0
        self.answered = False


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content.partition(b"\r\n\r\n")[2]).hexdigest()


def letters(count: int, rng: random.Random, *actions: str) -> list[Letter]:
    return [Letter(number, rng, actions) for number in range(count)]


class Sender(threading.Thread):
    """A client that sends its letters one by one, each as often as it takes. `gate` lets it begin with the next."""

    def __init__(self, port: int, outbox: list[Letter], gate: threading.Semaphore):
        super().__init__(daemon=True)
        self.port = port
        self.outbox = outbox
        self.gate = gate
        self.client: smtplib.SMTP | None = None
        self.refusals = 0
        self.error: BaseException | None = None
        self.stopped = False

    def run(self) -> None:
        try:
            for letter in self.outbox:
                self.gate.acquire()
                while not letter.answered and not self.stopped:
                    self._send(letter)
            self._leave()
        except BaseException as error:  # for the thread of the test, which would wait in vain
            self.error = error

    def _send(self, letter: Letter) -> None:
        sent = False
        try:
            if self.client is None:
                self.client = smtplib.SMTP("127.0.0.1", self.port, local_hostname="sender.example.com", timeout=60)
                self.client.ehlo()
            code, _ = self.client.mail(letter.sender)
            for recipient in letter.recipients:
                code = max(code, self.client.rcpt(recipient)[0])
            if code == 250:
                code, _ = self.client.docmd("DATA")
            if code == 354:
                sent = True
                self.client.send(letter.content + b".\r\n")
                code, _ = self.client.getreply()
                sent = False
            if code == 250:
                letter.answered = True
                return
            assert 400 <= code < 500, f"{code} to {letter.recipients}"
            self.refusals += 1
            if code == 421:
                self._leave()
            else:
                self.client.rset()
        except (OSError, smtplib.SMTPException):
            letter.doubts += sent
            self._leave()
            time.sleep(0.01)  # the server is down; as often as that it is looked for

    def _leave(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None


class Crowd:
    """All senders together."""

    def __init__(self, port: int, outbox: list[Letter]):
        self.outbox = outbox
        self.gate = threading.Semaphore(0)
        self.allowed = 0
        self.senders = [Sender(port, outbox[number::SENDERS], self.gate) for number in range(SENDERS)]

    def __enter__(self) -> "Crowd":
        for sender in self.senders:
            sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        for sender in self.senders:
            sender.stopped = True
        self.let(len(self.outbox))
        for sender in self.senders:
            sender.join(PATIENCE)

    def let(self, count: int) -> None:
        """Lets them send so many more messages."""
        self.allowed += count
        self.gate.release(count)

    def answered(self) -> int:
        for sender in self.senders:
            if sender.error is not None:
                raise sender.error
        return sum(letter.answered for letter in self.outbox)

    def idle(self) -> bool:
        """Whether all that they were let to send has been answered."""
        return self.answered() >= min(self.allowed, len(self.outbox))

    def wait(self, count: int) -> None:
        """Waits until so many messages have been answered."""
        # A noisy machine may be slow, but each message is answered in a moment once the servers are there.
        eventually(lambda: self.answered() >= count, lambda: f"{count} answers, {self.answered()} came", 4 * PATIENCE)

    def refusals(self) -> int:
        return sum(sender.refusals for sender in self.senders)


def storm(crowd: Crowd, rng: random.Random, rounds: int, strike: Callable[[], object]) -> None:
    """Calls `strike` at a random moment of each round while the crowd sends; then lets it send what is left."""
    share = len(crowd.outbox) // (rounds + 1)
    for number in range(rounds):
        crowd.let(share)
        # Somewhere in this round, with messages of its senders in all stages.
        crowd.wait(number * share + rng.randrange(share - SENDERS))
        time.sleep(rng.uniform(0, 0.01))
        strike()
    crowd.let(len(crowd.outbox))
    crowd.wait(len(crowd.outbox))


# --- the accounts ------------------------------------------------------------------------------------------------


class Found:
    """Every copy of every message that is anywhere in a project: how often, by number and recipient, in each place."""

    def __init__(self, project: Project, outbox: list[Letter], *others: Path):
        self.outbox = outbox
        self.digests = {letter.number: letter.digest for letter in outbox}
        self.places: dict[str, Counter[tuple[int, str]]] = {}
        for place in [*sorted((project.folder / "run").iterdir()), *others]:
            if (place / "new").is_dir():
                self.places[place.name] = Counter(self._in_queue(Queue(place)))
            elif place.name == "journal":
                self.places["journal"] = Counter(self._in_journal(place))
        self.all = sum(self.places.values(), Counter())

    def _in_queue(self, queue: Queue) -> Iterator[tuple[int, str]]:
        for key in queue.keys():
            message = queue.get(key)
            assert message is not None
            number = int(message["X-Number"] or "")
            assert self.digests[number] == digest_of(message.as_bytes()), f"{key} in {queue.dir} is damaged"
            for recipient in message.To:
                yield number, recipient

    def _in_journal(self, journal: Path) -> Iterator[tuple[int, str]]:
        for line in journal.read_text().splitlines():
            number, recipient, digest = line.split()
            assert self.digests[int(number)] == digest, line
            yield int(number), recipient

    def check(self, excess: int = 0, of: str = "") -> str:
        """Nothing is lost, and no copy is there more often than it was sent. Returns the figures.

        `excess` is how many more copies there may be `of` one kind: those that were in the hands of a server alone when
        it was killed, since what has been answered is sent on, and tried again, without its sender.
        """
        copies = [(letter, (letter.number, recipient)) for letter in self.outbox for recipient in letter.recipients]
        lost = [copy for letter, copy in copies if letter.answered and not self.all[copy]]
        assert not lost, f"{len(lost)} of {len(copies)} copies are lost: {lost[:20]}"
        assert not self.all.keys() - {copy for _, copy in copies}
        beyond = {
            copy: self.all[copy] - 1 - letter.doubts for letter, copy in copies if self.all[copy] > 1 + letter.doubts
        }
        assert sum(beyond.values()) <= excess, f"copies beyond those in flight ({excess} may be): " + str(
            {copy: {name: counted[copy] for name, counted in self.places.items()} for copy in beyond}
        )
        assert all(recipient.startswith(f"{of}-") for _, recipient in beyond), beyond
        doubts = sum(letter.doubts for letter in self.outbox)
        return (
            f"{len(self.outbox)} messages, {len(copies)} copies, {doubts} messages in flight at kills, "
            f"{self.duplicates()} duplicates, none lost; "
            + ", ".join(f"{name} {counted.total()}" for name, counted in self.places.items())
        )

    def duplicates(self) -> int:
        return self.all.total() - len(self.all)

    def only_in(self, action: str, *places: str) -> None:
        """Copies for this action are nowhere else, and there are some."""
        where = {
            place
            for place, counted in self.places.items()
            for _, recipient in counted
            if recipient.startswith(f"{action}-")
        }
        assert where and where <= set(places), f"{action} is in {where}"


def report(what: str, started: float, figures: str) -> None:
    print(f"{what}: {figures}; {time.monotonic() - started:.1f} s")


def leftovers(project: Project) -> int:
    """How many files were being written into queues when their writer was killed."""
    return len(list(project.folder.glob("run/*/tmp/*")))


# --- SIGKILL -----------------------------------------------------------------------------------------------------


def test_no_message_is_lost_by_a_server_that_is_killed(shell, rng):
    started = time.monotonic()
    project = Project(shell, boot="Router.LOCKING = 'sender'\n")
    project.server.start()
    outbox = letters(MESSAGES, rng, "record", "keep", "fail", "busy")

    def strike():
        project.server.kill()
        project.server.start()

    rounds = max(ROUNDS, 8)
    with Crowd(project.port, outbox) as crowd:
        storm(crowd, rng, rounds, strike)
    project.finish()
    found = Found(project, outbox)
    # One thread gives the handlers again what they refused for now.
    figures = found.check(excess=rounds, of="busy")
    found.only_in("record", "journal")
    found.only_in("keep", "kept")
    found.only_in("fail", "undeliverable")
    found.only_in("busy", "journal")
    # Each sender has one message on its way at a time.
    assert sum(letter.doubts for letter in outbox) <= rounds * SENDERS
    report(f"server killed {project.server.kills} times, {leftovers(project)} left in tmp", started, figures)


def test_a_server_that_is_killed_while_it_starts_can_be_started_again(shell, rng):
    project = Project(shell)
    for _ in range(3):
        pid_file = project.folder / "run/smtp.pid"
        pid_file.unlink(missing_ok=True)
        starting = subprocess.Popen(
            ["lamson", "start"],
            cwd=project.folder,
            env=shell.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(lambda: pid_file.exists() and pid_file.read_text().strip(), "a pid")  # noqa: B023
        time.sleep(rng.uniform(0, 0.3))
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        starting.wait(PATIENCE)
    project.server.start()
    outbox = letters(10, rng, "record")
    with Crowd(project.port, outbox) as crowd:
        crowd.let(len(outbox))
        crowd.wait(len(outbox))
    found = Found(project, outbox)
    found.check()
    assert not found.duplicates()


def test_no_message_is_lost_by_a_relay_that_is_killed(shell, rng):
    started = time.monotonic()
    project = Project(shell)
    project.server.start()
    project.relay.start()
    outbox = letters(MESSAGES // 2, rng, "relay", "keep")

    with Crowd(project.port, outbox) as crowd:

        def strike():
            project.relay.kill()
            failed = project.queue("undeliverable").count()
            eventually(
                lambda: project.queue("undeliverable").count() > failed or crowd.idle(), "mail while the relay is down"
            )
            project.relay.start()

        storm(crowd, rng, ROUNDS, strike)
    found = Found(project, outbox)
    # The router's lock lets one handler run at a time, so the relay has one message in its hands.
    figures = found.check(excess=project.relay.kills, of="relay")
    assert sum(letter.doubts for letter in outbox) == 0, "the server was never killed"
    found.only_in("relay", "relayed", "undeliverable")
    reasons = {entry.key: entry.reason for entry in project.queue("undeliverable").entries()}
    assert any("Connection refused" in reason for reason in reasons.values())
    relayed = found.places["relayed"]
    for key, reason in reasons.items():
        message = project.queue("undeliverable").get(key)
        copy = int(message["X-Number"]), message.To[0]
        # A server that was not there cannot have it.
        assert not (relayed[copy] and "Connection refused" in reason), f"{copy}: {reason}"
    report(f"relay killed {project.relay.kills} times", started, figures)


@pytest.mark.parametrize("victims", [["relay"], ["relay", "server"]], ids=" and ".join)
def test_no_message_is_lost_by_the_outgoing_queue(shell, rng, victims):
    started = time.monotonic()
    project = Project(shell, outgoing=True)
    project.server.start()
    project.relay.start()
    outbox = letters(MESSAGES // 2, rng, "relay", "keep")

    with Crowd(project.port, outbox) as crowd:

        def strike():
            project.relay.kill()
            eventually(lambda: project.queue("outgoing").count() or crowd.idle(), "a queued message")
            project.relay.start()
            if "server" in victims:  # which owns the queue, and is at work on it now
                project.server.kill()
                project.server.start()

        storm(crowd, rng, ROUNDS, strike)
    project.finish()
    found = Found(project, outbox)
    # At each kill the handler had one message in its hands, and each thread of the queue another.
    hands = 1 + RETRY_THREADS
    figures = found.check(excess=(project.relay.kills + project.server.kills) * hands, of="relay")
    found.only_in("relay", "relayed")
    report(f"relay killed {project.relay.kills} times, server {project.server.kills} times", started, figures)


# A server that takes its mail from run/work.
DRAIN = """
from config import boot, settings
from lamson.server import QueueReceiver
settings.receiver = QueueReceiver("run/work", sleep=0.05)
"""


def drained(shell: Shell, boot: str = "") -> tuple[Project, list[Server]]:
    """A project, and two servers that will take mail from its queue run/work."""
    project = Project(shell, boot=boot)
    (project.folder / "config/drain.py").write_text(DRAIN)
    return project, [Server(shell, f"lamson start -boot config.drain -pid ./run/{name}.pid") for name in ("a", "b")]


def fill(work: Queue, outbox: list[Letter]) -> None:
    for letter in outbox:
        letter.key = work.push(MailRequest("test", letter.sender, letter.recipients, letter.content))
        letter.answered = True  # as its sender has been told, when it came to be in this queue


def in_hand(server: Server, folder: Path) -> set[str]:
    """Stops a process in the middle of whatever it does, and returns the keys of the messages it has claimed."""
    stand_still(server.pid)
    files = [os.readlink(file) for file in Path(f"/proc/{server.pid}/fd").iterdir()]
    return {os.path.basename(file).partition(":")[0] for file in files if file.startswith(f"{folder}/cur/")}


def test_no_message_is_lost_by_a_queue_receiver_that_is_killed(shell, rng):
    started = time.monotonic()
    project, servers = drained(shell)
    work = project.queue("work")
    outbox = letters(MESSAGES // 2, rng, "record", "keep", "fail", "busy")
    fill(work, outbox)
    for server in servers:
        server.start()

    share = len(outbox) // (ROUNDS + 1)
    for number in range(ROUNDS):
        left = len(outbox) - number * share - rng.randrange(share)
        eventually(lambda: work.count() <= left, f"{left} left in run/work", 4 * PATIENCE)  # noqa: B023
        victim = rng.choice(servers)
        claimed = in_hand(victim, project.folder / "run/work")
        assert len(claimed) <= 1
        for letter in outbox:
            letter.doubts += letter.key in claimed
        victim.kill()
        victim.start()
    eventually(lambda: not work.count(), lambda: f"an empty run/work, {work.count()} are in it", 4 * PATIENCE)
    stop_all(servers)
    found = Found(project, outbox)
    figures = found.check()
    found.only_in("record", "journal", "undeliverable")
    found.only_in("fail", "undeliverable")
    report(f"queue receivers killed {sum(server.kills for server in servers)} times", started, figures)


# --- SIGTERM -----------------------------------------------------------------------------------------------------


class Client:
    """A connection, line by line."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.file = self.socket.makefile("rb")
        self.said()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def said(self) -> str:
        """The next line from the server; nothing when it has closed the connection."""
        try:
            return self.file.readline().decode().strip()
        except ConnectionResetError:
            return ""

    def say(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\r\n")
        return self.said()

    def begin(self, letter: Letter) -> None:
        """Says all that stands before a message."""
        for line in ("HELO sender.example.com", f"MAIL FROM:<{letter.sender}>"):
            assert self.say(line).startswith("250"), line
        for recipient in letter.recipients:
            assert self.say(f"RCPT TO:<{recipient}>").startswith("250")
        assert self.say("DATA").startswith("354")

    def send(self, letter: Letter) -> str:
        """Sends a message, and returns the answer to it."""
        self.begin(letter)
        self.socket.sendall(letter.content)
        return self.say(".")


def test_SIGTERM_loses_nothing_and_makes_no_duplicates(shell, rng):
    started = time.monotonic()
    project = Project(shell, outgoing=True, boot="Router.LOCKING = 'sender'\n")
    project.server.start()
    project.relay.start()
    *outbox, unfinished = letters(MESSAGES // 2 + 1, rng, "record", "keep", "fail", "busy", "relay")
    stops = []

    def strike():
        with Client(project.port) as idle, Client(project.port) as half:
            half.begin(unfinished)
            half.socket.sendall(unfinished.content[:1000])
            stops.append(project.server.stop())
            assert idle.said().startswith("421")
            assert not idle.said()
            assert not half.said().startswith("250")
        project.server.start()

    with Crowd(project.port, outbox) as crowd:
        storm(crowd, rng, ROUNDS, strike)
    project.finish()
    found = Found(project, outbox)
    figures = found.check()
    assert not found.duplicates(), "what was handled has been answered"
    report(f"server stopped {len(stops)} times, in {max(stops):.2f} s at most", started, figures)


# It waits half a minute for handlers, and for attempts to send something again; here it is a second.
SHORT = "import lamson.server\nlamson.server.SHUTDOWN_TIME = 1\nlamson.outgoing.CLOSE_TIME = 1\n"


def test_SIGTERM_waits_for_all_that_hangs_no_longer_than_its_time(shell, rng):
    project = Project(shell, outgoing=True, boot=SHORT)
    hanging, deferred, outgoing = letters(3, rng, "hang")
    fill(project.queue("deferred"), [deferred])
    fill(project.queue("outgoing"), [outgoing])
    with socket.create_server(("127.0.0.1", project.relay_port)) as silent:  # it takes connections and says nothing
        project.server.start()
        with silent.accept()[0], Client(project.port) as client:
            client.begin(hanging)
            client.socket.sendall(hanging.content + b".\r\n")
            eventually(lambda: "received: " in project.log(), "the message with its handler")
            seconds = project.server.stop()
            assert client.said() == "", "its sender still owns the message"
    assert seconds >= 1, "it waits for them"
    log = project.log()
    assert "gave up: 1 messages are still being handled; their clients keep them" in log
    for letter, name in ((deferred, "deferred"), (outgoing, "outgoing")):
        assert f"gave up: an attempt of queue run/{name} has not ended; it will be made again" in log
        assert project.queue(name).keys() == [letter.key]


def test_SIGTERM_lets_queue_receivers_finish_what_they_handle(shell, rng):
    project, servers = drained(shell)
    work = project.queue("work")
    outbox = letters(3 * 500, rng, "record", "keep", "fail")
    interrupted = 0
    for number in range(3):
        fill(work, outbox[number::3])
        left = work.count() - 1 - rng.randrange(50)
        for server in servers:
            server.start()
        eventually(lambda: work.count() <= left, f"{left} left in run/work")  # noqa: B023
        stop_all(servers)
        interrupted += work.count() > 0
    assert interrupted, "they had always done everything before they were stopped"
    found = Found(project, outbox)
    found.check()
    assert not found.duplicates()


def test_SIGTERM_waits_for_a_queue_receivers_handler_no_longer_than_its_time(shell, rng):
    project, (server, _) = drained(shell, boot=SHORT)
    outbox = letters(1, rng, "hang")
    fill(project.queue("work"), outbox)
    server.start()
    eventually(lambda: "received: " in project.log(), "the message with its handler")
    assert server.stop() >= 1, "it waits for the handler"
    assert "gave up: a message of queue run/work is still being handled; it stays in the queue" in project.log()
    assert project.queue("work").keys() == [outbox[0].key]


# --- disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[Path, str], Path]]:
    """Mounts disks that are soon full, for as long as the test runs."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounted = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(exist_ok=True)
        line = [needs("mount"), "-t", "tmpfs", "-o", f"size={size}", "lamson-test", str(folder)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        # Lazy: it is gone from here at once, whoever still has a file on it.
        subprocess.run([needs("umount"), "--lazy", str(folder)], check=True)


def eat(disk: Path) -> Path:
    """Fills a disk, and returns the file that does."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


def read_only(disk: Path, yes: bool) -> None:
    subprocess.run([needs("mount"), "-o", f"remount,{'ro' if yes else 'rw'}", str(disk)], check=True)


def test_a_full_disk_gives_452_and_service_resumes(tmp_path, rng, small_disk):
    disk = small_disk(tmp_path / "disk", "8m")
    with Shell(disk) as shell, Shell(tmp_path) as elsewhere:
        # All of the project is on that disk, queues, database and log, and only the relay is not.
        project = Project(shell)
        relay = Server(elsewhere, f"lamson log -port {project.relay_port} -queue relayed -pid ./log.pid").start()
        project.server.start()
        outbox = letters(30, rng, "keep", "fail", "relay")

        def send(letter):
            with Client(project.port) as client:
                return client.send(letter)

        for batch in (outbox[:15], outbox[15:]):
            filler = eat(disk)
            for letter in batch * 2:
                answer = send(letter)
                assert answer.startswith("452 4.3.1 "), answer
            assert leftovers(project) == 0
            filler.unlink()
            for letter in batch:
                assert send(letter) == "250 OK"
                letter.answered = True
        relay.stop()
        found = Found(project, outbox, tmp_path / "relayed")
        found.check()
        assert not found.duplicates(), "no handler runs for what cannot be kept if it fails"


def test_a_read_only_folder_gives_451_and_service_resumes(shell, rng, request):
    project = Project(shell)
    run = project.folder / "run"
    if os.geteuid() == 0:  # whom permissions do not stop
        set_read_only = functools.partial(read_only, request.getfixturevalue("small_disk")(run, "8m"))
    else:
        folders = [run / queue / folder for queue in ("kept", "undeliverable") for folder in ("tmp", "new")]

        def set_read_only(yes):
            for folder in folders:
                folder.chmod(0o500 if yes else 0o700)

    # A file that is open for writing, as a pid file is, keeps its disk from becoming read-only.
    project.server.command += " -pid ./server.pid"
    project.server.start()
    outbox = letters(10, rng, "keep", "fail")
    with Client(project.port) as client:
        for yes in (True, False):
            set_read_only(yes)
            for letter in outbox:
                answer = client.send(letter)
                assert answer.startswith("451 4.3.0 " if yes else "250 "), answer
                letter.answered = not yes
    found = Found(project, outbox)
    found.check()
    assert not found.duplicates()


def test_a_queue_receiver_goes_on_when_its_disks_are_mended(shell, rng, small_disk):
    project, (server, _) = drained(shell)
    disks = {name: small_disk(project.folder / "run" / name, "1m") for name in ("kept", "undeliverable", "work")}
    outbox = letters(10, rng, "keep")
    server.start()
    fillers = [eat(disks[name]) for name in ("kept", "undeliverable")]
    fill(project.queue("work"), outbox[:5])
    eventually(lambda: project.log().count("No space left on device") > 5, "attempts")
    assert "received: " not in project.log(), "no handler runs for what cannot be kept if it fails"
    for filler in fillers:
        filler.unlink()
    eventually(lambda: not project.queue("work").count(), "an empty run/work")

    stand_still(server.pid)  # so that it has no file open for writing
    fill(project.queue("work"), outbox[5:])
    read_only(disks["work"], True)
    os.kill(server.pid, signal.SIGCONT)
    eventually(lambda: "Read-only file system" in project.log(), "an attempt")
    read_only(disks["work"], False)
    eventually(lambda: not project.queue("work").count(), "an empty run/work")
    server.stop()
    found = Found(project, outbox)
    found.check()
    assert not found.duplicates()
    assert not project.queue("undeliverable").count()
