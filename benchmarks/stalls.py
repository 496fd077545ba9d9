"""How long one client waits for others, and how much memory clients and messages take.

    python benchmarks/stalls.py [--rounds 3] [--idle 1000] [--size 50] [--only NAME]

noop      the 99th percentile of the answers to NOOP while ten messages of 20 MB arrive at once; beside stock aiosmtpd
idle      bytes of memory for each of `--idle` connections that say EHLO and wait
message   how much the server grows for a message of `--size` MB that its handler puts into a queue, in its sizes

Lamson is its real SMTPReceiver with a Router and a handler, in a process of its own; aiosmtpd throws messages away.
Memory is what Linux says of that process (VmHWM, VmRSS).
"""

import argparse
import asyncio
import contextlib
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time

from frame import figure

MEGABYTE = 1 << 20
MESSAGES, MESSAGE_SIZE = 10, 20  # how many at once, and of how many megabytes


def serve(name, folder):
    """Serve on a free port, which is printed, until standard input is closed."""
    if name == "lamson":
        from lamson.queue import Queue
        from lamson.routing import Router, route, stateless
        from lamson.server import SMTPReceiver

        queue = Queue(folder + "/queue")

        @route("(name)@example.com", name="keep|drop")
        @stateless
        def START(message, name):
            if name == "keep":
                queue.push(message)

        Router.UNDELIVERABLE_QUEUE = Queue(folder + "/undeliverable")
        receiver = SMTPReceiver("127.0.0.1", 0, size_limit=200 * MEGABYTE, connection_limit=0)
        receiver.start()
        print(receiver.port, flush=True)
        sys.stdin.read()
        receiver.close()
    else:
        from aiosmtpd.smtp import SMTP

        class Sink:
            async def handle_DATA(self, server, session, envelope):
                return "250 OK"

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        sink = Sink()
        server = loop.run_until_complete(
            loop.create_server(lambda: SMTP(sink, loop=loop, data_size_limit=200 * MEGABYTE), "127.0.0.1", 0)
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        loop.add_reader(sys.stdin.fileno(), loop.stop)
        loop.run_forever()


@contextlib.contextmanager
def server(name):
    """A server in a process of its own; yields its port and its process id."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--serve", name, "--folder", folder]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.stdin.close()
            process.wait(30)


def memory(pid, what):
    """Bytes: VmRSS, what a process has in memory now, or VmHWM, the most it has had."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))


def message(size, subject="x"):
    """A message of about so many megabytes, in lines as an attachment has them."""
    line = b"A" * 76 + b"\r\n"
    head = f"From: a@example.com\r\nTo: drop@example.com\r\nSubject: {subject}\r\n\r\n".encode()
    return head + line * (size * MEGABYTE // len(line))


def send(port, to, content):
    """Send one message, prepared before, with as little work for this process as there can be."""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as sock:
        replies = sock.makefile("rb")
        replies.readline()
        for line in (b"HELO x", b"MAIL FROM:<a@example.com>", f"RCPT TO:<{to}@example.com>".encode(), b"DATA"):
            sock.sendall(line + b"\r\n")
            assert replies.readline()[:1] in (b"2", b"3")
        sock.sendall(content)
        sock.sendall(b".\r\n")
        reply = replies.readline()
        assert reply.startswith(b"250"), reply


def send_many(port):
    """Send all messages at once."""
    content = message(MESSAGE_SIZE)
    threads = [threading.Thread(target=send, args=(port, "drop", content)) for _ in range(MESSAGES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def noop_latencies(port, busy_port):
    """Seconds that answers to NOOP take while the messages arrive at the other port, sorted."""
    found = []
    with socket.create_connection(("127.0.0.1", port), timeout=300) as sock:
        replies = sock.makefile("rb")
        replies.readline()
        sock.sendall(b"HELO x\r\n")
        replies.readline()
        senders = subprocess.Popen([sys.executable, __file__, "--send", str(busy_port)])  # with a GIL of its own
        while senders.poll() is None:
            begin = time.perf_counter()
            sock.sendall(b"NOOP\r\n")
            replies.readline()
            found.append(time.perf_counter() - begin)
            time.sleep(0.002)
    assert senders.returncode == 0
    return sorted(found)


def measure_noop(rounds):
    """The best of the rounds counts. A server that gets none tells how long others keep the processors."""
    with server("lamson") as (ours, _), server("lamson") as (idle, _), server("aiosmtpd") as (stock, _):
        cases = {
            "Lamson": (ours, ours),
            "Lamson, by one that gets none": (idle, ours),
            "stock aiosmtpd": (stock, stock),
        }
        best = {}
        for _ in range(rounds):
            for who, ports in cases.items():
                found = noop_latencies(*ports)
                at = found[int(len(found) * 0.99)], found[-1], len(found)
                best[who] = min(best.get(who, at), at)
    for who, (percentile, longest, count) in best.items():
        what = f"NOOP while {MESSAGES} messages of {MESSAGE_SIZE} MB arrive, {who}"
        figure(f"{what}, 99th percentile", percentile * 1000, "ms", "<= 50" if who == "Lamson" else "")
        figure(f"{what}, longest of {count}", longest * 1000, "ms")


def measure_idle(count):
    with server("lamson") as (port, pid):
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.ehlo()
        before = memory(pid, "VmRSS")
        clients = []
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), timeout=30)
            sock.sendall(b"EHLO client.example.com\r\n")
            heard = b""
            while b"250 HELP" not in heard:
                heard += sock.recv(4096)
            clients.append(sock)
        each = (memory(pid, "VmRSS") - before) / count
        for sock in clients:
            sock.close()
    figure(f"memory for each of {count} idle connections", each / 1024, "KB", "<= 30")


def measure_message(size):
    with server("lamson") as (port, pid):
        send(port, "keep", message(1))
        before = memory(pid, "VmRSS")
        send(port, "keep", message(size))
        grown = memory(pid, "VmHWM") - before
    figure(f"memory for a message of {size} MB that is queued, in its sizes", grown / (size * MEGABYTE), "", "<= 3")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--size", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["noop", "idle", "message"])
    parser.add_argument("--serve", choices=["lamson", "aiosmtpd"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--send", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder)
        return
    if options.send:
        send_many(options.send)
        return
    if options.only in (None, "noop"):
        measure_noop(options.rounds)
    if options.only in (None, "idle"):
        measure_idle(options.idle)
    if options.only in (None, "message"):
        measure_message(options.size)


if __name__ == "__main__":
    main()
