"""kombu's transport for Redis, with its steps made safe: a message is never in no place at all.

kombu takes a message off its list, and in a second command notes who has it. A process that is killed between the two
takes the message with it. Here a script does both, and Redis runs a script whole or not at all.

A Redis whose memory is full (``maxmemory``) takes no new message. It shall give out those it has, for that makes room.
So each script here begins with what needs no memory: Redis lets it go on to its end then. kombu's transactions it
refuses from the start.

How long somebody has a message is counted by Redis' clock alone, whatever the machines' own clocks say.

Imported only by `lamson.brokerlink`, for kombu and redis are optional.
"""

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import dumps, loads
from redis.exceptions import NoPermissionError

log = logging.getLogger(__name__)

_NOW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""

# The lists are: the queue; who has what since when; what that is; what is no message of kombu's. The last one, as JSON:
# the message, the exchange (none) and the queue it goes back to, as kombu writes it.
_TAKE = (
    _NOW
    + """
local item = redis.call('LINDEX', KEYS[1], -1)
if not item then return false end
local readable, message = pcall(cjson.decode, item)
local tag = readable and type(message) == 'table' and type(message.properties) == 'table'
    and message.properties.delivery_tag
if type(tag) ~= 'string' then
    redis.call('LPUSH', KEYS[4], redis.call('RPOP', KEYS[1]))
    return 1
end
redis.call('RPOP', KEYS[1])
redis.call('ZADD', KEYS[2], now, tag)
redis.call('HSET', KEYS[3], tag, '[' .. item .. ', "", "' .. KEYS[1] .. '"]')
return item
"""
)

# The lists here: who has what since when; what that is.
_DONE = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
"""

_KEEP = (
    _NOW
    + """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
    redis.call('ZADD', KEYS[1], now, ARGV[1])
end
"""
)

_LATE = (
    _NOW
    + """
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1], 'LIMIT', 0, ARGV[2])
"""
)

# And the queue. Whoever has it may have told in the meantime that it is still alive, or be done.
_RESTORE = (
    _NOW
    + """
local since = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not since or tonumber(since) > now - ARGV[2] then return end
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('HDEL', KEYS[2], ARGV[1]) == 1 then
    redis.call('RPUSH', KEYS[3], ARGV[3])
end
"""
)


class QoS(redis.QoS):
    """What this process has taken and not acknowledged. After a failure it comes back when its time is over."""

    restore_at_shutdown = False

    def ack(self, delivery_tag: str) -> None:
        """Forget it, here and in Redis."""
        self._run(_DONE, [], delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 1) -> None:
        """Put back into its queue what others have had for too long."""
        with self.channel.conn_or_acquire() as client:
            for tag in self._run(_LATE, [], self.visibility_timeout, num):
                taken = client.hget(self.unacked_key, tag)
                if taken is not None:  # or else its owner is done with it by now
                    message, _, queue = loads(taken.decode())
                    message["properties"].setdefault("delivery_info", {})["redelivered"] = True
                    self._run(_RESTORE, [queue], tag, self.visibility_timeout, dumps(message))

    def _run(self, script: str, keys: list[str], *values: Any) -> Any:
        keys = [self.unacked_index_key, self.unacked_key, *keys]
        with self.channel.conn_or_acquire() as client:
            return client.eval(script, len(keys), *keys, *values)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember it here. In Redis it was noted when it was taken."""
        virtual.QoS.append(self, message, delivery_tag)

    def keep(self, delivery_tag: str) -> None:
        """Tell that it is still being handled, so that nobody else gets it."""
        self._run(_KEEP, [], delivery_tag)


class Channel(redis.Channel):
    """kombu's channel, which takes a message in one step."""

    QoS = QoS

    def promises(self) -> tuple[bool, bool]:
        """Whether Redis keeps what it has when its memory is full, and whether it keeps it over a crash.

        (True, True) when we may not ask.
        """
        with self.conn_or_acquire() as client:
            try:
                told = client.info()
            except NoPermissionError:
                return True, True
        return not told["maxmemory_policy"].startswith("allkeys-"), bool(told["aof_enabled"])

    def _get(self, queue: str, timeout: Any = None) -> Any:
        keys = [queue, self.unacked_index_key, self.unacked_key, f"{queue}.unreadable"]
        with self.conn_or_acquire() as client:
            item = client.eval(_TAKE, len(keys), *keys)
        if item is None:
            raise Empty
        if item == 1:
            log.error("failed: what is no message was moved from the list %s to %s.unreadable", queue, queue)
            return self._get(queue)
        return loads(item.decode())

    def _size(self, queue: str) -> int:
        with self.conn_or_acquire() as client:
            return client.llen(queue)

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        with self.conn_or_acquire() as client:
            client.delete(queue)
        return size


class Transport(redis.Transport):
    """kombu's transport for Redis, with this channel."""

    Channel = Channel
