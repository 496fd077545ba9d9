"""Each store in examples/stores keeps the contract of storages, put through it against a real server."""

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import unittest
import urllib.error
from contextlib import closing
from pathlib import Path

import pytest

import postgres
import stores
from lamson.database import configure_database
from lamson.errors import SMTPError
from lamson.mail import MailRequest
from lamson.routing import Router, route, stateless
from lamson.states import digest
from lamson.testing import StateStorageTests

FOLDER = Path(__file__).parent.parent / "examples/stores"
sys.path.insert(0, str(FOLDER))


def needs(module, package):
    return pytest.importorskip(module, reason=f"{package} is not installed: pip install lamson[stores]")


class InAFolder(StateStorageTests):
    """Tests of a store in a file, in a folder of their own."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        super().setUp()


class OnAServer(StateStorageTests):
    """Tests of a store on a server, which is started for all of them."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.enterClassContext(cls.run_server())


class RestartOfTheServer(OnAServer):
    """The server keeps what it has on disk."""

    def test_a_state_is_there_after_the_server_was_killed_and_started_again(self):
        self.storage.set("a", "x@test.com", "ONE")
        self.server.kill()
        self.server.start()
        self.assertEqual(self._prepared().get("a", "x@test.com"), "ONE")


# --- in a file ---------------------------------------------------------------------------------------------------


class TestSqlite3(InAFolder, unittest.TestCase):
    def make_storage(self):
        from sqlite_store import SQLiteStorage

        return SQLiteStorage(self.folder / "states.db")


class TestShelve(InAFolder, unittest.TestCase):
    def make_storage(self):
        from shelve_store import SharedShelf

        return SharedShelf(str(self.folder / "states"))

    def test_two_processes_write_at_once_and_lose_nothing(self):
        code = (
            "import sys; from shelve_store import SharedShelf; shelf = SharedShelf(sys.argv[1]); input()\n"
            "for number in range(30): shelf.set('a', f'{sys.argv[2]}-{number}', 'ONE')"
        )
        environment = {**os.environ, "PYTHONPATH": f"{FOLDER}:{FOLDER.parent.parent}"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(self.folder / "states"), str(number)],
                stdin=subprocess.PIPE,
                env=environment,
            )
            for number in range(2)
        ]
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.close()
        assert [process.wait() for process in processes] == [0, 0]
        found = [self.storage.get("a", f"{number}-{turn}") for number in range(2) for turn in range(30)]
        assert found == ["ONE"] * 60


class TestSQLAlchemy(InAFolder, unittest.TestCase):
    def make_storage(self):
        from sqlalchemy_store import ModelStorage

        return ModelStorage(configure_database({"url": f"sqlite:///{self.folder}/states.db"}).engine)


class TestDjango(StateStorageTests, unittest.TestCase):
    """Django has one configuration for the process: all of these tests have the same file."""

    process = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        django = needs("django", "Django")
        from django.conf import settings

        if not settings.configured:
            cls.folder = tempfile.TemporaryDirectory()
            options = {
                "timeout": 30,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
            }
            database = {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": Path(cls.folder.name) / "django.db",
                "OPTIONS": options,
            }
            settings.configure(DATABASES={"default": database})
            django.setup()
        cls.process = os.getpid()

    def make_storage(self):
        from django.db import connection
        from django_store import DjangoStorage

        if os.getpid() != self.process:
            connection.connection = None  # it is the parent's
        return DjangoStorage()

    def test_a_handler_in_the_context_of_the_page_on_databases_is_saved_or_undone(self):
        from django_store import Conversation

        page = (FOLDER.parent.parent / "docs/databases.md").read_text()
        (block,) = (text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "like_a_request" in text)

        @route("(name)@test.com", name="[a-z]+")
        @stateless
        def START(message, name=None):
            Conversation.objects.create(id=name, key=name, sender=name, state="ONE")
            if name == "garfield":
                raise SMTPError(550, "Not him.")

        exec(block, {})
        assert len(Router.AROUND) == 1
        outcomes = [
            outcome.handled
            for name in ("tom", "garfield")
            for outcome in Router.deliver_each(MailRequest("", "zed@example.com", f"{name}@test.com", b""))
        ]
        assert outcomes == [True, False]
        assert list(Conversation.objects.values_list("id", flat=True)) == ["tom"]


class TestWebPy(InAFolder, unittest.TestCase):
    def make_storage(self):
        web = needs("web", "web.py")
        from webpy_store import WebPyStorage

        return WebPyStorage(web.database(dbn="sqlite", db=str(self.folder / "states.db"), timeout=30))


class TestSQLObject(InAFolder, unittest.TestCase):
    def make_storage(self):
        needs("sqlobject", "SQLObject")
        from sqlobject_store import SQLObjectStorage

        return SQLObjectStorage(f"sqlite://{self.folder}/states.db?timeout=30")


# --- on a server -------------------------------------------------------------------------------------------------


class TestSQLAlchemyOnPostgreSQL(OnAServer, unittest.TestCase):
    run_server = staticmethod(postgres.running)

    def make_storage(self):
        from sqlalchemy_store import ModelStorage

        return ModelStorage(configure_database({"url": self.server.url()}).engine)


