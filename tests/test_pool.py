"""The threads of the handlers."""

import asyncio
import collections
import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future

import pytest

from lamson import pool as pools
from lamson.pool import HandlerPool
from lamson.server import SMTPReceiver
from processes import eventually


class Loop:
    """An event loop in a thread, and a pool whose `run` may be called from here."""

    def __init__(self, size: int, *sync, new_event_loop=asyncio.new_event_loop):
        self.loop = new_event_loop()
        self.pool = HandlerPool(size, self.loop, *sync)
        self.pool.start()

    def run(self, key, func, *args) -> Future:
        async def wait():
            return await self.pool.run(key, func, *args)

        return asyncio.run_coroutine_threadsafe(wait(), self.loop)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result(30)
        self.pool.close()
        self.loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lamson-handler")}


LOOPS = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):  # servers run on asyncio's there
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


@pytest.fixture(params=LOOPS)
def running(request):
    before = threads()
    running = Loop(4, new_event_loop=LOOPS[request.param])
    yield running
    if not running.loop.is_closed():
        running.close()
    for thread in threads() - before:
        thread.join(30)
        assert not thread.is_alive() and thread.daemon


def test_results_and_errors_come_back(running):
    assert running.run(None, max, 1, 2).result(10) == 2
    with pytest.raises(ZeroDivisionError):
        running.run(None, lambda: 1 / 0).result(10)
    assert running.run(None, max, 1, 2).result(10) == 2
    assert running.pool.pending == 0


def test_quick_jobs_are_all_done_by_one_thread(monkeypatch):
    monkeypatch.setattr(pools, "SLOW", 30)  # whatever this machine is doing beside, none of these is slow
    running = Loop(4)
    try:
        used = {future.result(30) for future in [running.run(n, threading.get_ident) for n in range(500)]}
        assert len(used) == 1
    finally:
        running.close()


def test_as_many_slow_jobs_run_side_by_side_as_there_are_threads(running):
    everyone = threading.Barrier(4, timeout=30)
    for future in [running.run(None, everyone.wait) for _ in range(4)]:
        future.result(30)
    # The threads are idle now, and the same ones serve again.
    for future in [running.run(number, everyone.wait) for number in range(4)]:
        future.result(30)
    assert len(running.pool._threads) == 5, "and one runs the loop"


@pytest.fixture
def computing(monkeypatch):
    """Every job computes for as long as it takes: the process is busy all the time."""
    monkeypatch.setattr(time, "process_time", time.monotonic)


@pytest.mark.parametrize("kind", ["waits", "computes"])
def test_no_job_waits_for_a_slow_one_while_a_thread_is_left(running, request, kind):
    if kind == "computes":
        request.getfixturevalue("computing")
    go_on = threading.Event()
    slow = [running.run(None, go_on.wait, 30) for _ in range(3)]
    for _ in range(20):
        assert running.run(None, max, 1, 2).result(10) == 2
    assert not any(future.done() for future in slow)
    go_on.set()
    assert all(future.result(30) for future in slow)


def test_a_thread_that_was_slow_counts_as_quick_after_several_quick_jobs_in_a_row(running, monkeypatch):
    monkeypatch.setattr(pools, "SLOW", 30)
    worker, row = pools._Thread(), []
    worker.quick = True
    running.pool._quick = 1
    quick, slow = 0, -60
    for took in [slow, *[quick] * (pools.ROW - 1), slow, *[quick] * pools.ROW]:
        worker.begin(time.monotonic() + took)
        running.pool._rate(worker, None)
        assert running.pool._quick == worker.quick
        row.append(worker.quick)
    assert row == [False] * (2 * pools.ROW) + [True]


class AtOnce:
    """A job that takes its time. `most` is how many of it went on at once."""

    def __init__(self):
        self.now, self.most, self.guard = 0, 0, threading.Lock()

    def __call__(self):
        with self.guard:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(5 * pools.SLOW)
        with self.guard:
            self.now -= 1


