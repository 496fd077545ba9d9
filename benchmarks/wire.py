"""Messages a second on the wire: Lamson's protocol beside stock aiosmtpd, both of which throw the messages away.

    python benchmarks/wire.py [--rounds 3] [--scale 1.0]

`smtp-source` of Debian's package postfix is the client. Each server is a process of its own; they take turns, and the
best round of each counts. `--scale 0.1` sends a tenth of the messages.
"""

import argparse
import asyncio
import socket
import subprocess
import sys
import time

from frame import ratio

# name: (sessions, messages, further options of smtp-source, what is wanted of the ratio)
CASES = {
    "1 KB, 1 session, new connections": (1, 2000, ["-l", "1024"], ""),
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


def measure(port, case, scale):
    """Messages a second of one run of smtp-source."""
    sessions, messages, options, _ = CASES[case]
    messages = max(sessions, int(messages * scale))
    command = ["smtp-source", "-s", str(sessions), "-m", str(messages), *options]
    start = time.perf_counter()
    subprocess.run([*command, "-f", "a@example.com", "-t", "b@example.com", f"127.0.0.1:{port}"], check=True)
    return messages / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--case", help="only the cases with this in their name", default="")
    parser.add_argument("--serve", choices=["lamson", "aiosmtpd"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    servers, ports = {}, {}
    try:
        for name in ("lamson", "aiosmtpd"):
            servers[name] = subprocess.Popen(
                [sys.executable, __file__, "--serve", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            ports[name] = int(servers[name].stdout.readline())
            socket.create_connection(("127.0.0.1", ports[name]), timeout=5).close()
        for case in CASES:
            if options.case not in case:
                continue
            best = dict.fromkeys(servers, 0.0)
            for _ in range(options.rounds):
                for name, port in ports.items():
                    best[name] = max(best[name], measure(port, case, options.scale))
            ours, stock = best["lamson"], best["aiosmtpd"]
            ratio(case, ours, "stock aiosmtpd", stock, CASES[case][3])
    finally:
        for server in servers.values():
            server.stdin.close()
            server.wait(10)


if __name__ == "__main__":
    main()
