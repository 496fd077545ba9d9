"""The threads that handlers run in.

What has the same key runs in turn, and waits its turn without holding a thread: one sender with many slow messages
takes one thread, not all of them. The threads are daemons: a handler that never ends does not keep the process from
ending.
"""

import collections
import queue
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class HandlerPool:
    """Up to `size` threads, started as they are needed."""

    def __init__(self, size: int):
        self.size = size
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._turns: dict[Hashable, collections.deque] = {}  # key -> who waits for the one that runs
        self._threads = 0
        self._idle = threading.Semaphore(0)

    def submit(self, key: Hashable | None, func: Callable[..., Any], *args: Any) -> Future:
        """Run ``func(*args)`` in a thread, after all that was submitted with the same key. None is no key."""
        job: tuple = (key, Future(), func, args)
        with self._guard:
            if key is not None:
                if key in self._turns:
                    self._turns[key].append(job)
                    return job[1]
                self._turns[key] = collections.deque()
            self._start(job)
        return job[1]

    def _start(self, job: tuple) -> None:
        # Put first, so that a new thread finds it and does not count itself as idle.
        self._work.put(job)
        if not self._idle.acquire(blocking=False) and self._threads < self.size:
            self._threads += 1
            threading.Thread(target=self._run, name=f"lamson-handler-{self._threads}", daemon=True).start()

    def _run(self) -> None:
        job: tuple | None
        while (job := self._take()) is not None:
            while job is not None:
                key, future, func, args = job
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(func(*args))
                    except BaseException as error:
                        future.set_exception(error)
                del future, func, args  # a message may be large, and this thread may wait for long
                job = self._next(key)

    def _take(self) -> tuple | None:
        try:
            return self._work.get_nowait()
        except queue.Empty:
            self._idle.release()
            return self._work.get()

    def _next(self, key: Hashable | None) -> tuple | None:
        """Return what waits behind the one that has just ended."""
        if key is None:
            return None
        with self._guard:
            if self._turns[key]:
                return self._turns[key].popleft()
            del self._turns[key]
            return None

    def close(self) -> None:
        """Let the threads end when they have nothing to do."""
        with self._guard:
            for _ in range(self._threads):
                self._work.put(None)
