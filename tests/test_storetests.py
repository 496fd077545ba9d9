"""The contract of storages finds what is wrong: storages with one flaw each, and the test that has to fail."""

import contextlib
import io
import threading
import unittest

import pytest

from lamson.database import SQLAlchemyStorage
from lamson.routing import MemoryStorage, ShelveStorage
from lamson.states import KeyedLocks, StateStorage
from lamson.testing import StateStorageTests


def failures(make, survives=True):
    """Puts storages that `make` makes through the contract. Returns the names of the tests that failed."""

    class Tests(StateStorageTests, unittest.TestCase):
        survives_restart = survives

        def make_storage(self):
            return make()

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Tests)
    with contextlib.redirect_stderr(io.StringIO()):
        result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
    assert result.testsRun > 15
    return {test._testMethodName for test, _ in [*result.failures, *result.errors]}


class Joined(MemoryStorage):
    """Keys and senders run together."""

    def get(self, key, sender):
        return super().get(f"{key} {sender}", "")

    def set(self, key, sender, state):
        super().set(f"{key} {sender}", "", state)


class AnyCase(MemoryStorage):
    """Senders in any case are one, as in some databases."""

    def get(self, key, sender):
        return super().get(key, sender.lower())

    def set(self, key, sender, state):
        super().set(key, sender.lower(), state)


class Latin(MemoryStorage):
    """What is not in Latin-1 cannot be stored."""

    def set(self, key, sender, state):
        super().set(key, sender, state.encode("latin-1").decode("latin-1"))


class Short(MemoryStorage):
    """Texts are cut off, as in a column of a fixed size."""

    def get(self, key, sender):
        return super().get(key[:255], sender[:255])

    def set(self, key, sender, state):
        super().set(key[:255], sender[:255], state)


class Unlocked(MemoryStorage):
    """The lock locks nobody out, and others come in between."""

    def get(self, key, sender):
        found = super().get(key, sender)
        threading.Event().wait(0.001)
        return found

    def lock(self, key, sender):
        return contextlib.nullcontext()


class OneLock(MemoryStorage):
    """One lock for all, which nobody may enter twice, and which is kept after an error."""

    everybody = threading.Lock()

    @contextlib.contextmanager
    def lock(self, key, sender):
        if not self.everybody.acquire(timeout=0.1):
            raise TimeoutError
        yield
        self.everybody.release()


class StartIsKept(MemoryStorage):
    """START cannot be set."""

    def set(self, key, sender, state):
        if state != "START":
            super().set(key, sender, state)


class ClearsNothing(MemoryStorage):
    def clear(self):
        pass


class FirstStays(MemoryStorage):
    """A state cannot be changed."""

    def set(self, key, sender, state):
        if state == "START" or (key, sender) not in self.states:
            super().set(key, sender, state)


class SaysShared(MemoryStorage):
    shared = True


class PreparesAnew(MemoryStorage):
    def prepare(self):
        self.clear()


FLAWS = [
    (Joined, {"test_key_and_sender_are_not_run_together"}),
    (AnyCase, {"test_any_text_is_a_sender"}),
    (Latin, {"test_a_state_may_have_any_name_that_a_function_has"}),
    (Short, {"test_any_text_is_a_sender", "test_any_text_is_a_key"}),
    (Unlocked, {"test_the_lock_lets_one_thread_in_at_a_time"}),
    (
        OneLock,
        {
            "test_whoever_holds_a_lock_may_enter_again",
            "test_a_lock_is_given_back_when_the_block_fails",
            "test_others_are_not_locked_out",
        },
    ),
    (StartIsKept, {"test_setting_start_forgets_one_sender"}),
    (ClearsNothing, {"test_clear_forgets_everybody_and_may_be_called_again"}),
    (FirstStays, {"test_a_state_takes_the_place_of_the_one_before"}),
    (
        SaysShared,
        {
            "test_a_shared_state_is_seen_by_other_processes_at_once",
            "test_the_lock_of_a_shared_storage_lets_one_process_in_at_a_time",
            "test_the_lock_of_a_shared_storage_ends_with_the_process_that_holds_it",
        },
    ),
    (PreparesAnew, {"test_prepare_keeps_what_is_there"}),
]


@pytest.mark.parametrize("storage, expected", FLAWS, ids=[storage.__name__ for storage, _ in FLAWS])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_flaw_is_found(storage, expected):
    assert expected <= failures(storage, survives=False)


def test_a_lock_that_holds_in_one_process_alone_is_found(tmp_path):
    class InOneProcess(SQLAlchemyStorage):
        def __init__(self, url):
            super().__init__(url)
            self._locks = KeyedLocks()

        def get(self, key, sender):
            found = super().get(key, sender)
            threading.Event().wait(0.001)  # others come in between
            return found

    failed = failures(lambda: InOneProcess(f"sqlite:///{tmp_path}/states.db"))
    # The other test of such a lock finds it only when its thread is quicker than the next line.
    failed.discard("test_the_lock_of_a_shared_storage_ends_with_the_process_that_holds_it")
    assert failed == {"test_the_lock_of_a_shared_storage_lets_one_process_in_at_a_time"}


def test_a_good_storage_passes():
    assert failures(MemoryStorage, survives=False) == set()


def test_a_storage_that_forgets_is_found_when_it_says_that_it_does_not():
    assert failures(MemoryStorage) == {
        "test_a_state_is_there_after_a_restart",
        "test_a_state_is_there_when_its_process_is_killed_right_after",
    }


def test_a_storage_that_remembers_is_found_when_it_says_that_it_does_not(tmp_path):
    failed = failures(lambda: ShelveStorage(str(tmp_path / "states")), survives=False)
    assert failed == {"test_a_state_is_there_after_a_restart"}


def test_a_storage_that_is_no_storage_fails_everywhere():
    assert "test_the_unknown_are_in_start" in failures(StateStorage)


def test_without_make_storage_it_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="make_storage"):
        StateStorageTests().make_storage()


def test_a_shelf_is_a_database_even_where_there_is_no_better_one_than_dumb(tmp_path, monkeypatch):
    import dbm

    monkeypatch.setattr(dbm, "_defaultmod", dbm.dumb)
    assert failures(lambda: ShelveStorage(str(tmp_path / "dumb"))) == set()
    assert (tmp_path / "dumb.dir").exists()
