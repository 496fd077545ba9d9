"""States and confirmations in a database, and the convenience for projects that use SQLAlchemy.

In a project's boot file:

    settings.database = configure_database({"metadata": metadata, "url": "sqlite:///app/data/lamson.db"})
    settings.confirmations = SQLAlchemyConfirmationStorage(settings.database)
    Router.STATE_STORE = SQLAlchemyStorage(settings.database)

What is promised:

* A state that was set is read by other processes at once, and is still there after the process was killed. After a
  power cut it is there once `SQLAlchemyStorage.sync` has returned, which receivers call before they acknowledge a
  message: as far as SQLite and the disk keep their own promises. A confirmation that was stored is there at once.
* Any number of threads may use one storage. SQLite lets one write at a time; others wait up to 30 seconds for it.
* On SQLite files and PostgreSQL any number of processes may, and `SQLAlchemyStorage.lock` holds between them.
* Keys, senders and states of any length and any characters can be stored.
* Nothing connects before it must. The boot file runs before the server drops its privileges, and a SQLite file made
  by root could not be written afterwards.
* Tables that an older Lamson made are brought up to date (`lamson.schema`).
* An error of the database comes through: as SQLAlchemy's when a table is made, as the driver's from then on.
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy
from sqlalchemy import Column, Engine, MetaData, Table, Text, bindparam
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool, SingletonThreadPool, StaticPool

from lamson.errors import MisuseError
from lamson.filelocks import file_locks
from lamson.routing import ROUTE_FIRST_STATE, Router, StateStorage
from lamson.rows import KEY, TABLE_OPTIONS, Rows, insert_if_missing, is_linked, key
from lamson.schema import need_folder
from lamson.sessions import Sessions, call_sessions, close_sessions
from lamson.sqlitelog import use_log
from lamson.states import Beyond, KeyedLocks, digest
from lamson.threadlink import AdvisoryLocks, ThreadLink, close_connections, forget_the_pool_after_fork

BUSY_TIMEOUT = 30
"""Seconds a SQLite connection waits for the write of another one before it fails with "database is locked"."""

PAGE_CACHE = 16_384
"""KiB of a SQLite file that a connection keeps in memory, at most: the upper levels of an index of millions of rows."""

DEAD_AFTER = {"idle": 30, "interval": 10, "count": 3}
"""Of PostgreSQL: after 30 seconds of silence either side asks whether the other one is there, and after three times 10
seconds without an answer it is dead. A machine that has lost its power or its network says no good-bye, and the locks
of its senders would be held for more than two hours otherwise, as the network counts by itself."""

CONFIG_KEYS = ("metadata", "url", "log_level")


class Database:
    """What `configure_database` returns.

    `engine` is SQLAlchemy's engine. `session` is a ``scoped_session``: each call of a handler has a session of its own.
    It is committed when the handler returns, and rolled back when it raises (`lamson.sessions`):

        settings.database.session.add(Subscription(address=message.route_from))

    Outside of handlers each thread has one. Leave that by ``with``, since a transaction left open keeps other writers
    waiting:

        with settings.database.session() as session, session.begin():
            session.add(Subscription(address="zed@example.com"))
    """

    def __init__(self, engine: Engine, metadata: MetaData | None = None):
        self.engine = engine
        self.metadata = metadata
        make = sessionmaker(engine)
        self.sessions = Sessions(make)
        self.session: scoped_session[Session] = scoped_session(make)
        self.session.registry = self.sessions

    def create_tables(self) -> None:
        """Makes the tables of `metadata` that are missing. Leaves those alone that are there."""
        if self.metadata is not None:
            _create(self.metadata, self.engine)


def configure_database(config: Mapping[str, Any], also_create: bool = False) -> Database:
    """Returns the `Database` that `config` describes, with the tables made when `also_create` is true.

    `config` has the keys

    * ``url``: where the database is, as SQLAlchemy writes it: ``sqlite:///app/data/lamson.db``.
    * ``metadata``: the ``MetaData`` that holds your tables, or the declarative base of your classes; may be left out.
    * ``log_level``: the level for the log of SQL statements, ``sqlalchemy.engine``. ``logging.INFO`` shows each.

    Handlers of the Router have its sessions from now on, see `Database`.

    Raises `MisuseError` for another key, or without a ``url``. Without `also_create` it does not connect.
    """
    unknown = sorted(set(config) - set(CONFIG_KEYS))
    if unknown:
        raise MisuseError(f"database_config does not know {', '.join(unknown)}; it takes {', '.join(CONFIG_KEYS)}.")
    if not config.get("url"):
        raise MisuseError("database_config has no 'url'. One for SQLite is 'sqlite:///app/data/lamson.db'.")

    if config.get("log_level") is not None:
        logging.getLogger("sqlalchemy.engine").setLevel(config["log_level"])
    metadata = config.get("metadata")
    database = Database(_engine(config["url"]), getattr(metadata, "metadata", metadata))
    if call_sessions not in Router.AROUND:
        Router.AROUND.append(call_sessions)
    if also_create:
        database.create_tables()
    return database


def leave_nothing_open() -> None:
    """Closes the sessions and connections of this thread, and the connections that wait in pools: before a fork.

    SQLite knows by locks who else has its file open. Those of a connection that is open at the fork are the parent's
    alone, and SQLite in the child does not take its own ones beside it. Once the parent were dead, any program that
    closes the file would take its log away, and what the child writes from then on would be in no file.
    """
    close_sessions()
    close_connections()


class SQLAlchemyStorage(Rows, StateStorage):
    """States in the table ``lamson_state`` of a database: a URL, an engine, or what `configure_database` returned.

    `prepare`, which the server calls when it starts and ``lamson syncdb`` too, makes the table when it is missing;
    otherwise the first use does.
    """

    table = Table(
        "lamson_state",
        MetaData(),
        Column("id", KEY, primary_key=True),
        Column("state_key", Text, nullable=False),
        Column("sender", Text, nullable=False),
        Column("state", Text, nullable=False),
        **TABLE_OPTIONS,
    )
    names = ("state_key", "sender")
    synced_later = True

    def __init__(self, bind: "Database | Engine | str | sqlalchemy.URL"):
        super().__init__(_engine_of(bind, type(self)), bind.sessions if isinstance(bind, Database) else None)
        beyond: Beyond | None = None
        self._slots = 1 << 62
        if isinstance(self._way, ThreadLink) and self.engine.dialect.name == "sqlite":
            link = self._way
            files = file_locks(lambda: link.beside("-lock"))
            beyond, self._slots = files, files.count
        elif isinstance(self._way, ThreadLink):
            beyond = AdvisoryLocks(self._way)
        self._locks = KeyedLocks(beyond)

    @property
    def shared(self) -> bool:  # type: ignore[override]
        """True for SQLite files and PostgreSQL. Other databases have no lock here that several processes know."""
        return is_linked(self.engine)

    def get(self, key: str, sender: str) -> str:
        """Returns the state of `sender` under `key`; ``START`` when there is none."""
        row = self._read(key, sender)
        return ROUTE_FIRST_STATE if row is None else row[0]

    def set(self, key: str, sender: str, state: str) -> None:
        """Stores the state of `sender` under `key`. ``START`` forgets it, as if it had never been set."""
        # A sender who stays in a state is most mail there is, and reading waits neither for the disk nor for others.
        if not self.looks_when_it_writes and state == self.get(key, sender):
            return
        if state == ROUTE_FIRST_STATE:
            self._remove(key, sender)
        else:
            self._write(key, sender, state=state)

    def lock(self, key: str, sender: str) -> AbstractContextManager:
        """Hold this while a handler runs for the sender: no other one with the same key and sender runs then.

        A thread that holds it may enter again. It ends with the process, however that ends.

        On a SQLite file it is a lock of the operating system, in a file beside it (``lamson.db-lock``). Deadlocks are
        not found, but a thread that holds such a lock does not wait for ever for a second one (`LockTimeout`).

        On PostgreSQL it is an advisory lock that the thread's connection holds, and states are read and set through
        the same connection. When that is lost, `lamson.threadlink.ConnectionLost` is raised at once where the thread
        goes on to use it, and at the latest at the end of the block.
        """
        return self._locks.hold(int.from_bytes(digest(key, sender)[-8:]) % self._slots)

    def unsynced(self) -> bool:
        """Whether a state was set that a power cut could take along."""
        return self._way.unsynced()

    def sync(self) -> None:
        """Returns when all states that were set before are on disk, and all else in the same file. Raises OSError."""
        self._way.sync()


class SQLAlchemyConfirmationStorage(Rows):
    """What waits to be confirmed, in the table ``lamson_confirmation`` of a database, which is given as above.

    It has the methods of `lamson.confirm.ConfirmationStorage`, and several processes may use it at once. The table is
    made by the first use when it is missing, or by `prepare`.
    """

    table = Table(
        "lamson_confirmation",
        MetaData(),
        Column("id", KEY, primary_key=True),
        Column("target", Text, nullable=False),
        Column("sender", Text, nullable=False),
        Column("secret", Text, nullable=False),
        Column("pending_id", Text, nullable=False),
        **TABLE_OPTIONS,
    )
    names = ("target", "sender")

    def __init__(self, bind: "Database | Engine | str | sqlalchemy.URL"):
        super().__init__(_engine_of(bind, type(self)), bind.sessions if isinstance(bind, Database) else None)
        forget = sqlalchemy.delete(self.table).where(self.table.c.pending_id == bindparam("gone"))
        self._forget = self._way.statement(forget)
        self._insert = self._way.statement(insert_if_missing(self.table, self.engine.dialect.name))
        same = (self.table.c.id == bindparam("id_"), self.table.c.pending_id == bindparam("former"))
        new: dict[str, Any] = {"secret": bindparam("new_secret"), "pending_id": bindparam("new_pending_id")}
        self._update = self._way.statement(sqlalchemy.update(self.table).where(*same).values(new))

    def get(self, target: str, from_address: str) -> tuple[str, str] | tuple[None, None]:
        """Returns ``(secret, pending_id)``, or ``(None, None)`` when nothing waits to be confirmed."""
        row = self._read(target, from_address)
        return (None, None) if row is None else (row[0], row[1])

    def store(self, target: str, from_address: str, secret: str, pending_id: str) -> None:
        """Stores the secret and the key of the pending message, in place of what was there."""
        self._write(target, from_address, secret=secret, pending_id=pending_id)

    def replace(self, target: str, from_address: str, former: str | None, secret: str, pending_id: str) -> bool:
        """Stores as `store` does, if the pending message there is still `former`, None for none. Returns whether."""
        if former is None:
            return self._add(self._insert, target, from_address, secret=secret, pending_id=pending_id)
        values = {"id_": key(target, from_address), "former": former}
        values |= {"new_secret": secret, "new_pending_id": pending_id}
        return self._change(self._update, values, again=False) > 0

    def delete(self, target: str, from_address: str) -> bool:
        """Forgets an entry. Returns whether there was one: of two that delete it at once, one is told so."""
        return self._remove(target, from_address, again=False)

    def forget(self, pending_ids: Collection[str]) -> None:
        """Forgets the entries of these pending messages, which were too old."""
        for pending_id in pending_ids:
            self._change(self._forget, {"gone": pending_id})


def _engine_of(bind: Any, user: type) -> Engine:
    if isinstance(bind, Database):
        engine = bind.engine
    elif isinstance(bind, Engine):
        engine = bind
    elif isinstance(bind, str | sqlalchemy.URL):
        engine = _engine(bind)
    else:
        raise MisuseError(f"{user.__name__} takes an engine, a URL or a Database, and not {bind!r}.")
    if isinstance(engine.pool, SingletonThreadPool):
        raise MisuseError(
            "This engine gives each thread an empty SQLite database of its own. Name a file, or make the engine "
            "with configure_database, which shares one database in memory between all threads."
        )
    _harden(engine)
    return engine


def _engine(url: str | sqlalchemy.URL) -> Engine:
    url = sqlalchemy.make_url(url)
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        # Each connection to memory is a database of its own, so that all threads have to share one.
        engine = sqlalchemy.create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        options: dict[str, Any] = {}
        dialect: Any = url.get_dialect()
        if issubclass(dialect.get_pool_class(url), QueuePool):
            # Handlers' threads are limited in number. A second limit would let some of them wait for others in vain.
            options["max_overflow"] = -1
        if url.get_backend_name() != "sqlite":
            options["pool_pre_ping"] = True  # a database that was restarted fails no handler afterwards
        if dialect.name == "postgresql" and dialect.driver in ("psycopg", "psycopg2"):
            ours = {f"keepalives_{name}": number for name, number in DEAD_AFTER.items()}
            ours["tcp_user_timeout"] = 1000 * _dead_after()
            options["connect_args"] = {name: number for name, number in ours.items() if name not in url.query}
        engine = sqlalchemy.create_engine(url, **options)
    _harden(engine)
    return engine


def _harden(engine: Engine) -> None:
    """Make each connection to SQLite one that keeps its promises under several threads, processes and power cuts."""
    forget_the_pool_after_fork(engine)
    if engine.dialect.name == "sqlite" and not sqlalchemy.event.contains(engine, "connect", _set_pragmas):
        sqlalchemy.event.listen(engine, "connect", _set_pragmas)
    if engine.dialect.name == "postgresql" and not sqlalchemy.event.contains(engine, "connect", _ask_whether_we_live):
        sqlalchemy.event.listen(engine, "connect", _ask_whether_we_live)


def _dead_after() -> int:
    return DEAD_AFTER["idle"] + DEAD_AFTER["interval"] * DEAD_AFTER["count"]


def _ask_whether_we_live(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    for name, number in DEAD_AFTER.items():
        cursor.execute(f"SET tcp_keepalives_{name} = {number}")
    cursor.execute(f"SET tcp_user_timeout = '{_dead_after()}s'")
    cursor.close()
    connection.commit()


def _set_pragmas(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000}")
    use_log(cursor, BUSY_TIMEOUT)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA cache_size = -{PAGE_CACHE}")
    cursor.close()


def _create(metadata: MetaData, engine: Engine) -> None:
    """Make the tables that are missing, which another process may be doing at the same moment."""
    need_folder(engine)
    try:
        metadata.create_all(engine)
    except DBAPIError:
        there = set(sqlalchemy.inspect(engine).get_table_names())
        if not there.issuperset(metadata.tables):
            raise
