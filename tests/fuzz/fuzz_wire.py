"""Throws random bytes and random conversations at a real server. Nothing may be left of them when they are over.

    python tests/fuzz/fuzz_wire.py [--seconds 600] [--seed N]

The server is an SMTPReceiver, an LMTPReceiver, an SMTPReceiver with TLS from the first byte, or one behind a proxy,
with short timeouts and in this process. There are eight clients at a time. They send SMTP that is right, mixed up, cut,
repeated or garbled, in pieces of any size; they start TLS, close their side, break off, or read nothing. Afterwards:

* no connection is left in `connections`, no counter counts one or a byte of a message, and there are as many open
  files as there were;
* the log has no traceback, and nothing of what clients sent stands on a line of its own in it;
* a client that does all right is served as at the beginning, and none has waited longer than the timeouts allow.

`fuzz` returns what happened, in numbers. Same seed, same conversations.
"""

import argparse
import collections
import gc
import logging
import os
import random
import select
import smtplib
import socket
import ssl
import struct
import sys
import threading
import time
from pathlib import Path

from lamson.errors import SMTPError
from lamson.routing import Router, route, stateless
from lamson.server import LMTPReceiver, SMTPReceiver

CERTIFICATE = str(Path(__file__).parent.parent / "certs/one.pem")
CLIENTS = 8
PATIENCE = 20  # seconds: longer than any timeout of the server's, so whoever waits so long waits for ever
LIMITS = {
    "size_limit": 200_000,
    "memory_limit": 250_000,
    "header_size_limit": 20_000,
    "recipient_limit": 5,
    "message_limit": 20,
    "command_limit": 200,
    "connection_limit": 20,
    "command_timeout": 1,
    "message_timeout": 2,
}
LINES = (
    rb"""
EHLO client|HELO client|LHLO client.example.com|EHLO|NOOP|NOOP x|RSET|RSET x|HELP|HELP MAIL|VRFY <a@test.com>
VRFY|EXPN list|QUIT|QUIT now|STARTTLS|STARTTLS x|MAIL|MAIL FROM:<a@example.com>|MAIL FROM:<>|MAIL FROM:<a@b> SIZE=1000
MAIL FROM:<a@b> SIZE=9999999|MAIL FROM:<a@b> BODY=8BITMIME SMTPUTF8|MAIL FROM:<a@b> X=Y|MAIL FROM:<"a b"@example.com>
MAIL FROM:<@relay.example:a@example.com>|RCPT|RCPT TO:<any@test.com>|RCPT TO:<refuse@test.com>|RCPT TO:<later@test.com>
RCPT TO:<fail@test.com>|RCPT TO:<nobody@elsewhere.example>|RCPT TO:<>|RCPT TO:<any@test.com> NOTIFY=NEVER|DATA|DATA x
AUTH PLAIN|AUTH LOGIN|AUTH PLAIN AHplZABzZWNyZXQ=|AUTH PLAIN =|AUTH LOGIN emVk|AUTH CRAM-MD5|c2VjcmV0|*|BDAT 10 LAST
XCLIENT NAME=a|GET / HTTP/1.1|PROXY TCP4 192.0.2.1 192.0.2.2 1 2|
""".strip(b"\n")
    .replace(b"\n", b"|")
    .split(b"|")
)
LINES += [
    b"MAIL FROM:<\xc3\xa9@example.com> SMTPUTF8",
    b"MAIL FROM:<a\0@b>",
    b"\xff\xfe",
    b"\r\n\r\n\0\r\nQUIT\n!\x11\0",
]
LINES += [b"AUTH PLAIN " + b"QUFB" * 5000, b"x" * 3000, b"NOOP " + b"x" * 20_000]
ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b""]
DATA_ENDS = [b"\r\n.\r\n"] * 12 + [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.", b""]
MARK = b"X-Fuzz: "


class Server:
    """One receiver, with the messages that its handlers took."""

    def __init__(self, name):
        self.name = name
        kind = LMTPReceiver if name == "LMTP" else SMTPReceiver
        self.tls = name == "SMTPS"
        self.receiver = kind(
            "127.0.0.1",
            0,
            unknown_recipients="refuse",
            certificate=CERTIFICATE,
            implicit_tls=self.tls,
            auth=lambda user, password: (user, password) == ("zed", "secret"),
            proxy_hosts=["127.0.0.1"] if name == "PROXY" else [],
            **LIMITS,
        )
        self.receiver.start()
        self.port = self.receiver.port


class Client:
    """One connection, and what came of it."""

    def __init__(self, server, rng, number, context):
        self.server = server
        self.rng = rng
        self.number = number
        self.context = context
        self.heard = b""

    def run(self):
        rng = self.rng
        self.sock = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)
        try:
            if self.server.name == "PROXY" and rng.random() < 0.8:
                self.send(self.proxy_header())
            if self.server.tls and rng.random() < 0.9:
                self.shake_hands()
            if rng.random() < 0.1:
                self.send(rng.randbytes(rng.choice([1, 10, 100, 10_000, 300_000])))
            for _ in range(rng.choice([1, 3, 10, 30])):
                self.step()
            self.end()
        except TimeoutError:
            raise  # the server has neither answered nor hung up
        except OSError:
            pass  # whoever garbles hears no more; errors of TLS are of this class, too
        finally:
            self.sock.close()

    def step(self):
        rng = self.rng
        dice = rng.random()
        if dice < 0.5:
            self.send(self.message())
        elif dice < 0.7:
            self.send(b"".join(rng.choice(LINES) + rng.choice(ENDS) for _ in range(rng.choice([1, 2, 5, 20]))))
        elif dice < 0.8:
            self.send(self.garbled(self.message()))
        elif dice < 0.85:
            self.send(rng.randbytes(rng.randrange(1, 2000)))
        elif dice < 0.9 and not isinstance(self.sock, ssl.SSLSocket):
            self.listen(0.05)
            self.send(b"EHLO x\r\nSTARTTLS\r\n" + (b"NOOP\r\n" if rng.random() < 0.3 else b""))
            self.listen(0.05)
            self.shake_hands()
        elif dice < 0.92:
            time.sleep(rng.choice([0, 0.01, 1.5 if rng.random() < 0.05 else 0]))
        else:
            self.listen(0.02)

    def message(self):
        """A whole transaction, pipelined."""
        rng = self.rng
        hello = b"LHLO x" if self.server.name == "LMTP" else rng.choice([b"EHLO x", b"HELO x"])
        recipients = [
            rng.choice([b"any", b"any", b"refuse", b"later", b"fail"]) for _ in range(rng.choice([1, 1, 1, 2, 7]))
        ]
        lines = [
            hello,
            b"MAIL FROM:<fuzz%d@example.com>" % self.number,
            *(b"RCPT TO:<%s@test.com>" % each for each in recipients),
            b"DATA",
            MARK + b"%d" % self.number,
            rng.choice([b"Subject: x", b"Received: x\r\n" * rng.choice([1, 60]) + b"X: y", b"no header at all"]),
            b"",
            rng.choice([b"Hello.", b"..", b".\r", b"\x00\xff", b"x" * rng.choice([10, 70_000, 300_000])]),
        ]
        return b"\r\n".join(lines) + rng.choice(DATA_ENDS)

    def garbled(self, data):
        rng = self.rng
        data = bytearray(data)
        for _ in range(rng.choice([1, 5, 50])):
            at = rng.randrange(len(data) + 1)
            dice = rng.random()
            if dice < 0.3:
                data[at : at + rng.choice([1, 2, 100])] = b""
            elif dice < 0.6:
                data[at:at] = rng.choice([b"\r", b"\n", b"\0", b".", b"\r\n", b"\r\n.\r\n", rng.randbytes(4)])
            elif dice < 0.8:
                data[at : at + 1] = rng.randbytes(1)
            else:
                data[at:at] = data[rng.randrange(len(data) + 1) :][:100]
        return bytes(data)

    def proxy_header(self):
        rng = self.rng
        good = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes([192, 0, 2, 1, 192, 0, 2, 2]) + b"\x00\x01\x00\x02"
        local = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
        text = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"
        header = rng.choice([good, local, text, b"PROXY UNKNOWN\r\n", b"PROXY TCP4 1 2 3 4\r\n"])
        return header if rng.random() < 0.8 else self.garbled(header)

    def send(self, data):
        """In pieces of any size."""
        rng = self.rng
        view = memoryview(data)
        piece = rng.choice([1, 7, 100, 1460, 1 << 20]) if len(data) < 3000 else rng.choice([1460, 1 << 20])
        while view:
            if rng.random() < 0.9:
                self.listen(0)
            size = min(len(view), piece)
            self.sock.sendall(view[:size])
            view = view[size:]

    def listen(self, seconds):
        """Read what there is."""
        deadline = time.monotonic() + seconds
        while True:
            pending = isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()
            ready = pending or select.select([self.sock], [], [], max(0, deadline - time.monotonic()))[0]
            if not ready:
                return
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionError("the server has closed")
            self.heard += data[-10_000:]

    def shake_hands(self):
        dice = self.rng.random()
        if dice < 0.1:
            self.sock.sendall(b"\x16\x03\x01" + self.rng.randbytes(300))
        elif dice < 0.15:
            self.sock.shutdown(socket.SHUT_WR)
        else:
            self.sock = self.context.wrap_socket(self.sock)

    def end(self):
        dice = self.rng.random()
        if dice < 0.3:
            self.sock.sendall(b"QUIT\r\n")
        elif dice < 0.5:
            if isinstance(self.sock, ssl.SSLSocket):
                self.sock = self.sock.unwrap()
            self.sock.shutdown(socket.SHUT_WR)
        elif dice < 0.7:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        elif dice < 0.9:
            return
        # Everybody whom the server does not answer any more is cut off by it, sooner or later.
        while data := self.sock.recv(1 << 16):
            self.heard += data[-10_000:]


