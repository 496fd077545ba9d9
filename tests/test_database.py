"""The state of every conversation in a database: what is kept, for whom, and under how many threads at once."""

import contextlib
import errno
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, Text

import lamson.rows
from lamson.database import Database, SQLAlchemyConfirmationStorage, SQLAlchemyStorage, configure_database
from lamson.errors import MisuseError
from lamson.routing import StateStorage

HERE = Path(__file__).parent.parent


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def storage(url):
    return SQLAlchemyStorage(url)


def rows(storage):
    with storage.engine.connect() as connection:
        return connection.execute(sqlalchemy.select(storage.table)).all()


@pytest.fixture
def any_other_database(url):
    """A database for which there is no upsert, and no connection for each thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lamson.rows, "is_linked", lambda engine: False)
        patch.setattr(lamson.rows, "_upsert", lambda *arguments: None)
        return SQLAlchemyStorage(url)


@pytest.fixture(params=["storage", "any_other_database"])
def every_storage(request):
    return request.getfixturevalue(request.param)


# --- the storage -------------------------------------------------------------------------------------------------


def test_the_unknown_are_in_start(storage):
    assert isinstance(storage, StateStorage)
    assert storage.get("app.handlers.sample", "nobody@example.com") == "START"


def test_a_state_is_kept_for_each_key_and_sender_of_their_own(every_storage):
    every_storage.set("a", "x@example.com", "ONE")
    every_storage.set("b", "x@example.com", "TWO")
    every_storage.set("a", "y@example.com", "THREE")
    every_storage.set("a", "x@example.com", "FOUR")

    assert every_storage.get("a", "x@example.com") == "FOUR"
    assert every_storage.get("b", "x@example.com") == "TWO"
    assert every_storage.get("a", "y@example.com") == "THREE"
    assert len(rows(every_storage)) == 3


def test_key_and_sender_are_not_run_together(storage):
    storage.set("a", "bc", "ONE")
    assert storage.get("ab", "c") == "START"


def test_setting_start_forgets_the_row(every_storage):
    every_storage.set("a", "x@example.com", "ONE")
    every_storage.set("a", "x@example.com", "START")
    every_storage.set("a", "nobody@example.com", "START")

    assert every_storage.get("a", "x@example.com") == "START"
    assert rows(every_storage) == []


def test_clear_forgets_everybody(storage):
    storage.set("a", "x@example.com", "ONE")
    storage.set("b", "y@example.com", "TWO")
    storage.clear()
    assert rows(storage) == []


def test_a_row_tells_people_whose_state_it_is(storage):
    storage.set("app.handlers.sample", "jürgen@example.com", "ONE")
    assert rows(storage)[0][1:] == ("app.handlers.sample", "jürgen@example.com", "ONE")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(key=st.text(), sender=st.text(st.characters(exclude_categories=())))
def test_any_text_is_a_key_and_a_sender(storage, key, sender):
    storage.set(key, sender, "ONE")
    assert storage.get(key, sender) == "ONE"
    storage.set(key, sender, "START")
    assert storage.get(key, sender) == "START"


def test_keys_and_senders_may_be_of_any_length(storage):
    storage.set("k" * 100_000, "s" * 100_000, "ONE")
    assert storage.get("k" * 100_000, "s" * 100_000) == "ONE"
    assert storage.get("k" * 100_000, "s" * 99_999) == "START"


def test_a_state_is_there_for_the_next_process_at_once(storage, url):
    storage.set("a", "x@example.com", "ONE")
    code = f"from lamson.database import *; print(SQLAlchemyStorage({url!r}).get('a', 'x@example.com'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert run.stdout == "ONE\n"


def test_eight_threads_at_once_lose_nothing(every_storage):
    errors = []
    together = threading.Barrier(8)

    def converse(number):
        together.wait()
        try:
            for turn in range(25):
                sender = f"{number}-{turn % 5}@example.com"
                every_storage.set("a", sender, f"STATE_{turn}")
                every_storage.set("a", "everybody@example.com", f"STATE_{number}")
                assert every_storage.get("a", sender) == f"STATE_{turn}"
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=converse, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    expected = {f"{number}-{last % 5}@example.com": f"STATE_{last}" for number in range(8) for last in range(20, 25)}
    assert {row.sender: row.state for row in rows(every_storage) if row.sender in expected} == expected
    assert len(rows(every_storage)) == 41


def test_processes_that_start_at_the_same_time_make_the_table_together(url):
    code = (
        "import sys; from lamson.database import *; s = SQLAlchemyStorage(sys.argv[1]); input(); "
        "s.prepare(); s.set('a', sys.argv[2], 'ONE')"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, url, str(number)], cwd=HERE, stdin=subprocess.PIPE)
        for number in range(4)
    ]
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.wait() for process in processes] == [0] * 4
    for process in processes:
        process.stdin.close()
    assert len(rows(SQLAlchemyStorage(url))) == 4


def test_sqlite_writes_ahead_and_waits_for_the_disk_and_for_others(storage):
    storage.prepare()
    with storage.engine.connect() as connection:
        found = {
            pragma: connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
            for pragma in ("journal_mode", "synchronous", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000}


def test_a_state_that_stays_the_same_is_not_written_again(storage, tmp_path):
    storage.set("a", "x@example.com", "ONE")
    size = os.path.getsize(tmp_path / "state.db-wal")
    storage.set("a", "x@example.com", "ONE")
    assert os.path.getsize(tmp_path / "state.db-wal") == size


def statements(storage):
    """The list in which the statements of this thread's connection to SQLite appear from now on."""
    storage.prepare()
    storage.get("a", "nobody@example.com")
    seen = []
    storage._way._own().connection.set_trace_callback(seen.append)
    return seen