def test_jobs_that_compute_are_done_one_by_one(running, computing, monkeypatch):
    monkeypatch.setattr(pools, "LONG", 30)
    job = AtOnce()
    for future in [running.run(None, job) for _ in range(20)]:
        future.result(30)
    assert job.most == 1 and len(running.pool._threads) <= 3


def test_threads_that_hang_are_made_up_for(running, monkeypatch):
    monkeypatch.setattr(pools, "HUNG", 0.05)
    go_on = threading.Event()
    hung = [running.run(None, go_on.wait, 60) for _ in range(4)]
    assert running.run(None, max, 1, 2).result(30) == 2
    hung += [running.run(None, go_on.wait, 60) for _ in range(100)]
    deadline = time.monotonic() + 30
    while len(running.pool._threads) < 17:
        assert time.monotonic() < deadline
    go_on.set()
    for future in hung:
        assert future.result(30)
    assert len(running.pool._threads) == 17, "four times as many as wanted, and no more, and one runs the loop"
    monkeypatch.setattr(pools, "HUNG", 60)
    job = AtOnce()
    for future in [running.run(None, job) for _ in range(100)]:
        future.result(30)
    assert job.most <= 4 + 1, "as many as wanted, and the leader before they are there"


def test_whoever_was_at_work_when_all_results_were_there_is_watched(running, monkeypatch):
    pool, rate = running.pool, running.pool._rate
    paused, resume, go_on = threading.Event(), threading.Event(), threading.Event()
    pool._hurry = 60
    running.run(None, time.sleep, 10 * pools.SLOW).result(30)  # from now on workers work beside the loop

    def late(thread, key):
        if thread.row == pools.ROW - 1 and not thread.quick and not paused.is_set():
            paused.set()
            assert resume.wait(30)
            thread.begin(time.monotonic())  # as if the pause had been short
        rate(thread, key)

    monkeypatch.setattr(pool, "_rate", late)
    for future in [running.run("key", time.sleep, wait) for wait in [10 * pools.SLOW, *[0] * pools.ROW]]:
        future.result(30)
    assert paused.wait(30)
    time.sleep(10 * pools.SLOW)
    hangs = running.run("key", go_on.wait, 30)  # behind the job that has its result and is not over
    time.sleep(10 * pools.SLOW)
    resume.set()
    time.sleep(5 * pools.SLOW)
    try:
        assert running.run(None, max, 1, 2).result(5) == 2 and not hangs.done()
    finally:
        go_on.set()


def test_what_has_one_key_runs_in_turn_and_holds_one_thread(running):
    order, go_on = [], threading.Event()

    def slow(number):
        assert go_on.wait(30)
        order.append(number)

    slow_ones = [running.run("slow", slow, number) for number in range(20)]
    assert running.run("other", max, 1, 2).result(30) == 2  # does not wait for the twenty
    go_on.set()
    for future in slow_ones:
        future.result(30)
    assert order == list(range(20))
    assert running.run("slow", max, 1, 2).result(30) == 2


def test_two_thousand_jobs_of_twenty_keys_all_run_each_key_in_order(running):
    done = {key: [] for key in range(20)}
    futures = [running.run(number % 20, done[number % 20].append, number) for number in range(2000)]
    for future in futures:
        future.result(30)
    assert all(done[key] == list(range(key, 2000, 20)) for key in done)
    assert not running.pool._turns and not running.pool.pending


def test_a_job_is_done_though_nobody_waits_for_it_any_more(running):
    go_on, done = threading.Event(), threading.Event()
    first = running.run(None, go_on.wait, 30)
    second = running.run("key", done.set)
    third = running.run("key", max, 1, 2)
    second.cancel()
    go_on.set()
    assert first.result(30) and third.result(30) == 2 and done.wait(30)


def test_close_begins_nothing_new_and_lets_the_threads_end():
    before = threads()
    running = Loop(1)
    started, go_on, begun = threading.Event(), threading.Event(), []

    def slow():
        started.set()
        return go_on.wait(30)

    running.run(None, slow)
    assert started.wait(30)
    running.run(None, begun.append, 1)
    running.run("key", begun.append, 2)
    running.close()
    go_on.set()
    for thread in threads() - before:
        thread.join(30)
        assert not thread.is_alive()
    assert begun == []


