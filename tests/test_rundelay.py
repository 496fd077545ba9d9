"""What the system says about a thread that is ready to run."""

import os
import subprocess
import sys
import threading
import time

import pytest

from lamson.rundelay import RunDelay
from processes import eventually

counted = pytest.mark.skipif(
    not os.path.exists(f"/proc/self/task/{threading.get_native_id()}/schedstat"), reason="this system does not count it"
)


@pytest.fixture
def one_processor():
    """This thread shares a processor with another process that computes."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    other = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    other.stdout.read(1)
    yield
    other.kill()
    other.wait()
    other.stdout.close()
    os.sched_setaffinity(0, before)


@counted
def test_a_thread_that_computes_stands_in_line_behind_others(one_processor):
    delay, began = RunDelay(), time.thread_time()
    before = delay.seconds()
    while time.thread_time() - began < 0.2:
        pass
    assert delay.seconds() - before > 0.02
    delay.close()
    assert delay.seconds() == 0


@counted
@pytest.mark.parametrize("text", [b"", b"1", b"one two three"])
def test_another_file_in_the_place_of_its_own_says_nothing(tmp_path, text):
    (tmp_path / "other").write_bytes(text)
    delay = RunDelay()
    with (tmp_path / "other").open("rb") as other:
        os.dup2(other.fileno(), delay._descriptor)
    assert delay.seconds() == 0
    delay.close()


@counted
def test_it_is_about_the_thread_that_made_it():
    made, ended = [], threading.Event()

    def work():
        made.append(RunDelay())
        ended.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    while not made:
        time.sleep(0.001)
    assert f"/task/{thread.native_id}/" in os.readlink(f"/proc/self/fd/{made[0]._descriptor}")
    assert made[0].seconds() >= 0
    ended.set()
    thread.join()
    made[0].close()


def test_it_is_0_where_nobody_counts(monkeypatch):
    def nothing(*_):
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", nothing)
    delay = RunDelay()
    assert delay.seconds() == 0
    delay.close()


@counted
def test_who_runs_is_ready():
    delay = RunDelay()
    assert delay.is_ready()
    delay.close()


@counted
def test_a_thread_that_waits_is_not_ready():
    made, go_on = [], threading.Event()
    thread = threading.Thread(target=lambda: (made.append(RunDelay()), go_on.wait(30)))
    thread.start()
    eventually(lambda: made and not made[0].is_ready(), "it waits")
    go_on.set()
    thread.join()
    assert not made[0].is_ready(), "it is gone"
    made[0].close()


def test_nothing_is_counted_when_somebody_has_closed_the_descriptor():
    delay = RunDelay()
    if delay._descriptor is not None:
        os.close(delay._descriptor)
    assert delay.seconds() == 0
