"""Versions of Lamson's own tables: a database that an older Lamson made is brought up to date where it is.

The table ``lamson_schema`` tells of each table which version it has. `prepare` compares that with what this Lamson
knows, makes what is missing, and takes one step after the other from an old version to the present one, with all rows:

* in one transaction: whoever pulls the plug finds the old version again, whole (SQLite and PostgreSQL can do that),
* with others kept out, so that any number of processes may start at once,
* and never backwards: `SchemaError` tells whoever starts an old Lamson on the database of a newer one.

Version 1 is that of the tables that have no row in ``lamson_schema``, as the first Lamsons for Python 3 made them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table
from sqlalchemy.exc import DBAPIError

from lamson.errors import MisuseError, SchemaError

versions = Table(
    "lamson_schema",
    MetaData(),
    Column("name", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
)

Step = Callable[[Connection, Table], None]

# Whoever makes or changes tables on PostgreSQL holds this advisory lock: "lamson" in ASCII.
_POSTGRESQL_LOCK = 0x6C616D736F6E


def prepare(engine: Engine, table: Table, steps: Sequence[Step]) -> None:
    """Makes `table`, or brings it up to date: ``steps[0]`` leads from version 1 to 2, and so on.

    Raises `SchemaError` when the table is of a version that there are no steps to, `MisuseError` when the folder for a
    SQLite file is missing, and SQLAlchemy's errors when the database cannot be reached.
    """
    present = len(steps) + 1
    need_folder(engine)
    with engine.connect() as connection:
        if _version(connection, table, present) == present:
            return
    try:
        with _alone(engine) as connection:
            _bring_up_to_date(connection, table, steps, _version(connection, table, present))
    except DBAPIError:
        # Where others cannot be kept out, one of them may have come first.
        with engine.connect() as connection:
            if _version(connection, table, present) != present:
                raise


def need_folder(engine: Engine) -> None:
    """Raises `MisuseError` when the folder of a SQLite file is missing: SQLite says "unable to open database file"."""
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if file and file != ":memory:" and not file.startswith("file:"):
        folder = os.path.dirname(os.path.abspath(file))
        if not os.path.isdir(folder):
            raise MisuseError(f"There is no folder {folder} for the database {file}. Make it, or change the 'url'.")


def _version(connection: Connection, table: Table, present: int) -> int:
    """The version that the table has in the database, 0 when it is not there."""
    there = sqlalchemy.inspect(connection)
    found = None
    if there.has_table(versions.name):
        found = connection.scalar(sqlalchemy.select(versions.c.version).where(versions.c.name == table.name))
    if found is None:
        return 1 if there.has_table(table.name) else 0
    if found > present:
        raise SchemaError(
            f"The table {table.name} has version {found}, and this Lamson knows versions up to {present}: a newer "
            "Lamson has been at work on this database. Install that one, or name another database in the 'url'."
        )
    return found


def _bring_up_to_date(connection: Connection, table: Table, steps: Sequence[Step], version: int) -> None:
    if version == len(steps) + 1:
        return
    if version == 0:
        table.create(connection)
    else:
        for step in steps[version - 1 :]:
            step(connection, table)
    versions.create(connection, checkfirst=True)
    connection.execute(sqlalchemy.delete(versions).where(versions.c.name == table.name))
    connection.execute(sqlalchemy.insert(versions), {"name": table.name, "version": len(steps) + 1})


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that others wait for who want the same; what fails is undone."""
    if engine.dialect.name == "sqlite":
        # Python's driver does not begin a transaction before it makes a table, so we do.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
        return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _POSTGRESQL_LOCK})
        yield connection
