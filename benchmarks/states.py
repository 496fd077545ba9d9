"""Measures what a message of a sender costs the store of states, with a thousand senders in it and with a million.

    python benchmarks/states.py [--senders 1000000] [--messages 20000] [--rounds 3] [--postgresql]

For each store: microseconds for a lock taken and given back; for a `get`; for a `set` that changes nothing, which is
most mail there is; and for one that does. Senders are drawn at random, each round anew. It is the processor's time for
SQLite and the clock's for PostgreSQL; the median of the rounds. `--postgresql` starts one, as the tests do.

"One message" is a lock, two gets and a set that changes nothing, which is what a message costs in the Router.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import sqlalchemy

from frame import figure, missing, ratio
from lamson.database import SQLAlchemyStorage
from lamson.rows import key

FEW = 1000
SLICE = 50  # messages
MODULE = "app.handlers.sample"


def sender(number):
    return f"sender{number}@example.com"


def filled(url, count):
    """A storage with the states of so many senders."""
    storage = SQLAlchemyStorage(url)
    storage.prepare()
    for start in range(0, count, 50_000):
        numbers = range(start, min(start + 50_000, count))
        rows = [
            {"id": key(MODULE, name), "state_key": MODULE, "sender": name, "state": "POSTING"}
            for name in map(sender, numbers)
        ]
        with storage.engine.begin() as connection:
            connection.execute(sqlalchemy.insert(storage.table), rows)
    return storage


def lock(storage, name):
    with storage.lock(MODULE, name):
        pass


def get(storage, name):
    storage.get(MODULE, name)


def set_same(storage, name):
    storage.set(MODULE, name, "POSTING")


def set_changed(storage, name):
    storage.set(MODULE, name, "POSTED" if storage.get(MODULE, name) == "POSTING" else "POSTING")


def one_message(storage, name):
    with storage.lock(MODULE, name):
        storage.get(MODULE, name)
        storage.get(MODULE, name)
        storage.set(MODULE, name, "POSTING")


def cost(action, storage, names, clock):
    start = clock()
    for name in names:
        action(storage, name)
    return clock() - start


def measure(where, few, many, arguments, clock):
    """Tell what each action costs with few senders and with many.

    They take turns of a few milliseconds, so that what else the machine does meanwhile hits both of them.
    """
    for action, share in ((lock, 1), (get, 1), (set_same, 1), (one_message, 1), (set_changed, 10)):
        messages = arguments.messages // share
        costs = {few: [], many: []}
        for number in range(arguments.rounds + 1):
            spent = {few: 0.0, many: 0.0}
            for _ in range(0, messages, SLICE):
                for each in (few, many):
                    names = [sender(random.randrange(each[1])) for _ in range(SLICE)]
                    spent[each] += cost(action, each[0], names, clock)
            if number:  # before that, what is read comes into memory
                for each in (few, many):
                    costs[each].append(spent[each] / messages * 1e6)
        name = action.__name__.replace("_", " ")
        peer = f"{few[1]:,} senders"
        ours, theirs = statistics.median(costs[many]), statistics.median(costs[few])
        wanted = "<= 1.3" if action is one_message else ""
        ratio(f"{where}: {name}, {many[1]:,} senders", ours, peer, theirs, wanted, "µs")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--senders", type=int, default=1_000_000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--postgresql", action="store_true")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        few = filled(f"sqlite:///{folder}/few.db", FEW), FEW
        many = filled(f"sqlite:///{folder}/many.db", arguments.senders), arguments.senders
        figure("SQLite: size of the file", (Path(folder) / "many.db").stat().st_size / 1e6, "MB")
        measure("SQLite", few, many, arguments, time.process_time)
    if not arguments.postgresql:
        missing("states on PostgreSQL", "run it with --postgresql")
        return
    import postgres

    with postgres.running(settings=()) as server:
        few = filled(server.new_database(), FEW), FEW
        many = filled(server.new_database(), arguments.senders), arguments.senders
        arguments.messages //= 5
        measure("PostgreSQL", few, many, arguments, time.perf_counter)


if __name__ == "__main__":
    main()
