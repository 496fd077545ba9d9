"""`Watch`: tells, in the log, of functions that do not come to an end.

    watch = Watch(lambda: 60)
    token = watch.begin("app.handlers.list.START on <list@example.com>")
    try:
        START(message)
    finally:
        watch.end(token)

After 60 seconds the log has the name and the place where the function is, once; and when it ends after all, how long it
took. Python has no way to stop a function that runs in a thread, so more than telling is not done. What it costs is a
dictionary's entry for a call. The thread that looks is there only while something runs.
"""

import contextlib
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

log = logging.getLogger(__name__)


class _Call:
    """A call that has begun."""

    __slots__ = ("name", "since", "thread", "told")

    def __init__(self, name: Callable[[], str], since: float, thread: int):
        self.name = name
        self.since = since
        self.thread = thread
        self.told = False


class Watch:
    """`limit` is asked for the number of seconds that a call may take; 0 is any number."""

    def __init__(self, limit: Callable[[], float]):
        self._limit = limit
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, name: Callable[[], str]) -> int:
        """A call begins in this thread. `name` is called for what the log calls it, if it comes to that."""
        token = next(self._numbers)
        self._calls[token] = _Call(name, time.monotonic(), threading.get_ident())
        # Not the other way round: `_look` says that it ends, and then looks for calls once more.
        # A process that was forked has no thread but the one that forked it.
        if (self._thread is None or not self._thread.is_alive()) and self._limit() > 0:
            self._start()
        return token

    def end(self, token: int) -> None:
        """The call has ended."""
        call = self._calls.pop(token)
        if call.told:
            log.warning("ended: %s, after %.0f seconds", call.name(), time.monotonic() - call.since)

    def _start(self) -> None:
        with self._guard:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, name="lamson-watch", daemon=True)
                with contextlib.suppress(RuntimeError):  # the system gives none: the next call asks again
                    self._thread.start()

    def _look(self) -> None:
        while True:
            self._look_while_there_is_something()
            self._thread = None
            if not self._calls or not self._limit() > 0:
                return
            with self._guard:
                if self._thread is not None:
                    return  # the call that has begun just now has started another one
                self._thread = threading.current_thread()

    def _look_while_there_is_something(self) -> None:
        idle = 0
        while idle < 2 and (limit := self._limit()) > 0:
            time.sleep(limit / 4)
            idle = 0 if self._calls else idle + 1
            now = time.monotonic()
            for call in list(self._calls.values()):
                if not call.told and now - call.since > limit:
                    call.told = True
                    where = sys._current_frames().get(call.thread)
                    place = "".join(traceback.format_stack(where)) if where is not None else ""
                    log.error("overdue: %s runs for %.0f seconds now:\n%s", call.name(), now - call.since, place)
