"""Command lines for tests: they are run as real processes, in the current folder, which mostly is a new project's."""

import re
import subprocess
import sys
from pathlib import Path
from smtplib import SMTP

from lamson.pidfile import find_server

# As the console command is, and unlike -m alone, -P leaves the current folder out of the import path.
LAMSON = [sys.executable, "-P", "-m", "lamson"]


def run(*argv, code=0, **options):
    """Run one command line, check its exit code, and return the finished process."""
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    done = subprocess.run([*LAMSON, *argv], **options)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in (done.stderr if isinstance(done.stderr, str) else done.stderr.decode())
    return done


def refused(*argv, code=1, **options):
    """Run a command line that is refused, and return the one line that says why."""
    lines = run(*argv, code=code, **options).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lamson"), lines
    return lines[0]


def make_project(folder, monkeypatch):
    assert run("gen", "-project", "mymailserver").returncode == 0
    monkeypatch.chdir(folder / "mymailserver")
    set_port(0)
    return folder / "mymailserver"


def kill_servers(folder):
    for path in folder.rglob("*.pid"):
        server = find_server(str(path))
        if server is not None:
            server.signal(KILL=True)
            assert server.wait(10)


def set_port(port, name="receiver_config"):
    path = Path("config/settings.py")
    text, count = re.subn(rf"(?m)^({name} = .*['\"]port['\"]: )\d+", rf"\g<1>{port}", path.read_text())
    assert count == 1
    path.write_text(text)


def start(*argv, command="start"):
    """Start a server and return its port and pid."""
    said = run(command, *argv).stdout
    found = re.search(r"listens on \S+:(\d+), pid (\d+)\.$", said)
    assert found, said
    return int(found[1]), int(found[2])


def handler(text):
    """Make `text` the body of the project's only function, which runs for every mail."""
    body = "".join(f"    {line}\n" for line in text.splitlines())
    Path("app/handlers/sample.py").write_text(
        "from lamson.routing import route, stateless\n\n"
        '@route("(address)@(host)", address=".+")\n@stateless\n'
        f"def START(message, address=None, host=None):\n{body}"
    )


def deliver(port, body="Hi there.", to="test@test.com"):
    with SMTP("127.0.0.1", port, timeout=60) as client:
        client.sendmail("me@mydomain.com", [to], f"Subject: hello\r\n\r\n{body}\r\n")
