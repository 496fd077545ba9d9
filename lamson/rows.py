"""Rows of a table that are found by two texts, such as a sender and the name of a list: what storages are made of.

`Rows` reads and writes one row at a time, each with one statement. A row's key is a digest of the two texts, because an
address may be longer than what a database can index (PostgreSQL: 2,700 bytes). The texts are in columns of their own
for people who look into the table.

A handler that has a transaction open in its session (`lamson.sessions`) gets what it does here into the same one: it is
saved or undone with the rest, and SQLite, which has one writer at a time, does not wait for it in vain.

Otherwise SQLite files and PostgreSQL are reached by `lamson.threadlink`, all other databases, and SQLite in memory, as
SQLAlchemy does it.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, LargeBinary, MetaData, Table, bindparam
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import StaticPool

from lamson import schema
from lamson.sessions import Sessions
from lamson.states import digest, storable
from lamson.threadlink import Statement, ThreadLink, thread_link

KEY = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
"""The type of a key. Half of the digest is long enough that nobody finds two texts with the same, and half as large."""

TABLE_OPTIONS: dict[str, Any] = {
    "sqlite_with_rowid": False,
    # All of Unicode, whatever the database is set to.
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
}
"""What each table is made with, beyond its columns."""

_NO_TURN = nullcontext()  # what only reads waits for nobody


class Rows:
    """`table` has the columns ``id``, two for the texts (`names`), and those with values."""

    table: Table
    names: tuple[str, str]
    synced_later = False
    """Whether somebody else calls `sync` of the link before it matters that a change is on disk."""

    def __init__(self, engine: Engine, sessions: Sessions | None = None):
        super().__init__()
        self.engine = engine
        self._sessions = sessions
        self._prepared = False
        self._preparing = threading.Lock()
        self._way: ThreadLink | Pooled = thread_link(engine) if is_linked(engine) else Pooled(engine)
        values = [column for column in self.table.columns if column.name not in ("id", *self.names)]
        here = self.table.c.id == bindparam("id_")
        self._select = self._way.statement(sqlalchemy.select(*values).where(here))
        self._delete = self._way.statement(sqlalchemy.delete(self.table).where(here))
        self._delete_all = self._way.statement(sqlalchemy.delete(self.table))
        self.looks_when_it_writes = engine.dialect.name == "postgresql"
        """Whether `_write` and `_remove` leave alone what is so already, and cost no more than to read it."""
        self._upsert = _upsert(self.table, values, engine.dialect.name)
        if self._upsert is not None:
            self._upsert = self._way.statement(self._upsert)

    def prepare(self) -> None:
        """Makes the table when it is missing, and brings it up to date when an older Lamson made it.

        Raises `SchemaError` when a newer one made it, and SQLAlchemy's error when the database cannot be reached.
        """
        with self._preparing:
            if not self._prepared:
                with self._way.alone() if isinstance(self._way, Pooled) else nullcontext():
                    schema.prepare(self.engine, self.table, [shorten_keys])
                self._prepared = True

    def clear(self) -> None:
        """Forgets everything."""
        self._change(self._delete_all, {})

    def _read(self, first: str, second: str) -> Any:
        """The values of a row; None when there is no such row."""
        rows = self._run(self._select, {"id_": key(first, second)})[0]
        return rows[0] if rows else None

    def _write(self, first: str, second: str, **values: str) -> None:
        """Put values into a row, which is made when it is missing."""
        row = self._row(first, second, values)
        if self._upsert is not None:
            self._change(self._upsert, row)
        else:
            self._update_or_insert(row, values)

    def _add(self, insert: Statement, first: str, second: str, **values: str) -> bool:
        """Make a row, with the statement of `insert_if_missing`. Returns False when there is one."""
        try:
            return self._change(insert, self._row(first, second, values), again=False) > 0
        except IntegrityError:
            return False

    def _row(self, first: str, second: str, values: dict[str, str]) -> dict[str, Any]:
        names = zip(self.names, (storable(first), storable(second)), strict=True)
        return {"id": key(first, second), **dict(names), **values}

    def _remove(self, first: str, second: str, again: bool = True) -> bool:
        """Take a row out. Returns whether it was there."""
        return self._change(self._delete, {"id_": key(first, second)}, again) > 0

    def _change(self, statement: Statement, values: Any, again: bool = True) -> int:
        """Carry out what changes rows. Returns how many."""
        changed = self._run(statement, values, again, self._way.writing())[1]
        if not self.synced_later:
            self._way.sync()
        return changed

    def _run(
        self, statement: Statement, values: Any, again: bool = True, turn: AbstractContextManager = _NO_TURN
    ) -> tuple[list[Any], int]:
        if not self._prepared:
            self.prepare()
        if self._sessions is not None and (session := self._sessions.of_call()) is not None:
            return results(session.connection(), statement, values)
        with turn:
            return self._way.run(statement, values, again)

    def _update_or_insert(self, row: dict[str, Any], values: dict[str, str]) -> None:
        update = sqlalchemy.update(self.table).where(self.table.c.id == row["id"]).values(values)
        insert = sqlalchemy.insert(self.table).values(row)
        while not self._change(self._way.statement(update), {}):
            try:
                self._change(self._way.statement(insert), {})
                return
            except IntegrityError:
                continue  # somebody else inserted it since the update found nothing


class Pooled:
    """The way that every database of SQLAlchemy's can go, in place of a `ThreadLink`."""

    def __init__(self, engine: Engine):
        # Every call is one statement, which a database carries out whole or not at all: no BEGIN and COMMIT around it.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        # One connection for all threads cannot run two statements at once.
        self._one_at_a_time: AbstractContextManager = (
            threading.RLock() if isinstance(engine.pool, StaticPool) else nullcontext()
        )

    def statement(self, clause: Any) -> Statement:
        return Statement(clause, "", None)

    def run(self, statement: Statement, values: Any, again: bool = True) -> tuple[list[Any], int]:
        with self.alone(), self._engine.connect() as connection:
            return results(connection, statement, values)

    def writing(self) -> AbstractContextManager:
        return _NO_TURN

    def unsynced(self) -> bool:
        return False  # here a statement is on disk when it is carried out

    def sync(self) -> None:
        """Nothing is left to do."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._one_at_a_time:
            yield


def results(connection: Connection, statement: Statement, values: Any) -> tuple[list[Any], int]:
    """Carries a statement out in a connection of SQLAlchemy's. Returns its rows, and how many it touched."""
    result = connection.execute(statement.clause, values)
    return (list(result.all()) if result.returns_rows else []), result.rowcount


