"""The contract of a state storage, as tests that any storage can be put through.

    import unittest
    from lamson.testing import StateStorageTests

    class MyStorageTests(StateStorageTests, unittest.TestCase):
        def make_storage(self):
            return MyStorage("run/states")

Run it with `nosetests`, pytest or unittest. `make_storage` is called before each test, again where a test starts anew
as a server does, and in child processes (by ``fork``). Every storage that it returns has the same data; a test begins
with `clear`.

A storage that forgets everything at a restart says ``survives_restart = False``. What a storage promises with `shared`
is put to the test as well.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

from lamson.states import ROUTE_FIRST_STATE, StateStorage

LONG_WAIT = 60
"""Seconds after which what waits for a lock counts as waiting forever."""

ODD_TEXTS = [
    "",
    " ",
    "a b",
    "a\tb",
    "a\nb",
    "a\r\nb",
    "a\0b",
    "'; DROP TABLE lamson_state; --",
    'a"b\\c%d{e}$f',
    "a/../b:c|d,e;f*g?h#i",
    "_a",
    "zed@example.com",
    "Zed@example.com",
    "zed@example.com ",
    "jürgen@bücher.example",
    "ju\u0308rgen@bücher.example",  # the same to the eye
    "用户@例子.广告",
    "\U0001f600@example.com",
    "\udcff@example.com",  # a byte that was no text
    "x" * 64 + "@" + "y" * 255,
    "x" * 5000,
    "x" * 4999 + "y",
]
"""Keys and senders as strangers may make them. All differ."""


class StateStorageTests:
    """Mix it into a `unittest.TestCase`, and give it `make_storage`."""

    survives_restart = True
    """Whether a state is still there for the next process."""

    storage: StateStorage
    assertEqual: Callable[..., None]
    skipTest: Callable[[str], None]

    def make_storage(self) -> StateStorage:
        """Returns a storage on the data of this test, such as a server makes when it starts."""
        raise NotImplementedError(f"{type(self).__name__} has to give make_storage().")

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.storage = self._prepared()
        self.storage.clear()

    def _prepared(self) -> StateStorage:
        storage = self.make_storage()
        storage.prepare()
        return storage

    # what is remembered

    def test_the_unknown_are_in_start(self) -> None:
        self.assertEqual(self.storage.get("app.handlers.list", "zed@example.com"), ROUTE_FIRST_STATE)

    def test_a_state_is_kept_for_each_key_and_each_sender(self) -> None:
        states = {("a", "x@test.com"): "ONE", ("b", "x@test.com"): "TWO", ("a", "y@test.com"): "THREE"}
        for (key, sender), state in states.items():
            self.storage.set(key, sender, state)
        self.assertEqual({each: self.storage.get(*each) for each in states}, states)
        self.assertEqual(self.storage.get("b", "y@test.com"), ROUTE_FIRST_STATE)

    def test_a_state_takes_the_place_of_the_one_before(self) -> None:
        for state in ("ONE", "TWO", "TWO", "ONE"):
            self.storage.set("a", "x@test.com", state)
            self.assertEqual(self.storage.get("a", "x@test.com"), state)

    def test_setting_start_forgets_one_sender(self) -> None:
        self.storage.set("a", "x@test.com", "ONE")
        self.storage.set("a", "y@test.com", "TWO")
        self.storage.set("a", "x@test.com", ROUTE_FIRST_STATE)
        self.storage.set("a", "nobody@test.com", ROUTE_FIRST_STATE)
        self.assertEqual(self.storage.get("a", "x@test.com"), ROUTE_FIRST_STATE)
        self.assertEqual(self.storage.get("a", "nobody@test.com"), ROUTE_FIRST_STATE)
        self.assertEqual(self.storage.get("a", "y@test.com"), "TWO")

    def test_clear_forgets_everybody_and_may_be_called_again(self) -> None:
        self.storage.set("a", "x@test.com", "ONE")
        self.storage.set("b", "y@test.com", "TWO")
        for _ in range(2):
            self.storage.clear()
            self.assertEqual(self.storage.get("a", "x@test.com"), ROUTE_FIRST_STATE)
            self.assertEqual(self.storage.get("b", "y@test.com"), ROUTE_FIRST_STATE)

    def test_prepare_keeps_what_is_there(self) -> None:
        self.storage.set("a", "x@test.com", "ONE")
        self.storage.prepare()
        self.assertEqual(self.storage.get("a", "x@test.com"), "ONE")

    # any text

    def test_any_text_is_a_sender(self) -> None:
        self._keep_apart([("app.handlers.list", odd) for odd in ODD_TEXTS])

    def test_any_text_is_a_key(self) -> None:
        self._keep_apart([(odd, "zed@example.com") for odd in ODD_TEXTS])

    def test_key_and_sender_are_not_run_together(self) -> None:
        pairs = [("a", ""), ("", "a"), ("ab", "c"), ("a", "bc")]
        for between in " :/|,.-_\n\0":
            pairs += [(f"a{between}b", "c"), ("a", f"b{between}c")]
        self._keep_apart(pairs)

    def test_a_state_may_have_any_name_that_a_function_has(self) -> None:
        for state in ("x", "_", "ÄNDERN", "確認中", "S" * 200):
            self.storage.set("a", "x@test.com", state)
            self.assertEqual(self.storage.get("a", "x@test.com"), state)

    def _keep_apart(self, pairs: list[tuple[str, str]]) -> None:
        states = {pair: f"STATE_{number}" for number, pair in enumerate(pairs)}
        for (key, sender), state in states.items():
            self.storage.set(key, sender, state)
        self.assertEqual({pair: self.storage.get(*pair) for pair in pairs}, states)
        for key, sender in pairs[::2]:
            self.storage.set(key, sender, ROUTE_FIRST_STATE)
        expected = {
            pair: state if number % 2 else ROUTE_FIRST_STATE for number, (pair, state) in enumerate(states.items())
        }
        self.assertEqual({pair: self.storage.get(*pair) for pair in pairs}, expected)

    # a restart

    def test_a_state_is_there_after_a_restart(self) -> None:
        self.storage.set("a", "x@test.com", "ONE")
        self.storage.set("a", "y@test.com", "TWO")
        self.storage.set("a", "y@test.com", ROUTE_FIRST_STATE)
        storage = self._prepared()
        expected = "ONE" if self.survives_restart else ROUTE_FIRST_STATE
        self.assertEqual(storage.get("a", "x@test.com"), expected)
        self.assertEqual(storage.get("a", "y@test.com"), ROUTE_FIRST_STATE)

    def test_a_state_is_there_when_its_process_is_killed_right_after(self) -> None:
        if not self.survives_restart:
            self.skipTest("It forgets everything at a restart.")

        def set_and_die(child: "_Child") -> None:
            self._prepared().set("a", "x@test.com", "ONE")
            os.kill(os.getpid(), signal.SIGKILL)

        self.assertEqual(_Child(set_and_die).wait(), -signal.SIGKILL)
        self.assertEqual(self._prepared().get("a", "x@test.com"), "ONE")

    # many at once

    def test_eight_threads_at_once_lose_nothing(self) -> None:
        def converse(number: int) -> None:
            for turn in range(10):
                sender = f"{number}-{turn % 5}@test.com"
                self.storage.set("a", sender, f"STATE_{turn}")
                self.storage.set("a", "everybody@test.com", f"OF_{number}")
                found = self.storage.get("a", sender)
                if found != f"STATE_{turn}":
                    raise AssertionError(f"{sender} was set to STATE_{turn} and is in {found}")

        _in_threads(8, converse)
        senders = [(number, turn) for number in range(8) for turn in range(5)]
        self.assertEqual(
            {(number, turn): self.storage.get("a", f"{number}-{turn}@test.com") for number, turn in senders},
            {(number, turn): f"STATE_{turn + 5}" for number, turn in senders},
        )
        self.assertEqual(self.storage.get("a", "everybody@test.com")[:3], "OF_")

    # the lock

    def test_the_lock_lets_one_thread_in_at_a_time(self) -> None:
        _in_threads(8, lambda number: self._count(self.storage, 5))
        self.assertEqual(self.storage.get("a", "counter@test.com"), "COUNT_40")

    def test_whoever_holds_a_lock_may_enter_again(self) -> None:
        with self.storage.lock("a", "x@test.com"), self.storage.lock("a", "x@test.com"):
            self.storage.set("a", "x@test.com", "ONE")
        self._lock_in_a_thread("a", "x@test.com").join(LONG_WAIT)
        self.assertEqual(self.storage.get("a", "x@test.com"), "LOCKED")

    def test_a_lock_that_was_entered_twice_is_held_until_it_is_left_twice(self) -> None:
        with self.storage.lock("a", "x@test.com"):
            with self.storage.lock("a", "x@test.com"):
                thread = self._lock_in_a_thread("a", "x@test.com")
            self.storage.set("a", "x@test.com", "MINE")
            self.storage.set("seen", "x@test.com", self.storage.get("a", "x@test.com"))
        thread.join(LONG_WAIT)
        self.assertEqual(self.storage.get("seen", "x@test.com"), "MINE")
        self.assertEqual(self.storage.get("a", "x@test.com"), "LOCKED")

    def test_others_are_not_locked_out(self) -> None:
        with self.storage.lock("a", "x@test.com"):
            for other in (("a", "y@test.com"), ("b", "x@test.com")):
                self._lock_in_a_thread(*other).join(LONG_WAIT)
                self.assertEqual(self.storage.get(*other), "LOCKED")

    def test_a_lock_is_given_back_when_the_block_fails(self) -> None:
        try:
            with self.storage.lock("a", "x@test.com"):
                raise ZeroDivisionError
        except ZeroDivisionError:
            self._lock_in_a_thread("a", "x@test.com").join(LONG_WAIT)
        self.assertEqual(self.storage.get("a", "x@test.com"), "LOCKED")

    def _lock_in_a_thread(self, key: str, sender: str) -> threading.Thread:
        def lock() -> None:
            with self.storage.lock(key, sender):
                self.storage.set(key, sender, "LOCKED")

        thread = threading.Thread(target=lock, daemon=True)
        thread.start()
        return thread

    @staticmethod
    def _count(storage: StateStorage, turns: int) -> None:
        """Count further, as a handler does that reads its sender's state and then sets the next one."""
        for _ in range(turns):
            with storage.lock("a", "counter@test.com"):
                before = storage.get("a", "counter@test.com")
                number = 0 if before == ROUTE_FIRST_STATE else int(before.removeprefix("COUNT_"))
                storage.set("a", "counter@test.com", f"COUNT_{number + 1}")

    # several processes, for storages that say they are shared

    def _need_shared(self) -> None:
        if not self.storage.shared:
            self.skipTest("It does not say that it is shared by several processes.")

    def test_a_shared_state_is_seen_by_other_processes_at_once(self) -> None:
        self._need_shared()
        self.storage.set("a", "x@test.com", "OURS")
        self.assertEqual(self.storage.get("a", "y@test.com"), ROUTE_FIRST_STATE)

        def answer(child: "_Child") -> None:
            storage = self._prepared()
            if storage.get("a", "x@test.com") != "OURS":
                raise AssertionError("The other process does not see what this one has set.")
            storage.set("a", "x@test.com", ROUTE_FIRST_STATE)
            storage.set("a", "y@test.com", "THEIRS")

        self.assertEqual(_Child(answer).wait(), 0)
        self.assertEqual(self.storage.get("a", "x@test.com"), ROUTE_FIRST_STATE)
        self.assertEqual(self.storage.get("a", "y@test.com"), "THEIRS")

    def test_the_lock_of_a_shared_storage_lets_one_process_in_at_a_time(self) -> None:
        self._need_shared()

        def count(child: "_Child") -> None:
            _in_threads(2, lambda _: self._count(self._prepared(), 10))

        children = [_Child(count), _Child(count)]
        self.assertEqual([child.wait() for child in children], [0, 0])
        self.assertEqual(self.storage.get("a", "counter@test.com"), "COUNT_40")

    def test_the_lock_of_a_shared_storage_ends_with_the_process_that_holds_it(self) -> None:
        self._need_shared()

        def hold(child: "_Child") -> None:
            storage = self._prepared()
            with storage.lock("a", "x@test.com"):
                storage.set("a", "x@test.com", "HELD")
                child.tell()
                threading.Event().wait()

        child = _Child(hold)
        child.listen()
        thread = self._lock_in_a_thread("a", "x@test.com")
        before = self.storage.get("a", "x@test.com")
        self.assertEqual(child.kill(), -signal.SIGKILL)
        thread.join(LONG_WAIT)
        self.assertEqual((before, self.storage.get("a", "x@test.com")), ("HELD", "LOCKED"))


class _Child:
    """A child process that calls a function with this object, and exits with 1 when that fails."""

    def __init__(self, function: Callable[["_Child"], Any]):
        self._ready, self._tell = os.pipe()
        self.process = os.fork()
        if not self.process:
            code = 1
            try:
                function(self)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)  # the rest of the tests is none of its business
        os.close(self._tell)

    def tell(self) -> None:
        """Lets the parent's `listen` return. For the child."""
        os.write(self._tell, b".")

    def listen(self) -> None:
        """Waits until the child tells something, or has ended."""
        os.read(self._ready, 1)

    def kill(self) -> int:
        """Ends it, and returns what `wait` does."""
        os.kill(self.process, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """The exit code, or the number of the signal that ended it, with a minus in front."""
        os.close(self._ready)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def _in_threads(count: int, function: Callable[[int], Any]) -> None:
    """Call ``function(number)`` in so many threads at the same moment. Raises the first error of one."""
    errors: list[BaseException] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            together.wait()
            function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
