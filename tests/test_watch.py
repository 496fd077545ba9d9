"""Functions that do not come to an end."""

import logging
import threading
import time

import pytest

from lamson.mail import MailRequest
from lamson.routing import RoutingBase
from lamson.watch import Watch


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_what_takes_too_long_is_told_once_with_the_place_and_again_when_it_ends(caplog):
    watch = Watch(lambda: 0.05)
    go_on = threading.Event()

    def hangs_here():
        token = watch.begin(lambda: "a name")
        go_on.wait(30)
        watch.end(token)

    thread = threading.Thread(target=hangs_here)
    with caplog.at_level(logging.WARNING, "lamson.watch"):
        thread.start()
        until(lambda: caplog.records)
        watch.end(watch.begin(lambda: "a quick one"))
        time.sleep(0.2)  # it is looked at several times more
        assert len(caplog.records) == 1
        assert caplog.messages[0].startswith("overdue: a name runs for") and "hangs_here" in caplog.messages[0]
        go_on.set()
        thread.join()
    assert len(caplog.records) == 2 and caplog.messages[1].startswith("ended: a name, after")
    until(lambda: not named("lamson-watch"))


def test_a_call_that_begins_while_the_thread_that_looks_is_ending_is_watched_too(caplog):
    class Ending(Watch):
        begun = None

        def _look_while_there_is_something(self):
            super()._look_while_there_is_something()
            if self.begun is None:  # it has just decided to end
                self.begun = self.begin(lambda: "a late one")

    watch = Ending(lambda: 0.05)
    with caplog.at_level(logging.WARNING, "lamson.watch"):
        watch.end(watch.begin(lambda: "a quick one"))
        until(lambda: caplog.messages and "a late one" in caplog.messages[0])
        assert len(named("lamson-watch")) == 1
        watch.end(watch.begun)
    until(lambda: not named("lamson-watch"))


def test_with_a_limit_of_zero_nobody_looks():
    watch = Watch(lambda: 0)
    before = len(named("lamson-watch"))
    watch.end(watch.begin(lambda: "a name"))
    assert len(named("lamson-watch")) == before


def test_the_router_tells_the_handler_and_goes_on_with_other_senders(caplog):
    router = RoutingBase()
    router.LOCKING, router.TIMEOUT = "sender", 0.05
    go_on, done = threading.Event(), []

    def START(message):
        if message.route_from == "slow@example.org":
            go_on.wait(30)
        done.append(message.route_from)

    router.register_route(".+", START)

    def send(sender):
        router.deliver(MailRequest("test", f"{sender}@example.org", "list@example.com", "Hi.\n"))

    with caplog.at_level(logging.ERROR, "lamson.watch"):
        slow = threading.Thread(target=send, args=["slow"])
        slow.start()
        until(lambda: caplog.records)
        send("other")
        assert done == ["other@example.org"]
        go_on.set()
        slow.join()
    assert ".START on <list@example.com> from <slow@example.org> runs for" in caplog.messages[0]
    assert done == ["other@example.org", "slow@example.org"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_function_that_fails_is_watched_no_longer(error, caplog):
    router = RoutingBase()

    def START(message):
        raise error

    router.register_route(".+", START)
    router.deliver(MailRequest("test", "a@example.org", "list@example.com", "Hi.\n"))
    assert not router._watch._calls


def test_a_call_goes_on_when_there_is_no_thread_to_watch_it_and_the_next_one_asks_again(monkeypatch, caplog):
    watch = Watch(lambda: 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        watch.end(watch.begin(lambda: "unwatched"))
    with caplog.at_level(logging.WARNING, "lamson.watch"):
        token = watch.begin(lambda: "the next one")
        until(lambda: caplog.messages and "the next one" in caplog.messages[0])
        watch.end(token)


def no_thread(self):
    raise RuntimeError("can't start new thread")
