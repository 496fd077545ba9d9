"""`use_log`: switches a SQLite file to its write-ahead log (https://sqlite.org/wal.html), while others do so as well.

    use_log(connection.cursor(), 30)

A file that is switched stays so, and the next one who opens it has nothing to do.
"""

import sqlite3
import time
from typing import Any

_KIND = 0xFF  # the bits of an error that are its kind; those above say more about it


def use_log(cursor: Any, patience: float) -> None:
    """Switch, and wait up to `patience` seconds for others: here SQLite's own busy_timeout does nothing.

    Raises sqlite3.OperationalError.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _KIND != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
