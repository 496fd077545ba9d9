"""Messages a second on the wire: Lamson's protocol beside stock aiosmtpd, both of which throw the messages away.

    python benchmarks/wire.py [--rounds 3] [--scale 1.0] [--salmon PYTHON]

`smtp-source` of Debian's package postfix is the client. Each server is a process of its own; they take turns, and the
best round of each counts. `--scale 0.1` sends a tenth of the messages. PYTHON is an interpreter with the package
salmon-mail, whose server routes each message to a handler; it is asked for one session with new connections only.

What a client measures depends on how busy the machine is with other things, the client among them. So the time that
the server had a processor for is told as well: messages a second of that.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import peers
from frame import missing, ratio
from whole import salmon

FIRST = "1 KB, 1 session, new connections"

# name: (sessions, messages, further options of smtp-source, what is wanted of the ratio)
CASES = {
    FIRST: (1, 2000, ["-l", "1024"], ""),
    "1 KB, 20 sessions, new connections": (20, 6000, ["-l", "1024"], ">= 3"),
    "1 KB, 20 sessions, connections kept": (20, 20000, ["-l", "1024", "-d"], ">= 4"),
    "1 MB, 2 sessions, connections kept": (2, 300, ["-l", "1048576", "-d"], ">= 9"),
}


class Sink:
    """Takes every message and forgets it."""

    async def handle_DATA(self, server, session, envelope):
        return "250 OK"


def lamson_factory(loop):
    from lamson.limits import Limits
    from lamson.protocol import SMTPProtocol

    limits = Limits(message_limit=0, connection_limit=0)
    return SMTPProtocol(Sink(), limits, hostname="localhost", ident="Lamson", loop=loop).fork


def aiosmtpd_factory(loop):
    from aiosmtpd.smtp import SMTP

    sink = Sink()
    return lambda: SMTP(sink, hostname="localhost", enable_SMTPUTF8=True, loop=loop)


def serve(name):
    """Serve on a free port, which is printed, until standard input is closed."""
    if name == "lamson":
        import uvloop

        loop, make = uvloop.new_event_loop(), lamson_factory
    else:
        loop, make = asyncio.new_event_loop(), aiosmtpd_factory
    asyncio.set_event_loop(loop)
    server = loop.run_until_complete(loop.create_server(make(loop), "127.0.0.1", 0, backlog=1024))
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.add_reader(sys.stdin.fileno(), loop.stop)
    loop.run_forever()


def processor_time(pid):
    """How long the process had a processor for, in seconds."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def send(port, case, scale):
    """Send the messages of a case. Returns how many there were, and how many seconds it took."""
    sessions, messages, options, _ = CASES[case]
    messages = max(sessions, int(messages * scale))
    command = ["smtp-source", "-s", str(sessions), "-m", str(messages), *options]
    start = time.perf_counter()
    subprocess.run([*command, "-f", "a@example.com", "-t", "b@example.com", f"127.0.0.1:{port}"], check=True)
    return messages, time.perf_counter() - start


def measure(port, pid, case, scale):
    """Messages of one run: for each second, and for each second that the server had a processor."""
    before = processor_time(pid)
    messages, seconds = send(port, case, scale)
    return messages / seconds, messages / (processor_time(pid) - before)


@contextlib.contextmanager
def served(name):
    """A server of `lamson` or `aiosmtpd`; yields its port and its process's number."""
    command = [sys.executable, __file__, "--serve", name]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        yield port, server.pid
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--case", help="only the cases with this in their name", default="")
    parser.add_argument("--salmon", metavar="PYTHON", help="an interpreter that has Salmon")
    parser.add_argument("--serve", choices=["lamson", "aiosmtpd"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    os.environ["PATH"] += peers.SYSTEM
    with contextlib.ExitStack() as running:
        servers = {name: running.enter_context(served(name)) for name in ("lamson", "aiosmtpd")}
        for case in CASES:
            if options.case not in case:
                continue
            rounds = {name: [] for name in servers}
            for _ in range(options.rounds):
                for name, (port, pid) in servers.items():
                    rounds[name].append(measure(port, pid, case, options.scale))
            (ours, ours_busy), (theirs, theirs_busy) = (map(max, zip(*each, strict=True)) for each in rounds.values())
            ratio(case, ours, "stock aiosmtpd", theirs, CASES[case][3])
            ratio(f"{case}, by processor time", ours_busy, "stock aiosmtpd", theirs_busy)
        if options.salmon:
            ports = {"lamson": servers["lamson"][0], "salmon": running.enter_context(salmon(options.salmon))}
            best = dict.fromkeys(ports, 0.0)
            for _ in range(options.rounds):
                for name, port in ports.items():
                    messages, seconds = send(port, FIRST, options.scale)
                    best[name] = max(best[name], messages / seconds)
            ratio(FIRST, best["lamson"], "Salmon", best["salmon"], ">= 1")
    if not options.salmon:
        missing(f"{FIRST}, beside Salmon", "it was not named")


if __name__ == "__main__":
    main()
