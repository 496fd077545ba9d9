"""Counts the messages a second that one `Relay` sends, next to a new smtplib connection for each.

    python benchmarks/relay.py [--messages 1000] [--size 1024] [--rounds 5]

The other end is Postfix's smtp-sink, which takes every message and throws it away (Debian: apt install postfix). What
is printed is the median of the rounds of each, and their ratio: both take turns on the same machine.
"""

import argparse
import os
import shutil
import smtplib
import socket
import statistics
import subprocess
import sys
import time

from lamson.mail import MailRequest
from lamson.relay import Relay

SENDER, RECIPIENT = "me@example.com", "you@example.org"


def message(size: int) -> bytes:
    headers = (
        f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nMessage-ID: <1@example.com>\r\nSubject: A benchmark\r\n\r\n".encode()
    )
    line = b"x" * 70 + b"\r\n"
    return (headers + line * (size // len(line) + 1))[: size - 2] + b"\r\n"


def start_sink() -> tuple[subprocess.Popen, int]:
    program = shutil.which("smtp-sink", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        sys.exit("The program smtp-sink is missing. On Debian: apt install postfix")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    sink = subprocess.Popen([program, *user, f"127.0.0.1:{port}", "1000"])
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return sink, port
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                sink.terminate()
                raise
            time.sleep(0.05)


def with_relay(port: int, content: bytes, count: int) -> float:
    relay = Relay("127.0.0.1", port)
    start = time.perf_counter()
    for _ in range(count):
        relay.deliver(MailRequest("peer", SENDER, RECIPIENT, content))
    spent = time.perf_counter() - start
    relay.close()
    return count / spent


def with_smtplib(port: int, content: bytes, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.sendmail(SENDER, [RECIPIENT], content)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1024, help="bytes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    content = message(options.size)
    sink, port = start_sink()
    try:
        rates: dict = {with_relay: [], with_smtplib: []}
        for _ in range(options.rounds):
            for measure, found in rates.items():
                found.append(measure(port, content, options.messages))
    finally:
        sink.terminate()
        sink.wait()
    relay, new = (statistics.median(found) for found in rates.values())
    print(f"one Relay                       {relay:7.0f} messages a second")
    print(f"a new smtplib connection each   {new:7.0f} messages a second")
    print(f"ratio                           {relay / new:7.1f}")


if __name__ == "__main__":
    main()