class Log(logging.Handler):
    """Keeps what should not be there."""

    def __init__(self):
        super().__init__()
        self.records = 0
        self.wrong = []

    def emit(self, record):
        text = record.getMessage()
        self.records += 1
        expected = record.exc_info and isinstance(record.exc_info[1], HandlerFails)
        if (record.exc_info and not expected) or record.levelno > logging.ERROR or not text.isprintable():
            self.wrong.append(self.format(record))


class HandlerFails(Exception):
    """What a handler raises on purpose."""


def open_files():
    gc.collect()
    # Each handlers' thread keeps one for as long as it lives, and a pool may start one more at any time.
    return sum(1 for number in os.listdir("/proc/self/fd") if not link(number).endswith("/schedstat"))


def link(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:  # closed meanwhile, such as that of this very list
        return ""


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def wait_until_nobody_is_connected(servers, seed):
    wait_until(
        lambda: not any(server.receiver.connections for server in servers),
        lambda: f"seed {seed}: these are left: {[server.receiver.connections for server in servers]}",
    )


def send_one(server):
    """A client that does everything right is served."""
    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.check_hostname = False
    if server.name == "PROXY":
        return
    if server.tls:
        client = smtplib.SMTP_SSL("127.0.0.1", server.port, context=context, timeout=PATIENCE)
    elif server.name == "LMTP":
        client = smtplib.LMTP("127.0.0.1", server.port)
    else:
        client = smtplib.SMTP("127.0.0.1", server.port, timeout=PATIENCE)
    with client:
        client.sendmail("right@example.com", ["any@test.com"], b"Subject: right\r\n\r\nHello.\r\n")


def fuzz(seconds, seed, names=("SMTP", "LMTP", "SMTPS", "PROXY"), connections=None):
    """Run until the time is over, or so many connections were made. Returns counts of what happened."""
    log = Log()
    root = logging.getLogger()
    root.addHandler(log)
    root.setLevel(logging.INFO)
    handled = collections.Counter()
    Router.clear_routes()
    Router.clear_states()
    Router.UNDELIVERABLE_QUEUE = None

    @route("(name)@test.com", name="any|refuse|later|fail")
    @stateless
    def START(message, name):
        handled[name] += 1
        if name == "refuse":
            raise SMTPError(550)
        if name == "later":
            raise SMTPError(451)
        if name == "fail":
            raise HandlerFails

    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.check_hostname = False
    servers = [Server(name) for name in names]
    for server in servers:
        send_one(server)
    wait_until_nobody_is_connected(servers, seed)
    files = open_files()
    failures = []
    counts = collections.Counter()
    deadline = time.monotonic() + seconds
    numbers = iter(range(1, connections + 1 if connections else sys.maxsize))
    lock = threading.Lock()

    def work():
        while time.monotonic() < deadline and not failures:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            rng = random.Random(f"{seed} {number}")
            server = rng.choice(servers)
            client = Client(server, rng, number, context)
            try:
                client.run()
            except Exception as error:
                failures.append((number, server.name, repr(error)))
                raise
            with lock:
                counts["connections"] += 1
                counts[f"{server.name} connections"] += 1
                counts["replies"] += client.heard.count(b"\n")
                for code in (b"250 OK", b"421 ", b"451 ", b"500 ", b"550 ", b"552 "):
                    counts[f"replies {code.decode()}"] += client.heard.count(code)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, f"seed {seed}, connection {failures[0]}"
        wait_until_nobody_is_connected(servers, seed)
        for server in servers:
            template = server.receiver._template
            assert not template._neighbours, f"{server.name} still counts connections: {template._neighbours}"
            assert not template._room.taken, f"{server.name} still holds {template._room.taken} bytes"
            send_one(server)
        wait_until_nobody_is_connected(servers, seed)
        # Sockets that are closed on both sides are gone a moment after their connections.
        wait_until(
            lambda: open_files() <= files, lambda: f"there were {files} open files before, and {open_files()} now"
        )
    finally:
        for server in servers:
            server.receiver.close()
        root.removeHandler(log)
        Router.clear_routes()
    assert not log.wrong, f"seed {seed}, in the log: {log.wrong[0]}"
    counts["lines of the log"] = log.records
    for name, count in handled.items():
        counts[f"messages to {name}"] = count
    return dict(counts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--connections", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print("seed", options.seed, flush=True)
    start = time.monotonic()
    for what, number in sorted(fuzz(options.seconds, options.seed, connections=options.connections).items()):
        print(f"{number:9,} {what}")
    print(f"{time.monotonic() - start:9.0f} seconds")


if __name__ == "__main__":
    main()
