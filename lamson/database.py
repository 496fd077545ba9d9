"""States and confirmations in a database, and the convenience for projects that use SQLAlchemy.

In a project's boot file:

    settings.database = configure_database({"metadata": metadata, "url": "sqlite:///app/data/lamson.db"})
    settings.confirmations = SQLAlchemyConfirmationStorage(settings.database)
    Router.STATE_STORE = SQLAlchemyStorage(settings.database)

What is promised:

* A state that was set is still there after the process was killed or the power was cut, as far as SQLite and the
  disk keep their own promises (write-ahead log, ``synchronous=FULL``), and other processes read it at once.
* Any number of threads may use one storage. SQLite lets one write at a time; others wait up to 30 seconds for it.
* Keys, senders and states of any length and any characters can be stored.
* Nothing connects before it must. The boot file runs before the server drops its privileges, and a SQLite file made
  by root could not be written afterwards.

SQLite and PostgreSQL write a state with one statement, any other database of SQLAlchemy's with two or three.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sqlalchemy
from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, Text, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from lamson.errors import MisuseError
from lamson.routing import ROUTE_FIRST_STATE, StateStorage

BUSY_TIMEOUT = 30
"""Seconds a SQLite connection waits for the write of another one before it fails with "database is locked"."""

CONFIG_KEYS = ("metadata", "url", "log_level")


class Database:
    """What `configure_database` returns.

    `engine` is SQLAlchemy's engine. `session` is a ``scoped_session``: each thread that calls it gets a session of its
    own. Leave it by ``with``, since a transaction left open keeps other writers waiting:

        with settings.database.session() as session, session.begin():
            session.add(Subscription(address=message.route_from))
    """

    def __init__(self, engine: Engine, metadata: MetaData | None = None):
        self.engine = engine
        self.metadata = metadata
        self.session: scoped_session[Session] = scoped_session(sessionmaker(engine))

    def create_tables(self) -> None:
        """Makes the tables of `metadata` that are missing. Leaves those alone that are there."""
        if self.metadata is not None:
            _create(self.metadata, self.engine)


def configure_database(config: Mapping[str, Any], also_create: bool = False) -> Database:
    """Returns the `Database` that `config` describes, with the tables made when `also_create` is true.

    `config` has the keys

    * ``url``: where the database is, as SQLAlchemy writes it: ``sqlite:///app/data/lamson.db``.
    * ``metadata``: the ``MetaData`` that holds your tables; may be left out by those who have none.
    * ``log_level``: the level for the log of SQL statements, ``sqlalchemy.engine``. ``logging.INFO`` shows each.

    Raises `MisuseError` for another key, or without a ``url``. Without `also_create` it does not connect.
    """
    unknown = sorted(set(config) - set(CONFIG_KEYS))
    if unknown:
        raise MisuseError(f"database_config does not know {', '.join(unknown)}; it takes {', '.join(CONFIG_KEYS)}.")
    if not config.get("url"):
        raise MisuseError("database_config has no 'url'. One for SQLite is 'sqlite:///app/data/lamson.db'.")

    if config.get("log_level") is not None:
        logging.getLogger("sqlalchemy.engine").setLevel(config["log_level"])
    database = Database(_engine(config["url"]), config.get("metadata"))
    if also_create:
        database.create_tables()
    return database


class _Rows:
    """A table that is found by two texts: what the storages below have in common.

    `table` has the columns ``id``, two for the texts (`names`), and those with values.
    """

    table: Table
    names: tuple[str, str]

    def __init__(self, bind: Database | Engine | str | sqlalchemy.URL):
        if isinstance(bind, Database):
            engine = bind.engine
        elif isinstance(bind, Engine):
            engine = bind
        elif isinstance(bind, str | sqlalchemy.URL):
            engine = _engine(bind)
        else:
            raise MisuseError(f"{type(self).__name__} takes an engine, a URL or a Database, and not {bind!r}.")
        if isinstance(engine.pool, SingletonThreadPool):
            raise MisuseError(
                "This engine gives each thread an empty SQLite database of its own. Name a file, or make the engine "
                "with configure_database, which shares one database in memory between all threads."
            )
        _harden(engine)
        super().__init__()
        self.engine = engine
        # Every call is one statement, which a database carries out whole or not at all: no BEGIN and COMMIT around it.
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        # One connection for all threads cannot run two statements at once.
        self._one_at_a_time: AbstractContextManager = (
            threading.RLock() if isinstance(engine.pool, StaticPool) else nullcontext()
        )
        self._prepared = False
        self._preparing = threading.Lock()
        self._values = [column for column in self.table.columns if column.name not in ("id", *self.names)]
        self._select = sqlalchemy.select(*self._values).where(self.table.c.id == bindparam("id_"))
        self._delete = sqlalchemy.delete(self.table).where(self.table.c.id == bindparam("id_"))
        self._upsert = self._upsert_statement()

    def prepare(self) -> None:
        """Makes the table when it is missing. Raises SQLAlchemy's error when the database cannot be reached."""
        with self._preparing:
            if not self._prepared:
                with self._one_at_a_time:
                    _create(self.table.metadata, self.engine)
                self._prepared = True

    def clear(self) -> None:
        """Forgets everything."""
        with self._connection() as connection:
            connection.execute(sqlalchemy.delete(self.table))

    def _read(self, first: str, second: str) -> Any:
        """The values of a row; None when there is no such row."""
        with self._connection() as connection:
            return connection.execute(self._select, {"id_": self._id(first, second)}).first()

    def _write(self, first: str, second: str, **values: str) -> None:
        """Put values into a row, which is made when it is missing."""
        names = zip(self.names, (_storable(first), _storable(second)), strict=True)
        row = {"id": self._id(first, second), **dict(names), **values}
        with self._connection() as connection:
            if self._upsert is not None:
                connection.execute(self._upsert, row)
            else:
                self._update_or_insert(connection, row, values)

    def _remove(self, first: str, second: str) -> bool:
        """Take a row out. Returns whether it was there."""
        with self._connection() as connection:
            return connection.execute(self._delete, {"id_": self._id(first, second)}).rowcount > 0

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if not self._prepared:
            self.prepare()
        with self._one_at_a_time, self._autocommit.connect() as connection:
            yield connection

    @staticmethod
    def _id(first: str, second: str) -> str:
        # The length in front keeps ("a", "bc") and ("ab", "c") apart. Surrogates are what undecodable bytes became.
        return hashlib.sha256(f"{len(first)} {first}{second}".encode("utf-8", "surrogatepass")).hexdigest()

    def _upsert_statement(self) -> Any:
        """The statement that inserts a row or replaces the one there is; None for a database that has none."""
        inserts: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        if self.engine.dialect.name not in inserts:
            return None
        insert = inserts[self.engine.dialect.name](self.table)
        return insert.on_conflict_do_update(
            index_elements=[self.table.c.id],
            set_={column.name: insert.excluded[column.name] for column in self._values},
            # A sender who stays in a state is most mail there is, and a write that changes nothing waits for no disk.
            where=sqlalchemy.or_(*(column != insert.excluded[column.name] for column in self._values)),
        )

    def _update_or_insert(self, connection: Connection, row: dict[str, str], values: dict[str, str]) -> None:
        update = sqlalchemy.update(self.table).where(self.table.c.id == row["id"]).values(values)
        while not connection.execute(update).rowcount:
            try:
                connection.execute(sqlalchemy.insert(self.table), row)
                return
            except IntegrityError:
                continue  # somebody else inserted it since the update found nothing


