"""States in a SQLite file, with nothing but Python's own `sqlite3`.

    Router.STATE_STORE = SQLiteStorage("run/states.db")

What a state storage is, in the smallest number of lines that is right: one connection for each thread, a write-ahead
log so that readers do not wait, and every change on the disk when `set` returns. Lamson's own `SQLAlchemyStorage` is
the same, holds its lock between processes, and is faster when a state does not change.
"""

import sqlite3
import threading

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest, storable

TABLE = "CREATE TABLE IF NOT EXISTS state (id BLOB PRIMARY KEY, key TEXT, sender TEXT, state TEXT) WITHOUT ROWID"


class SQLiteStorage(StateStorage):
    def __init__(self, path):
        self.path = path
        self.thread = threading.local()

    def prepare(self):
        self.execute(TABLE)

    def get(self, key, sender):
        row = self.execute("SELECT state FROM state WHERE id = ?", digest(key, sender)).fetchone()
        return row[0] if row else ROUTE_FIRST_STATE

    def set(self, key, sender, state):
        if state == ROUTE_FIRST_STATE:
            self.execute("DELETE FROM state WHERE id = ?", digest(key, sender))
        else:
            row = digest(key, sender), storable(key), storable(sender), state
            self.execute("REPLACE INTO state VALUES (?, ?, ?, ?)", *row)

    def clear(self):
        self.execute("DELETE FROM state")

    def execute(self, statement, *values):
        if not hasattr(self.thread, "connection"):
            # isolation_level=None: each statement is a transaction. timeout: seconds to wait for another writer.
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self.thread.connection = connection
        return self.thread.connection.execute(statement, values)
