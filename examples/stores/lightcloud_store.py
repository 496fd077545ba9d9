"""States on several servers that speak memcached's protocol, as LightCloud spread them over Tokyo Tyrant nodes.

    Router.STATE_STORE = LightCloudStorage(["10.0.0.1:1978", "10.0.0.2:1978", "10.0.0.3:1978"])

LightCloud is gone; pymemcache's `HashClient` decides as it did, by a hash of the key, which node has what. A node that
is down is an error, so that the mail of its senders waits: that they are all in START would be worse. And a node that
is added takes over some senders, who are in START then. `redis_store.py` on a Redis Cluster moves them along, and has
replicas.
"""

import sys

from pymemcache.client.hash import HashClient

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest


class LightCloudStorage(StateStorage):
    def __init__(self, nodes):
        self.client = HashClient(
            nodes,
            use_pooling=True,
            default_noreply=False,
            timeout=30,
            connect_timeout=10,
            # Never count a node as dead and ask another one for its senders, nor answer "unknown" while it is down.
            retry_attempts=sys.maxsize,
            retry_timeout=float("-inf"),
        )

    def get(self, key, sender):
        state = self.client.get(digest(key, sender).hex())
        return ROUTE_FIRST_STATE if state is None else state.decode()

    def set(self, key, sender, state):
        name = digest(key, sender).hex()
        if state == ROUTE_FIRST_STATE:
            self.client.delete(name)
        elif not self.client.set(name, state.encode()):
            raise OSError(f"The node did not store the state of {sender}.")

    def clear(self):
        self.client.flush_all()
