"""A queue over a message broker, with the same steps as the folder in `lamson.maildir`.

    >>> place = Broker("redis://localhost:6379/0?queue=posts")
    >>> key = place.add(content)                    # the broker has it, or a BrokerError is raised
    >>> for held in place.held():
    ...     handle(held.read())
    ...     held.remove()                           # acknowledged, and not before

A broker knows whether it gave a message out before, and not how often. So each message has a number with it, and one
that comes back from a process that died is put in once more with a higher number, before anybody handles it.

A broker has no keys either, and gives messages out one after the other. To look for a key, or at all of them, is to
take each out and put it back at the end. That takes time, and whoever dies in the middle may leave one message twice.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Generator
from typing import Any

from lamson.brokerlink import Link, Place, keeping, linked
from lamson.keys import SAFE_NAME, born, host_name, new_key

log = logging.getLogger(__name__)

_CLAIMS = "x-lamson-claims"  # how often it was claimed by somebody who did not come to an end with it


class Broker:
    """The queue that `url` says, see `lamson.brokerlink`. `safe` keeps the host's name out of keys.

    Nothing is connected before it is needed. All methods raise BrokerError.
    """

    def __init__(self, url: str, safe: bool = False):
        self.place = Place.of(url)
        self._host = SAFE_NAME if safe else host_name()

    def __str__(self) -> str:
        return str(self.place)

    # messages by key

    def add(self, content: bytes, key: str | None = None) -> str:
        """Put a message in and return its key."""
        key = key or new_key(self._host)
        with linked(self.place) as link:
            link.publish(content, key, {_CLAIMS: 0})
        return key

    def read(self, key: str) -> bytes | None:
        """The content of a message, or None when there is none of that key."""
        found = None
        for held in self._each():  # to its end, so that the others keep their order
            if held.key == key:
                found = held.read()
        return found

    def size(self, key: str) -> int | None:
        """How many bytes the message has, or None when there is none of that key."""
        content = self.read(key)
        return None if content is None else len(content)

    def remove(self, key: str) -> bool:
        """Take a message out. Returns whether there was one of that key."""
        found = False
        for held in self._each():
            if held.key == key:
                held.remove()
                found = True
        return found

    # all of them

    def keys(self) -> list[str]:
        """The keys of all messages that nobody has in hand, the oldest first."""
        return [held.key for held in self._each()]

    def count(self) -> int:
        """How many messages there are that nobody has in hand."""
        with linked(self.place) as link:
            return link.count()

    def check_room(self, size: int) -> None:
        """Nobody knows: a broker says what it cannot take when it is given to it."""

    def clear(self) -> None:
        """Take every message out that nobody has in hand."""
        with linked(self.place) as link:
            link.clear()

    def heads(self, size: int) -> list[tuple[str, int, float, bytes]]:
        """Return ``(key, size, time, head)`` of each message that nobody has in hand, as `Maildir.heads` does."""
        return [(held.key, held.size, born(held.key) or time.time(), held.read()[:size]) for held in self._each()]

    def _each(self) -> Generator["Held", None, None]:
        """Yield every message that is there now, and put it back at the end."""
        with linked(self.place) as link:
            for _ in range(link.count()):
                held = self._next(link)
                if held is None:
                    return
                try:
                    yield held
                finally:
                    held.put_back()

    # one after the other

    def held(self, wanted: Callable[[str], bool] | None = None) -> Generator["Held", None, None]:
        """Yield messages that nobody has in hand, the oldest first, each held until the next one is asked for.

        `wanted` is asked with each key whether it may be this one. One that may not goes to the end of the queue.
        """
        with linked(self.place) as link, keeping(link) as in_hand:
            unwanted = None
            while unwanted is None or unwanted > 0:
                held = self._next(link)
                if held is None:
                    return
                if wanted is not None and not wanted(held.key):
                    # Those that were behind it may still be wanted.
                    unwanted = link.count() if unwanted is None else unwanted - 1
                    held.put_back()
                    continue
                in_hand(held.message)
                try:
                    yield held
                finally:
                    in_hand(None)
                    held.put_back()

    def _next(self, link: Link) -> "Held | None":
        while (message := link.take()) is not None:
            held = Held(link, message)
            if message.errors:
                log.error("failed: %s of %s cannot be read: %s", held.key, self, message.errors[0])
                held.set_aside(held.read())
            elif (message.delivery_info or {}).get("redelivered"):
                # Somebody had it and died, or so it seems. The broker tells that once, so it is written down.
                held.count()
                held.put_back()
            else:
                return held
        return None


class Held:
    """A message that nobody else gets now, unless this process is silent for too long. `size` is in bytes."""

    def __init__(self, link: Link, message: Any):
        body = message.body
        self.message = message
        self._content = body.encode("utf-8", "surrogateescape") if isinstance(body, str) else bytes(body)
        # One that another program has put there has no key.
        self.key = message.properties.get("message_id") or hashlib.sha256(self._content).hexdigest()[:32]
        self.size = len(self._content)
        self._link = link
        self._claims = int((message.headers or {}).get(_CLAIMS) or 0)
        self._settled = False

    def read(self) -> bytes:
        """The whole content."""
        return self._content

    def count(self) -> int:
        """Count this claim, and return how often the message was claimed by now."""
        self._claims += 1
        return self._claims

    def replace(self, content: bytes) -> None:
        """Put the message in anew. From here on it is in nobody's hands."""
        self._put(content)

    def put_back(self) -> None:
        """Put the message in once more, at the end, unless something else became of it."""
        if not self._settled:
            self._put(self._content)

    def set_aside(self, content: bytes) -> bool:
        """Move the message to the queue of the dead, with this content. Returns True: there always is one."""
        queue = f"{self._link.place.queue}.dead"
        self._link.declare(queue)
        self._put(content, queue)
        return True

    def _put(self, content: bytes, queue: str | None = None) -> None:
        # In this order: who dies in between leaves it twice, and not in no place.
        self._settled = True
        self._link.publish(content, self.key, {_CLAIMS: 0 if queue else self._claims}, queue)
        self._link.acknowledge(self.message)

    def remove(self) -> None:
        """Take the message out for good."""
        self._settled = True
        self._link.acknowledge(self.message)

    def move_to(self, other: Any) -> None:
        """Move the message to another queue, where it has the same key."""
        other.add(self._content, self.key)
        self.remove()
