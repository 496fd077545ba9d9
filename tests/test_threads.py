"""Threads that the system may refuse."""

import threading

from lamson.threads import beside


def test_what_runs_beside_has_ended_when_it_was_waited_for_with_a_thread_or_without(monkeypatch):
    ran_in = []
    for _ in range(2):
        wait = beside(lambda: ran_in.append(threading.current_thread()))
        wait()
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert len(ran_in) == 2 and ran_in[0] is not threading.current_thread() is ran_in[1]


def no_thread(self):
    raise RuntimeError("can't start new thread")
