"""Versions of Lamson's tables: an old database becomes a new one where it is, and a newer one is left alone."""

import sqlite3
from contextlib import closing

import pytest

from lamson.database import SQLAlchemyConfirmationStorage, SQLAlchemyStorage
from lamson.errors import SchemaError
from processes import states_read_at_once

# A database of version 1 with rows in it, as the first Lamson for Python 3 wrote it.
VERSION_1 = r"""
    CREATE TABLE lamson_confirmation (
        id VARCHAR(64) NOT NULL, target TEXT NOT NULL, sender TEXT NOT NULL, secret TEXT NOT NULL,
        pending_id TEXT NOT NULL, PRIMARY KEY (id));
    INSERT INTO lamson_confirmation VALUES(
        '98de8cbd945845d29e953d234ba7523d0acfbd46b608cdf84ad7d707ef6cf1b9','cats','zed@example.com','abc','17.M1');
    CREATE TABLE lamson_state (
        id VARCHAR(64) NOT NULL, state_key TEXT NOT NULL, sender TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (id));
    INSERT INTO lamson_state VALUES(
        '8f3ca22ee97cc498ffe2f04d90ace9d244b907351a0e4b0cfb7fc6016a568973',
        'app.handlers.list','zed@example.com','POSTING');
    INSERT INTO lamson_state VALUES(
        'e4b8d785185cba61eb5f38fd09bab7e2446161a6eaf7f57ea851ab73498454d0','a','jürgen\udcff\x00@example.com','ONE');
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "lamson.db"


@pytest.fixture
def old(file):
    """The URL of a database of version 1."""
    run(file, VERSION_1)
    return f"sqlite:///{file}"


def run(file, script):
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(script)
        connection.commit()


def query(file, statement):
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(statement).fetchall()


def tables(file):
    return {name for (name,) in query(file, "SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_states_and_confirmations_of_version_1_are_found_and_may_change(file, old):
    storage = SQLAlchemyStorage(old)
    assert storage.get("app.handlers.list", "zed@example.com") == "POSTING"
    assert storage.get("a", "jürgen\udcff\0@example.com") == "ONE"
    assert storage.get("app.handlers.list", "nobody@example.com") == "START"
    storage.set("a", "jürgen\udcff\0@example.com", "TWO")
    storage.set("app.handlers.list", "zed@example.com", "START")
    assert SQLAlchemyConfirmationStorage(old).get("cats", "zed@example.com") == ("abc", "17.M1")

    assert query(file, "SELECT state_key, state FROM lamson_state") == [("a", "TWO")]
    assert query(file, "SELECT * FROM lamson_schema ORDER BY name") == [("lamson_confirmation", 2), ("lamson_state", 2)]
    assert tables(file) == {"lamson_state", "lamson_confirmation", "lamson_schema"}


def test_an_upgraded_table_is_made_like_a_new_one(file, old, tmp_path):
    SQLAlchemyStorage(old).prepare()
    SQLAlchemyStorage(f"sqlite:///{tmp_path}/new.db").prepare()
    made = "SELECT replace(sql, '\"', '') FROM sqlite_master WHERE name = 'lamson_state'"
    assert query(file, made) == query(tmp_path / "new.db", made)


def test_more_rows_than_are_taken_at_once_are_upgraded(file, old):
    run(
        file,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) "
        "INSERT INTO lamson_state SELECT printf('%032x%032x', i, i), 'a', 'sender' || i, 'S' || i FROM n",
    )
    SQLAlchemyStorage(old).prepare()
    assert query(file, "SELECT count(*), count(DISTINCT id), count(DISTINCT state) FROM lamson_state") == [
        (2502, 2502, 2502)
    ]


def test_an_upgrade_that_fails_leaves_the_old_version_whole(file, old):
    run(file, "INSERT INTO lamson_state VALUES ('no digest', 'a', 'b', 'C')")
    before = query(file, "SELECT * FROM lamson_state")
    with pytest.raises(ValueError, match="hexadecimal"):
        SQLAlchemyStorage(old).prepare()
    assert query(file, "SELECT * FROM lamson_state") == before
    assert tables(file) == {"lamson_state", "lamson_confirmation"}
    run(file, "DELETE FROM lamson_state WHERE state = 'C'")
    assert SQLAlchemyStorage(old).get("app.handlers.list", "zed@example.com") == "POSTING"


def test_processes_that_start_at_the_same_time_upgrade_once(file, old):
    assert states_read_at_once(old, 4) == ["POSTING\n"] * 4


def test_a_database_of_a_newer_version_is_refused(file, old):
    SQLAlchemyStorage(old).prepare()
    run(file, "UPDATE lamson_schema SET version = 3 WHERE name = 'lamson_state'")
    with pytest.raises(SchemaError, match="lamson_state has version 3, and this Lamson knows versions up to 2"):
        SQLAlchemyStorage(old).get("a", "b")
    SQLAlchemyConfirmationStorage(old).prepare()


def test_a_database_that_is_up_to_date_is_not_written_to(file, old):
    SQLAlchemyStorage(old).prepare()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # whoever wants to write has to wait
        SQLAlchemyStorage(old).prepare()