class Disk:
    """What jobs write has to be brought to. `wait` is how long that takes."""

    def __init__(self):
        self.written = self.synced = self.syncs = 0
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.error = None

    def write(self):
        self.written += 1

    def unsynced(self):
        return self.synced < self.written

    def sync(self):
        written = self.written
        self.syncs += 1
        self.begun.set()
        assert self.go_on.wait(30)
        if self.error:
            raise self.error
        self.synced = written


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def syncing(disk):
    running = Loop(4, disk.unsynced, disk.sync)
    yield running
    disk.go_on.set()
    running.close()


def test_a_result_is_held_until_the_disk_has_it_and_many_wait_for_the_disk_together(syncing, disk):
    assert syncing.run(None, max, 1, 2).result(30) == 2 and disk.syncs == 0, "nothing was written"
    first = syncing.run(None, disk.write)
    assert disk.begun.wait(30)
    others = [syncing.run(number, disk.write) for number in range(50)]
    deadline = time.monotonic() + 30
    while disk.written < 51:  # handlers go on meanwhile
        assert time.monotonic() < deadline
    assert not any(future.done() for future in [first, *others])
    disk.go_on.set()
    for future in [first, *others]:
        future.result(30)
    assert disk.synced == 51 and disk.syncs <= 3


def test_what_the_disk_did_not_take_was_not_done(syncing, disk):
    disk.error = OSError("no space left")
    disk.go_on.set()
    with pytest.raises(OSError, match="no space left"):
        syncing.run(None, disk.write).result(30)
    disk.error = None
    assert syncing.run(None, max, 1, 2).result(30) == 2 and disk.synced == 1


class Mute(BaseException):
    """An error that cannot be printed."""

    def __repr__(self):
        raise ValueError("no words")


ERRORS = [StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError]
UNBEARABLE = pytest.mark.parametrize("unbearable", ERRORS)


def throw(error):
    raise error


@UNBEARABLE
def test_whatever_a_job_raises_comes_back_and_neither_the_loop_nor_others_suffer(running, unbearable):
    wrong = running.run(None, throw, unbearable("so be it"))
    right = running.run(None, max, 1, 2)
    with pytest.raises(RuntimeError, match="so be it") as raised:
        wrong.result(10)
    assert isinstance(raised.value.__cause__, unbearable)
    assert right.result(10) == 2 and running.run(None, max, 1, 2).result(10) == 2


@UNBEARABLE
def test_whatever_the_disk_raises_comes_back_to_all_that_wait_for_it(syncing, disk, unbearable):
    disk.error = unbearable("no disk")
    first = syncing.run(None, disk.write)
    assert disk.begun.wait(30)
    others = [syncing.run(number, disk.write) for number in range(3)]
    disk.go_on.set()
    for future in [first, *others]:
        with pytest.raises(RuntimeError, match="no disk"):
            future.result(10)
    disk.error = None
    syncing.run(None, disk.write).result(10)


def test_a_result_of_which_nobody_knows_whether_it_is_on_disk_is_an_error(running):
    def unknown():
        raise OSError("no idea")

    running.pool._unsynced = unknown
    for _ in range(10):  # more than there are threads
        with pytest.raises(OSError, match="no idea"):
            running.run("key", max, 1, 2).result(30)
    running.pool._unsynced = lambda: False
    assert running.run("key", max, 1, 2).result(30) == 2
    assert len(running.pool._threads) <= 4 and not running.pool.pending


class Names(list):
    def __init__(self):
        super().__init__()
        self.refused = []


@pytest.fixture
def starved(monkeypatch):
    """Threads whose names begin with one of these are refused, as by a system that has no more of them."""
    names, start = Names(), threading.Thread.start

    def refuse(thread):
        if thread.name.startswith(tuple(names)):
            names.refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return names


