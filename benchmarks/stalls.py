"""What large messages and many clients do to one server process: how long others wait, and how much memory it takes.

    python benchmarks/stalls.py [--rounds 3] [--scale 1.0]

Lamson's server is a generated project as `lamson start` runs it, with a handler that pushes every message into a queue
on the disk. Stock aiosmtpd throws its messages away.

* While ten clients send 20 MB each, all at once, another one says NOOP, waits for the answer, and says it again 5 ms
  later. `smtp-source` (Debian's package postfix) sends.
* A thousand clients connect, say EHLO, and stay. The memory of the process is what is its own (RSS without what it maps
  from files), before and after.
* One message of 50 MB is sent. The most memory that the process has had meanwhile (VmHWM) is compared with before.

`--scale 0.1` makes the messages smaller and the clients fewer.
"""

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers
from frame import figure, ratio

MEGABYTE = 1 << 20
PAUSE = 0.005  # seconds between two NOOPs

# What `lamson start` does, without leaving the terminal.
LAMSON = """
from lamson.serving import serve
from lamson.utils import import_settings
serve(lambda: import_settings(True), become=lambda: None, ready=lambda where: print(where, flush=True))
"""
AIOSMTPD = """
import asyncio
from aiosmtpd.smtp import SMTP
from wire import Sink
async def serve():
    loop = asyncio.get_running_loop()
    make = lambda: SMTP(Sink(), hostname="localhost", data_size_limit=1 << 30, loop=loop)
    server = await loop.create_server(make, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(serve())
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def lamson():
    """A project whose handler queues every message; yields its port and its process's number."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lamson", "gen", "-project", "project"]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        project = Path(folder) / "project"
        settings = project / "config/settings.py"
        limits = f'"port": {port}, "size_limit": 0, "connection_limit": 0'
        text = re.sub(r'"port": 8823\b', limits, settings.read_text())
        settings.write_text(text.replace("app.handlers.sample", "lamson.handlers.queue"))
        with running(LAMSON, cwd=project, env=environment) as server:
            server.stdout.readline()  # where it listens
            yield port, server.pid


@contextlib.contextmanager
def aiosmtpd():
    """Stock aiosmtpd; yields its port and its process's number."""
    with running(AIOSMTPD, cwd=Path(__file__).parent) as server:
        yield int(server.stdout.readline()), server.pid


@contextlib.contextmanager
def running(code, **options):
    """A process with this code, ended by SIGTERM."""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)
    try:
        yield server
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


class Client:
    """A connection that was greeted."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.answer()
        self.say(b"EHLO client.example.com")

    def answer(self):
        text = b""
        while not re.search(rb"(?m)^\d{3} .*\r\n\Z", text):
            more = self.socket.recv(4096)
            if not more:
                raise SystemExit(f"the server has closed the connection after {text!r}")
            text += more

    def say(self, line):
        self.socket.sendall(line + b"\r\n")
        self.answer()

    def close(self):
        self.socket.close()


def send(port, messages, size):
    """Send so many messages at once with smtp-source. Returns the process."""
    command = ["smtp-source", "-s", str(messages), "-m", str(messages), "-l", str(size)]
    return subprocess.Popen([*command, "-f", "a@example.org", "-t", "b@example.com", f"127.0.0.1:{port}"])


def answered_in(port, messages, size):
    """How long each NOOP took, in seconds, while messages came in."""
    client, times = Client(port), []
    sender = send(port, messages, size)
    while sender.poll() is None:
        start = time.perf_counter()
        client.say(b"NOOP")
        times.append(time.perf_counter() - start)
        time.sleep(PAUSE)
    client.close()
    if sender.returncode:
        raise SystemExit(f"smtp-source ended with {sender.returncode}")
    return times


def percentile(times, share):
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def status(pid, field):
    """A figure of a process, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024


def idle(port, pid, clients):
    """Bytes of memory for each connection that does nothing."""
    for client in [Client(port) for _ in range(10)]:  # what a first time takes is not theirs
        client.close()
    before = status(pid, "RssAnon")
    connected = [Client(port) for _ in range(clients)]
    after = status(pid, "RssAnon")
    for client in connected:
        client.close()
    return (after - before) / clients


def peak(pid, port, size):
    """The most bytes that the process has taken for one message."""
    send(port, 1, 1000).wait()
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # what is there now counts as the most
    before = status(pid, "VmRSS")
    if send(port, 1, size).wait():
        raise SystemExit("the message was not taken")
    return status(pid, "VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    os.environ["PATH"] += peers.SYSTEM
    large, largest = int(20 * MEGABYTE * options.scale), int(50 * MEGABYTE * options.scale)
    clients = int(1000 * options.scale)
    times = {"lamson": [], "aiosmtpd": []}
    with lamson() as (port, _), aiosmtpd() as (their_port, _):
        for _ in range(options.rounds):
            times["lamson"] += answered_in(port, 10, large)
            times["aiosmtpd"] += answered_in(their_port, 10, large)
    # In fresh processes: what large messages have left behind would serve for what comes after them.
    with lamson() as (port, pid), aiosmtpd() as (their_port, their_pid):
        ours, theirs = idle(port, pid, clients), idle(their_port, their_pid, clients)
        most, their_most = peak(pid, port, largest), peak(their_pid, their_port, largest)
    for name, found in times.items():
        figures = (f"{1000 * percentile(found, share):9.1f}" for share in (0.5, 0.9, 0.99, 1))
        print(f"{name:10} {len(found):6} NOOPs, ms at 50, 90, 99, 100%:", *figures)
    ours_99, theirs_99 = (1000 * percentile(found, 0.99) for found in times.values())
    what = f"NOOP while ten messages of {large / MEGABYTE:.0f} MB come in, 99th percentile"
    figure(what, ours_99, "ms", "<= 50")
    ratio(what, ours_99, "stock aiosmtpd", theirs_99, unit="ms")
    figure(f"memory for each of {clients:,} idle connections", ours / 1024, "KB", "<= 30")
    ratio(f"memory for each of {clients:,} idle connections", ours / 1024, "stock aiosmtpd", theirs / 1024, unit="KB")
    what = f"memory for a message of {largest / MEGABYTE:.0f} MB, in its sizes"
    figure(f"{what}, queued", most / largest, "", "<= 3")
    ratio(what, most / largest, "stock aiosmtpd, thrown away", their_most / largest, unit="")


if __name__ == "__main__":
    main()