class SQLAlchemyStorage(_Rows, StateStorage):
    """States in the table ``lamson_state`` of a database: a URL, an engine, or what `configure_database` returned.

    `prepare`, which the server calls when it starts and ``lamson syncdb`` too, makes the table when it is missing;
    otherwise the first use does.
    """

    # The key is a digest because an address or a state key may be longer than what a database can index (PostgreSQL:
    # 2,700 bytes). `state_key` and `sender` are for people who look into the table.
    table = Table(
        "lamson_state",
        MetaData(),
        Column("id", String(64), primary_key=True),
        Column("state_key", Text, nullable=False),
        Column("sender", Text, nullable=False),
        Column("state", Text, nullable=False),
    )
    names = ("state_key", "sender")

    def get(self, key: str, sender: str) -> str:
        """Returns the state of `sender` under `key`; ``START`` when there is none."""
        row = self._read(key, sender)
        return ROUTE_FIRST_STATE if row is None else row.state

    def set(self, key: str, sender: str, state: str) -> None:
        """Stores the state of `sender` under `key`. ``START`` forgets it, as if it had never been set."""
        if state == ROUTE_FIRST_STATE:
            self._remove(key, sender)
        else:
            self._write(key, sender, state=state)


class SQLAlchemyConfirmationStorage(_Rows):
    """What waits to be confirmed, in the table ``lamson_confirmation`` of a database, which is given as above.

    It has the methods of `lamson.confirm.ConfirmationStorage`, and several processes may use it at once. The table is
    made by the first use when it is missing, or by `prepare`.
    """

    table = Table(
        "lamson_confirmation",
        MetaData(),
        Column("id", String(64), primary_key=True),
        Column("target", Text, nullable=False),
        Column("sender", Text, nullable=False),
        Column("secret", Text, nullable=False),
        Column("pending_id", Text, nullable=False),
    )
    names = ("target", "sender")

    def get(self, target: str, from_address: str) -> tuple[str, str] | tuple[None, None]:
        """Returns ``(secret, pending_id)``, or ``(None, None)`` when nothing waits to be confirmed."""
        row = self._read(target, from_address)
        return (None, None) if row is None else (row.secret, row.pending_id)

    def store(self, target: str, from_address: str, secret: str, pending_id: str) -> None:
        """Stores the secret and the key of the pending message, in place of what was there."""
        self._write(target, from_address, secret=secret, pending_id=pending_id)

    def delete(self, target: str, from_address: str) -> bool:
        """Forgets an entry. Returns whether there was one: of two that delete it at once, one is told so."""
        return self._remove(target, from_address)

    def forget(self, pending_ids: Collection[str]) -> None:
        """Forgets the entries of these pending messages, which were too old."""
        forget = sqlalchemy.delete(self.table).where(self.table.c.pending_id == bindparam("gone"))
        if pending_ids:
            with self._connection() as connection:
                connection.execute(forget, [{"gone": pending_id} for pending_id in pending_ids])


