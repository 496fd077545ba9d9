"""Beside a real Postfix, in both arrangements of docs/deploying.md, whose lines are used here as they stand there.

Every server is a process of its own; the outside world is a server in this one that remembers what it gets.
"""

import contextlib
import os
import re
import smtplib
from collections.abc import Callable
from typing import Any

import pytest

from lamson.mail import MailRequest
from lamson.maildir import Maildir
from lamson.pidfile import RunningServer, find_server
from lamson.queue import Queue
from pages import Page
from postfix import Postfix
from processes import PATIENCE, Shell, eventually, needs
from sink import Sink

PAGE = Page("deploying.md")

# Answers as the recipient's name says. What it takes is in a queue of that name, one copy for each call.
HANDLER = """\
import time
from collections.abc import Callable
from pathlib import Path

from config.settings import relay
from lamson.queue import Queue
from lamson.routing import nolocking, route, stateless
from lamson.server import SMTPError


@route("(name)@(host)", name=".+")
@stateless
@nolocking
def START(message, name=None, host=None):
    if name.startswith("never"):
        raise SMTPError(550, "5.7.1 Nobody may write here")
    if name.startswith("later") and not Path("run/open").exists():
        raise SMTPError(451, "4.2.1 Closed for today")
    if name == "circle":
        relay.deliver(message)
    if name.startswith("slow"):
        Path("run/waiting").touch()
        while not Path("run/open").exists():
            time.sleep(0.01)
    if name.endswith("answer"):
        relay.deliver(message, To=message.route_from, From=f"{name}@{host}")
    Queue("run/taken-" + name).push(message)
"""


class Project:
    """A generated project in a shell of its own."""

    def __init__(self, shell: Shell, settings: str, handler: str = HANDLER):
        self.shell = shell
        shell.run("lamson gen -project mymailserver")
        shell.run("cd mymailserver")
        self.folder = shell.folder
        (self.folder / "app/handlers/probe.py").write_text(handler)
        self.add("config/settings.py", 'handlers = ["app.handlers.probe"]\n' + settings)

    def add(self, name: str, lines: str) -> None:
        """Writes lines below a file."""
        with open(self.folder / name, "a") as file:
            file.write(lines)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        assert old in path.read_text(), f"no {old} in {name}"
        path.write_text(path.read_text().replace(old, new))

    def start(self, options: str = "") -> None:
        self.shell.run(f"lamson start {options}")

    def stop(self) -> None:
        self.shell.run("lamson stop -ALL run")

    def server(self, pid_file: str = "run/smtp.pid") -> RunningServer | None:
        """The process that runs."""
        return find_server(str(self.folder / pid_file))

    def kill(self, pid_file: str = "run/smtp.pid") -> None:
        """Ends a server as a crash does."""
        server = self.server(pid_file)
        assert server is not None
        server.signal(KILL=True)
        assert server.wait(PATIENCE)

    def send_again(self, name: str, options: str = "") -> None:
        """Makes what waits in a queue of run/ due, and has the server that is started like this look for it."""
        for path in Maildir(self.folder / "run" / name).files():
            with contextlib.suppress(FileNotFoundError):  # the server has come to it by itself
                os.utime(path, (0, 0))
        self.shell.run(f"lamson restart {options}")

    def mails(self, name: str) -> list[MailRequest]:
        """The mails in a queue of run/, the oldest first."""
        if not (self.folder / "run" / name).exists():
            return []
        queue = Queue(self.folder / "run" / name)
        return [mail for key in queue.keys() if (mail := queue.get(key)) is not None]

    def count(self, name: str) -> int:
        """How many mails are in a queue of run/."""
        return Queue(self.folder / "run" / name).count()

    def reasons(self, name: str) -> list[str]:
        """Why mails are in a queue of run/."""
        return [entry.reason for entry in Queue(self.folder / "run" / name).entries()]

    def clean(self) -> None:
        """Forgets all mail."""
        for folder in (self.folder / "run").iterdir():
            if (folder / "new").is_dir():
                Queue(folder).clear()
        for name in ("open", "waiting"):
            (self.folder / "run" / name).unlink(missing_ok=True)

    def log(self) -> str:
        """The last lines of its log."""
        return "\n".join((self.folder / "logs/lamson.log").read_text().splitlines()[-50:])


