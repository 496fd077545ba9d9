"""States in Redis, or in a Redis Cluster.

    Router.STATE_STORE = RedisStorage(redis.Redis.from_url("redis://localhost"))
    Router.STATE_STORE = RedisStorage(redis.RedisCluster.from_url("redis://10.0.0.1:7000"))

Set ``appendonly yes`` and ``appendfsync always`` in redis.conf: then a state is on the disk when `set` returns. In a
cluster each sender's state lies on one of the nodes, and moves along when nodes are added.
"""

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest


class RedisStorage(StateStorage):
    def __init__(self, client, prefix="lamson:state:"):
        self.client = client
        self.prefix = prefix

    def get(self, key, sender):
        state = self.client.get(self.name(key, sender))
        return ROUTE_FIRST_STATE if state is None else state.decode()

    def set(self, key, sender, state):
        if state == ROUTE_FIRST_STATE:
            self.client.delete(self.name(key, sender))
        else:
            self.client.set(self.name(key, sender), state)

    def clear(self):
        for name in self.client.scan_iter(match=self.prefix + "*"):
            self.client.delete(name)

    def name(self, key, sender):
        return self.prefix + digest(key, sender).hex()