def test_jobs_wait_for_a_thread_when_the_system_has_none_and_each_is_done_once(running, starved, caplog):
    done = []
    starved.append("lamson-handler")
    futures = [running.run(None, done.append, number) for number in range(3)]
    running.run(None, done.append, 3)
    eventually(lambda: len(starved.refused) > 3, "it is tried again")
    assert done == [] and len(running.pool._threads) == 1, "the leader alone does nothing that may be slow"
    starved.clear()
    for future in futures:
        future.result(30)
    assert running.run(None, max, 1, 2).result(30) == 2
    assert done == [0, 1, 2, 3] and caplog.text.count("the system gives no more threads; 1 do the work") == 1


def test_a_slow_job_is_made_up_for_as_soon_as_the_system_has_threads_again(running, starved):
    go_on, begun = threading.Event(), threading.Event()
    slow = running.run(None, lambda: (begun.set(), go_on.wait(30)))
    assert begun.wait(30)
    starved.append("lamson-handler")
    other = running.run(None, max, 1, 2)
    eventually(lambda: len(starved.refused) > 3, "it is tried again")
    assert not other.done()
    starved.clear()
    assert other.result(30) == 2
    go_on.set()
    slow.result(30)


def test_a_pool_of_one_thread_goes_on_when_the_disk_has_what_was_written(disk):
    disk.go_on.set()
    running = Loop(1, disk.unsynced, disk.sync)
    try:
        futures = [running.run(number % 3, disk.write) for number in range(100)]
        for future in futures:
            future.result(30)
        assert disk.synced == 100
    finally:
        running.close()


def test_jobs_that_come_together_wake_the_loop_once_and_wait_for_the_disk_once(disk, monkeypatch):
    monkeypatch.setattr(pools, "SLOW", 30)  # whatever this machine is doing beside, none of these is slow
    disk.go_on.set()
    running, wakes = Loop(4, disk.unsynced, disk.sync), []
    call = running.loop.call_soon_threadsafe

    async def all_at_once():
        monkeypatch.setattr(running.loop, "call_soon_threadsafe", lambda *what: (wakes.append(what), call(*what)))
        await asyncio.gather(*(running.pool.run(None, disk.write) for _ in range(50)))

    try:
        asyncio.run_coroutine_threadsafe(all_at_once(), running.loop).result(30)
        assert disk.written == 50 and disk.syncs == 1 and len(wakes) == 1
    finally:
        monkeypatch.undo()
        running.close()


def test_the_loop_stands_still_for_quick_jobs_and_for_none_after_a_slow_one(monkeypatch):
    monkeypatch.setattr(pools, "HURRY", 60)
    monkeypatch.setattr(pools, "LONGEST_HURRY", 60)
    running = Loop(4)
    go_on = threading.Event()
    try:
        for expected in (1, 2):
            assert running.run(None, max, 1, 2).result(30) == 2
            running.pool._hurry_until = 0.0  # on a busy machine such a job may have been slow
            assert running.pool._stops >= expected
        slow = running.run(None, go_on.wait, 30)
        for _ in range(10):
            assert running.run(None, max, 1, 2).result(30) == 2
        stops = running.pool._stops
        for _ in range(10):
            assert running.run(None, max, 1, 2).result(30) == 2
        assert running.pool._stops == stops and not slow.done()
        go_on.set()
        assert slow.result(30)
    finally:
        go_on.set()
        running.close()


def test_an_error_that_cannot_be_printed_ends_neither_the_loop_nor_the_watch(running):
    wrong = running.run(None, throw, Mute())
    with pytest.raises(RuntimeError, match="Mute") as raised:
        wrong.result(10)
    assert isinstance(raised.value.__cause__, Mute)
    slow = threading.Event()
    waiting = running.run(None, slow.wait, 30)
    assert running.run(None, max, 1, 2).result(10) == 2
    slow.set()
    assert waiting.result(10)


