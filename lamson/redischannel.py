"""kombu's transport for Redis, with a step made safe: a message is never in no place at all.

kombu takes a message off its list, and in a second command notes who has it. A process that is killed between the two
takes the message with it. Here a script does both, and Redis runs a script whole or not at all.

Imported only by `lamson.brokerlink`, for kombu and redis are optional.
"""

import logging
import time
from queue import Empty
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import loads

log = logging.getLogger(__name__)

# The lists are: the queue; who has what since when; what that is; what is no message of kombu's. The last one, as JSON:
# the message, the exchange (none) and the queue it goes back to, as kombu writes it.
_TAKE = """
local item = redis.call('LINDEX', KEYS[1], -1)
if not item then return false end
local readable, message = pcall(cjson.decode, item)
local tag = readable and type(message) == 'table' and type(message.properties) == 'table'
    and message.properties.delivery_tag
if type(tag) ~= 'string' then
    redis.call('RPOPLPUSH', KEYS[1], KEYS[4])
    return 1
end
redis.call('RPOP', KEYS[1])
redis.call('ZADD', KEYS[2], ARGV[1], tag)
redis.call('HSET', KEYS[3], tag, '[' .. item .. ', "", "' .. KEYS[1] .. '"]')
return item
"""


class QoS(redis.QoS):
    """What this process has taken and not acknowledged. After a failure it comes back when its time is over."""

    restore_at_shutdown = False

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember it here. In Redis it was noted when it was taken."""
        virtual.QoS.append(self, message, delivery_tag)

    def keep(self, delivery_tag: str) -> None:
        """Tell that it is still being handled, so that nobody else gets it."""
        with self.channel.conn_or_acquire() as client:
            client.zadd(self.unacked_index_key, {delivery_tag: time.time()}, xx=True)


class Channel(redis.Channel):
    """kombu's channel, which takes a message in one step."""

    QoS = QoS

    def _get(self, queue: str, timeout: Any = None) -> Any:
        keys = [queue, self.unacked_index_key, self.unacked_key, f"{queue}.unreadable"]
        with self.conn_or_acquire() as client:
            item = client.eval(_TAKE, len(keys), *keys, time.time())
        if item is None:
            raise Empty
        if item == 1:
            log.error("failed: what is no message was moved from the list %s to %s.unreadable", queue, queue)
            return self._get(queue)
        return loads(item.decode())


class Transport(redis.Transport):
    """kombu's transport for Redis, with this channel."""

    Channel = Channel
