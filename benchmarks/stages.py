"""Where the processor's time of one message goes, stage by stage.

    python benchmarks/stages.py [--scale 1.0]

"Whole" is a generated project as `lamson start` runs it (states in SQLite, a log at INFO), with twenty clients of
`smtp-source` that keep their connections and send messages of 1 KB; "wire" is the protocol alone, which throws the
messages away. Both are the user and system time of the server's process, for each message. The stages between are
measured one by one in this process. What is left is what it costs to hand a message to a handler's thread and back.

Processor time, so that a busy machine matters less, in a few seconds in which all clients send. Waiting for the disk is
not in it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import load
import peers
import whole
from frame import figure

SECONDS = 2
HERE = Path(__file__).parent
HEADERS = b"Message-ID: <1@example.org>\r\nFrom: a@example.org\r\nTo: b@example.com\r\n\r\n"
CONTENT = HEADERS + (b"x" * 70 + b"\r\n") * 13


def of_server(port: int, seconds: float) -> float:
    """Microseconds for a message that comes by the wire."""
    return load.measure(port, seconds).cost


def of_wire(seconds: float) -> float:
    command = [sys.executable, str(HERE / "wire.py"), "--serve", "lamson"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    try:
        return of_server(int(server.stdout.readline()), seconds)
    finally:
        server.stdin.close()
        server.wait(10)


def each(function, count: int = 5000) -> float:
    """Microseconds for a call."""
    for _ in range(200):
        function()
    begin = time.process_time()
    for _ in range(count):
        function()
    return (time.process_time() - begin) / count * 1e6


def of_parts(folder: str) -> dict[str, float]:
    """The stages between the wire and the handler."""
    import logging

    from lamson.database import SQLAlchemyStorage, configure_database
    from lamson.logs import message_id, printable
    from lamson.mail import MailRequest
    from lamson.queue import Queue
    from lamson.routing import Router, route, route_like
    from lamson.settling import no_room

    log = logging.getLogger("stages")
    log.propagate = False
    log.setLevel(logging.INFO)
    handler = logging.FileHandler(f"{folder}/log")
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    log.addHandler(handler)

    @route("(address)@(host)", address=".+", host=r"example\.com")
    def START(message, address=None, host=None):
        return NEXT

    @route_like(START)
    def NEXT(message, address=None, host=None):
        return NEXT

    def make():
        return MailRequest(("127.0.0.1", 1), "a@example.org", ["b@example.com"], CONTENT)

    message = make()
    peer, sender, to = ("127.0.0.1", 1), "a@example.org", ["b@example.com"]

    def line():
        log.info("received: %s from <%s> to %s at %s", message_id(message), printable(sender), to, peer)

    Router.UNDELIVERABLE_QUEUE = Queue(f"{folder}/undeliverable")
    found = {
        "make a MailRequest": each(make),
        "a line in the log": each(line),
        "is there room on the disk": each(lambda: no_room(1000)),
    }
    found["route it, with states in memory"] = each(lambda: Router.deliver_each(make())) - found["make a MailRequest"]
    memory = found["route it, with states in memory"]
    Router.STATE_STORE = SQLAlchemyStorage(configure_database({"url": f"sqlite:///{folder}/states.db"}))
    everything = each(lambda: Router.deliver_each(make())) - found["make a MailRequest"]
    found["what states in SQLite cost beyond that"] = everything - memory

    states = ["NEXT", "OTHER"]

    def change():
        states.reverse()
        Router.STATE_STORE.set("stages", "a@example.org", states[0])

    found["(a state that changes, in place of one that stays)"] = each(change)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    os.environ["PATH"] += peers.SYSTEM
    seconds = SECONDS * options.scale
    with whole.lamson(moves=False, workers=1) as port:
        total = of_server(port, seconds)
    wire = of_wire(seconds)
    with tempfile.TemporaryDirectory() as folder:
        parts = of_parts(folder)
    counted = sum(value for name, value in parts.items() if not name.startswith("("))
    rows = {
        "the whole": total,
        "the wire": wire,
        **parts,
        "from the wire to the handler and back: what is left": total - wire - counted,
    }
    for name, value in rows.items():
        print(f"{value:7.1f} us  {value / total:5.0%}  {name}")
    figure("processor time of one message, the whole way", total, "us")


if __name__ == "__main__":
    main()
