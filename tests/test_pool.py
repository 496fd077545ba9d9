"""The threads of the handlers."""

import threading

import pytest

from lamson.pool import HandlerPool


@pytest.fixture
def pool():
    pool = HandlerPool(4)
    yield pool
    pool.close()


def test_results_and_errors_come_back(pool):
    assert pool.submit(None, max, 1, 2).result(10) == 2
    with pytest.raises(ZeroDivisionError):
        pool.submit(None, lambda: 1 / 0).result(10)
    assert pool.submit(None, max, 1, 2).result(10) == 2


def test_as_many_run_side_by_side_as_there_are_threads(pool):
    everyone = threading.Barrier(4, timeout=30)
    for future in [pool.submit(None, everyone.wait) for _ in range(4)]:
        future.result(30)
    # The threads are idle now, and the same ones serve again.
    for future in [pool.submit(number, everyone.wait) for number in range(4)]:
        future.result(30)
    assert pool._threads == 4


def test_what_has_one_key_runs_in_turn_and_holds_one_thread(pool):
    order, go_on = [], threading.Event()

    def slow(number):
        assert go_on.wait(30)
        order.append(number)

    slow_ones = [pool.submit("slow", slow, number) for number in range(20)]
    assert pool.submit("other", max, 1, 2).result(30) == 2  # does not wait for the twenty
    go_on.set()
    for future in slow_ones:
        future.result(30)
    assert order == list(range(20))
    assert pool.submit("slow", max, 1, 2).result(30) == 2


def test_two_thousand_jobs_of_twenty_keys_all_run_each_key_in_order(pool):
    done = {key: [] for key in range(20)}
    futures = [pool.submit(number % 20, done[number % 20].append, number) for number in range(2000)]
    for future in futures:
        future.result(30)
    assert all(done[key] == list(range(key, 2000, 20)) for key in done)
    assert not pool._turns


def test_close_lets_the_threads_end():
    pool = HandlerPool(2)
    pool.submit(None, max, 1, 2).result(10)
    before = [thread for thread in threading.enumerate() if thread.name.startswith("lamson-handler")]
    pool.close()
    for thread in before:
        thread.join(30)
    assert not any(thread.is_alive() for thread in before) and all(thread.daemon for thread in before)
