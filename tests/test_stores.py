"""Every storage that Lamson has keeps the contract of storages; `lamson.testing.StateStorageTests` is that."""

import tempfile
import unittest
from pathlib import Path

import postgres
from lamson.database import SQLAlchemyStorage
from lamson.routing import MemoryStorage, ShelveStorage
from lamson.testing import StateStorageTests


class InAFolder(StateStorageTests):
    """Tests that have a folder of their own."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        super().setUp()


class TestMemoryStorage(StateStorageTests, unittest.TestCase):
    survives_restart = False

    def make_storage(self):
        return MemoryStorage()


class TestShelveStorage(InAFolder, unittest.TestCase):
    def make_storage(self):
        return ShelveStorage(str(self.folder / "states"))


class TestSQLAlchemyStorageInAFile(InAFolder, unittest.TestCase):
    def make_storage(self):
        return SQLAlchemyStorage(f"sqlite:///{self.folder}/states.db")

    def test_it_is_shared(self):
        assert self.storage.shared


class TestSQLAlchemyStorageInMemory(StateStorageTests, unittest.TestCase):
    survives_restart = False

    def make_storage(self):
        return SQLAlchemyStorage("sqlite://")

    def test_it_is_not_shared(self):
        assert not self.storage.shared


class TestSQLAlchemyStorageOnPostgreSQL(StateStorageTests, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.url = cls.enterClassContext(postgres.running()).new_database()

    def make_storage(self):
        return SQLAlchemyStorage(self.url)

    def test_it_is_shared(self):
        assert self.storage.shared