class TestCouchDB(RestartOfTheServer, unittest.TestCase):
    run_server = staticmethod(stores.couchdb)

    def make_storage(self):
        from couchdb_store import CouchDBStorage

        return CouchDBStorage(f"http://admin:sec%40ret@{self.server.address}/lamson")

    def test_a_document_that_somebody_else_has_changed_is_read_again(self):
        self.storage.set("a", "x@test.com", "ONE")
        others = self.make_storage()
        ask, statuses = self.storage.ask, []

        def interfere(method, path, document=None, expected=()):
            if method != "GET" and len(statuses) < 1:
                others.set("a", "x@test.com", "THEIRS")
            answer = ask(method, path, document, expected)
            if method != "GET":
                statuses.append(answer[0])
            return answer

        self.storage.ask = interfere
        self.storage.set("a", "x@test.com", "TWO")
        assert statuses == [409, 201]
        assert others.get("a", "x@test.com") == "TWO"
        statuses.clear()
        self.storage.set("a", "x@test.com", "START")
        assert statuses == [409, 201]
        assert others.get("a", "x@test.com") == "START"

    def test_an_answer_that_is_not_expected_is_an_error(self):
        from couchdb_store import CouchDBStorage

        with pytest.raises(urllib.error.HTTPError, match="404"):
            self.storage.ask("GET", "/nobody")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            CouchDBStorage(f"http://admin:wrong@{self.server.address}/lamson").get("a", "x@test.com")


class TestMongoDB(RestartOfTheServer, unittest.TestCase):
    run_server = staticmethod(stores.mongodb)

    def make_storage(self):
        pymongo = needs("pymongo", "pymongo")
        from mongodb_store import MongoDBStorage

        return MongoDBStorage(pymongo.MongoClient(f"mongodb://{self.server.address}").lamson.state)


class TestMemcache(OnAServer, unittest.TestCase):
    run_server = staticmethod(stores.memcached)

    def make_storage(self):
        needs("pymemcache", "pymemcache")
        from memcache_store import MemcacheStorage

        return MemcacheStorage(self.server.address)

    def test_a_server_that_is_gone_is_an_error(self):
        from pymemcache.exceptions import MemcacheError

        with stores.memcached() as server:
            from memcache_store import MemcacheStorage

            storage = MemcacheStorage(server.address)
            storage.set("a", "x@test.com", "ONE")
        for call in (lambda: storage.get("a", "x@test.com"), lambda: storage.set("a", "x@test.com", "TWO")):
            with pytest.raises((OSError, MemcacheError)):
                call()


class TestLightCloud(StateStorageTests, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        needs("pymemcache", "pymemcache")
        cls.nodes = [cls.enterClassContext(stores.memcached()) for _ in range(3)]

    def make_storage(self):
        from lightcloud_store import LightCloudStorage

        return LightCloudStorage([node.address for node in self.nodes])

    def test_each_node_has_some_of_the_senders(self):
        from memcache_store import MemcacheStorage

        for number in range(60):
            self.storage.set("a", f"{number}@test.com", "ONE")
        each = [MemcacheStorage(node.address) for node in self.nodes]
        found = [sum(storage.get("a", f"{n}@test.com") == "ONE" for n in range(60)) for storage in each]
        assert sum(found) == 60
        assert min(found) > 0

    def test_the_senders_of_a_node_that_is_down_are_not_in_start(self):
        from pymemcache.exceptions import MemcacheError

        self.storage.set("a", "x@test.com", "ONE")
        client = self.storage.client
        port = int(client.hasher.get_node(digest("a", "x@test.com").hex()).rpartition(":")[2])
        (node,) = (node for node in self.nodes if node.port == port)
        node.stop()
        try:
            for _ in range(5):
                with pytest.raises((OSError, MemcacheError)):
                    self.storage.get("a", "x@test.com")
        finally:
            node.start()
        assert self.storage.get("a", "x@test.com") == "START"  # memcached keeps nothing
        self.storage.set("a", "x@test.com", "TWO")
        assert self.storage.get("a", "x@test.com") == "TWO"


class TestRedis(RestartOfTheServer, unittest.TestCase):
    run_server = staticmethod(stores.redis)

    def make_storage(self):
        redis = needs("redis", "redis")
        from redis_store import RedisStorage

        return RedisStorage(redis.Redis.from_url(f"redis://{self.server.address}"))


class TestRedisCluster(OnAServer, unittest.TestCase):
    run_server = staticmethod(stores.redis_cluster)

    def make_storage(self):
        redis = needs("redis", "redis")
        from redis_store import RedisStorage

        return RedisStorage(redis.RedisCluster.from_url(f"redis://{self.server[0].address}"))

    def test_each_node_has_some_of_the_senders(self):
        import redis

        for number in range(60):
            self.storage.set("a", f"{number}@test.com", "ONE")
        counts = [redis.Redis(port=node.port).dbsize() for node in self.server]
        assert sum(counts) == 60
        assert min(counts) > 0


# --- the examples themselves -------------------------------------------------------------------------------------


def test_each_example_is_short_and_is_in_the_readme():
    readme = (FOLDER / "README.md").read_text()
    files = sorted(FOLDER.glob("*.py"))
    assert len(files) == 11
    for file in files:
        assert 20 <= len(file.read_text().splitlines()) <= 60, file.name
        assert f"({file.name})" in readme, file.name


def test_what_people_look_for_in_a_table_is_there():
    from sqlite_store import SQLiteStorage

    with tempfile.TemporaryDirectory() as folder:
        storage = SQLiteStorage(f"{folder}/states.db")
        storage.prepare()
        storage.set("app.handlers.list", "jürgen\udcff@example.com", "POSTING")
        with closing(sqlite3.connect(f"{folder}/states.db")) as connection:
            assert connection.execute("SELECT key, sender, state FROM state").fetchall() == [
                ("app.handlers.list", "jürgen\\udcff@example.com", "POSTING")
            ]
