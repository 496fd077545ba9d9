"""The threads that handlers run in, and the event loop between them: a slow handler keeps neither the wire nor others
waiting.

    pool = HandlerPool(32, loop)
    pool.start()
    reply = await pool.run(sender, receiver.process_message, peer, sender, recipients, content)

Python runs one thread at a time, and to hand a message over to another thread and back costs as much as all the rest.
So nothing is handed over as long as handlers are quick: the thread that runs the loop stops it, does the jobs that came
in with one turn of it, for `SLOW` at most, and runs it again. It is the *leader*. Another thread, its *deputy*, looks
after it meanwhile. When the leader stays with a job for longer than `SLOW`, the deputy takes the loop over and runs it,
so that the wire goes on, and the former leader is an ordinary *worker* that brings its result when it is there.

A job for which the leader had to wait was slow, and others like it may come. So the next ones, for `HURRY` seconds, are
done by workers beside the loop, up to `size` of them. One does all of the work as long as it is quick; when it stays
with a job for longer than `SLOW` and the process is not busy all the time meanwhile, the job waits for something, and
another one takes over. (It may also wait for a processor that other processes have. That is no reason to wake another
thread, which would wait for it as well, and the system tells: `lamson.rundelay`.) A worker that was slow is one among
many until it has done `ROW` jobs quickly, and of several quick ones all but one go to sleep. It takes so many because
slow and quick jobs come mixed: with one, half of the workers would sleep while jobs wait. Afterwards the leader tries
again, since beside the loop a worker may just wait for Python to let it run, and nobody can tell that from other
waits. The more turns are slow, the longer workers go on beside the loop.

A job that computes is not done sooner by more threads, which would only get in each other's way and all look slow. The
wire goes on beside it, but other jobs wait for it until it has computed for `LONG`.

What handlers have written may have to be on disk before anybody is told that they are done: `lamson.results`.

What has the same key runs in turn, and waits its turn without holding a thread: one sender with many slow messages
takes one thread, not all of them. The threads are daemons: a handler that never ends does not keep the process from
ending, and after `HUNG` seconds it does not count among the `size` any more.

The wire stands still for `SLOW` at most while jobs are quick. For a slow one it is two looks of the deputy, `LOOKS` and
`SLOW`, and what the deputy waits for Python to let it look. A thread runs the loop between two jobs: whatever a handler
leaves behind in its thread is there then.

When the system has no more threads to give, jobs wait for those there are, and it is asked again and again. The leader
does no job while nobody could take the loop over.
"""

import asyncio
import collections
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from lamson.results import HeldResults, Result, deliver
from lamson.rundelay import RunDelay
from lamson.threads import started

log = logging.getLogger(__name__)

SLOW = 0.002  # seconds
LONG = 0.05  # seconds
BUSY = 0.8  # of the time; not all of it, as the threads of a process wait for each other now and then
HURRY = 0.01  # seconds, and twice as many after each slow turn, up to
LONGEST_HURRY = 0.5
CALM = 0.9  # times so long after a turn without a slow job
ROW = 8  # jobs
HUNG = 60  # seconds
MOST = 4  # times `size` there are workers, with those that hang
LOOKS = 0.004  # seconds between two looks of a deputy
CAREFUL = 20  # jobs, after a long one; for others nobody counts processor time before the deputy finds them long
INTERRUPTED = 0.1  # seconds that the loop stands still after an error, should there be one after the other
RESTS = 10  # times that a deputy finds nothing to look after, before it sleeps until there is

Job = tuple[Hashable | None, asyncio.Future, Callable[..., Any], tuple]


class _Thread:
    """A thread, as the pool sees it."""

    delay: RunDelay

    def __init__(self) -> None:
        self.gate = threading.Lock()  # held for as long as the thread shall sleep
        self.gate.acquire()
        self.asleep = False  # it is among those who wait for work
        self.since = 0.0  # when it began its job; 0 between two jobs
        self.leads = False  # it was the leader then
        self.counted_since = 0.0  # how busy the process is; 0 when nobody has counted since the job began
        self.wanted = 0.0  # seconds of processor time by then, see `_wanted`
        self.quick = False  # it is at work or about to, and was not slow lately; a leader: the loop stands still
        self.row = 0  # jobs done quickly since the last slow one, while it does not count as quick

    def begin(self, now: float, leads: bool = False, counts: bool = True) -> None:
        self.since, self.leads, self.counted_since = now, leads, 0.0
        if counts:
            self.count(now)

    def count(self, now: float) -> None:
        self.counted_since, self.wanted = now, self._wanted()

    def is_slow(self, now: float) -> bool:
        """Whether it has spent more than `SLOW` with a job, while there was room for another one to work."""
        if not self.since or not self.counted_since or now - self.since <= SLOW:
            return False
        return self._wanted() - self.wanted < (now - self.counted_since) * BUSY

    def waits(self, now: float) -> bool:
        """The same, asked while the job goes on: whether it waits at this moment for anything but a processor."""
        return self.is_slow(now) and not self.delay.is_ready()

    def wake(self) -> None:
        """Let it look what there is to do. For those who have the pool's guard."""
        self.asleep = False
        if self.gate.locked():
            self.gate.release()

    def _wanted(self) -> float:
        """Return how much processor time the process has had; of a leader, and what it had to wait for it itself."""
        had = time.process_time()
        return had + self.delay.seconds() if self.leads else had


