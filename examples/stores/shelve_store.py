"""States in a shelf, for more than one process.

    Router.STATE_STORE = SharedShelf("run/states")

Python's `shelve` lies on whatever dbm there is: gdbm where it is installed, and else ``dbm.dumb``, which two processes
ruin when they write at once. So this one holds a lock of the operating system for as long as the shelf is open.
`lamson.routing.ShelveStorage` does without that lock: it is for one process.
"""

import contextlib
import fcntl
import shelve
import threading

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest


class SharedShelf(StateStorage):
    def __init__(self, path):
        self.path = path
        self.threads = threading.Lock()  # the other lock is the process' own: it does not keep threads apart

    def get(self, key, sender):
        with self.opened(fcntl.LOCK_SH) as shelf:
            return shelf.get(digest(key, sender).hex(), ROUTE_FIRST_STATE)

    def set(self, key, sender, state):
        with self.opened(fcntl.LOCK_EX) as shelf:
            if state == ROUTE_FIRST_STATE:
                shelf.pop(digest(key, sender).hex(), None)
            else:
                shelf[digest(key, sender).hex()] = state

    def clear(self):
        with self.opened(fcntl.LOCK_EX) as shelf:
            shelf.clear()

    @contextlib.contextmanager
    def opened(self, kind):
        # The file of the lock stays: whoever removed it would lock another one than those who wait for it.
        with self.threads, open(f"{self.path}.lock", "w") as lock:
            fcntl.flock(lock, kind)
            # Opened anew each time: what another process has written is seen, and a closed shelf is whole on disk.
            with shelve.open(self.path) as shelf:
                yield shelf
