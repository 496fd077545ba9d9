"""The way to the database that every message takes: one connection for each thread, and statements made once.

    link = thread_link(engine)
    statement = link.statement(sqlalchemy.select(table.c.state).where(table.c.id == bindparam("id_")))
    rows, count = link.run(statement, {"id_": 17})

SQLAlchemy's own way (a connection from the pool, its transaction, the statement's look-up and result) costs ten times
what SQLite does. So its statements are written out as text once, and given to the driver. The connections are
SQLAlchemy's, made as the engine says, and then taken out of its pool: a thread never waits for one, and whoever holds
a lock of the database in its connection (`hold` below) can go on, however small the pool is.

Every statement is carried out whole or not at all, and is there when `run` returns: there is no BEGIN and COMMIT.
PostgreSQL has it on disk then. SQLite has it on disk when `sync` returns, which is one wait for all that was written
before, by any thread: to wait for the disk is most of what a write costs.

A connection that is lost is opened anew for the next statement, unless it held locks: then every statement of its
thread fails, with `ConnectionLost`, until the last of them is given back, which fails as well.
"""

import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.sql import ClauseElement

from lamson.errors import LamsonError
from lamson.filelocks import file_locks

_links: weakref.WeakKeyDictionary[Engine, "ThreadLink"] = weakref.WeakKeyDictionary()
_making = threading.Lock()

# Connections of a parent process. Closing them here would end what the parent does with them.
_of_the_parent: list[Any] = []


class ConnectionLost(LamsonError):
    """The connection was lost that held the lock of a sender: somebody else may hold it now."""


@dataclass(frozen=True)
class Statement:
    """A statement as SQLAlchemy has it, and as the driver takes it."""

    clause: Any
    text: str
    positions: list[str] | None
    """The names of the values in their order, for a driver that counts them; None for one that knows names."""


class _Own:
    """What one thread has."""

    def __init__(self, connection: Any):
        self.connection = connection
        self.cursor = connection.cursor()
        self.process = os.getpid()
        self.held = 0  # locks that the connection holds
        self.lost = False

    def __del__(self) -> None:
        if self.process != os.getpid():
            _of_the_parent.append((self.connection, self.cursor))
        elif not self.lost:
            self.connection.close()


def thread_link(engine: Engine) -> "ThreadLink":
    """Returns the link of an engine: the same for all who ask, so that a thread has one connection and not several."""
    with _making:
        if engine not in _links:
            _links[engine] = ThreadLink(engine)
        return _links[engine]


