"""A session of SQLAlchemy's for each call of a handler: saved when the handler returns, undone when it fails.

    def START(message, host=None):
        database.session.add(Subscription(address=message.route_from))
        return SUBSCRIBED

`Sessions` is the registry of a ``scoped_session``: a thread gets the same session from it for as long as one handler
runs. `call_sessions` is the context in which the Router calls handlers (`Router.AROUND`). What it does at the end:

* The handler returned: each session is committed. When that fails, the handler has failed, and its sender's state does
  not change.
* The handler raised, an `SMTPError` too: each session is rolled back.
* In both cases the sessions are gone, and their connections are back in the pool.

A handler that uses no session costs next to nothing. One that delivers a message to another handler, which then runs
inside its own call, shares no session with it. Outside of handlers a thread keeps its session until it removes it, as
SQLAlchemy has it.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.util import ScopedRegistry

_thread = threading.local()
# `sessions`: registry -> the session that this thread has now. `calls`: how many handlers run, one inside the other.


class Sessions(ScopedRegistry):
    """The sessions of one database: one for each call of a handler, and one for each thread outside of them."""

    def __init__(self, make: Callable[[], Session]):
        self.createfunc = make

    def __call__(self) -> Session:
        sessions = _sessions()
        if self not in sessions:
            sessions[self] = self.createfunc()
        return sessions[self]

    def has(self) -> bool:
        return self in _sessions()

    def set(self, obj: Session) -> None:
        _sessions()[self] = obj

    def clear(self) -> None:
        _sessions().pop(self, None)

    def of_call(self) -> Session | None:
        """The session of the handler that this thread runs, when it is in a transaction."""
        if not getattr(_thread, "calls", 0):
            return None
        session = _sessions().get(self)
        return session if session is not None and session.in_transaction() else None


def _sessions() -> MutableMapping[Any, Session]:
    sessions = getattr(_thread, "sessions", None)
    if sessions is None:
        # A database that nobody has any more takes its sessions along.
        sessions = _thread.sessions = weakref.WeakKeyDictionary()
    return sessions


def close_sessions() -> None:
    """Closes the sessions that this thread has outside of handlers. What was not committed is rolled back."""
    _end(list((_swap(None) or {}).values()), commit=False)


class call_sessions:
    """The context in which a handler runs. Raises what a commit raises."""

    __slots__ = ("outer",)

    def __enter__(self) -> None:
        self.outer = _swap(None)
        _thread.calls = getattr(_thread, "calls", 0) + 1

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        _thread.calls -= 1
        sessions = _swap(self.outer)
        if sessions:
            _end(list(sessions.values()), commit=kind is None)


def _swap(new: MutableMapping[Any, Session] | None) -> MutableMapping[Any, Session] | None:
    old = getattr(_thread, "sessions", None)
    _thread.sessions = new
    return old


def _end(sessions: list[Session], commit: bool) -> None:
    with contextlib.ExitStack() as stack:
        for session in sessions:
            stack.callback(session.close)  # which rolls back what was not committed
        if commit:
            for session in sessions:
                session.commit()
