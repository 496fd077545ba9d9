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
import hashlib
import os
import shelve
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from lamson.errors import LamsonError

ROUTE_FIRST_STATE = "START"


def digest(key: str, sender: str) -> bytes:
    """32 bytes (SHA-256) that no other key and sender have: for a store whose keys are short, or of few characters."""
    # The length in front keeps ("a", "bc") and ("ab", "c") apart. Surrogates are what undecodable bytes became.
    return hashlib.sha256(f"{len(key)} {key}{sender}".encode("utf-8", "surrogatepass")).digest()


def storable(text: str) -> str:
    """Text that every store takes: surrogates and NUL, which some refuse, are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


# Seconds that a thread waits for a lock while it holds another one. That is a handler that has delivered a message to
# another handler. If that one does the same the other way round, both would wait for ever.
PATIENCE_INSIDE = 10.0


class LockTimeout(LamsonError):
    """A thread that holds the lock of a sender did not get a second one in time: somebody may wait for the first."""

    def __init__(self) -> None:
        super().__init__(
            "A handler has delivered a message to another handler, whose sender has been busy for "
            f"{PATIENCE_INSIDE:.0f} seconds. Perhaps each of two handlers waits for the other: "
            "let one of them push to a queue instead."
        )


class Beyond(Protocol):
    """Locks that keep other processes out, where `KeyedLocks` keeps other threads out.

    `acquire` waits, for `patience` seconds if that is not None, and raises LockTimeout then.
    """

    def acquire(self, number: Any, patience: float | None, /) -> None: ...

    def release(self, number: Any, /) -> None: ...


class KeyedLocks:
    """One re-entrant lock for every key in use, and none for the rest, so that strangers cannot fill memory.

    A thread that gets the lock of a key takes the one `beyond`, too, when there is any: once, however often it enters.
    """

    def __init__(self, beyond: Beyond | None = None) -> None:
        self._beyond = beyond
        self._forget()
        _keyed_locks.add(self)

    def hold(self, key: Any) -> "_Hold":
        """Hold the lock of `key` for as long as the block runs."""
        return _Hold(self, key)

    def _forget(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Any, _Entry] = {}


_thread = threading.local()  # `holds`: how many locks this thread has


class _Entry:
    __slots__ = ("depth", "lock", "users")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0  # how many hold it or wait for it
        self.depth = 0  # how often the thread that holds it has entered


class _Hold:
    __slots__ = ("entry", "key", "locks")

    def __init__(self, locks: KeyedLocks, key: Any):
        self.locks = locks
        self.key = key

    def __enter__(self) -> None:
        locks = self.locks
        with locks._guard:
            entry = locks._locks.get(self.key)
            if entry is None:
                entry = locks._locks[self.key] = _Entry()
            entry.users += 1
        self.entry = entry
        patience = PATIENCE_INSIDE if getattr(_thread, "holds", 0) else None
        try:
            if not entry.lock.acquire(timeout=-1 if patience is None else patience):
                raise LockTimeout
        except BaseException:  # KeyboardInterrupt, while it waited, as well
            self._leave()
            raise
        entry.depth += 1
        _thread.holds = getattr(_thread, "holds", 0) + 1
        if locks._beyond is not None and entry.depth == 1:
            try:
                locks._beyond.acquire(self.key, patience)
            except BaseException:
                self._release()
                raise

    def __exit__(self, *exception: object) -> None:
        beyond = self.locks._beyond
        try:
            if beyond is not None and self.entry.depth == 1:
                beyond.release(self.key)
        finally:
            self._release()

    def _release(self) -> None:
        _thread.holds -= 1
        self.entry.depth -= 1
        self.entry.lock.release()
        self._leave()

    def _leave(self) -> None:
        locks = self.locks
        with locks._guard:
            self.entry.users -= 1
            if not self.entry.users and locks._locks.get(self.key) is self.entry:
                del locks._locks[self.key]


_keyed_locks: weakref.WeakSet[KeyedLocks] = weakref.WeakSet()


def _forget_locks_of_the_parent() -> None:
    # A child has none of its parent's threads: what they held, nobody would ever give back.
    for locks in list(_keyed_locks):
        locks._forget()


os.register_at_fork(after_in_child=_forget_locks_of_the_parent)


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

    def unsynced(self) -> bool:
        """Whether `sync` has something to do. False for a storage whose `set` leaves nothing to do."""
        return False

    def sync(self) -> None:
        """Bring to the disk what was set. The Router's states are read at once by everybody, but a power cut may take
        the last ones along until this has returned: it is called before a message is acknowledged, once for several."""

    def prepare(self) -> None:
        """Make what the storage needs (tables, files). Called once when a server starts; raises to stop the start."""

    def lock(self, key: str, sender: str) -> contextlib.AbstractContextManager:
        """Hold this while a handler runs for the sender: no other one with the same key and sender runs then.

        A thread that holds it may enter again. Between processes it is exact when `shared` is true.
        """
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