class HandlerPool:
    """Up to `size` workers, and the thread that runs the loop. `run` and `pending` are for the thread of the `loop`.

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
        self._threads: list[_Thread] = []
        self._asleep: list[_Thread] = []
        self._quick = 0  # how many are at work and quick: one is enough
        self._leader: _Thread | None = None
        self._deputy: _Thread | None = None
        self._deputy_rests = False
        self._stops = 0  # how often the loop was stopped to do jobs
        self._stopped = False  # it is, or is about to; and so the deputy has to be there
        self._careful = 0  # for so many jobs the leader counts itself how busy the process is
        self._waking = False  # `_wake` is going to run
        self._watching = False  # `_watch` is
        self._hurry = HURRY  # for how long the next time
        self._hurry_until = 0.0  # the loop is not stopped before that
        self._starved = False  # the system has refused a thread
        self._closed = False
        self._ending = False  # the loop is not to be run any more
        self._ended = threading.Event()
        self._process = os.getpid()
        self._results: collections.deque[Result] = collections.deque()
        self._announced = False
        self._due = math.inf  # when workers are to bring results, whatever else there is to do
        self._unsynced = unsynced
        self._held = HeldResults(sync, self._bring)

    def start(self) -> None:
        """Run the loop, from now on and until `close`. Raises RuntimeError when the system has no thread for it."""
        self._held.start()
        with self._guard:
            self._leader = self._start()
        if self._leader is None:
            self._held.close()
            raise RuntimeError("the system has no thread for the event loop")

    def run(self, key: Hashable | None, func: Callable[..., Any], *args: Any) -> asyncio.Future:
        """Run ``func(*args)`` outside of the loop, after all that was given with the same key. None is no key.

        Whoever stops waiting for the future does not stop what has begun, nor what is going to.
        """
        future = self._loop.create_future()
        job = (key, future, func, args)
        with self._guard:
            if key is not None and key in self._turns:
                self._turns[key].append(job)
            else:
                if key is not None:
                    self._turns[key] = collections.deque()
                self._ready.append(job)
                if not self._quick and not self._waking:
                    self._waking = True
                    # For all the jobs of this turn at once, and for those that clients have sent meanwhile.
                    self._loop.call_soon(self._loop.call_soon, self._wake)
        self.pending += 1
        return future

    def close(self) -> None:
        """Stop the loop, and let the threads end when they are done with what they have in hand.

        What nobody has begun is not begun. Results do not come back any more. Returns when the loop has stopped, and so
        may not be called in the loop; in a job it may.
        """
        with self._guard:
            self._closed = True
            self._ready.clear()
            self._turns.clear()
            while self._asleep:
                self._asleep.pop().wake()
        self._loop.call_soon_threadsafe(self._end)
        self._ended.wait()
        with self._guard:
            if self._deputy is not None:
                self._deputy.wake()
        self._held.close()

    # in the loop

    def _wake(self) -> None:
        """Have the jobs done that are ready: by the leader, or by a worker."""
        self._waking = False
        with self._guard:
            # uvloop stops a turn later, and would stop twice.
            if self._stopped or self._quick or not self._ready or self._closed:
                return
            if time.monotonic() < self._hurry_until:
                self._wake_one()
            else:
                self._stopped = self._has_deputy()
            if not self._stopped:
                self._watch_soon()
                return
            self._stops += 1
        self._loop.stop()

    def _has_deputy(self) -> bool:
        """Whether somebody looks after the leader, or does from now on."""
        if self._deputy is None:
            self._deputy = self._asleep.pop() if self._asleep else self._start()
        elif not self._deputy_rests:
            return True
        self._deputy_rests = False
        if self._deputy is not None:
            self._deputy.wake()
        return self._deputy is not None

    def _wake_one(self) -> None:
        """Let one more thread work. When there is none, the jobs stay where they are, and `_watch` comes again.

        Not while the loop is about to stop: the deputy may be what is left.
        """
        if self._at_work() >= self._most():
            return
        thread = self._asleep.pop() if self._asleep else self._start()
        if thread is None:
            thread, self._deputy = self._deputy, None
        if thread is not None:
            thread.quick = True
            self._quick += 1
            thread.wake()

    def _start(self) -> _Thread | None:
        """Start a thread if there may be one more."""
        if len(self._threads) > self._most():
            return None
        thread, name = _Thread(), f"lamson-handler-{len(self._threads) + 1}"
        before, self._starved = self._starved, not started(self._live, name, thread)
        if self._starved:
            if not before:
                log.error("failed: the system gives no more threads; %d do the work", len(self._threads))
            return None
        self._threads.append(thread)
        return thread

    def _at_work(self) -> int:
        """How many workers do jobs, or are about to look for some."""
        return len(self._threads) - len(self._asleep) - (self._leader is not None) - (self._deputy is not None)

    def _most(self) -> int:
        """How many workers there may be."""
        if len(self._threads) <= self.size:
            return self.size
        long_ago = time.monotonic() - HUNG
        hung = sum(1 for thread in self._threads if 0 < thread.since < long_ago)
        return min(self.size + hung, self.size * MOST)

    def _watch_soon(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.call_later(SLOW, self._watch)

    def _watch(self) -> None:
        """Look for workers that are slow or compute for long, and let another one take over from them."""
        with self._guard:
            now = time.monotonic()
            for thread in self._threads:
                if thread.quick and thread.since and (thread.waits(now) or now - thread.since > LONG):
                    self._leave(thread)
        self._announce()  # what was done by a worker that is slow now
        if not self._waking:  # or else each of these would add one more to every turn of the loop
            self._wake()
        self._watching = False
        with self._guard:
            goes_on = self.pending or self._at_work()  # who is at work may begin another job without a word to the loop
        if goes_on:
            self._watch_soon()

    def _announce(self) -> None:
        """Bring the results that there are to those who wait for them."""
        self._announced = False
        while self._results:
            self.pending -= 1
            deliver(self._results.popleft())
        if self._ready and not self._quick and not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)

    def _end(self) -> None:
        self._ending = True
        self._loop.stop()

    # in the threads

    def _live(self, thread: _Thread) -> None:
        with self._guard:  # whoever starts a thread has it, and says first what it shall be
            thread.delay = RunDelay()
        try:
            while True:
                if self._leader is thread:
                    self._lead(thread)
                elif self._deputy is thread:
                    self._stand_by(thread)
                elif self._closed:
                    break
                elif (job := self._next(thread)) is not None:
                    self._do(thread, job)
                    del job  # a message may be large, and this thread may sleep for long
        except BaseException:  # no memory, say
            # Nobody runs the loop now, or a sender's messages wait for ever: a server that only looks as if it served.
            log.critical("failed: a thread of the handlers' pool has died, and the process ends", exc_info=True)
            os._exit(1)
        with self._guard:  # where others read it
            thread.delay.close()

    def _lead(self, thread: _Thread) -> None:
        """Run the loop, and do jobs when it stands still. Returns when another thread runs it, or at the end of it."""
        self._held.flush()
        self._announce()  # what the former leader has done before it was slow
        self._watch_soon()  # it may go on to compute
        while self._leader is thread:
            try:
                self._loop.run_forever()
            except BaseException:  # SystemExit in a callback, or what a handler has left in this thread
                log.critical("failed: the event loop was interrupted; it goes on", exc_info=True)
                asyncio._set_running_loop(None)
                time.sleep(INTERRUPTED)
            if self._ending:
                self._leader = None
                self._ended.set()
                return
            if self._do_jobs(thread):
                self._held.flush()
                self._announce()

    def _do_jobs(self, leader: _Thread) -> bool:
        """Do what is ready, for `SLOW` or until a job is slow. Returns whether this is the leader still.

        Nothing is done when somebody else has stopped the loop.
        """
        with self._guard:
            if not self._stopped:
                return True
            self._quick += 1
            leader.quick = True
        until = time.monotonic() + SLOW
        while True:
            with self._guard:
                if self._leader is not leader:
                    return False
                now = time.monotonic()
                if self._closed or not (leader.quick and self._ready and now < until):
                    break
                leader.begin(now, leads=True, counts=self._careful > 0)
                self._careful = max(self._careful - 1, 0)
                job = self._ready.popleft()
            self._do(leader, job)
            del job
        with self._guard:
            self._stopped = False
            if leader.quick:
                self._leave(leader)
                if now > self._hurry_until:
                    self._hurry = max(self._hurry * CALM, HURRY)
        return True

    def _stand_by(self, deputy: _Thread) -> None:
        """Look after the leader, until this is the leader itself, or there is other work for it."""
        stops, nothing = self._stops, 0
        while True:
            with self._guard:
                if self._deputy is not deputy:
                    return
                if self._ended.is_set():
                    self._deputy = None
                    return
                leader, now, pause = self._leader, time.monotonic(), LOOKS
                if leader is not None and leader.since and now - leader.since > SLOW:
                    if leader.counted_since and now - leader.counted_since > SLOW:
                        self._take_over(deputy, leader, now)
                        return
                    if not leader.counted_since:
                        leader.count(now)
                    pause = SLOW
                nothing = 0 if stops != self._stops else nothing + 1
                stops = self._stops
                self._deputy_rests = nothing > RESTS and not self._stopped
            deputy.gate.acquire(timeout=-1 if self._deputy_rests else pause)

    def _take_over(self, deputy: _Thread, leader: _Thread, now: float) -> None:
        self._leader, self._deputy, self._stopped = deputy, None, False
        self._careful = CAREFUL
        if leader.waits(now):
            self._leave(leader)
            self._be_in_a_hurry(now)

    def _do(self, thread: _Thread, job: Job) -> None:
        key, future, func, args = job
        result: Result
        try:
            result = future, func(*args), None
        except BaseException as error:
            result = future, None, error
        if os.getpid() != self._process:
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, b"lamson: a child process that a handler made came back from it, and ends here\n")
            os._exit(1)  # it has the parent's connections, and would serve them
        try:
            unsynced = self._unsynced()
        except BaseException as error:  # then nobody knows whether it is on disk
            result, unsynced = (future, None, error), False
        if unsynced:
            self._held.hold(result)
        else:
            self._results.append(result)
        self._rate(thread, key)
        if unsynced and self._leader is not thread:
            self._held.flush()
        # An error that is the result has this frame, and so a message, which may be large.
        del job, future, args, result

    def _rate(self, thread: _Thread, key: Hashable | None) -> None:
        """A thread has done its job: was it quick? And what waits behind the job may run."""
        with self._guard:
            now = time.monotonic()
            slow = thread.is_slow(now)
            if thread.leads and now - thread.since > SLOW:
                self._careful = CAREFUL
            thread.since = 0.0
            # Whoever waits for a result has waited long enough for a slow one.
            self._due = 0.0 if slow else min(self._due, now + SLOW)
            if slow:
                thread.row = 0
                if thread.leads:
                    self._be_in_a_hurry(now)
                if thread.quick:
                    self._leave(thread)
            elif not thread.quick:
                thread.row += 1
                if thread.row >= ROW:
                    thread.quick = True
                    self._quick += 1
            if key is not None:
                # A slow sender's next message stands behind those of others who wait for a thread.
                if self._turns.get(key):
                    self._ready.append(self._turns[key].popleft())
                else:
                    self._turns.pop(key, None)

    def _be_in_a_hurry(self, now: float) -> None:
        if now > self._hurry_until:  # or else it was for this same turn
            self._hurry_until = now + self._hurry
            self._hurry = min(self._hurry * 2, LONGEST_HURRY)

    def _leave(self, thread: _Thread) -> None:
        """Count a thread no longer as one that is at work and quick."""
        thread.quick = False
        thread.row = 0
        self._quick -= 1

    def _next(self, worker: _Thread) -> Job | None:
        """Return the worker's next job; or None, after it has slept and may have become something else.

        Before it sleeps, or when it is time, it brings the results that there are.
        """
        with self._guard:
            if self._closed:
                return None
            now = time.monotonic()
            goes_on = bool(self._ready) and self._has_turn(worker, now)
            if goes_on and now < self._due:
                worker.begin(now)
                return self._ready.popleft()
            self._due = math.inf
            if not goes_on:
                worker.asleep = True
                self._asleep.append(worker)
                if worker.quick:
                    self._leave(worker)
        self._wake_loop()
        while worker.asleep:
            worker.gate.acquire()
        return None

    def _has_turn(self, worker: _Thread, now: float) -> bool:
        if not worker.quick:  # handlers are slow, and run side by side
            return self._at_work() <= self._most()  # there may be too many, after some have hung
        return self._quick == 1 and now < self._hurry_until

    def _bring(self, results: list[Result]) -> None:
        self._results.extend(results)
        self._wake_loop()

    def _wake_loop(self) -> None:
        """Have the loop bring the results that there are, and see to what else is to be done."""
        if (self._results or self._ready) and not self._announced and not self._closed:
            self._announced = True
            try:
                self._loop.call_soon_threadsafe(self._announce)
            except RuntimeError:
                if not self._closed:  # and the loop just after it
                    raise
