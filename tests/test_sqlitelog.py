"""The switch of a SQLite file to its write-ahead log."""

import sqlite3
import threading

import pytest

from lamson.database import SQLAlchemyStorage
from lamson.sqlitelog import use_log


@pytest.fixture
def connections(tmp_path):
    """Two, to a file in the mode that new files have."""
    path = tmp_path / "test.db"
    one, other = (sqlite3.connect(path, isolation_level=None, check_same_thread=False) for _ in range(2))
    one.execute("CREATE TABLE things (id)")
    yield one, other
    one.close()
    other.close()


class Waiting:
    """A cursor that says when it was refused."""

    def __init__(self, cursor):
        self.cursor = cursor
        self.refused = threading.Event()

    def execute(self, statement):
        try:
            return self.cursor.execute(statement)
        except sqlite3.OperationalError:
            self.refused.set()
            raise


def test_it_waits_for_somebody_who_has_the_file(connections):
    one, other = connections
    one.execute("BEGIN EXCLUSIVE")
    cursor = Waiting(other.cursor())
    switching = threading.Thread(target=use_log, args=[cursor, 60])
    switching.start()
    assert cursor.refused.wait(60)
    one.execute("COMMIT")
    switching.join(60)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_it_does_not_wait_for_ever_nor_for_what_is_no_wait(connections, tmp_path):
    one, other = connections
    one.execute("BEGIN EXCLUSIVE")
    other.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        use_log(other.cursor(), 0.05)
    one.execute("COMMIT")
    reading = sqlite3.connect(f"file:{tmp_path}/test.db?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        use_log(reading.cursor(), 1e9)
    reading.close()


def test_many_may_open_a_new_database_at_once(tmp_path):
    failures = []

    def use(storage, everyone):
        everyone.wait()
        try:
            storage.get("key", "sender")
        except Exception as error:
            failures.append(error)

    for number in range(40):
        everyone = threading.Barrier(4, timeout=60)
        storages = [SQLAlchemyStorage(f"sqlite:///{tmp_path}/{number}.db") for _ in range(4)]
        threads = [threading.Thread(target=use, args=[storage, everyone]) for storage in storages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