def test_get_is_one_statement_and_set_is_one_more_when_something_changes(storage):
    storage.set("a", "y@example.com", "ONE")  # the first one asks where the file is
    seen = statements(storage)
    for state, expected in [
        ("ONE", ["SELECT", "INSERT"]),
        ("ONE", ["SELECT"]),
        ("TWO", ["SELECT", "INSERT"]),
        ("START", ["SELECT", "DELETE"]),
        ("START", ["SELECT"]),
    ]:
        storage.set("a", "x@example.com", state)
        assert [statement.split()[0] for statement in seen] == expected, state
        seen.clear()
    storage.get("a", "x@example.com")
    assert [statement.split()[0] for statement in seen] == ["SELECT"]


def test_a_state_that_stays_the_same_waits_for_no_other_writer(storage, tmp_path):
    storage.set("a", "x@example.com", "ONE")
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        storage._way._own().connection.execute("PRAGMA busy_timeout = 0")
        storage.set("a", "x@example.com", "ONE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            storage.set("a", "x@example.com", "TWO")


def test_the_upsert_is_written_for_postgresql_too(storage):
    from sqlalchemy.dialects import postgresql

    table = SQLAlchemyStorage.table
    text = str(lamson.rows._upsert(table, [table.c.state], "postgresql").compile(dialect=postgresql.dialect()))
    assert "ON CONFLICT (id) DO UPDATE SET state = excluded.state" in text


def test_an_insert_that_another_process_did_first_becomes_an_update(any_other_database, url):
    ours, theirs = any_other_database, SQLAlchemyStorage(url)
    ours.prepare()
    done = []

    def interfere(connection, cursor, statement, *rest):
        if statement.startswith("INSERT") and not done:
            done.append(True)
            theirs.set("a", "x@example.com", "THEIRS")

    sqlalchemy.event.listen(ours.engine, "before_cursor_execute", interfere)
    ours.set("a", "x@example.com", "OURS")
    assert done
    assert theirs.get("a", "x@example.com") == "OURS"


def test_nothing_is_opened_before_the_first_use(url, tmp_path):
    SQLAlchemyStorage(configure_database({"url": url}))
    assert os.listdir(tmp_path) == []


def test_it_takes_an_engine_and_a_database_as_well(url):
    SQLAlchemyStorage(url).set("a", "x@example.com", "ONE")
    assert SQLAlchemyStorage(sqlalchemy.create_engine(url)).get("a", "x@example.com") == "ONE"
    assert SQLAlchemyStorage(configure_database({"url": url})).get("a", "x@example.com") == "ONE"
    assert SQLAlchemyStorage(sqlalchemy.make_url(url)).get("a", "x@example.com") == "ONE"
    with pytest.raises(MisuseError, match="42"):
        SQLAlchemyStorage(42)


def test_a_database_in_memory_is_one_for_all_threads():
    storage = SQLAlchemyStorage("sqlite://")
    threads = [threading.Thread(target=storage.set, args=("a", str(number), "ONE")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows(storage)) == 8


def test_an_engine_with_a_memory_for_each_thread_is_refused():
    with pytest.raises(MisuseError, match="each thread an empty SQLite database"):
        SQLAlchemyStorage(sqlalchemy.create_engine("sqlite://"))


def test_a_folder_that_is_missing_is_named(tmp_path):
    storage = SQLAlchemyStorage(f"sqlite:///{tmp_path}/nowhere/state.db")
    with pytest.raises(MisuseError, match=f"no folder {tmp_path}/nowhere"):
        storage.prepare()


def test_an_error_of_the_database_comes_through(tmp_path):
    (tmp_path / "state.db").write_bytes(b"this is no database, whatever it is called" * 100)
    with pytest.raises(sqlalchemy.exc.DatabaseError, match="not a database"):
        SQLAlchemyStorage(f"sqlite:///{tmp_path}/state.db").prepare()


# --- configure_database ------------------------------------------------------------------------------------------


@pytest.fixture
def metadata():
    metadata = MetaData()
    Table("cat", metadata, Column("id", Integer, primary_key=True), Column("name", Text))
    return metadata


def test_tables_are_made_only_when_asked_for(url, metadata):
    database = configure_database({"metadata": metadata, "url": url})
    assert sqlalchemy.inspect(database.engine).get_table_names() == []

    database = configure_database({"metadata": metadata, "url": url}, also_create=True)
    assert isinstance(database, Database)
    assert sqlalchemy.inspect(database.engine).get_table_names() == ["cat"]
    database.create_tables()  # again, which harms nothing


def test_a_session_saves_at_the_end_and_undoes_on_an_error(url, metadata):
    database = configure_database({"metadata": metadata, "url": url}, also_create=True)
    cat = metadata.tables["cat"]
    with database.session() as session, session.begin():
        session.execute(cat.insert().values(name="Tom"))
    with pytest.raises(ZeroDivisionError), database.session() as session, session.begin():
        session.execute(cat.insert().values(name="Garfield"))
        1 / 0  # noqa: B018
    with database.session() as session:
        assert session.scalars(sqlalchemy.select(cat.c.name)).all() == ["Tom"]


def test_each_thread_has_a_session_of_its_own(url):
    database = configure_database({"url": url})
    sessions = [database.session()]
    thread = threading.Thread(target=lambda: sessions.append(database.session()))
    thread.start()
    thread.join()
    assert sessions[0] is not sessions[1]
    assert sessions[0] is database.session()


def test_the_log_level_is_that_of_the_statements(url):
    log = logging.getLogger("sqlalchemy.engine")
    before = log.level
    try:
        configure_database({"url": url, "log_level": logging.ERROR})
        assert log.level == logging.ERROR
    finally:
        log.setLevel(before)


def test_tables_without_metadata_are_none(url):
    configure_database({"url": url, "metadata": None}, also_create=True)


def test_a_config_that_cannot_work_is_explained(url):
    with pytest.raises(MisuseError, match="no 'url'"):
        configure_database({"metadata": MetaData()})
    with pytest.raises(MisuseError, match="does not know loglevel"):
        configure_database({"url": url, "loglevel": 10})


class TestSync:
    """What waits for the disk, and when."""

    @pytest.fixture
    def waits(self, monkeypatch):
        """The files whose data were waited for."""
        files = []
        really = os.fdatasync

        def fdatasync(number):
            files.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
            really(number)

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        return files

    def test_states_wait_for_the_disk_once_for_all_when_they_are_synced(self, tmp_path, waits):
        storage = SQLAlchemyStorage(f"sqlite:///{tmp_path}/states.db")
        storage.prepare()
        storage.sync()
        waits.clear()
        assert not storage.unsynced()
        for number in range(5):
            storage.set("key", f"{number}@x.y", "NEXT")
        assert storage.unsynced() and waits == []
        storage.sync()
        assert not storage.unsynced() and waits == ["states.db-wal"]
        storage.set("key", "1@x.y", "NEXT")  # which changes nothing
        storage.get("key", "1@x.y")
        assert not storage.unsynced()
        storage.set("key", "1@x.y", "START")
        assert storage.unsynced()

    def test_a_confirmation_waits_at_once_and_takes_the_states_along(self, tmp_path, waits):
        database = configure_database({"url": f"sqlite:///{tmp_path}/both.db"})
        storage, confirmations = SQLAlchemyStorage(database), SQLAlchemyConfirmationStorage(database)
        storage.prepare()
        confirmations.prepare()
        storage.sync()
        waits.clear()
        storage.set("key", "a@x.y", "NEXT")
        confirmations.store("list", "a@x.y", "secret", "pending")
        assert waits == ["both.db-wal"] and not storage.unsynced()
        assert confirmations.delete("list", "a@x.y") and len(waits) == 2

    def test_a_child_that_is_forked_while_a_thread_waits_for_the_disk_does_not_wait_for_it(self, tmp_path, monkeypatch):
        storage = SQLAlchemyStorage(f"sqlite:///{tmp_path}/states.db")
        storage.set("key", "a@x.y", "NEXT")
        waiting, go_on, really = threading.Event(), threading.Event(), os.fdatasync

        def wait(number):
            waiting.set()
            assert go_on.wait(60)

        monkeypatch.setattr(os, "fdatasync", wait)
        thread = threading.Thread(target=storage.sync)
        thread.start()
        assert waiting.wait(60)
        child = os.fork()
        if not child:
            try:
                signal.alarm(60)
                os.fdatasync = really
                storage.set("key", "b@x.y", "NEXT")
                storage.sync()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        go_on.set()
        thread.join()

    def test_after_an_error_of_the_disk_the_log_begins_anew_before_more_counts_as_written(self, tmp_path, monkeypatch):
        file = tmp_path / "states.db"
        storage = SQLAlchemyStorage(f"sqlite:///{file}")
        storage.set("key", "a@x.y", "NEXT")
        really = os.fdatasync

        def fail(number):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output"):
            storage.sync()
        monkeypatch.setattr(os, "fdatasync", really)
        storage.set("key", "b@x.y", "NEXT")
        reading = sqlite3.connect(file, isolation_level=None)
        reading.execute("BEGIN")
        reading.execute("SELECT * FROM lamson_state").fetchall()
        storage._way.run(storage._way.statement(sqlalchemy.text("PRAGMA busy_timeout = 0")), {})
        for _ in range(2):  # as long as somebody reads what is in the log, it stays
            with pytest.raises(OSError, match="while somebody reads it"):
                storage.sync()
            assert storage.unsynced()
        reading.close()
        storage.sync()
        assert not storage.unsynced() and os.path.getsize(f"{file}-wal") == 0
        with sqlite3.connect(f"file:{file}?immutable=1", uri=True) as alone:  # as if there were no log
            assert alone.execute("SELECT COUNT(*) FROM lamson_state").fetchone() == (2,)
        alone.close()
        storage.set("key", "a@x.y", "OTHER")
        storage.sync()
        assert os.path.getsize(f"{file}-wal") > 0, "the log is waited for again"

    def test_without_the_log_there_is_nothing_to_wait_for(self, tmp_path, waits):
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/states.db")
        storage = SQLAlchemyStorage(engine)
        storage.set("key", "a@x.y", "NEXT")
        storage._way.close()  # the last connection puts all into the database, and takes the log away
        engine.dispose()
        storage._way._log._path = str(tmp_path / "states.db-wal")
        assert not (tmp_path / "states.db-wal").exists()
        storage.sync()
        assert not storage.unsynced() and waits == []

    def test_memory_has_nothing_to_sync(self):
        storage = SQLAlchemyStorage("sqlite://")
        storage.set("key", "a@x.y", "NEXT")
        assert not storage.unsynced()
        storage.sync()
