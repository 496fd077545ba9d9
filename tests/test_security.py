"""docs/security.md: its limits are those there are, and a generated project keeps to them with real clients."""

import dataclasses
import re
import smtplib
import ssl
import subprocess
from pathlib import Path

import pytest

from brokers import free_ports
from lamson.limits import Limits
from processes import Shell, eventually, needs

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs/security.md").read_text()
UNITS = {"MiB": 1 << 20, "KiB": 1 << 10}


def test_the_table_has_every_limit_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    fields = {field.name: field.default for field in dataclasses.fields(Limits)}
    assert rows.keys() == {name for name in fields if "_limit" in name or name.endswith("_timeout")}
    assert rows.pop("connection_limit_per_address") == str(Limits().connections_allowed("192.0.2.1"))
    for name, text in rows.items():
        number, _, unit = text.partition(" ")
        assert int(number) * UNITS.get(unit, 1) == fields[name], name


def test_the_page_tells_of_every_setting():
    for field in dataclasses.fields(Limits):
        assert re.search(rf"[`\"]{field.name}[`\"]", PAGE), field.name


@pytest.fixture
def project(tmp_path):
    """A generated project with TLS and logins; its port, its folder and the shell it runs in."""
    (port,) = free_ports(1)
    with Shell(tmp_path) as shell:
        shell.run("lamson gen -project mymailserver")
        shell.run("cd mymailserver")
        (shell.folder / "cert.pem").write_bytes((HERE / "certs/one.pem").read_bytes())
        settings = shell.folder / "config/settings.py"
        more = '"certificate": "cert.pem", "auth": lambda user, password: (user, password) == ("zed", "secret")'
        text = settings.read_text().replace('"port": 8823', f'"port": {port}, {more}')
        settings.write_text(text)
        shell.run("lamson start")
        yield port, shell
        shell.run("lamson stop")


def served_certificate(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP("localhost", port, timeout=20) as client:
        client.starttls(context=context)
        return ssl.DER_cert_to_PEM_cert(client.sock.getpeercert(True))


def test_a_generated_project_on_the_internet(project):
    port, shell = project
    swaks = f"{needs('swaks')} --server localhost:{port} --from a@example.com --helo client.example.com"
    said = shell.run(f"{swaks} --to any@test.com --tls --quit-after RCPT")
    assert "250-SIZE 26214400" in said and "250-STARTTLS" in said
    assert "AUTH" not in said.partition("STARTTLS\n")[0], "no logins in the clear"
    assert "250-AUTH LOGIN PLAIN" in said

    # 24 is swaks' code for a recipient that was refused, 28 that for a login that was.
    assert "550 5.1.1" in shell.run(f"{swaks} --to any@elsewhere.example --quit-after RCPT", code=24)
    shell.run(f"{swaks} --to any@test.com --tls --auth PLAIN --auth-user zed --auth-password secret --quit-after RCPT")
    wrong = f"{swaks} --to any@test.com --tls --auth LOGIN --auth-user zed --auth-password guessed --quit-after RCPT"
    assert "535 5.7.8" in shell.run(wrong, code=28)
    log = eventually(lambda: (shell.folder / "logs/lamson.log").read_text(), "a log")
    assert "logs in as <zed>" in log and "guessed" not in log and "Z3Vlc3NlZA" not in log

    with smtplib.SMTP("localhost", port, timeout=20) as client:
        client.ehlo()
        assert client.docmd("MAIL FROM:<a@example.com> SIZE=26214401")[0] == 552
        assert client.docmd("MAIL FROM:<a@example.com> SIZE=26214400")[0] == 250
        replies = [client.docmd(f"RCPT TO:<a{number}@test.com>")[0] for number in range(101)]
        assert replies == [250] * 100 + [452]


def test_a_new_certificate_comes_by_sighup_and_drops_nobody(project):
    port, shell = project
    needs("openssl")
    with smtplib.SMTP("localhost", port, timeout=20) as client:
        before = served_certificate(port)
        (shell.folder / "cert.pem").write_bytes((HERE / "certs/two.pem").read_bytes())
        pid = (shell.folder / "run/smtp.pid").read_text().split()[0]
        shell.run(f"kill -HUP {pid}")
        eventually(lambda: served_certificate(port) != before, "the new certificate")
        assert client.noop()[0] == 250, "who was there is there"
        (shell.folder / "cert.pem").write_text("this is no certificate")
        shell.run(f"kill -HUP {pid}")
        log = shell.folder / "logs/lamson.log"
        eventually(lambda: "the old certificate stays" in log.read_text(), log.read_text)
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"localhost:{port}", "-starttls", "smtp", "-quiet"],
        input="QUIT\r\n",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "221 Bye\n" and "CN = two.test" in done.stderr, done


def test_clients_leave_open_files_to_the_handlers(project):
    _, shell = project
    shell.run("lamson stop")
    for hard, soft, expected in ((3000, 64, "2000"), (3000, 2500, "2500"), (500, 64, "500")):
        shell.run(f"ulimit -Sn {soft}; ulimit -Hn {hard}; lamson start")
        pid = (shell.folder / "run/smtp.pid").read_text().split()[0]
        found = re.search(r"Max open files +(\d+)", Path(f"/proc/{pid}/limits").read_text())
        assert found and found[1] == expected
        shell.run("lamson stop")
    log = (shell.folder / "logs/lamson.log").read_text()
    assert log.count("The system allows 500 open files, too few for a connection_limit of 1000. It is 250.") == 1
    shell.run("lamson start")
