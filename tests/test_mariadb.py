"""States, confirmations and sessions on a real MariaDB, for one server process."""

import threading
import unittest

import pytest
import sqlalchemy
from sqlalchemy import Column, MetaData, String, Table, select

import mariadb_server
from lamson.confirm import ConfirmationEngine
from lamson.database import SQLAlchemyConfirmationStorage, SQLAlchemyStorage, configure_database
from lamson.mail import MailRequest
from lamson.routing import Router, route, stateless
from lamson.testing import StateStorageTests
from processes import states_read_at_once


@pytest.fixture(scope="module")
def server():
    with mariadb_server.running() as server:
        yield server


@pytest.fixture
def url(server):
    return server.new_database()


@pytest.fixture(scope="module")
def contract(server, request):
    # As it comes out of MariaDB's settings of old, in which not every text can be written down.
    request.module.StatesTests.url = server.new_database("CHARACTER SET latin1")


@pytest.mark.usefixtures("contract")
class StatesTests(StateStorageTests, unittest.TestCase):
    def make_storage(self):
        return SQLAlchemyStorage(self.url)


def test_it_is_for_one_process(url):
    assert not SQLAlchemyStorage(url).shared


def test_a_connection_that_was_lost_is_made_anew(server, url):
    storage = SQLAlchemyStorage(url)
    storage.set("a", "x@example.com", "ONE")
    for (number,) in server.execute("SELECT id FROM information_schema.processlist WHERE db LIKE 'db%'"):
        server.execute(f"KILL {number}")
    assert storage.get("a", "x@example.com") == "ONE"


def test_a_session_is_saved_or_undone_with_the_handler(url):
    metadata = MetaData()
    cats = Table("cats", metadata, Column("name", String(50), primary_key=True))
    database = configure_database({"url": url, "metadata": metadata}, also_create=True)
    Router.STATE_STORE = SQLAlchemyStorage(database)
    confirmations = SQLAlchemyConfirmationStorage(database)

    @route("(name)@test.com", name=".+")
    @stateless
    def START(message, name):
        database.session.execute(sqlalchemy.insert(cats), {"name": name})
        confirmations.store("cats", f"{name}@example.com", "secret", "1.M1")
        if name == "garfield":
            raise ValueError("Not him.")

    for name in ("tom", "garfield"):
        Router.deliver(MailRequest("", "zed@example.com", f"{name}@test.com", b""))
    with database.session() as session:
        assert session.scalars(select(cats.c.name)).all() == ["tom"]
    assert confirmations.get("cats", "tom@example.com") == ("secret", "1.M1")
    assert confirmations.get("cats", "garfield@example.com") == (None, None)
    assert [confirmations.delete("cats", "tom@example.com") for _ in range(2)] == [True, False]


@pytest.fixture
def pending(url, tmp_path):
    return ConfirmationEngine(tmp_path / "pending", SQLAlchemyConfirmationStorage(url))


def test_of_eight_that_confirm_at_once_one_is_believed(pending):
    message = MailRequest("", "zed@example.com", "list@test.com", b"Subject: join\n\n")
    secret = pending.register("list", message).rpartition("-")[2]
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(pending.verify("list", "zed@example.com", secret)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each["subject"] for each in found if each] == ["join"] and len(found) == 8


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def old(server, url):
    name = url.rpartition("/")[2].partition("?")[0]
    server.execute(
        "CREATE TABLE lamson_state (id VARCHAR(64) NOT NULL PRIMARY KEY, state_key TEXT NOT NULL, "
        "sender TEXT NOT NULL, state TEXT NOT NULL)",
        name,
    )
    server.execute(
        "INSERT INTO lamson_state VALUES ('8f3ca22ee97cc498ffe2f04d90ace9d244b907351a0e4b0cfb7fc6016a568973', "
        "'app.handlers.list', 'zed@example.com', 'POSTING')",
        name,
    )
    return url


def test_states_of_version_1_are_found_and_may_change(old):
    storage = SQLAlchemyStorage(old)
    assert storage.get("app.handlers.list", "zed@example.com") == "POSTING"
    storage.set("app.handlers.list", "zed@example.com", "\u78ba\u8a8d\u4e2d")
    assert SQLAlchemyStorage(old).get("app.handlers.list", "zed@example.com") == "\u78ba\u8a8d\u4e2d"


@pytest.mark.parametrize(
    "statement", ["INSERT INTO lamson_state_2", "RENAME TABLE", "DROP TABLE", "INSERT INTO lamson_schema"]
)
def test_an_upgrade_that_is_cut_off_anywhere_is_taken_up_again(old, statement):
    """MariaDB takes nothing back of what was done to tables."""

    def cut_off(connection, cursor, text, *others):
        if text.startswith(statement):
            raise ZeroDivisionError

    storage = SQLAlchemyStorage(old)
    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", cut_off)
    with pytest.raises(ZeroDivisionError):
        storage.prepare()
    again = SQLAlchemyStorage(old)
    assert again.get("app.handlers.list", "zed@example.com") == "POSTING"
    again.prepare()
    assert again.get("app.handlers.list", "zed@example.com") == "POSTING"
    assert sorted(sqlalchemy.inspect(again.engine).get_table_names()) == ["lamson_schema", "lamson_state"]


def test_processes_that_start_at_the_same_time_make_the_table_once(url):
    assert states_read_at_once(url, 4) == ["START\n"] * 4
