"""`relay_config` with the host None, as a process: a project that sends to the domains' own mail servers."""

import smtplib
import socket

import pytest

from lamson.hosts import is_one_of
from lamson.queue import Queue
from processes import Shell, eventually
from sink import BROKEN, SILENCE, Host, NameServer

HANDLER = '''
"""Passes mail on to whom its header X-To names, and mail to home@test.com to where its domain's mail goes."""
from config.settings import relay
from lamson.routing import nolocking, route, stateless


@route("send@(host)")
@stateless
def START(message, host=None):
    relay.deliver(message, To=message["X-To"].split())


@route("home@(host)")
@stateless
def HOME(message, host=None):
    relay.deliver(message)
'''
BOOT = """
import dns.resolver
from lamson.hosts import MailHosts
names = dns.resolver.Resolver(configure=False)
names.nameservers, names.port = ["127.0.0.1"], {port}
settings.relay.hosts = MailHosts(names)
"""
OURS = "127.0.0.9"  # where the project takes mail, at the port to which it sends


class Project:
    """Generated, with a host None, a name service and a mail server of the world's at 127.0.0.1."""

    def __init__(self, shell, names, world):
        self.shell, self.names, self.world = shell, names, world
        shell.run("lamson gen -project mine")
        shell.run("cd mine")
        self.edit("config/settings.py", '"localhost", "port": 8825', f'None, "port": {world.port}')
        self.edit("config/settings.py", '"localhost", "port": 8823', f'"{OURS}", "port": {world.port}')
        boot = shell.folder / "config/boot.py"
        boot.write_text(boot.read_text() + BOOT.format(port=names.resolver().port))
        (shell.folder / "app/handlers/sample.py").write_text(HANDLER)

    def edit(self, name, old, new):
        path = self.shell.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def send(self, *recipients, to="send@test.com"):
        """One mail; returns its bytes once the server has said 250."""
        content = f"From: zed@example.com\r\nX-To: {' '.join(recipients)}\r\n\r\nHello\r\n".encode()
        with smtplib.SMTP(OURS, self.world.port, timeout=60) as client:
            client.sendmail("zed@example.com", [to], content)
        return content

    def kept(self, name):
        """recipients -> why, of all that is in a queue"""
        return {tuple(entry.recipients): entry.reason for entry in self.queue(name).entries()}

    def attempted(self):
        """Waits until all that was handed over has been tried: what waits for another time has a reason."""
        eventually(lambda: all(self.kept("outgoing").values()), lambda: str(self.kept("outgoing")))

    def queue(self, name):
        return Queue(self.shell.folder / "run" / name)


@pytest.fixture
def project(tmp_path):
    with Shell(tmp_path) as shell, NameServer() as names, Host() as world:
        names.zone["good.test", "MX"] = ["20 mx.test.", "10 gone.test."]
        names.zone["gone.test", "A"] = ["127.0.0.2"]  # nobody listens there
        names.zone["mx.test", "A"] = ["127.0.0.1"]
        names.zone["plain.test", "A"] = ["127.0.0.1"]
        names.zone["null.test", "MX"] = ["0 ."]
        names.zone["broken.test", "MX"] = BROKEN
        names.zone["test.com", "MX"] = ["10 gone.test.", "20 ours.test.", "30 mx.test."]
        names.zone["ours.test", "A"] = [OURS]
        project = Project(shell, names, world)
        yield project
        shell.run("lamson stop")


