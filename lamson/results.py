"""Results of jobs on their way to those who wait for them, and those that have to be on disk before.

    deliver((future, 17, None))

    held = HeldResults(sync, bring)
    held.start()
    held.hold(result)  # from any thread
    held.flush()  # waits for nothing: a thread of its own has `sync` wait, and gives the results to `bring`

To wait for the disk is most of what a write costs, and one wait is enough for all that was written before it. So there
is one thread that waits, and what is held back meanwhile is what the next wait is for.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

Result = tuple[asyncio.Future, Any, BaseException | None]
"""Who waits for it; the value; and the error, or None."""


def deliver(result: Result) -> None:
    """Give a future its result. For the thread that runs the future's loop."""
    future, value, error = result
    if future.cancelled():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(_bearable(error))


def _bearable(error: BaseException) -> Exception:
    """Return what a future can have for an error: none takes StopIteration, and SystemExit would end the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    bearable = RuntimeError(f"a job ended with {_said(error)}")
    bearable.__cause__ = error
    return bearable


def _said(error: BaseException) -> str:
    try:
        return repr(error)
    except BaseException:  # of a handler's own class; the loop must not end of it
        return type(error).__name__


class HeldResults:
    """See above. What `sync` raises becomes the result of those that have no error of their own."""

    def __init__(self, sync: Callable[[], None], bring: Callable[[list[Result]], None]):
        self._sync = sync
        self._bring = bring
        self._guard = threading.Lock()
        self._gate = threading.Lock()  # held for as long as the thread shall sleep
        self._gate.acquire()
        self._held: list[Result] = []
        self._awake = False
        self._closed = False

    def start(self) -> None:
        """Start the thread. Raises RuntimeError when the system has none."""
        threading.Thread(target=self._work, name="lamson-disk", daemon=True).start()

    def hold(self, result: Result) -> None:
        """Keep a result until the next `flush` has seen to it that the disk has what was written."""
        with self._guard:
            self._held.append(result)

    def flush(self) -> None:
        """Have the thread bring what is held back, when it is on disk."""
        if self._held:
            self._wake()

    def close(self) -> None:
        """Let the thread end when it has done what it is about to do."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        with self._guard:
            if not self._awake:
                self._awake = True
                self._gate.release()

    def _work(self) -> None:
        while not self._closed:
            self._gate.acquire()
            while held := self._take():
                try:
                    self._sync()
                except BaseException as error:
                    held = [(future, value, error if failure is None else failure) for future, value, failure in held]
                self._bring(held)
                del held  # messages may be large, and this thread may sleep for long

    def _take(self) -> list[Result]:
        with self._guard:
            held, self._held = self._held, []
            self._awake = bool(held) or self._closed
            return held
