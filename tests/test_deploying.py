"""docs/deploying.md line by line, on a machine of its own with systemd, Debian's Postfix, and port 25.

The lines are those of the page; where one is left out or changed, the test says why. What Postfix and Lamson do to mail
in many cases is in test_postfix.py.
"""

import contextlib
import pwd
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamson.mail import MailRequest
from lamson.queue import Queue
from machine import Machine
from pages import Page
from processes import eventually, needs

PAGE = Page("deploying.md")
PROJECT = "/srv/mymailserver"

HANDLER = """\
import time
from pathlib import Path

from config.settings import relay
from lamson.queue import Queue
from lamson.routing import route, stateless


@route("(name)@(host)", name="robot|slow|answer|writer")
@stateless
def START(message, name=None, host=None):
    if name == "slow":
        Path("run/waiting").touch()
        while not Path("run/open").exists():
            time.sleep(0.01)
    if name == "answer":
        relay.deliver(message, To=message.route_from, From=f"{name}@{host}")
    if name == "writer":
        for path in message.body().split():
            Path(path).touch()
    Queue("run/taken-" + name).push(message)
"""

# The rest of the world, for both kinds of servers: one that takes all mail.
WORLD = "mkdir -p /srv/world/run && cd /srv/world && /srv/lamson-env/bin/lamson log -port 2525"


