"""A session for each call of a handler: saved when it returns, undone when it fails, and gone afterwards."""

import sqlite3
import threading
from contextlib import closing

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lamson.database import SQLAlchemyConfirmationStorage, SQLAlchemyStorage, configure_database
from lamson.errors import SMTPError
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import MemoryStorage, Router, nolocking, route, stateless

metadata = MetaData()
cat = Table("cat", metadata, Column("id", Integer, primary_key=True), Column("name", Text, unique=True))


@pytest.fixture(params=["file", "memory"])
def database(request, tmp_path, fresh_router):
    Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
    url = "sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/cats.db"
    database = configure_database({"metadata": metadata, "url": url}, also_create=True)
    Router.STATE_STORE = SQLAlchemyStorage(database)
    return database


def names(database):
    with database.engine.connect() as connection:
        return sorted(connection.scalars(select(cat.c.name)))


def mail(sender="zed@example.com", to="cats@test.com"):
    return MailRequest("", sender, to, b"Subject: x\n\nbody\n")


def deliver(sender="zed@example.com", to="cats@test.com"):
    """Delivers a message, and returns what became of it."""
    (outcome,) = Router.deliver_each(mail(sender, to))
    return outcome


def state(sender="zed@example.com"):
    return Router.get_state(__name__, mail(sender))


def NEXT(message):
    """A state to go to."""


def test_what_a_handler_adds_is_saved_when_it_returns(database):
    @route("cats@test.com")
    def START(message):
        database.session.execute(cat.insert().values(name="Tom"))
        if database.engine.url.database:  # in memory there is one connection, so that everybody sees everything
            assert names(database) == [], "saved before the end"
        return NEXT

    assert deliver().handled
    assert names(database) == ["Tom"]
    assert state() == "NEXT"


@pytest.mark.parametrize("error", [ValueError("no"), SMTPError(550, "no"), SystemExit(1)], ids=repr)
def test_what_a_handler_adds_is_undone_when_it_fails(database, error):
    @route("cats@test.com")
    def START(message):
        database.session.execute(cat.insert().values(name="Tom"))
        raise error

    assert deliver().error is error
    assert names(database) == []
    assert len(Router.UNDELIVERABLE_QUEUE.keys()) == (0 if isinstance(error, SMTPError) else 1)


def test_a_commit_that_fails_is_a_failure_of_the_handler(database):
    class Base(DeclarativeBase):
        metadata = MetaData()

    class Cat(Base):
        __tablename__ = "cat"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    @route("cats@test.com")
    def START(message):
        database.session.add(Cat(name="Tom"))  # which reaches the database when it is saved
        return NEXT

    assert deliver("a@example.com").handled
    outcome = deliver("b@example.com")
    assert isinstance(outcome.error, IntegrityError)
    assert outcome.queued
    assert (state("a@example.com"), state("b@example.com")) == ("NEXT", "START")
    assert names(database) == ["Tom"]


def test_each_call_has_a_session_of_its_own_and_leaves_none(database):
    seen = []

    @route("cats@test.com")
    @stateless
    def FIRST(message):
        seen.append(database.session())
        assert database.session() is seen[-1]
        database.session.scalars(select(cat.c.name)).all()

    @route("cats@test.com")
    def START(message):
        seen.append(database.session())
        database.session.scalars(select(cat.c.name)).all()

    ours = database.session()
    assert deliver().handled
    assert deliver().handled
    assert len({id(session) for session in [*seen, ours]}) == 5
    assert not any(session.in_transaction() for session in seen)
    assert database.session() is ours


def test_a_handler_without_a_session_makes_no_connection(database):
    @route("cats@test.com")
    def START(message):
        return START

    opened = []
    event.listen(database.engine, "checkout", lambda *connection: opened.append(connection))
    Router.STATE_STORE = MemoryStorage()
    assert deliver().handled
    assert opened == []


def test_sessions_with_a_transaction_of_their_own_work_as_ever(database):
    @route("cats@test.com")
    def START(message):
        with database.session() as session, session.begin():
            session.execute(cat.insert().values(name="Tom"))
        with database.session() as session:
            assert session.scalars(select(cat.c.name)).all() == ["Tom"]
        with pytest.raises(ZeroDivisionError), database.session() as session, session.begin():
            session.execute(cat.insert().values(name="Garfield"))
            1 / 0  # noqa: B018
        raise ValueError("what was saved explicitly stays")

    assert not deliver().handled
    assert names(database) == ["Tom"]


def test_a_handler_that_another_one_delivers_to_has_a_session_of_its_own(database):
    @route("cats@test.com")
    def START(message):
        ours = database.session()
        assert deliver(to="dogs@test.com").handled
        assert database.session() is ours
        database.session.execute(cat.insert().values(name="Garfield"))

    @route("dogs@test.com")
    @stateless
    def DOGS(message):
        database.session.execute(cat.insert().values(name="Tom"))

    assert deliver().handled
    assert names(database) == ["Garfield", "Tom"]


def test_handlers_in_eight_threads_without_a_lock_save_what_they_have(tmp_path, fresh_router):
    database = configure_database({"metadata": metadata, "url": f"sqlite:///{tmp_path}/cats.db"}, also_create=True)

    @route("(number)@test.com", number="[0-9]+")
    @stateless
    @nolocking
    def START(message, number=None):
        database.session.execute(cat.insert().values(name=number))
        if int(number) % 2:
            raise SMTPError(450, "no odd ones")

    def send(thread):
        for number in range(10):
            deliver(to=f"{thread * 10 + number}@test.com")

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, names(database))) == list(range(0, 80, 2))


def test_a_confirmation_is_stored_together_with_what_the_handler_adds(database, tmp_path):
    confirmations = SQLAlchemyConfirmationStorage(database)
    confirmations.prepare()
    fail = [True]

    @route("cats@test.com")
    def START(message):
        database.session.execute(cat.insert().values(name="Tom"))  # SQLite lets nobody else write from here on
        confirmations.store("cats", message.route_from, "secret", "17.M1")
        assert confirmations.get("cats", message.route_from) == ("secret", "17.M1")
        if fail:
            raise fail.pop()("no")

    fail[0] = ValueError
    assert not deliver().handled
    assert (names(database), confirmations.get("cats", "zed@example.com")) == ([], (None, None))
    assert deliver().handled
    assert (names(database), confirmations.get("cats", "zed@example.com")) == (["Tom"], ("secret", "17.M1"))


def test_two_databases_are_both_saved_and_configured_once(tmp_path, fresh_router):
    databases = [
        configure_database({"metadata": metadata, "url": f"sqlite:///{tmp_path}/{name}.db"}, also_create=True)
        for name in "ab"
    ]
    assert len(Router.AROUND) == 1

    @route("cats@test.com")
    def START(message):
        for database in databases:
            database.session.execute(cat.insert().values(name="Tom"))

    assert deliver().handled
    for name in "ab":
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            assert connection.execute("SELECT name FROM cat").fetchall() == [("Tom",)]


def test_the_declarative_base_will_do_for_the_metadata(tmp_path):
    class Base(DeclarativeBase):
        pass

    class Dog(Base):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(primary_key=True)

    database = configure_database({"metadata": Base, "url": f"sqlite:///{tmp_path}/dogs.db"}, also_create=True)
    with closing(sqlite3.connect(tmp_path / "dogs.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("dog",)]
    assert database.metadata is Base.metadata
