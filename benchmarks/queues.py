"""Measures what one message costs in queues of different depths, and how fast a queue is drained next to Salmon's.

    python benchmarks/queues.py [--depth 100000] [--messages 2000] [--rounds 3] [--salmon PYTHON] [--broker URL]...

Every figure is in microseconds for each message, the median of the rounds, for a queue with a hundred messages and for
one with `--depth`, which take turns, and their ratio. It is the processor's time, the system's included, so that other
programs do not count; for `push`, which waits for the disk, and beside Salmon it is the clock's. `PYTHON` is an
interpreter that has salmon-mail; without it Salmon is left out. `URL` is that of a queue over a broker, which is
emptied, filled and drained.

A queue is filled without syncs: what is measured is the queue, and not the filling.
"""

import argparse
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from frame import missing, ratio
from lamson.mail import MailRequest
from lamson.outgoing import RetryQueue
from lamson.queue import Queue
from lamson.routing import Router, route, stateless
from lamson.server import QueueReceiver

SHALLOW = 100
SALMON_DEPTH = 4000
RAW = b"From: a@example.com\r\nTo: list@test.com\r\nSubject: hi\r\n\r\n" + b"Hello there, how are you?\r\n" * 40
REQUEST = MailRequest("peer", "a@example.com", ["list@test.com"], RAW)

SALMON = """
import sys, time
from salmon.queue import Queue
from salmon.routing import Router, route, stateless

@route(".+")
@stateless
def START(message):
    pass

queue = Queue(sys.argv[1])
start, count = time.perf_counter(), 0
while time.perf_counter() - start < float(sys.argv[2]):
    key, message = queue.pop()
    Router.deliver(message)
    count += 1
print(count / (time.perf_counter() - start))
"""


def fill(folder: Path, number: int, content: bytes) -> None:
    """Add messages to a Maildir until it has this many."""
    queue = Queue(folder)
    missing = number - queue.count()
    for done in range(missing):
        # As `push` would, without the syncs.
        key = f"{int(time.time())}.M{done % 1000000:06}P{os.getpid()}Q{time.monotonic_ns()}.filled"
        with open(folder / "new" / key, "wb") as file:
            file.write(content)
    # Or else the system writes them to the disk while they are taken out again, and that is in the figures.
    os.sync()


