"""States in a server that speaks memcached's protocol: Tokyo Tyrant, memcached, and others.

    Router.STATE_STORE = MemcacheStorage("localhost:1978")

Tokyo Tyrant (``ttserver``), which the home page of Lamson 1.x named, keeps them on disk. memcached keeps nothing: after
its restart, or when its memory is full, everybody is in START again. Use a server for this alone: `clear` empties it.
"""

from pymemcache.client.base import PooledClient

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest


class MemcacheStorage(StateStorage):
    def __init__(self, server="localhost:1978"):
        # Without default_noreply=False pymemcache does not wait to hear whether a state was stored.
        self.client = PooledClient(server, default_noreply=False, timeout=30, connect_timeout=10, no_delay=True)

    def get(self, key, sender):
        state = self.client.get(name(key, sender))
        return ROUTE_FIRST_STATE if state is None else state.decode()

    def set(self, key, sender, state):
        if state == ROUTE_FIRST_STATE:
            self.client.delete(name(key, sender))
        elif not self.client.set(name(key, sender), state.encode()):
            raise OSError(f"The server did not store the state of {sender}.")

    def clear(self):
        self.client.flush_all()


def name(key, sender):
    """memcached's keys are at most 250 characters long, without spaces."""
    return digest(key, sender).hex()
