"""The threads that handlers run in, beside the event loop: a slow handler keeps neither the wire nor others waiting.

    pool = HandlerPool(32, loop)
    reply = await pool.run(sender, receiver.process_message, peer, sender, recipients, content)

Python runs one thread at a time, and handing over from one to the next costs as much as all the routing of a message.
So as long as handlers are quick, one thread does all of their work. When one stays with a job for longer than `SLOW`
and the process is not busy all the time meanwhile, the job waits for something, and another thread takes over; that is
so for up to `size` of them. (It may also wait for a processor that other processes have. That is no reason to wake
another one, which would wait for it as well, and the system tells: `lamson.rundelay`.) A thread that was slow is one
among many until it has done `ROW` jobs quickly, and of several quick ones all but one go to sleep. It takes so many
because slow and quick jobs come mixed: with one, half of the threads would sleep while jobs wait.

A job that computes is not done sooner by more threads, which would only get in each other's way and all look slow. So
that others need not wait for its end, one more takes over when it has computed for `LONG`.

While such a thread and that of the loop both have work, each gets in the other's way whenever one calls the system. So
they take turns: a thread is woken for all the jobs that came in with one turn of the loop, and the loop stands still
until they are done, or until `SLOW` when there are more of them. For handlers that are slow it does not: after one of
them the loop waits for nobody for `HURRY` seconds, and both work side by side. Then they take turns once more to see
whether handlers are still slow: side by side a thread may just wait for Python to let it run, and nobody can tell that
from other waits. The more turns are slow, the longer they work side by side.

What handlers have written may have to be on disk before anybody is told that they are done. That is a wait, and one is
enough for all the jobs that were done since the last one. The thread that has done them waits, and another one takes
over from it when that takes longer than `SLOW`.

What has the same key runs in turn, and waits its turn without holding a thread: one sender with many slow messages
takes one thread, not all of them. The threads are daemons: a handler that never ends does not keep the process from
ending, and after `HUNG` seconds it does not count among the `size` any more.

When the system has no more threads to give, jobs wait for those there are, and it is asked again and again.
"""

import asyncio
import collections
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from lamson.rundelay import RunDelay

log = logging.getLogger(__name__)

SLOW = 0.002  # seconds
LONG = 0.05  # seconds
BUSY = 0.8  # of the time; not all of it, as the threads of a process wait for each other now and then
HURRY = 0.01  # seconds, and twice as many after each slow turn, up to
LONGEST_HURRY = 0.5
CALM = 0.9  # times so long after a turn without a slow job
ROW = 8  # jobs
HUNG = 60  # seconds
MOST = 4  # times `size` there are threads, with those that hang

Job = tuple[Hashable | None, asyncio.Future, Callable[..., Any], tuple]
Result = tuple[asyncio.Future, Any, BaseException | None]


class _Worker:
    """A thread, as the pool sees it."""

    delay: RunDelay

    def __init__(self) -> None:
        self.gate = threading.Lock()  # held by the pool for as long as the thread shall sleep
        self.gate.acquire()
        self.since = 0.0  # when it began its job; 0 between two jobs
        self.in_turn = False  # the loop stood still for it then
        self.wanted = 0.0  # seconds of processor time by then, see `_wanted`
        self.quick = True  # it is awake, and was not slow lately
        self.row = 0  # jobs done quickly since the last slow one, while it does not count as quick

    def begin(self, now: float, in_turn: bool = False) -> None:
        self.since, self.in_turn = now, in_turn
        self.wanted = self._wanted()

    def is_slow(self, now: float) -> bool:
        """Whether it has spent more than `SLOW` with a job, while there was room for another one to work."""
        spent = now - self.since
        return bool(self.since) and spent > SLOW and self._wanted() - self.wanted < spent * BUSY

    def waits(self, now: float) -> bool:
        """The same, asked while the job goes on: whether it waits at this moment for anything but a processor."""
        return self.is_slow(now) and not self.delay.is_ready()

    def _wanted(self) -> float:
        """Return how much processor time the process has had; in a turn, and what its thread had to wait for it."""
        had = time.process_time()
        return had + self.delay.seconds() if self.in_turn else had


