"""kombu's transport for AMQP, which waits for an answer for a limited time in all.

py-amqp counts the time anew with everything that comes, and in most places it waits for ever. A RabbitMQ whose memory
or disk is full reads nothing more of who publishes, and goes on sending signs of life: a push would never end. One that
hangs sends nothing at all.

Imported only by `lamson.brokerlink`, for kombu and amqp are optional.
"""

import socket
import time
from typing import Any

from kombu.transport import pyamqp


class PatientConnection(pyamqp.Connection):
    """py-amqp's connection. It has to be told, by `begin`, that something new is asked."""

    def __init__(self, *arguments: Any, patience: float, **options: Any):
        # A large message may take a while where the broker is slow to read. py-amqp gives up after a second.
        settings = {socket.TCP_USER_TIMEOUT: int(patience * 1000)} if hasattr(socket, "TCP_USER_TIMEOUT") else None
        super().__init__(*arguments, socket_settings=settings, write_timeout=patience, **options)
        self._patience = patience
        self._blocked = ""
        self.begin()

    def begin(self) -> None:
        """From now on the broker has `patience` seconds to answer."""
        self._deadline = time.monotonic() + self._patience

    def drain_events(self, timeout: float | None = None) -> None:
        """Waits for something that is no mere sign of life. Raises TimeoutError."""
        try:
            while not self.blocking_read(self._left(timeout)):
                pass
        except TimeoutError as error:
            if timeout is not None and time.monotonic() < self._deadline:
                raise  # whoever asked would not wait any longer
            raise TimeoutError(f"no answer for {self._patience:g} seconds{self._blocked}") from error

    def _left(self, timeout: float | None) -> float:
        """Seconds that may still pass. Raises TimeoutError when there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left if timeout is None else min(left, timeout)

    def _on_blocked(self) -> None:
        self._blocked = ": the broker is short of memory or disk, and takes nothing in"

    def _on_unblocked(self) -> None:
        self._blocked = ""


class Transport(pyamqp.Transport):
    """kombu's transport for AMQP, with this connection."""

    Connection = PatientConnection


class SSLTransport(pyamqp.SSLTransport):
    """The same over TLS."""

    Connection = PatientConnection
