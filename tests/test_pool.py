"""The threads of the handlers."""

import asyncio
import collections
import threading
import time
from concurrent.futures import Future

import pytest

from lamson import pool as pools
from lamson.pool import HandlerPool
from processes import eventually


class Loop:
    """An event loop in a thread, and a pool whose `run` may be called from here."""

    def __init__(self, size: int, *sync):
        self.loop = asyncio.new_event_loop()
        self.pool = HandlerPool(size, self.loop, *sync)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, key, func, *args) -> Future:
        async def wait():
            return await self.pool.run(key, func, *args)

        return asyncio.run_coroutine_threadsafe(wait(), self.loop)

    def close(self) -> None:
        self.pool.close()
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lamson-handler")}


@pytest.fixture
def running():
    before = threads()
    running = Loop(4)
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
    assert len(running.pool._workers) == 4


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
    worker, row, result = pools._Worker(), [], (running.loop.create_future(), None, None)
    running.pool._quick = 1
    quick, slow = 0, -60
    for took in [slow, *[quick] * (pools.ROW - 1), slow, *[quick] * pools.ROW]:
        worker.begin(time.monotonic() + took)
        running.pool._rate(worker, None, result, False)
        assert running.pool._quick == worker.quick
        row.append(worker.quick)
    assert row == [False] * (2 * pools.ROW) + [True]


def test_jobs_that_compute_are_all_done_by_one_thread(running, computing, monkeypatch):
    monkeypatch.setattr(pools, "LONG", 30)

    def compute():
        time.sleep(2 * pools.SLOW)
        return threading.get_ident()

    used = {future.result(30) for future in [running.run(None, compute) for _ in range(20)]}
    assert len(used) == 1 == len(running.pool._workers)


def test_threads_that_hang_are_made_up_for(running, monkeypatch):
    monkeypatch.setattr(pools, "HUNG", 0.05)
    go_on = threading.Event()
    hung = [running.run(None, go_on.wait, 60) for _ in range(4)]
    assert running.run(None, max, 1, 2).result(30) == 2
    hung += [running.run(None, go_on.wait, 60) for _ in range(100)]
    deadline = time.monotonic() + 30
    while len(running.pool._workers) < 16:
        assert time.monotonic() < deadline
    go_on.set()
    for future in hung:
        assert future.result(30)
    assert len(running.pool._workers) == 16, "four times as many as wanted, and no more"


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
    assert len(running.pool._workers) <= 4 and not running.pool.pending


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
    assert done == [] and running.pool._workers == []
    starved.clear()
    for future in futures:
        future.result(30)
    assert running.run(None, max, 1, 2).result(30) == 2
    assert done == [0, 1, 2, 3] and caplog.text.count("the system gives no more threads; 0 do the work") == 1


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


def test_what_runs_beside_has_ended_when_it_was_waited_for_with_a_thread_or_without(monkeypatch):
    ran_in = []
    for _ in range(2):
        wait = pools.beside(lambda: ran_in.append(threading.current_thread()))
        wait()
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert len(ran_in) == 2 and ran_in[0] is not threading.current_thread() is ran_in[1]


def no_thread(self):
    raise RuntimeError("can't start new thread")


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


class Turn:
    """The lock for which the loop stands still, which counts how often it did."""

    def __init__(self, lock):
        self.lock, self.waits, self.release = lock, 0, lock.release

    def acquire(self, **patience):
        self.waits += 1
        return self.lock.acquire(**patience)


def test_the_loop_stands_still_for_quick_jobs_and_for_none_after_a_slow_one(monkeypatch):
    monkeypatch.setattr(pools, "HURRY", 60)
    monkeypatch.setattr(pools, "LONGEST_HURRY", 60)
    running = Loop(4)
    running.pool._turn = turn = Turn(running.pool._turn)
    go_on = threading.Event()
    try:
        for expected in (1, 2):
            assert running.run(None, max, 1, 2).result(30) == 2
            running.pool._hurry_until = 0.0  # on a busy machine such a job may have been slow
            assert turn.waits >= expected
        slow = running.run(None, go_on.wait, 30)
        for _ in range(10):
            assert running.run(None, max, 1, 2).result(30) == 2
        waits = turn.waits
        for _ in range(10):
            assert running.run(None, max, 1, 2).result(30) == 2
        assert turn.waits == waits and not slow.done()
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


def test_a_thread_that_others_go_on_for_while_it_waits_for_the_disk_takes_no_more_jobs(disk):
    loop = asyncio.new_event_loop()
    pool = HandlerPool(4, loop, disk.unsynced, disk.sync)
    worker = pools._Worker()
    worker.delay = pools.RunDelay()
    pool._workers.append(worker)
    pool._quick = 2
    pool._held.append((loop.create_future(), 1, None))
    thread = threading.Thread(target=pool._next, args=(worker,))
    thread.start()
    try:
        assert disk.begun.wait(30)
        assert not worker.quick and pool._quick == 1, "it does not count while it waits"
        with pool._guard:
            pool._ready.append((None, loop.create_future(), max, (1, 2)))
            pool._held.append((loop.create_future(), 2, None))
        disk.go_on.set()
        eventually(lambda: worker in pool._asleep, "it sleeps")
        assert disk.syncs == 2 and len(pool._ready) == 1
    finally:
        disk.go_on.set()
        pool.close()
        thread.join(30)
        worker.delay.close()
        loop.close()
    assert not thread.is_alive()


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

    def job():
        time.sleep(5 * pools.SLOW)
        return threading.get_ident()

    used = {future.result(30) for future in [running.run(None, job) for _ in range(20)]}
    assert (len(used) == 1) == in_line
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
    worker = pools._Worker()
    running.pool._quick, worker.row = 1, pools.ROW
    running.pool._leave(worker)
    assert worker.row == 0 == running.pool._quick


@pytest.mark.parametrize("ready", [True, False])
def test_whether_a_thread_waits_is_not_known_from_a_wait_for_a_processor_that_goes_on(monkeypatch, ready):
    monkeypatch.setattr(pools.RunDelay, "is_ready", lambda delay: ready)
    worker = pools._Worker()
    worker.delay = pools.RunDelay()
    try:
        worker.begin(time.monotonic() - 60, True)
        assert worker.is_slow(time.monotonic())
        assert worker.waits(time.monotonic()) != ready
    finally:
        worker.delay.close()