def test_mail_for_the_world_goes_to_each_domains_own_servers(project):
    project.shell.run("lamson start")
    everybody = ["a@good.test", "b@good.test", "c@plain.test", "d@null.test", "e@missing.test", "f@broken.test"]
    content = project.send(*everybody)
    project.attempted()
    # Two of one domain in one transaction, past a host that is not there; and a domain without MX.
    got = [(sender, sorted(recipients), text) for sender, recipients, text in project.world.got]
    both = ["a@good.test", "b@good.test"]
    assert sorted(got) == [("zed@example.com", each, content) for each in (both, ["c@plain.test"])]
    assert project.kept("undeliverable") == {
        ("d@null.test",): "null.test takes no mail",
        ("e@missing.test",): "there is no domain missing.test",
    }
    (waiting,) = project.kept("outgoing").items()
    assert waiting[0] == ("f@broken.test",) and "cannot find out which host takes mail for broken.test" in waiting[1]

    project.names.zone["broken.test", "MX"] = ["10 mx.test."]
    project.shell.run("lamson stop")
    (path,) = project.queue("outgoing").mbox.files()
    project.shell.run(f"touch -d now '{path}'")
    project.shell.run("lamson start")
    eventually(lambda: not project.queue("outgoing").count(), "that the name service was asked again")
    assert project.world.got[2:] == [("zed@example.com", ["f@broken.test"], content)]


def test_strangers_with_slow_servers_hold_up_nobody(project):
    project.names.zone["slow.test", "MX"] = ["10 slow.test."]
    project.names.zone["slow.test", "A"] = ["127.0.0.3"]
    project.shell.run("lamson start")
    with Host().listen(project.world.port, "127.0.0.3") as slow:
        slow.answers[""] = SILENCE
        for number in range(
            5
        ):  # the first one would wait for the greeting for two minutes, and hold the handlers' lock
            project.send(f"a{number}@slow.test")
        eventually(lambda: len(slow.talks) == 5, "that all of them are being tried")
        content = project.send("b@good.test")
        eventually(lambda: project.world.got, "the mail for others")
    assert project.world.got == [("zed@example.com", ["b@good.test"], content)]
    assert len(project.kept("outgoing")) == 5, "they wait on disk"


def test_mail_whose_way_leads_back_here_does_not_take_it(project):
    project.shell.run("lamson start")
    project.send(to="home@test.com")  # a better host is not there now, and may be later; the worse one is not asked
    project.attempted()
    (waiting,) = project.kept("outgoing").items()
    assert waiting == (("home@test.com",), "cannot send to test.com: Connection refused")
    project.shell.run("lamson stop")
    project.names.zone["test.com", "MX"] = ["10 ours.test."]
    project.shell.run("lamson start")
    project.send(to="home@test.com")
    project.attempted()
    reason = "the mail for test.com would come back to this server"
    assert project.kept("undeliverable") == {("home@test.com",): reason}
    assert not project.world.got
    log = (project.shell.folder / "logs/lamson.log").read_text()
    assert log.count("received: ") == 2, "and it did not come a second time"


def test_a_relay_that_is_the_server_itself_keeps_it_from_starting(project):
    port = project.world.port
    relay = f'None, "port": {port}, "queue"'
    for where in (OURS, "localhost"):
        if where == "localhost":  # the server takes mail at all addresses there are
            project.world.stop()
            project.edit("config/settings.py", f'"{OURS}", "port": {port}, "unknown', f'"", "port": {port}, "unknown')
        project.edit("config/settings.py", relay, relay.replace("None", f'"{where}"'))
        said = project.shell.run("lamson start", code=1)
        assert f"The relay sends to {where}:{port}, where this server itself takes mail." in said
        project.edit("config/settings.py", relay.replace("None", f'"{where}"'), relay)
    project.shell.run("lamson start")


@pytest.mark.parametrize(
    ("host", "places", "expected"),
    [
        ("127.0.0.1", [("127.0.0.1", 25)], True),
        ("localhost", [("127.0.0.1", 25)], True),
        ("127.0.0.1", [("127.0.0.1", 26)], False),
        ("127.0.0.2", [("127.0.0.1", 25)], False),
        ("127.0.0.2", [("0.0.0.0", 25)], True),
        ("192.0.2.1", [("0.0.0.0", 25)], False),
        ("127.0.0.2", [("::", 25)], False),
        ("no.such.host.invalid", [("0.0.0.0", 25)], False),
        pytest.param(
            "::1",
            [("::", 25)],
            True,
            marks=pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here"),
        ),
        ("127.0.0.1", [], False),
    ],
)
def test_a_place_is_one_of_ours(host, places, expected):
    assert is_one_of(host, 25, places) is expected
