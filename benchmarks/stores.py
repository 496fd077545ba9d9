"""State changes a second through the Router, for each store that Lamson has and each one in examples/stores.

    python benchmarks/stores.py [--seconds 2]

Each message moves its sender to another state, and counts when that is on disk, if the store has a disk. First by one
thread, then by eight with eight senders and `LOCKING = "sender"`. The servers are those of the tests, started on this
machine; a store whose server or package is missing is named. The figure beside each is that of `MemoryStorage`.
"""

import argparse
import sys
import threading
import time
import unittest
from pathlib import Path

from frame import missing, ratio
from lamson.database import SQLAlchemyStorage
from lamson.mail import MailRequest
from lamson.routing import MemoryStorage, Router, ShelveStorage, route, route_like
from lamson.testing import StateStorageTests

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import test_examples_stores as examples

import postgres

THREADS = 8
MESSAGE = b"Subject: Hi\n\nHello.\n"


class Memory(StateStorageTests, unittest.TestCase):
    def make_storage(self):
        return MemoryStorage()


class Shelve(examples.InAFolder, unittest.TestCase):
    def make_storage(self):
        return ShelveStorage(str(self.folder / "states"))


class SQLite(examples.InAFolder, unittest.TestCase):
    def make_storage(self):
        return SQLAlchemyStorage(f"sqlite:///{self.folder}/states.db")


class PostgreSQL(examples.OnAServer, unittest.TestCase):
    run_server = staticmethod(lambda: postgres.running(settings=()))

    def make_storage(self):
        return SQLAlchemyStorage(self.server.new_database())


STORES = {
    "MemoryStorage": Memory,
    "ShelveStorage": Shelve,
    "SQLAlchemyStorage on SQLite": SQLite,
    "SQLAlchemyStorage on PostgreSQL": PostgreSQL,
    "examples: sqlite3": examples.TestSqlite3,
    "examples: shelve for several processes": examples.TestShelve,
    "examples: SQLAlchemy's ORM on SQLite": examples.TestSQLAlchemy,
    "examples: Django's ORM on SQLite": examples.TestDjango,
    "examples: web.py on SQLite": examples.TestWebPy,
    "examples: SQLObject on SQLite": examples.TestSQLObject,
    "examples: CouchDB (pouchdb-server)": examples.TestCouchDB,
    "examples: MongoDB (nx-27017)": examples.TestMongoDB,
    "examples: memcached": examples.TestMemcache,
    "examples: LightCloud on memcached": examples.TestLightCloud,
    "examples: Redis": examples.TestRedis,
    "examples: Redis Cluster": examples.TestRedisCluster,
}


def measure(seconds: float, threads: int) -> float:
    """State changes a second by so many threads, each of which has a sender of its own."""
    deadline = time.perf_counter() + seconds
    counts = [0] * threads

    def work(number: int) -> None:
        while time.perf_counter() < deadline:
            Router.deliver(MailRequest("bench", f"{number}@example.org", "list@example.com", MESSAGE))
            Router.STATE_STORE.sync()
            counts[number] += 1

    start = time.perf_counter()
    running = [threading.Thread(target=work, args=[number]) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def probe(cls: type, seconds: float) -> tuple[list[float], str]:
    """What a store does with one thread and with eight; or why it could not be asked."""
    found: list[float] = []

    class Probe(cls):  # type: ignore[misc, valid-type]
        def runTest(self) -> None:
            Router.STATE_STORE = self.storage
            for threads in (1, THREADS):
                measure(seconds / 10, threads)
                found.append(measure(seconds, threads))

    result = unittest.TestResult()
    unittest.TestSuite([Probe()]).run(result)
    problems = [reason for _, reason in result.skipped] + [text for _, text in result.errors + result.failures]
    return found, problems[0].strip().splitlines()[-1] if problems else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    Router.LOCKING = "sender"
    Router.LOG_EXCEPTIONS = False

    @route("(name)@example.com", name=".+")
    def START(message, name=None):
        return NEXT

    @route_like(START)
    def NEXT(message, name=None):
        return START

    memory: list[float] = []
    for name, cls in STORES.items():
        found, problem = probe(cls, options.seconds)
        memory = memory or found
        for speed, base, who in zip(found, memory, ("one thread", f"{THREADS} threads"), strict=False):
            ratio(f"{name}, {who}", speed, "in memory", base)
        if problem:
            missing(name, problem)


if __name__ == "__main__":
    main()