class Site:
    """The machine with a project on it, installed as the page says, with the handler of these tests."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.directory = "/"
        # The machine has these from this checkout and not from a package index.
        made, installed, *lines = PAGE.commands("Install it")
        assert (made, installed) == ("python3 -m venv /srv/lamson-env", "/srv/lamson-env/bin/pip install lamson")
        self.do(*lines)
        machine.run(WORLD)
        self.folder = machine.path(PROJECT)
        (self.folder / "app/handlers/robot.py").write_text(HANDLER)
        # What a test may change, as it was.
        self.files = ("/srv/mymailserver/config", "/etc/postfix")
        for name in self.files:
            machine.run(f"cp -a {name} {name}.original")

    def do(self, *lines: str) -> str:
        """Runs lines of the page one after the other, as they are typed. Returns what the last one printed."""
        said = ""
        for line in lines:
            if line.startswith("cd "):
                self.directory = line.removeprefix("cd ")
            else:
                said = self.machine.run(line, folder=self.directory)
        return said

    def configure(self, settings: str, *edits: tuple[str, str]) -> None:
        """Writes lines below the settings, and replaces text in the boot module."""
        self.add(f"{PROJECT}/config/settings.py", f'handlers = ["app.handlers.robot"]\n{settings}')
        self.edit(f"{PROJECT}/config/boot.py", *edits)

    def edit(self, name: str, *edits: tuple[str, str]) -> None:
        path = self.machine.path(name)
        text = path.read_text()
        for old, new in edits:
            assert old in text, f"no {old} in {name}"
            text = text.replace(old, new)
        path.write_text(text)

    def add(self, name: str, lines: str) -> None:
        """Writes lines below a file, which is made when it is not there."""
        with open(self.machine.path(name), "a") as file:
            file.write(lines)

    def reset(self) -> None:
        """Stops what a test has started, and brings back all files."""
        self.open()
        self.machine.run("systemctl stop 'lamson*'; rm -f /etc/systemd/system/lamson*; systemctl daemon-reload")
        self.machine.run("/srv/lamson-env/bin/lamson stop -ALL run", folder=PROJECT)
        for name in self.files:
            self.machine.run(f"rm -r {name} && cp -a {name}.original {name}")
        self.machine.run(f"rm -rf {PROJECT}/run/* {PROJECT}/logs/*")
        Queue(self.machine.path("/srv/world/run/queue")).clear()

    # mail

    def send(self, *words: str, to: str, code: int = 0) -> str:
        """Sends a mail from zed, and returns the conversation. `code` is what swaks ends with."""
        return self.machine.run(
            f"swaks --server 127.0.0.1 --helo client.example.net --from zed@example.net --to {to} {' '.join(words)}",
            code,
        )

    def mails(self, name: str) -> list[MailRequest]:
        """The mails in a Maildir, whose name counts from the project's folder."""
        folder = self.machine.path(name) if name.startswith("/") else self.folder / name
        if not folder.exists():
            return []
        queue = Queue(folder)
        return [mail for key in queue.keys() if (mail := queue.get(key)) is not None]

    def reasons(self, name: str) -> list[str]:
        """Why mails are in a Maildir."""
        return [entry.reason for entry in Queue(self.folder / name).entries()]

    def comes(self, condition: Callable[[], Any]) -> Any:
        """Waits until it is true, and returns what it is then."""
        return eventually(condition, self._logs)

    def _logs(self) -> str:
        return self.machine.run(f"tail -n 30 {PROJECT}/logs/lamson.log; journalctl --no-pager -n 60")

    def open(self) -> None:
        """Lets the slow handler go on."""
        self.machine.run("touch run/open", folder=PROJECT)

    # processes

    def pid(self, unit: str = "lamson") -> int:
        """The number of a unit's process, 0 when it has none."""
        return int(self.machine.run(f"systemctl show --value --property MainPID {unit}"))

    def status(self, pid: int) -> dict[str, str]:
        """What the system says of a process."""
        lines = self.machine.run(f"cat /proc/{pid}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def machine():
    with Machine() as machine:
        yield machine


@pytest.fixture(scope="module")
def installed(machine):
    for program in ("swaks", "postfix"):
        needs(program)
    return Site(machine)


@pytest.fixture
def site(installed):
    yield installed
    installed.reset()


ALONE = PAGE.block("Lamson alone", "relay_config")


@pytest.fixture
def alone(site):
    """Lamson has port 25, by its unit. In place of the name service, mail goes to the world by a smart host."""
    site.configure(ALONE + 'relay_config = {"port": 2525, "queue": "run/outgoing"}\n')
    site.do(*PAGE.commands("Start it with the machine"))
    return site


NO_POWER_BUT = "0000000000000400"  # CAP_NET_BIND_SERVICE is bit 10


def test_the_unit_serves_at_port_25_and_is_no_root(alone):
    status = alone.status(alone.pid())
    user = alone.machine.run("id -u lamson").strip()
    assert status["Uid"].split() == [user] * 4
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == (NO_POWER_BUT, NO_POWER_BUT, "1")
    alone.send(to="robot@example.com")
    assert [mail.From for mail in alone.mails("run/taken-robot")] == ["zed@example.net"]
    listening = alone.machine.run("ss -Hltn sport = 25").split()
    assert "0.0.0.0:25" in listening and "[::]:25" in listening


def test_a_reload_disturbs_nobody(alone):
    before = alone.pid()
    alone.machine.run("systemctl reload lamson")
    alone.send(to="robot@example.com")
    assert alone.pid() == before
    assert len(alone.mails("run/taken-robot")) == 1


def test_the_unit_starts_with_the_machine(alone):
    assert alone.machine.run("systemctl is-enabled lamson") == "enabled\n"
    wanted = alone.machine.run("systemctl list-dependencies --plain multi-user.target")
    assert "lamson.service" in wanted


def test_systemd_finds_no_fault_with_the_unit(site):
    assert site.machine.run("systemd-analyze verify config/lamson.service", folder=PROJECT) == ""


def test_a_handler_writes_where_the_unit_lets_it_and_nowhere_else(alone):
    # The user may write to all of it, but for the unit.
    alone.machine.run("chown -R lamson: .", folder=PROJECT)
    for path in ("run/x", "logs/x", "app/data/x", "/tmp/x"):
        alone.send("--body", path, to="writer@example.com")
    assert len(alone.mails("run/taken-writer")) == 4
    for path in ("app/x", "config/settings.py", "/var/lib/x", "/etc/x", f"{pwd.getpwuid(0).pw_dir}/x"):
        alone.send("--body", path, to="writer@example.com")
    assert len(alone.mails("run/taken-writer")) == 4
    reasons = alone.reasons("run/undeliverable")
    assert len(reasons) == 5
    assert all("Read-only file system" in reason or "Permission denied" in reason for reason in reasons)


def test_a_server_that_was_killed_is_back(alone):
    before = alone.pid()
    (line,) = re.findall("`(systemctl kill .*?)`", (Path(__file__).parent.parent / "docs/deploying.md").read_text())
    alone.do(line)
    # It comes back after five seconds.
    alone.comes(lambda: alone.pid() not in (0, before))
    alone.comes(lambda: alone.machine.run("systemctl is-active lamson || true") == "active\n")
    alone.send(to="robot@example.com")
    assert len(alone.mails("run/taken-robot")) == 1


def test_a_restart_finishes_what_is_being_handled(alone):
    alone.machine.run(
        "swaks --server 127.0.0.1 --from zed@example.net --to slow@example.com > /run/said 2>&1 < /dev/null &"
    )
    alone.comes((alone.folder / "run/waiting").exists)
    before = alone.pid()
    alone.machine.run("systemctl restart --no-block lamson")
    alone.comes(lambda: "stopping:" in (alone.folder / "logs/lamson.log").read_text())
    alone.open()
    alone.comes(lambda: alone.pid() not in (0, before))
    alone.comes(lambda: "-> QUIT" in alone.machine.run("cat /run/said"))
    assert "<-  250 OK\n -> QUIT" in alone.machine.run("cat /run/said")
    assert len(alone.mails("run/taken-slow")) == 1


def test_without_systemd_root_starts_it_and_it_becomes_somebody_else(site):
    site.configure(ALONE)
    start, status, stop = PAGE.commands("Without systemd")
    site.do(start)
    said = site.do(status)
    pid = int(re.search(r"pid (\d+)", said)[1])
    user, group = site.machine.run("id -u lamson; id -g lamson").split()
    process = site.status(pid)
    assert (process["Uid"].split(), process["Gid"].split()) == ([user] * 4, [group] * 4)
    assert process["CapEff"] == "0000000000000000"
    site.send(to="robot@example.com")
    (kept,) = (site.folder / "run/taken-robot/new").iterdir()
    assert str(kept.stat().st_uid) == user
    site.do(stop)
    assert site.machine.run("ss -Hltn sport = 25") == ""


# --- beside Debian's Postfix ---------------------------------------------------------------------------------------


@pytest.fixture
def postfix(site):
    """Debian's Postfix at port 25, with the mailboxes of example.com, and the world as its smart host."""
    ours = "myhostname=mail.example.com mydestination=example.com relayhost=[127.0.0.1]:2525 home_mailbox=Maildir/"
    ours += " address_verify_poll_delay=1"  # seconds, in place of three: tests are in a hurry
    site.machine.run(f"postconf -e {ours} && systemctl start postfix")
    site.machine.run("useradd --create-home joe")
    yield site
    site.machine.run("postsuper -d ALL && systemctl stop postfix && userdel --remove joe")


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_postfix_in_front(postfix, protocol):
    site = postfix
    lines = PAGE.block("Postfix in front", "relay_domains") + PAGE.block("Postfix in front", "smtpd_recipient")
    edits = [("SMTPReceiver", "LMTPReceiver")] if protocol == "lmtp" else []
    site.configure(PAGE.block("Postfix in front", "relay_config"), *edits)
    site.add("/etc/postfix/main.cf", lines.replace("lmtp:", f"{protocol}:"))
    site.do(*PAGE.commands("Postfix in front"))
    site.do(*PAGE.commands("Start it with the machine"))
    site.send(to="robot@lists.example.com,answer@lists.example.com,joe@example.com")
    for folder in ("run/taken-robot", "../world/run/queue", "/home/joe/Maildir"):
        (mail,) = site.comes(lambda folder=folder: site.mails(folder))
        assert mail["From"] == "zed@example.net"
    assert "550 5.1.1" in site.send(to="no.such.user@lists.example.com", code=24)


def test_postfix_in_front_through_a_unix_socket(postfix):
    site = postfix
    page = "Through a Unix socket"
    site.do(*PAGE.commands(page))
    site.configure(
        PAGE.block("Postfix in front", "relay_config") + PAGE.block(page, "receiver_config"),
        ("SMTPReceiver", "LMTPReceiver"),
    )
    lines = PAGE.block("Postfix in front", "relay_domains") + PAGE.block(page, "transport_maps")
    site.add("/etc/postfix/main.cf", lines)
    unit = f"{PROJECT}/config/lamson.service"
    site.edit(unit, ("ReadWritePaths=", "ReadWritePaths=/var/spool/postfix/lamson "))
    site.do("postfix reload", *PAGE.commands("Start it with the machine"))
    site.send(to="robot@lists.example.com")
    site.comes(lambda: site.mails("run/taken-robot"))


def test_some_addresses_of_a_domain(postfix):
    site = postfix
    site.configure('router_defaults = {"host": "example.com"}\n')
    site.edit(f"{PROJECT}/app/handlers/robot.py", ('name="', 'name="python-subscribe|'))
    site.add("/etc/postfix/lamson", PAGE.block("Some addresses of a domain", "/^python").replace("lmtp:", "smtp:"))
    site.add("/etc/postfix/main.cf", PAGE.block("Some addresses of a domain", "transport_maps"))
    site.do("postfix reload", *PAGE.commands("Start it with the machine"))
    site.send(to="python-subscribe@example.com,joe@example.com")
    for folder in ("run/taken-python-subscribe", "/home/joe/Maildir"):
        site.comes(lambda folder=folder: site.mails(folder))
    assert "550 5.1.1" in site.send(to="python-nonsense@example.com", code=24)


def test_lamson_in_front(postfix):
    site = postfix
    receiver = (
        "settings.receiver = SMTPReceiver(**settings.receiver_config)\n",
        PAGE.block("Lamson in front", "class"),
    )
    site.configure(PAGE.block("Lamson in front", "our_hosts"), receiver)
    forward = PAGE.block("Lamson in front", "import logging.config").replace("sleep=10", "sleep=0.5")
    site.add(f"{PROJECT}/config/forward.py", forward)
    site.edit("/etc/postfix/master.cf", ("\nsmtp      inet", "\n#smtp      inet"))
    site.add("/etc/postfix/master.cf", PAGE.block("Lamson in front", "127.0.0.1:10025"))
    site.machine.run("postfix check && postfix reload")
    site.do(*PAGE.commands("Start it with the machine"))
    by_hand, *by_systemd, look = PAGE.commands("Lamson in front")
    site.do(*by_systemd)
    site.send(to="joe@example.com,robot@example.com,answer@example.com")
    for folder in ("run/taken-robot", "../world/run/queue", "/home/joe/Maildir"):
        site.comes(lambda folder=folder: site.mails(folder))
    assert site.mails("/home/joe/Maildir")[0]["Return-Path"] == "<zed@example.net>"
    assert "550 5.1.1" in site.send(to="x@example.org", code=24)
    # What the old server does not know, and a stranger's mail that got past Lamson, end in the same place.
    Queue(site.folder / "run/undeliverable").push(
        MailRequest("", "zed@example.net", "x@example.org", b"Subject: x\n\n")
    )
    site.machine.run("chown -R lamson: run", folder=PROJECT)
    site.send(to="no.such.user@example.com")
    reasons = site.comes(lambda: len(site.reasons("run/refused")) == 2 and site.reasons("run/refused"))
    assert "Relay access denied" in "".join(reasons) and "User unknown" in "".join(reasons)
    assert "Relay access denied" in site.do(look)
    assert len(site.mails("../world/run/queue")) == 1
    assert site.status(site.pid("lamson-forward"))["CapEff"] == NO_POWER_BUT

    # The same by hand.
    site.machine.run("systemctl stop lamson-forward")
    site.do(f"runuser -u lamson -- /srv/lamson-env/bin/{by_hand}")
    site.send(to="joe@example.com")
    site.comes(lambda: len(site.mails("/home/joe/Maildir")) == 2)


# --- certificates --------------------------------------------------------------------------------------------------


def test_a_new_certificate_is_served_by_the_same_process(alone):
    hook = alone.machine.path("/etc/letsencrypt/renewal-hooks/deploy/lamson")
    hook.parent.mkdir(parents=True)
    hook.write_text(PAGE.block("Certificates", "#!/bin/sh"))
    hook.chmod(0o755)
    (look,) = PAGE.commands("Certificates")

    def renew(name: str) -> None:
        folder = f"/etc/letsencrypt/live/{name}"
        alone.machine.run(
            f"mkdir -p {folder} && openssl req -x509 -newkey rsa:2048 -noenc -days 1 -subj /CN={name}.example.com "
            f"-keyout {folder}/privkey.pem -out {folder}/fullchain.pem"
        )
        alone.machine.run(f"RENEWED_LINEAGE={folder} /etc/letsencrypt/renewal-hooks/deploy/lamson")

    renew("one")
    alone.add(f"{PROJECT}/config/settings.py", PAGE.block("Certificates", "receiver_config"))
    alone.machine.run("systemctl restart lamson")
    assert alone.machine.run(f"stat -c '%U %a' {PROJECT}/config/tls.pem") == "lamson 600\n"
    before = alone.pid()
    assert "one.example.com" in alone.do(look)
    renew("two")
    alone.comes(lambda: "two.example.com" in alone.do(look))
    assert alone.pid() == before
    alone.send("--tls", to="robot@example.com")
    assert len(alone.mails("run/taken-robot")) == 1


# --- keeping it ----------------------------------------------------------------------------------------------------


def test_logs_are_rotated_while_the_server_logs(alone):
    if not alone.machine.path("/usr/sbin/logrotate").exists():
        pytest.skip("the program logrotate is missing")
    alone.machine.path("/etc/logrotate.d/mymailserver").write_text(PAGE.block("Logs", "/srv/mymailserver/logs"))
    alone.send("--from before@example.net", to="robot@example.com")
    alone.do(*PAGE.commands("Logs"))
    for _ in range(2):  # the older one of two is packed
        alone.machine.run("logrotate --force /etc/logrotate.d/mymailserver")
        alone.send("--from after@example.net", to="robot@example.com")
    logs = alone.folder / "logs"
    assert "<after@example.net>" in (logs / "lamson.log").read_text()
    assert "<before@example.net>" not in (logs / "lamson.log").read_text()
    assert "<before@example.net>" in alone.machine.run("zcat logs/lamson.log.2.gz", folder=PROJECT)


def test_a_backup_has_the_queues_and_the_database(alone, tmp_path):
    alone.send(to="robot@example.com")
    alone.do(*PAGE.commands("Backups"))
    alone.machine.run(
        "rm -rf /restored && mkdir /restored && tar -xzf /var/backups/mymailserver-run.tar.gz -C /restored"
    )
    assert [mail.original for mail in alone.mails("/restored/run/taken-robot")] == [
        mail.original for mail in alone.mails("run/taken-robot")
    ]
    shutil.copy(alone.machine.path("/var/backups/lamson.db"), tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "lamson.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert "lamson_state" in {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


@pytest.fixture
def check(installed):
    """The line that tries for an open relay, tried from an address of documentation that only this machine has."""
    machine = installed.machine
    machine.run("ip address add 192.0.2.1/32 dev lo && sed -i s/^127.0.1.1/192.0.2.1/ /etc/hosts")
    (line,) = (line for line in PAGE.commands("Before you tell the world") if line.startswith("swaks"))
    yield lambda recipient="zed@example.org", code=0: machine.run(line.replace("zed@example.org", recipient), code)
    machine.run("ip address delete 192.0.2.1/32 dev lo && sed -i s/^192.0.2.1/127.0.1.1/ /etc/hosts")


def test_lamson_alone_is_no_open_relay(alone, check):
    assert "<** 550" in check(code=24)
    assert "<** 550" in check("no.such.user@example.com", code=24)
    assert "<-  250" in check("robot@example.com").partition(" -> RCPT")[2]
    assert alone.do("hostname --fqdn") == "mail.example.com\n"


def test_postfix_in_front_is_no_open_relay(postfix, check):
    postfix.add("/etc/postfix/main.cf", PAGE.block("Postfix in front", "relay_domains"))
    postfix.do(*PAGE.commands("Postfix in front"))
    assert "Relay access denied" in check(code=24)
    assert "<** 550" in check("no.such.user@example.com", code=24)
    assert "<-  250" in check("joe@example.com").partition(" -> RCPT")[2]


def test_an_upgrade_ends_with_the_server_running_again(alone):
    install, *lines = PAGE.commands("Upgrading")
    assert install == "/srv/lamson-env/bin/pip install --upgrade lamson"
    before = alone.pid()
    # The tests of a fresh project are for its own handler.
    settings = f"{PROJECT}/config/settings.py"
    alone.machine.run(f"cp {settings} /tmp/ours && cp {PROJECT}/config.original/settings.py {settings}")
    directory, tests, restart = lines
    alone.do(directory, tests)
    alone.machine.run(f"cp /tmp/ours {settings}")
    alone.do(restart)
    assert alone.pid() not in (0, before)
    alone.send(to="robot@example.com")
    assert len(alone.mails("run/taken-robot")) == 1


def test_queues_can_be_looked_at(alone):
    alone.send(to="robot@example.com")
    looks = [line for line in PAGE.commands("Before you tell the world") if "lamson queue" in line]
    assert len(looks) == 2
    alone.do(*looks)