def is_linked(engine: Engine) -> bool:
    """Whether each thread has a connection of its own to this database: a SQLite file, or PostgreSQL."""
    if engine.dialect.is_async:
        return False
    return engine.dialect.name == "postgresql" or (engine.dialect.driver == "pysqlite" and not in_memory(engine))


def in_memory(engine: Engine) -> bool:
    """Whether it is a SQLite database in memory, which ends with the process."""
    if engine.dialect.name != "sqlite":
        return False
    file = engine.url.database
    if isinstance(engine.pool, StaticPool) or not file:
        return True
    return ":memory:" in file or engine.url.query.get("mode") == "memory"


def key(first: str, second: str) -> bytes:
    """The key of the row for two texts."""
    return digest(first, second)[:16]


def _upsert(table: Table, values: list[Any], dialect: str) -> Any:
    """The statement that inserts a row or replaces the one there is; None for a database that has none."""
    if dialect not in _INSERTS:
        return None
    insert = _INSERTS[dialect](table)
    if dialect == "postgresql":
        # A row that conflicts is locked, and that is a write, even where it is not changed then.
        row = {column.name: bindparam(column.name, type_=column.type) for column in table.columns}
        same = sqlalchemy.and_(table.c.id == row["id"], *(column == row[column.name] for column in values))
        new = sqlalchemy.select(*row.values()).where(~sqlalchemy.exists().where(same))
        insert = insert.from_select(list(row), new)
    return insert.on_conflict_do_update(
        index_elements=[table.c.id],
        set_={column.name: insert.excluded[column.name] for column in values},
        where=sqlalchemy.or_(*(column != insert.excluded[column.name] for column in values)),
    )


def insert_if_missing(table: Table, dialect: str) -> Any:
    """The statement that inserts a row, and does nothing when there is one, or raises IntegrityError then."""
    if dialect not in _INSERTS:
        return sqlalchemy.insert(table)
    return _INSERTS[dialect](table).on_conflict_do_nothing(index_elements=[table.c.id])


_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def shorten_keys(connection: Connection, table: Table) -> None:
    """From version 1 to 2: the key was the digest's 64 hexadecimal digits, and is its first 16 bytes.

    A table of a million senders takes 84 megabytes in SQLite instead of 213, and reading from it half the time.
    """
    if connection.dialect.name == "postgresql":
        change = "ALTER TABLE {} ALTER COLUMN id TYPE bytea USING decode(substr(id, 1, 32), 'hex')"
        connection.exec_driver_sql(change.format(table.name))
        return
    former, new = f"{table.name}_1", table.to_metadata(MetaData(), name=f"{table.name}_2")
    in_steps = connection.dialect.name in ("mysql", "mariadb")
    if in_steps:
        # They take nothing back of this when it is cut off. So both names change at once; before, it begins anew.
        columns = {each["name"]: each["type"] for each in sqlalchemy.inspect(connection).get_columns(table.name)}
        if isinstance(columns["id"], mysql.BINARY):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {former}")
            return
        new.drop(connection, checkfirst=True)
    new.create(connection)
    names = [column.name for column in table.columns]
    old = sqlalchemy.table(table.name, *map(sqlalchemy.column, names))
    for some in connection.execute(sqlalchemy.select(old)).partitions(1000):
        connection.execute(sqlalchemy.insert(new), [{**row._mapping, "id": bytes.fromhex(row.id)[:16]} for row in some])
    if in_steps:
        connection.exec_driver_sql(f"RENAME TABLE {table.name} TO {former}, {new.name} TO {table.name}")
        connection.exec_driver_sql(f"DROP TABLE {former}")
        return
    connection.exec_driver_sql(f"DROP TABLE {table.name}")
    connection.exec_driver_sql(f"ALTER TABLE {new.name} RENAME TO {table.name}")
