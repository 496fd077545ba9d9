"""Counts the messages a second that one `Relay` sends, next to a new smtplib connection for each.

    python benchmarks/relay.py [--messages 1000] [--size 1024] [--rounds 5]

The other end is Postfix's smtp-sink, which takes every message and throws it away (Debian: apt install postfix). Both
take turns on the same machine, and the median of the rounds of each counts. The smtplib side is what a plain script
does: connect, EHLO, `sendmail`, QUIT. In the second pair both log a line at INFO to a file for each message.
"""

import argparse
import logging
import os
import smtplib
import socket
import statistics
import subprocess
import tempfile
import time

import peers
from frame import missing, ratio
from lamson.mail import MailRequest
from lamson.relay import Relay

log = logging.getLogger("benchmark")

SENDER, RECIPIENT = "me@example.com", "you@example.org"


def message(size: int) -> bytes:
    headers = (
        f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nMessage-ID: <1@example.com>\r\nSubject: A benchmark\r\n\r\n".encode()
    )
    line = b"x" * 70 + b"\r\n"
    return (headers + line * (size // len(line) + 1))[: size - 2] + b"\r\n"


def start_sink() -> tuple[subprocess.Popen, int]:
    program = peers.program("smtp-sink")
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
        log.info("sent: from <%s> to %s", SENDER, RECIPIENT)
    return count / (time.perf_counter() - start)


def measure(port: int, content: bytes, options: argparse.Namespace) -> tuple[float, float]:
    """The median rates of one relay and of new connections."""
    relay, new = [], []
    for _ in range(options.rounds):
        relay.append(with_relay(port, content, options.messages))
        new.append(with_smtplib(port, content, options.messages))
    return statistics.median(relay), statistics.median(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1024, help="bytes")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    content = message(options.size)
    try:
        sink, port = start_sink()
    except peers.Missing as error:
        missing("one Relay", str(error))
        return
    what, peer = f"one Relay, {options.messages:,} messages of {options.size:,} bytes", "a new smtplib connection each"
    try:
        relay, new = measure(port, content, options)
        ratio(what, relay, peer, new, ">= 5")
        with tempfile.NamedTemporaryFile() as file:
            form = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
            logging.basicConfig(filename=file.name, level=logging.INFO, format=form)
            relay, new = measure(port, content, options)
        ratio(f"{what}, both logging", relay, peer, new)
    finally:
        sink.terminate()
        sink.wait()


if __name__ == "__main__":
    main()