class HandlerPool:
    """Up to `size` threads, started as they are needed. `run` and `pending` are for the thread of the `loop`.

    When `unsynced` says that something is not on disk after a job, its result is held back until `sync` has returned;
    what that raises becomes the result.
    """

    def __init__(
        self,
        size: int,
        loop: asyncio.AbstractEventLoop,
        unsynced: Callable[[], bool] = lambda: False,
        sync: Callable[[], None] = lambda: None,
    ):
        self.size = size
        self.pending = 0  # jobs whose results have not come back
        self._loop = loop
        self._guard = threading.Lock()
        self._ready: collections.deque[Job] = collections.deque()
        self._turns: dict[Hashable, collections.deque[Job]] = {}  # key -> who waits for the one that runs
        self._workers: list[_Worker] = []
        self._asleep: list[_Worker] = []
        self._quick = 0  # how many are awake and quick: one is enough
        self._watching = False
        self._waking = False  # `_wake` is going to run
        self._turn = threading.Lock()  # released to let the loop go on
        self._turn.acquire()
        self._lent_to: _Worker | None = None  # the thread that the loop stands still for
        self._lent_until = 0.0  # when it has to have done
        self._hurry = HURRY  # for how long the next time
        self._hurry_until = 0.0  # the loop stands still for nobody before that
        self._starved = False  # the system has refused a thread
        self._closed = False
        self._results: collections.deque[Result] = collections.deque()
        self._announced = False
        self._unsynced = unsynced
        self._sync = sync
        self._held: list[Result] = []  # those that wait for the disk
        self._syncing = False  # a thread does
        self._due = math.inf  # when results are to be brought, whatever else there is to do

    def run(self, key: Hashable | None, func: Callable[..., Any], *args: Any) -> asyncio.Future:
        """Run ``func(*args)`` in a thread, after all that was given with the same key. None is no key.

        Whoever stops waiting for the future does not stop what has begun, nor what is going to.
        """
        future = self._loop.create_future()
        job = (key, future, func, args)
        self.pending += 1
        with self._guard:
            if key is not None:
                if key in self._turns:
                    self._turns[key].append(job)
                    return future
                self._turns[key] = collections.deque()
            self._ready.append(job)
            if not self._quick and not self._waking:
                self._waking = True
                # For all the jobs of this turn at once, and for those that clients have sent meanwhile.
                self._loop.call_soon(self._loop.call_soon, self._wake)
        if not self._watching:
            self._watching = True
            self._loop.call_later(SLOW, self._watch)
        return future

    def _wake(self) -> None:
        """Wake a thread if one is needed, and stand still until it gives the turn back."""
        self._waking = False
        with self._guard:
            if self._quick or not (self._ready or (self._held and not self._syncing)):
                return
            worker = self._wake_one()
            if worker is None or time.monotonic() < self._hurry_until:
                return
            self._lent_to, self._lent_until = worker, math.inf
        if not self._turn.acquire(timeout=2 * SLOW):
            with self._guard:
                given_back = self._lent_to is None  # just now
                self._lent_to = None
                if worker.waits(now := time.monotonic()):
                    self._be_in_a_hurry(now)
            if given_back:
                self._turn.acquire()
        elif time.monotonic() > self._hurry_until:  # no job was slow
            self._hurry = max(self._hurry * CALM, HURRY)
        self._announce()

    def _be_in_a_hurry(self, now: float) -> None:
        if now > self._hurry_until:  # or else it was for this same turn
            self._hurry_until = now + self._hurry
            self._hurry = min(self._hurry * 2, LONGEST_HURRY)

    def _wake_one(self) -> _Worker | None:
        if self._asleep:
            worker = self._asleep.pop()
            worker.quick = True
            worker.gate.release()
        elif len(self._workers) < self.size or self._may_be_more():
            worker = _Worker()
            if not self._start(worker):
                return None  # the job stays where it is, and `_watch` comes again
            self._workers.append(worker)
        else:
            return None
        self._quick += 1
        return worker

    def _start(self, worker: _Worker) -> bool:
        name = f"lamson-handler-{len(self._workers) + 1}"
        before, self._starved = self._starved, not _started(self._work, name, worker)
        if self._starved and not before:
            log.error("failed: the system gives no more threads; %d do the work", len(self._workers))
        return not self._starved

    def _may_be_more(self) -> bool:
        long_ago = time.monotonic() - HUNG
        hung = sum(1 for worker in self._workers if 0 < worker.since < long_ago)
        return len(self._workers) < min(self.size + hung, self.size * MOST)

    def _watch(self) -> None:
        """Look for threads that are slow or compute for long, and let another one take over from them."""
        with self._guard:
            now = time.monotonic()
            for worker in self._workers:
                if worker.quick and worker.since and (worker.waits(now) or now - worker.since > LONG):
                    self._leave(worker)
        self._announce()  # what was done by a thread that is slow now
        if not self._waking:  # or else each of these would add one more to every turn of the loop
            self._wake()
        self._watching = bool(self.pending)
        if self._watching:
            self._loop.call_later(SLOW, self._watch)

    def _leave(self, worker: _Worker) -> None:
        """Count a thread no longer as one that is awake and quick."""
        worker.quick = False
        worker.row = 0
        self._quick -= 1

    # in the threads

    def _work(self, worker: _Worker) -> None:
        worker.delay = RunDelay()
        while (job := self._next(worker)) is not None:
            key, future, func, args = job
            result: Result
            try:
                result = future, func(*args), None
            except BaseException as error:
                result = future, None, error
            try:
                unsynced = self._unsynced()
            except BaseException as error:  # then nobody knows whether it is on disk
                result, unsynced = (future, None, error), False
            self._rate(worker, key, result, unsynced)
            del job, future, func, args, result  # a message may be large, and this thread may sleep for long
        with self._guard:  # where the loop reads it
            worker.delay.close()

    def _next(self, worker: _Worker) -> Job | None:
        """Return the next job, and sleep until there is one. None ends the thread.

        Before it sleeps, or when it is time, it brings the results that there are.
        """
        relieved = False  # another one has taken over while this one waited for the disk
        while True:
            held: list[Result] = []
            with self._guard:
                if self._closed:
                    self._give_back(worker)
                    return None
                now = time.monotonic()
                goes_on = bool(self._ready) and not relieved and self._has_turn(worker, now)
                if goes_on and self._held and not self._syncing and self._all_at_work():
                    self._due = 0.0  # the job may be slow, and nobody else would bring what is held
                if goes_on and now < self._due:
                    worker.begin(now, self._lent_to is worker)
                    return self._ready.popleft()
                self._due = math.inf
                if self._held and not self._syncing:
                    held, self._held, self._syncing = self._held, held, True
                    worker.begin(now)
                    if worker.quick and self._quick > 1:  # the other one goes on with jobs meanwhile
                        self._leave(worker)
                        relieved = True
                elif not goes_on:
                    self._asleep.append(worker)
                    if worker.quick:
                        self._leave(worker)
                given_back = (bool(held) or not goes_on) and self._give_back(worker)
                was_quick = worker.quick
            if not given_back:
                self._wake_loop()
            if held:
                self._finish(held)
                with self._guard:
                    worker.since = 0.0
                    relieved = relieved or (was_quick and not worker.quick)
            elif not goes_on:
                worker.gate.acquire()
                relieved = False

    def _all_at_work(self) -> bool:
        return not self._asleep and (self._starved or len(self._workers) >= self.size)

    def _has_turn(self, worker: _Worker, now: float) -> bool:
        if not worker.quick:
            return True  # handlers are slow, and run side by side
        if self._quick > 1:
            return False
        if self._lent_to is not worker:
            return now < self._hurry_until
        self._lent_until = min(self._lent_until, now + SLOW)  # it may have taken long to wake up
        return now < self._lent_until

    def _give_back(self, worker: _Worker) -> bool:
        """Let the loop go on if it stands still for this thread. Returns whether it did."""
        if self._lent_to is not worker:
            return False
        self._lent_to = None
        self._turn.release()
        return True

    def _finish(self, held: list[Result]) -> None:
        """Wait for the disk, and bring results that had to wait for it."""
        try:
            self._sync()
        except BaseException as error:
            held = [(future, value, error if failure is None else failure) for future, value, failure in held]
        self._results.extend(held)
        self._syncing = False

    def _rate(self, worker: _Worker, key: Hashable | None, result: Result, unsynced: bool) -> None:
        """A thread has done its job: was it quick? And what waits behind the job may run."""
        with self._guard:
            (self._held if unsynced else self._results).append(result)
            now = time.monotonic()
            slow = worker.is_slow(now)
            worker.since = 0.0
            # Whoever waits for a result has waited long enough for a slow one.
            self._due = 0.0 if slow else min(self._due, now + SLOW)
            if slow:
                worker.row = 0
                if worker.in_turn:
                    self._be_in_a_hurry(now)
                self._give_back(worker)
                if worker.quick:
                    self._leave(worker)
            elif not worker.quick:
                worker.row += 1
                if worker.row >= ROW:
                    worker.quick = True
                    self._quick += 1
            if key is not None:
                # A slow sender's next message stands behind those of others who wait for a thread.
                if self._turns.get(key):
                    self._ready.append(self._turns[key].popleft())
                else:
                    self._turns.pop(key, None)

    def _wake_loop(self) -> None:
        """Have the loop bring the results that there are, and wake a thread for what else is to be done."""
        if (self._results or self._ready) and not self._announced and not self._closed:
            self._announced = True
            try:
                self._loop.call_soon_threadsafe(self._announce)
            except RuntimeError:
                if not self._closed:  # and the loop just after it
                    raise

    # back in the loop

    def _announce(self) -> None:
        """Bring the results that there are to those who wait for them."""
        self._announced = False
        while self._results:
            future, value, error = self._results.popleft()
            self.pending -= 1
            if future.cancelled():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(_bearable(error))
        if self._ready and not self._quick and not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)

    def close(self) -> None:
        """Let the threads end when they are done with what they have in hand. What nobody has begun is not begun.

        Results do not come back any more.
        """
        with self._guard:
            self._closed = True
            self._ready.clear()
            self._turns.clear()
            while self._asleep:
                self._asleep.pop().gate.release()


def beside(func: Callable[[], object]) -> Callable[[], object]:
    """Run ``func()`` in a thread, and return what waits for its end. When there is no thread, it runs in that wait."""
    thread = threading.Thread(target=func)
    try:
        thread.start()
    except RuntimeError:
        return func
    return thread.join


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


def _started(target: Callable[..., None], name: str, *args: Any) -> bool:
    """Start a thread. Returns whether the system has given one."""
    try:
        threading.Thread(target=target, args=args, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True