def test_the_loop_stands_still_once_in_a_turn_however_many_jobs_there_are(running, monkeypatch):
    monkeypatch.setattr(pools, "HURRY", 0)
    turns, waits = [0], collections.Counter()
    wake = running.pool._wake

    def count_and_wake():
        waits[turns[0]] += 1
        wake()

    async def jobs():
        monkeypatch.setattr(running.pool, "_wake", count_and_wake)
        everything = asyncio.gather(*(running.pool.run(None, time.sleep, 0.001) for _ in range(100)))
        while not everything.done():
            turns[0] += 1
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(jobs(), running.loop).result(30)
    assert max(waits.values()) <= 2


@pytest.mark.parametrize("written", [False, True])
def test_a_quick_result_does_not_wait_for_a_slow_job_behind_it(syncing, disk, written):
    disk.go_on.set()
    go_on = threading.Event()

    async def both():
        quick = syncing.pool.run(None, disk.write if written else max, *(() if written else (1, 2)))
        slow = syncing.pool.run(None, go_on.wait, 30)
        await asyncio.wait_for(quick, 20)
        assert not slow.done()
        go_on.set()
        assert await slow

    asyncio.run_coroutine_threadsafe(both(), syncing.loop).result(40)


@pytest.mark.parametrize("in_line", [True, False])
def test_a_thread_that_stands_in_line_for_a_processor_is_not_slow(running, monkeypatch, in_line):
    monkeypatch.setattr(pools, "LONG", 30)
    monkeypatch.setattr(pools.RunDelay, "seconds", lambda delay: time.monotonic() if in_line else 0.0)

    job = AtOnce()
    for future in [running.run(None, job) for _ in range(20)]:
        future.result(30)
    assert (job.most == 1) == in_line
    assert (running.pool._hurry_until > 0) != in_line


def test_side_by_side_nobody_knows_what_a_thread_waits_for(running, monkeypatch):
    running.pool._hurry = 60
    running.run(None, time.sleep, 5 * pools.SLOW).result(30)
    hurry_until = running.pool._hurry_until
    assert hurry_until > time.monotonic()
    for future in [running.run(None, time.sleep, 5 * pools.SLOW) for _ in range(20)]:
        future.result(30)
    assert running.pool._hurry_until == hurry_until, "then it is tried again, in turns"


def test_the_more_turns_are_slow_the_longer_the_loop_stands_still_for_nobody(running):
    pool, now, hurries = running.pool, 1000.0, []
    for _ in range(8):
        pool._be_in_a_hurry(now)
        pool._be_in_a_hurry(now)  # of the same turn
        hurries.append(pool._hurry_until - now)
        now = pool._hurry_until + 1
    assert hurries == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5])
    pool._hurry_until = 0.0
    while pool._hurry > pools.HURRY:
        before = pool._hurry
        running.run(None, max, 1, 2).result(30)
        assert pool._hurry < before or pool._hurry_until
        pool._hurry_until = 0.0


def test_a_held_result_waits_for_no_slow_job_when_no_thread_is_left(disk):
    running = Loop(1, disk.unsynced, disk.sync)
    disk.go_on.set()
    go_on = threading.Event()

    async def both():
        quick = running.pool.run(None, disk.write)
        slow = running.pool.run(None, go_on.wait, 30)
        await asyncio.wait_for(quick, 20)
        assert not slow.done()
        go_on.set()
        assert await slow

    try:
        asyncio.run_coroutine_threadsafe(both(), running.loop).result(40)
    finally:
        go_on.set()
        running.close()


def test_a_thread_that_is_left_has_to_be_quick_several_times_again(running):
    worker = pools._Thread()
    running.pool._quick, worker.row = 1, pools.ROW
    running.pool._leave(worker)
    assert worker.row == 0 == running.pool._quick