class ThreadLink:
    """See above. Of a driver it wants what PEP 249 says, and that its connections may be used with AUTOCOMMIT."""

    def __init__(self, engine: Engine):
        # Neither the engine nor its pool are kept: this is kept for as long as the engine is.
        self._engine = weakref.ref(engine)
        self._dialect = engine.dialect
        self._threads = threading.local()
        self._log = WriteAheadLog(self._database_file, self._empty_log) if engine.dialect.name == "sqlite" else None
        self._writers: AbstractContextManager = Writers(self.beside) if self._log is not None else nullcontext()

    def writing(self) -> AbstractContextManager:
        """Hold this around a statement that writes: those of other threads and processes wait for their turn."""
        return self._writers

    def statement(self, clause: ClauseElement) -> Statement:
        """Writes a statement out for the driver."""
        compiled = clause.compile(dialect=self._dialect)
        positions = getattr(compiled, "positiontup", None)
        return Statement(clause, str(compiled), None if positions is None else list(positions))

    def run(self, statement: Statement, values: dict[str, Any], again: bool = True) -> tuple[list[Any], int]:
        """Carries a statement out. Returns its rows, and how many it touched (-1 where the driver does not say).

        With `again`, a statement whose connection turns out to be lost is tried once more with a new one: leave that
        out where it makes a difference whether it is carried out twice. Raises the errors of the driver.
        """
        arguments = values if statement.positions is None else [values[name] for name in statement.positions]
        own = self._own()
        try:
            cursor = own.cursor
            cursor.execute(statement.text, arguments)
            # All of them: a SELECT that is not read to its end goes on reading the database as it was.
            rows, count = (cursor.fetchall() if cursor.description else []), cursor.rowcount
            if self._log is not None and count > 0:  # which it never is for a SELECT
                self._log.note_write()
            return rows, count
        except Exception as error:
            if not self._is_lost(own, error) or not again or own.held:
                raise
        return self.run(statement, values, again=False)

    def unsynced(self) -> bool:
        """Whether something was written that may not be on disk."""
        return self._log is not None and self._log.behind()

    def sync(self) -> None:
        """Returns when all that was written before is on disk. Raises OSError."""
        if self._log is not None and self._log.behind():
            self._log.sync()

    def _database_file(self) -> str:
        # SQLite knows the path of its file, whatever the URL looks like and wherever the process has gone since.
        rows, _ = self.run(Statement(None, "PRAGMA database_list", []), {})
        return next(row[2] for row in rows if row[1] == "main")

    def after_fork(self) -> None:
        """For the child: a thread that holds a lock is not there."""
        if self._log is not None:
            self._log.make_locks()

    def _empty_log(self) -> None:
        """Has SQLite bring all that is in its log into the database, and begin the log anew. Raises OSError."""
        try:
            rows, _ = self.run(Statement(None, "PRAGMA wal_checkpoint(TRUNCATE)", []), {})
        except self._dialect.loaded_dbapi.Error as error:
            raise OSError(errno.EIO, f"cannot empty the log of SQLite: {error}") from error
        if rows[0][0]:
            raise OSError(errno.EIO, "cannot empty the log of SQLite while somebody reads it")

    def beside(self, ending: str) -> str:
        """The path of a file beside that of a SQLite database."""
        return self._database_file() + ending

    def hold(self, change: int) -> None:
        """Counts the locks that this thread's connection holds.

        Raises `ConnectionLost` when the last one is given back of a connection that was lost meanwhile.
        """
        own = self._threads.own
        own.held += change
        if own.lost and not own.held:
            del self._threads.own
            raise ConnectionLost(_LOST)

    def close(self) -> None:
        """Closes this thread's connection, which gives back its locks. The next statement opens a new one."""
        own = getattr(self._threads, "own", None)
        if own is not None and not own.lost:
            own.lost = True
            own.connection.close()

    def _own(self) -> _Own:
        own = getattr(self._threads, "own", None)
        if own is not None and own.process == os.getpid():
            if not own.lost:
                return own
            if own.held:
                raise ConnectionLost(_LOST)
        engine = self._engine()
        assert engine is not None, "whoever uses the link has its engine"
        proxy = engine.raw_connection()
        connection = proxy.dbapi_connection
        proxy.detach()
        self._dialect.set_isolation_level(connection, "AUTOCOMMIT")  # type: ignore[arg-type]
        self._threads.own = own = _Own(connection)
        if self._log is not None:
            # No wait for the disk after each statement; `sync` is that.
            own.cursor.execute("PRAGMA synchronous = NORMAL")
        return own

    def _is_lost(self, own: _Own, error: Exception) -> bool:
        errors = self._dialect.loaded_dbapi.Error
        if isinstance(error, errors) and self._dialect.is_disconnect(error, own.connection, own.cursor):  # type: ignore[arg-type]
            own.lost = True
            with contextlib.suppress(errors):
                own.connection.close()
        return own.lost


class Writers:
    """One writer of a SQLite file at a time, and those who wait are woken when it is done.

    SQLite lets one write at a time as well, but those who wait for it sleep and look again, in pauses that grow to a
    tenth of a second. Whoever writes without this, such as a session of SQLAlchemy's, is still waited for in that way.
    """

    def __init__(self, beside: Callable[[str], str]):
        self._files = file_locks(lambda: beside("-lock"))
        self._after_fork()
        _writers.add(self)

    def _after_fork(self) -> None:
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            self._files.acquire(self._files.count)  # one more than there are for senders
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            self._files.release(self._files.count)
        finally:
            self._threads.release()


