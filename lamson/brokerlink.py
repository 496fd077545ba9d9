"""Connections to a message broker, for queues that several machines share. This is the one place that needs kombu.

    >>> place = Place.of("amqp://guest:guest@localhost:5672//?queue=posts")
    >>> place.queue, str(place)
    ('posts', 'amqp://guest:***@localhost:5672//?queue=posts')
    >>> with linked(place) as link:
    ...     link.publish(content, headers, "posts")         # the broker has it when this returns, or it raises

A connection is used by one thread at a time, and kept for the next one. Every failure is a BrokerError, which is an
OSError as the failure of a disk is; a connection that failed is not used again.

While a message is in hand, a thread tells the broker every few seconds that this process is alive. What a process had
in hand that was killed goes back to its queue: on AMQP when its connection breaks, or after a minute's silence when the
whole machine is gone; on Redis after `visibility_timeout` seconds of silence (120), by its own clock.
"""

import contextlib
import logging
import os
import re
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from lamson.errors import QueueError

log = logging.getLogger(__name__)

# All in seconds.
CONNECT_TIME = 5  # until a connection is there
ANSWER_TIME = 30  # until the broker has confirmed a message
SILENCE = 20  # AMQP's heartbeat; RabbitMQ takes this process for dead after three times that
VISIBILITY = 120  # the same, for Redis
KEEP = 5  # between two signs of life while a message is in hand
LOOK = 1  # between two looks for what dead processes have left in Redis

# Those that give back what a killed process had in hand. Of kombu's others, most forget it.
_SCHEMES = ("amqp", "amqps", "redis", "rediss", "memory")
_NAME = re.compile(r"[\w.-]{1,200}", re.ASCII)


class BrokerError(QueueError, OSError):
    """The broker cannot be reached, or did not do what it was asked. Whether it has a message is not known then."""

    def __str__(self) -> str:
        return str(self.args[0])