class Bench:
    """A queue of one depth, filled up again when something was taken out."""

    def __init__(self, top: Path, depth: int, messages: int):
        self.folder = top / str(depth)
        self.depth = depth
        self.messages = messages
        one = Queue(top / "one")
        self.raw = one.mbox.read(one.push(REQUEST))
        fill(self.folder, depth, self.raw)

    def timed(self, work: Callable[[], int], clock: Callable[[], float] = time.process_time) -> float:
        start = clock()
        count = work()
        return (clock() - start) / count * 1e6

    def push(self) -> float:
        """`push`, with its two syncs."""
        queue = Queue(self.folder)
        keys = []
        spent = self.timed(lambda: keys.extend(queue.push(REQUEST) for _ in range(500)) or 500, time.perf_counter)
        for key in keys:
            queue.remove(key)
        return spent

    def get(self) -> float:
        """`get` of messages that nobody has claimed or seen."""
        queue = Queue(self.folder)
        keys = queue.keys()[: self.messages]
        return self.timed(lambda: [queue.get(key) for key in keys] and len(keys))

    def get_claimed(self) -> float:
        """`get` of messages that were claimed before."""
        queue = Queue(self.folder)
        keys = queue.keys()[:SHALLOW]
        for key in keys:
            if (self.folder / "new" / key).exists():
                (self.folder / "new" / key).rename(self.folder / "cur" / f"{key}:2,a")
        spent = self.timed(lambda: [queue.get(key) for key in keys] and len(keys))
        for key in keys:
            (self.folder / "cur" / f"{key}:2,a").rename(self.folder / "new" / key)
        return spent

    def count(self) -> float:
        """`count`, for each message there is."""
        queue = Queue(self.folder)
        return self.timed(lambda: sum(queue.count() for _ in range(self.times())))

    def pop(self) -> float:
        """`pop` of all messages, the listing included."""

        def work() -> int:
            queue, count = Queue(self.folder), 0
            while queue.pop()[0] is not None:
                count += 1
            return count

        return self._repeated(work)

    def drain(self, clock: Callable[[], float] = time.process_time) -> float:
        """A QueueReceiver that claims, routes and removes all messages."""

        def work() -> int:
            QueueReceiver(str(self.folder)).start(one_shot=True)
            return self.depth

        return self._repeated(work, clock)

    def look(self) -> float:
        """What a RetryQueue does every 30 seconds when all entries wait, for each of them."""
        later = time.time() + 3000
        for path in Queue(self.folder).mbox.files():
            os.utime(path, (later, later))
        retries = RetryQueue(self.folder, lambda message: {}, lambda message, reason: None)
        return self.timed(lambda: sum(retries.retry() + self.depth for _ in range(self.times())))

    def clear(self) -> float:
        """`clear`, for each message."""
        queue = Queue(self.folder)
        return self._repeated(lambda: queue.clear() or self.depth)

    def times(self) -> int:
        """How often a queue is gone through until enough messages were: once when it is deep."""
        return max(1, self.messages // self.depth)

    def _repeated(self, work: Callable[[], int], clock: Callable[[], float] = time.process_time) -> float:
        """What taking all out costs, filled again each time."""
        spent = []
        for _ in range(self.times()):
            fill(self.folder, self.depth, self.raw)
            spent.append(self.timed(work, clock))
        fill(self.folder, self.depth, self.raw)
        return statistics.median(spent)


def salmon(python: str, top: Path) -> float:
    """Messages a second that Salmon takes out of a queue and routes, at SALMON_DEPTH."""
    fill(top / "salmon", SALMON_DEPTH, RAW)
    done = subprocess.run([python, "-c", SALMON, str(top / "salmon"), "10"], capture_output=True, text=True, check=True)
    return float(done.stdout)


def broker(url: str, messages: int) -> tuple[float, float]:
    """Messages a second that one process pushes to a broker, and that it drains from it."""
    queue = Queue(url)
    queue.clear()
    start = time.perf_counter()
    for _ in range(messages):
        queue.push(REQUEST)
    pushed = time.perf_counter()
    QueueReceiver(url).start(one_shot=True)
    return messages / (pushed - start), messages / (time.perf_counter() - pushed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--depth", type=int, default=100_000)
    parser.add_argument("--messages", type=int, default=2000, help="how many messages a figure is taken from at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--salmon", metavar="PYTHON", help="an interpreter that has salmon-mail")
    parser.add_argument("--broker", metavar="URL", action="append", default=[], help="a queue over a broker")
    options = parser.parse_args()
    logging.disable(logging.INFO)

    @route(".+")
    @stateless
    def START(message):
        pass

    top = Path(tempfile.mkdtemp(prefix="lamson-queues-"))
    try:
        shallow, deep = (Bench(top, depth, options.messages) for depth in (SHALLOW, options.depth))
        for name in ("push", "get", "get_claimed", "count", "pop", "drain", "look", "clear"):
            rounds = [(getattr(shallow, name)(), getattr(deep, name)()) for _ in range(options.rounds)]
            one, other = map(statistics.median, zip(*rounds, strict=True))
            what = f"{name.replace('_', ' ')}, {options.depth:,} messages deep"
            ratio(what, other, f"{SHALLOW} deep", one, "<= 1.5", "µs")
        ours = Bench(top, SALMON_DEPTH, options.messages).drain(time.perf_counter)
        what = f"drained at a depth of {SALMON_DEPTH:,}"
        if options.salmon:
            ratio(what, 1e6 / ours, "Salmon's pop and routing", salmon(options.salmon, top), ">= 20")
        else:
            missing(f"{what} ({1e6 / ours:.0f}/s) beside Salmon", "no interpreter with Salmon was named")
        for url in options.broker:
            push, drain = broker(url, options.messages)
            print(f"{url}: pushed {push:.0f} and drained {drain:.0f} messages a second", flush=True)
    finally:
        shutil.rmtree(top)
        Router.clear_routes()


if __name__ == "__main__":
    main()