def _engine(url: str | sqlalchemy.URL) -> Engine:
    url = sqlalchemy.make_url(url)
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        # Each connection to memory is a database of its own, so that all threads have to share one.
        engine = sqlalchemy.create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = sqlalchemy.create_engine(url)
    _harden(engine)
    return engine


def _harden(engine: Engine) -> None:
    """Make each connection to SQLite one that keeps its promises under several threads, processes and power cuts."""
    if engine.dialect.name == "sqlite" and not sqlalchemy.event.contains(engine, "connect", _set_pragmas):
        sqlalchemy.event.listen(engine, "connect", _set_pragmas)


def _set_pragmas(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _create(metadata: MetaData, engine: Engine) -> None:
    """Make the tables that are missing, which another process may be doing at the same moment."""
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if file and file != ":memory:" and not file.startswith("file:"):
        folder = os.path.dirname(os.path.abspath(file))
        if not os.path.isdir(folder):  # SQLite would only say "unable to open database file"
            raise MisuseError(f"There is no folder {folder} for the database {file}. Make it, or change the 'url'.")
    try:
        metadata.create_all(engine)
    except DBAPIError:
        there = set(sqlalchemy.inspect(engine).get_table_names())
        if not there.issuperset(metadata.tables):
            raise


def _storable(text: str) -> str:
    """Text that every database takes: surrogates and NUL, which PostgreSQL refuses, are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
