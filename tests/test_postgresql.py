"""States, confirmations and locks on a real PostgreSQL, and what becomes of them when connections are lost."""

import os
import socket
import threading

import pytest
import sqlalchemy
from sqlalchemy import Column, Integer, MetaData, Table, Text, select

import postgres
from lamson.database import SQLAlchemyConfirmationStorage, SQLAlchemyStorage, configure_database
from lamson.errors import SchemaError
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import Router, route
from lamson.threadlink import ConnectionLost
from processes import states_read_at_once

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install lamson[postgresql]")


@pytest.fixture(scope="module")
def server():
    # Deadlocks are looked for after this time.
    with postgres.running(settings=["fsync=off", "deadlock_timeout=20ms"]) as server:
        yield server


@pytest.fixture
def url(server):
    return server.new_database()


@pytest.fixture
def storage(url):
    return SQLAlchemyStorage(url)


def connections(server, url):
    """The process ids of the server that serve this database."""
    name = url.rpartition("/")[2]
    return [pid for (pid,) in server.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'")]


def cut(server, url):
    """Ends every connection to the database."""
    name = url.rpartition("/")[2]
    server.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")


def in_threads(count, function):
    errors = []

    def run(number):
        try:
            function(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


# --- states -----------------------------------------------------------------------------------------------------


def test_a_set_is_one_statement_and_no_write_when_nothing_changes(server, storage, url, monkeypatch):
    def row():
        return server.execute("SELECT xmin::text, xmax::text, ctid::text FROM lamson_state", url.rpartition("/")[2])

    storage.set("a", "x@example.com", "ONE")
    before = row()
    statements = []
    run = storage._way.run
    monkeypatch.setattr(storage._way, "run", lambda *arguments: (statements.append(1), run(*arguments))[1])
    storage.set("a", "x@example.com", "ONE")
    storage.set("a", "nobody@example.com", "START")
    assert (row(), len(statements)) == (before, 2)
    storage.set("a", "x@example.com", "TWO")
    assert row() != before and len(statements) == 3
    storage.set("a", "x@example.com", "START")
    assert row() == [] and len(statements) == 4


# --- versions ----------------------------------------------------------------------------------------------------

VERSION_1 = """
    CREATE TABLE lamson_state (
        id VARCHAR(64) NOT NULL, state_key TEXT NOT NULL, sender TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (id));
    INSERT INTO lamson_state VALUES(
        '8f3ca22ee97cc498ffe2f04d90ace9d244b907351a0e4b0cfb7fc6016a568973',
        'app.handlers.list','zed@example.com','POSTING');
"""


@pytest.fixture
def old(server, url):
    server.execute(VERSION_1, url.rpartition("/")[2])
    return url


def test_states_of_version_1_are_found_and_may_change(server, old):
    storage = SQLAlchemyStorage(old)
    assert storage.get("app.handlers.list", "zed@example.com") == "POSTING"
    storage.set("app.handlers.list", "zed@example.com", "DONE")
    name = old.rpartition("/")[2]
    assert server.execute("SELECT state, length(id), pg_typeof(id)::text FROM lamson_state", name) == [
        ("DONE", 16, "bytea")
    ]
    assert server.execute("SELECT * FROM lamson_schema", name) == [("lamson_state", 2)]


def test_processes_that_start_at_the_same_time_upgrade_once(old):
    assert states_read_at_once(old, 3) == ["POSTING\n"] * 3


def test_a_database_of_a_newer_version_is_refused(server, storage, url):
    storage.prepare()
    server.execute("UPDATE lamson_schema SET version = 9", url.rpartition("/")[2])
    with pytest.raises(SchemaError, match="version 9"):
        SQLAlchemyStorage(url).prepare()


# --- connections -------------------------------------------------------------------------------------------------


def test_each_of_32_threads_that_hold_a_lock_has_one_connection_however_small_the_pool_is(server, url):
    engine = sqlalchemy.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=1)
    storage, confirmations = SQLAlchemyStorage(engine), SQLAlchemyConfirmationStorage(engine)
    for each in storage, confirmations:
        each.prepare()
    engine.dispose()
    all_in = threading.Barrier(33)

    def handle(number):
        sender = f"{number}@example.com"
        with storage.lock("a", sender):
            storage.set("a", sender, "ONE")
            confirmations.store("a", sender, "secret", "1.M1")
            all_in.wait()
            all_in.wait()
            assert storage.get("a", sender) == "ONE"

    counted = []

    def count():
        all_in.wait()
        counted.append(len(connections(server, url)))
        all_in.wait()

    counter = threading.Thread(target=count)
    counter.start()
    assert in_threads(32, handle) == []
    counter.join()
    assert counted == [32]


def test_connections_of_threads_that_ended_are_closed(server, storage, url):
    storage.prepare()
    storage.engine.dispose()
    assert in_threads(8, lambda number: storage.set("a", f"{number}@example.com", "ONE")) == []
    # The server notices that a connection was closed a little later.
    for _ in range(1000):
        if not connections(server, url):
            break
    assert connections(server, url) == []


def test_a_connection_that_was_lost_while_it_was_idle_is_made_anew(server, storage, url):
    storage.set("a", "x@example.com", "ONE")
    cut(server, url)
    assert storage.get("a", "x@example.com") == "ONE"
    cut(server, url)
    with storage.lock("a", "x@example.com"):
        storage.set("a", "x@example.com", "TWO")
    cut(server, url)
    storage.set("a", "x@example.com", "START")
    assert storage.get("a", "x@example.com") == "START"


def test_a_server_that_was_restarted_is_found_again():
    with postgres.running() as server:
        database = configure_database({"url": server.url()})
        storage = SQLAlchemyStorage(database)
        storage.set("a", "x@example.com", "ONE")
        with database.session() as session:
            session.scalars(select(1)).all()
        server.stop()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            storage.get("a", "x@example.com")
        server.start()
        assert storage.get("a", "x@example.com") == "ONE"
        with database.session() as session:
            assert session.scalars(select(1)).all() == [1]


# --- the lock ----------------------------------------------------------------------------------------------------


def test_a_lock_that_is_lost_is_an_error_where_the_state_is_set_and_at_the_end(server, storage, url):
    storage.set("a", "x@example.com", "ONE")
    failed = []
    with pytest.raises(ConnectionLost), storage.lock("a", "x@example.com"):
        cut(server, url)
        for _ in range(2):
            try:
                storage.set("a", "x@example.com", "TWO")
            except Exception as error:
                failed.append(error)
    assert len(failed) == 2
    assert isinstance(failed[1], ConnectionLost)
    with storage.lock("a", "x@example.com"):  # and then all is well again
        assert storage.get("a", "x@example.com") == "ONE"


def test_a_lock_that_is_lost_is_an_error_at_the_end_when_nothing_was_set(server, storage, url):
    with pytest.raises(ConnectionLost), storage.lock("a", "x@example.com"):
        cut(server, url)
    with storage.lock("a", "x@example.com"):
        storage.set("a", "x@example.com", "ONE")


def test_a_lost_lock_takes_those_around_it_along(server, storage, url):
    seen = []
    with pytest.raises(ConnectionLost), storage.lock("a", "x@example.com"):
        try:
            with storage.lock("a", "y@example.com"):
                cut(server, url)
        except Exception as error:
            seen.append(error)
        with pytest.raises(ConnectionLost):
            storage.get("a", "z@example.com")
    assert len(seen) == 1
    assert storage.get("a", "z@example.com") == "START"


def test_what_a_handler_raises_comes_through_a_lost_lock(server, storage, url):
    with pytest.raises(ConnectionLost) as caught, storage.lock("a", "x@example.com"):
        cut(server, url)
        raise ValueError("of the handler")
    causes = []
    error = caught.value
    while error is not None:
        causes.append(str(error))
        error = error.__context__
    assert "of the handler" in causes


def test_the_copy_of_a_message_whose_lock_was_lost_is_kept(server, storage, url, tmp_path):
    Router.STATE_STORE = storage
    Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")

    @route("lost@example.com")
    def START(message):
        cut(server, url)

    (outcome,) = Router.deliver_each(MailRequest("", "zed@example.com", "lost@example.com", b""))
    assert isinstance(outcome.error, ConnectionLost)
    assert Router.UNDELIVERABLE_QUEUE.count() == 1


def test_a_deadlock_of_two_servers_fails_one_of_them_and_no_lock_stays(url):
    servers = [SQLAlchemyStorage(url), SQLAlchemyStorage(url)]
    both = threading.Barrier(2)
    senders = ["x@example.com", "y@example.com"]

    def cross(number):
        with servers[number].lock("a", senders[number]):
            both.wait()
            with servers[number].lock("a", senders[1 - number]):
                pass

    errors = in_threads(2, cross)
    assert len(errors) == 1
    assert "deadlock detected" in str(errors[0])
    for storage in servers:
        for sender in senders:
            with storage.lock("a", sender):
                storage.set("a", sender, "ONE")


# --- sessions ----------------------------------------------------------------------------------------------------


def test_a_session_is_saved_or_undone_with_the_handler(url, tmp_path, fresh_router):
    metadata = MetaData()
    cat = Table("cat", metadata, Column("id", Integer, primary_key=True), Column("name", Text))
    database = configure_database({"metadata": metadata, "url": url}, also_create=True)
    Router.STATE_STORE = SQLAlchemyStorage(database)
    Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
    confirmations = SQLAlchemyConfirmationStorage(database)
    confirmations.prepare()

    @route("(name)@example.com", name="[a-z]+")
    def START(message, name=None):
        database.session.execute(cat.insert().values(name=name))
        confirmations.store("cats", f"{name}@example.com", "secret", "1.M1")
        if name == "garfield":
            raise ValueError(name)

    for name in ("tom", "garfield"):
        Router.deliver(MailRequest("", "zed@example.com", f"{name}@example.com", b""))
    with database.session() as session:
        assert session.scalars(select(cat.c.name)).all() == ["tom"]
    assert confirmations.get("cats", "tom@example.com") == ("secret", "1.M1")
    assert confirmations.get("cats", "garfield@example.com") == (None, None)


def test_a_child_process_makes_connections_of_its_own(server, storage, url):
    storage.set("a", "x@example.com", "ONE")
    with storage.engine.connect():
        pass  # one is in the pool, too
    child = os.fork()
    if not child:
        try:
            ours = storage.get("a", "x@example.com") == "ONE"
            with storage.engine.connect() as connection:
                ours = ours and connection.scalar(sqlalchemy.text("SELECT 1")) == 1
            os._exit(0 if ours else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    storage.set("a", "x@example.com", "TWO")
    assert storage.get("a", "x@example.com") == "TWO"
    with storage.engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1


# --- machines that are gone -------------------------------------------------------------------------------------


def test_both_sides_ask_soon_whether_the_other_machine_is_still_there(storage, url):
    def asked(connection):
        shown = connection.cursor().execute(
            "SELECT name, setting FROM pg_settings WHERE name LIKE 'tcp\\_%' ORDER BY name"
        )
        with socket.socket(fileno=os.dup(connection.fileno())) as ours:
            timeouts = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            return dict(shown.fetchall()), [ours.getsockopt(socket.IPPROTO_TCP, each) for each in timeouts]

    theirs = {
        "tcp_keepalives_count": "3",
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_user_timeout": "60000",
    }
    with storage.lock("a", "x@example.com"):
        assert asked(storage._way._own().connection) == (theirs, [30, 10, 3, 60000])
    with storage.engine.connect() as connection:
        assert asked(connection.connection.dbapi_connection) == (theirs, [30, 10, 3, 60000])


def test_what_the_url_says_about_that_is_taken(url):
    engine = configure_database({"url": url + "?keepalives_idle=5"}).engine
    with engine.connect() as connection, socket.socket(fileno=os.dup(connection.connection.fileno())) as ours:
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
