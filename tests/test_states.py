"""Where the states of senders are kept."""

import threading

import pytest

from lamson.routing import (
    MemoryStorage,
    ShelveStorage,
    StateStorage,
)


@pytest.mark.parametrize("kind", ["memory", "shelve"])
class TestStorages:
    @pytest.fixture
    def storage(self, kind, tmp_path):
        return MemoryStorage() if kind == "memory" else ShelveStorage(str(tmp_path / "states"))

    def test_the_unknown_are_in_START_and_setting_START_forgets(self, storage):
        assert storage.get("app.post", "a@b") == "START"
        storage.set("app.post", "a@b", "POSTING")
        storage.set("app.post", "c@d", "OTHER")
        assert storage.get("app.post", "a@b") == "POSTING"
        storage.set("app.post", "a@b", "START")
        assert storage.get("app.post", "a@b") == "START"
        storage.set("app.post", "unknown", "START")
        storage.clear()
        assert storage.get("app.post", "c@d") == "START"

    def test_odd_keys_are_kept_apart(self, storage):
        names = [("a", "b c"), ("a b", "c"), ("", ""), ("ключ", "я@пример.рф"), ("k" * 5000, "\udcff@x"), ("a:", "")]
        for number, (key, sender) in enumerate(names):
            storage.set(key, sender, f"STATE{number}")
        assert [storage.get(*name) for name in names] == [f"STATE{number}" for number in range(len(names))]

    def test_threads_do_not_lose_each_others_states(self, storage):
        def work(number):
            for step in range(10):
                storage.set("key", f"sender{number}", f"S{step}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {storage.get("key", f"sender{number}") for number in range(8)} == {"S9"}


def test_a_shelf_survives_a_restart(tmp_path):
    ShelveStorage(str(tmp_path / "states")).set("k", "a@b", "POSTING")
    assert ShelveStorage(str(tmp_path / "states")).get("k", "a@b") == "POSTING"


def test_a_storage_without_its_methods_says_which_is_missing():
    class Half(StateStorage):
        pass

    for call in (lambda: Half().get("a", "b"), lambda: Half().set("a", "b", "c"), lambda: Half().clear()):
        with pytest.raises(NotImplementedError, match="Half has to give"):
            call()