class Place(NamedTuple):
    """A queue of a broker: the broker's URL, the queue's name, and the options that stood in the URL.

    `visibility_timeout` is in seconds, and for Redis. `ca_certs` is a file of certificates to trust, in place of those
    that the system trusts.
    """

    url: str
    queue: str
    visibility_timeout: float = VISIBILITY
    ca_certs: str | None = None

    @classmethod
    def of(cls, url: str) -> "Place":
        """Read a URL. Raises QueueError when it says no queue or a broker that cannot be used."""
        base, _, query = url.partition("?")
        scheme = base.partition("://")[0]
        if scheme not in _SCHEMES:
            raise QueueError(f"{_hidden(url)}: a queue is in a folder, or over one of {', '.join(_SCHEMES)}.")
        options = dict(parse_qsl(query, keep_blank_values=True))
        queue = options.pop("queue", "")
        if not _NAME.fullmatch(queue):
            raise QueueError(
                f"{_hidden(url)} has to name the queue, with letters, digits, and . _ -: "
                f"{_hidden(base)}?queue=posts is one."
            )
        try:
            visibility = float(options.pop("visibility_timeout", VISIBILITY))
        except ValueError:
            raise QueueError(f"{_hidden(url)}: visibility_timeout is a number of seconds.") from None
        ca_certs = options.pop("ca_certs", None)
        if options:
            raise QueueError(
                f"{_hidden(url)}: after the question mark stand queue, visibility_timeout and ca_certs, "
                f"and not {', '.join(options)}."
            )
        return cls(base, queue, visibility, ca_certs)

    def __str__(self) -> str:
        """The URL, without the password."""
        return f"{_hidden(self.url)}?queue={self.queue}"

    def keep_every(self) -> float:
        """How often the broker has to hear that a message is still in hand, in seconds."""
        return min(KEEP, self.visibility_timeout / 4) if self.url.startswith("redis") else KEEP

    def transport_options(self) -> dict[str, Any]:
        """What kombu is told about this broker."""
        if self.url.startswith("amqp"):
            return {"confirm_publish": True, "patience": ANSWER_TIME}
        if not self.url.startswith("redis"):
            return {}
        return {
            "visibility_timeout": self.visibility_timeout,
            "unacked_key": f"{self.queue}.claimed",
            "unacked_index_key": f"{self.queue}.claimed.since",
            "socket_connect_timeout": CONNECT_TIME,
            "socket_timeout": ANSWER_TIME,
            "socket_keepalive": True,
        }

    def tls_options(self) -> Any:
        """What kombu is told about TLS: the certificate has to be the host's, and signed by somebody who is trusted."""
        if self.url.startswith("amqps"):
            options = {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": self.ca_certs}
            return {"server_hostname": None, **options}  # None is the host of the URL
        if self.url.startswith("rediss"):
            options = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": self.ca_certs}
            return {"ssl_check_hostname": True, **options}
        return False


def _hidden(url: str) -> str:
    return re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", url)


class Link:
    """One connection, for one thread at a time. Connects when it is made. All methods raise BrokerError."""

    def __init__(self, place: Place):
        self.place = place
        self._amqp = place.url.startswith("amqp")
        self._guard = threading.RLock()  # the thread that tells of our being alive uses the connection, too
        self._looked = 0.0
        self._wire: Any = None
        connection, producer, kombu_error = _kombu()
        try:
            self._connection = connection(
                place.url,
                ssl=place.tls_options(),
                connect_timeout=CONNECT_TIME,
                heartbeat=SILENCE,
                transport_options=place.transport_options(),
            )
        except ValueError as error:
            raise QueueError(f"{place}: {error}") from error
        self._errors: tuple[type[BaseException], ...] = (
            OSError,
            kombu_error,
            *self._connection.connection_errors,
            *self._connection.channel_errors,
        )
        if self._amqp:
            from amqp.exceptions import MessageNacked

            from lamson import amqpchannel

            self._errors += (MessageNacked,)
            tls = place.url.startswith("amqps")
            self._connection.transport_cls = amqpchannel.SSLTransport if tls else amqpchannel.Transport
        elif place.url.startswith("redis"):
            from lamson.redischannel import Transport

            self._connection.transport_cls = Transport
        try:
            with self._told():
                self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
                # kombu's own object would silently connect again, without what this channel has in hand.
                self._wire = self._connection.connection
                self.declare(place.queue)
                self._channel = self._connection.channel()
                self._channel.auto_decode = False  # bytes stay bytes, whatever a message says about them
                self._producer = producer(self._channel)
                if place.url.startswith("redis"):
                    self._check_promises()
        except ValueError as error:  # a database of Redis that is no number
            raise QueueError(f"{place}: {error}") from error
        except BaseException:
            self.close()
            raise

    def _check_promises(self) -> None:
        keeps_when_full, keeps_over_a_crash = self._channel.promises()
        if not keeps_when_full:
            raise BrokerError(
                f"{self.place}: this Redis throws away what was not used for long when its memory is full, queues of "
                "mail as well. Set its maxmemory-policy to noeviction."
            )
        if not keeps_over_a_crash and self.place not in _warned:
            _warned.add(self.place)
            log.warning("%s: this Redis has 'appendonly no', and forgets mail when it crashes", self.place)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with self._guard:
                if self._amqp and self._wire is not None:
                    self._wire.begin()
                yield
        except BrokerError:
            raise
        except self._errors as error:
            raise BrokerError(f"{self.place}: {error or type(error).__name__}") from error

    def declare(self, queue: str) -> None:
        """Make a queue when it is not there. What an administrator has made, of another type, is taken as it is."""
        if not self._amqp:
            return
        with self._told():
            channel = self._wire.channel()
            try:
                channel.queue_declare(queue, passive=True)
            except self._connection.channel_errors:  # and with that the channel is closed
                channel = self._wire.channel()
                channel.queue_declare(queue, durable=True, auto_delete=False)
            channel.close()

    def publish(self, content: bytes, key: str, headers: dict[str, Any], queue: str | None = None) -> None:
        """Put a message into the queue, or another one. When this returns the broker has it, and on AMQP on disk."""
        with self._told():
            self._producer.publish(
                content,
                routing_key=queue or self.place.queue,
                content_type="message/rfc822",
                content_encoding="binary",
                headers=headers,
                message_id=key,
                delivery_mode=2,  # persistent
                mandatory=True,  # an error when there is no such queue any more
            )

    def take(self) -> Any:
        """Take the oldest message, None when there is none. It goes back unless it is acknowledged."""
        with self._told():
            if not self._amqp and time.monotonic() - self._looked >= LOOK:
                self._looked = time.monotonic()
                self._channel.qos.restore_visible(interval=1)
            message = self._channel.basic_get(queue=self.place.queue, no_ack=False)
            return None if message is None else self._channel.message_to_python(message)

    def acknowledge(self, message: Any) -> None:
        """The message is done with."""
        with self._told():
            message.ack()

    def keep(self, message: Any) -> None:
        """Tell the broker that the message is still in hand, unless something else is just being told or asked."""
        # That comes to its end. The others, whom the same thread speaks for, shall not wait for it.
        if not self._guard.acquire(blocking=False):
            return
        try:
            self._keep(message)
        finally:
            self._guard.release()

    def _keep(self, message: Any) -> None:
        with self._told():
            if self._amqp:
                self._wire.send_heartbeat()
            elif hasattr(self._channel.qos, "keep"):
                self._channel.qos.keep(message.delivery_tag)

    def count(self) -> int:
        """How many messages there are that nobody has in hand."""
        with self._told():
            return self._channel.queue_declare(self.place.queue, passive=self._amqp).message_count

    def clear(self) -> None:
        """Forget the messages that nobody has in hand."""
        with self._told():
            self._channel.queue_purge(self.place.queue)

    def alive(self) -> bool:
        """Whether the connection can be used again, after it was not used for a while."""
        if not self._amqp:
            return True  # redis connects again by itself
        heard = select.poll()
        try:
            with self._told():
                heard.register(self._wire.sock, select.POLLIN)
                while heard.poll(0):
                    self._wire.blocking_read(ANSWER_TIME)  # a sign of life of the broker's, or its good-bye
        except BrokerError:
            return False
        return True

    def close(self) -> None:
        """Leave the broker. What is in hand goes back."""
        # The connection may be broken already: nothing is left to be told then.
        with contextlib.suppress(Exception):
            if self._amqp:
                self._connection.collect()
            else:
                self._connection.release()


# --- connections that are kept -----------------------------------------------------------------------------------

_idle: dict[Place, list[Link]] = {}
_warned: set[Place] = set()
_left_behind: list[Any] = []


@contextlib.contextmanager
def linked(place: Place) -> Iterator[Link]:
    """Give a connection to use for a while. One in whose time an error occurred is closed."""
    link = _take(place)
    try:
        yield link
    except GeneratorExit:
        _idle.setdefault(place, []).append(link)
        raise
    except BaseException:
        link.close()
        raise
    else:
        _idle.setdefault(place, []).append(link)


def _take(place: Place) -> Link:
    while True:
        try:
            link = _idle.setdefault(place, []).pop()
        except IndexError:
            break
        if link.alive():
            return link
        link.close()
    return Link(place)


def _after_fork() -> None:
    # A child that used its parent's connections would talk into its parent's conversations. Nothing is closed.
    global _idle, _keepers
    _left_behind.append((_idle, _keepers))
    _idle, _keepers = {}, {}


class _Keeper:
    """A thread that tells a broker of messages in hand. It is there before the first one is taken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[Link, Any] = {}  # its message; None before there is one, and afterwards
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def keeping(self, link: Link) -> Iterator[Callable[[Any], None]]:
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="lamson-broker", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the system has no more of them
                    raise BrokerError(f"{link.place}: no message can be taken in hand: {error}") from error
                self._thread = thread
            self._held[link] = None
            if link.place.keep_every() < KEEP:  # or else it looks soon enough
                self._changed.notify()

        def in_hand(message: Any) -> None:
            with self._changed:
                self._held[link] = message

        try:
            yield in_hand
        finally:
            with self._changed:
                del self._held[link]

    def _work(self) -> None:
        last = time.monotonic()
        while True:
            with self._changed:
                wait = min((link.place.keep_every() for link in self._held), default=KEEP) + last - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                if not self._held:
                    self._thread = None
                    return
                held = list(self._held.items())
            last = time.monotonic()
            for link, message in held:
                if message is None:
                    continue
                try:
                    link.keep(message)
                except Exception as error:  # the libraries raise many things; the other messages need this thread
                    log.warning("failed: %s, and so somebody else may get what is in hand here", error)


_keepers: dict[str, _Keeper] = {}  # by the broker's URL: one that hangs is no harm for another one's messages
os.register_at_fork(after_in_child=_after_fork)


def keeping(link: Link) -> contextlib.AbstractContextManager[Callable[[Any], None]]:
    """Give a function that is called with a message when it is taken in hand, and with None afterwards.

    In between the broker is told that it is. Raises BrokerError when nobody can, before anything is taken.
    """
    return _keepers.setdefault(link.place.url, _Keeper()).keeping(link)


def _kombu() -> tuple[Any, Any, Any]:
    """What is needed of kombu: its connection, its producer, and its error.

    From its modules, for while one thread imports kombu itself, others get a part of it that has nothing in it.
    """
    try:
        from kombu.connection import Connection
        from kombu.exceptions import KombuError
        from kombu.messaging import Producer
    except ImportError as error:
        raise QueueError(
            f"A queue over a broker needs more than Lamson: pip install 'lamson[broker]' ({error})"
        ) from error
    return Connection, Producer, KombuError
