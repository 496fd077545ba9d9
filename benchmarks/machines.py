"""Messages a second of one and of two receivers that share one PostgreSQL, as machines do; beside SQLite.

    python benchmarks/machines.py [--rounds 5] [--scale 1.0]

Each receiver is a generated project of its own, as `lamson start` runs it, with its states in the same database, and
twenty clients of its own. Every message moves its sender to another state: a lock, two reads, a write and the end of
the lock, each of which is a question to PostgreSQL. Everything runs on one machine, so its processors are shared by
receivers, clients and PostgreSQL (Debian's, with fsync on): what is seen is whether the receivers stand in each other's
way, and not what a second machine would bring.
"""

import argparse
import contextlib
import os
import statistics
import sys
import threading
from pathlib import Path

import load
import peers
import whole
from frame import missing, ratio

SECONDS = 2

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def measure(ports: list[int], seconds: float) -> float:
    """Messages a second of all of these together, each with clients of its own."""
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda port=port: found.append(load.measure(port, seconds).rate)) for port in ports
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    os.environ["PATH"] += peers.SYSTEM
    import postgres

    if postgres.folder_of_programs() is None:
        missing("receivers on one PostgreSQL", "PostgreSQL is not installed")
        return
    seconds = SECONDS * options.scale
    with contextlib.ExitStack() as running:
        server = running.enter_context(postgres.running(settings=()))
        url = server.new_database()
        one, two = (running.enter_context(whole.lamson(True, 1, url)) for _ in range(2))
        sqlite = running.enter_context(whole.lamson(True, 1))
        cases = {"SQLite": [sqlite], "one": [one], "two": [one, two]}
        for ports in cases.values():
            measure(ports, 0.1)
        found: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, ports in cases.items():
                found[name].append(measure(ports, seconds))
    speed = {name: statistics.median(values) for name, values in found.items()}
    ratio("two receivers on one PostgreSQL", speed["two"], "one receiver", speed["one"])
    ratio("a receiver on PostgreSQL", speed["one"], "SQLite", speed["SQLite"])


if __name__ == "__main__":
    main()
