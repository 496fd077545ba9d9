"""Counts the messages a second that one `Relay` sends, next to a new smtplib connection for each.

    python benchmarks/relay.py [--messages 1000] [--size 1024] [--rounds 5]

The other end is Postfix's smtp-sink, which takes every message and throws it away (Debian: apt install postfix). Both
take turns on the same machine, and the median of the rounds of each counts. The smtplib side is what a plain script
does: connect, EHLO, `sendmail`, QUIT. In the second pair both log a line at INFO to a file for each message, in the
third they also write each message: a MailResponse, and an `email.message.EmailMessage`.
"""

import argparse
import email.utils
import logging
import os
import smtplib
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

import peers
from frame import missing, ratio
from lamson.mail import MailRequest, MailResponse
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


def forward(relay: Relay, content: bytes) -> None:
    relay.deliver(MailRequest("peer", SENDER, RECIPIENT, content))


def forward_by_smtplib(client: smtplib.SMTP, content: bytes) -> None:
    client.sendmail(SENDER, [RECIPIENT], content)


def write(relay: Relay, content: bytes) -> None:
    relay.deliver(MailResponse(To=RECIPIENT, From=SENDER, Subject="A benchmark", Body=content.decode()))


def write_for_smtplib(client: smtplib.SMTP, content: bytes) -> None:
    message = EmailMessage()
    message["To"], message["From"], message["Subject"] = RECIPIENT, SENDER, "A benchmark"
    message["Date"], message["Message-ID"] = email.utils.formatdate(), email.utils.make_msgid(domain="example.com")
    message.set_content(content.decode())
    client.send_message(message)


def with_relay(port: int, deliver: Callable[[Relay, bytes], None], content: bytes, count: int) -> float:
    relay = Relay("127.0.0.1", port)
    start = time.perf_counter()
    for _ in range(count):
        deliver(relay, content)
    spent = time.perf_counter() - start
    relay.close()
    return count / spent


def with_smtplib(port: int, deliver: Callable[[smtplib.SMTP, bytes], None], content: bytes, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        with smtplib.SMTP("127.0.0.1", port) as client:
            deliver(client, content)
        log.info("sent: from <%s> to %s", SENDER, RECIPIENT)
    return count / (time.perf_counter() - start)


def measure(port: int, what: str, ours: Any, theirs: Any, options: argparse.Namespace, wanted: str = "") -> None:
    content, relay, new = message(options.size), [], []
    for _ in range(options.rounds):
        relay.append(with_relay(port, ours, content, options.messages))
        new.append(with_smtplib(port, theirs, content, options.messages))
    what = f"{what}, {options.messages:,} messages of {options.size:,} bytes through one Relay"
    ratio(what, statistics.median(relay), "a new smtplib connection each", statistics.median(new), wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1024, help="bytes")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    try:
        sink, port = start_sink()
    except peers.Missing as error:
        missing("all of it", str(error))
        return
    try:
        measure(port, "passed on", forward, forward_by_smtplib, options, ">= 5")
        with tempfile.NamedTemporaryFile() as file:
            form = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
            logging.basicConfig(filename=file.name, level=logging.INFO, format=form)
            measure(port, "passed on, both logging", forward, forward_by_smtplib, options)
            measure(port, "written anew, both logging", write, write_for_smtplib, options)
    finally:
        sink.terminate()
        sink.wait()


if __name__ == "__main__":
    main()