@pytest.mark.parametrize("ready", [True, False])
def test_whether_a_thread_waits_is_not_known_from_a_wait_for_a_processor_that_goes_on(monkeypatch, ready):
    monkeypatch.setattr(pools.RunDelay, "is_ready", lambda delay: ready)
    worker = pools._Thread()
    worker.delay = pools.RunDelay()
    try:
        worker.begin(time.monotonic() - 60, True)
        assert worker.is_slow(time.monotonic())
        assert worker.waits(time.monotonic()) != ready
    finally:
        worker.delay.close()


def test_a_deputy_that_rests_is_there_again_for_the_next_slow_job(running):
    pool = running.pool
    for _ in range(3):
        assert running.run(None, max, 1, 2).result(30) == 2
        eventually(lambda: pool._deputy_rests or pool._deputy is None, "nothing is to be looked after")
        pool._hurry_until = 0.0
        go_on = threading.Event()
        slow = running.run(None, go_on.wait, 30)
        assert running.run(None, max, 1, 2).result(30) == 2, "somebody else runs the loop"
        assert not slow.done()
        go_on.set()
        assert slow.result(30)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_there_are_never_more_jobs_at_once_than_the_pool_is_large(size, monkeypatch):
    monkeypatch.setattr(pools, "HURRY", 0.0)  # and so the leader tries again and again
    running, job = Loop(size), AtOnce()
    try:
        for future in [running.run(None, job) for _ in range(30)]:
            future.result(30)
        assert job.most == size
    finally:
        running.close()


def test_close_does_not_wait_for_a_job_whatever_thread_has_it():
    before = threads()
    running = Loop(2)
    go_on, done = threading.Event(), []
    begun = threading.Semaphore(0)
    for number in range(2):
        running.run(None, lambda number=number: (begun.release(), go_on.wait(30), done.append(number)))
    for _ in range(2):
        assert begun.acquire(timeout=30)
    running.close()
    assert done == [] and running.loop.is_closed()
    go_on.set()
    for thread in threads() - before:
        thread.join(30)
        assert not thread.is_alive()
    assert len(done) == 2


def test_a_job_may_close_the_pool():
    running = Loop(2)
    running.run(None, running.pool.close)
    assert running.pool._ended.wait(30)
    eventually(lambda: not running.loop.is_running(), "nobody runs the loop")
    running.loop.close()


def test_quick_jobs_are_handed_over_to_nobody(running, monkeypatch):
    monkeypatch.setattr(pools, "SLOW", 30)  # whatever this machine is doing beside, none of these is slow
    leader, wakes = running.pool._leader, []

    async def many():
        with monkeypatch.context() as patched:
            patched.setattr(running.loop, "call_soon_threadsafe", wakes.append)
            return [await running.pool.run(None, lambda: leader.since) for _ in range(50)]

    assert all(asyncio.run_coroutine_threadsafe(many(), running.loop).result(30)), "the leader has done them all"
    assert wakes == [] and running.pool._stops >= 50 and running.pool._leader is leader


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_leader_does_no_job_that_nobody_looks_after(running, monkeypatch, turns):
    pool, loop, alone = running.pool, running.loop, []
    do, wake = pool._do, pool._wake

    def watched(thread, job):
        alone.append(pool._leader is thread and pool._deputy is None)
        do(thread, job)

    def once_more(left):
        if left:
            loop.call_soon(once_more, left - 1)
        else:
            wake()

    def wake_twice():  # as results that come back at that moment do
        wake()
        once_more(turns)

    monkeypatch.setattr(pool, "_do", watched)
    monkeypatch.setattr(pool, "_wake", wake_twice)
    for _ in range(5):
        for future in [running.run(None, time.sleep, 5 * pools.LOOKS) for _ in range(3)]:
            future.result(30)
        pool._hurry_until = 0.0
    assert len(alone) == 15 and not any(alone)


def test_a_deputy_does_not_rest_while_the_loop_is_about_to_stop(running, monkeypatch):
    pool, wake, go_on = running.pool, running.pool._wake, threading.Event()
    assert running.run(None, max, 1, 2).result(30) == 2  # and so there is a deputy

    def wake_and_take_long():
        wake()
        time.sleep(2 * pools.RESTS * pools.LOOKS)

    with monkeypatch.context() as patched:
        patched.setattr(pool, "_wake", wake_and_take_long)
        slow = running.run(None, go_on.wait, 30)
        eventually(lambda: pool._stops > 1 and not pool._stopped, "another one runs the loop")
    assert running.run(None, max, 1, 2).result(30) == 2 and not slow.done()
    go_on.set()
    assert slow.result(30)


