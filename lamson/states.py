"""Where the state of each sender is kept between two messages: the storages that the Router works with.

A state is the name of a function, and everybody who is not known is in ``START``:

    >>> storage = MemoryStorage()
    >>> storage.get("app.handlers.list", "zed@example.com")
    'START'
    >>> storage.set("app.handlers.list", "zed@example.com", "POSTING")
    >>> storage.get("app.handlers.list", "zed@example.com")
    'POSTING'

`MemoryStorage` forgets when the process ends, `ShelveStorage` does not. For a database see `lamson.database`; for
anything else subclass `StateStorage`. All of them are found in `lamson.routing`, too.
"""

import contextlib
import shelve
import threading
from collections.abc import Iterator
from typing import Any

ROUTE_FIRST_STATE = "START"


class KeyedLocks:
    """One re-entrant lock for every key in use, and none for the rest, so that strangers cannot fill memory."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Any, list] = {}  # key -> [lock, how many hold it or wait for it]

    @contextlib.contextmanager
    def hold(self, key: Any) -> Iterator[None]:
        """Hold the lock of `key` for as long as the block runs."""
        with self._guard:
            entry = self._locks.setdefault(key, [threading.RLock(), 0])
            entry[1] += 1
        try:
            with entry[0]:
                yield
        finally:
            with self._guard:
                entry[1] -= 1
                if not entry[1]:
                    del self._locks[key]


class StateStorage:
    """Where the state of each sender is kept. Subclass it and give its three methods to keep it elsewhere.

    `key` is what the Router's `state_key` makes (the handler module's name, unless the module says otherwise) and
    `sender` an address; both are any text. The methods are called from several threads at once.
    """

    shared = False
    """Whether several processes may use the storage at once, and `lock` holds across them."""

    _locks = KeyedLocks()

    def get(self, key: str, sender: str) -> str:
        """Return the name of the sender's state, ``START`` when nothing is known."""
        raise NotImplementedError(f"{type(self).__name__} has to give get(key, sender).")

    def set(self, key: str, sender: str, state: str) -> None:
        """Remember `state`. ``START`` is what the unknown have, so setting it forgets the entry."""
        raise NotImplementedError(f"{type(self).__name__} has to give set(key, sender, state).")

    def clear(self) -> None:
        """Forget every state."""
        raise NotImplementedError(f"{type(self).__name__} has to give clear().")

    def prepare(self) -> None:
        """Make what the storage needs (tables, files). Called once when a server starts; raises to stop the start."""

    def lock(self, key: str, sender: str) -> contextlib.AbstractContextManager:
        """Hold this while a handler runs for the sender: no other one with the same key and sender runs then."""
        return self._locks.hold((id(self), key, sender))


class MemoryStorage(StateStorage):
    """States in a dictionary: gone when the process ends. Right for tests, and the default."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], str] = {}

    def get(self, key: str, sender: str) -> str:
        return self.states.get((key, sender), ROUTE_FIRST_STATE)

    def set(self, key: str, sender: str, state: str) -> None:
        if state == ROUTE_FIRST_STATE:
            self.states.pop((key, sender), None)
        else:
            self.states[(key, sender)] = state

    def clear(self) -> None:
        self.states.clear()


class ShelveStorage(StateStorage):
    """States in a file of Python's `shelve`: survives a restart, good for one process with little mail."""

    def __init__(self, database_path: str):
        self.database_path = database_path
        self._access = threading.Lock()  # no dbm module is safe to use from two threads at once

    @contextlib.contextmanager
    def _open(self) -> Iterator[shelve.Shelf]:
        # Opened for each access and closed again: only a closed shelf is sure to be whole on disk.
        with self._access, shelve.open(self.database_path) as states:
            yield states

    @staticmethod
    def _name(key: str, sender: str) -> str:
        # Lengths in front keep ("a", "b c") and ("a b", "c") apart. Surrogates are what undecodable bytes became.
        return f"{len(key)} {key} {sender}".encode("utf-8", "surrogateescape").decode("latin-1")

    def get(self, key: str, sender: str) -> str:
        with self._open() as states:
            return states.get(self._name(key, sender), ROUTE_FIRST_STATE)

    def set(self, key: str, sender: str, state: str) -> None:
        with self._open() as states:
            if state == ROUTE_FIRST_STATE:
                states.pop(self._name(key, sender), None)
            else:
                states[self._name(key, sender)] = state

    def clear(self) -> None:
        with self._open() as states:
            states.clear()