def of_size(size: int) -> bytes:
    """A mail of so many bytes, or a few more."""
    line = b"0123456789" * 7 + b"\r\n"
    return b"Subject: x\r\n\r\n" + line * (size // len(line))


def as_sent(mail: MailRequest) -> bytes:
    """The bytes of a mail without the header that Postfix has put on top."""
    found = re.match(rb"Received: from client\.example\.net .*?\n(?![ \t])(.*)", mail.original, re.DOTALL)
    assert found, mail.original[:1000]
    return found[1]


CONTENTS = {
    "plain": b"From: zed@example.net\r\nTo: joe@lists.example.com\r\nSubject: Hi\r\n\r\nHello.\r\n",
    "odd": b"subject:  two  \r\n\tlines \r\nX-A: 1\r\nx-a:\r\n\r\n\r\n trailing \t\r\n\r\n\r\n",
    "dots": b"Subject: .\r\n\r\n.\r\n..\r\n.dot\r\n\r\n.\r\n",
    "utf-8": "Subject: Grüße\r\n\r\nПривет, 你好\r\n".encode(),
    "latin-1": "Subject: Grüße\r\n\r\nGrüße\r\n".encode("latin-1"),
    "every-byte": b"Subject: x\r\n\r\n" + bytes(code for code in range(256) if code not in b"\r\n") + b"\r\n",
    "no-body": b"Subject: x\r\n",
    "a-megabyte": b"Subject: x\r\n\r\n" + (b"0123456789" * 7 + b"\r\n") * 15_000,
}
LONG_LINE = b"Subject: x\r\n\r\n" + b"0123456789" * 10_000 + b"\r\n"
HELLO = CONTENTS["plain"]


class Neighbours:
    """What both arrangements have: a Postfix, a project, and the world."""

    postfix: Postfix
    lamson: Project
    world: Sink

    def comes(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Waits until it is true, and returns what it is then."""
        return eventually(condition, self._logs, seconds)

    def _logs(self) -> str:
        return f"{self.postfix.queue()}\n\n{self.postfix.log()}\n\n{self.lamson.log()}"

    def handling(self) -> None:
        """Waits until a slow handler has begun."""
        self.comes((self.lamson.folder / "run/waiting").exists)

    def open(self) -> None:
        """Lets slow handlers go on, and those that wanted mail later want it now."""
        (self.lamson.folder / "run/open").touch()

    def world_gets(self, count: int = 1) -> list[tuple]:
        """Waits for mail to the world. Returns (sender, recipients, content, options) of each."""
        self.comes(lambda: len(self.world.got) >= count)
        self.postfix.is_idle()
        assert len(self.world.got) == count
        return self.world.got


# --- Postfix in front --------------------------------------------------------------------------------------------


class PostfixInFront(Neighbours):
    """Postfix gives Lamson the mail of lists.example.com. Both send to the world through Postfix.

    `way` is smtp, lmtp, or lmtp-unix, which is LMTP through a Unix socket.
    """

    def __init__(self, postfix: Postfix, shell: Shell, world: Sink, way: str, handler: str = HANDLER):
        self.postfix = postfix
        self.world = world
        self.protocol = way.partition("-")[0]
        port = postfix.reserve_port()
        settings = PAGE.block("Postfix in front", "relay_config")
        settings = settings.replace("25,", f"{postfix.port},").replace("8823", str(port))
        lines = PAGE.block("Postfix in front", "relay_domains")
        lines = lines.replace("8823", str(port)).replace("lmtp:", f"{self.protocol}:")
        if way == "lmtp-unix":
            settings = settings.replace('"127.0.0.1"', f'"{postfix.folder}/lmtp"')
            lines = lines.replace(f"[127.0.0.1]:{port}", f"unix:{postfix.folder}/lmtp")
        self.lamson = Project(shell, settings, handler)
        if self.protocol == "lmtp":
            self.lamson.edit("config/boot.py", "SMTPReceiver", "LMTPReceiver")
        self.lines = f"{lines}\nrelayhost = [127.0.0.1]:{world.port}\n"
        self.lamson.start()
        postfix.start(self.lines)

    def send(self, content: bytes, *recipients: str, sender: str = "zed@example.net", options: tuple = ()) -> None:
        with self.postfix.client() as client:
            client.ehlo()
            refused = client.sendmail(sender, [f"{name}@lists.example.com" for name in recipients], content, options)
            assert refused == {}

    def taken(self, name: str) -> list[MailRequest]:
        return self.lamson.mails("taken-" + name)

    def gets(self, *names: str) -> list[MailRequest]:
        """Waits until each recipient has got a mail, checks that it is one, and returns them."""
        self.comes(lambda: all(map(self.taken, names)))
        self.postfix.is_idle()
        mails = [self.taken(name) for name in names]
        assert list(map(len, mails)) == [1] * len(names)
        return [mail for (mail,) in mails]

    def deferred(self, *names: str) -> str:
        """Waits until Postfix has tried in vain to deliver to these, and to no others. Returns the reasons."""
        wanted = {f"{name}@lists.example.com" for name in names}

        def reasons() -> str:
            tried = [each for entry in self.postfix.deferred() for each in entry["recipients"]]
            if {each["address"] for each in tried} != wanted:
                return ""
            return "\n".join(each.get("delay_reason", "") for each in tried)

        return self.comes(reasons)


@pytest.fixture(scope="module", params=["smtp", "lmtp"])
def in_front(request, tmp_path_factory):
    with Sink() as world, Postfix() as postfix, Shell(tmp_path_factory.mktemp(request.param)) as shell:
        yield PostfixInFront(postfix, shell, world, request.param)


@pytest.fixture
def front(in_front):
    yield in_front
    # Also when the test has failed in the middle of something.
    in_front.open()
    in_front.postfix.forget()
    if in_front.lamson.server() is None:
        in_front.lamson.start()
    in_front.lamson.clean()
    in_front.world.got.clear()


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_mail_comes_through_postfix_byte_for_byte(front, content):
    front.send(content, "joe")
    (mail,) = front.gets("joe")
    assert as_sent(mail) == content
    assert (mail.From, mail.To) == ("zed@example.net", ["joe@lists.example.com"])


def test_lines_of_any_length_come_through(front):
    front.send(LONG_LINE, "joe")
    (mail,) = front.gets("joe")
    if front.protocol == "lmtp":
        assert as_sent(mail) == LONG_LINE
    else:
        assert as_sent(mail).replace(b"\r\n ", b"") == LONG_LINE, "Postfix breaks long lines, as the page says"


def test_a_mail_for_several_recipients_reaches_each_of_them_once(front):
    front.send(CONTENTS["utf-8"], "joe", "jane", "Jim.Knopf")
    for mail in front.gets("joe", "jane", "jim.knopf"):
        assert as_sent(mail) == CONTENTS["utf-8"]
        assert mail.From == "zed@example.net"


def test_mail_from_nobody_stays_so(front):
    front.send(HELLO, "joe", sender="")
    assert front.gets("joe")[0].From == ""


def test_addresses_in_unicode_come_through(front):
    with front.postfix.client() as client:
        client.ehlo()
        if not client.has_extn("smtputf8"):
            pytest.skip("this Postfix was built without SMTPUTF8")
    front.send(CONTENTS["utf-8"], "joe", "ю", sender="я@example.net", options=("SMTPUTF8",))
    for mail in front.gets("joe", "ю"):
        assert mail.From == "я@example.net"
        assert as_sent(mail) == CONTENTS["utf-8"]


def bounced(world: tuple) -> str:
    """Checks that a mail to the world is the report of Postfix to zed, and returns it."""
    sender, recipients, content, _ = world
    assert (sender.strip("<>"), recipients) == ("", ["zed@example.net"])
    return content.decode()


def test_what_a_handler_refuses_is_returned_by_postfix(front):
    front.send(HELLO, "never")
    (report,) = front.world_gets()
    assert "550 5.7.1 Nobody may write here" in bounced(report)
    assert front.lamson.mails("undeliverable") == []


def test_what_a_handler_wants_later_waits_in_postfix(front):
    front.send(HELLO, "later")
    assert "451 4.2.1 Closed for today" in front.deferred("later")
    assert front.taken("later") == []
    front.open()
    front.postfix.retry()
    assert as_sent(front.gets("later")[0]) == HELLO
    assert front.world.got == []


def test_an_unknown_address_is_returned_and_the_others_get_their_mail(front):
    front.lamson.edit("app/handlers/probe.py", 'name=".+"', 'name="[a-z]+"')
    front.lamson.shell.run("lamson restart")
    try:
        front.send(HELLO, "joe", "no.such.user", "jane")
        (report,) = front.world_gets()
        assert "550 5.1.1 <no.such.user@lists.example.com>: no such recipient here" in " ".join(bounced(report).split())
        front.gets("joe", "jane")
        assert front.lamson.mails("undeliverable") == []
    finally:
        front.lamson.edit("app/handlers/probe.py", 'name="[a-z]+"', 'name=".+"')
        front.lamson.shell.run("lamson restart")


def test_a_refusal_for_one_of_three_touches_no_other(front):
    front.send(HELLO, "joe", "never", "jane")
    front.gets("joe", "jane")
    if front.protocol == "lmtp":
        (report,) = front.world_gets()
        assert "550 5.7.1 Nobody may write here" in bounced(report)
        assert bounced(report).count("Final-Recipient:") == 1
        assert front.lamson.mails("undeliverable") == []
    else:
        assert front.world.got == [], "Postfix was told yes"
        assert [mail.To for mail in front.lamson.mails("undeliverable")] == [["never@lists.example.com"]]
        assert front.lamson.reasons("undeliverable") == ["550 5.7.1 Nobody may write here"]


def test_a_later_for_one_of_three_touches_no_other(front):
    front.send(HELLO, "joe", "later", "jane")
    if front.protocol == "lmtp":
        assert "451 4.2.1 Closed for today" in front.deferred("later")
        front.open()
        front.postfix.retry()
        front.gets("joe", "later", "jane")
    else:
        front.gets("joe", "jane")
        (kept,) = front.lamson.mails("deferred") + front.lamson.mails("undeliverable")
        assert kept.To == ["later@lists.example.com"]
    assert front.world.got == []


def test_all_three_refusals_of_one_mail_are_returned(front):
    front.send(HELLO, "never", "never-ever", "nevermore")
    (report,) = front.world_gets()
    assert bounced(report).count("Final-Recipient:") == 3


def test_while_lamson_is_down_postfix_keeps_the_mail(front):
    front.lamson.stop()
    front.send(HELLO, "joe", "jane")
    assert "Connection refused" in front.deferred("joe", "jane")
    front.lamson.start()
    front.postfix.retry()
    front.gets("joe", "jane")


def test_mail_that_was_being_handled_when_lamson_was_killed_comes_again(front):
    front.send(HELLO, "slow")
    front.handling()
    front.lamson.kill()
    front.deferred("slow")
    assert front.taken("slow") == []
    front.open()
    front.lamson.start()
    front.postfix.retry()
    assert as_sent(front.gets("slow")[0]) == HELLO


def test_mail_that_is_being_handled_when_lamson_is_stopped_is_handled_once(front):
    front.send(HELLO, "slow")
    front.handling()
    server = front.lamson.server()
    server.signal()
    front.comes(lambda: "stopping:" in front.lamson.log().rpartition("\n")[2])
    front.open()
    assert server.wait(PATIENCE)
    assert as_sent(front.gets("slow")[0]) == HELLO
    front.lamson.start()


def test_300_mails_from_20_clients_all_arrive_once(front):
    options = ("-s", "20", "-m", "300", "-l", "3000", "-f", "zed@example.net", "-t", "many@lists.example.com")
    front.lamson.shell.run(" ".join([needs("smtp-source"), *options, f"127.0.0.1:{front.postfix.port}"]))
    front.comes(lambda: front.lamson.count("taken-many") >= 300, seconds=120)
    front.postfix.is_idle()
    ids = [mail["Message-ID"] for mail in front.taken("many")]
    assert len(ids) == len(set(ids)) == 300


def test_an_answer_goes_through_postfix_into_the_world(front):
    front.send(CONTENTS["latin-1"], "answer")
    ((sender, recipients, content, options),) = front.world_gets()
    assert (sender, recipients) == ("answer@lists.example.com", ["zed@example.net"])
    # What Lamson relays is what came in: below the two headers that Postfix wrote is what zed wrote.
    assert content.endswith(b"\r\n" + CONTENTS["latin-1"])
    assert content.count(b"Received:") == 2
    assert "BODY=8BITMIME" in options


def test_an_answer_while_postfix_is_down_is_sent_later(front):
    front.send(HELLO, "slow-answer")
    front.handling()
    front.postfix.stop()
    front.open()
    (waiting,) = front.comes(lambda: front.lamson.mails("outgoing"))
    assert (waiting.From, waiting.To) == ("slow-answer@lists.example.com", ["zed@example.net"])
    front.postfix.start(front.lines)
    front.lamson.send_again("outgoing")
    # Postfix was stopped before it heard that Lamson had the mail, so it brought it again.
    for sender, recipients, content, _ in front.world_gets(2):
        assert (sender, recipients) == ("slow-answer@lists.example.com", ["zed@example.net"])
        assert content.endswith(HELLO)


def test_a_mail_that_goes_in_circles_is_set_aside_in_the_end(front):
    front.send(HELLO, "circle")
    (reason,) = front.comes(lambda: front.lamson.reasons("undeliverable"))
    assert "too many hops" in reason
    assert 40 < front.lamson.count("taken-circle") <= 51


# --- what else the page says about Postfix in front ----------------------------------------------------------------


@pytest.fixture
def postfix():
    with Postfix() as postfix:
        yield postfix


def refusal(postfix: Postfix, recipient: str) -> tuple[int, bytes]:
    """What Postfix answers to RCPT."""
    with postfix.client() as client:
        client.ehlo()
        client.mail("zed@example.net")
        return client.rcpt(recipient)


def test_postfix_asks_lamson_whether_a_recipient_exists(postfix, shell):
    with Sink() as world:
        front = PostfixInFront(postfix, shell, world, "smtp", HANDLER.replace('name=".+"', 'name="[a-z]+"'))
        postfix.stop()
        asking = PAGE.block("Postfix in front", "smtpd_recipient_restrictions")
        postfix.start(front.lines + asking + "address_verify_poll_delay = 1\n")
        code, text = refusal(postfix, "no.such.user@lists.example.com")
        assert (code, b"no such recipient here" in text) == (550, True), text
        front.send(HELLO, "joe")
        assert as_sent(front.gets("joe")[0]) == HELLO
        assert world.got == []


def test_postfix_reaches_lamson_through_a_unix_socket(postfix, shell):
    with Sink() as world:
        front = PostfixInFront(postfix, shell, world, "lmtp-unix")
        front.send(HELLO, "joe", "never", "jane")
        front.gets("joe", "jane")
        (report,) = front.world_gets()
        assert "550 5.7.1 Nobody may write here" in bounced(report)
        front.lamson.kill()
        front.send(HELLO, "jim")
        assert "Connection refused" in front.deferred("jim")
        front.lamson.start()
        postfix.retry()
        front.gets("jim")


@pytest.mark.parametrize("kind", ["local", "virtual"])
def test_some_addresses_of_a_domain_are_lamsons(postfix, shell, kind):
    port = postfix.reserve_port()
    settings = f'receiver_config = {{"host": "127.0.0.1", "port": {port}}}\n'
    lamson = Project(shell, settings + 'router_defaults = {"host": "example.com"}\n')
    lamson.start()
    # The user that every Debian has; his mail goes to a folder of the test's.
    lines = f"mydestination = example.com\nmail_spool_directory = {postfix.folder}/mail/\n"
    lines += PAGE.block("Some addresses of a domain", "transport_maps")
    if kind == "virtual":
        lines = postfix.mailboxes("nobody@example.com") + "transport_maps = regexp:/etc/postfix/lamson\n"
        lines = lines.replace("inline:", "regexp:/etc/postfix/lamson inline:")
    table = PAGE.block("Some addresses of a domain", "/^python").replace("8823", str(port)).replace("lmtp:", "smtp:")
    postfix.start(lines, lamson=table)
    with postfix.client() as client:
        recipients = ["nobody@example.com", "Python-Subscribe@example.com", "python-confirm-a1b2@example.com"]
        assert client.sendmail("zed@example.net", recipients, HELLO) == {}
    assert refusal(postfix, "python-nonsense@example.com")[0] == 550
    eventually(lambda: postfix.mails("nobody@example.com" if kind == "virtual" else "nobody"), postfix.log)
    postfix.is_idle()
    for name in ("python-subscribe", "python-confirm-a1b2"):
        (mail,) = lamson.mails("taken-" + name)
        assert as_sent(mail) == HELLO
    assert len(postfix.mails("nobody@example.com" if kind == "virtual" else "nobody")) == 1


# --- Lamson in front ---------------------------------------------------------------------------------------------


class LamsonInFront(Neighbours):
    """Lamson takes the mail of example.com, and what no handler takes goes to joe's and jane's mailboxes in Postfix."""

    def __init__(self, postfix: Postfix, shell: Shell, world: Sink):
        self.postfix = postfix
        self.world = world
        self.port = postfix.reserve_port()
        from_lamson, by_lamson = postfix.reserve_port(), postfix.reserve_port()

        def ports(text: str) -> str:
            return text.replace("10025", str(from_lamson)).replace("10026", str(by_lamson))

        settings = ports(PAGE.block("Lamson in front", "our_hosts"))
        settings = settings.replace('"host": "",', '"host": "127.0.0.1",').replace(
            '"port": 25,', f'"port": {self.port},'
        )
        self.lamson = Project(shell, settings, HANDLER.replace('name=".+"', 'name="(never|later|slow|.*answer|robot)"'))
        self.lamson.edit(
            "config/boot.py",
            "settings.receiver = SMTPReceiver(**settings.receiver_config)\n",
            PAGE.block("Lamson in front", "class Front"),
        )
        forward = PAGE.block("Lamson in front", "import logging.config").replace("sleep=10", "sleep=0.1")
        (self.lamson.folder / "config/forward.py").write_text(forward)
        self.lamson.start()
        self.forward()
        # In Debian, Postfix's services live in a chroot that its package has filled.
        self.master = ports(PAGE.block("Lamson in front", "127.0.0.1:10025")).replace("inet n - y", "inet n - n")
        self.main = postfix.mailboxes("joe@example.com", "jane@example.com", "many@example.com")
        self.main += f"relayhost = [127.0.0.1]:{world.port}\n"
        self.start_postfix()

    def start_postfix(self) -> None:
        self.postfix.start(self.main, self.master)

    def forward(self) -> None:
        self.lamson.start(FORWARD)

    def client(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, "client.example.net", timeout=60)

    def send(self, content: bytes, *recipients: str, sender: str = "zed@example.net", options: tuple = ()) -> None:
        with self.client() as client:
            client.ehlo()
            assert client.sendmail(sender, [f"{name}@example.com" for name in recipients], content, options) == {}

    def is_idle(self) -> None:
        """Waits until no mail is on its way to Postfix or in it."""
        self.comes(lambda: not any(map(self.lamson.count, ("undeliverable", "forwarding"))))
        self.postfix.is_idle()

    def mails(self, name: str) -> list[MailRequest]:
        return self.postfix.mails(f"{name}@example.com")


FORWARD = PAGE.commands("Lamson in front")[0].removeprefix("lamson start ")


@pytest.fixture(scope="module")
def lamson_in_front(tmp_path_factory):
    with Sink() as world, Postfix() as postfix, Shell(tmp_path_factory.mktemp("front")) as shell:
        yield LamsonInFront(postfix, shell, world)


@pytest.fixture
def gate(lamson_in_front):
    yield lamson_in_front
    gate = lamson_in_front
    gate.open()
    if not gate.postfix.processes():
        gate.start_postfix()
    gate.postfix.forget()
    for pid_file, start in (("run/smtp.pid", gate.lamson.start), ("run/forward.pid", gate.forward)):
        if gate.lamson.server(pid_file) is None:
            start()
    gate.lamson.clean()
    gate.postfix.forget_mails()
    gate.world.got.clear()


def as_delivered(mail: MailRequest) -> bytes:
    """The bytes of a mail in a mailbox, without the four headers that Postfix has put on top."""
    found = re.match(rb"Return-Path: .*\nX-Original-To: .*\nDelivered-To: .*\n(Received: .*)", mail.original, re.DOTALL)
    assert found, mail.original[:1000]
    return re.sub(rb"\AReceived: .*?\n(?![ \t])", b"", found[1], count=1, flags=re.DOTALL)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_what_no_handler_takes_reaches_the_old_server_byte_for_byte(gate, content):
    gate.send(content, "joe")
    gate.is_idle()
    (mail,) = gate.mails("joe")
    assert as_delivered(mail) == content.replace(b"\r\n", b"\n")
    assert (mail.From, mail.To) == ("zed@example.net", ["joe@example.com"])
    assert gate.lamson.mails("refused") == []


def test_what_a_handler_takes_does_not_reach_the_old_server(gate):
    gate.send(HELLO, "robot", "joe", "jane")
    gate.is_idle()
    assert len(gate.lamson.mails("taken-robot")) == len(gate.mails("joe")) == len(gate.mails("jane")) == 1
    assert gate.mails("joe")[0].To == ["joe@example.com"]
    assert gate.mails("robot") == gate.lamson.mails("refused") == []


def test_mail_from_nobody_reaches_the_old_server_as_such(gate):
    gate.send(HELLO, "joe", sender="")
    gate.is_idle()
    assert gate.mails("joe")[0].From == ""


def test_what_the_old_server_refuses_is_kept_once_with_the_reason(gate):
    gate.send(HELLO, "joe", "no.such.user")
    gate.is_idle()
    assert [mail.To for mail in gate.lamson.mails("refused")] == [["no.such.user@example.com"]]
    assert "550 5.1.1" in gate.lamson.reasons("refused")[0]
    assert len(gate.mails("joe")) == 1
    assert gate.lamson.mails("refused")[0].original == HELLO


def test_what_is_too_large_for_the_old_server_is_refused_at_once(gate):
    limit = int(gate.postfix.setting("message_size_limit"))
    with pytest.raises(smtplib.SMTPException, match="552"):
        gate.send(of_size(limit - 1000), "joe")
    content = of_size(9_990_000)
    gate.send(content, "joe")
    gate.is_idle()
    assert as_delivered(gate.mails("joe")[0]) == content.replace(b"\r\n", b"\n")


def test_addresses_in_unicode_reach_the_old_server(gate):
    gate.send(CONTENTS["utf-8"], "joe", sender="я@example.net", options=("SMTPUTF8",))
    gate.is_idle()
    assert gate.mails("joe")[0].From == "я@example.net"


def test_mail_of_strangers_for_strangers_is_refused_by_both(gate):
    with gate.client() as client, pytest.raises(smtplib.SMTPRecipientsRefused, match="550"):
        client.sendmail("zed@example.net", ["x@elsewhere.org"], HELLO)
    # And were it taken in spite of that, with the receiver of Lamson 1.x for one, Postfix would not send it.
    Queue(gate.lamson.folder / "run/undeliverable").push(MailRequest("", "zed@example.net", "x@elsewhere.org", HELLO))
    gate.is_idle()
    assert "Relay access denied" in gate.lamson.reasons("refused")[0]
    assert gate.world.got == []


@pytest.mark.parametrize("name", ["x%elsewhere.org", '"x@elsewhere.org"', "elsewhere.org!x", "@elsewhere.org:x"])
def test_a_way_to_a_stranger_in_one_of_our_addresses_leads_nowhere(gate, name):
    with gate.client() as client, contextlib.suppress(smtplib.SMTPRecipientsRefused):
        client.sendmail("zed@example.net", [f"{name}@example.com"], HELLO)
        gate.is_idle()
        assert gate.lamson.count("refused") == 1
    assert gate.world.got == []


def test_an_answer_goes_through_the_port_that_trusts_us(gate):
    gate.send(CONTENTS["utf-8"], "answer")
    ((sender, recipients, content, _),) = gate.world_gets()
    assert (sender, recipients) == ("answer@example.com", ["zed@example.net"])
    assert content.endswith(CONTENTS["utf-8"])


def test_while_the_old_server_is_down_its_mail_waits(gate):
    gate.postfix.stop()
    gate.send(HELLO, "joe", "jane")
    gate.comes(lambda: gate.lamson.count("forwarding") == 2)
    assert gate.lamson.mails("refused") == []
    gate.start_postfix()
    gate.lamson.send_again("forwarding", FORWARD)
    gate.is_idle()
    assert len(gate.mails("joe")) == len(gate.mails("jane")) == 1


def test_with_unknown_recipients_queued_the_rest_reaches_the_old_server(gate):
    plain = "settings.receiver = SMTPReceiver(**settings.receiver_config)\n"
    gate.lamson.add("config/boot.py", plain)
    gate.lamson.add("config/settings.py", 'receiver_config["unknown_recipients"] = "queue"\n')
    gate.lamson.shell.run("lamson restart")
    try:
        gate.send(HELLO, "joe", "robot")
        gate.is_idle()
        assert as_delivered(gate.mails("joe")[0]) == HELLO.replace(b"\r\n", b"\n")
        assert gate.lamson.count("taken-robot") == 1
    finally:
        gate.lamson.edit("config/boot.py", plain, "")
        gate.lamson.edit("config/settings.py", '"unknown_recipients"] = "queue"', '"unknown_recipients"] = "refuse"')
        gate.lamson.shell.run("lamson restart")


def test_no_mail_is_lost_when_the_forwarder_is_killed_again_and_again(gate):
    options = ("-s", "5", "-m", "200", "-l", "3000", "-f", "zed@example.net", "-t", "many@example.com")
    gate.lamson.kill("run/forward.pid")
    gate.lamson.shell.run(" ".join([needs("smtp-source"), *options, f"127.0.0.1:{gate.port}"]))
    assert gate.lamson.count("undeliverable") == 200
    kills = 5
    for left in range(180, 180 - 20 * kills, -20):
        gate.forward()
        gate.comes(lambda left=left: gate.lamson.count("undeliverable") <= left)
        gate.lamson.kill("run/forward.pid")
    gate.forward()
    gate.is_idle()
    ids = [mail["Message-ID"] for mail in gate.mails("many")]
    assert len(set(ids)) == 200
    assert len(ids) <= 200 + kills, "only what was in hand can be there twice"