def test_a_key_that_cannot_be_one_leaves_nothing_behind(running):
    with pytest.raises(TypeError):
        running.run([], max, 1, 2).result(30)
    assert running.pool.pending == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("leads", [True, False])
def test_a_child_process_that_comes_back_from_a_handler_runs_no_second_loop(running, leads, capfd):
    running.pool._hurry_until = 0.0 if leads else math.inf

    def job():
        child = os.fork()
        return child and os.waitpid(child, 0)[1]

    assert os.waitstatus_to_exitcode(running.run(None, job).result(30)) == 1
    assert "a child process that a handler made" in capfd.readouterr().err
    assert running.run(None, max, 1, 2).result(30) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_such_a_child_ends_when_nobody_takes_its_words_and_it_has_another_threads_lock(running):
    def job():
        with running.pool._guard:
            child = os.fork()
            if not child:
                os.close(2)
                running.pool._guard = threading.Lock()
                running.pool._guard.acquire()
                return None
        return child

    child = running.run(None, job).result(30)
    try:
        assert eventually(lambda: os.waitpid(child, os.WNOHANG)[0] == child, "the end of the child", 5)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise


DYING = """
import asyncio, math, sys
from lamson import pool as pools

def rate(pool, thread, key):
    raise MemoryError

loop = asyncio.new_event_loop()
pool = pools.HandlerPool(2, loop)
pool.start()
pools.HandlerPool._rate = rate

async def work():
    pool._hurry_until = float(sys.argv[1])
    await pool.run(None, max, 1, 2)
    await asyncio.sleep(60)

asyncio.run_coroutine_threadsafe(work(), loop).result()
"""


@pytest.mark.parametrize("until", ["0", "inf"], ids=["leads", "works"])
def test_the_process_ends_with_a_thread_that_cannot_go_on(until):
    done = subprocess.run([sys.executable, "-c", DYING, until], stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 1 and "MemoryError" in done.stderr and "has died" in done.stderr


@pytest.mark.parametrize("leads", [True, False])
def test_an_error_keeps_its_message_no_longer_than_whoever_waits_for_it(running, leads):
    class Message:
        pass

    def job(message):
        raise ValueError("no")

    async def fail(message):
        running.pool._hurry_until = 0.0 if leads else math.inf
        future = running.pool.run(None, job, message)
        await asyncio.wait([future])
        assert isinstance(future.exception(), ValueError)
        return weakref.ref(message)

    gc.collect()
    gc.disable()
    try:
        message = asyncio.run_coroutine_threadsafe(fail(Message()), running.loop).result(30)
        eventually(lambda: message() is None, "it is gone")
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["callback", "left behind"])
def test_the_loop_goes_on_whatever_interrupts_it(running, caplog, kind):
    other = asyncio.new_event_loop()
    for _ in range(3):
        running.pool._hurry_until = 0.0
        if kind == "callback":
            running.loop.call_soon_threadsafe(throw, SystemExit("so be it"))
        else:
            running.run(None, asyncio._set_running_loop, other)
        assert running.run(None, max, 1, 2).result(30) == 2
    assert "the event loop was interrupted" in caplog.text
    other.close()


def test_a_pool_without_a_thread_for_the_loop_says_so(starved):
    starved.append("lamson-handler")
    loop = asyncio.new_event_loop()
    with pytest.raises(RuntimeError, match="no thread for the event loop"):
        HandlerPool(4, loop).start()
    loop.close()
    receiver = SMTPReceiver("127.0.0.1", 0)
    with pytest.raises(RuntimeError, match="no thread for the event loop"):
        receiver.start()
    receiver.close()