class WriteAheadLog:
    """The file that SQLite writes to first (https://sqlite.org/wal.html), and how far it has reached the disk.

    What was taken from there into the database meanwhile is on disk as well: for that SQLite waits itself.

    A disk that has failed once may say yes the next time and have forgotten what it was given before (fsync(2)). There
    is a hole in the log then, and what comes behind it is not found any more after a power cut. So nothing is on disk
    from then on until `empty`, which makes SQLite take all into the database and begin the log anew, has done so.
    """

    def __init__(self, database_file: Callable[[], str], empty: Callable[[], None]):
        self._database_file = database_file
        self._empty = empty
        self._failed = False
        self.make_locks()
        self._path: str | None = None
        self._written = 0  # statements
        self._synced = 0  # of them

    def make_locks(self) -> None:
        """Also for the child of a process one of whose threads was just waiting for the disk."""
        self._guard = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def note_write(self) -> None:
        with self._guard:
            self._written += 1

    def behind(self) -> bool:
        return self._synced < self._written

    def sync(self) -> None:
        """Returns when what was written before is on disk. Raises OSError."""
        before = self._written
        with self._one_at_a_time:
            if self._synced >= before:
                return  # with what another thread has just waited for
            written = self._written
            try:
                if self._failed:
                    self._empty()
                else:
                    self._wait()
            except OSError:
                self._failed = True
                raise
            self._failed = False
            self._synced = written

    def _wait(self) -> None:
        if self._path is None:
            self._path = self._database_file() + "-wal"
        try:
            log = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:  # the last connection was closed, and all is in the database
            pass
        else:
            try:
                os.fdatasync(log)  # for its entry in the folder SQLite has waited when it made the file
            finally:
                os.close(log)


class AdvisoryLocks:
    """Locks of PostgreSQL, held by the connection of the thread that takes them, until it gives them back or ends."""

    def __init__(self, link: ThreadLink):
        self._link = link
        number = sqlalchemy.bindparam("number", type_=sqlalchemy.BigInteger)
        self._lock = link.statement(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(number)))
        self._unlock = link.statement(sqlalchemy.select(sqlalchemy.func.pg_advisory_unlock(number)))

    def acquire(self, number: int, patience: float | None = None) -> None:
        """Waits until no other connection holds the lock. Raises the driver's errors: for a deadlock, for instance.

        `patience` is not needed: PostgreSQL finds deadlocks itself.
        """
        try:
            self._link.run(self._lock, {"number": number})
        except Exception:
            raise
        except BaseException:  # KeyboardInterrupt: who knows whether we hold it
            self._link.close()
            raise
        self._link.hold(+1)

    def release(self, number: int) -> None:
        """Gives the lock back. Raises when this thread's connection was lost since, which held it."""
        held = False
        try:
            rows, _ = self._link.run(self._unlock, {"number": number}, again=False)
            held = bool(rows[0][0])
        finally:
            if not held:
                self._link.close()
            self._link.hold(-1)


_LOST = (
    "The connection to the database was lost while it held the lock of a sender, so that another process may hold it "
    "by now. What the handler does now may cross with that."
)


def forget_the_pool_after_fork(engine: Engine) -> None:
    """Lets child processes make connections of their own in place of those that they inherit from this one."""
    _engines.add(engine)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_writers: weakref.WeakSet[Writers] = weakref.WeakSet()


def close_connections() -> None:
    """Closes those of this thread, and all that wait in pools, of the engines of `forget_the_pool_after_fork`."""
    for engine in list(_engines):
        if isinstance(engine.pool, sqlalchemy.pool.StaticPool):
            continue  # a database in memory would be gone
        if engine in _links:
            _links[engine].close()
        engine.dispose()


def _forget_the_pools() -> None:
    for each in list(_writers):
        each._after_fork()  # a thread of the parent's may have held the lock
    for engine in list(_engines):
        if not isinstance(engine.pool, sqlalchemy.pool.StaticPool):  # a database in memory, which the child has whole
            engine.dispose(close=False)
    for link in list(_links.values()):
        link.after_fork()


os.register_at_fork(after_in_child=_forget_the_pools)
